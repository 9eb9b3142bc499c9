"""The distillation losses, TRADES and MART, with all their gradients, against the textbook formulas in float64."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import often
from property_tensors import Layout, floats, layouts, permutation, same, seeds
from tolerances import GRAD_RTOL, LOSS_RTOL
from torch.utils._python_dispatch import TorchDispatchMode

from ard_fast import functional as F
from ard_fast import reference
from ard_fast.functional._autograd import one
from ard_fast.losses import ikl_loss

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
REDUCTIONS = ["none", "sum", "batchmean", "mean"]
B = 6


# Each loss of three logits: `module` is ard_fast.functional or ard_fast.reference, `live` those that get a gradient.


def kl(first, second, third, *, labels, module=F, **settings):
    return module.kl_distill_loss(first, second, **settings)


def ard(first, second, third, *, labels, module=F, **settings):
    return module.ard_loss(first, teacher_logits=second, student_logits=third, labels=labels, **settings)


def rslad(first, second, third, *, labels, module=F, **settings):
    return module.rslad_loss(first, teacher_logits=second, student_logits=third, **settings)


def trades(first, second, third, *, labels, module=F, **settings):
    return module.trades_loss(first, clean_logits=second, labels=labels, **settings)


def mart(first, second, third, *, labels, module=F, **settings):
    return module.mart_loss(first, clean_logits=second, labels=labels, **settings)


LOSSES = {kl: (0, 1), ard: (0, 2), rslad: (0, 2), trades: (0, 1), mart: (0, 1)}
losses = pytest.mark.parametrize("loss", LOSSES)


def rows_of_logits(kind, batch, classes, dtype=torch.float32, device="cpu"):
    """Three `[batch, classes]`: a network's, of the whole of +-200, close together, or up to a constant."""
    generator = torch.Generator().manual_seed(1000 * classes)
    draws = [3 * torch.randn(batch, classes, generator=generator) for _ in range(3)]
    if kind == "wide":
        draws = [400 * torch.rand(batch, classes, generator=generator) - 200 for _ in range(3)]
    elif kind == "close":
        draws = [draws[0] + 0.01 * k * draw for k, draw in enumerate(draws)]
    elif kind == "shifted":
        draws = [draws[0] + 75 * k + 0.1 * draw for k, draw in enumerate(draws)]
    return [draw.to(device, dtype) for draw in draws]


def labels_of(first):
    """Right, as well as wrong."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(first.shape[1], (len(first),), generator=generator).to(first.device)
    labels[: len(first) // 2] = first[: len(first) // 2].argmax(1)
    return labels


def incoming_gradient(reduction, batch, device="cpu"):
    """Not 1, and not the same for all rows."""
    return (torch.linspace(-2.0, 7.0, batch) if reduction == "none" else torch.tensor(64.0)).to(device)


def loss_and_gradients(loss, tensors, incoming, **settings):
    """The loss, and the gradient for each of its live logits (zero where it does not depend on them)."""
    leaves = [t.detach().clone().requires_grad_(k in LOSSES[loss]) for k, t in enumerate(tensors)]
    value = loss(*leaves, **settings)
    live = [leaves[k] for k in LOSSES[loss]]
    grads = torch.autograd.grad(value, live, incoming.to(value.dtype), allow_unused=True)
    return value.detach(), [torch.zeros_like(t) if g is None else g for t, g in zip(live, grads, strict=True)]


def in_float64(settings):
    return {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in settings.items()}


def assert_matches_float64(loss, tensors, *, reduction="none", floor=1e-12, smallest=1e-8, **settings):
    """Rows with less loss than `floor`, or less gradient than `smallest`, say nothing: float64 has its own noise."""
    first = tensors[0]
    incoming = incoming_gradient(reduction, len(first), first.device)
    settings = {"labels": labels_of(first), "reduction": reduction} | settings
    value, grads = loss_and_gradients(loss, tensors, incoming, **settings)
    wide = [t.double() for t in tensors]
    exact, exact_grads = loss_and_gradients(loss, wide, incoming, module=reference, **in_float64(settings))
    assert value.dtype == torch.float32 and value.shape == exact.shape
    error = ((value.double() - exact).abs() - floor).clamp_min(0) / exact.abs().clamp_min(floor)
    assert error.max() <= LOSS_RTOL, f"loss off by {error.max():.2e}"
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert grad.dtype == first.dtype and grad.isfinite().all()
        scale = exact_grad.abs().amax(dim=1, keepdim=True)
        # Below the smallest normal half a float16 gradient has fewer digits.
        known = scale > (6.2e-5 if first.dtype == torch.float16 else smallest)
        error = ((grad.double() - exact_grad).abs() / scale.clamp_min(1e-30))[known.expand_as(grad)]
        assert error.numel() == 0 or error.max() <= GRAD_RTOL[first.dtype], f"gradient off by {error.max():.2e}"


# What else each loss takes, at its extremes.
SETTINGS = {
    kl: [{"temperature": 0.5}, {"temperature": 30.0}, {"temperature": 4.0, "scale_t2": False}],
    ard: [{"alpha": 1.0}, {"alpha": 0.7, "temperature": 2.0}, {"alpha": 0.0}],
    rslad: [{}, {"temperature": 2.0, "adv_weight": 3.0, "clean_weight": 0.5}],
    trades: [{}, {"beta": 0.0}, {"beta": 20.0}],
    mart: [{}, {"beta": 0.0}, {"beta": 20.0}],
}


# 2: the smallest; 3, 33: below and above a vector; 10, 100, 1000: the usual data sets; 1024, 1025: the border between
# the warp and the block kernel; 4099: a block's odd tail; 32003: a vocabulary, too long a float32 row for some GPUs.
@pytest.mark.sanitizer
@losses
@pytest.mark.parametrize("classes", [2, 3, 10, 33, 100, 1000, 1024, 1025, 4099, 32003])
def test_rows(classes, loss, device):
    for kind in ("plain", "wide", "close", "shifted")[: 1 if classes > 10_000 else 4]:
        for settings in SETTINGS[loss][: 1 if classes > 10_000 else 3]:
            floor = 1e-11 * settings.get("temperature", 30.0 if loss is ard else 1.0) ** 2
            assert_matches_float64(loss, rows_of_logits(kind, B, classes, device=device), floor=floor, **settings)


@pytest.mark.sanitizer
@losses
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_reductions_and_options(dtype, loss, device):
    """An incoming gradient that is not 1, weights of samples, and temperatures of the teacher."""
    weight = torch.tensor([0.0, 0.2, 1.0, 3.0, 5.0, 0.5], device=device)
    options = [{}, {"weight": weight}]
    if loss in (kl, rslad):
        options += [{"teacher_temperature": 3.0}, {"teacher_temperature": weight + 0.5, "weight": weight}]
    if loss is rslad:
        options += [{"clean_teacher_temperature": 0.7}, {"clean_teacher_temperature": weight.flip(0) + 1.0}]
    for reduction in REDUCTIONS:
        for settings in options:
            for classes in (10, 37, 1100):
                tensors = rows_of_logits("plain", B, classes, dtype, device)
                more = SETTINGS[loss][classes % len(SETTINGS[loss])]
                assert_matches_float64(loss, tensors, reduction=reduction, floor=1e-8, **settings | more)


@pytest.mark.sanitizer
@pytest.mark.parametrize("classes", [10, 100, 1100])
def test_extreme_temperatures(classes, device):
    """Logits of +-200 over a tenth and a hundred: gaps of thousands, and distributions that are nearly even."""
    for kind in ("plain", "wide", "shifted"):
        for temperature in (0.1, 100.0):
            for more in ({}, {"teacher_temperature": 3.0 * temperature}):
                tensors = rows_of_logits(kind, B, classes, device=device)
                floor = 1e-9 * max(1.0, temperature) ** 2
                for loss in (kl, rslad):
                    assert_matches_float64(loss, tensors, temperature=temperature, floor=floor, **more)


@pytest.mark.sanitizer
@losses
@pytest.mark.parametrize("classes", [2, 10, 100, 1100])
def test_a_gap_of_any_size(classes, loss, device):
    """One class, and every class, from nearly the teacher's to far beyond what the short form of a row takes."""
    plain = rows_of_logits("plain", 12, classes, device=device)
    generator = torch.Generator().manual_seed(classes)
    sizes = torch.tensor([1e-3, 0.1, 0.9, 1.1, 5.0, 12.0, 30.0, 39.0, 39.9, 40.1, 41.0, 80.0])[:, None]
    for single in (False, True):
        for sign in (1.0, -1.0):
            gap = sizes * (2 * torch.rand(12, classes, generator=generator) - 1)
            if single:
                gap = torch.zeros(12, classes).index_fill_(1, torch.tensor([classes // 2]), sign) * sizes
            settings = {"temperature": 1.0} if loss in (kl, ard, rslad) else {}
            tensors = plain[0], plain[0] + gap.to(device), plain[2]
            assert_matches_float64(loss, tensors, floor=1e-11, **settings)
            assert_matches_float64(loss, (tensors[1], tensors[0], tensors[2]), floor=1e-11, **settings)


def test_a_hundred_thousand_classes(device):
    for temperature in (0.1, 100.0):
        tensors = rows_of_logits("plain", 2, 100_000, device=device)
        assert_matches_float64(kl, tensors, temperature=temperature, floor=1e-9 * temperature**2)


# ---- what the authors' codes and torch compute


@pytest.mark.filterwarnings("ignore:reduction")
def test_defaults_are_the_ard_codes(device):
    """alpha 1, T 30 and nn.KLDivLoss()'s 'mean': the loss that the published script prints, by torch alone."""
    student, teacher, clean = rows_of_logits("plain", 128, 10, device=device)
    labels, t = labels_of(student), 30.0
    logs, probabilities = torch.log_softmax(student.double() / t, 1), torch.softmax(teacher.double() / t, 1)
    published = t * t * torch.nn.KLDivLoss()(logs, probabilities)
    torch.testing.assert_close(F.ard_loss(student, teacher_logits=teacher).double(), published, rtol=LOSS_RTOL, atol=0)
    mixed = 0.3 * published + 0.7 * torch.nn.functional.cross_entropy(clean.double(), labels)
    found = ard(student, teacher, clean, labels=labels, alpha=0.3)
    torch.testing.assert_close(found.double(), mixed, rtol=LOSS_RTOL, atol=0)


@pytest.mark.filterwarnings("ignore:reduction")
def test_defaults_of_the_others(device):
    """RSLAD 5/6 and 1/6 by 'mean', TRADES 6 and MART 5 by 'batchmean', each by torch alone."""
    adv, other, third = (t.double() for t in rows_of_logits("plain", B, 10, device=device))
    labels = labels_of(adv)

    def divergence(p, q, reduction):
        return torch.nn.KLDivLoss(reduction=reduction)(torch.log_softmax(q, 1), torch.softmax(p, 1))

    def cross_entropy(z):
        return torch.nn.functional.cross_entropy(z, labels, reduction="none")

    p, q = torch.softmax(adv, 1), torch.softmax(other, 1)
    at_label = torch.nn.functional.one_hot(labels, 10).bool()
    margin = cross_entropy(adv) - torch.log(1.0001 - p.masked_fill(at_label, 0.0).amax(1))
    expected = {
        rslad: (5 * divergence(other, adv, "mean") + divergence(other, third, "mean")) / 6,
        trades: cross_entropy(other).mean() + 6.0 * divergence(other, adv, "batchmean"),
        mart: (margin + 5.0 * divergence(other, adv, "none").sum(1) * (1 - q[at_label])).mean(),
    }
    for loss, value in expected.items():
        found = loss(*(t.float() for t in (adv, other, third)), labels=labels)
        torch.testing.assert_close(found.double(), value, rtol=LOSS_RTOL, atol=0)


def test_the_naive_float32_form_would_fail():
    """The tolerance means something: F.kl_div in float32 misses it where the fused loss holds it."""
    student, teacher, _ = rows_of_logits("close", 6, 1000)
    exact = reference.kl_distill_loss(student.double(), teacher.double(), temperature=30.0)
    naive = reference.kl_distill_loss(student, teacher, temperature=30.0)
    fused = F.kl_distill_loss(student, teacher, temperature=30.0)
    assert abs(naive / exact - 1) > LOSS_RTOL > abs(fused / exact - 1)


@pytest.mark.parametrize("loss", [ard, trades, mart])
def test_certain_rows(loss, device):
    """A network that is right by 20 to 30: 1 - p would be 0 in float32, the loss is not."""
    rows = torch.zeros(3, 1, 4, device=device)
    rows[0, 0, 1], rows[1, 0, 1], rows[2, 0, 1] = 18.0, 20.0, 30.0
    more = {"alpha": 0.0} if loss is ard else {}
    labels = torch.tensor([1], device=device)
    assert_matches_float64(loss, list(rows), labels=labels, smallest=1e-12, floor=1e-14, **more)
    assert loss is mart or 0 < loss(*rows, labels=labels, reduction="sum", **more) < 1e-5


@pytest.mark.parametrize("classes", [10, 100])
def test_small_gradients_of_mart(classes, device):
    """Of clean logits: a network that is right by 8 to 12, and gradients of 1e-10 to 1e-6."""
    for sure in (8.0, 10.0, 12.0):
        for noise in (0.1, 1.0):
            adv, clean, third = (t / 3 for t in rows_of_logits("plain", 64, classes, device=device))
            labels = labels_of(third)
            clean[torch.arange(64, device=device), labels] += sure
            assert_matches_float64(mart, (clean + noise * adv, clean, third), labels=labels, smallest=1e-11, floor=1e-9)


def test_the_margin_term_of_mart_is_bounded(device):
    """A rival as certain as can be costs log(1e4) beside its cross-entropy, and has a finite gradient."""
    adv = torch.tensor([[0.0, 0.0, 100.0]], device=device).requires_grad_()
    labels = torch.tensor([0], device=device)
    rows = F.mart_loss(adv, clean_logits=adv.detach(), labels=labels, beta=0.0, reduction="none")
    torch.testing.assert_close(rows.item(), 100.0 + math.log(1e4), rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(rows.sum(), adv)
    torch.testing.assert_close(grad, torch.tensor([[-1.0, 0.0, 1.0]], device=device), rtol=0, atol=1e-6)


@pytest.mark.parametrize("classes", [5, 40, 1100])
def test_among_equal_rivals_the_lowest_class_counts(classes, device):
    tensors = rows_of_logits("plain", 3, classes, device=device)
    tensors[0] = tensors[0].clamp_max(3.0)
    tensors[0][:, [1, 3, classes - 2]] = 4.0  # all three tie, and the label is none of them
    labels = torch.tensor([0, 2, classes - 1], device=device)
    settings = {"labels": labels, "beta": 0.0, "reduction": "sum"}
    _, (grad, _) = loss_and_gradients(mart, tensors, torch.ones((), device=device), **settings)
    assert (grad[:, 1] > 1.01 * grad[:, 3]).all()
    torch.testing.assert_close(grad[:, 3], grad[:, classes - 2], rtol=1e-5, atol=0)
    for chosen in (labels, torch.ones_like(labels)):  # the label itself, when it ties, is no rival
        assert_matches_float64(mart, tensors, labels=chosen)


# ---- any arguments


@dataclass(frozen=True)
class Case:
    """Logits of three networks, labels, and the numbers of a loss."""

    batch: int
    classes: int
    seed: int
    scale: float
    close: bool
    dtype: torch.dtype
    layouts: tuple[Layout, Layout, Layout]
    weighted: bool
    per_sample: bool
    reduction: str
    temperature: float

    def drawn(self, seed, *shape):
        return torch.rand(shape, generator=torch.Generator().manual_seed(self.seed + seed))

    def logits(self):
        """Three `[B, C]`, contiguous; close together if asked; a row of ties."""
        generator = torch.Generator().manual_seed(self.seed)
        first, *rest = (self.scale * torch.randn(self.batch, self.classes, generator=generator) for _ in range(3))
        if self.close:
            rest = [first + 0.01 * k * self.scale * other for k, other in enumerate(rest)]
        made = [t.to(self.dtype) for t in (first, *rest)]
        for tensor in made if self.batch > 1 else []:
            tensor[0] = tensor[0, :1]
        return made

    def placed(self):
        return [layout.place(tensor) for layout, tensor in zip(self.layouts, self.logits(), strict=True)]

    def settings(self, loss):
        """All that `loss` takes beside the logits."""
        found = {"labels": (self.drawn(1, self.batch) * self.classes).long(), "reduction": self.reduction}
        if self.weighted:
            found["weight"] = 2 * self.drawn(2, self.batch)
            found["weight"][::3] = 0.0
        pick = self.seed % 3
        if loss in (trades, mart):
            return found | {"beta": (6.0, 0.0, 1.0)[pick]}
        found["temperature"] = self.temperature
        if loss is ard:
            return found | {"alpha": (0.0, 0.5, 1.0)[pick]}
        if self.per_sample:
            found["teacher_temperature"] = self.temperature * (0.5 + self.drawn(3, self.batch))
        if loss is rslad:
            adv, clean = ((5 / 6, 1 / 6), (0.0, 1.0), (2.0, 0.0))[pick]
            return found | {"adv_weight": adv, "clean_weight": clean}
        return found | {"scale_t2": self.seed % 2 == 0}


@st.composite
def cases(draw, dtypes=floats):
    # Logits of a network, all the same, nearly one-hot, and far beyond what any network says.
    scales = st.sampled_from((3.0, 0.0, 1e-6, 50.0, 300.0))
    classes = st.sampled_from((2, 3, 4, 7, 8, 9, 10, 16, 31, 33, 100, 129, 1000, 1025))
    temperatures = st.sampled_from((1.0, 0.03125, 0.1, 0.5, 2.0, 4.0, 30.0, 1000.0))
    return Case(
        *(draw(st.integers(1, 6)), draw(classes), draw(seeds), draw(scales), draw(st.booleans()), draw(dtypes)),
        tuple(draw(layouts()) for _ in range(3)),
        *(draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from(REDUCTIONS)), draw(temperatures)),
    )


def largest_terms(case, tensors):
    """How large the numbers are that a row's loss is the difference of, `[B]`: logits over the temperature."""
    lowest = case.temperature * (0.5 if case.per_sample else 1.0)
    return torch.stack([t.abs().amax(1) for t in tensors]).amax(0) / min(lowest, 1.0) + 1


@losses
@given(case=cases())
@often
def test_loss_and_gradients_for_any_arguments(loss, case):
    """The float64 ones; the same bits in every layout, and without gradients."""
    settings, exact_logits = case.settings(loss), [t.double() for t in case.logits()]
    incoming = incoming_gradient(case.reduction, case.batch)
    value, grads = loss_and_gradients(loss, case.placed(), incoming, **settings)
    exact, exact_grads = loss_and_gradients(loss, exact_logits, incoming, module=reference, **in_float64(settings))
    plain, plain_grads = loss_and_gradients(loss, case.logits(), incoming, **settings)
    assert same(value, plain) and same(loss(*case.placed(), **settings), plain)
    assert all(same(a, b) for a, b in zip(grads, plain_grads, strict=True))
    assert value.dtype == torch.float32 and value.shape == exact.shape and value.isfinite().all()
    # Float32 knows a difference of logits to a digit of the logits; the loss is at most that many times its weights.
    terms = largest_terms(case, exact_logits).max() * max(case.temperature**2, 1.0) * 2.0**-18
    terms = terms * (case.batch if case.reduction == "sum" else 1)
    assert ((value.double() - exact).abs() <= LOSS_RTOL * exact.abs() + terms).all()
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert grad.dtype == case.dtype and grad.shape == (case.batch, case.classes)
        limit = torch.finfo(case.dtype).max
        assert grad.isfinite().logical_or(exact_grad.abs() > limit / 2).all()
        scale = exact_grad.abs().amax(1, keepdim=True)
        # A probability is known to a digit of its exponent, that of logits over temperature.
        slack = GRAD_RTOL[case.dtype] + largest_terms(case, exact_logits)[:, None] * 2.0**-22
        # Less than this is float64's own cancellation (a clean network's gradient is its loss times a difference of
        # probabilities), or a subnormal half.
        divisor = {"mean": case.batch * case.classes, "batchmean": case.batch}.get(case.reduction, 1)
        unit = case.temperature if loss in (kl, ard, rslad) else 1.0
        unit = 1.0 / unit if not settings.get("scale_t2", True) else unit
        natural = float(incoming.abs().max()) * unit / divisor * float(largest_terms(case, exact_logits).max())
        floor = max(1e-11 * natural, 6.2e-5 if case.dtype == torch.float16 else 0.0)
        error = (grad.double() - exact_grad.clamp(-limit, limit)).abs()
        assert ((error <= slack * scale) | (scale <= floor)).all(), f"{(error / scale).max():.2e}"


@losses
@given(case=cases())
def test_rows_do_not_see_one_another(loss, case):
    """Another order of the samples, and one alone: the same bits. Each reduction is a sum of the rows."""
    case = replace(case, reduction="none")
    tensors, settings = case.logits(), case.settings(loss)
    whole, whole_grads = loss_and_gradients(loss, tensors, torch.ones(case.batch), **settings)
    for rows in (permutation(case.batch, case.seed), torch.tensor([case.batch - 1])):
        some = {k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in settings.items()}
        part, grads = loss_and_gradients(loss, [t[rows] for t in tensors], torch.ones(len(rows)), **some)
        assert same(part, whole[rows])
        assert all(same(a, b[rows]) for a, b in zip(grads, whole_grads, strict=True))
    slack = 1e-5 * whole.double().abs().sum() + 1e-12
    for reduction, divisor in (("sum", 1), ("batchmean", case.batch)):
        total = loss(*tensors, **settings | {"reduction": reduction}).double()
        assert (total - whole.double().sum() / divisor).abs() <= slack


@losses
@given(
    case=cases(dtypes=st.just(torch.float32)),
    value=st.sampled_from((math.inf, -math.inf, math.nan, 3.4e38, -3.4e38, 0.0)),
    which=st.integers(0, 2),
)
def test_a_row_that_is_not_finite_leaves_the_others_alone(loss, case, value, which):
    """Whatever its own loss is: the other rows' bits stay."""
    tensors, settings = case.logits(), case.settings(loss) | {"reduction": "none"}
    spoiled = [t.clone() for t in tensors]
    spoiled[which][0, case.seed % case.classes] = value
    found, grads = loss_and_gradients(loss, spoiled, torch.ones(case.batch), **settings)
    plain, plain_grads = loss_and_gradients(loss, tensors, torch.ones(case.batch), **settings)
    assert same(found[1:], plain[1:])
    assert all(same(a[1:], b[1:]) for a, b in zip(grads, plain_grads, strict=True))


@given(case=cases())
def test_the_divergence_of_equals_is_zero_and_none_is_negative(case):
    student, teacher, _ = case.logits()
    settings = {"temperature": case.temperature, "reduction": "none"}
    assert (F.kl_distill_loss(student, teacher, **settings) >= 0).all()
    leaf = student.clone().requires_grad_()
    loss = F.kl_distill_loss(leaf, student, teacher_temperature=torch.full((case.batch,), case.temperature), **settings)
    assert (loss == 0).all() and (torch.autograd.grad(loss.sum(), leaf)[0] == 0).all()


# ---- autograd


@losses
def test_gradients_only_where_needed(loss, device):
    tensors = rows_of_logits("plain", B, 12, device=device)
    settings = {"labels": labels_of(tensors[0])} | ({"alpha": 0.5} if loss is ard else {})
    assert loss(*tensors, **settings).grad_fn is None
    live = LOSSES[loss]
    _, expected = loss_and_gradients(loss, tensors, torch.ones((), device=device), **settings)
    for wanted, grad in zip(live, expected, strict=True):
        leaves = [t.clone().requires_grad_(k == wanted) for k, t in enumerate(tensors)]
        with torch.no_grad():
            assert loss(*leaves, **settings).grad_fn is None
        loss(*leaves, **settings).backward()
        assert leaves[wanted].grad.equal(grad)
        assert all(leaves[k].grad is None for k in range(3) if k != wanted)


@losses
@pytest.mark.parametrize("dtype", DTYPES)
def test_second_backward_through_a_retained_graph(dtype, loss, device):
    leaves = [t.requires_grad_(k in LOSSES[loss]) for k, t in enumerate(rows_of_logits("plain", B, 12, dtype, device))]
    live = [leaves[k] for k in LOSSES[loss]]
    value = loss(*leaves, labels=labels_of(leaves[0].detach()), **({"alpha": 0.5} if loss is ard else {}))
    first = torch.autograd.grad(value, live, torch.tensor(3.0, device=device), retain_graph=True)
    kept = [grad.clone() for grad in first]
    second = torch.autograd.grad(value, live, torch.tensor(-6.0, device=device))
    for grad, as_was, again in zip(first, kept, second, strict=True):
        assert grad.equal(as_was)
        torch.testing.assert_close(again, -2 * grad)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, live)


@losses
def test_the_known_gradient_1_saves_the_scaling(loss, device):
    """Alone and through a sum of terms; twice, and in float16, whose gradients leave the kernel in another size."""
    labels = labels_of(rows_of_logits("plain", B, 10)[0]).to(device)
    for dtype, scaled in ((torch.float32, 0), (torch.float16, 2)):
        tensors = rows_of_logits("plain", B, 10, dtype, device)
        for which in LOSSES[loss]:
            tensors[which].requires_grad_()
        live = [tensors[which] for which in LOSSES[loss]]

        def value(tensors=tensors):
            settings = {"alpha": 0.5} if loss is ard else {}
            return loss(*tensors, labels=labels, **settings) + tensors[0].float().mean()

        expected = torch.autograd.grad(value(), live, torch.ones((), device=device))
        total = value()
        for _ in range(2):
            with Calls() as names:
                got = torch.autograd.grad(total, live, one(total.device), retain_graph=True)
            assert names.count("scale_rows_") == scaled
            assert all(a.equal(b) for a, b in zip(got, expected, strict=True))
        assert one(total.device) == 1.0


class Calls(TorchDispatchMode):
    """The names of the operators that were called under it."""

    def __enter__(self):
        super().__enter__()
        self.names = []
        return self.names

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def test_a_float16_mean_keeps_its_gradient():
    """With a loss scale, as under GradScaler: what is representable at the end must not underflow on the way."""
    for loss in LOSSES:
        tensors = rows_of_logits("plain", 64, 1000, torch.float16)
        settings = {"labels": labels_of(tensors[0]), "reduction": "mean"} | ({"alpha": 0.5} if loss is ard else {})
        _, grads = loss_and_gradients(loss, tensors, torch.tensor(65536.0), **settings)
        wide = [t.double() for t in tensors]
        _, expected = loss_and_gradients(loss, wide, torch.tensor(65536.0), module=reference, **settings)
        for grad, want in zip(grads, expected, strict=True):
            assert (grad.double() - want).norm() / want.norm() < 1e-3


def test_mixed_dtypes_meet_in_the_wider_one(device):
    """Each gradient comes back in the dtype of its own logits."""
    student, teacher, _ = rows_of_logits("plain", 4, 30, device=device)
    half = student.bfloat16().requires_grad_()
    teacher.requires_grad_()
    loss = F.kl_distill_loss(half, teacher)
    assert loss.equal(F.kl_distill_loss(half.detach().float(), teacher))
    assert [g.dtype for g in torch.autograd.grad(loss, (half, teacher))] == [torch.bfloat16, torch.float32]


def test_weights_of_any_dtype_and_stride(device):
    student, teacher, _ = rows_of_logits("plain", B, 50, device=device)
    plain = F.kl_distill_loss(student, teacher, reduction="none")
    halves = torch.full((2 * B,), 0.5, device=device, dtype=torch.float64)[::2]
    assert F.kl_distill_loss(student, teacher, reduction="none", weight=halves).equal(plain * 0.5)


def test_classes_without_probability(device):
    """Excluded by teacher and student: no cost and no gradient to them."""
    teacher = torch.tensor([[1.0, 2.0, -math.inf, 0.5]], device=device).requires_grad_()
    student = torch.tensor([[1.0, 0.0, -math.inf, 0.5]], device=device).requires_grad_()
    kept = [0, 1, 3]
    for tempered in (None, 3.0):
        loss = F.kl_distill_loss(student, teacher, teacher_temperature=tempered)
        fewer = [t.detach()[:, kept].requires_grad_() for t in (student, teacher)]
        expected = F.kl_distill_loss(*fewer, teacher_temperature=tempered)
        torch.testing.assert_close(loss, expected)
        grads = torch.autograd.grad(loss, [student, teacher])
        for grad, wanted in zip(grads, torch.autograd.grad(expected, fewer), strict=True):
            torch.testing.assert_close(grad[:, kept], wanted)
            assert grad[0, 2] == 0.0


@losses
def test_empty_batch(loss, device):
    leaves = [torch.empty(0, 10, device=device, requires_grad=k in LOSSES[loss]) for k in range(3)]
    settings = {"labels": torch.empty(0, dtype=torch.int64, device=device), "weight": torch.empty(0, device=device)}
    assert loss(*leaves, reduction="none", **settings).shape == (0,)
    total = loss(*leaves, reduction="sum", **settings)
    total.backward()
    assert total == 0.0 and leaves[0].grad.shape == (0, 10)
    for reduction in ("mean", "batchmean"):
        with pytest.raises(ValueError, match="must have at least one row"):
            loss(*leaves, reduction=reduction, **settings)


# ---- what is refused


def bad_calls():
    s, w, labels = torch.randn(3, 4), torch.ones(3), torch.tensor([0, 1, 2])
    every = tuple(LOSSES)
    yield every, r"must have the shape of \w+ \[3, 4\], got \[3, 5\]", {1: torch.randn(3, 5)}, RuntimeError
    yield every, r"must be logits of shape \[B, C\] with C >= 2, got \[4\]", dict.fromkeys(range(3), s[0]), RuntimeError
    one = r"got \[3, 1\]; for a binary classifier whose one logit is z give torch.cat"
    yield every, one, dict.fromkeys(range(3), s[:, :1]), RuntimeError  # whose loss would be 0, whatever the logits
    yield every, "must be float32, float16 or bfloat16, got torch.float64", {1: s.double()}, TypeError
    yield (ard, rslad), "teacher_logits must not require grad", {1: s.clone().requires_grad_()}, ValueError
    yield (ard, rslad), "^student_logits must have the shape of student_adv_logits", {2: s[:, :2]}, RuntimeError
    yield (rslad,), "^student_logits must be a torch tensor .*, got NoneType", {2: None}, TypeError
    yield (ard,), "student_logits must be given when alpha < 1", {2: None}, ValueError
    yield (ard,), "labels must be given when alpha < 1", {"labels": None}, ValueError
    yield (ard,), r"alpha must be in \[0, 1\], got 1.5", {"alpha": 1.5}, ValueError
    yield (ard,), r"alpha must be in \[0, 1\], got nan", {"alpha": math.nan}, ValueError
    yield (kl, ard, rslad), "temperature must be finite and above 0, got 0.0", {"temperature": 0}, ValueError
    names = "'none', 'sum', 'batchmean', 'mean', got 'avg'"
    yield every, f"reduction must be one of {names}", {"reduction": "avg"}, ValueError
    yield (trades, mart), "beta must be finite and at least 0, got -1.0", {"beta": -1.0}, ValueError
    yield (trades, mart), "beta must be a number, got str", {"beta": "6"}, TypeError
    labelled = ard, trades, mart
    yield labelled, "labels must be int64, got int32", {"labels": labels.int()}, RuntimeError
    yield labelled, r"labels must have shape \[3\], one entry a sample", {"labels": labels[:2]}, RuntimeError
    yield labelled, r"labels must be in \[0, 4\), got 4 at position 1", {"labels": labels + 3}, RuntimeError
    yield labelled, r"labels must be in \[0, 4\), got -100", {"labels": labels - 100}, RuntimeError
    yield every, r"weight must have shape \[3\], one entry a sample, got \[2\]", {"weight": w[:2]}, RuntimeError
    yield every, "weight must be a torch tensor or an array .* got float", {"weight": 2.0}, TypeError
    yield every, "weight must not require grad", {"weight": w.clone().requires_grad_()}, ValueError
    tempered = kl, rslad
    yield tempered, "teacher_temperature must be finite and above 0", {"teacher_temperature": 0.0}, ValueError
    yield tempered, r"teacher_temperature must have shape \[3\]", {"teacher_temperature": w[:2]}, RuntimeError
    yield tempered, "teacher_temperature must be positive, got 0 at", {"teacher_temperature": w - 1}, RuntimeError
    yield (rslad,), "clean_teacher_temperature must be positive", {"clean_teacher_temperature": -w}, RuntimeError
    yield (rslad,), "adv_weight must be finite and at least 0", {"adv_weight": -1.0}, ValueError
    yield (rslad,), "clean_weight must be finite and at least 0", {"clean_weight": math.nan}, ValueError


@pytest.mark.parametrize(("which", "message", "changes", "error"), list(bad_calls()))
def test_bad_calls(which, message, changes, error):
    for loss in which:
        s = torch.randn(3, 4)
        tensors = [changes.get(k, s) for k in range(3)]
        settings = {"labels": torch.tensor([0, 1, 2])} | ({"alpha": 0.5} if loss is ard else {})
        settings |= {k: v for k, v in changes.items() if isinstance(k, str)}
        with pytest.raises(error, match=message):
            loss(*tensors, **settings)


@pytest.mark.gpu
@pytest.mark.sanitizer
@losses
def test_a_label_or_temperature_out_of_range_on_cuda_makes_its_row_nan(loss):
    """On an emulated GPU: test_kernels.py."""
    tensors = list(torch.randn(3, 3, 40, device="cuda"))
    settings = {"labels": torch.tensor([0, 40, -1], device="cuda")} | ({"alpha": 0.5} if loss is ard else {})
    if loss in (kl, rslad):
        settings["teacher_temperature"] = torch.tensor([1.0, 0.0, -1.0], device="cuda")
    rows, grads = loss_and_gradients(loss, tensors, torch.ones(3, device="cuda"), reduction="none", **settings)
    assert rows.isnan().tolist() == [False, True, True]
    assert all(grad[0].isfinite().all() for grad in grads)


# ---- the improved KL ------------------------------------------------------------------------------------------------


def test_the_improved_kl_refuses_other_shapes():
    logits = torch.randn(3, 4)
    with pytest.raises(RuntimeError, match=r"class_weights must have the shape of logits \[3, 4\], got \[4, 4\]"):
        ikl_loss(logits, reference_logits=logits, class_weights=torch.rand(4, 4))
