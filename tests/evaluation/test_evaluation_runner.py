"""The accounting of an evaluation: who was attacked, who survived, what it cost, what is left behind."""

import pytest
import torch
from evaluation_fakes import LEVELS, FirstPixel, Lighten, dark_images, single
from tape_graphs import TapeGraphs
from torch import nn

from ard_fast._interrupts import Interrupted
from ard_fast.attacks import MIFGSM, PGD
from ard_fast.evaluation.ball import distances, inside_ball
from ard_fast.evaluation.curve import accuracy_curve
from ard_fast.evaluation.runner import Evaluator, Step
from ard_fast.models import build_model


def evaluator(split=None, model=None, **settings):
    values = {"levels": LEVELS, "norm": "linf", "eps": 0.5, "batch_size": 4, **settings}
    made = Evaluator(model or FirstPixel(), split or dark_images(10, wrong=(8, 9)), **values)
    made.clean()
    return made


def test_each_attack_is_counted_alone_and_with_those_before():
    one, two = Lighten({100, 101, 108}), Lighten({101, 102, 103})
    made = evaluator()
    first, second = made.run(single("one", one)), made.run(single("two", two))
    assert made.results[0].robust_acc == 80.0 and made.results[0].attacked == 10
    assert one.given == two.given == list(range(100, 108))  # neither the wrong ones; both all the right ones
    assert (first.attacked, first.robust, first.worst_case) == (8, 6, 6)
    assert (second.attacked, second.robust, second.worst_case) == (8, 5, 4)
    assert (second.robust_acc, second.worst_case_acc) == (50.0, 40.0)
    assert made.worst.tolist() == [False] * 4 + [True] * 4 + [False] * 2
    assert made.fooled_by == ["one", "one", "two", "two", None, None, None, None, "clean", "clean"]


def test_a_cascade_drops_what_was_fooled_and_claims_no_more_than_it_knows():
    one, two = Lighten({100, 101}), Lighten({100, 102})
    made = evaluator(cascade=True)
    first, second = made.run(single("one", one)), made.run(single("two", two))
    assert two.given == list(range(102, 108))
    assert (first.robust, first.worst_case) == (6, 6)
    assert (second.attacked, second.robust, second.worst_case) == (6, None, 5)
    assert second.robust_acc is None


def test_stages_of_an_ensemble_attack_survivors_and_count_alone():
    before, a, b = Lighten({107}), Lighten({100, 101}), Lighten({101, 102})
    made = evaluator()
    made.run(single("before", before))
    result = made.run(Step("both", (("a", a), ("b", b))))
    assert a.given == list(range(100, 108))  # what `before` fooled is attacked again: the ensemble's figure is its own
    assert b.given == list(range(102, 108))
    assert [(stage.attacked, stage.left) for stage in result.stages] == [(8, 6), (6, 5)]
    assert (result.attacked, result.robust, result.worst_case) == (8, 5, 4)
    assert made.fooled_by[2] == "both: b" and made.unfinished == []


def test_an_attack_that_was_run_before_is_taken_over():
    first, again, other = (Lighten({100, 101}, name=name) for name in ("same", "same", "other"))
    made = evaluator()
    made.run(single("alone", first))
    result = made.run(Step("ensemble", (("x", Lighten({101, 105})), ("again", again), ("other", other))))
    assert again.given == [] and other.given  # the ensemble's survivors had all been attacked by the same
    assert [stage.reused for stage in result.stages] == [False, True, False]
    assert [(stage.attacked, stage.left) for stage in result.stages] == [(8, 6), (6, 5), (5, 5)]
    assert result.stages[1].cost.forwards == 0


def test_an_attack_is_run_again_where_it_has_not_seen_every_image():
    first, again = Lighten({100}, name="same"), Lighten({100, 104}, name="same")
    made = evaluator()
    made.attack("part", first, torch.arange(10) < 3, 0.5)
    right, stage = made.attack("all", again, made.right, 0.5)
    assert again.given == list(range(100, 108)) and not stage.reused
    assert int(right.sum()) == 6


def test_results_outside_the_ball_fool_nobody():
    made = evaluator(eps=0.25)
    result = made.run(single("too far", Lighten({100, 101})))
    assert result.robust == 8 and result.stages[0].outside == 2
    assert made.fooled_by[0] is None and torch.equal(made.adversarial[0], torch.full((1, 4, 4), 0.3))
    assert evaluator().run(single("nan", Lighten({100}, to=float("nan")))).stages[0].outside == 1
    assert evaluator(eps=1.0).run(single("bright", Lighten({100}, to=1.2))).stages[0].outside == 1


def test_the_ball_allows_rounding_and_no_more():
    x = torch.full((1, 3, 32, 32), 0.5)
    eps = 8 / 255
    for size, inside in ((eps, True), (eps + 6e-8, True), (eps + 5e-6, False)):
        assert inside_ball(x + size, x, norm="linf", eps=eps).item() is inside
    direction = torch.ones_like(x) / x.numel() ** 0.5
    for size, inside in ((0.5, True), (0.5 + 1e-4, False)):
        assert inside_ball(x + size * direction, x, norm="l2", eps=0.5).item() is inside
    assert distances(x + 0.5 * direction, x, "l2").item() == pytest.approx(0.5, abs=1e-6)
    assert not inside_ball(x * float("nan"), x, norm="l2", eps=9.0).item()


def test_the_adversarial_images_are_those_that_fooled_first():
    made = evaluator()
    made.run(single("one", Lighten({100}, to=0.7)))
    made.run(single("two", Lighten({100, 101}, to=0.8)))
    made.run(single("three", Lighten({102}, to=0.4)))  # moves it and does not fool
    assert [round(value, 4) for value in made.adversarial[:5, 0, 0, 0].tolist()] == [0.7, 0.8, 0.4, 0.3, 0.3]


def test_costs_are_what_went_through_the_network():
    made = evaluator()
    stage = made.run(single("pgd", PGD(eps=0.1, step_size=0.05, steps=3))).stages[0]
    # 8 images in batches of 4 and 4: three steps forward and backward, one pass to judge.
    assert (stage.cost.forwards, stage.cost.forward_images) == (8, 32)
    assert (stage.cost.backwards, stage.cost.backward_images) == (6, 24)
    assert stage.cost.seconds > 0
    assert made.results[0].cost.forward_images == 10 and made.results[0].cost.backwards == 0
    assert stage.parameters.startswith("PGD(eps=0.1") or "PGD" in stage.parameters


def test_the_batch_size_changes_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 17, (40, 1, 8, 8), generator=generator).to(torch.uint8)
    split = dark_images(40)
    with torch.no_grad():
        labels = model.eval()(images / 16.0).argmax(1)
    split = type(split)(images, labels, split.ids)
    outcomes = set()
    for size in (40, 7, 1):
        made = evaluator(split, model, levels=16, eps=0.05, batch_size=size, seed=5)
        made.run(single("pgd", PGD(eps=0.05, step_size=0.02, steps=4)))
        outcomes.add((tuple(made.worst.tolist()), tuple(made.adversarial.sum((1, 2, 3)).mul(1e3).round().tolist())))
    assert len(outcomes) == 1
    worst = next(iter(outcomes))[0]
    assert 0 < sum(worst) < 40  # neither all nor none, or the comparison says nothing


def test_no_image_right_costs_nothing_and_says_zero():
    made = evaluator(dark_images(3, wrong=(0, 1, 2)))
    attack = Lighten({100})
    result = made.run(single("one", attack))
    assert attack.given == [] and (result.attacked, result.robust_acc, result.worst_case_acc) == (0, 0.0, 0.0)


class Backward:
    """Calls backward(), as some attacks of other packages do."""

    def __call__(self, model, x, y, *, seed, sample_ids):
        probe = x.clone().requires_grad_()
        model(probe).sum().backward()
        return x


def test_the_network_is_left_as_it_was():
    model = build_model("resnet18-tiny", in_channels=1).train()
    model.layer2.eval()
    model.layer3[0].conv1.weight.requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    split = dark_images(4)
    split = type(split)(split.images.repeat(1, 1, 4, 4), torch.arange(4) % 2, split.ids)
    made = Evaluator(model, split, levels=LEVELS, norm="linf", eps=0.5)
    made.clean()
    made.attack("backward", Backward(), torch.ones(4, dtype=torch.bool), 0.5)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.layer3[0].conv1.weight.requires_grad and model.conv1.weight.requires_grad
    assert tf32 == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)


def test_a_stop_leaves_what_is_finished():
    asked = []
    made = evaluator(stop=lambda: bool(asked))
    made.run(single("one", Lighten({100})))

    class Stopping(Lighten):
        def __call__(self, model, x, y, **keys):
            asked.append(True)
            return super().__call__(model, x, y, **keys)

    with pytest.raises(Interrupted):
        made.run(Step("both", (("a", Stopping({101})), ("b", Lighten({102})))))
    assert [result.name for result in made.results] == ["clean", "one"]
    assert made.worst.tolist()[:2] == [False, True]
    asked.clear()
    made = evaluator(stop=lambda: bool(asked))
    with pytest.raises(Interrupted):
        made.run(Step("both", (("a", Lighten({101})), ("b", Stopping({102})))))
    assert [(stage.name, stage.left) for stage in made.unfinished] == [("a", 7)]


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="split: expected at least one image"):
        Evaluator(FirstPixel(), dark_images(0), levels=LEVELS, norm="linf", eps=0.1)


def test_the_curve_falls_and_attacks_only_survivors():
    made = evaluator()
    attacks = {}

    def make(eps):
        # At 0.4 a weaker attack than at 0.35: what 0.35 fooled stays fooled.
        ids = {0.3: {100, 101}, 0.35: {101, 102, 103}, 0.4: {104}}[eps]
        attacks[eps] = Lighten(ids, to=0.59)
        return attacks[eps]

    points = list(accuracy_curve(made, "lighten", make, [0.4, 0.0, 0.3, 0.35, 0.3]))
    assert [(point.eps, point.robust_acc) for point in points] == [(0.0, 80.0), (0.3, 60.0), (0.35, 40.0), (0.4, 30.0)]
    assert attacks[0.4].given == [104, 105, 106, 107]
    assert made.worst.sum() == 8 and [result.name for result in made.results] == ["clean"]
    assert made.fooled_by[0] is None  # the pictures stay those of the attacks


def test_channels_last_reaches_the_network():
    seen = []

    class Layout(nn.Module):
        def forward(self, x):
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1)

    split = dark_images(2)
    split = type(split)(split.images.repeat(1, 3, 1, 1), split.labels, split.ids)
    evaluator(split, Layout(), channels_last=True)
    assert seen == [True]


@pytest.mark.parametrize("name", ["pgd", "mifgsm"])
def test_replays_of_a_graph_count_as_the_attack_does(name, monkeypatch):
    attack = {"pgd": PGD(eps=0.2, step_size=0.1, steps=3, restarts=2), "mifgsm": MIFGSM(eps=0.2, steps=2)}[name]

    def outcome():
        made = evaluator(dark_images(31, wrong=(8, 9)))
        result = made.run(single("pgd", attack))
        cost = result.stages[0].cost
        return made.worst.tolist(), made.adversarial, cost.forwards, cost.forward_images, cost.backward_images

    eager, tapes = outcome(), []

    def backend():
        tapes.append(TapeGraphs())
        return tapes[-1]

    monkeypatch.setattr("ard_fast.attacks.graphed.CudaGraphs", backend)
    graphed = outcome()
    assert [tape.replays for tape in tapes] == [4]  # 29 images, 4 a batch: 3 eager calls, 4 replays, 1 image left over
    assert torch.equal(eager[1], graphed[1])
    assert eager[:1] + eager[2:] == graphed[:1] + graphed[2:]
