"""The benchmarks of a whole iteration and of its attack: what is timed is right, and its rows say what was measured."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import _baselines  # noqa: E402
import _iteration_checks  # noqa: E402
import _ladder  # noqa: E402
import _memory  # noqa: E402
import _published  # noqa: E402
import _shares  # noqa: E402
import _timing  # noqa: E402
import _training_case  # noqa: E402
import bench_attack_loop  # noqa: E402
import bench_train  # noqa: E402
from _cli import WrongResult  # noqa: E402

CPU = torch.device("cpu")
TINY = ["--quick", "--batch", "8", "--steps", "2", "--rounds", "2"]


@pytest.fixture(autouse=True)
def tiny_calls(monkeypatch):
    """Many tiny calls: two threads would mostly wait for one another, and flushing a cache would be all."""
    monkeypatch.setattr(_timing, "cpu_cache_bytes", lambda: 2**16)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(benchmark, tmp_path, *options):
    file = tmp_path / "rows.json"
    status = benchmark.main([*TINY, "--json", str(file), *options])
    return status, {row["variant"]: row for row in json.loads(file.read_text())} if file.exists() else {}


@pytest.fixture
def case():
    return _training_case.TrainingCase(_training_case.PAIRS["digits"], 8, CPU)


# ---------------------------------------------------------------------------------------------------------------------
# bench_train
# ---------------------------------------------------------------------------------------------------------------------


def test_every_variant_of_the_iteration_is_checked_and_timed(tmp_path, capsys):
    status, rows = run(bench_train, tmp_path)
    assert status == 0
    wanted = [name for name, kind in bench_train.kinds("cpu").items() if kind.default and not kind.cuda_only]
    assert list(rows) == [name for name in wanted if rows[name]["status"] == "ok"] + [
        name for name in wanted if rows[name]["status"] != "ok"
    ]
    for name, row in rows.items():
        assert set(row) == {*_timing.ENVIRONMENT_FIELDS, *_timing.TIMING_FIELDS, *bench_train.FIELDS}
        if row["status"] != "ok":
            assert name == "torchattacks" and row["status"].startswith("unavailable: ")
            continue
        assert row["rounds"] == 2 and row["median_us"] > 0 and row["checked"] == "ball, strength, loss, gradient"
        assert row["gradient_cosine"] > 0.999
        shares = [row[f"{part}_pct"] or 0.0 for part in ("attack", "teacher", "data", "update")]
        assert sum(shares) == pytest.approx(100) and row["attack_pct"] > 0
    assert rows["published"]["x_published"] == 1 and rows["published-eval"]["x_published_eval"] == 1
    # the data is the loader's in the package's variants, and nobody's before
    package = {"fused", "parity", "train-attack", "cold"}
    assert {name for name, row in rows.items() if row["data_pct"]} == package
    assert rows["fused"]["first_run_us"] > 0 and rows["cold"]["first_run_us"] is None
    assert "x pub-eval" in capsys.readouterr().out


def test_the_ladder_s_ratios_are_over_the_rung_before():
    kinds = bench_train.kinds("cpu")
    built = {name: _Built(kinds[name]) for name in ("published", "published-eval", "no-dead-work", "fused", "cold")}
    times = {"published": 8.0, "published-eval": 6.0, "no-dead-work": 4.0, "fused": 1.0, "cold": 2.0}
    measured = {name: _timing.Measurement([time, 2 * time], 1) for name, time in times.items()}
    rows = bench_train.train_rows(measured, built, {"fused": {"attack": 75.0, "update": 25.0}}, {"batch": 6})
    rows = {row["variant"]: row for row in rows}
    assert [rows[name]["x_rung_before"] for name in times] == [None, None, 2.0, 4.0, None]
    assert [rows[name]["x_published"] for name in times] == [1.0, 8 / 6, 2.0, 8.0, 4.0]
    assert rows["fused"]["x_published_eval"] == 6.0 and rows["fused"]["images_per_s"] == 4.0
    assert (rows["fused"]["attack_pct"], rows["fused"]["data_pct"]) == (75.0, None)
    share = bench_train.computed_share(200)
    assert rows["fused"]["first_run_us"] == pytest.approx((1.5 * (1 - share) + 3.0 * share) * 1e6)


class _Built:
    def __init__(self, kind):
        self.kind, self.checked, self.peak = kind, {}, _memory.Peak(1.0)


def test_the_share_of_lookups_that_a_new_table_misses():
    rng, known, misses = random.Random(0), set(), 0
    for _epoch in range(50):
        for image in range(400):
            view = rng.randrange(30)
            misses += (image, view) not in known
            known.add((image, view))
    assert bench_train.computed_share(50, views=30) == pytest.approx(misses / (50 * 400), rel=0.02)
    assert bench_train.computed_share(1) == pytest.approx(1.0)


def leave_the_ball(monkeypatch):
    right = _published.ascend

    def wrong(x_adv, grad, x, eps, step_size):
        return right(x_adv, grad, x, 1.1 * eps, step_size)

    monkeypatch.setattr(_ladder, "published_pgd", lambda *args: _published.published_pgd(*args, move=wrong))


def attack_weakly(monkeypatch):
    monkeypatch.setattr(_ladder, "published_pgd", lambda network, x, y, recipe, noise: (x + noise).clamp(0, 1))


def scale_the_loss(monkeypatch):
    right = _ladder.distillation
    monkeypatch.setattr(_ladder, "distillation", lambda *args: 1.01 * right(*args))


def distil_another_teacher(monkeypatch):
    monkeypatch.setattr(_ladder.Teacher, "clean", lambda self, batch: self(batch.x.flip(0)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (leave_the_ball, "from the image, eps"),
        (attack_weakly, "the attack reaches a loss of"),
        (scale_the_loss, "gradients at a cosine of"),
        (distil_another_teacher, "gradients at a cosine of"),
    ],
)
def test_an_iteration_that_is_wrong_is_not_timed(tmp_path, monkeypatch, capsys, spoil, message):
    spoil(monkeypatch)
    status, rows = run(bench_train, tmp_path, "--variants", "published,no-dead-work", "--steps", "7")
    assert (status, rows) == (1, {})
    assert message in capsys.readouterr().err


def test_a_baseline_that_is_not_there_is_a_row_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(_baselines, "torchattacks", None)
    monkeypatch.setattr(_baselines, "missing", ImportError("No module named 'torchattacks'"), raising=False)
    status, rows = run(bench_train, tmp_path, "--variants", "published,torchattacks")
    assert status == 0
    assert rows["torchattacks"]["status"] == "unavailable: ImportError: No module named 'torchattacks'"


def test_the_published_iteration_does_its_dead_work_and_attacks_in_train_mode(case):
    recipe = _published.Recipe(steps=3)
    iteration = _published.PublishedIteration(case.student(), case.teacher(), case.batches(), recipe)
    iteration()
    counts = {int(v) for k, v in iteration.student.state_dict().items() if k.endswith("num_batches_tracked")}
    assert counts == {3 + 2}  # the attack's, the adversarial and the clean forward
    kept = _published.PublishedIteration(case.student(), case.teacher(), case.batches(), recipe, attack_bn="eval")
    kept()
    counts = {int(v) for k, v in kept.student.state_dict().items() if k.endswith("num_batches_tracked")}
    assert counts == {2} and all(module.training for module in kept.student.modules())


def test_all_variants_see_the_same_batches(case):
    package = _ladder.TrainerIteration(case, _published.Recipe(), {})
    for batch, (again,) in zip(case.batches(), (package.step() for _ in range(2)), strict=True):
        assert batch.x.equal(again.x) and batch.ids.equal(again.ids) and batch.seed.equal(again.seed)


def test_nothing_is_missing_in_a_teacher_s_table_when_the_time_is_taken(case, monkeypatch):
    recipe = _published.Recipe(steps=1)
    cached = _ladder.LeanerIteration(case, recipe, _ladder.Changes(teacher="cached"))
    for iteration in (cached, _ladder.TrainerIteration(case, recipe, {})):
        with monkeypatch.context() as patch:
            patch.setattr(_ladder.Teacher, "__call__", lambda *_: pytest.fail("the teacher was asked"))
            for _ in range(3):
                iteration()


def test_a_compiled_iteration_computes_the_same(case, monkeypatch):
    """As it is compiled, here run eagerly."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    references = _iteration_checks.References(case, _published.Recipe(steps=2))
    iteration = _baselines.CompiledIteration(case.student(), case.teacher(), case.batches(), references.recipe)
    how = {"attack_bn": "train", "clamp_start": True, "rounding": "fp32", "same_start": True}
    assert references.check(iteration, **how)["same_pixels_pct"] == 100
    assert all(p.requires_grad for p in iteration.student.parameters())


def test_a_gradient_that_is_missing_is_a_wrong_result(case):
    iteration = _published.PublishedIteration(case.student(), case.teacher(), case.batches(), _published.Recipe())
    frozen = next(iteration.student.parameters())
    frozen.requires_grad_(False)
    with pytest.raises(WrongResult, match="no gradient"):
        _iteration_checks.outcome(iteration, 0.03, clamp_start=True, outer_at=None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_captured_published_iteration_computes_what_the_eager_one_does():
    case = _training_case.TrainingCase(_training_case.PAIRS["digits"], 8, torch.device("cuda"))
    losses = []
    for cls in (_published.PublishedIteration, _baselines.GraphedIteration):
        iteration = cls(case.student(), case.teacher(), case.batches(), _published.Recipe(steps=2))
        iteration.start_at(lambda batch: _training_case.package_noise(batch, 8 / 255, True))
        losses.append([float(iteration()) for _ in range(8)])
    assert iteration.replays == 5
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_only_what_can_run_there_runs_by_default(device, monkeypatch):
    chosen = []
    monkeypatch.setattr(bench_train, "run", lambda program, args, run_case: chosen.extend(args.variants) or 0)
    bench_train.main(["--device", device])
    kinds = bench_train.kinds(device)
    fit = [name for name, kind in kinds.items() if device == "cuda" or not kind.cuda_only]
    assert chosen == [name for name in fit if name != "compile"]
    rungs = [name for name in chosen if kinds[name].role == "rung"]
    assert rungs[-1] == ("fused" if device == "cpu" else "graph")


def test_a_graph_that_is_not_replayed_is_a_wrong_result(case):
    kind = bench_train.Kind(bench_train.trainer(), "rung", "eval", graphed=True)  # on a CPU there is none
    references = _iteration_checks.References(case, _published.Recipe(steps=1))
    with pytest.raises(WrongResult, match="no graph was replayed"):
        bench_train.Built("graph", kind, case, references.recipe, references)


# ---------------------------------------------------------------------------------------------------------------------
# bench_attack_loop
# ---------------------------------------------------------------------------------------------------------------------


def test_every_loop_is_checked_and_timed(tmp_path, capsys):
    status, rows = run(bench_attack_loop, tmp_path)
    assert status == 0
    assert {"published", "torchattacks", "channels-last", "folded", "fused", "passes"} == set(rows)
    for name, row in rows.items():
        assert set(row) == {*_timing.ENVIRONMENT_FIELDS, *_timing.TIMING_FIELDS, *bench_attack_loop.FIELDS}
        if row["status"] == "ok" and name != "passes":
            assert row["checked"] == "in the ball, as strong" and row["loss"] > 0
    assert rows["published"]["x_published"] == 1
    assert rows["fused"]["same_pixels_pct"] > 99  # from the same start
    assert "x torchattacks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x_adv, grad, x, eps, step: x_adv.detach() + 2 * eps * grad.sign(), "from the image, eps"),
        (lambda x_adv, grad, x, eps, step: x, "the attack reaches a loss of"),
    ],
)
def test_a_loop_that_is_wrong_is_not_timed(tmp_path, monkeypatch, capsys, wrong, message):
    right = bench_attack_loop.published
    monkeypatch.setattr(
        bench_attack_loop,
        "published",
        lambda target, *args: right(target, *args, **({} if target.x.is_contiguous() else {"move": wrong})),
    )
    monkeypatch.setitem(bench_attack_loop.CASES, "digits-student", (3, 8))  # channels, so that layouts differ
    status, rows = run(bench_attack_loop, tmp_path, "--variants", "published,channels-last", "--steps", "7")
    assert (status, rows) == (1, {})
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Shares and memory
# ---------------------------------------------------------------------------------------------------------------------


class Work:
    """Parts that take known times on a clock of their own."""

    def __init__(self):
        self.now = 0.0

    def attack(self):
        self.now += 6.0

    def teacher(self):
        self.now += 1.0
        self.attack()

    def __call__(self):
        self.now += 2.0
        self.teacher()
        self.attack()
        self.now += 1.0


def test_a_part_inside_of_another_counts_once(monkeypatch):
    work = Work()
    monkeypatch.setattr(_shares.time, "perf_counter", lambda: work.now)
    parts = [(work, "attack", "attack"), (work, "teacher", "teacher")]
    shares = _shares.Shares(CPU, "update").of(work, parts, calls=2)
    assert shares == pytest.approx({"attack": 100 * 12 / 16, "teacher": 100 / 16, "update": 100 * 3 / 16})
    assert "attack" not in vars(work) and "teacher" not in vars(work)  # nothing is left on it


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_the_peak_is_above_what_was_there_before():
    held = torch.ones(16 << 18)
    memory = _memory.PeakMemory(CPU)
    more = torch.ones(16 << 18)  # 16 MiB that the caller holds
    peak = memory.of(lambda: torch.ones(64 << 18).sum())  # 64 MiB for a moment
    assert 78 <= peak.allocated <= 90
    assert peak.reserved is None
    assert len(held) == len(more)


def test_single_calls_need_no_probes():
    calls, heard = [], []
    variants = [_timing.Variant(name, lambda i, name=name: calls.append(name), lambda n: None) for name in "ab"]
    _timing.measure(
        variants,
        _timing.CpuClock(8),
        n_sets=1,
        rounds=3,
        min_sample_s=0.0,
        warm_up=0,
        progress=lambda done, name, seconds: heard.append((done, name)),
    )
    assert sorted(calls) == ["a"] * 3 + ["b"] * 3
    assert sorted(heard) == [(r, n) for r in range(3) for n in "ab"]
