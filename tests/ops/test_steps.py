"""The steps of the attacks in place: L-infinity bit for bit, L2 and MI-FGSM against float64."""

import math
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import often
from property_tensors import (
    EDGES,
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
    untouched_around,
    with_edges,
)

from ard_fast import functional as F
from ard_fast import reference

pytestmark = pytest.mark.sanitizer

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# 1: a single pixel; 7, 33: odd tails of every vector width; 8x8 digits; 3x32x32 CIFAR; several blocks; ImageNet.
SHAPES = [(1, 1), (1, 7), (3, 33), (5, 1, 8, 8), (4, 3, 32, 32), (3, 5000), (2, 3, 224, 224)]


def linf(x_adv, grad, x, **settings):
    """The step on copies, checked against the formula bit for bit."""
    expected = reference.pgd_linf_step(x_adv, grad, x, **settings)
    assert F.pgd_linf_step_(x_adv, grad, x, check_bounds=False, **settings) is x_adv
    assert same(x_adv, expected)


def l2(x_adv, grad, x, **settings):
    """The same in L2, where the spacings of the pixels, of the step and of the difference are added."""
    expected = reference.pgd_l2_step(x_adv, grad, x, **settings)
    step = torch.as_tensor(settings["step_size"]).double()
    slack = 8 * UNIT * (x.abs() + (x_adv - x).abs() + (over(step, x).to(x.device) if step.dim() else step))
    assert F.pgd_l2_step_(x_adv, grad, x, check_bounds=False, **settings) is x_adv
    assert x_adv.isnan().equal(expected.isnan())
    assert ((x_adv.double() - expected.double()).abs() <= slack)[~expected.isnan()].all()


def mifgsm(x_adv, grad, x, *, decay=0.5, **settings):
    """The momentum but for roundings, and along it the bits of the L-infinity step."""
    generator = torch.Generator().manual_seed(x.numel())
    start = torch.randn(x.shape, generator=generator).to(x.device) / max(x[:1].numel(), 1)
    momentum = torch.empty_like(x_adv).copy_(start)
    before = x_adv.clone()
    _, expected = reference.mifgsm_step(before, momentum, grad, x, decay=decay, **settings)
    assert F.mifgsm_step_(x_adv, momentum, grad, x, decay=decay, check_bounds=False, **settings) is x_adv
    assert ((momentum - expected).double().abs() <= 4 * UNIT * (decay * start.abs() + expected.abs()) + 1e-45).all()
    assert same(x_adv, reference.pgd_linf_step(before, momentum, x, **settings))


steps = pytest.mark.parametrize("step", [linf, l2, mifgsm])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@steps
def test_formula(step, shape, device, on_cpu):
    """On every device: gradients of each dtype, up and down, one size or one a sample."""
    if shape[-1] == 224 and not (on_cpu and step is not linf):
        shape = (1, 3, 96, 96)  # for an emulated GPU's sake
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.rand(shape, generator=generator)
    x_adv, grad = (torch.randn(shape, generator=generator) for _ in range(2))
    radii = torch.linspace(0.01, 0.1, shape[0])
    for dtype, targeted, eps in zip(DTYPES, (False, True, False), (0.05, radii.to(device), 0.05), strict=True):
        near = (x + 0.05 * x_adv).to(device)
        step(near, grad.to(device, dtype), x.to(device), step_size=0.02, eps=eps, targeted=targeted)
        if step is not l2:
            step(near, grad.to(device, dtype), x.to(device), step_size=0.01, eps=eps, targeted=targeted, levels=255)


@dataclass(frozen=True)
class Case:
    """The arguments of a step."""

    shape: tuple
    seed: int
    share: float
    dtype: torch.dtype
    layouts: tuple[Layout, Layout, Layout]
    spread: float
    settings: dict
    per_sample: tuple[bool, bool]

    def values(self, pixel_edges=True):
        """x_adv, grad and x, contiguous: points inside, on and outside of the ball; ties; edge values."""
        generator = torch.Generator().manual_seed(self.seed)

        def uniform():
            return torch.rand(self.shape, generator=generator)

        x, grad = uniform(), torch.randn(self.shape, generator=generator)
        x_adv = x + self.spread * (2 * uniform() - 1)
        pick, eps = uniform(), self.settings["eps"]
        for k, value in enumerate((x, x + eps, x - eps)):  # exactly the image, and exactly the edges of its ball
            x_adv = torch.where((pick > 0.05 * k) & (pick < 0.05 * (k + 1)), value, x_adv)
        grad = torch.where(uniform() < 0.05, torch.zeros(()), grad).to(self.dtype)
        grad = with_edges(grad, self.share, EDGES, generator)
        if pixel_edges:
            x_adv, x = (with_edges(t, self.share, EDGES, generator) for t in (x_adv, x))
        return x_adv, grad, x

    def arguments(self):
        """The numbers, those per sample as tensors `[B]` around the number."""
        settings = dict(self.settings)
        generator = torch.Generator().manual_seed(self.seed + 1)
        for name, vary in zip(("eps", "step_size"), self.per_sample, strict=True):
            if vary:
                settings[name] = settings[name] * torch.rand(self.shape[0], generator=generator)
        return settings

    def placed(self, tensors):
        return [layout.place(tensor) for layout, tensor in zip(self.layouts, tensors, strict=True)]


@st.composite
def cases(draw, *, any_layout=False):
    """Cases; with `any_layout` the batch may lie inside, where there are no sizes per sample."""
    per_sample = draw(st.sampled_from(((False, False), (True, False), (False, True), (True, True))))
    dense = layouts(dense=True, keep_batch=not any_layout or any(per_sample))
    settings = {"step_size": draw(sizes), "eps": draw(sizes), "targeted": draw(st.booleans()), "bounds": draw(bounds)}
    placed = draw(dense), draw(layouts()), draw(layouts())
    spread = draw(st.sampled_from((0.0, 0.03, 1.0)))
    return Case(draw(shapes()), draw(seeds), draw(shares), draw(floats), placed, spread, settings, per_sample)


def check_in_place(step, case, values):
    """The formula holds in any layout, which stays; nothing else is written, beside the tensor neither."""
    tensors = case.placed(values)
    strides = tensors[0].stride()
    step(*tensors, **case.arguments())
    assert tensors[0].stride() == strides and untouched_around(tensors[0])
    assert same(tensors[1], values[1]) and same(tensors[2], values[2]), "an input was written"


@given(cases(any_layout=True))
@often
def test_linf_for_any_arguments(case):
    check_in_place(linf, case, case.values())


@given(cases(), st.sampled_from((1, 16, 255)))
def test_whole_levels_for_any_arguments(case, levels):
    """Off the levels, too: what is rounded is the step of the formula."""
    eps = max(case.settings["eps"], 1 / levels)
    case = replace(case, settings={**case.settings, "eps": eps, "bounds": (0.0, 1.0), "levels": levels})
    for step in (linf, mifgsm):
        check_in_place(step, case, case.values())


# In levels of 1/255: eps and step size; how far a pixel may go, and goes at a time.
WHOLE = [(8.0, 2.0, 8, 2), (7.905, 1.2, 7, 2), (0.99999, 1e-9, 1, 1), (2.5, 2.00001, 2, 2), (255.0, 300.0, 255, 300)]


@pytest.mark.parametrize(("eps", "step_size", "most", "stride"), [*WHOLE, (0.0, 1.0, 0, 1), (8.0, 0.0, 8, 0)])
def test_images_of_8_bits_stay_such(eps, step_size, most, stride, device):
    """The bits of uint8 / 255, in the ball counted in levels, and moved by whole ones wherever there is a gradient."""
    levels = torch.arange(256).repeat(3, 8)
    x = (levels / 255).to(device)
    generator = torch.Generator().manual_seed(0)
    sizes = {"eps": eps / 255, "step_size": step_size / 255}
    for settings in (sizes, {name: torch.full((3,), size, device=device) for name, size in sizes.items()}):
        x_adv, at = x.clone(), levels.clone()
        for _ in range(5):
            sign = torch.randint(-1, 2, x.shape, generator=generator)
            F.pgd_linf_step_(x_adv, sign.to(device, torch.bfloat16), x, levels=255, **settings)
            at = (at + stride * sign).clamp(levels - most, levels + most).clamp(0, 255)
            assert same(x_adv.cpu(), at.to(torch.uint8).float() / 255)


@given(cases())
@often
def test_l2_for_any_arguments(case):
    """Gradients hold edge values too: NaN counts as 0, an infinity as the largest float32."""
    check_in_place(l2, case, case.values(pixel_edges=False))


@given(cases(), st.sampled_from((0.0, 0.5, 1.0, 2.0, 1e-30)))
@often
def test_mifgsm_for_any_arguments(case, decay):
    check_in_place(partial(mifgsm, decay=decay), case, case.values())


@pytest.mark.parametrize("function", [F.pgd_linf_step_, F.pgd_l2_step_])
@given(case=cases())
def test_no_step_leaves_the_ball_or_the_bounds(function, case):
    x_adv, grad, x = case.values(pixel_edges=False)
    settings = case.arguments()
    low, high = settings["bounds"]
    x = x.clamp(low, high)  # an image outside of its bounds has no ball inside of them
    found = function(*case.placed((x_adv, grad, x)), check_bounds=False, **settings)
    assert (found >= low).all() and (found <= high).all()
    eps = torch.as_tensor(settings["eps"], dtype=torch.float32)
    if function is F.pgd_linf_step_:
        away = over(eps, x) if eps.dim() else eps
        assert ((found <= (x + away).clamp(low, high)) & (found >= (x - away).clamp(low, high))).all()
    elif x.numel():
        # One digit of the radius, or where that is less the least that float32 can tell from the image.
        assert ((found - x.double()).reshape(len(x), -1).norm(dim=1) <= eps.double() * (1 + 2 * UNIT) + 1e-44).all()


@pytest.mark.parametrize("shape", [(3, 33), (4, 3, 32, 32), (1, 3, 96, 96)], ids=str)
def test_the_l2_ball_around_one_colour_is_not_left(shape, device):
    """The hard case: there every pixel's rounding points the same way."""
    for seed, (pixel, eps) in enumerate(((0.7, 0.5), (1.0, 3.0), (1e-6, 1 / 255))):
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).sign().to(device)
        x = torch.full(shape, pixel, device=device)
        x_adv = x.clone()
        for _ in range(3):
            F.pgd_l2_step_(x_adv, grad, x, step_size=4 * eps, eps=eps, bounds=(-10.0, 10.0), check_bounds=False)
            distances = (x_adv.double() - x.double()).flatten(1).norm(dim=1)
            assert (distances <= eps * (1 + 2 * UNIT)).all()
            assert (distances >= eps - 2 * UNIT * math.sqrt(x[0].numel()) - 1e-6 * eps).all()


@steps
@given(case=cases())
def test_samples_do_not_see_one_another(step, case):
    """Another order, and each sample alone: the same bits, NaN pixels of one sample or not."""
    values, settings = case.values(), case.arguments()
    function = {linf: F.pgd_linf_step_, l2: F.pgd_l2_step_, mifgsm: F.mifgsm_step_}[step]

    def some(index):
        taken = {name: value[index] if isinstance(value, torch.Tensor) else value for name, value in settings.items()}
        x_adv, grad, x = (t[index].clone() for t in values)
        momentum = [torch.full_like(x_adv, 0.125)] if step is mifgsm else []
        return function(x_adv, *momentum, grad, x, check_bounds=False, **taken)

    whole = some(torch.arange(case.shape[0]))
    order = permutation(case.shape[0], case.seed)
    for index in (order, order[:1]):
        assert same(some(index), whole[index])


def test_linf_edge_values(device):
    """Every combination of these; sign is torch's: 0 for NaN and both zeros, not for subnormals."""
    edges = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, -1e-40, 0.5, 1.0], device=device)
    x_adv, grad, x = (t.flatten().clone() for t in torch.meshgrid(edges, edges, edges, indexing="ij"))
    linf(x_adv, grad, x, step_size=0.1, eps=0.3)


# A gradient of a sample, and its direction: entries of any size; beside 1e38 a 1 is nothing; an infinity counts as the
# largest number; nothing moves by NaN and zeros.
DIRECTIONS = [
    *(([scale, -scale, 0.0, scale], [1.0, -1.0, 0.0, 1.0]) for scale in (1e38, 1e20, 1e-20, 1e-38, 1e-40, 1e-44)),
    ([1.0, 1.0, -1e38, 1.0], [0.0, 0.0, -1.0, 0.0]),
    ([0.0, 1e-45, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]),
    ([math.inf, -math.inf, math.nan, 1.0], [1.0, -1.0, 0.0, 0.0]),
    *(([value] * 4, [0.0] * 4) for value in (0.0, -0.0, math.nan)),
]


def test_direction_of_extreme_gradients(device):
    grad, direction = (torch.tensor(rows, device=device) for rows in zip(*DIRECTIONS, strict=True))
    x = torch.full_like(grad, 0.5)
    norm = direction.norm(dim=1, keepdim=True).clamp_min(1.0)
    found = F.pgd_l2_step_(x.clone(), grad, x, step_size=0.25, eps=1.0)
    torch.testing.assert_close(found, x + 0.25 * direction / norm, rtol=0, atol=1e-7)
    momentum = torch.zeros_like(x)
    F.mifgsm_step_(x.clone(), momentum, grad, x, step_size=0.25, eps=1.0)
    torch.testing.assert_close(
        momentum, direction / direction.abs().sum(1, keepdim=True).clamp_min(1.0), rtol=1e-6, atol=1e-37
    )


def test_from_the_image_itself(device):
    """x_adv and x may be the same tensor: one FGSM step from the image."""
    x, grad = torch.rand(2, 17, device=device), torch.randn(2, 17, device=device)
    for function, formula in ((F.pgd_linf_step_, reference.pgd_linf_step), (F.pgd_l2_step_, reference.pgd_l2_step)):
        mine = x.clone()
        function(mine, grad, mine, step_size=0.1, eps=0.05)
        torch.testing.assert_close(mine, formula(x, grad, x, step_size=0.1, eps=0.05), rtol=0, atol=2e-7)


LEVELS = {"levels": 255, "x": torch.full((2, 3, 4, 4), 0.5)}


def bad_calls():
    """What all three refuse: changed tensors by name, or other settings."""
    x = torch.rand(2, 3, 4, 4)
    yield "grad.*shape of x_adv", {"grad": x[:1]}, RuntimeError
    yield r"x must have the shape of x_adv", {"x": x[:, :2]}, RuntimeError
    yield "x_adv must be float32.*float64", {"x_adv": x.double()}, RuntimeError
    yield "x must be float32.*uint8", {"x": x.byte()}, RuntimeError
    yield "grad must be float32, float16 or bfloat16, got int64", {"grad": x.long()}, RuntimeError
    yield "x_adv must be dense", {"x_adv": torch.rand(2, 3, 4, 8)[..., ::2]}, RuntimeError
    yield "x_adv must be dense", {"x_adv": x[:1].expand(2, 3, 4, 4)}, RuntimeError
    yield r"eps must have shape \[2\]", {"eps": torch.ones(3)}, RuntimeError
    yield r"step_size must have shape \[2\]", {"step_size": torch.ones(2, 1)}, RuntimeError
    yield "eps must be finite and at least 0, got -0.1", {"eps": -0.1}, ValueError
    yield "step_size must be finite", {"step_size": math.nan}, ValueError
    yield "eps must be a number, got str", {"eps": "big"}, TypeError
    yield "bounds must be", {"bounds": (1.0, 0.0)}, ValueError
    yield "bounds must be a pair", {"bounds": 1.0}, ValueError
    yield "levels must be an int from 1 to 255, got 256", {"levels": 256}, ValueError
    yield "levels must be None for bounds", {"levels": 255, "bounds": (0.0, 255.0)}, ValueError
    yield r"x must hold whole levels, k/255 \(levels=255\), got 0.5, which is 127.50/255", LEVELS, ValueError
    yield "eps must be at least 1/255", {"levels": 255, "eps": 0.003, "x": x.round()}, ValueError
    yield "x_adv must not require grad", {"x_adv": x.clone().requires_grad_()}, ValueError
    moved = x.transpose(0, 1)
    yield "batch dimension outermost", {"x_adv": moved, "grad": moved, "x": moved, "eps": torch.ones(3)}, RuntimeError
    memory = torch.rand(97)
    overlapping = {"x_adv": memory[1:].view(2, 3, 4, 4), "x": memory[:96].view(2, 3, 4, 4)}
    yield "must not partly overlap x", overlapping, RuntimeError


def call(function, **changes):
    x = torch.rand(2, 3, 4, 4)
    arguments = {"x_adv": x.clone(), "grad": x, "x": x, "step_size": 0.1, "eps": 0.1} | changes
    if function is F.mifgsm_step_:
        arguments = {"momentum": torch.zeros_like(arguments["x_adv"])} | arguments
    before = arguments["x_adv"].detach().clone()
    try:
        function(**arguments)
    finally:
        assert arguments["x_adv"].detach().equal(before)


@pytest.mark.parametrize(("message", "changes", "error"), list(bad_calls()))
def test_bad_calls(message, changes, error):
    for function in (F.pgd_linf_step_, F.pgd_l2_step_, F.mifgsm_step_):
        if function is F.pgd_l2_step_ and "levels" in changes:
            continue
        with pytest.raises(error, match=message):
            call(function, **changes)


def test_bad_momentum():
    x = torch.rand(2, 3, 4, 4)
    for message, changes, error in (
        ("momentum must have the shape of x_adv", {"momentum": x[:1]}, RuntimeError),
        ("momentum must be float32, got float16", {"momentum": x.half()}, RuntimeError),
        ("memory layout of x_adv", {"momentum": x.contiguous(memory_format=torch.channels_last)}, RuntimeError),
        ("momentum must not overlap x_adv", {"momentum": x, "x_adv": x}, RuntimeError),
        ("momentum must not overlap grad", {"momentum": x, "grad": x}, RuntimeError),
        ("decay must be finite and at least 0, got -1", {"decay": -1.0}, ValueError),
        ("momentum must not require grad", {"momentum": x.clone().requires_grad_()}, ValueError),
    ):
        with pytest.raises(error, match=message):
            call(F.mifgsm_step_, **changes)
