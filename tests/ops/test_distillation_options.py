"""Weights of samples, temperatures of the teacher, a live teacher and a second student: against float64."""

import functools
import math

import pytest
import torch
from loss_cases import (
    DTYPES,
    KINDS,
    REDUCTIONS,
    assert_matches_float64,
    incoming_gradient,
    random_labels,
    rows_of_logits,
)

from ard_fast import functional as F
from ard_fast import reference

B = 5


def options(name, device):
    """Settings of the losses by name, for B samples."""
    weight = torch.tensor([0.0, 0.5, 1.0, 2.5, 7.0], device=device)
    temperatures = torch.tensor([0.5, 1.0, 1.7, 3.0, 5.0], device=device)
    return {
        "none": {},
        "weight": {"weight": weight, "temperature": 2.0},
        "teacher": {"teacher_temperature": 3.0, "temperature": 2.0},
        "per sample": {"teacher_temperature": temperatures},
        "all": {"teacher_temperature": temperatures, "weight": weight, "temperature": 30.0},
    }[name]


def rslad(module, adv, clean, teacher, **settings):
    return module.rslad_loss(adv, student_logits=clean, teacher_logits=teacher, **settings)


def in_float64(settings):
    return {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in settings.items()}


# 2: the smallest; 10, 100, 1000: the usual data sets; 33: past a vector; 1025, 4099: a block a row, with an odd tail.
@pytest.mark.sanitizer
@pytest.mark.parametrize("name", ["none", "weight", "teacher", "per sample", "all"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 10, 33, 100, 1000, 1025, 4099])
def test_live_teacher(classes, kind, name, device):
    """Student and teacher both get their gradient, whatever the options."""
    tensors = rows_of_logits(kind, 2, B, classes, torch.float32, device)
    settings = options(name, device)
    floor = 1e-12 * settings.get("temperature", 1.0) ** 2
    if kind == "close" and "teacher_temperature" in settings:
        pytest.skip("temperatures that differ bring the two apart")
    assert_matches_float64(
        functools.partial(F.kl_distill_loss, **settings, reduction="none"),
        functools.partial(reference.kl_distill_loss, **in_float64(settings), reduction="none"),
        tensors,
        incoming_gradient("none", B, device),
        floor=10 * floor,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["none", "all"])
def test_live_teacher_reductions(name, reduction, dtype, device):
    for classes in (10, 37):
        settings = options(name, device) | {"reduction": reduction}
        assert_matches_float64(
            functools.partial(F.kl_distill_loss, **settings),
            functools.partial(reference.kl_distill_loss, **in_float64(settings)),
            rows_of_logits("plain", 2, B, classes, dtype, device),
            incoming_gradient(reduction, B, device),
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_weighted_ard_loss(alpha, reduction, dtype, device):
    weight = torch.tensor([0.0, 0.5, 1.0, 2.5, 7.0], device=device)
    student, clean, teacher = rows_of_logits("plain", 3, B, 12, dtype, device)
    labels = random_labels(B, 12, device)

    def loss(module, s, c, w):
        settings = {"alpha": alpha, "temperature": 4.0, "reduction": reduction, "weight": w}
        # With alpha = 1 the clean logits have no part in it; the product gives them their zero gradient.
        return (
            module.ard_loss(s, teacher_logits=teacher.to(s.dtype), student_logits=c, labels=labels, **settings)
            + 0.0 * c.float().sum()
        )

    assert_matches_float64(
        lambda s, c: loss(F, s, c, weight),
        lambda s, c: loss(reference, s, c, weight.double()),
        [student, clean],
        incoming_gradient(reduction, B, device),
    )


@pytest.mark.sanitizer
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 10, 33, 100, 1000, 1025, 4099])
def test_rslad(classes, kind, device):
    *students, teacher = rows_of_logits(kind, 3, B, classes, torch.float32, device)
    for name in ["none", "weight", "per sample"] if kind != "close" else ["none", "weight"]:
        settings = options(name, device) | {"reduction": "none"}
        if name == "per sample":
            settings["clean_teacher_temperature"] = 2.0 * settings["teacher_temperature"].flip(0)
        assert_matches_float64(
            lambda adv, clean, s=settings: rslad(F, adv, clean, teacher, **s),
            lambda adv, clean, s=settings: rslad(reference, adv, clean, teacher.double(), **in_float64(s)),
            students,
            incoming_gradient("none", B, device),
            floor=1e-11,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_rslad_reductions(reduction, dtype, device):
    for classes in (10, 37):
        *students, teacher = rows_of_logits("plain", 3, B, classes, dtype, device)
        settings = {"reduction": reduction, "temperature": 2.0, "adv_weight": 3.0, "clean_weight": 0.5}
        settings |= {"teacher_temperature": 3.0, "clean_teacher_temperature": 0.7}
        assert_matches_float64(
            lambda adv, clean, t=teacher, s=settings: rslad(F, adv, clean, t, **s),
            lambda adv, clean, t=teacher, s=settings: rslad(reference, adv, clean, t.double(), **s),
            students,
            incoming_gradient(reduction, B, device),
        )


def test_rslad_is_its_two_terms(device):
    adv, clean, teacher = rows_of_logits("plain", 3, B, 10, torch.float32, device)
    temperatures = {"teacher_temperature": 2.0, "clean_teacher_temperature": 5.0}
    rows = rslad(F, adv, clean, teacher, reduction="none", **temperatures)
    first = F.kl_distill_loss(adv, teacher, reduction="none", teacher_temperature=2.0)
    second = F.kl_distill_loss(clean, teacher, reduction="none", teacher_temperature=5.0)
    torch.testing.assert_close(rows, 5 / 6 * first + 1 / 6 * second)
    # One temperature serves both terms when the second is not given.
    one = rslad(F, adv, clean, teacher, teacher_temperature=2.0)
    assert one.equal(rslad(F, adv, clean, teacher, teacher_temperature=2.0, clean_teacher_temperature=2.0))


def test_equal_temperatures_keep_every_digit(device):
    """The teacher's temperature, given but the student's: the bits of the loss without it."""
    student, teacher = rows_of_logits("close", 2, B, 50, torch.float32, device)
    plain = F.kl_distill_loss(student, teacher, temperature=4.0, reduction="none")
    for same in (4.0, torch.full((B,), 4.0, device=device), torch.tensor(4.0, device=device)):
        given = F.kl_distill_loss(student, teacher, temperature=4.0, teacher_temperature=same, reduction="none")
        assert given.equal(plain)


def test_a_weight_of_one_changes_nothing(device):
    student, teacher = rows_of_logits("plain", 2, B, 50, torch.float32, device)
    ones = torch.ones(B, device=device)
    plain = F.kl_distill_loss(student, teacher, reduction="none")
    assert F.kl_distill_loss(student, teacher, reduction="none", weight=ones).equal(plain)
    # Other dtypes and strides of the weight are taken as they are.
    halves = torch.full((2 * B,), 0.5, device=device, dtype=torch.float64)[::2]
    assert F.kl_distill_loss(student, teacher, reduction="none", weight=halves).equal(plain * 0.5)


@pytest.mark.parametrize("which", [(True, False), (False, True)])
def test_only_what_is_asked_for(which, device):
    student, teacher = rows_of_logits("plain", 2, B, 10, torch.float32, device)
    both = [t.clone().requires_grad_() for t in (student, teacher)]
    expected = torch.autograd.grad(F.kl_distill_loss(*both), both)
    leaves = [t.clone().requires_grad_(need) for t, need in zip((student, teacher), which, strict=True)]
    F.kl_distill_loss(*leaves).backward()
    for leaf, need, grad in zip(leaves, which, expected, strict=True):
        assert leaf.grad.equal(grad) if need else leaf.grad is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_second_backward_and_mixed_dtypes(dtype, device):
    """A float32 teacher of a student of any dtype gets its gradient in float32."""
    student = rows_of_logits("plain", 1, B, 10, dtype, device)[0].requires_grad_()
    teacher = rows_of_logits("plain", 1, B, 10, torch.float32, device, seed=1)[0].requires_grad_()
    weight = torch.rand(B, device=device)
    loss = F.kl_distill_loss(student, teacher, weight=weight, teacher_temperature=weight + 1.0)
    first = torch.autograd.grad(3.0 * loss, [student, teacher], retain_graph=True)
    kept = [grad.clone() for grad in first]
    second = torch.autograd.grad(-6.0 * loss, [student, teacher])
    for grad, as_was, again, leaf in zip(first, kept, second, (student, teacher), strict=True):
        assert grad.dtype == leaf.dtype and grad.equal(as_was)
        torch.testing.assert_close(again, -2 * grad)


def test_double_backward_is_refused(device):
    student, teacher = rows_of_logits("plain", 2, B, 10, torch.float32, device)
    teacher.requires_grad_()
    (grad,) = torch.autograd.grad(F.kl_distill_loss(student, teacher) ** 2, teacher, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        grad.sum().backward()


def test_classes_without_probability(device):
    """Excluded by the teacher: no cost and no gradient to it; by the second student too."""
    teacher = torch.tensor([[1.0, 2.0, -math.inf, 0.5]], device=device).requires_grad_()
    student = torch.tensor([[1.0, 0.0, -math.inf, 0.5]], device=device).requires_grad_()
    kept = [0, 1, 3]
    for tempered in (None, 3.0):
        loss = F.kl_distill_loss(student, teacher, teacher_temperature=tempered)
        grads = torch.autograd.grad(loss, [student, teacher])
        fewer = [t.detach()[:, kept].requires_grad_() for t in (student, teacher)]
        expected = F.kl_distill_loss(*fewer, teacher_temperature=tempered)
        torch.testing.assert_close(loss, expected)
        for grad, wanted in zip(grads, torch.autograd.grad(expected, fewer), strict=True):
            torch.testing.assert_close(grad[:, kept], wanted)
            assert grad[0, 2] == 0.0
    frozen = teacher.detach()
    rows = rslad(F, student, student, frozen, reduction="sum")
    torch.testing.assert_close(rows, F.kl_distill_loss(student, frozen, reduction="sum"))


def test_empty_batch(device):
    empty, none = torch.empty(0, 10, device=device), torch.empty(0, device=device)
    leaves = [empty.clone().requires_grad_() for _ in range(2)]
    settings = {"weight": none, "teacher_temperature": none, "reduction": "sum"}
    assert F.kl_distill_loss(empty, empty, **settings | {"reduction": "none"}).shape == (0,)
    loss = F.kl_distill_loss(*leaves, **settings)
    loss.backward()
    assert loss == 0.0 and leaves[0].grad.shape == leaves[1].grad.shape == (0, 10)
    assert rslad(F, *leaves, empty, **settings, clean_teacher_temperature=none) == 0.0
    with pytest.raises(ValueError, match="at least one row"):
        rslad(F, *leaves, empty)


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES)
def test_views(dtype, device):
    """Rows with a stride and rows that start anywhere."""
    adv, clean, teacher = rows_of_logits("plain", 3, 6, 40, dtype, device)
    for index in ((slice(None), slice(3, 36)), (slice(None, None, 2), slice(None)), (slice(1, None), slice(8, 40))):
        parts = [t[index] for t in (adv, clean, teacher)]
        expected = rslad(F, *[part.contiguous() for part in parts], reduction="none")
        torch.testing.assert_close(rslad(F, *parts, reduction="none"), expected, rtol=1e-6, atol=0)


def bad_calls():
    s, w = torch.randn(3, 4), torch.ones(3)
    leaf = s.clone().requires_grad_()
    kl, clean_too = F.kl_distill_loss, functools.partial(rslad, F)
    yield r"weight must have shape \[3\], one entry a sample, got \[2\]", kl, (s, s), {"weight": w[:2]}, RuntimeError
    yield r"weight must have shape \[3\]", kl, (s, s), {"weight": w[:, None]}, RuntimeError
    yield "weight must be a torch tensor or an array .* got float", kl, (s, s), {"weight": 2.0}, TypeError
    yield "weight must not require grad", kl, (s, s), {"weight": w.clone().requires_grad_()}, ValueError
    yield "teacher_temperature must be finite and above 0", kl, (s, s), {"teacher_temperature": 0.0}, ValueError
    yield "teacher_temperature must be a number, got str", kl, (s, s), {"teacher_temperature": "2"}, TypeError
    yield r"teacher_temperature must have shape \[3\]", kl, (s, s), {"teacher_temperature": w[:2]}, RuntimeError
    yield "teacher_temperature must be positive, got 0 at", kl, (s, s), {"teacher_temperature": w - 1}, RuntimeError
    yield (
        "clean_teacher_temperature must be positive",
        clean_too,
        (s, s, s),
        {"clean_teacher_temperature": -w},
        RuntimeError,
    )
    yield (
        "clean_teacher_temperature must be finite",
        clean_too,
        (s, s, s),
        {"clean_teacher_temperature": -1},
        ValueError,
    )
    yield "adv_weight must be finite and at least 0", clean_too, (s, s, s), {"adv_weight": -1.0}, ValueError
    yield "clean_weight must be finite and at least 0", clean_too, (s, s, s), {"clean_weight": math.nan}, ValueError
    yield "teacher_logits must not require grad", clean_too, (s, s, leaf), {}, ValueError
    yield "reduction must be one of", clean_too, (s, s, s), {"reduction": "avg"}, ValueError
    yield r"student_logits must have the shape of student_adv_logits", clean_too, (s, s[:2], s), {}, RuntimeError
    yield "teacher_logits must be float32, float16 or bfloat16", clean_too, (s, s, s.double()), {}, TypeError


@pytest.mark.parametrize("message, function, tensors, settings, error", list(bad_calls()))
def test_bad_calls(message, function, tensors, settings, error):
    with pytest.raises(error, match=message):
        function(*tensors, **settings)


@pytest.mark.gpu
@pytest.mark.sanitizer
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_temperature_out_of_range_on_cuda_makes_its_row_nan():
    s, t = torch.randn(2, 3, 40, device="cuda")
    temperatures = torch.tensor([1.0, 0.0, -1.0], device="cuda")
    rows = F.kl_distill_loss(s, t, teacher_temperature=temperatures, reduction="none")
    assert rows.isnan().tolist() == [False, True, True]
