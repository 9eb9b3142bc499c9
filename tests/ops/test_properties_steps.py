"""The steps of the attacks for any shape, layout, dtype, edge value and size: the formula, and what must hold of it."""

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from property_tensors import (
    EDGES,
    FINITE,
    UNIT,
    Layout,
    bounds,
    floats,
    layouts,
    over,
    permutation,
    same,
    seeds,
    shapes,
    shares,
    sizes,
    with_edges,
)

from ard_fast import functional as F
from ard_fast import reference

# Drawn pixels lie outside the bounds, too, and balls are wider than they are.
pgd_linf_step_ = partial(F.pgd_linf_step_, check_bounds=False)
pgd_l2_step_ = partial(F.pgd_l2_step_, check_bounds=False)
mifgsm_step_ = partial(F.mifgsm_step_, check_bounds=False)


@dataclass(frozen=True)
class Case:
    """The arguments of a step; tensors are made anew by every call of `tensors`."""

    shape: tuple
    seed: int
    share: float
    dtype: torch.dtype
    layout_adv: Layout
    layout_grad: Layout
    layout_x: Layout
    spread: float
    settings: dict
    per_sample: tuple = (False, False)

    def values(self, edges=EDGES, pixel_edges=True):
        """x_adv, grad and x, contiguous: points inside, on and outside of the ball; ties; edge values."""
        generator = torch.Generator().manual_seed(self.seed)

        def uniform():
            return torch.rand(self.shape, generator=generator)

        x, grad = uniform(), torch.randn(self.shape, generator=generator)
        x_adv = x + self.spread * (2 * uniform() - 1)
        pick = uniform()
        eps = self.settings["eps"]
        for k, value in enumerate((x, x + eps, x - eps)):  # exactly the image, and exactly the edges of its ball
            x_adv = torch.where((pick > 0.05 * k) & (pick < 0.05 * (k + 1)), value, x_adv)
        grad = torch.where(uniform() < 0.05, torch.zeros(()), grad).to(self.dtype)
        grad = with_edges(grad, self.share, edges, generator)
        if pixel_edges:
            x_adv, x = (with_edges(t, self.share, edges, generator) for t in (x_adv, x))
        return x_adv, grad, x

    def arguments(self):
        """The numbers, those per sample as tensors `[B]` around the number."""
        settings = dict(self.settings)
        generator = torch.Generator().manual_seed(self.seed + 1)
        for name, vary in zip(("eps", "step_size"), self.per_sample, strict=True):
            if vary:
                settings[name] = settings[name] * torch.rand(self.shape[0], generator=generator)
        return settings

    def placed(self, x_adv, grad, x):
        """The three in their layouts."""
        return self.layout_adv.place(x_adv), self.layout_grad.place(grad), self.layout_x.place(x)


@st.composite
def cases(draw, *, any_layout=False):
    """Cases; with `any_layout` the batch may lie inside, where there are no sizes per sample."""
    shape = draw(shapes())
    per_sample = draw(st.sampled_from(((False, False), (True, False), (False, True), (True, True))))
    dense = layouts(dense=True, keep_batch=not any_layout or any(per_sample))
    settings = {"step_size": draw(sizes), "eps": draw(sizes), "targeted": draw(st.booleans()), "bounds": draw(bounds)}
    spread = draw(st.sampled_from((0.0, 0.03, 1.0)))
    return Case(shape, draw(seeds), draw(shares), draw(floats), draw(dense), draw(layouts()), draw(layouts()), spread,
                settings, per_sample)  # fmt: skip


def exact(case):
    """Whether every value is finite, so that bounds on rounding mean something."""
    assume(case.share == 0)


# ---- L-infinity ---------------------------------------------------------------------------------------------------


@given(cases(any_layout=True))
def test_linf_has_the_bits_of_the_formula(case):
    values, settings = case.values(), case.arguments()
    expected = reference.pgd_linf_step(*values, **settings)
    tensors = case.placed(*values)
    strides = tensors[0].stride()
    assert pgd_linf_step_(*tensors, **settings) is tensors[0]
    assert same(tensors[0], expected)
    assert tensors[0].stride() == strides
    assert same(tensors[1], values[1]) and same(tensors[2], values[2]), "an input was written"


@given(cases(any_layout=True))
def test_linf_is_the_float64_formula_but_for_roundings(case):
    exact(case)
    values, settings = case.values(), case.arguments()
    wide = reference.pgd_linf_step(*(t.double() for t in values), **settings)
    found = pgd_linf_step_(*case.placed(*values), **settings)
    # Two sums and two numbers rounded to float32; min, max and clamp add nothing.
    step, eps = (settings[name].max() if isinstance(settings[name], torch.Tensor) and len(settings[name]) else
                 float(case.settings[name]) for name in ("step_size", "eps"))  # fmt: skip
    slack = 4 * UNIT * (values[0].abs() + values[2].abs() + float(step) + float(eps)).double()
    assert ((found.double() - wide).abs() <= slack).all()


@given(cases(any_layout=True))
def test_linf_stays_in_the_ball_and_the_bounds(case):
    values, settings = case.values(), case.arguments()
    x_adv, _, x = values
    found = pgd_linf_step_(*case.placed(*values), **settings)
    eps = settings["eps"]
    eps = over(eps, x) if isinstance(eps, torch.Tensor) else torch.tensor(eps)
    low, high = settings["bounds"]
    whole = ~(x_adv.isnan() | x.isnan())
    assert (found[whole] >= low).all() and (found[whole] <= high).all()
    assert found[~whole].isnan().all()
    # To the ulp: the edges of the ball as float32 has them, clamped to the bounds.
    lower, upper = ((x - eps).clamp(low, high), (x + eps).clamp(low, high))
    assert ((found >= lower) & (found <= upper))[whole & ~lower.isnan() & ~upper.isnan()].all()


@given(cases(any_layout=True))
def test_linf_moves_by_the_sign_alone(case):
    """Any gradient of the same signs does the same, and a targeted step is a step against it."""
    x_adv, grad, x = case.values()
    settings = case.arguments()
    found = pgd_linf_step_(*case.placed(x_adv, grad, x), **settings)
    signs = torch.sign(grad.float())
    assert same(pgd_linf_step_(x_adv.clone(), signs, x, **settings), found)
    settings["targeted"] = not settings["targeted"]
    assert same(pgd_linf_step_(x_adv.clone(), -signs, x, **settings), found)


# ---- L2 -----------------------------------------------------------------------------------------------------------


def distances(a, b):
    return (a.double() - b.double()).reshape(len(a), -1).norm(dim=1) if a.numel() else torch.zeros(len(a)).double()


@given(cases())
def test_l2_is_the_float64_formula_but_for_roundings(case):
    """Gradients hold edge values too: NaN counts as 0, an infinity as the largest float32."""
    x_adv, grad, x = case.values(pixel_edges=False)
    settings = case.arguments()
    expected = reference.pgd_l2_step(x_adv, grad, x, **settings)
    tensors = case.placed(x_adv, grad, x)
    strides = tensors[0].stride()
    assert pgd_l2_step_(*tensors, **settings) is tensors[0]
    assert tensors[0].stride() == strides
    assert same(tensors[1], grad) and same(tensors[2], x), "an input was written"
    # The spacing of the pixels, and of the step and the difference that are added.
    step = float(case.settings["step_size"])
    slack = 8 * UNIT * (x.abs() + (x_adv - x).abs() + step).double()
    assert ((tensors[0].double() - expected.double()).abs() <= slack).all()


@given(cases())
def test_l2_stays_in_the_ball_and_the_bounds(case):
    x_adv, grad, x = case.values(pixel_edges=False)
    settings = case.arguments()
    low, high = settings["bounds"]
    x = x.clamp(low, high)  # an image outside of its bounds has no ball inside of them
    found = pgd_l2_step_(*case.placed(x_adv, grad, x), **settings)
    assert (found >= low).all() and (found <= high).all()
    eps = settings["eps"]
    eps = eps.double() if isinstance(eps, torch.Tensor) else torch.tensor(float(torch.tensor(eps))).double()
    # One digit of the radius, or where that is less the least that float32 can tell from the image.
    assert (distances(found, x) <= eps * (1 + 2 * UNIT) + 1e-44).all()


@given(cases(), st.integers(-60, 60))
def test_l2_sees_the_direction_alone(case, power):
    """A gradient times a power of two is the same direction; so is a targeted step against it."""
    exact(case)
    x_adv, grad, x = case.values()
    settings, grad = case.arguments(), grad.float()
    found = pgd_l2_step_(*case.placed(x_adv, grad, x), **settings)
    assert same(pgd_l2_step_(x_adv.clone(), grad * 2.0**power, x, **settings), found)
    settings["targeted"] = not settings["targeted"]
    assert same(pgd_l2_step_(x_adv.clone(), -grad, x, **settings), found)


# ---- MI-FGSM ------------------------------------------------------------------------------------------------------

decays = st.sampled_from((0.0, 0.5, 1.0, 2.0, 1e-30))


@given(cases(), decays, layouts(dense=True, keep_batch=True))
def test_mifgsm_momentum_and_step(case, decay, layout):
    """The momentum is the float64 one but for roundings; the step along it has the bits of the L-infinity formula."""
    x_adv, grad, x = case.values()
    momentum = torch.randn(case.shape, generator=torch.Generator().manual_seed(case.seed + 2))
    settings = case.arguments()
    _, expected = reference.mifgsm_step(x_adv, momentum, grad, x, decay=decay, **settings)
    tensors = case.placed(x_adv, grad, x)
    kept = torch.empty_like(tensors[0]).copy_(momentum)
    assert mifgsm_step_(tensors[0], kept, tensors[1], tensors[2], decay=decay, **settings) is tensors[0]
    slack = 4 * UNIT * (decay * momentum.abs() + 1).double()
    assert ((kept.double() - expected.double()).abs() <= slack).all()
    assert same(tensors[0], reference.pgd_linf_step(x_adv, kept, x, **settings))
    assert same(tensors[1], grad) and same(tensors[2], x), "an input was written"
    if not kept.numel() or layout.place(momentum).stride() == tensors[0].stride():
        return
    with pytest.raises(RuntimeError, match="momentum must have the memory layout of x_adv"):
        mifgsm_step_(tensors[0], layout.place(momentum), tensors[1], tensors[2], decay=decay, **settings)


@given(cases(), decays)
def test_mifgsm_gains_a_gradient_of_norm_one(case, decay):
    x_adv, grad, x = case.values(FINITE, pixel_edges=False)
    momentum = torch.zeros(case.shape)
    mifgsm_step_(x_adv, momentum, grad, x, decay=decay, **case.arguments())
    norms = momentum.double().abs().reshape(case.shape[0], -1).sum(1) if momentum.numel() else momentum.sum()
    some = grad.reshape(case.shape[0], -1).ne(0).any(1) if grad.numel() else torch.zeros(())
    assert ((norms - some.double()).abs() <= 4e-6).all()


# ---- all three ----------------------------------------------------------------------------------------------------


def linf(x_adv, grad, x, **settings):
    return pgd_linf_step_(x_adv, grad, x, **settings)


def l2(x_adv, grad, x, **settings):
    return pgd_l2_step_(x_adv, grad, x, **settings)


def mifgsm(x_adv, grad, x, **settings):
    return mifgsm_step_(x_adv, torch.full_like(x_adv, 0.125), grad, x, **settings)


steps = pytest.mark.parametrize("step", [linf, l2, mifgsm])


@steps
@given(case=cases())
def test_samples_do_not_see_one_another(step, case):
    """Another order, and each sample alone: bit for bit the same for the L-infinity step, else for one layout."""
    values, settings = case.values(), case.arguments()
    whole = step(*(t.clone() for t in values), **settings)
    order = permutation(case.shape[0], case.seed)

    def some(index):
        taken = {name: value[index] if isinstance(value, torch.Tensor) else value for name, value in settings.items()}
        return step(*(t[index].clone() for t in values), **taken)

    assert same(some(order), whole[order])
    for k in range(case.shape[0]):
        assert same(some(torch.tensor([k])), whole[k : k + 1])


@steps
@given(case=cases())
def test_layouts_change_nothing(step, case):
    """Bit for bit in L-infinity; a norm's sum may be taken in another order, which can turn its last digit."""
    values, settings = case.values(pixel_edges=step is linf), case.arguments()
    plain = step(*(t.clone() for t in values), **settings)
    placed = step(*case.placed(*values), **settings)
    if step is linf:
        assert same(placed, plain)
    elif step is l2:
        slack = 4 * UNIT * (values[2].abs() + (values[0] - values[2]).abs() + float(case.settings["step_size"]))
        assert ((placed.double() - plain.double()).abs() <= slack).all()


@steps
@given(case=cases())
def test_no_step_inside_the_ball_moves_nothing(step, case):
    exact(case)
    x_adv, grad, x = case.values()
    settings = {**case.arguments(), "step_size": 0.0, "eps": 1e4, "bounds": (-1e3, 1e3)}
    found = step(x_adv.clone(), grad, x, **settings)
    if step is l2:  # x + (x_adv - x), rounded towards x
        assert ((found - x_adv).abs() <= 2 * UNIT * (x_adv.abs() + x.abs())).all()
    else:
        assert same(found, x_adv)


@steps
@given(case=cases())
def test_a_ball_of_radius_zero_is_the_image(step, case):
    x_adv, grad, x = case.values(pixel_edges=step is linf)
    settings = {**case.arguments(), "eps": 0.0}
    found = step(x_adv.clone(), grad, x, **settings)
    expected = torch.where(x_adv.isnan(), x_adv, x.clamp(*settings["bounds"]))
    if step is linf:  # x - 0 is NaN for no x; but inf - inf in x_adv + step is
        stepped = x_adv + (-1 if settings["targeted"] else 1) * _spread(settings["step_size"], x) * grad.float().sign()
        expected = torch.where(stepped.isnan(), stepped, expected)
    assert same(found, expected)


def _spread(value, x):
    return over(value, x) if isinstance(value, torch.Tensor) else value


@given(cases())
def test_projecting_twice_is_projecting_once(case):
    """A step of length 0 from where a step has ended: L-infinity exactly, L2 to the digits of the radius."""
    exact(case)
    values, settings = case.values(), {**case.arguments(), "bounds": (-math.inf, math.inf)}
    x = values[2]
    for step in (linf, l2):
        once = step(*(t.clone() for t in values), **settings)
        twice = step(once.clone(), values[1], x, **{**settings, "step_size": 0.0})
        if step is linf:
            assert same(twice, once)
        else:
            assert ((twice - once).abs() <= 8 * UNIT * (x.abs() + (once - x).abs())).all()
