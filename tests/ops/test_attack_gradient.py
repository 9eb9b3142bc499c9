"""The gradients that attacks follow, against autograd of the textbook losses in float64."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis_profiles import often
from property_tensors import EDGES, Layout, floats, layouts, permutation, same, seeds, with_edges
from tolerances import GRAD_RTOL, LOSS_RTOL

from ard_fast import functional as F
from ard_fast import reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LEAST_CLASSES = {"ce": 1, "kl": 1, "margin": 2, "dlr": 3, "dlr_targeted": 4}
LOSSES = list(LEAST_CLASSES)
# Around a vector, two vectors, a block of sums, and many.
CLASSES = [2, 3, 4, 5, 10, 15, 16, 17, 33, 100, 1000, 1025, 4099]
KINDS = ["plain", "wide", "tied", "sorted"]


def make_logits(kind: str, batch: int, classes: int, seed: int) -> torch.Tensor:
    """float32 `[batch, classes]`."""
    generator = torch.Generator().manual_seed(1000 * classes + seed)
    logits = 5 * torch.randn(batch, classes, generator=generator)
    if kind == "wide":  # the whole of +-200
        return 400 * torch.rand(batch, classes, generator=generator) - 200
    if kind == "tied":  # few values, so that equal logits are in every place
        return logits.div(4).round()
    if kind == "sorted":  # all the largest logits at one end
        return logits.sort(dim=1, descending=seed % 2 == 0).values
    return logits


def arguments(loss: str, logits: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, dict]:
    """Target and keywords for every row; labels at each of the first four places, and anywhere."""
    batch, classes = logits.shape
    generator = torch.Generator().manual_seed(seed)
    if loss == "kl":
        target = (4 * torch.randn(batch, classes, generator=generator)).to(logits)
        return target, {"loss": loss, "temperature": 3.0}
    labels = torch.randint(0, classes, (batch,), generator=generator)
    order = logits.float().cpu().sort(dim=1, descending=True, stable=True).indices
    for place in range(min(4, classes)):
        labels[place::6] = order[place::6, place]
    labels = labels.to(logits.device)
    if loss != "dlr_targeted":
        return labels, {"loss": loss}
    targets = (labels + 1 + torch.randint(0, classes - 1, (batch,), generator=generator).to(labels)) % classes
    targets[::5] = order[::5, 1].to(labels)
    return targets, {"loss": loss, "labels": labels}


def widened(target: torch.Tensor) -> torch.Tensor:
    return target.double() if target.is_floating_point() else target


def scale_of_rows(loss: str, logits: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """What the error of a gradient is measured by: the largest entry, or for DLR the terms that cancel in it."""
    scale = exact.abs().amax(dim=1, keepdim=True)
    if loss.startswith("dlr"):
        ranked = logits.double().sort(dim=1, descending=True).values
        scale = torch.maximum(scale, 1 / (ranked[:, :1] - ranked[:, 2:3] + 1e-12))
    return scale.clamp_min(1e-30)


def assert_matches_float64(logits: torch.Tensor, target: torch.Tensor, settings: dict) -> None:
    loss, dtype = settings["loss"], logits.dtype
    grad, rows, correct = F.attack_gradient(logits, target, with_rows=True, **settings)
    exact = reference.attack_gradient(logits.double(), widened(target), **settings)
    if loss == "ce":  # p - 1 cancels in float64 too when the label is certain, minus the sum of the others does not
        exact = exact.scatter(1, target[:, None], 0.0)
        exact = exact.scatter(1, target[:, None], -exact.sum(dim=1, keepdim=True))
    exact_rows = reference.attack_loss(logits.double(), widened(target), **settings)
    assert grad.dtype == dtype and grad.is_contiguous() and not grad.requires_grad
    assert rows.dtype == torch.float32
    largest = torch.finfo(dtype).max
    # Half cannot hold a DLR of (nearly) equal logits: it saturates.
    exact = exact.clamp(-largest, largest)
    # The step of half's subnormals; and e^x is 0 from e^-87 = 1.6e-38 down.
    floor = 6e-8 if dtype == torch.float16 else 2e-38
    error = ((grad.double() - exact).abs() - floor).clamp_min(0) / scale_of_rows(loss, logits, exact)
    assert error.max() <= GRAD_RTOL[dtype], f"gradient off by {error.max():.2e}"
    error = (rows.double() - exact_rows).abs() / exact_rows.abs().clamp_min(1e-6)
    assert error.max() <= LOSS_RTOL, f"loss off by {error.max():.2e}"
    if loss == "kl":
        assert correct is None
    else:
        y = settings.get("labels", target)
        first = logits.float().sort(dim=1, descending=True, stable=True).indices[:, 0]
        assert correct.dtype == torch.bool and correct.equal(first == y)
        assert correct.any() and (logits.shape[1] == 1 or not correct.all())
    assert F.attack_gradient(logits, target, **settings).equal(grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_against_float64(loss, kind, dtype, device):
    for classes in CLASSES:
        if classes < LEAST_CLASSES[loss]:
            continue
        for seed in (0, 1) if classes < 1000 else (classes % 2,):
            logits = make_logits(kind, 24 if classes < 1000 else 12, classes, seed).to(device, dtype)
            assert_matches_float64(logits, *arguments(loss, logits, seed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 30.0])
@pytest.mark.parametrize("distance", [0.01, 5.0, 100.0])
def test_gradient_for_the_target_logits(distance, temperature, dtype, device):
    """Near, middle and far rows: every way in which a row's divergence is finished."""
    for classes in (2, 10, 33, 1000, 1500):
        target = make_logits("plain", 8, classes, 0)
        logits = (target + distance * make_logits("plain", 8, classes, 1) / 5 + 20).to(device, dtype)
        target = target.to(device, dtype)
        settings = {"loss": "kl", "temperature": temperature, "with_target_grad": True}
        found, grad_target = F.attack_gradient(logits, target, with_rows=True, **settings)
        exact, exact_target = reference.attack_gradient(logits.double(), target.double(), **settings)
        for got, expected in ((found.grad, exact), (grad_target, exact_target)):
            assert got.dtype == dtype
            floor = {torch.float16: 6e-8, torch.float32: 1e-30}.get(dtype, 1e-30)
            # What the float64 formula itself cancels, beside the row's largest entry.
            floor += 1e-14 * temperature
            error = ((got.double() - expected).abs() - floor).clamp_min(0)
            error = error / expected.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
            assert error.max() <= GRAD_RTOL[dtype], f"gradient off by {error.max():.2e}"
        grad, again = F.attack_gradient(logits, target, **settings)
        assert grad.equal(found.grad) and again.equal(grad_target)


def sure_logits(batch: int, classes: int, seed: int) -> torch.Tensor:
    """float32 `[batch, classes]` whose largest leads by 1 to 80: confidences up to 1 - 1e-35."""
    logits = make_logits("plain", batch, classes, seed)
    lead = torch.linspace(1, 80, batch)[:, None] + logits.amax(1, keepdim=True)
    return logits.scatter(1, logits.argmax(1, keepdim=True), lead)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_scaled(loss, dtype, device, on_cpu):
    """Each row times a power of two that brings its largest entry into [1, 2); the rest is as without, to the bit."""
    for classes in (2, 4, 10, 17, 33, 1500):
        if classes < LEAST_CLASSES[loss]:
            continue
        for make in (sure_logits, *(lambda *a, kind=kind: make_logits(kind, *a) for kind in KINDS)):
            logits = make(24, classes, 0).to(device, dtype)
            target, settings = arguments(loss, logits)
            if loss == "ce":
                target[:12] = logits[:12].argmax(1)
            if loss == "kl":  # from far to near
                target = logits + torch.logspace(1, -4, 24, device=device)[:, None].to(dtype) * target
            (grad, rows, correct), scale = F.attack_gradient(logits, target, with_rows=True, scaled=True, **settings)
            plain = F.attack_gradient(logits.float(), widened(target).float() if loss == "kl" else target, **settings)
            assert grad.dtype == dtype and scale.dtype == torch.float32 and scale.shape == (24,)
            assert scale.log2().frac().eq(0).all()
            zero = plain.eq(0).all(1)
            largest = grad.float().abs().amax(1)
            assert largest[zero].eq(0).all() and scale[zero].eq(2.0**126).all()
            subnormal = plain.abs().amax(1) < 2.0**-126  # no factor is larger than 2^126
            assert (largest[~subnormal] >= 1).all() and (largest <= 2).all()
            again = F.attack_gradient(logits, target, with_rows=True, **settings)
            assert rows.equal(again.loss) and (correct is None or correct.equal(again.correct))
            # Float32's, times a power of two and rounded once; below 2^-126 bits are lost there.
            kept = plain.abs().ge(2.0**-126) | plain.eq(0)
            expected = (plain.double() * scale[:, None]).to(dtype)
            # A GPU sums a row of half numbers in another order, and may fuse what the two kernels multiply and add.
            rtol, atol = (0, 0) if on_cpu else (3e-7, 1e-38) if dtype == torch.float32 else (GRAD_RTOL[dtype], 2e-6)
            kept_grad, kept_expected = torch.where(kept, grad, 0), torch.where(kept, expected, 0)
            torch.testing.assert_close(kept_grad, kept_expected, rtol=rtol, atol=atol)
            exact = reference.attack_gradient(logits.double(), widened(target), **settings)
            if loss == "ce":
                exact = exact.scatter(1, target[:, None], 0.0)
                exact = exact.scatter(1, target[:, None], -exact.sum(dim=1, keepdim=True))
            # What cancels in the float64 p - q itself.
            floor = 1e-13 * scale[:, None].double() if loss == "kl" else 0.0
            error = (grad.double() - exact * scale[:, None].double()).abs() - floor
            bound = GRAD_RTOL[dtype] * scale_of_rows(loss, logits, exact) * scale[:, None].double()
            assert (error <= bound)[~zero].all()


def test_scaled_is_accurate_where_the_network_is_sure(device):
    """Label in front by 20 to 80: every entry to float32's precision, not only the largest."""
    gap = torch.arange(20.0, 81.0, 5.0, device=device)
    logits = torch.stack([gap, torch.zeros_like(gap), torch.full_like(gap, -3.0)], 1)
    grad, scale = F.attack_gradient(logits, torch.zeros_like(gap, dtype=torch.int64), scaled=True)
    others = (logits.double() - torch.logsumexp(logits.double(), 1, keepdim=True)).exp()[:, 1:]
    exact = torch.cat([-others.sum(1, keepdim=True), others], 1) * scale[:, None].double()
    torch.testing.assert_close(grad.double(), exact, rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distance", [0.01, 5.0, 100.0])
def test_scaled_gradients_for_the_target_have_the_same_factors(distance, dtype, device):
    for classes in (2, 10, 33, 1500):
        target = make_logits("plain", 8, classes, 0).to(device, dtype)
        logits = (target.float() + distance * make_logits("plain", 8, classes, 1).to(device) / 5).to(dtype)
        settings = {"loss": "kl", "temperature": 4.0, "with_target_grad": True}
        grad, grad_target, scale = F.attack_gradient(logits, target, scaled=True, **settings)
        plain = F.attack_gradient(logits.float(), target.float(), **settings)
        for got, expected in ((grad, plain[0]), (grad_target, plain[1])):
            expected = expected * scale[:, None]
            assert got.dtype == dtype and expected.abs().amax() < 6e4
            torch.testing.assert_close(got, expected.to(dtype), rtol=GRAD_RTOL[dtype], atol=1e-6)


@pytest.mark.parametrize("kappa", [0.0, 3.0, 50.0, math.inf])
def test_margin_is_switched_off_beyond_kappa(kappa, device):
    logits = torch.tensor([[60.0, 0, 1], [51.0, 1, 0], [4.0, 1, 0], [1.0, 1, 0], [0.0, 2, 1]], device=device)
    labels = torch.zeros(5, dtype=torch.int64, device=device)
    grad, rows, correct = F.attack_gradient(logits, labels, loss="margin", kappa=kappa, with_rows=True)
    gap = torch.tensor([59.0, 50.0, 3.0, 0.0, -2.0])
    assert rows.tolist() == ((-gap) if kappa == math.inf else -(gap + kappa).clamp_min(0)).tolist()
    on = torch.full((5,), True) if kappa == math.inf else gap + kappa > 0
    assert grad.abs().sum(1).tolist() == (2.0 * on).tolist()
    # -1 at the label, +1 at its rival; none at the kink itself, as relu has it.
    assert grad[:, 0].tolist() == (-1.0 * on).tolist()
    assert correct.tolist() == [True, True, True, True, False]


def test_equal_logits_go_to_the_lowest_class(device):
    logits = torch.tensor([[1.0, 3, 3, 2, 2, 0]] * 2, device=device)
    labels = torch.tensor([1, 2], device=device)
    for loss in ("ce", "margin", "dlr"):
        correct = F.attack_gradient(logits, labels, loss=loss, with_rows=True).correct
        assert correct.tolist() == [True, False]
    grad = F.attack_gradient(logits, labels, loss="margin")
    assert grad.tolist() == [[0, -1, 1, 0, 0, 0], [0, 1, -1, 0, 0, 0]]
    # z_(3) is class 3, not 4; the numerator is 0, so that the denominator has no gradient.
    assert F.attack_gradient(logits, labels, loss="dlr").tolist() == grad.tolist()


def test_dlr_of_a_label_in_third_place_is_flat(device):
    """-(z_(3) - z_(1)) / (z_(1) - z_(3)) is 1 wherever the logits move: the gradient is exactly 0, not noise."""
    logits = make_logits("plain", 64, 10, 0).to(device)
    labels = logits.topk(3).indices[:, 2].contiguous()
    assert F.attack_gradient(logits, labels, loss="dlr").eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_logits_equal(dtype, device):
    """The least denominator, 1e-12: huge but finite in every dtype."""
    logits = torch.full((1, 10), 2.5, device=device, dtype=dtype)
    labels, targets = torch.tensor([4], device=device), torch.tensor([7], device=device)
    largest = min(1e12, torch.finfo(dtype).max)
    expected = torch.zeros(10)
    expected[4], expected[0] = -largest, largest
    grad, rows, correct = F.attack_gradient(logits, labels, loss="dlr", with_rows=True)
    torch.testing.assert_close(grad[0].float().cpu(), expected, rtol=8e-3, atol=0)
    assert rows.tolist() == [0.0] and correct.tolist() == [False]
    expected[0], expected[7] = 0, largest
    grad = F.attack_gradient(logits, targets, loss="dlr_targeted", labels=labels)
    torch.testing.assert_close(grad[0].float().cpu(), expected, rtol=8e-3, atol=0)


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
        grid = torch.randint(-8 * self.scale, 8 * self.scale + 1, shape, generator=generator) / 8
        return with_edges(grid, self.share, EDGES, generator).to(self.dtype)

    def settings(self, rows=slice(None)):
        """target, labels and numbers as the loss takes them."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        target, labels = torch.randint(self.classes, (self.batch,), generator=generator), None
        if self.loss == "kl":
            target = torch.randn((self.batch, self.classes), generator=generator).to(self.dtype)
        elif self.loss == "dlr_targeted":
            target, labels = (target + 1 + self.seed % (self.classes - 1)) % self.classes, target
        numbers = {"loss": self.loss, "temperature": self.temperature, "kappa": self.kappa}
        return {"target": target[rows], "labels": labels if labels is None else labels[rows], **numbers}


@st.composite
def cases(draw, share=st.just(0.0), losses=LOSSES):  # noqa: B008 - a strategy
    widths = st.sampled_from((4, 5, 8, 10, 17, 100, 1025))
    return Case(
        *(draw(st.sampled_from(losses)), draw(st.integers(0, 6)), draw(widths), draw(seeds)),
        *(draw(st.sampled_from((0, 1, 4))), draw(floats), draw(layouts()), draw(share)),
        *(draw(st.sampled_from((0.25, 1.0, 4.0))), draw(st.sampled_from((0.0, 1.5, 50.0, math.inf)))),
    )


@given(cases())
@often
def test_any_arguments(case):
    """Gradient, rows and flags are the float64 ones."""
    logits, settings = case.logits(), case.settings()
    found = F.attack_gradient(case.layout.place(logits), with_rows=True, **settings)
    settings["target"] = widened(settings["target"])
    grad = reference.attack_gradient(logits.double(), **settings)
    loss = reference.attack_loss(logits.double(), **settings)
    limit = torch.finfo(case.dtype).max
    assert found.grad.dtype == case.dtype and found.loss.dtype == torch.float32
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
@often
def test_rows_do_not_see_one_another_nor_their_layout(case):
    logits = case.logits()
    whole = F.attack_gradient(logits, with_rows=True, **case.settings())
    placed = F.attack_gradient(case.layout.place(logits), with_rows=True, **case.settings())
    assert same(placed.grad, whole.grad) and same(placed.loss, whole.loss)
    assert same(F.attack_gradient(logits, **case.settings()), whole.grad)
    order = permutation(case.batch, case.seed)
    for rows in (order, order[:1]):
        part = F.attack_gradient(logits[rows], with_rows=True, **case.settings(rows))
        assert same(part.grad, whole.grad[rows]) and same(part.loss, whole.loss[rows])
        assert whole.correct is None or torch.equal(part.correct, whole.correct[rows])


@given(cases(losses=("kl",)))
def test_kl_is_the_gradient_of_the_distillation_loss(case):
    logits, target = case.logits().requires_grad_(), case.settings()["target"].requires_grad_()
    loss = F.kl_distill_loss(logits, target, temperature=case.temperature, reduction="sum")
    expected = torch.autograd.grad(loss, (logits, target))
    found = F.attack_gradient(logits, target, loss="kl", temperature=case.temperature, with_target_grad=True)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        slack = 2 * GRAD_RTOL[case.dtype] * b.float().abs().amax(1, keepdim=True)
        assert ((a.float() - b.float()).abs() <= slack + 1e-4 * (a.dtype != torch.float32)).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_drives_a_network_as_the_loss_itself_does(loss, device):
    torch.manual_seed(0)
    layer = torch.nn.Linear(20, 10, device=device)
    x = torch.randn(6, 20, device=device, requires_grad=True)
    logits = layer(x)
    target, settings = arguments(loss, logits.detach())
    (by_loss,) = torch.autograd.grad(reference.attack_loss(logits, target, **settings).sum(), x, retain_graph=True)
    (by_gradient,) = torch.autograd.grad(logits, x, F.attack_gradient(logits, target, **settings))
    torch.testing.assert_close(by_gradient, by_loss, rtol=1e-4, atol=1e-5)


def bad_calls():
    z, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    names = "'ce', 'kl', 'margin', 'dlr', 'dlr_targeted'"
    yield f"loss must be one of {names}, got 'mse'", (z, y), {"loss": "mse"}, ValueError
    yield "labels must be given for loss='dlr_targeted'", (z, y), {"loss": "dlr_targeted"}, ValueError
    yield "labels must be None for loss='ce'", (z, y), {"labels": y}, ValueError
    yield "with_target_grad needs loss='kl', got loss='ce'", (z, y), {"with_target_grad": True}, ValueError
    yield "kappa must be at least 0, got -1.0", (z, y), {"loss": "margin", "kappa": -1}, ValueError
    yield "kappa must be at least 0, got nan", (z, y), {"loss": "margin", "kappa": math.nan}, ValueError
    yield "kappa must be a number, got str", (z, y), {"loss": "margin", "kappa": "50"}, TypeError
    yield "temperature must be finite and above 0, got 0.0", (z, z), {"loss": "kl", "temperature": 0}, ValueError
    yield r"target must be logits of shape \[B, C\]", (z, z[0]), {"loss": "kl"}, RuntimeError
    yield "target must be float32, float16 or bfloat16, got torch.int64", (z, y), {"loss": "kl"}, TypeError
    yield "logits must be float32, float16 or bfloat16, got float64", (z.double(), y), {}, RuntimeError
    yield r"logits must be logits of shape \[B, C\] with C >= 2, got \[4\]$", (z[0], y), {}, RuntimeError
    yield r"C >= 2, got \[3, 0\]$", (z[:, :0], y), {}, RuntimeError
    for loss in ("ce", "margin", "dlr"):
        yield r"C >= 2, got \[3, 1\]; for a binary classifier", (z[:, :1], 0 * y), {"loss": loss}, RuntimeError
    yield r"C >= 2, got \[3, 1\]; for a binary classifier", (z[:, :1], z[:, :1]), {"loss": "kl"}, RuntimeError
    yield r"C >= 3 for this loss, got \[3, 2\]", (z[:, :2], 0 * y), {"loss": "dlr"}, RuntimeError
    yield (
        r"C >= 4 for this loss, got \[3, 3\]",
        (z[:, :3], 0 * y),
        {"loss": "dlr_targeted", "labels": y},
        RuntimeError,
    )
    yield r"labels must have shape \[3\], one class a row of logits, got \[2\]", (z, y[:2]), {}, RuntimeError
    yield r"labels must have shape \[3\], one class a row of logits, got \[3, 4\]", (z, z), {}, RuntimeError
    yield "labels must be int64, got int32", (z, y.int()), {}, RuntimeError
    yield r"labels must be in \[0, 4\), got 4 at position 2", (z, y + 2), {}, RuntimeError
    yield r"labels must be in \[0, 4\), got -1 at position 0", (z, y - 1), {"loss": "dlr"}, RuntimeError
    targeted = {"loss": "dlr_targeted", "labels": y}
    yield r"target_classes must be in \[0, 4\), got 4 at position 2", (z, y + 2), targeted, RuntimeError
    yield r"target_classes must have shape \[3\]", (z, y[:1]), targeted, RuntimeError


@pytest.mark.parametrize("message, tensors, settings, error", list(bad_calls()))
def test_bad_calls(message, tensors, settings, error):
    with pytest.raises(error, match=message):
        F.attack_gradient(*tensors, **settings)
