"""The losses and their gradients for any logits, layouts, dtypes and legal numbers: float64, and symmetries."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import REDUCTIONS, incoming_gradient
from property_tensors import Layout, floats, layouts, permutation, same, seeds
from tolerances import GRAD_RTOL, LOSS_RTOL

from ard_fast import functional as F
from ard_fast import reference

# Powers of two and others, from what sharpens every difference to what hides it.
temperatures = st.sampled_from((1.0, 0.03125, 0.1, 0.5, 2.0, 4.0, 30.0, 1000.0))
reductions = st.sampled_from(REDUCTIONS)
classes = st.sampled_from((2, 3, 4, 7, 8, 9, 10, 16, 31, 33, 100, 129, 1000, 1025))
# Of the logits: a network's, all the same, nearly one-hot, and far beyond what any network says.
scales = st.sampled_from((3.0, 0.0, 1e-6, 50.0, 300.0))


@dataclass(frozen=True)
class Case:
    """Logits of up to three networks, labels and weights."""

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

    def logits(self):
        """Three `[B, C]`, contiguous; close together if asked; some rows with ties."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = self.batch, self.classes
        first, *rest = (self.scale * torch.randn(shape, generator=generator) for _ in range(3))
        if self.close:
            rest = [first + 0.01 * k * self.scale * other for k, other in enumerate(rest)]
        drawn = [t.to(self.dtype) for t in (first, *rest)]
        for tensor in drawn:
            if self.batch > 1:
                tensor[0] = tensor[0, :1]  # no class before another
        return drawn

    def labels(self):
        return torch.randint(
            self.classes, (self.batch,), generator=torch.Generator().manual_seed(self.seed + 1)
        )  # fmt: skip

    def weight(self):
        if not self.weighted:
            return None
        weight = torch.rand(self.batch, generator=torch.Generator().manual_seed(self.seed + 2)) * 2
        weight[::3] = 0.0
        return weight

    def teacher_temperature(self):
        if not self.per_sample:
            return None
        generator = torch.Generator().manual_seed(self.seed + 3)
        return self.temperature * (0.5 + torch.rand(self.batch, generator=generator))

    def placed(self):
        return [layout.place(tensor) for layout, tensor in zip(self.layouts, self.logits(), strict=True)]


@st.composite
def cases(draw, dtypes=floats):
    return Case(draw(st.integers(1, 6)), draw(classes), draw(seeds), draw(scales), draw(st.booleans()), draw(dtypes),
                tuple(draw(layouts()) for _ in range(3)), draw(st.booleans()), draw(st.booleans()), draw(reductions),
                draw(temperatures))  # fmt: skip


def kl(module, case, tensors):
    return module.kl_distill_loss(
        *tensors[:2],
        temperature=case.temperature,
        reduction=case.reduction,
        weight=case.weight(),
        teacher_temperature=case.teacher_temperature(),
        scale_t2=case.seed % 2 == 0,
    )


def ard(module, case, tensors):
    alpha = (0.0, 0.5, 0.95, 1.0)[case.seed % 4]
    return module.ard_loss(
        tensors[0], teacher_logits=tensors[1].detach(), student_logits=tensors[2], labels=case.labels(), alpha=alpha,
        temperature=case.temperature, reduction=case.reduction, weight=case.weight(),
    )  # fmt: skip


def rslad(module, case, tensors):
    adv_weight, clean_weight = ((5 / 6, 1 / 6), (0.0, 1.0), (2.0, 0.0))[case.seed % 3]
    return module.rslad_loss(
        tensors[0], student_logits=tensors[2], teacher_logits=tensors[1].detach(), adv_weight=adv_weight,
        clean_weight=clean_weight, temperature=case.temperature, reduction=case.reduction, weight=case.weight(),
        teacher_temperature=case.teacher_temperature(),
    )  # fmt: skip


def trades(module, case, tensors):
    beta = (6.0, 0.0, 1.0)[case.seed % 3]
    return module.trades_loss(
        tensors[0], clean_logits=tensors[1], labels=case.labels(), beta=beta, reduction=case.reduction,
        weight=case.weight(),
    )  # fmt: skip


def mart(module, case, tensors):
    beta = (5.0, 0.0, 1.0)[case.seed % 3]
    return module.mart_loss(
        tensors[0], clean_logits=tensors[1], labels=case.labels(), beta=beta, reduction=case.reduction,
        weight=case.weight(),
    )  # fmt: skip


# Which of the three logits each loss has gradients for.
LOSSES = [(kl, (0, 1)), (ard, (0, 2)), (rslad, (0, 2)), (trades, (0, 1)), (mart, (0, 1))]
losses = pytest.mark.parametrize("loss, live", LOSSES, ids=lambda value: getattr(value, "__name__", ""))


def gradients(loss, module, case, tensors, live, incoming):
    """The loss, and the gradient for each of the live logits (zero where it does not depend on them)."""
    leaves = [t.detach().clone() for t in tensors]
    for k in live:
        leaves[k] = leaves[k].requires_grad_()
    value = loss(module, case, leaves)
    found = torch.autograd.grad(value, [leaves[k] for k in live], incoming.to(value.dtype), allow_unused=True)
    return value.detach(), [
        torch.zeros_like(leaves[k]) if grad is None else grad for k, grad in zip(live, found, strict=True)
    ]


def largest_terms(case, tensors):
    """How large the numbers are that a row's loss is the difference of, `[B]`: logits over the temperature."""
    lowest = case.temperature * (0.5 if case.per_sample else 1.0)
    return torch.stack([t.abs().amax(1) for t in tensors]).amax(0) / min(lowest, 1.0) + 1


@losses
@given(case=cases())
def test_loss_and_gradients_are_the_float64_ones(loss, live, case):
    exact_logits = [t.double() for t in case.logits()]
    incoming = incoming_gradient(case.reduction, case.batch, "cpu")
    value, grads = gradients(loss, F, case, case.placed(), live, incoming)
    exact, exact_grads = gradients(loss, reference, case, exact_logits, live, incoming)
    assert value.dtype == torch.float32 and value.shape == exact.shape and value.isfinite().all()
    # Float32 knows a difference of logits to a digit of the logits; the loss is at most that many times its weights.
    terms = largest_terms(case, exact_logits).max() * max(case.temperature**2, 1.0) * 8 * 2.0**-24
    terms = terms * (case.batch if case.reduction == "sum" else 1) * 8
    assert ((value.double() - exact).abs() <= LOSS_RTOL * exact.abs() + terms).all()
    for k, grad, exact_grad in zip(live, grads, exact_grads, strict=True):
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
        unit = 1.0 / unit if loss is kl and case.seed % 2 else unit  # without T^2
        natural = float(incoming.abs().max()) * unit / divisor
        natural *= float(largest_terms(case, exact_logits).max())
        floor = max(1e-11 * natural, 6.2e-5 if case.dtype == torch.float16 else 0.0)
        error = (grad.double() - exact_grad.clamp(-limit, limit)).abs()
        assert ((error <= slack * scale) | (scale <= floor)).all(), f"logits {k}: {(error / scale).max():.2e}"


@losses
@given(case=cases())
def test_the_loss_does_not_depend_on_the_gradient_or_the_layout(loss, live, case):
    incoming = incoming_gradient(case.reduction, case.batch, "cpu")
    plain, plain_grads = gradients(loss, F, case, case.logits(), live, incoming)
    placed, placed_grads = gradients(loss, F, case, case.placed(), live, incoming)
    assert same(placed, plain) and same(loss(F, case, case.placed()), plain)
    assert all(same(a, b) for a, b in zip(placed_grads, plain_grads, strict=True))


@losses
@given(case=cases())
def test_rows_do_not_see_one_another(loss, live, case):
    """Another order of the samples, and each alone: the same losses and gradients, bit for bit."""

    class Part:
        """The case with some of its rows."""

        def __init__(self, rows):
            self.rows, self.reduction = rows, "none"

        def __getattr__(self, name):
            value = getattr(case, name)
            if name in ("labels", "weight", "teacher_temperature"):
                return lambda: None if value() is None else value()[self.rows]
            return value

    tensors = case.logits()
    whole, whole_grads = gradients(loss, F, Part(slice(None)), tensors, live, torch.ones(case.batch))
    for rows in (permutation(case.batch, case.seed), torch.tensor([case.batch - 1])):
        part, grads = gradients(loss, F, Part(rows), [t[rows] for t in tensors], live, torch.ones(len(rows)))
        assert same(part, whole[rows])
        assert all(same(a, b[rows]) for a, b in zip(grads, whole_grads, strict=True))


@losses
@given(case=cases(dtypes=st.just(torch.float32)), shift=st.integers(-64, 64))
def test_adding_a_number_to_all_logits_of_a_row_changes_nothing(loss, live, case, shift):
    """Logits on a grid, so that the sum is exact."""
    tensors = [(t.clamp(-60, 60) * 64).round() / 64 for t in case.logits()]
    incoming = incoming_gradient(case.reduction, case.batch, "cpu")
    value, grads = gradients(loss, F, case, tensors, live, incoming)
    moved, moved_grads = gradients(loss, F, case, [t + shift for t in tensors], live, incoming)
    terms = (128 / min(case.temperature * 0.5, 1.0)) * max(case.temperature**2, 1.0) * 2.0**-20
    assert ((value - moved).abs() <= LOSS_RTOL * value.abs() + terms * case.batch).all()
    for a, b in zip(grads, moved_grads, strict=True):
        scale = a.abs().amax(1, keepdim=True).maximum(b.abs().amax(1, keepdim=True))
        assert ((a - b).abs() <= (1e-4 + terms) * scale + 1e-9).all()


@losses
@given(case=cases())
def test_classes_have_no_order(loss, live, case):
    """Their columns permuted, and the labels with them: the same but for the order of the sums."""
    order = permutation(case.classes, case.seed)

    class Renamed:
        def __getattr__(self, name):
            if name == "labels":
                return lambda: torch.argsort(order)[case.labels()]
            return getattr(case, name)

    value = loss(F, case, case.logits())
    renamed = loss(F, Renamed(), [t[:, order] for t in case.logits()])
    terms = largest_terms(case, [t.double() for t in case.logits()]).max() * max(case.temperature**2, 1.0) * 2.0**-20
    assert ((value - renamed).double().abs() <= LOSS_RTOL * value.abs() + terms * case.batch).all()


@losses
@given(case=cases())
def test_reductions_are_sums_of_the_rows(loss, live, case):
    """For "mean" the distillation terms are divided by the classes too, so it is left out here."""

    class Reduced:
        def __init__(self, reduction):
            self.reduction = reduction

        def __getattr__(self, name):
            return getattr(case, name)

    rows = loss(F, Reduced("none"), case.logits()).double()
    assert rows.shape == (case.batch,)
    total, mean = (loss(F, Reduced(reduction), case.logits()).double() for reduction in ("sum", "batchmean"))
    slack = 1e-5 * rows.abs().sum() + 1e-12
    assert (total - rows.sum()).abs() <= slack
    assert (mean - rows.mean()).abs() <= slack


@given(case=cases(dtypes=st.just(torch.float32)), power=st.integers(-3, 6))
def test_temperature_is_a_unit_of_the_logits(case, power):
    """Logits and temperatures times a power of two: the same loss, without the factor T^2."""
    student, teacher, _ = (t.clamp(-60, 60) for t in case.logits())
    settings = {"reduction": case.reduction, "scale_t2": False}
    plain = F.kl_distill_loss(student, teacher, temperature=case.temperature, **settings)
    scaled = F.kl_distill_loss(
        student * 2.0**power, teacher * 2.0**power, temperature=case.temperature * 2.0**power, **settings
    )
    assert ((plain - scaled).abs() <= LOSS_RTOL * plain.abs() + 1e-12).all()
    with_t2 = F.kl_distill_loss(student, teacher, temperature=case.temperature, reduction=case.reduction)
    assert ((with_t2 - plain * case.temperature**2).abs() <= LOSS_RTOL * with_t2.abs() + 1e-30).all()


@given(case=cases())
def test_the_divergence_of_equals_is_zero_and_none_is_negative(case):
    student, teacher, _ = case.logits()
    settings = {"temperature": case.temperature, "reduction": "none"}
    assert (F.kl_distill_loss(student, teacher, **settings) >= 0).all()
    leaf = student.clone().requires_grad_()
    loss = F.kl_distill_loss(leaf, student, **settings)
    assert (loss == 0).all()
    assert (torch.autograd.grad(loss.sum(), leaf)[0] == 0).all()


@given(case=cases(), alpha=st.floats(0.0, 1.0))
def test_ard_loss_is_linear_in_alpha(case, alpha):
    adv, teacher, clean = case.logits()

    def ard_at(alpha):
        return F.ard_loss(
            adv, teacher_logits=teacher, student_logits=clean, labels=case.labels(), alpha=alpha,
            temperature=case.temperature, reduction="none",
        ).double()  # fmt: skip

    mixed = alpha * ard_at(1.0) + (1 - alpha) * ard_at(0.0)
    assert ((ard_at(alpha) - mixed).abs() <= LOSS_RTOL * mixed.abs() + 1e-9).all()
    halves = F.kl_distill_loss(adv, teacher, temperature=case.temperature, reduction="none").double()
    assert ((ard_at(1.0) - halves).abs() <= LOSS_RTOL * halves).all()


@given(case=cases())
def test_a_sample_of_weight_zero_is_not_there(case):
    """Whatever finite logits it has."""
    weight = torch.ones(case.batch)
    weight[0] = 0.0
    adv, teacher, clean = case.logits()
    others = [t.clone() for t in (adv, teacher, clean)]
    for tensor in others:
        tensor[0] = tensor[0].flip(0) * 3
    settings = {"temperature": case.temperature, "reduction": case.reduction, "weight": weight}
    for loss in (
        lambda a, t, c: F.kl_distill_loss(a, t, **settings),
        lambda a, t, c: F.rslad_loss(a, student_logits=c, teacher_logits=t, **settings),
        lambda a, t, c: F.ard_loss(a, teacher_logits=t, student_logits=c, labels=case.labels(), alpha=0.5, **settings),
    ):
        assert same(loss(adv, teacher, clean), loss(*others))


EDGE_LOGITS = (math.inf, -math.inf, math.nan, 3.4e38, -3.4e38, 0.0)


@losses
@given(case=cases(dtypes=st.just(torch.float32)), value=st.sampled_from(EDGE_LOGITS), which=st.integers(0, 2))
def test_a_row_that_is_not_finite_leaves_the_others_alone(loss, live, case, value, which):
    """Whatever its own loss is: the other rows' bits stay."""

    class Rows:
        reduction = "none"

        def __getattr__(self, name):
            return getattr(case, name)

    tensors = case.logits()
    spoiled = [t.clone() for t in tensors]
    spoiled[which][0, case.seed % case.classes] = value
    incoming = torch.ones(case.batch)
    found, grads = gradients(loss, F, Rows(), spoiled, live, incoming)
    plain, plain_grads = gradients(loss, F, Rows(), tensors, live, incoming)
    assert same(found[1:], plain[1:])
    assert all(same(a[1:], b[1:]) for a, b in zip(grads, plain_grads, strict=True))
