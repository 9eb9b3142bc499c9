"""NaN, infinite and huge logits and weights, at every position: losses and gradients as float64 has them, rounded."""

import functools
import itertools
import math

import pytest
import torch
from tolerances import GRAD_RTOL, LOSS_RTOL

from ard_fast import functional as F
from ard_fast import reference
from ard_fast.functional import _ops

INF, NAN = math.inf, math.nan
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
VALUES = [NAN, INF, -INF, 3.4e38, -3.4e38, 1e15, -1e15, 1e9, -1e9]
CLASSES = [4, 10, 37, 1100]  # less than a vector; vectors with a tail, in a warp and in a block


def table(count, classes, dtype, device, on_cpu=True):
    """`count` tensors of logits, one row for each value, place and tensor or pair of them, and labels.

    The places: first, last, the row's label, the largest logit of the last tensor (the teacher's), that and the label,
    all but one and all classes; and the value at the one, its opposite at the other of two, and of all.
    """
    largest = torch.finfo(dtype).max
    generator = torch.Generator().manual_seed(classes)
    spoiled = [*((which,) for which in range(count)), *itertools.combinations(range(count), 2)]
    rows, labels = [], []
    for tensors in spoiled:
        for pair in itertools.product(VALUES, repeat=len(tensors)):
            for place in range(9 if len(tensors) == 1 else 4):
                row = torch.randn(count, classes, generator=generator)
                label = int(torch.randint(classes, (), generator=generator))
                top = int(row[-1].argmax())
                everywhere = [*range(classes)]
                at = [[0], [classes - 1], [label], [top], [label, top], everywhere[1:], everywhere, [label], everywhere]
                opposite = {7: [top], 8: everywhere[::2]}.get(place, [])
                for which, value in zip(tensors, pair, strict=True):
                    value = min(max(value, -largest), largest) if math.isfinite(value) else value
                    row[which, at[place]] = value
                    row[which, opposite] = -value
                rows.append(row)
                labels.append(label)
    # Long rows are many instructions on an emulated GPU: every seventh, which meets each value at each place.
    every = 1 if on_cpu or classes < 1000 else 7
    tensors = torch.stack(rows)[::every].unbind(1)
    return [t.to(device, dtype) for t in tensors], torch.tensor(labels[::every], device=device)


def spread(tensors, temperature):
    """How far apart the finite logits of a row are, over T, and where a sum of such differences may leave float32."""
    finite = [torch.where(t.isfinite(), t, 0.0) for t in (t.cpu().double() for t in tensors)]
    apart = torch.stack([t.amax(1) - t.amin(1) for t in finite]).amax(0)
    return apart / temperature, apart * tensors[0].shape[1] / min(1.0, temperature) > 3.4e38


def say(found, expected, bad, tensors):
    first = int(bad.flatten(1).any(1).nonzero()[0]) if bad.dim() > 1 else int(bad.nonzero()[0])
    rows = [[f"{v:.4g}" for v in t[first][:12].tolist()] for t in tensors]
    found, expected = ([f"{v:.6g}" for v in t[first].reshape(-1)[:12].tolist()] for t in (found, expected))
    return f"{int(bad.sum())} bad, first in row {first}: {found} for {expected}; logits {rows}"


def assert_loss(found, exact, tensors, may_overflow, size):
    """To LOSS_RTOL, and what cancels in logits of that `size`."""
    found, expected = found.cpu(), exact.float().cpu()
    error = (found.double() - exact.cpu()).abs()
    good = (found == expected) | (found.isnan() & expected.isnan())
    good |= error <= LOSS_RTOL * exact.cpu().abs() + 2e-6 * size + 1e-12
    good |= may_overflow & (found == INF) & (expected > 0)
    assert bool(good.all()), say(found, exact.cpu(), ~good, tensors)


def assert_gradient(found, exact, tensors, known=None, floor=1e-9):
    """Rows of NaN where `exact` has NaN, and near to it where it is `known`."""
    dtype, found, exact = found.dtype, found.cpu().double(), exact.cpu()
    nan = exact.isnan().any(1)
    bad = found.isnan() != nan[:, None]
    assert not bool(bad.any()), say(found, exact, bad, tensors)
    known = ~nan if known is None else known & ~nan
    limit = torch.finfo(dtype).max
    found, exact = found.clamp(-limit, limit), exact.clamp(-limit, limit)
    error, scale = (found - exact).abs(), exact.abs().amax(1, keepdim=True)
    bad = known[:, None] & ~(error <= GRAD_RTOL[dtype] * scale + (6.2e-5 if dtype == torch.float16 else 0.0) + floor)
    assert not bool(bad.any()), say(found, exact, bad, tensors)


def ard(a, t, c, *, labels, module=F, **settings):
    return module.ard_loss(a, teacher_logits=t, student_logits=c, labels=labels, alpha=0.5, **settings)


def rslad(a, t, c, *, labels, module=F, **settings):
    return module.rslad_loss(a, student_logits=c, teacher_logits=t, **settings)


def kl(a, t, *, labels, module=F, **settings):
    return module.kl_distill_loss(a, t, **settings)


def trades(a, t, *, labels, module=F, **settings):
    return module.trades_loss(a, clean_logits=t, labels=labels, **settings)


def mart(a, t, *, labels, module=F, **settings):
    return module.mart_loss(a, clean_logits=t, labels=labels, **settings)


def rows_and_gradients(loss, tensors, wanted, **settings):
    leaves = [t.clone().requires_grad_(k in wanted) for k, t in enumerate(tensors)]
    rows = loss(*leaves, reduction="none", **settings)
    return rows.detach(), torch.autograd.grad(rows.sum(), [leaves[k] for k in wanted])


# The loss, which tensors get a gradient, and settings. The teacher, or the clean logits, are tensor 1.
CASES = [
    *((kl, (0,), {"temperature": t, "scale_t2": t > 1}) for t in (0.1, 1.0, 30.0, 100.0)),
    (kl, (0,), {"temperature": 2.0, "teacher_temperature": 5.0}),
    (kl, (0, 1), {"temperature": 4.0}),
    (ard, (0, 2), {"temperature": 1.0}),
    (rslad, (0, 2), {"temperature": 3.0, "teacher_temperature": 2.0}),
    (trades, (0, 1), {"beta": 6.0}),
    (mart, (0, 1), {"beta": 5.0}),
]


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("loss, wanted, settings", CASES)
def test_losses(loss, wanted, settings, classes, dtype, device, on_cpu):
    tensors, labels = table(3 if loss in (ard, rslad) else 2, classes, dtype, device, on_cpu)
    found, grads = rows_and_gradients(loss, tensors, wanted, labels=labels, **settings)
    exact, exact_grads = rows_and_gradients(
        functools.partial(loss, module=reference), [t.double() for t in tensors], wanted, labels=labels, **settings
    )
    temperature = settings.get("temperature", 1.0)
    by = temperature**2 if settings.get("scale_t2", True) else 1.0
    size, wide = spread(tensors, temperature)
    assert_loss(found, exact, tensors, wide, by * size)
    for which, grad, exact_grad in zip(wanted, grads, exact_grads, strict=True):
        floor, kept = 3e-7 * by / temperature, torch.full_like(wide, True)
        if which == 1:
            # Of the distribution that teaches: infinite, or NaN, where the KL is; the rest is float64's noise, and
            # float16's range.
            kept = ~(found.isinf().cpu() & (wide | ~exact_grad.isfinite().all(1).cpu()))
            kept &= (exact_grad.abs().amax(1).cpu() <= 1.0) | exact_grad.isnan().any(1).cpu() | (dtype != torch.float16)
            floor = floor + 1e-15 * by * settings.get("beta", 1.0) * size[kept, None]
        assert_gradient(grad.cpu()[kept], exact_grad.cpu()[kept], [t.cpu()[kept] for t in tensors], floor=floor)


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "dlr_targeted"])
def test_attack_gradients(loss, classes, dtype, device, on_cpu):
    """Margin and DLR are what their differences are: a row with +inf may have a loss."""
    (logits,), labels = table(1, classes, dtype, device, on_cpu)
    settings = {"loss": loss, "kappa": INF if classes == 10 else 50.0}
    target = labels
    if loss == "dlr_targeted":
        target, settings["labels"] = (labels + 1) % classes, labels
    grad, rows, correct = F.attack_gradient(logits, target, with_rows=True, **settings)
    exact = reference.attack_loss(logits.double(), target, **settings)
    size, wide = spread([logits], 1.0)
    assert_loss(rows, exact, [logits], wide, size if loss == "ce" else 0.0)
    # Where the loss is infinite the gradient saturates.
    known = rows.isfinite().cpu()
    exact = reference.attack_gradient(logits.double(), target, **settings).nan_to_num()
    exact[rows.isnan()] = NAN
    assert_gradient(grad, exact, [logits], known)
    assert torch.equal(grad.isfinite().all(1), ~rows.isnan())
    assert torch.equal(correct, (logits.double().argmax(1) == labels) & ~logits.isnan().any(1))
    scaled, factors = F.attack_gradient(logits, target, scaled=True, **settings)
    if loss == "dlr":  # flat for a label in the third place, but for float64's noise
        known &= logits.sort(dim=1, descending=True, stable=True).indices[:, 2].cpu() != labels.cpu()
    assert_gradient(scaled, exact * factors[:, None], [logits], known, 1e-3)
    assert factors[rows.isnan()].eq(1).all()


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_scaled_gradients_of_the_divergence(classes, dtype, device, on_cpu):
    (logits, target), _ = table(2, classes, dtype, device, on_cpu)
    grad, rows, _ = F.attack_gradient(logits, target, loss="kl", temperature=4.0, with_rows=True)
    scaled, factors = F.attack_gradient(logits, target, loss="kl", temperature=4.0, scaled=True)
    (exact,) = rows_and_gradients(
        functools.partial(kl, module=reference), [logits.double(), target.double()], (0,), labels=None, temperature=4.0
    )[1]
    assert torch.equal(exact.isnan().all(1), rows.isnan())
    assert_gradient(grad, exact, [logits, target], floor=2e-6)
    assert_gradient(scaled, exact * factors[:, None], [logits, target], floor=2e-6 * factors[:, None].cpu())
    assert factors[rows.isnan()].eq(1).all()


@pytest.mark.sanitizer
@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean", "mean"])
@pytest.mark.parametrize("loss, wanted", [(kl, (0,)), (ard, (0, 2)), (rslad, (0, 2)), (trades, (0, 1)), (mart, (0, 1))])
def test_weights_and_reductions(loss, wanted, reduction, device):
    """Every weight with every kind of row: plain, equal, huge, without a class, and NaN."""
    kinds = [[0.3, -1.0, 2.0], [1.0, 2.0, 3.0], [3.4e38, 0.0, 1.0], [0.5, -INF, 1.0], [0.1, 0.2, NAN]]
    weights = [0.0, 1e-40, 1e-20, 0.05, 1e20, 1e37, INF, NAN]
    pairs = list(itertools.product(kinds, weights))
    student = torch.tensor([row for row, _ in pairs], device=device)
    tensors = [student, torch.tensor([[1.0, 2.0, 3.0]], device=device).repeat(len(pairs), 1), student.flip(1)]
    tensors = tensors[: 3 if loss in (ard, rslad) else 2]
    labels = torch.zeros(len(pairs), dtype=torch.int64, device=device)
    weight = torch.tensor([w for _, w in pairs], device=device)
    exact = functools.partial(loss, module=reference)
    if reduction == "none":
        found, grads = rows_and_gradients(loss, tensors, wanted, labels=labels, weight=weight)
        rows, exact_grads = rows_and_gradients(
            exact, [t.double() for t in tensors], wanted, labels=labels, weight=weight.double()
        )
        assert_loss(found, rows, [*tensors, weight[:, None]], torch.zeros(len(rows), dtype=torch.bool), 0.0)
        for which, grad, exact_grad in zip(wanted, grads, exact_grads, strict=True):
            # Infinite, or NaN, with an infinite weight, and for clean logits where the KL is.
            kept = (weight != INF) & (found.isfinite() | found.isnan() if which == 1 else True)
            floor = 1e-12 * weight[kept, None].cpu().double() + 1e-45
            assert_gradient(grad[kept], exact_grad[kept], [t[kept] for t in (*tensors, weight[:, None])], floor=floor)
        return
    for start in range(0, len(pairs), 4):
        part = slice(start, start + 4)
        given = {"labels": labels[part], "reduction": reduction}
        total = loss(*(t[part] for t in tensors), weight=weight[part], **given)
        expected = exact(*(t[part].double() for t in tensors), weight=weight[part].double(), **given)
        assert_loss(total[None], expected[None], [weight[None, part]], torch.tensor([False]), 0.0)


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_incoming_gradients(dtype, device):
    """What scale_rows_ multiplies by: 1 leaves a row as it is, anything else is IEEE's product."""
    values = torch.tensor([0.0, -0.0, 1.0, -2.0, 6e-8, 6e4, INF, -INF, NAN], device=device).to(dtype)
    by = torch.tensor([1.0, 0.0, -0.5, 1e38, 1e-38, 3.4e38, INF, -INF, NAN], device=device)
    grad = values.repeat(len(by), 1)
    expected = (grad.float() * (by * 2.0)[:, None]).to(dtype)
    _ops.scale_rows_(grad, by, 2.0)
    torch.testing.assert_close(grad, expected, rtol=0, atol=0, equal_nan=True)
    kept = values.repeat(2, 1)
    _ops.scale_rows_(kept, torch.tensor([0.5, 0.5], device=device), 2.0)
    torch.testing.assert_close(kept, values.repeat(2, 1), rtol=0, atol=0, equal_nan=True)
