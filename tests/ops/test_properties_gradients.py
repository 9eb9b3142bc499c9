"""The gradients that attacks follow, for any logits, layouts, dtypes, ties and edge values."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from property_tensors import EDGES, Layout, floats, layouts, permutation, same, seeds, with_edges
from tolerances import GRAD_RTOL, LOSS_RTOL

from ard_fast import functional as F
from ard_fast import reference

LOSSES = ("ce", "kl", "margin", "dlr", "dlr_targeted")
# A difference of logits in float32, over the least difference there is between two of them.
SPACING = 2.0**-3


@dataclass(frozen=True)
class Case:
    """Logits on a coarse grid, so that ties are common and no difference is lost to rounding."""

    loss: str
    batch: int
    classes: int
    seed: int
    scale: int
    dtype: torch.dtype
    layout: Layout
    share: float
    temperature: float
    kappa: float

    def logits(self):
        generator = torch.Generator().manual_seed(self.seed)
        shape = self.batch, self.classes
        grid = torch.randint(-8 * self.scale, 8 * self.scale + 1, shape, generator=generator) * SPACING
        return with_edges(grid, self.share, EDGES, generator).to(self.dtype)

    def targets(self):
        """target and labels, as the loss takes them."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        labels = torch.randint(self.classes, (self.batch,), generator=generator)
        if self.loss == "kl":
            return torch.randn((self.batch, self.classes), generator=generator).to(self.dtype), None
        if self.loss == "dlr_targeted":
            return (labels + 1 + self.seed % (self.classes - 1)) % self.classes, labels
        return labels, None

    def settings(self, rows=slice(None)):
        target, labels = self.targets()
        numbers = {"loss": self.loss, "temperature": self.temperature, "kappa": self.kappa}
        return {"target": target[rows], "labels": labels if labels is None else labels[rows], **numbers}


no_edges = st.just(0.0)
widths = st.sampled_from((4, 5, 8, 10, 17, 100, 1025))


@st.composite
def cases(draw, share=no_edges, losses=LOSSES, dtypes=floats):
    return Case(draw(st.sampled_from(losses)), draw(st.integers(0, 6)), draw(widths),
                draw(seeds), draw(st.sampled_from((0, 1, 4))), draw(dtypes), draw(layouts()), draw(share),
                draw(st.sampled_from((0.25, 1.0, 4.0))), draw(st.sampled_from((0.0, 1.5, 50.0, math.inf))))  # fmt: skip


@given(cases())
def test_gradient_rows_and_flags_are_the_float64_ones(case):
    logits, settings = case.logits(), case.settings()
    found = F.attack_gradient(case.layout.place(logits), with_rows=True, **settings)
    if case.loss == "kl":
        settings["target"] = settings["target"].double()
    grad = reference.attack_gradient(logits.double(), **settings)
    loss = reference.attack_loss(logits.double(), **settings)
    limit = torch.finfo(case.dtype).max
    assert found.grad.dtype == case.dtype and found.grad.shape == logits.shape
    assert found.loss.dtype == torch.float32
    error, scale = (found.grad.double() - grad.clamp(-limit, limit)).abs(), grad.abs().amax(1, keepdim=True)
    floor = 6.2e-5 if case.dtype == torch.float16 else 1e-9
    assert ((error <= 2 * GRAD_RTOL[case.dtype] * scale) | (scale <= floor)).all()
    # DLR's ties make its denominator 1e-12, which stands there to be divided by.
    assert ((found.loss.double() - loss).abs() <= LOSS_RTOL * loss.abs() + 1e-6).all()
    if case.loss == "kl":
        assert found.correct is None
        return
    labels = settings["target"] if settings["labels"] is None else settings["labels"]
    first = logits.double().sort(dim=1, descending=True, stable=True).indices[:, 0] if case.batch else labels
    assert torch.equal(found.correct, first == labels)


@given(cases(share=st.sampled_from((0.0, 0.02, 0.3))))
def test_rows_do_not_see_one_another_nor_their_layout(case):
    logits = case.logits()
    whole = F.attack_gradient(logits, with_rows=True, **case.settings())
    placed = F.attack_gradient(case.layout.place(logits), with_rows=True, **case.settings())
    alone = F.attack_gradient(logits, **case.settings())
    order = permutation(case.batch, case.seed)
    parts = [F.attack_gradient(logits[rows], with_rows=True, **case.settings(rows)) for rows in (order, order[:1])]
    assert same(placed.grad, whole.grad) and same(placed.loss, whole.loss) and same(alone, whole.grad)
    for part, rows in zip(parts, (order, order[:1]), strict=True):
        assert same(part.grad, whole.grad[rows]) and same(part.loss, whole.loss[rows])
        assert whole.correct is None or torch.equal(part.correct, whole.correct[rows])


@given(cases(dtypes=st.just(torch.float32)), st.integers(-16, 16))
def test_adding_a_number_to_a_row_changes_nothing(case, shift):
    """Exactly for margin and DLR, whose differences are exact on this grid; a softmax to its roundings."""
    logits = case.logits()
    found, moved = (F.attack_gradient(t, with_rows=True, **case.settings()) for t in (logits, logits + shift))
    if case.loss in ("ce", "kl"):
        assert ((found.grad - moved.grad).abs() <= 1e-5).all()
        assert ((found.loss - moved.loss).abs() <= 1e-5 * (1 + found.loss.abs())).all()
    else:
        assert same(found.grad, moved.grad) and same(found.loss, moved.loss)


@given(cases(dtypes=st.just(torch.float32), losses=("ce", "kl", "margin", "dlr", "dlr_targeted")))
def test_gradients_of_a_row_sum_to_zero(case):
    """No loss here sees a number added to all logits of a row."""
    grad = F.attack_gradient(case.logits(), **case.settings()).double()
    assert (grad.sum(1).abs() <= 1e-5 * grad.abs().sum(1) + 1e-12).all()


@given(cases(dtypes=st.just(torch.float32), losses=("dlr", "dlr_targeted")), st.integers(1, 6))
def test_dlr_does_not_see_the_scale(case, power):
    """Where its 1e-12 does not matter: the loss stays, the gradient is divided by the scale."""
    logits, settings = case.logits(), case.settings()
    found, scaled = (F.attack_gradient(t, with_rows=True, **settings) for t in (logits, logits * 2.0**power))
    ranked = logits.sort(dim=1, descending=True).values
    apart = ranked[:, 0] > ranked[:, 3]
    apart &= ranked[:, 0] > ranked[:, 2] if case.loss == "dlr" else apart
    assert torch.allclose(found.loss[apart], scaled.loss[apart], rtol=1e-6, atol=1e-9)
    assert torch.allclose(found.grad[apart], scaled.grad[apart] * 2.0**power, rtol=1e-5, atol=1e-9)


@given(cases(losses=("kl",)))
def test_kl_is_the_gradient_of_the_distillation_loss(case):
    logits, settings = case.logits(), case.settings()
    leaf, target = logits.clone().requires_grad_(), settings["target"].clone().requires_grad_()
    loss = F.kl_distill_loss(leaf, target, temperature=case.temperature, reduction="sum")
    expected = torch.autograd.grad(loss, (leaf, target))
    found = F.attack_gradient(
        logits, settings["target"], loss="kl", temperature=case.temperature, with_target_grad=True
    )
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        scale = b.float().abs().amax(1, keepdim=True)
        assert (
            (a.float() - b.float()).abs() <= 2 * GRAD_RTOL[case.dtype] * scale + 1e-4 * (a.dtype != torch.float32)
        ).all()


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "dlr_targeted"])
@given(case=cases())
def test_labels_out_of_range_are_refused(loss, case):
    if case.batch == 0:
        return
    logits = case.logits()
    for bad in (-1, case.classes, 2**40):
        labels = torch.zeros(case.batch, dtype=torch.int64)
        labels[-1] = bad
        given_labels = (
            {"target": torch.ones_like(labels), "labels": labels} if loss == "dlr_targeted" else {"target": labels}
        )
        with pytest.raises(RuntimeError, match="must be in"):
            F.attack_gradient(logits, loss=loss, **given_labels)
