"""The benchmarks of the attacks: what is counted, what is checked before anything is timed, and who is missing."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import _attack_peers  # noqa: E402
import _problem  # noqa: E402
import _steps_images  # noqa: E402
import _steps_logits  # noqa: E402
import _timing  # noqa: E402
import _victims  # noqa: E402
import bench_attacks  # noqa: E402
import bench_steps  # noqa: E402
import count_ops  # noqa: E402
from _cli import WrongResult  # noqa: E402


@pytest.fixture(autouse=True)
def tiny_calls(monkeypatch):
    """Thousands of tiny calls: two threads would mostly wait for one another, and flushing a cache would be all."""
    monkeypatch.setattr(_timing, "cpu_cache_bytes", lambda: 2**16)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------------------------------------------
# count_ops
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted():
    """A network that says when it runs, and images and labels for it."""
    torch.manual_seed(0)
    boundary = count_ops.Boundary()
    model = count_ops.Bounded(boundary).eval()
    x = torch.rand(count_ops.BATCH, count_ops.CHANNELS, count_ops.SIZE, count_ops.SIZE)
    return model, boundary, x, model(x).argmax(1)


def test_operations_outside_the_network_are_counted_by_size(counted):
    model, boundary, x, y = counted

    def attack(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        probe = x.detach().requires_grad_()
        logits = model(probe)
        loss = (logits * 2).sum()  # logits twice, the second time to a scalar
        (grad,) = torch.autograd.grad(loss, probe)  # ones for the scalar; logits: expand is a view, mul
        x = x + grad  # image
        x.flatten(1).abs_()  # a view, and an image in another shape
        y.clone()  # neither
        torch.empty_like(x)  # only an allocation
        return x

    counts, names = count_ops.count_call(attack, boundary, x, y)
    assert (counts["fwd"], counts["bwd"], counts["sync"]) == (1, 1, 0)
    assert counts["image"] == 2
    assert counts["logits"] == 3
    assert counts["all"] == 2 + 3 + 2
    assert names["aten::addmm"] == 0  # the network's own, forward
    assert names["aten::mm"] == 0  # and backward


@pytest.mark.parametrize(
    "wait",
    [
        lambda x, y: y.sum().item(),
        lambda x, y: bool((y > 0).all()),
        lambda x, y: (y > 0).nonzero(),
        lambda x, y: x[y > 0],
        lambda x, y: x.index_put_((y > 0,), x.new_zeros(())),
        lambda x, y: x.masked_select(x > 0.5),
        lambda x, y: y.unique(),
        lambda x, y: torch.where(y > 0),
        lambda x, y: torch.equal(y, y),
    ],
)
def test_what_waits_for_the_device_is_counted(counted, wait):
    _, boundary, x, y = counted
    counts, _ = count_ops.count_call(lambda x, y: wait(x.clone(), y), boundary, x, y)
    assert counts["sync"] == 1


@pytest.mark.parametrize(
    "no_wait", [lambda x, y: x[y % 8], lambda x, y: torch.where(y > 0, y, 0), lambda x, y: x.topk(2)]
)
def test_indexing_by_numbers_does_not_wait(counted, no_wait):
    _, boundary, x, y = counted
    counts, _ = count_ops.count_call(lambda x, y: no_wait(x.clone(), y), boundary, x, y)
    assert counts["sync"] == 0


@pytest.mark.parametrize("attack", list(_attack_peers.OFFERED))
def test_our_attacks_take_two_operations_a_step_and_no_sync(attack):
    row, names = count_ops.count_attack(_attack_peers.OURS, attack)
    assert (row["image_per_step"], row["logits_per_step"], row["all_per_step"]) == (1, 1, 2), names
    assert row["sync_whole_call"] == 0
    assert (row["fwd_per_step"], row["bwd_per_step"]) == (1, 1)
    assert not row["writes_param_grad"]
    assert not row["output_requires_grad"]


@pytest.mark.parametrize(
    ("package", "attack", "image", "logits", "every", "sync"),
    [
        ("torchattacks", "pgd", 7, 4, 12, 0),
        ("torchattacks", "pgd-l2", 9, 4, 19, 0),
        ("torchattacks", "mifgsm", 12, 4, 17, 0),
        ("foolbox", "pgd", 9, 4, 15, 4),
    ],
)
def test_counts_of_a_peer_are_those_of_its_source(package, attack, image, logits, every, sync):
    pytest.importorskip(package, exc_type=ImportError)
    row, names = count_ops.count_attack(package, attack)
    assert (row["image_per_step"], row["logits_per_step"], row["all_per_step"]) == (image, logits, every), names
    assert row["sync_whole_call"] == sync


def test_autoattack_waits_twice_a_step():
    pytest.importorskip("pyautoattack")
    row, _ = count_ops.count_attack("pyautoattack", "apgd-ce")
    assert row["sync_per_step"] >= 2
    assert row["image_per_step"] >= 25


def test_a_missing_peer_is_said_in_the_counts(tmp_path, monkeypatch, capsys):
    for package in ("torchattacks", "foolbox"):
        monkeypatch.setitem(sys.modules, package, None)  # what makes `import` fail
    file = tmp_path / "counts.json"
    assert count_ops.main(["--attacks", "pgd", "--json", str(file)]) == 0
    status = {r["package"]: r["status"] for r in json.loads(file.read_text())}
    assert status["ard_fast"] == "ok"
    for package in ("torchattacks", "foolbox"):
        assert status[package].startswith("unavailable: ModuleNotFoundError")
    assert "pgd: foolbox: unavailable" in capsys.readouterr().out


def test_unknown_attack_is_refused(capsys):
    with pytest.raises(SystemExit):
        count_ops.main(["--attacks", "deepfool"])
    assert "expected any of pgd" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# bench_attacks
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_victim(monkeypatch):
    monkeypatch.setattr(_victims, "TRAIN_EPOCHS", 1)


def run_attacks(tmp_path: Path, *options: str) -> tuple[int, list[dict[str, object]]]:
    file = tmp_path / "attacks.json"
    status = bench_attacks.main(
        ["--cases", "digits", "--batch", "16", "--steps", "3", "--rounds", "2", "--json", str(file), *options]
    )
    return status, json.loads(file.read_text()) if file.exists() else []


def test_bench_attacks_rows_say_speed_and_strength(tmp_path, quick_victim, capsys):
    status, rows = run_attacks(
        tmp_path, "--attacks", "pgd,pgd-l2,mifgsm,apgd-ce,apgd-ce-l2,apgd-dlr", "--variants", "fused,plain,model"
    )
    assert status == 0
    stated = {*_timing.ENVIRONMENT_FIELDS, *_timing.TIMING_FIELDS, *bench_attacks.FIELDS}
    assert all(set(row) == stated for row in rows)
    by_name = {(r["attack"], r["variant"]): r for r in rows}
    assert len(by_name) == 6 * 3
    for attack in ("pgd", "pgd-l2", "mifgsm", "apgd-ce", "apgd-ce-l2", "apgd-dlr"):
        fused, plain = by_name[attack, "fused"], by_name[attack, "plain"]
        extra = attack.startswith("apgd")  # one evaluation after the last step
        assert (fused["forwards"], fused["backwards"]) == (plain["forwards"], plain["backwards"]) == (3 + extra, 3)
        assert fused["images_forwarded"] == 16 * (3 + extra)
        assert abs(fused["robust_acc"] - plain["robust_acc"]) <= 100 * 3 / 16  # other random starts
        assert fused["mean_loss"] == pytest.approx(plain["mean_loss"], rel=0.25)
        assert fused["checked"] == "in the ball"
        assert by_name[attack, "model"]["outside_model_pct"] == 0
        assert by_name[attack, "model"]["robust_acc"] is None
    assert by_name["pgd", "fused"]["eps"] == 0.2
    assert by_name["pgd-l2", "fused"]["eps"] == 1.0
    assert "outside %" in capsys.readouterr().out


def test_a_missing_peer_is_a_line_and_a_row(tmp_path, quick_victim, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    status, rows = run_attacks(tmp_path, "--attacks", "mifgsm", "--variants", "fused,torchattacks,model")
    assert status == 0
    row = next(r for r in rows if r["variant"] == "torchattacks")
    assert row["status"].startswith("unavailable: ModuleNotFoundError")
    assert set(row) == set(rows[0])
    assert "torchattacks: unavailable" in capsys.readouterr().out


def test_peers_are_run_where_they_offer_the_attack(tmp_path, quick_victim):
    for package in ("torchattacks", "foolbox", "pyautoattack"):
        pytest.importorskip(package, exc_type=ImportError)
    status, rows = run_attacks(
        tmp_path, "--attacks", "pgd,apgd-ce", "--variants", "fused,torchattacks,foolbox,pyautoattack,model"
    )
    assert status == 0
    assert [(r["attack"], r["variant"], r["version"]) for r in rows if r["version"] and r["variant"] != "fused"] == [
        ("pgd", "torchattacks", _attack_peers.version("torchattacks")),
        ("pgd", "foolbox", _attack_peers.version("foolbox")),
        ("apgd-ce", "pyautoattack", _attack_peers.version("pyautoattack")),
    ]
    by_name = {(r["attack"], r["variant"]): r for r in rows}
    assert by_name["pgd", "foolbox"]["forwards"] == 4  # one more, for whether it succeeded
    assert by_name["apgd-ce", "pyautoattack"]["forwards"] == 5  # and one before the first step
    with pytest.raises(ValueError, match="apgd-ce is offered by"):
        _attack_peers.make_attack("foolbox", _attack_peers.Setting("apgd-ce", 0.1, 0.1, 1), torch.nn.Flatten())


def test_an_attack_that_leaves_the_ball_is_not_timed(tmp_path, quick_victim, monkeypatch, capsys):
    from ard_fast import attacks

    right = attacks.PGD.__call__
    monkeypatch.setattr(attacks.PGD, "__call__", lambda self, model, x, y, **k: right(self, model, x, y, **k) + 1e-3)
    status, rows = run_attacks(tmp_path, "--attacks", "pgd", "--variants", "fused,model")
    assert (status, rows) == (1, [])
    assert "fused, pgd: " in capsys.readouterr().err


@pytest.mark.parametrize("bad", [0.3, 1.5, math.nan])
def test_check_result_refuses_images_outside(bad):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    x = torch.full((2, 1, 2, 2), 0.5)
    victim = _victims.Victim(model, x, torch.zeros(2, dtype=torch.int64), eps=0.1, eps_l2=0.1, trained=False)
    x_adv = x + 0.1
    setting = _attack_peers.Setting("pgd", eps=0.1, step_size=0.1, steps=1)
    assert bench_attacks.check_result("fused", victim, setting, x_adv)["checked"] == "in the ball"
    x_adv[1, 0, 1, 1] = bad
    with pytest.raises(WrongResult, match=r"from the image, eps 0\.1"):
        bench_attacks.check_result("fused", victim, setting, x_adv)
    # in L2 each pixel may be inside and the image outside
    with pytest.raises(WrongResult):
        l2 = _attack_peers.Setting("pgd-l2", eps=0.1, step_size=0.1, steps=1)
        bench_attacks.check_result("fused", victim, l2, x + 0.09)


def test_share_outside_of_the_network_is_paired_by_rounds():
    measured = {
        "fused": _timing.Measurement([1.25e-3, 12.5e-3, 1.25e-3], 1),
        "torchattacks": _timing.Measurement([2e-3, 20e-3, 2e-3], 1),
        "model": _timing.Measurement([1e-3, 10e-3, 1e-3], 1),
        "fused+graph": _timing.Measurement([0.5e-3] * 3, 1),
        "model+graph": _timing.Measurement([0.4e-3] * 3, 1),
    }
    setting = _attack_peers.Setting("pgd", 0.1, 0.1, 20)
    rows = bench_attacks.attack_rows(measured, {"fused": {"robust_acc": 50.0}}, 8, setting, {"case": "c"})
    by_name = {r["variant"]: r for r in rows}
    assert by_name["fused"]["outside_model_pct"] == pytest.approx(20)
    assert by_name["torchattacks"]["outside_model_pct"] == pytest.approx(50)
    assert by_name["torchattacks"]["fused_speedup"] == pytest.approx(1.6)
    assert by_name["fused"]["speedup_vs_baseline"] == pytest.approx(1.6)
    assert by_name["fused+graph"]["vs_model"] == pytest.approx(1.25)  # graph against graph
    assert by_name["fused"]["images_per_s"] == pytest.approx(8 / 1.25e-3)
    assert (by_name["fused"]["robust_acc"], by_name["fused"]["case"]) == (50.0, "c")


def test_passes_through_the_network_are_counted():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    victim = _victims.Victim(
        model, torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64), eps=0.1, eps_l2=0.1, trained=False
    )

    def attack(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            model(x[:1])
        model(x.clone().requires_grad_())
        return x

    result, passes = bench_attacks.count_passes(victim, attack)
    assert result is victim.x or torch.equal(result, victim.x)
    assert passes == bench_attacks.Passes(forwards=2, with_graph=1, images=4)
    attack(victim.x, victim.y)  # no longer counted
    assert passes.forwards == 2


@pytest.mark.parametrize("option", ["--batch", "--steps", "--rounds"])
@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_counts_must_be_positive(option, value, capsys):
    with pytest.raises(SystemExit):
        bench_attacks.main([option, value])
    assert f"argument {option}: expected an integer of at least 1, got {value!r}" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# bench_steps
# ---------------------------------------------------------------------------------------------------------------------

TINY = ["--rounds", "2", "--min-sample-ms", "0.05", "--warm"]
EAGER = "eager,closed,torchattacks,mask,autoattack,lean,fused"  # compiling takes seconds a case


def run_steps(tmp_path: Path, *options: str) -> tuple[int, list[dict[str, object]]]:
    file = tmp_path / "steps.json"
    status = bench_steps.main(["--quick", "--variants", EAGER, "--json", str(file), *TINY, *options])
    return status, json.loads(file.read_text()) if file.exists() else []


def test_bench_steps_checks_and_times_every_operator(tmp_path, capsys):
    cases = [f"{loss}-c10-128" for loss in _steps_logits.LOSSES]
    cases += [f"{operator}-digits-1" for operator in ("l2", "mifgsm", "select", "apgd-linf", "apgd-l2")]
    status, rows = run_steps(tmp_path, "--cases", ",".join(cases))
    assert status == 0
    assert all(set(row) == {*_timing.ENVIRONMENT_FIELDS, *_timing.TIMING_FIELDS} for row in rows)
    by_name = {(r["case"], r["variant"]): r for r in rows}
    assert {case for case, _ in by_name} == set(cases)
    for case in cases:
        assert by_name[case, "fused"]["checked"]
        assert by_name[case, "fused"]["median_us"] > 0
        assert by_name[case, "copy"]["pct_of_copy"] == 100
    # bytes, written out
    assert by_name["ce-c10-128", "fused"]["bytes_min"] == 2 * 128 * 10 * 4 + 128 * 8
    assert by_name["kl-c10-128", "fused"]["bytes_min"] == 3 * 128 * 10 * 4
    assert by_name["l2-digits-1", "fused"]["bytes_min"] == 64 * 16
    assert by_name["mifgsm-digits-1", "fused"]["bytes_min"] == 64 * 24
    assert by_name["select-digits-1", "fused"]["bytes_min"] == 64 * 8 + 12
    assert by_name["apgd-linf-digits-1", "fused"]["bytes_min"] == 64 * (20 + 8)  # its one sample improved
    assert by_name["l2-digits-1", "torchattacks"]["speedup_vs_baseline"] == 1.0
    assert "% of copy" in capsys.readouterr().out


def test_bench_steps_takes_half_precision_gradients(tmp_path):
    cases = "ce-c10-128,dlr-c10-128,l2-digits-1,mifgsm-digits-1,select-digits-1,apgd-linf-digits-1"
    status, rows = run_steps(tmp_path, "--cases", cases, "--dtypes", "bf16")
    assert status == 0
    by_name = {(r["case"], r["variant"]): r for r in rows}
    assert by_name["ce-c10-128", "fused"]["bytes_min"] == 2 * 128 * 10 * 2 + 128 * 8
    assert by_name["mifgsm-digits-1", "fused"]["bytes_min"] == 64 * 22
    assert not any(case.startswith("select") for case, _ in by_name)  # no gradient in it


@pytest.mark.parametrize(
    ("case", "name", "wrong"),
    [
        ("l2-digits-1", "pgd_l2_step_", lambda out: out.add_(1e-5)),
        ("mifgsm-digits-1", "mifgsm_step_", lambda out: out.sub_(1e-5)),
        ("ce-c10-128", "attack_gradient", lambda out: out * 1.001),
        ("dlr-c10-128", "attack_gradient", lambda out: out * math.nan),
        ("select-digits-1", "select_best_", lambda out: out + 1),
    ],
)
def test_bench_steps_times_nothing_when_a_result_is_wrong(tmp_path, monkeypatch, capsys, case, name, wrong):
    from ard_fast import functional

    right = getattr(functional, name)
    monkeypatch.setattr(functional, name, lambda *a, **k: wrong(right(*a, **k)))
    status, rows = run_steps(tmp_path, "--cases", case)
    assert (status, rows) == (1, [])
    assert "bench_steps: wrong result" in capsys.readouterr().err


def test_every_case_of_the_issue_is_there():
    for loss in ("ce", "margin", "dlr", "kl"):
        assert {f"{loss}-c10-128", f"{loss}-c100-128", f"{loss}-c1000-4096"} <= set(bench_steps.CASES)
    for operator in ("l2", "mifgsm", "select", "apgd-linf", "apgd-l2"):
        assert {f"{operator}-cifar-128", f"{operator}-imagenet-16", f"{operator}-digits-1"} <= set(bench_steps.CASES)
    assert _steps_images.SIZES["imagenet-16"] == (16, 3, 224, 224)
    assert set(bench_steps.QUICK_CASES) <= set(bench_steps.CASES)


def test_require_close_refuses_nan_and_other_shapes():
    one = torch.ones(2)
    _problem.require_close("v", "x", one, one + 1e-7, 1e-6)
    for got in (one + 1e-5, one * math.nan, torch.ones(3)):
        with pytest.raises(WrongResult, match="v: x"):
            _problem.require_close("v", "x", got, one, 1e-6)


def test_a_variant_that_waits_is_not_captured(monkeypatch):
    """On CUDA, where a failed capture would spoil those after it; the device is only named here."""
    import _cli

    monkeypatch.setattr(_cli, "with_graph", lambda v, n: _timing.Variant(v.name + "+graph", v.call, v.reset))
    variants, _, absent = _cli.build_variants(
        ["waits", "fused"],
        lambda name: _timing.Variant(name, lambda i: None, lambda n: None),
        lambda variant: {},
        n_sets=1,
        device=torch.device("cuda"),
        uncapturable={"waits"},
    )
    assert [v.name for v in variants] == ["waits", "fused", "fused+graph"]
    assert absent == {"waits+graph": "waits for the device in every call"}
