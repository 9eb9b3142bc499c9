"""The fused distillation losses against the textbook formula in float64."""

import functools
import math

import pytest
import torch
from tolerances import GRAD_RTOL, LOSS_RTOL

from ard_fast import functional as F
from ard_fast import reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
REDUCTIONS = ["none", "sum", "batchmean", "mean"]


def logits(kind: str, batch: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Student and teacher, float32."""
    generator = torch.Generator().manual_seed(seed)
    teacher = 3 * torch.randn(batch, classes, generator=generator)
    student = 3 * torch.randn(batch, classes, generator=generator)
    if kind == "wide":  # the whole of +-200
        teacher = 400 * torch.rand(batch, classes, generator=generator) - 200
        student = 400 * torch.rand(batch, classes, generator=generator) - 200
    elif kind == "learned":  # a student close to its teacher
        student = teacher + 0.01 * torch.randn(batch, classes, generator=generator)
    elif kind == "shifted":  # the same up to a constant, which softmax ignores
        student = teacher + 150 + 0.1 * torch.randn(batch, classes, generator=generator)
    return student, teacher


def ard(student_adv, teacher, clean=None, labels=None, *, module=F, **settings):
    return module.ard_loss(student_adv, teacher_logits=teacher, student_logits=clean, labels=labels, **settings)


def loss_and_grads(loss_fn, student, teacher, clean, labels, grad_output, settings):
    student = student.clone().requires_grad_()
    inputs = [student]
    arguments = [student, teacher]
    if clean is not None:
        clean = clean.clone().requires_grad_()
        inputs.append(clean)
        arguments += [clean, labels]
    loss = loss_fn(*arguments, **settings)
    return loss.detach(), torch.autograd.grad(loss, inputs, grad_output.to(loss.dtype).expand_as(loss))


def assert_close_to_float64(loss_fn, exact_fn, student, teacher, clean=None, labels=None, *, grad_output, **settings):
    """Loss and gradients of the fused loss against the same inputs in float64."""
    loss, grads = loss_and_grads(loss_fn, student, teacher, clean, labels, grad_output, settings)
    wide = [None if t is None else t.double() for t in (student, teacher, clean)]
    exact, exact_grads = loss_and_grads(exact_fn, *wide, labels, grad_output, settings)
    # float64's own cancellation is about 1e-16 of the logits' size: rows with less loss than that say nothing.
    floor = 1e-12 * settings.get("temperature", 1.0) ** 2
    assert loss.dtype == torch.float32
    error = ((loss.double() - exact).abs() - floor).clamp_min(0) / exact.abs().clamp_min(floor)
    assert error.max() <= LOSS_RTOL, f"loss off by {error.max():.2e}"
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert grad.dtype == student.dtype
        scale = exact_grad.abs().amax(dim=1, keepdim=True)
        error = (grad.double() - exact_grad).abs() / scale.clamp_min(1e-30)
        # A row whose gradient is below the smallest normal half (fp16) or float64's own noise is left out.
        smallest = 6.2e-5 if student.dtype == torch.float16 else 1e-12
        error = error[scale.squeeze(1) > smallest]
        assert error.numel() == 0 or error.max() <= GRAD_RTOL[student.dtype], f"gradient off by {error.max():.2e}"


# 2: the smallest; 3, 33: below and above a vector; 10, 100, 1000: the usual data sets; 1024, 1025: the border between
# the warp and the block kernel; 4099: a block's odd tail; 32003: a vocabulary, too long a float32 row for some GPUs.
@pytest.mark.parametrize("classes", [2, 3, 10, 33, 100, 1000, 1024, 1025, 4099, 32003])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("kind", ["random", "wide", "learned", "shifted"])
def test_kl_in_float32(classes, temperature, kind, device):
    student, teacher = (t.to(device) for t in logits(kind, 6, classes, seed=classes))
    for reduction in REDUCTIONS if kind == "random" else ["none"]:
        assert_close_to_float64(
            F.kl_distill_loss,
            reference.kl_distill_loss,
            student,
            teacher,
            grad_output=torch.tensor(1.0, device=device),
            temperature=temperature,
            reduction=reduction,
        )


@pytest.mark.parametrize("temperature", [0.1, 100.0])
@pytest.mark.parametrize("classes", [10, 1000, 100_000])
def test_extreme_temperatures_and_classes(temperature, classes, device):
    student, teacher = (t.to(device) for t in logits("random", 3, classes, seed=1))
    assert_close_to_float64(
        F.kl_distill_loss,
        reference.kl_distill_loss,
        student,
        teacher,
        grad_output=torch.tensor(1.0, device=device),
        temperature=temperature,
    )


def test_the_naive_float32_form_would_fail():
    """The tolerance means something: F.kl_div in float32 misses it where the fused loss holds it."""
    student, teacher = logits("random", 6, 32003, seed=2)
    exact = reference.kl_distill_loss(student.double(), teacher.double(), temperature=30.0)
    naive = reference.kl_distill_loss(student, teacher, temperature=30.0)
    fused = F.kl_distill_loss(student, teacher, temperature=30.0)
    assert abs(naive / exact - 1) > LOSS_RTOL > abs(fused / exact - 1)


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("alpha", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("classes", [7, 16, 1100])
def test_ard_loss(dtype, reduction, alpha, classes, device):
    """Both terms, all dtypes, and an incoming gradient that is not 1."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = (t.to(device, dtype) for t in logits("random", 5, classes, seed=4))
    clean = (3 * torch.randn(5, classes, generator=generator)).to(device, dtype)
    labels = torch.randint(classes, (5,), generator=generator).to(device)
    grad_output = torch.tensor([0.3, -2.0, 7.0, 0.5, 1e3] if reduction == "none" else 64.0, device=device)
    clean, labels = (clean, labels) if alpha < 1 else (None, None)
    assert_close_to_float64(
        ard,
        functools.partial(ard, module=reference),
        student,
        teacher,
        clean,
        labels,
        grad_output=grad_output,
        alpha=alpha,
        temperature=30.0 if classes != 16 else 2.0,
        reduction=reduction,
    )


def test_defaults_are_the_ard_codes(device):
    """alpha 1, T 30 and nn.KLDivLoss()'s 'mean': the loss that the published script prints."""
    student, teacher = (t.to(device) for t in logits("random", 128, 10, seed=5))
    published = (
        30.0
        * 30.0
        * torch.nn.KLDivLoss()(
            torch.nn.functional.log_softmax(student.double() / 30.0, dim=1),
            torch.nn.functional.softmax(teacher.double() / 30.0, dim=1),
        )
    )
    torch.testing.assert_close(F.ard_loss(student, teacher_logits=teacher).double(), published, rtol=LOSS_RTOL, atol=0)


def test_scale_t2(device):
    student, teacher = (t.to(device) for t in logits("random", 4, 10, seed=6))
    plain = F.kl_distill_loss(student, teacher, temperature=5.0, scale_t2=False)
    torch.testing.assert_close(25 * plain, F.kl_distill_loss(student, teacher, temperature=5.0))


def test_certain_labels(device):
    """The cross-entropy of a network that is right by 30: 1 - p would be 0 in float32, the loss is not."""
    clean = torch.zeros(1, 3, device=device)
    clean[0, 1] = 30.0
    labels = torch.tensor([1], device=device)
    zeros = torch.zeros(1, 3, device=device)
    assert_close_to_float64(
        ard,
        functools.partial(ard, module=reference),
        zeros,
        zeros,
        clean,
        labels,
        grad_output=torch.ones((), device=device),
        alpha=0.0,
    )
    assert 0 < ard(zeros, zeros, clean, labels, alpha=0.0) < 1e-12


def test_equal_logits_have_no_loss_and_no_gradient(device):
    student = (100 * torch.randn(4, 50, generator=torch.Generator().manual_seed(8))).to(device).requires_grad_()
    loss = F.kl_distill_loss(student, student.detach().clone(), temperature=3.0)
    assert loss == 0.0
    assert torch.autograd.grad(loss, student)[0].abs().max() == 0.0


def test_a_constant_shift_changes_nothing(device):
    """Integers plus a power of two: the shift is exact, so the results must be equal to the last bit."""
    generator = torch.Generator().manual_seed(9)
    student = torch.randint(-20, 20, (4, 50), generator=generator).float().to(device)
    teacher = torch.randint(-20, 20, (4, 50), generator=generator).float().to(device)
    plain = F.kl_distill_loss(student, teacher, temperature=7.0, reduction="none")
    assert F.kl_distill_loss(student + 1024, teacher, temperature=7.0, reduction="none").equal(plain)
    assert F.kl_distill_loss(student, teacher - 512, temperature=7.0, reduction="none").equal(plain)


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES)
def test_views(dtype, device):
    """Rows with a stride, rows that start anywhere, classes that are not contiguous."""
    student, teacher = (t.to(device, dtype) for t in logits("random", 5, 40, seed=10))
    for index in ((slice(None), slice(3, 36)), (slice(None, None, 2), slice(None)), (slice(1, None), slice(8, 40))):
        part_s, part_t = student[index], teacher[index]
        expected = F.kl_distill_loss(part_s.contiguous(), part_t.contiguous(), reduction="none")
        assert F.kl_distill_loss(part_s, part_t, reduction="none").equal(expected)
    across = F.kl_distill_loss(student.t()[:30], teacher.t()[:30], reduction="none")
    assert across.equal(
        F.kl_distill_loss(student.t()[:30].contiguous(), teacher.t()[:30].contiguous(), reduction="none")
    )
    # The gradient comes back through the view.
    leaf = student.clone().requires_grad_()
    F.kl_distill_loss(leaf[::2, 3:36], teacher[::2, 3:36]).backward()
    assert leaf.grad[1::2].abs().max() == 0 and leaf.grad[::2, 3:36].abs().max() > 0


def test_mixed_dtypes_meet_in_the_wider_one(device):
    student, teacher = (t.to(device) for t in logits("random", 4, 30, seed=11))
    mixed = F.kl_distill_loss(student, teacher.bfloat16())
    assert mixed.equal(F.kl_distill_loss(student, teacher.bfloat16().float()))
    half = student.bfloat16().requires_grad_()
    loss = F.kl_distill_loss(half, teacher)
    assert loss.equal(F.kl_distill_loss(half.detach().float(), teacher))
    assert torch.autograd.grad(loss, half)[0].dtype == torch.bfloat16


def test_a_float16_mean_over_many_classes_keeps_its_gradient():
    """With a loss scale, as under GradScaler: what is representable at the end must not underflow on the way."""
    student, teacher = logits("random", 64, 1000, seed=12)
    half = student.half().requires_grad_()
    loss = ard(half, teacher.half()) * 65536.0
    (grad,) = torch.autograd.grad(loss, half)
    exact = student.half().double().requires_grad_()
    (expected,) = torch.autograd.grad(
        reference.ard_loss(exact, teacher_logits=teacher.half().double()) * 65536.0, exact
    )
    assert (grad.double() - expected).norm() / expected.norm() < 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_second_backward_through_a_retained_graph(dtype, device):
    student, teacher = (t.to(device, dtype) for t in logits("random", 5, 12, seed=13))
    clean = student.clone().requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 4], device=device)
    student = student.requires_grad_()
    loss = ard(student, teacher, clean, labels, alpha=0.5, temperature=4.0)
    first = torch.autograd.grad(loss, [student, clean], torch.tensor(3.0, device=device), retain_graph=True)
    kept = [grad.clone() for grad in first]
    second = torch.autograd.grad(loss, [student, clean], torch.tensor(3.0, device=device), retain_graph=True)
    third = torch.autograd.grad(loss, [student, clean], torch.tensor(-6.0, device=device))
    for a, kept_a, b, c in zip(first, kept, second, third, strict=True):
        assert a.equal(kept_a) and a.equal(b)
        torch.testing.assert_close(c, -2 * a)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, student)


def test_accumulates_like_any_other_gradient(device):
    student, teacher = (t.to(device) for t in logits("random", 5, 12, seed=14))
    student = student.requires_grad_()
    (F.kl_distill_loss(student, teacher) + 2 * F.kl_distill_loss(student, teacher, temperature=3.0)).backward()
    exact = student.detach().double().requires_grad_()
    other = teacher.double()
    sum_ = reference.kl_distill_loss(exact, other) + 2 * reference.kl_distill_loss(exact, other, temperature=3.0)
    sum_.backward()
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=1e-4, atol=1e-7)


def test_no_gradient_work_without_need(device):
    student, teacher = (t.to(device) for t in logits("random", 5, 12, seed=15))
    assert F.kl_distill_loss(student, teacher).grad_fn is None
    with torch.no_grad():
        assert F.kl_distill_loss(student.requires_grad_(), teacher).grad_fn is None


def test_double_backward_is_refused(device):
    student, teacher = (t.to(device) for t in logits("random", 2, 5, seed=16))
    student.requires_grad_()
    (grad,) = torch.autograd.grad(F.kl_distill_loss(student, teacher) ** 2, student, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        grad.sum().backward()


def test_empty_batch(device):
    empty = torch.empty(0, 10, device=device)
    assert F.kl_distill_loss(empty, empty, reduction="none").shape == (0,)
    assert F.kl_distill_loss(empty, empty, reduction="sum") == 0.0
    leaf = empty.clone().requires_grad_()
    F.kl_distill_loss(leaf, empty, reduction="sum").backward()
    assert leaf.grad.shape == (0, 10)
    for reduction in ("mean", "batchmean"):
        with pytest.raises(ValueError, match="at least one row"):
            F.kl_distill_loss(empty, empty, reduction=reduction)


def bad_calls():
    s, labels = torch.randn(3, 4), torch.tensor([0, 1, 2])
    yield (
        r"teacher_logits must have the shape of student_adv_logits \[3, 4\], got \[3, 5\]",
        (s, torch.randn(3, 5)),
        {},
        RuntimeError,
    )
    yield r"student_adv_logits must be logits of shape \[B, C\] with C >= 2, got \[4\]", (s[0], s[0]), {}, RuntimeError
    yield "with C >= 2", (s[:, :0], s[:, :0]), {"reduction": "sum"}, RuntimeError
    one = (
        r"got \[3, 1\]; for a binary classifier whose one logit is z give torch.cat\(\[torch.zeros_like\(z\), z\], 1\)"
    )
    yield one, (s[:, :1], s[:, :1]), {}, RuntimeError  # whose loss would be 0, whatever the logits
    yield "teacher_logits must be float32, float16 or bfloat16, got torch.float64", (s, s.double()), {}, TypeError
    yield "teacher_logits must not require grad", (s, s.clone().requires_grad_()), {}, ValueError
    yield "temperature must be finite and above 0, got 0.0", (s, s), {"temperature": 0}, ValueError
    yield "temperature must be finite and above 0, got nan", (s, s), {"temperature": math.nan}, ValueError
    yield (
        "reduction must be one of 'none', 'sum', 'batchmean', 'mean', got 'avg'",
        (s, s),
        {"reduction": "avg"},
        ValueError,
    )
    yield r"alpha must be in \[0, 1\], got 1.5", (s, s, s, labels), {"alpha": 1.5}, ValueError
    yield r"alpha must be in \[0, 1\], got nan", (s, s, s, labels), {"alpha": math.nan}, ValueError
    yield "student_logits must be given when alpha < 1", (s, s), {"alpha": 0.5}, ValueError
    yield "labels must be given when alpha < 1", (s, s, s), {"alpha": 0.5}, ValueError
    yield "^student_adv_logits must be float32", (s.long(), s), {}, TypeError
    yield "labels must be int64, got int32", (s, s, s, labels.int()), {"alpha": 0.5}, RuntimeError
    yield (
        r"labels must have shape \[3\], one entry a sample, got \[2\]",
        (s, s, s, labels[:2]),
        {"alpha": 0.5},
        RuntimeError,
    )
    yield r"labels must be in \[0, 4\), got 4 at position 1", (s, s, s, labels + 3), {"alpha": 0.5}, RuntimeError
    yield r"labels must be in \[0, 4\), got -100", (s, s, s, labels - 100), {"alpha": 0.5}, RuntimeError
    mismatch = "^student_logits must have the shape of student_adv_logits"
    yield mismatch, (s, s, s[:, :2], labels), {"alpha": 0.5}, RuntimeError


@pytest.mark.parametrize("message, tensors, settings, error", list(bad_calls()))
def test_bad_calls(message, tensors, settings, error):
    with pytest.raises(error, match=message):
        ard(*tensors, **settings)


def test_the_clean_student_of_rslad_cannot_be_left_out():
    s = torch.randn(3, 4)
    with pytest.raises(TypeError, match=r"^student_logits must be a torch tensor .*, got NoneType"):
        F.rslad_loss(s, student_logits=None, teacher_logits=s)


@pytest.mark.gpu
@pytest.mark.sanitizer
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_label_out_of_range_on_cuda_makes_its_row_nan():
    s = torch.randn(3, 40, device="cuda")
    clean = s.clone().requires_grad_()
    rows = ard(s, s, clean, torch.tensor([0, 40, -1], device="cuda"), alpha=0.5, reduction="none")
    assert rows.isnan().tolist() == [False, True, True]
    assert torch.autograd.grad(rows.sum(), clean)[0].isnan().all(1).tolist() == [False, True, True]
