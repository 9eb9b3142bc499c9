"""Counts of an evaluation: who was attacked, who was fooled, what it cost, and that nothing is left changed."""

import pytest
import torch
from evaluation_fakes import LEVELS, FirstPixel, Lighten, dark_images, single
from torch import nn

from ard_fast._commandline import Interrupted
from ard_fast.attacks import PGD
from ard_fast.data import Split
from ard_fast.evaluation import evaluator as module
from ard_fast.evaluation.evaluator import Evaluator, inside_ball
from ard_fast.evaluation.measure import evaluate
from ard_fast.evaluation.results import Step
from ard_fast.evaluation.self_checks import check_results
from ard_fast.folding import FoldedNetwork
from ard_fast.models import build_model

PGD3 = PGD(eps=0.05, step_size=0.02, steps=3, bn="eval")


def evaluator(split=None, model=None, **settings):
    values = {"levels": LEVELS, "norm": "linf", "eps": 0.5, "batch_size": 4, **settings}
    made = Evaluator(model or FirstPixel(), split or dark_images(10, wrong=(8, 9)), **values)
    made.clean()
    return made


def random_images(count=40, size=8):
    """Images of levels 0 to 16, and a network whose classes are their labels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(size * size, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    images = torch.randint(0, 17, (count, 1, size, size), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    with torch.no_grad():
        return model, Split(images, model(images / 16.0).argmax(1), torch.arange(count))


# ---- `evaluate`, the trainer's measurement ------------------------------------------------------------------------


class Brightness(nn.Module):
    """Class 1 where the mean pixel is above one half, else class 0."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


@pytest.mark.parametrize("batch_size", [500, 3, 1])
def test_counts_are_exact_where_the_answer_is_known(batch_size):
    # Means 4/16, 7.5/16, 9/16, 16/16 with labels 0, 0, 1, 0: the last is wrong; eps 0.05 < 1/16 moves 7.5/16 across.
    images = torch.tensor([4, 7, 9, 16], dtype=torch.uint8).view(4, 1, 1, 1).repeat(1, 1, 8, 8)
    images[1, 0, :4] = 8
    split = Split(images, torch.tensor([0, 0, 1, 0]), torch.arange(4))
    attack = PGD(eps=0.05, step_size=0.02, steps=10, bn="eval")
    assert evaluate(Brightness(), split, levels=16, attack=attack, batch_size=batch_size) == (75.0, 50.0)


def test_processes_count_every_image_once():
    model, split = random_images(23)
    split.labels[:4] = (split.labels[:4] + 1) % 10
    totals = []

    def all_reduce(counts):
        totals.append(counts.clone())
        return counts

    for rank in range(3):
        evaluate(model, split, levels=16, attack=PGD3, batch_size=5, shard=(rank, 3), all_reduce=all_reduce)
    whole = evaluate(model, split, levels=16, attack=PGD3)
    assert tuple((100.0 * sum(totals) / 23).tolist()) == pytest.approx(tuple(whole))
    settings = {"levels": 16, "attack": PGD3, "shard": (1, 3)}
    assert evaluate(model, split, all_reduce=lambda counts: sum(totals), **settings) == whole
    assert whole.robust < whole.clean == pytest.approx(100 * 19 / 23)


def mixed_network():
    """A network in train mode, a part of it in eval mode, another part frozen."""
    model = build_model("resnet18", in_channels=1, width=2).train()
    model.layer2.eval()
    model.layer3[0].conv1.weight.requires_grad_(False)
    return model


def trace(model):
    """What an evaluation must leave as it was: tensors as lists, modes, gradients, random state, TF32."""
    return (
        [value.tolist() for value in (*model.state_dict().values(), torch.get_rng_state())],
        [module.training for module in model.modules()],
        [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()],
        (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32),
    )


def test_evaluate_leaves_no_trace_even_after_an_exception():
    model, split, asked = mixed_network(), random_images(30)[1], []
    before = trace(model)

    def stop():
        asked.append(True)
        if len(asked) == 3:
            raise RuntimeError("asked to stop")

    with pytest.raises(RuntimeError, match="asked to stop"):
        evaluate(model, split, levels=16, attack=PGD3, batch_size=10, between_batches=stop)
    assert trace(model) == before


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="split: expected at least one image"):
        evaluate(FirstPixel(), dark_images(0), levels=16, attack=PGD3)


# ---- several attacks ----------------------------------------------------------------------------------------------


def test_each_attack_is_counted_alone_and_with_those_before():
    one, two = Lighten({100, 101, 108}), Lighten({101, 102, 103})
    made = evaluator()
    first, second = made.run(single("one", one)), made.run(single("two", two))
    assert made.results[0].robust_acc == 80.0 and made.results[0].attacked == 10
    assert one.given == two.given == list(range(100, 108))  # all images that are classified correctly, and no other
    assert (first.attacked, first.robust, first.worst_case) == (8, 6, 6)
    assert (second.attacked, second.robust, second.worst_case) == (8, 5, 4)
    assert (second.robust_acc, second.worst_case_acc) == (50.0, 40.0)
    assert made.worst.tolist() == [False] * 4 + [True] * 4 + [False] * 2
    assert made.fooled_by == ["one", "one", "two", "two", None, None, None, None, "clean", "clean"]


def test_a_cascade_drops_what_was_fooled():
    two = Lighten({100, 102})
    made = evaluator(cascade=True)
    first, second = made.run(single("one", Lighten({100, 101}))), made.run(single("two", two))
    assert two.given == list(range(102, 108))
    assert (first.robust, first.worst_case) == (6, 6)
    assert (second.attacked, second.robust, second.robust_acc, second.worst_case) == (6, None, None, 5)


def test_stages_of_an_ensemble_attack_survivors_and_count_alone():
    a, b = Lighten({100, 101}), Lighten({101, 102})
    made = evaluator()
    made.run(single("before", Lighten({107})))
    result = made.run(Step("both", (("a", a), ("b", b))))
    assert a.given == list(range(100, 108))  # what `before` fooled is attacked again: the ensemble's figure is its own
    assert b.given == list(range(102, 108))
    assert [(stage.attacked, stage.left) for stage in result.stages] == [(8, 6), (6, 5)]
    assert (result.attacked, result.robust, result.worst_case) == (8, 5, 4)
    assert made.fooled_by[2] == "both: b" and made.unfinished == []


def test_an_attack_is_reused_where_it_has_seen_every_image():
    first, again = Lighten({100, 101}, name="same"), Lighten({100, 101}, name="same")
    made = evaluator()
    made.run(single("alone", first))
    result = made.run(Step("ensemble", (("x", Lighten({101, 105})), ("again", again))))
    assert again.given == [] and [stage.reused for stage in result.stages] == [False, True]
    assert [(stage.attacked, stage.left) for stage in result.stages] == [(8, 6), (6, 5)]
    assert result.stages[1].cost.forwards == 0
    made = evaluator()
    made.attack("part", first, torch.arange(10) < 3, 0.5)
    right, stage = made.attack("all", again, made.right, 0.5)
    assert again.given == list(range(100, 108)) and not stage.reused and int(right.sum()) == 6


@pytest.mark.parametrize(("to", "eps"), [(0.6, 0.25), (float("nan"), 0.5), (1.2, 1.0), (-0.1, 1.0)])
def test_results_outside_the_ball_or_the_pixel_range_fool_nobody(to, eps):
    made = evaluator(eps=eps)
    result = made.run(single("too far", Lighten({100, 101}, to=to)))
    assert result.robust == 8 and result.stages[0].outside == 2
    assert made.fooled_by[0] is None and torch.equal(made.adversarial[0], torch.full((1, 4, 4), 0.3))


def test_the_ball_allows_rounding_and_no_more():
    x, eps = torch.full((1, 3, 32, 32), 0.5), 8 / 255
    for size, inside in ((eps, True), (eps + 6e-8, True), (eps + 5e-6, False)):
        assert inside_ball(x + size, x, norm="linf", eps=eps).item() is inside
    direction = torch.ones_like(x) / x.numel() ** 0.5
    for size, inside in ((0.5, True), (0.5 + 1e-4, False)):
        assert inside_ball(x + size * direction, x, norm="l2", eps=0.5).item() is inside
    assert not inside_ball(x * float("nan"), x, norm="l2", eps=9.0).item()


def test_the_adversarial_images_are_those_that_fooled_first():
    made = evaluator()
    made.run(single("one", Lighten({100}, to=0.7)))
    made.run(single("two", Lighten({100, 101}, to=0.8)))
    made.run(single("three", Lighten({102}, to=0.4)))  # changes the image, does not fool
    assert [round(value, 4) for value in made.adversarial[:5, 0, 0, 0].tolist()] == [0.7, 0.8, 0.4, 0.3, 0.3]


def test_the_curve_never_rises_and_attacks_only_survivors():
    made, attacks = evaluator(), {}

    def make(eps):
        # At 0.4 a weaker attack than at 0.35: what 0.35 fooled stays fooled.
        attacks[eps] = Lighten({0.3: {100, 101}, 0.35: {101, 102, 103}, 0.4: {104}}[eps], to=0.59)
        return attacks[eps]

    points = list(made.curve("lighten", make, [0.4, 0.0, 0.3, 0.35, 0.3]))
    assert [(point.eps, point.robust_acc) for point in points] == [(0.0, 80.0), (0.3, 60.0), (0.35, 40.0), (0.4, 30.0)]
    assert attacks[0.4].given == [104, 105, 106, 107]
    assert made.worst.sum() == 8 and [result.name for result in made.results] == ["clean"]
    assert made.fooled_by[0] is None  # the pictures stay those of the attacks
    (point,) = made.curve("too far", lambda eps: Lighten({100}, to=0.75), [0.3])  # inside eps 0.5 of the evaluation
    assert (point.robust_acc, point.stage.outside) == (80.0, 1)


# ---- batches, seeds, costs, traces --------------------------------------------------------------------------------


def test_the_batch_size_does_not_change_results_and_the_seed_does():
    model, split = random_images()

    def outcome(size, seed):
        made = evaluator(split, model, levels=16, eps=0.05, batch_size=size, seed=seed)
        made.run(single("pgd", PGD(eps=0.05, step_size=0.02, steps=4)))
        assert 0 < int(made.worst.sum()) < 40
        return made.worst.tolist(), made.adversarial

    whole, other = outcome(40, 5), outcome(40, 6)
    for size in (7, 1):
        worst, adversarial = outcome(size, 5)
        assert worst == whole[0] and torch.allclose(adversarial, whole[1], atol=1e-4)
    assert not torch.allclose(other[1], whole[1], atol=1e-4)


def test_no_image_classified_correctly_costs_nothing_and_says_zero():
    attack = Lighten({100})
    result = evaluator(dark_images(3, wrong=(0, 1, 2))).run(single("one", attack))
    assert attack.given == [] and (result.attacked, result.robust_acc, result.worst_case_acc) == (0, 0.0, 0.0)


def test_costs_are_what_went_through_the_network():
    made = evaluator()
    stage = made.run(single("pgd", PGD(eps=0.1, step_size=0.05, steps=3))).stages[0]
    # 8 images in batches of 4 and 4: three steps forward and backward, one pass to judge.
    assert (stage.cost.forwards, stage.cost.forward_images) == (8, 32)
    assert (stage.cost.backwards, stage.cost.backward_images) == (6, 24)
    assert stage.cost.seconds > 0 and stage.parameters.startswith("PGD(eps=0.1")
    assert made.results[0].cost.forward_images == 10 and made.results[0].cost.backwards == 0


def test_replays_of_a_graph_are_charged_like_calls(monkeypatch):
    class Graph:
        """Calls the attack for new numbers of images; for others it replays, which does not call the model."""

        def __init__(self, attack):
            self.attack, self.replays, self.seen = attack, 0, set()

        def __call__(self, model, x, y, **options):
            if len(x) in self.seen:
                self.replays += 1
                return self.attack(model.model, x, y, **options)
            self.seen.add(len(x))
            return self.attack(model, x, y, **options)

    def cost():
        made = evaluator(dark_images(31, wrong=(8, 9)))
        cost = made.run(single("pgd", PGD(eps=0.2, step_size=0.1, steps=3))).stages[0].cost
        return cost.forward_images, cost.backwards, cost.backward_images

    eager = cost()
    monkeypatch.setattr(module, "GraphedPGD", Graph)
    monkeypatch.setattr(module, "as_graph", Graph)
    assert cost() == eager


class Backward:
    """Calls backward(), as some attacks of other packages do."""

    def __call__(self, model, x, y, *, seed, sample_ids):
        probe = x.clone().requires_grad_()
        model(probe).sum().backward()
        return x


def failing(model, x, y, **keys):
    raise RuntimeError("the attack fails")


def test_attacks_leave_no_trace_in_the_network_even_after_an_exception():
    model, split = mixed_network(), random_images(4)[1]
    before = trace(model)
    made = evaluator(split, model, levels=16)
    everything = torch.ones(4, dtype=torch.bool)
    made.attack("backward", Backward(), everything, 0.5)
    with pytest.raises(RuntimeError, match="the attack fails"):
        made.attack("failing", failing, everything, 0.5)
    assert trace(model) == before


def test_a_stop_keeps_what_is_finished():
    asked = []

    class Stopping(Lighten):
        def __call__(self, model, x, y, **keys):
            asked.append(True)
            return super().__call__(model, x, y, **keys)

    def stop():
        if asked:
            raise Interrupted

    made = evaluator(before_forward=stop)
    made.run(single("one", Lighten({100})))
    with pytest.raises(Interrupted):
        made.run(Step("both", (("a", Lighten({101})), ("b", Stopping({102})))))
    assert [result.name for result in made.results] == ["clean", "one"]
    assert [(stage.name, stage.left) for stage in made.unfinished] == [("a", 7)]
    assert made.worst.tolist()[:2] == [False, True]


def test_channels_last_reaches_the_network():
    seen = []

    class Layout(nn.Module):
        def forward(self, x):
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1)

    split = dark_images(2)
    evaluator(Split(split.images.repeat(1, 3, 1, 1), split.labels, split.ids), Layout(), channels_last=True)
    assert seen == [True]


# ---- attacks on another network, and in bfloat16 ------------------------------------------------------------------


class Rounded(nn.Module):
    """Class 1 where the first pixel is above 0.498; in bfloat16 it is rounded to a multiple of 1/16 first."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(1, 1), nn.Linear(1, 2)
        with torch.no_grad():
            second = (self.second, [-1.0, 1.0078125], [8.5, -8.5625])
            for layer, weight, bias in ((self.first, [1.0], [8.0]), second):
                layer.weight.copy_(torch.tensor(weight)[:, None])
                layer.bias.copy_(torch.tensor(bias))

    def forward(self, x):
        return self.second(self.first(x.flatten(1)[:, :1]))


class UntilFooled:
    """Sets the first pixel to one value after another until the network is fooled, as it sees that itself."""

    def __init__(self, *values):
        self.values, self.dtypes = values, []

    def __call__(self, model, x, y, *, seed, sample_ids):
        x_adv = x.clone()
        for value in self.values:
            logits = model(x_adv)
            self.dtypes.append(logits.dtype)
            x_adv[logits.argmax(1) == y, :, 0, 0] = value
        return x_adv


class FollowsDifference(UntilFooled):
    """Sets the first pixel to 0.6 where the logits at 0.3 and 0.31 differ."""

    def __call__(self, model, x, y, *, seed, sample_ids):
        x_adv, near = x.clone(), x.clone()
        near[:, :, 0, 0] = 0.31
        x_adv[(model(x) != model(near)).any(1), :, 0, 0] = 0.6
        return x_adv


def test_in_bfloat16_verdicts_are_float32_and_doubtful_images_are_attacked_again():
    attack = UntilFooled(0.47, 0.6)  # 0.47 fools the network in bfloat16 only
    made = evaluator(model=Rounded(), precision="bf16")
    (stage,) = made.run(single("until", attack)).stages
    assert (stage.attacked, stage.left, stage.redone) == (8, 0, 8)
    assert vars(stage.agreement) == {"images": 4, "equal": 4, "robust": 0, "robust_fp32": 0}
    assert made.fooled_by[:8] == ["until"] * 8 and (made.adversarial[:8, 0, 0, 0] == 0.6).all()
    assert set(attack.dtypes) == {torch.float32}  # logits, in both
    assert evaluator(model=Rounded(), precision="bf16").run(single("never", UntilFooled(0.47))).robust == 8
    plain = evaluator(model=Rounded()).run(single("until", attack)).stages[0]
    assert (plain.left, plain.redone, plain.agreement) == (0, 0, None)


def test_gradients_lost_in_bfloat16_are_reported():
    made = evaluator(model=Rounded(), precision="bf16", batch_size=8)
    (stage,) = made.run(single("difference", FollowsDifference())).stages
    assert vars(stage.agreement) == {"images": 8, "equal": 0, "robust": 8, "robust_fp32": 0}
    (finding,) = check_results(made.results)
    assert finding.check == "precision" and "still correct: 8 (bf16), 0 (fp32)" in finding.message
    assert evaluator(model=Rounded()).run(single("difference", FollowsDifference())).robust == 0


def in_bfloat16(x):
    with torch.autocast("cpu", torch.bfloat16):
        return Rounded()(x).float()


class GradientUntilFooled(PGD):
    """`UntilFooled`, but one of the gradient attacks, which see the folded form."""

    def search(self, problem, seed):
        return UntilFooled(0.47, 0.6)(problem.model, problem.x, problem.y, seed=seed, sample_ids=None)


def test_attacks_see_the_folded_form_and_the_network_decides():
    made = evaluator(model=Rounded(), folded=in_bfloat16)  # a form that 0.47 fools, and not the network
    (stage,) = made.run(single("until", GradientUntilFooled(eps=0.5, step_size=0.5, steps=1))).stages
    assert (stage.attacked, stage.left, stage.redone, stage.agreement) == (8, 0, 0, None)
    assert (made.adversarial[:8, 0, 0, 0] == 0.6).all()
    others = made.run(single("other", UntilFooled(0.47)))  # not of ours: it may look into the network
    in_train_mode = made.run(single("train", GradientUntilFooled(eps=0.5, step_size=0.5, steps=1, bn="train")))
    assert (others.robust, in_train_mode.robust) == (8, 0)


def test_folding_a_network_changes_no_verdict():
    torch.manual_seed(0)
    model, split = build_model("digits-student").eval(), random_images(40)[1]
    split.labels[:] = model(split.images / 16.0).argmax(1)
    folded, attack = FoldedNetwork(model, split.images[:4] / 16.0), PGD(eps=0.05, step_size=0.02, steps=3)
    results = []
    for form in (None, folded):
        made = evaluator(split, model, folded=form, levels=16, eps=0.05)
        results.append((made.run(single("pgd", attack)), made.robust["pgd"].tolist()))
    (plain, rows), (found, rows_folded) = results
    assert 0 < plain.robust < 40 and rows_folded == rows
    assert found.cost.backward_images == plain.cost.backward_images == 3 * 40


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_transferred_images_are_made_on_the_source_and_judged_by_the_network(precision):
    source = FirstPixel().requires_grad_(False)
    given = []

    class Spy(Lighten):
        def __call__(self, model, x, y, **keys):
            given.append(model.model)
            return super().__call__(model, x, y, **keys)

    attack = Spy(range(104), name="spy")
    made = evaluator(model=Rounded(), sources={"other": source}, precision=precision)
    own = made.run(single("spy", attack))
    there = made.run(Step("spy from other", (("spy from other", attack),), "other"))
    assert given[0] is made.model.model and given[-1] is source
    assert own.robust == there.robust == 4 and there.source == "other" and own.source is None
    assert there.stages[0].parameters == "spy on other" and not there.stages[0].reused
    assert there.stages[0].cost.forward_images == 8  # it calls no network; the verdicts count
    aimed = made.run(Step("pgd from other", (("pgd", PGD(eps=0.3, step_size=0.6, steps=1)),), "other"))
    assert aimed.cost.backward_images == 8 and aimed.robust == 0
