"""The Auto-PGD step against the formulas in plain torch: bit for bit in L-infinity, against float64 in L2."""

import math

import apgd_cases as cases
import pytest
import torch
from apgd_cases import call, copied, same

from ard_fast import functional as F
from ard_fast import reference
from ard_fast.functional import _ops
from ard_fast.reference import APGDIterate

pytestmark = pytest.mark.sanitizer

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def assert_same(mine, expected, note):
    for name, a, b in zip(APGDIterate._fields, mine, expected, strict=True):
        assert same(a, b), (note, name)


def assert_close_l2(mine, expected, eps, note):
    """The decisions exactly, the next point to float32 rounding; expected is in float64."""
    for name, a, b in zip(APGDIterate._fields, mine, expected, strict=True):
        if name == "x_adv":
            torch.testing.assert_close(a, b.float(), rtol=0, atol=2e-6 * max(eps, 0.1))
        else:
            assert same(a, b.to(a.dtype)), (note, name)


# 1: a single pixel; 33: a tail of every vector width; 3x32x32: CIFAR; 5000: several pieces and blocks of a sample.
@pytest.mark.parametrize("shape", [(3, 1), (5, 33), (7, 1, 8, 8), (4, 3, 32, 32), (3, 5000), (1, 20_001)])
@pytest.mark.parametrize("grad_dtype", DTYPES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_run_of_steps(shape, grad_dtype, norm, device):
    generator = torch.Generator().manual_seed(sum(shape))
    x, start = cases.images(generator, shape, device)
    eps = 0.05 if norm == "linf" else 0.05 * math.prod(shape[1:]) ** 0.5
    mine = cases.fresh(x, start, grad_dtype)
    halved = restarted = False
    for i, grad, loss, correct in cases.rounds(generator, x, 12, grad_dtype):
        settings = {"eps": eps, "norm": norm, "first": i == 0, "window": cases.window_at(i)}
        at = mine.x_adv.clone()
        if norm == "linf":
            expected = reference.apgd_step(copied(mine), grad, x, loss, correct, **settings)
            mine = call(mine, grad, x, loss, correct, **settings)
            assert_same(mine, expected, i)
        else:
            wide = copied(mine, torch.float64)
            expected = reference.apgd_step(wide, grad.double(), x.double(), loss.double(), correct, **settings)
            mine = call(mine, grad, x, loss, correct, **settings)
            assert_close_l2(mine, expected, eps, i)
        halved |= bool((mine.state[0] < 2 * eps).any())
        restarted |= not same(mine.x_prev, at)
    assert (halved and restarted) or shape[0] == 1


@pytest.mark.parametrize("grad_dtype", DTYPES)
def test_edge_values(grad_dtype, device):
    """NaN, infinities, zeros and subnormals among the gradients and losses."""
    generator = torch.Generator().manual_seed(3)
    x, start = cases.images(generator, (50, 41), device)
    start[::7, ::5] = math.nan
    for momentum, rho in ((0.75, 0.75), (1.0, 0.3), (0.0, 1.0)):
        mine = cases.fresh(x, start, grad_dtype)
        for i, grad, loss, correct in cases.rounds(generator, x, 12, grad_dtype, edges=True):
            settings = {"first": i == 0, "window": cases.window_at(i), "momentum": momentum, "rho": rho, "eps": 0.05}
            expected = reference.apgd_step(copied(mine), grad, x, loss, correct, **settings)
            mine = call(mine, grad, x, loss, correct, **settings)
            assert_same(mine, expected, i)


def test_l2_gradients_of_any_size(device):
    """No overflow and no underflow; a zero gradient does not move; NaN entries count as 0, infinite as the largest."""
    generator = torch.Generator().manual_seed(4)
    x, _ = cases.images(generator, (9, 500), device)
    direction = torch.randn(500, generator=generator).to(device)
    sizes = torch.tensor([3e38, 1e20, 1.0, 1e-12, 1e-25, 1e-36, 1e-44, 0.0, 1.0], device=device)
    grad = (direction / direction.abs().max()) * sizes[:, None]
    grad[8, ::4], grad[8, 1] = math.nan, math.inf
    loss, correct = torch.zeros(9, device=device), torch.ones(9, dtype=torch.bool, device=device)
    mine = call(cases.fresh(x, x), grad, x, loss, correct, eps=0.05, norm="l2", first=True)
    wide = reference.apgd_step(
        copied(cases.fresh(x, x), torch.float64),
        grad.double().clamp(-3.4028234663852886e38, 3.4028234663852886e38),
        x.double(),
        loss.double(),
        correct,
        eps=0.05,
        norm="l2",
        first=True,
    )
    torch.testing.assert_close(mine.x_adv, wide.x_adv.float(), rtol=0, atol=2e-7)
    moved = (mine.x_adv - x).norm(dim=1)
    assert moved[7] == 0
    # Pixels at the bounds lose some of it.
    assert (moved[:7] > 0.04).all() and moved[8] > 0.03


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_never_outside_of_the_ball(norm, device):
    generator = torch.Generator().manual_seed(5)
    x, start = cases.images(generator, (16, 3, 32, 32), device)
    eps = 0.031 if norm == "linf" else 0.5
    start = start if norm == "linf" else x
    mine = cases.fresh(x, start)
    for i, grad, loss, correct in cases.rounds(generator, x, 12):
        mine = call(mine, grad, x, loss, correct, eps=eps, norm=norm, first=i == 0, window=cases.window_at(i))
        delta = (mine.x_adv.double() - x.double()).flatten(1)
        length = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
        assert length.max() <= eps + 6e-8
        assert mine.x_adv.min() >= 0 and mine.x_adv.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_sample_does_not_depend_on_its_batch(norm, device):
    generator = torch.Generator().manual_seed(6)
    x, start = cases.images(generator, (6, 3, 20, 20), device)
    steps = list(cases.rounds(generator, x, 9))

    def run(pick):
        mine = cases.fresh(x[pick], start[pick])
        for i, grad, loss, correct in steps:
            settings = {"eps": 0.1, "norm": norm, "first": i == 0, "window": cases.window_at(i)}
            mine = call(mine, grad[pick].contiguous(), x[pick], loss[pick], correct[pick], **settings)
        return mine

    together = run(slice(None))
    for sample in range(6):
        alone = run(slice(sample, sample + 1))
        assert alone.x_adv[0].equal(together.x_adv[sample])
        assert alone.state[:, 0].equal(together.state[:, sample])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layouts_and_radii_by_sample(norm, memory_format, device):
    generator = torch.Generator().manual_seed(7)
    x, start = cases.images(generator, (5, 3, 7, 5), device, memory_format)
    eps = torch.tensor([0.0, 0.02, 0.05, 0.1, 0.3], device=device)
    mine = cases.fresh(x, start)
    for i, grad, loss, correct in cases.rounds(generator, x, 9):
        settings = {"norm": norm, "first": i == 0, "window": cases.window_at(i)}
        together = copied(mine)
        mine = call(mine, grad, x, loss, correct, eps=eps, **settings)
        for sample in range(5):
            one = slice(sample, sample + 1)
            part = APGDIterate(*(t[one] for t in together[:5]), together.state[:, one])
            part = reference.apgd_step(part, grad[one], x[one], loss[one], correct[one], eps=eps[sample], **settings)
            torch.testing.assert_close(mine.x_adv[one], part.x_adv, rtol=0, atol=0 if norm == "linf" else 1e-6)
            assert same(mine.state[:, one], part.state)
        assert mine.x_adv.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16])
def test_unaligned_views(norm, grad_dtype, device):
    generator = torch.Generator().manual_seed(8)
    x, start = cases.images(generator, (3, 95), device)
    for offsets in ((1,) * 6, (3, 1, 0, 2, 4, 5), (0, 0, 0, 1, 0, 0), (4, 4, 4, 8, 4, 4)):
        aligned = cases.fresh(x, start, grad_dtype)
        placed = [cases.in_buffer(t, o) for t, o in zip(aligned[:5], offsets, strict=False)]
        mine = APGDIterate(*(view for view, _ in placed), aligned.state.clone())
        shifted_x = cases.in_buffer(x, offsets[5])[0]
        for i, grad, loss, correct in cases.rounds(generator, x, 7, grad_dtype):
            settings = {"eps": 0.05, "norm": norm, "first": i == 0, "window": cases.window_at(i)}
            aligned = call(aligned, grad, x, loss, correct, **settings)
            mine = call(mine, cases.in_buffer(grad, offsets[3])[0], shifted_x, loss, correct, **settings)
            assert_same(mine, aligned, (offsets, i))
        for (_, buffer), offset in zip(placed, offsets, strict=False):
            assert cases.outside_intact(buffer, offset, x.numel()), "wrote outside of the view"


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_without_a_gradient_nothing_moves(norm, device):
    generator = torch.Generator().manual_seed(9)
    x, start = cases.images(generator, (8, 77), device)
    mine = cases.fresh(x, start)
    for i, grad, loss, correct in cases.rounds(generator, x, 6):
        last = i == 5
        before = copied(mine)
        settings = {"eps": 0.05, "norm": norm, "first": i == 0, "window": 3 if i == 3 else 0}
        mine = call(mine, None if last else grad, x, loss, correct, **settings)
        if last:
            assert mine.x_adv.equal(before.x_adv) and mine.x_prev.equal(before.x_prev)
            assert mine.grad_best.equal(before.grad_best)
            better = loss > before.state[1]
            assert better.any() and not better.all() and not correct.all()
            assert mine.x_best.equal(torch.where(better[:, None], before.x_adv, before.x_best))
            assert mine.x_fooled.equal(torch.where(correct[:, None], before.x_fooled, before.x_adv))
            assert mine.state[1].equal(torch.maximum(loss, before.state[1]))
            assert mine.state[6].equal(torch.maximum((~correct).float(), before.state[6]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (3, 0), (0,), (4,)])
def test_small_and_empty(norm, shape, device):
    x = torch.rand(shape, device=device)
    loss, correct = torch.rand(shape[0], device=device), torch.zeros(shape[0], dtype=torch.bool, device=device)
    out = call(cases.fresh(x, x), torch.ones_like(x), x, loss, correct, eps=0.1, norm=norm, first=True)
    assert out.x_adv.shape == shape and out.x_best.equal(x)
    # An empty sample has its record all the same.
    expected = torch.tensor([0.2, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0], device=device)[:, None].repeat(1, shape[0])
    expected[1] = expected[4] = loss
    assert out.state.equal(expected)


def op_arguments():
    x, start = cases.images(torch.Generator().manual_seed(0), (2, 3, 4, 4))
    names = ("x_adv", "x_prev", "x_best", "grad_best", "x_fooled", "state")
    arguments = dict(zip(names, cases.fresh(x, start), strict=True))
    arguments |= {"state_out": torch.zeros(7, 2), "grad": torch.ones_like(x), "x": x, "loss_rows": torch.zeros(2)}
    arguments |= {"correct": torch.ones(2, dtype=torch.bool), "eps_per_sample": None, "eps": 0.1, "l2": False}
    return arguments | {"first": True, "window": 0, "rho": 0.75, "momentum": 0.75, "lower": 0.0, "upper": 1.0}


def bad_tensors():
    good = op_arguments()
    x, shifted = good["x"], torch.rand(200)
    yield "x_adv must be float32.*float64", {"x_adv": x.double()}
    yield "x_best must be float32, got float16", {"x_best": x.half()}
    yield "x_prev must have the shape of x_adv", {"x_prev": x[:1].clone()}
    yield "x_fooled must have the memory layout", {"x_fooled": x.contiguous(memory_format=torch.channels_last)}
    yield "grad must be float32, float16 or bfloat16, got int64", {"grad": x.long()}
    yield r"grad must have the dtype of grad_best \(float32\), got bfloat16", {"grad": x.bfloat16()}
    yield r"state must have shape \[7, 2\], got \[2, 7\]", {"state": torch.zeros(2, 7)}
    yield "state_out must be float32", {"state_out": torch.zeros(7, 2, dtype=torch.float64)}
    yield "state must be contiguous", {"state": torch.zeros(2, 7).T}
    yield r"loss_rows must have shape \[2\]", {"loss_rows": torch.zeros(3)}
    yield "loss_rows must be float32, got float64", {"loss_rows": torch.zeros(2, dtype=torch.float64)}
    yield "correct must be bool, got uint8", {"correct": torch.zeros(2, dtype=torch.uint8)}
    yield r"eps must have shape \[2\]", {"eps_per_sample": torch.zeros(2, 1)}
    yield "window must be at least 0, got -1", {"window": -1}
    yield "x_adv must not overlap x in memory", {"x_adv": x, "x": x}
    yield (
        "x_best must not overlap x_fooled in memory",
        {
            "x_best": shifted[:96].view(2, 3, 4, 4),
            "x_fooled": shifted[95:191].view(2, 3, 4, 4),
        },
    )
    yield "state_out must not overlap state in memory", {"state_out": good["state"], "state": good["state"]}
    moved = {name: t.transpose(0, 1) for name, t in good.items() if isinstance(t, torch.Tensor) and t.dim() == 4}
    yield "x_adv must have its batch dimension outermost", moved


@pytest.mark.parametrize("message, changes", list(bad_tensors()))
def test_bad_tensors(message, changes):
    arguments = op_arguments() | changes
    before = arguments["x_prev"].clone()
    with pytest.raises(RuntimeError, match=message):
        _ops.apgd_step_(**arguments)
    assert same(arguments["x_prev"], before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_devices_must_agree():
    arguments = op_arguments() | {"loss_rows": torch.zeros(2, device="cuda")}
    with pytest.raises(RuntimeError, match=r"loss_rows must be on the device of x_adv \(cpu\), got cuda:0"):
        _ops.apgd_step_(**arguments)


def test_the_schedule():
    """Checkpoints of 100 steps after the paper: 22 steps, then intervals shorter by 3 down to 6."""
    at = [i for i, window in enumerate(F.checkpoint_windows(100)) if window]
    assert at == [22, 41, 57, 70, 80, 87, 93, 99]
    assert [w for w in F.checkpoint_windows(100) if w] == [22, 19, 16, 13, 10, 7, 6, 6]
    assert F.checkpoint_windows(1) == (0,)
    assert F.checkpoint_windows(5) == (0, 1, 1, 1, 1)
    assert F.checkpoint_windows(10, first=0.5, decrement=0.2, minimum=0.2) == (0, 0, 0, 0, 0, 5, 0, 0, 3, 0)


def toy_run(x, start, steps, **settings):
    """A run on the loss sum(weight * x^2), whose gradient needs no network; misclassified where it is above 1."""
    weight = torch.linspace(-1, 1, x[0].numel(), device=x.device).view(x[0].shape)
    run = F.APGDRun(x, start, steps=steps, **settings)
    for _ in range(steps):
        loss = (weight * run.x_adv**2).flatten(1).sum(1)
        run.step(2 * weight * run.x_adv, loss, loss < 1)
    loss = (weight * run.x_adv**2).flatten(1).sum(1)
    return run.finish(loss, loss < 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_run_finds_the_best_point(norm, device):
    x, start = cases.images(torch.Generator().manual_seed(10), (6, 3, 8, 8), device)
    x, start = 0.2 + 0.6 * x, 0.2 + 0.6 * start  # away from 0, where the gradient vanishes
    run = toy_run(x, start, 40, eps=0.1, norm=norm)
    weight = torch.linspace(-1, 1, 192, device=device).view(3, 8, 8)
    if norm == "linf":
        # A convex function of each pixel alone, so that its greatest value is at a corner.
        corners = torch.stack(((x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1)))
        greatest = (weight * corners**2).amax(0).flatten(1).sum(1)
        torch.testing.assert_close(run.loss_best, greatest)
    found = (weight * run.x_best**2).flatten(1).sum(1)
    torch.testing.assert_close(run.loss_best, found)
    assert run.fooled.equal(run.loss_best >= 1)
    assert ((weight * run.x_fooled**2).flatten(1).sum(1) >= 1)[run.fooled].all()
    assert (run.step_size < 0.2).all()


def test_the_run_takes_any_layout_and_leaves_its_inputs(device):
    x, start = cases.images(torch.Generator().manual_seed(11), (4, 3, 6, 5), device)
    kept = x.clone(), start.clone()
    expected = toy_run(x, start, 12, eps=0.1)
    last = torch.channels_last
    for other in (
        toy_run(x, start.contiguous(memory_format=last), 12, eps=0.1),
        toy_run(x.contiguous(memory_format=last), start, 12, eps=0.1),
        toy_run(x.transpose(0, 2).contiguous().transpose(0, 2), start, 12, eps=0.1),
        toy_run(x, start, 12, eps=torch.full((4,), 0.1, device=device)),
    ):
        assert other.x_best.equal(expected.x_best) and other.x_fooled.equal(expected.x_fooled)
        torch.testing.assert_close(other.state, expected.state)
    assert x.equal(kept[0]) and start.equal(kept[1])


def test_bad_runs():
    x = torch.rand(2, 3, 4, 4)
    for message, arguments, error in (
        ("norm must be one of 'linf', 'l2', got 'l1'", {"norm": "l1"}, ValueError),
        ("steps must be at least 1 .*, got 0", {"steps": 0}, ValueError),
        ("steps must be an int, got float", {"steps": 2.0}, TypeError),
        ("eps must be finite and at least 0, got -1.0", {"eps": -1}, ValueError),
        ("rho must be finite", {"rho": math.nan}, ValueError),
        (r"momentum must be in \[0, 1\], got 1.5", {"momentum": 1.5}, ValueError),
        ("bounds must be", {"bounds": (1, 0)}, ValueError),
        (r"start must have the shape of x \[2, 3, 4, 4\]", {"start": x[:1]}, RuntimeError),
    ):
        with pytest.raises(error, match=message):
            F.APGDRun(**({"x": x, "start": x, "eps": 0.1} | arguments))
    run = F.APGDRun(x, x, eps=0.1, steps=1)
    loss, correct = torch.zeros(2), torch.ones(2, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="finish must be called once, after the steps"):
        run.finish(loss, correct)
    with pytest.raises(RuntimeError, match="grad must have the shape of x_adv"):
        run.step(x[:1], loss, correct)
    run.step(torch.ones_like(x), loss, correct)
    with pytest.raises(RuntimeError, match="more than steps = 1 times"):
        run.step(torch.ones_like(x), loss, correct)
    run.finish(loss, correct)
    with pytest.raises(RuntimeError, match="finish must be called once"):
        run.finish(loss, correct)


def test_the_writes_are_counted():
    """Autograd must notice that a tensor it saved was stepped over (a silently wrong gradient otherwise)."""
    x = torch.rand(2, 5)
    run = F.APGDRun(x, x, eps=0.1, steps=2)
    loss, correct = torch.zeros(2), torch.ones(2, dtype=torch.bool)
    run.step(torch.ones_like(x), loss, correct)
    weight = torch.rand(2, 5, requires_grad=True)
    product = weight * run.x_best  # saves it
    run.step(torch.ones_like(x), loss + 1, correct)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
