"""The CUDA kernels of the distillation loss, run on the host emulator, against float64 and the CPU op."""

from __future__ import annotations

import math

import emulator
import pytest
import torch
from test_emulated_pgd import guards_intact, placed

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Relative error allowed: of the row loss, and of the gradient (whose last rounding is to the input's dtype).
LOSS_RTOL = 2e-5
GRAD_RTOL = {torch.float32: 1e-4, torch.float16: 1.1e-3, torch.bfloat16: 8e-3}
# Of the row's largest gradient: what cancels in p - q below it.
GRAD_ATOL = 1e-6
# What cancels in the float64 p - q itself, and the steps of half's subnormals.
TINY = {torch.float32: 1e-15, torch.float16: 6e-8, torch.bfloat16: 1e-15}
VARIANTS = ["warp", "block", "block_uncached"]
KINDS = ["near", "plain", "far", "equal", "shifted"]


def logits(kind: str, rows: int, classes: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Student and teacher logits [rows, classes] that lie as close to one another as `kind` says."""
    generator = torch.Generator().manual_seed(1000 * classes + seed)
    teacher = torch.randn(rows, classes, generator=generator) * 4
    noise = torch.randn(rows, classes, generator=generator)
    student = {
        "near": teacher + 0.05 * noise,
        "plain": 3 * noise,
        "far": 200 * torch.sign(noise) * torch.rand(rows, classes, generator=generator).sqrt(),
        "equal": teacher,
        "shifted": teacher + 0.5 * noise + 150.0,
    }[kind]
    if kind == "far":
        teacher = teacher.sign() * 200
    return student.to(dtype), teacher.to(dtype)


def kl64(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Row KL(teacher || student) and d KL / d student in float64, with 0 log 0 = 0."""
    log_p = torch.log_softmax(student.double() / temperature, dim=1)
    log_q = torch.log_softmax(teacher.double() / temperature, dim=1)
    q = log_q.exp()
    return torch.where(q > 0, q * (log_q - log_p), 0.0).sum(1), (log_p.exp() - q) / temperature


def ce64(clean: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row cross-entropy and its gradient in float64."""
    log_p = torch.log_softmax(clean.double(), dim=1)
    one_hot = torch.nn.functional.one_hot(labels, clean.shape[1])
    return -log_p.gather(1, labels[:, None])[:, 0], log_p.exp() - one_hot


def assert_loss(got: torch.Tensor, expected: torch.Tensor, floor: float = 1e-12, rtol: float = LOSS_RTOL) -> None:
    error = (got.double() - expected).abs()
    assert (error <= rtol * expected.abs() + floor).all(), (got, expected)


def assert_grad(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert got.dtype == dtype
    error = (got.double() - expected).abs()
    bound = GRAD_RTOL[dtype] * expected.abs() + GRAD_ATOL * expected.abs().amax(1, keepdim=True) + TINY[dtype]
    worst = (error / bound).max()
    assert worst <= 1, f"error is {worst:.3g} of what is allowed"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("kind", KINDS)
def test_kl(kind: str, temperature: float, variant: str) -> None:
    # Around a warp, around the vector width, and what is left over of both.
    for classes in [2, 7, 10, 32, 33, 129, 1000]:
        student, teacher = logits(kind, 3, classes, torch.float32)
        loss, grad, _ = emulator.kd_loss(student, teacher, temperature=temperature, variant=variant)
        expected, expected_grad = kl64(student, teacher, temperature)
        assert_loss(loss, expected)
        assert_grad(grad, expected_grad, torch.float32)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 30.0])
def test_gradient_for_the_teacher(temperature: float, dtype: torch.dtype, variant: str) -> None:
    for kind in ["near", "plain", "far"]:
        for classes in [2, 10, 64, 129]:
            student, teacher = logits(kind, 3, classes, dtype)
            grad_teacher = torch.full_like(teacher, math.nan)
            options = {"temperature": temperature, "variant": variant}
            with_it = emulator.kd_loss(student, teacher, grad_teacher=grad_teacher, **options)
            without = emulator.kd_loss(student, teacher, **options)
            assert torch.equal(with_it[0], without[0]) and torch.equal(with_it[1], without[1])
            log_p = torch.log_softmax(student.double() / temperature, dim=1)
            log_q = torch.log_softmax(teacher.double() / temperature, dim=1)
            q, cost = log_q.exp(), log_q - log_p
            expected = q * (cost - (q * cost).sum(1, keepdim=True)) / temperature
            scale = expected.abs().amax(1, keepdim=True)
            error = (grad_teacher.double() - expected).abs() - TINY[dtype] * 10
            assert (error <= GRAD_RTOL[dtype] * scale).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 30.0])
def test_scaled_gradients(temperature: float, dtype: torch.dtype, variant: str) -> None:
    """Those of float32 times the powers of two that bring the student's largest into [1, 2); equal rows stay 0."""
    for kind in KINDS:
        for classes in [2, 10, 64, 129]:
            student, teacher = logits(kind, 3, classes, dtype)
            grads = torch.full_like(teacher, math.nan), torch.full_like(teacher.float(), math.nan)
            scale = torch.full((3,), math.nan)
            options = {"temperature": temperature, "kl_weight": temperature**2, "variant": variant}
            loss, grad, _ = emulator.kd_loss(student, teacher, grad_teacher=grads[0], grad_scale=scale, **options)
            plain = emulator.kd_loss(student.float(), teacher.float(), grad_teacher=grads[1], **options)
            # The same bits in float32; half's vectors are longer, and the order of the sums is another.
            rtol, atol = (0, 0) if dtype == torch.float32 else (GRAD_RTOL[dtype], 2e-5)
            assert_loss(loss, plain[0].double())
            for got, expected in ((grad, plain[1]), (grads[0], grads[1])):
                expected = (expected * scale[:, None]).to(dtype)
                torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)
            zero = plain[1].eq(0).all(1)
            assert zero.all() or kind != "equal"
            largest = grad.float().abs().amax(1)
            assert largest[zero].eq(0).all() and scale[zero].eq(2.0**126).all()
            assert (largest[~zero] >= 1).all() and (largest[~zero] <= 2).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_far_rows_of_huge_logits(variant: str) -> None:
    """The largest class has the weight 1, however the product before it is rounded."""
    student, teacher = torch.tensor([[1e15, -0.44, -1.49], [-3e9, 1e10, 7.0]]), torch.tensor([[0.07, -1.07, 0.12]] * 2)
    for temperature in (1.0, 3.0, 20.0):
        loss, grad, _ = emulator.kd_loss(student, teacher, temperature=temperature, variant=variant)
        expected, expected_grad = kl64(student, teacher, temperature)
        assert_loss(loss, expected)
        assert_grad(grad, expected_grad, torch.float32)


@pytest.mark.parametrize("variant", ["warp", "block"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.1, 4.0, 100.0])
def test_dtypes_and_extreme_temperatures(temperature: float, dtype: torch.dtype, variant: str) -> None:
    for kind in KINDS:
        for classes in [2, 10, 65]:
            student, teacher = logits(kind, 3, classes, dtype, seed=1)
            loss, grad, _ = emulator.kd_loss(student, teacher, temperature=temperature, variant=variant)
            expected, expected_grad = kl64(student, teacher, temperature)
            # At T = 100 the rows of "near" have a KL of 1e-8: the temperature's own rounding is part of it.
            assert_loss(loss, expected, rtol=5e-5)
            assert_grad(grad, expected_grad, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1024, 1025, 4099, 32003])
def test_many_classes(classes: int, dtype: torch.dtype) -> None:
    for kind in ["near", "plain", "far"]:
        for temperature in [1.0, 30.0]:
            student, teacher = logits(kind, 2, classes, dtype)
            labels = torch.tensor([0, classes - 1])
            loss, grad, grad_clean = emulator.kd_loss(
                student, teacher, student, labels, temperature=temperature, kl_weight=0.25, clean_weight=0.75
            )
            kl, kl_grad = kl64(student, teacher, temperature)
            ce, ce_grad = ce64(student, labels)
            assert_loss(loss, 0.25 * kl + 0.75 * ce)
            assert_grad(grad, 0.25 * kl_grad, dtype)
            assert_grad(grad_clean, 0.75 * ce_grad, dtype)


@pytest.mark.parametrize("variant", ["warp", "block"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cross_entropy_part(dtype: torch.dtype, variant: str) -> None:
    for classes in [2, 5, 10, 33, 100, 300]:
        for scale in [1.0, 30.0, 200.0]:
            clean, teacher = (t.to(dtype) for t in logits("plain", 4, classes, torch.float32, seed=2))
            clean = (clean.float() * scale).clamp(-200, 200).to(dtype)
            labels = torch.tensor([0, classes - 1, int(clean[2].argmax()), int(clean[3].argmin())])
            loss, grad, grad_clean = emulator.kd_loss(
                teacher, teacher, clean, labels, temperature=2.0, kl_weight=4.0, clean_weight=0.5, variant=variant
            )
            ce, ce_grad = ce64(clean, labels)
            assert_loss(loss, 0.5 * ce)
            assert_grad(grad_clean, 0.5 * ce_grad, dtype)
            assert (grad == 0).all()  # the KL of a row with itself


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_students_weights_and_temperatures(dtype: torch.dtype, variant: str) -> None:
    """The KL of both students to one teacher, which has a temperature for each and each sample."""
    weight, first, second = torch.tensor([[0.0, 0.5, 3.0], [0.5, 1.0, 5.0], [2.0, 1.0, 0.7]])
    for kind in ["plain", "far"]:
        for classes in [2, 10, 33, 64, 129]:
            student, teacher = logits(kind, 3, classes, dtype)
            clean = logits("plain", 3, classes, dtype, seed=5)[0]
            loss, grad, grad_clean = emulator.kd_loss(
                student,
                teacher,
                clean,
                temperature=2.0,
                teacher_temperature=first,
                clean_teacher_temperature=second,
                kl_weight=0.75,
                clean_weight=0.25,
                weight=weight,
                variant=variant,
            )
            rows = []
            for own, temperatures in ((student, first), (clean, second)):
                # As kl64, whose temperatures are equal: the teacher brought to its own.
                scaled = teacher.double() * (2.0 / temperatures.double()[:, None])
                rows.append(kl64(own, scaled, 2.0))
            by = weight.double()
            assert_loss(loss, by * (0.75 * rows[0][0] + 0.25 * rows[1][0]), floor=1e-9)
            for got, (_, expected), factor in zip((grad, grad_clean), rows, (0.75, 0.25), strict=True):
                wanted = factor * by[:, None] * expected
                # The gap of rounded numbers: what cancels in it is 1e-7 of the scaled logits.
                error = (got.double() - wanted).abs() - 100 * TINY[dtype]
                assert (error <= (GRAD_RTOL[dtype] + 1e-4) * wanted.abs().amax(1, keepdim=True)).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_for_a_tempered_teacher(variant: str) -> None:
    for classes in [2, 10, 64, 129]:
        student, teacher = logits("plain", 3, classes, torch.float32)
        grad_teacher = torch.full_like(teacher, math.nan)
        emulator.kd_loss(
            student, teacher, temperature=2.0, teacher_temperature=5.0, grad_teacher=grad_teacher, variant=variant
        )
        leaf = teacher.double().requires_grad_()
        log_p, log_q = torch.log_softmax(student.double() / 2.0, 1), torch.log_softmax(leaf / 5.0, 1)
        (expected,) = torch.autograd.grad((log_q.exp() * (log_q - log_p)).sum(), leaf)
        assert_grad(grad_teacher, expected, torch.float32)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_out_of_range_shows_as_nan(temperature: float, variant: str) -> None:
    student, teacher = logits("plain", 3, 10, torch.float32)
    temperatures = torch.tensor([1.0, temperature, 1.0])
    loss, grad, _ = emulator.kd_loss(student, teacher, teacher_temperature=temperatures, variant=variant)
    assert loss.isnan().tolist() == [False, True, False]
    assert grad.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_row_strides_and_unaligned_rows(offset: int, dtype: torch.dtype, variant: str) -> None:
    for classes in [2, 8, 10, 37, 256, 1001]:
        wide = [torch.randn(5, classes + 3 + k).to(dtype) for k in range(3)]
        student, teacher, clean = (w[:, min(offset, 2) :][:, :classes] for w in wide)
        labels = torch.tensor([0, 1, classes - 1, classes // 2, 1])
        options = {"temperature": 3.0, "kl_weight": 0.9, "clean_weight": 0.1, "variant": variant}
        strided = emulator.kd_loss(student, teacher, clean, labels, **options)
        dense = emulator.kd_loss(*(t.contiguous() for t in (student, teacher, clean)), labels, **options)
        for a, b in zip(strided, dense, strict=True):
            # The way a row is loaded may change the order of its sum, and nothing else.
            assert torch.allclose(a.float(), b.float(), rtol=1e-6 if dtype == torch.float32 else 8e-3, atol=1e-7)


@pytest.mark.parametrize("variant", ["warp", "block"])
def test_rows_do_not_touch_each_other(variant: str) -> None:
    # More rows than a block holds, one of them not finite.
    student, teacher = logits("plain", 37, 10, torch.float32)
    student[17, 3] = math.nan
    loss, grad, _ = emulator.kd_loss(student, teacher, temperature=4.0, variant=variant)
    expected, expected_grad = kl64(student, teacher, 4.0)
    rest = torch.arange(37) != 17
    assert loss[17].isnan() and grad[17].isnan().any()
    assert_loss(loss[rest], expected[rest])
    assert_grad(grad[rest], expected_grad[rest], torch.float32)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("temperature", [1.0, 30.0])
def test_excluded_classes(temperature: float, variant: str) -> None:
    inf = math.inf
    student, teacher = logits("plain", 4, 10, torch.float32)
    top = teacher.argmax(1)
    teacher[0, (top[0] + 1) % 10] = -inf  # by the teacher: its class adds nothing to the KL
    student[1, (top[1] + 1) % 10] = teacher[1, (top[1] + 1) % 10] = -inf  # by both
    student[2, top[2]] = -inf  # by the student, of all classes the teacher's favourite: the KL is infinite
    teacher[3, torch.arange(10) != top[3]] = -inf  # all but one by the teacher: a cross-entropy
    loss, grad, _ = emulator.kd_loss(student, teacher, temperature=temperature, variant=variant)
    expected, expected_grad = kl64(student, teacher, temperature)
    assert loss[2] == expected[2] == inf
    finite = torch.tensor([0, 1, 3])
    assert_loss(loss[finite], expected[finite])
    assert_grad(grad, expected_grad, torch.float32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_label_out_of_range_shows_as_nan(variant: str) -> None:
    # A kernel cannot raise; the neighbouring row is as it should be.
    clean, _ = logits("plain", 3, 10, torch.float32)
    labels = torch.tensor([10, 4, -1])
    loss, grad, grad_clean = emulator.kd_loss(clean, clean, clean, labels, clean_weight=1.0, variant=variant)
    assert loss.isnan().tolist() == [True, False, True]
    assert grad_clean.isnan().all(1).tolist() == [True, False, True]
    assert (grad == 0).all()
    assert_loss(loss[1:2], ce64(clean[1:2], labels[1:2])[0])


@pytest.mark.parametrize("variant", ["auto", "warp", "block"])
def test_no_rows_and_no_gradient(variant: str) -> None:
    student, teacher = logits("plain", 5, 10, torch.float32)
    loss, grad, grad_clean = emulator.kd_loss(student[:0], teacher[:0], variant=variant)
    assert loss.shape == (0,) and grad.shape == (0, 10) and grad_clean is None
    with_grad = emulator.kd_loss(student, teacher, variant=variant)[0]
    without, grad, _ = emulator.kd_loss(student, teacher, with_grad=False, variant=variant)
    assert grad is None and torch.equal(with_grad, without)


def test_agrees_with_the_reference_formula_and_the_cpu_op() -> None:
    from ard_fast import functional, reference

    student, teacher = logits("plain", 6, 50, torch.float32)
    for temperature in [1.0, 30.0]:
        rows = emulator.kd_loss(student, teacher, temperature=temperature, kl_weight=temperature**2)[0]
        options = {"temperature": temperature, "reduction": "none"}
        expected = reference.kl_distill_loss(student.double(), teacher.double(), **options)
        assert_loss(rows, expected)
        assert_loss(functional.kl_distill_loss(student, teacher, **options), rows.double(), rtol=1e-5)


@pytest.mark.parametrize("variant", ["warp", "block"])
@pytest.mark.parametrize("order", ["reverse", "shuffled"])
def test_order_of_threads_does_not_matter(order: str, variant: str) -> None:
    student, teacher = logits("plain", 9, 300, torch.float32)
    labels = torch.arange(9)
    forward = emulator.kd_loss(student, teacher, student, labels, clean_weight=0.5, variant=variant)
    emulator.set_order(order, 3)
    try:
        other = emulator.kd_loss(student, teacher, student, labels, clean_weight=0.5, variant=variant)
    finally:
        emulator.set_order("forward")
    for a, b in zip(forward, other, strict=True):
        assert torch.equal(a, b)


def test_sum_of_rows() -> None:
    for n in [0, 1, 31, 32, 33, 256, 257, 4099]:
        rows = torch.randn(n, generator=torch.Generator().manual_seed(n)) * 10 + 3
        # Summed in double: what is left is the rounding of the result.
        assert emulator.sum_rows(rows) == pytest.approx(rows.double().sum().item(), rel=1.2e-7, abs=1e-30)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (3, 10), (4, 8), (5, 24), (2, 1027), (300, 16)], ids=str)
def test_scale_rows(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for offset in (0, 1):
        for per_row in (False, True):
            for factor in (1.0, -0.3):
                values = torch.randn(shape).to(dtype)
                scale = torch.linspace(0.5, 1.5, shape[0]) if per_row and shape[0] != 1 else torch.tensor([1.0])
                by = torch.tensor(factor) * scale
                expected = (values.float() * (by[:, None] if per_row and shape[0] != 1 else by)).to(dtype)
                grad = placed(values.reshape(-1), offset)
                emulator.scale_rows_(grad.view(shape), scale, factor)
                assert torch.equal(grad.view(shape), expected)
                assert guards_intact(grad)
