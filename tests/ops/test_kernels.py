"""The kernels as nvcc compiles them, on the emulated GPU, against the operators of the CPU.

What the other tests of this folder ask of every device they ask of the emulated one too. Here is what only a GPU has:
sizes around a vector, a warp and a block, every alignment, rows and samples that fit no shared memory, clusters of
blocks, and whether deliberate faults would be seen. A kernel that leaves the memory it was given faults by itself.
"""

import itertools
import math
import re

import emulated_gpu
import pytest
import torch
from emulated_gpu import Mode
from op_cases import AROUND_48_KIB, CASES, mapped, prepared, tensors

from ard_fast.functional import _ops

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# A GPU without clusters, one with, and one whose blocks have so little shared memory that nothing large fits.
GPUS = {"sm_80": (80, None), "sm_90": (90, None), "small": (90, 2600)}
SMALL_FOR_SAMPLES = 1200  # what a sample keeps beside the data is smaller than what a row does
# For long rows of logits: without clusters nothing fits, with them they fit a cluster.
ROW_GPUS = {"small sm_80": (80, 2600), "shared": (90, 6000)}
# Where the tensors of a call begin in memory, in elements and in turn.
OFFSETS = [(0,), (1,), (4,), (8,), (0, 1), (1, 0, 0)]
PLAIN = Mode()
EDGES = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, 1e-45, 3e38]


class Call:
    """An operator and its arguments; how close a GPU must come to the CPU (None: the same bits)."""

    def __init__(self, operator, *arguments, within=None, offsets=(0,)):
        self.operator, self.within = operator, within
        starts = itertools.cycle(offsets)
        self.arguments = mapped(arguments, lambda tensor: placed(tensor, next(starts)))

    def run(self):
        """What it returns, and its arguments as it leaves them."""
        arguments = mapped(self.arguments, lambda tensor: placed(tensor, tensor.storage_offset()))
        return [*tensors(self.operator(*arguments)), *tensors(arguments)]

    def check(self, got, expected):
        for a, b in zip(got, expected, strict=True):
            rtol, atol = self.within.get(b.dtype, (0, 0)) if self.within else (0, 0)
            if atol and b.numel():  # beside the largest of a row
                a, b = (
                    t.float() / b.float().abs().nan_to_num(0, 1, 1).amax(-1, keepdim=True).clamp_min(1e-30)
                    for t in (a, b)
                )
            torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=True)


def placed(tensor, offset):
    """A copy with the same strides that begins `offset` elements into memory of its own."""
    extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    buffer = torch.empty(offset + max(extent, 0), dtype=tensor.dtype)
    view = buffer.as_strided(tensor.shape, tensor.stride(), offset) if tensor.numel() else torch.empty_like(tensor)
    return view.copy_(tensor)


# The norms' roots and quotients, and the exponentials of the losses, of every rounding that hardware may choose.
NORMS = {torch.float32: (1e-6, 1e-7)}
LOSSES = {torch.float32: (1e-4, 2e-6), torch.float16: (2e-3, 3e-5), torch.bfloat16: (1.6e-2, 2e-6)}


def pixels(batch, n, edges=False):
    """x_adv, a gradient and x; a third of the gradient edge values where asked."""
    x = torch.rand(batch, n)
    grad = torch.randn(batch, n)
    if edges:
        picked = torch.tensor(EDGES)[torch.randint(len(EDGES), grad.shape)]
        grad = torch.where(torch.rand(batch, n) < 1 / 3, picked, grad)
    return x + 0.05 * torch.randn(batch, n), grad, x


def rows_of_logits(n):
    """Student and teacher: a near, a plain and a far row, and one with a class of -inf."""
    teacher = 4 * torch.randn(4, n)
    student = teacher + torch.tensor([0.05, 2.0, 100.0, 1.0])[:, None] * torch.randn(4, n)
    if n > 2:
        student[3, n // 2] = teacher[3, n // 2] = -math.inf
    return student, teacher


def step_calls(n, dtype, offsets):
    """The steps and starts of a batch of 3 samples of n elements."""
    x_adv, grad, x = pixels(3, n, edges=True)
    plain = torch.randn(3, n).to(dtype)
    grad = grad.to(dtype)
    sizes = torch.tensor([0.01, 0.0, 0.03])
    for per_sample in (None, sizes):
        rest = 2 / 255, 8 / 255, n % 2 == 1, 0.0, 1.0, 0, per_sample, per_sample
        yield Call(_ops.pgd_linf_step_, x_adv, grad, x, *rest, offsets=offsets)
        rest = per_sample, per_sample, 0.2, 0.5
        yield Call(_ops.pgd_l2_step_, x_adv, plain, x, *rest, False, 0.0, 1.0, within=NORMS, offsets=offsets)
    momentum = torch.randn(3, n) / max(n, 1)
    rest = None, None, 2 / 255, 8 / 255, 0.9, False, 0.0, 1.0
    yield Call(_ops.mifgsm_step_, x_adv, momentum, plain, x, *rest, within=NORMS, offsets=offsets)
    losses = torch.tensor([[0.5, math.nan, 1.0], [0.7, 0.1, -math.inf], [0.0, 0.0, 0.0]])
    yield Call(_ops.select_best_, x_adv, x, *losses, n % 2 == 1, offsets=offsets)
    seed, ids = torch.tensor([7]), torch.tensor([1, 2, 1 << 40])
    for normal in (False, True):
        yield Call(_ops.random_start, x, None, 0.1, seed, ids, normal, 0.01, True, 0.0, 1.0, offsets=offsets)
    if dtype == torch.float32 and n % 3 == 0:  # channels_last
        last = x.view(3, 3, -1, 1).contiguous(memory_format=torch.channels_last)
        yield Call(_ops.random_start, last, sizes, 0.1, seed, None, True, 0.01, False, 0.0, 1.0, offsets=offsets)


def apgd_calls(n, dtype, offsets):
    """Auto-PGD steps; the state's rows are those of ApgdRecord."""
    for l2, window, first in ((False, 0, True), (False, 2, False), (True, 0, False), (True, 3, False)):
        x = torch.rand(3, n)
        near = [(x + 0.02 * torch.randn(3, n)).clamp(0, 1) for _ in range(4)]
        gradients = [torch.randn(3, n).to(dtype) for _ in range(2)]
        state = torch.rand(2, 7, 3)
        read = gradients[1], x, torch.rand(3), torch.tensor([True, False, True]), None
        rest = 0.1, l2, first, window, 0.75, 0.75, 0.0, 1.0
        written = *near[:3], gradients[0], near[3], *state
        yield Call(_ops.apgd_step_, *written, *read, *rest, within=NORMS if l2 else None, offsets=offsets)
    yield Call(_ops.apgd_step_, *written, None, *read[1:], *rest, offsets=offsets)


def loss_calls(n, dtype, offsets):
    """The losses and their gradients on 4 rows of n classes."""
    student, teacher = (t.to(dtype) for t in rows_of_logits(n))
    clean = torch.randn(4, n).to(dtype)
    labels = torch.tensor([0, n - 1, n // 3, n // 2 - 1 if n > 2 else 0])
    weight, hot = torch.tensor([1.0, 0.5, 2.0, 0.0]), torch.tensor([1.0, 4.0, 0.5, 2.0])
    settings = {"within": LOSSES, "offsets": offsets}
    numbers = 2.0, 3.0, 4.0, 0.75, 0.25, 0.75, 0.25
    kd = _ops.kd_loss
    yield Call(kd, student, teacher, clean, labels, weight, hot, None, *numbers, True, True, True, **settings)
    yield Call(kd, student, teacher, clean, None, None, None, hot, *numbers, False, True, False, **settings)
    yield Call(kd, student, teacher, *[None] * 5, *numbers, False, False, False, **settings)
    yield Call(kd, student, teacher, *[None] * 5, *numbers, False, True, True, True, **settings)
    if n >= 2:
        for mart in (False, True):
            numbers = 5.0, 1.0, 5.0, 1.0, True, True
            yield Call(_ops.pair_loss, student, clean, labels, weight, mart, *numbers, **settings)
    for loss in range(4 if n >= 4 else 2 if n >= 2 else 1):
        other = labels.flip(0) if loss == 3 else None
        for scaled in (False, True):
            yield Call(_ops.attack_gradient, student, labels, loss, other, 50.0, True, scaled, **settings)
    for scale in (weight, weight[:1]):
        yield Call(_ops.scale_rows_, clean.contiguous(), scale, -0.3, offsets=offsets)


def sum_calls(n, dtype, offsets):
    """The sum of n rows' losses."""
    labels = torch.zeros(n, dtype=torch.int64)
    student, clean = torch.randn(2, n, 2, dtype=dtype).unbind()
    numbers = 5.0, 1.0, 5.0, 1.0, True, False  # no gradients: in some of so many rows their two terms cancel
    yield Call(_ops.pair_loss, student, clean, labels, None, False, *numbers, within=LOSSES, offsets=offsets)


def layer_calls(n, dtype, offsets):
    """affine_relu and its backward pass over n pixels or n channels, and the views of images n wide."""
    for shape, last in (((2, 3, n, 1), False), ((2, n, 5, 1), True), ((1, n, 1, 1), False)):
        layout = torch.channels_last if last else torch.contiguous_format
        x, residual = (torch.randn(shape).to(dtype).contiguous(memory_format=layout) for _ in range(2))
        scale, shift = torch.randn(2, shape[1]).unbind()
        mask = torch.randint(256, ((x.numel() + 7) // 8,), dtype=torch.uint8)
        yield Call(_ops.affine_relu, x, scale, shift, residual, True, True, offsets=offsets)
        yield Call(_ops.affine_relu_, x, None, shift, None, False, False, offsets=offsets)
        yield Call(_ops.affine_relu, x, None, None, None, True, True, offsets=offsets)
        yield Call(_ops.affine_relu_backward, x, mask, scale, offsets=offsets)
        yield Call(_ops.affine_relu_backward, x, mask, None, offsets=offsets)
    if dtype == torch.float32 and n:
        images = torch.randint(256, (3, 3, 5, n), dtype=torch.uint8)
        positions, seed = torch.tensor([2, 0]), torch.tensor([3])
        for last in (False, True):
            drawn = Call(_ops.crop_flip, images, positions, seed, None, None, 2, True, 255, last, offsets=offsets)
            yield drawn
            if n > 4:
                yield Call(
                    _ops.crop_flip, images, positions, seed, None, None, 2, False, 255, last, 0, 4, offsets=offsets
                )
                yield Call(
                    _ops.crop_flip, images, positions, seed, None, None, 0, True, 255, last, 4, 3, offsets=offsets
                )


# The operators' calls, and sizes around the widths of vectors, warps, blocks and, last, a block's shared memory.
FAMILIES = {
    "steps": (step_calls, [0, 1, 3, 4, 8, 9, 33, 127, 256, 1024, 1027, 4096]),
    "apgd": (apgd_calls, [0, 1, 8, 33, 256, 1027, 4096]),
    "losses": (loss_calls, [1, 2, 7, 8, 16, 17, 33, 128, 1024, 1401, 1408]),
    "sums": (sum_calls, [0, 1, 31, 33, 256, 512, 513, 2500]),
    "layers": (layer_calls, [0, 1, 7, 8, 16, 24, 33, 1024]),
}


def compare(family, dtype, gpu, sizes=None, offsets=OFFSETS, mode=PLAIN):
    """Every call on the CPU and on the GPU. Returns the names of the kernels that ran."""
    make, all_sizes = FAMILIES[family]
    arch, max_shared = (GPUS | ROW_GPUS)[gpu]
    if max_shared and family in ("steps", "apgd"):
        max_shared = SMALL_FOR_SAMPLES
    started = set()
    for n in sizes or all_sizes:
        # The largest sizes are about blocks and shared memory, the others about alignment too.
        for offset in offsets if n < 600 else offsets[:2]:
            torch.manual_seed(n)
            calls = list(make(n, dtype, offset))
            expected = [call.run() for call in calls]
            with emulated_gpu.active(arch, mode, max_shared=max_shared) as device:
                for call, wanted in zip(calls, expected, strict=True):
                    call.check(call.run(), wanted)
                started |= {launch[0] for launch in device.take_launches()}
    return started


@pytest.mark.parametrize(
    ("family", "gpu"), [*itertools.product(FAMILIES, GPUS), *itertools.product(["losses"], ROW_GPUS)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_size_and_alignment(family, dtype, gpu, request):
    sizes, offsets = None, OFFSETS
    if gpu != "sm_90":  # another plan for what is large, and nothing else
        sizes, offsets = [n for n in FAMILIES[family][1] if n > 1000], OFFSETS[:2]
    compare(family, dtype, gpu, sizes, offsets, Mode.drawn(request.node.nodeid))


@pytest.mark.parametrize("alone", range(9))
@pytest.mark.parametrize("family", ["steps", "apgd", "losses", "layers"])
def test_one_tensor_unaligned(family, alone):
    """Each tensor's alignment counts: 16-byte accesses need that of all."""
    compare(family, torch.float32, "sm_90", [16], [tuple(int(place == alone) for place in range(12))])


@pytest.mark.parametrize("alone", range(3))
def test_one_tensor_with_unaligned_rows(alone):
    """Rows of 16 classes, of which one tensor's lie 17 elements apart."""
    torch.manual_seed(0)
    first, second, clean = (torch.randn(4, 17 if k == alone else 16)[:, :16] for k in range(3))
    labels, numbers = torch.arange(4), (2.0, 3.0, 4.0, 0.75, 0.25, 0.75, 0.25)
    kd = _ops.kd_loss, first, second, clean, labels, None, None, None, *numbers, True, True, True
    trades = _ops.pair_loss, first, second, labels, None, False, 5.0, 1.0, 5.0, 1.0, True, True
    for call in (Call(*kd, within=LOSSES), Call(*trades, within=LOSSES)):
        expected = call.run()
        with emulated_gpu.active():
            call.check(call.run(), expected)


@pytest.mark.parametrize(("loss", "rows", "dtype", "classes"), AROUND_48_KIB)
def test_rows_of_about_48_kib(loss, rows, dtype, classes):
    """Of shared memory: from where on a launch must have asked for it, static arrays included."""
    torch.manual_seed(0)
    arguments = *torch.randn(2, 2, classes).to(dtype).unbind(), torch.tensor([0, classes - 1])
    expected = loss(*arguments)
    with emulated_gpu.active():
        for a, b in zip(tensors(loss(*arguments)), tensors(expected), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4 if dtype == torch.float32 else 1e-2, atol=1e-5)


@pytest.mark.parametrize("rows", [500, 3000])
def test_rows_are_summed_in_double(rows):
    """Small losses between two that cancel: float32 would lose them. By the loss's launch, and by one of its own."""
    weight, logits = torch.ones(rows), torch.zeros(rows, 2)
    weight[:2] = torch.tensor([3e7, -3e7])
    labels, numbers = torch.zeros(rows, dtype=torch.int64), (5.0, 1.0, 5.0, 1.0, True, True)
    call = Call(_ops.pair_loss, logits, logits.clone(), labels, weight, False, *numbers, within=LOSSES)
    expected = call.run()
    with emulated_gpu.active():
        call.check(call.run(), expected)


# Rows, classes, bytes of shared memory: the most that one launch sums, and a little more.
SUMMED = [
    ((128, 10, None), (128, 100, None), (256, 10, None), (512, 16, None), (128, 128, None), (16, 1024, None)),
    ((513, 16, None), (129, 100, None), (17, 1024, None), (64, 256, 12_000), (3, 1025, None)),
]


@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize("arch", [80, 90])
def test_a_training_batch_is_one_launch(arch, one):
    """The loss and its sum, where the device has clusters; the last rows and blocks of the batch count once."""
    numbers = 2.0, 3.0, 4.0, 0.75, 0.25, 0.75, 0.25
    for rows, classes, max_shared in SUMMED[0 if one else 1]:
        torch.manual_seed(0)
        logits, labels = torch.randn(3, rows, classes), torch.randint(classes, (rows,))
        rest = None, None, None, *numbers, True, False, False
        calls = [Call(_ops.kd_loss, *logits, labels, *rest, within=LOSSES)]
        calls += [
            Call(_ops.pair_loss, *logits[:2], labels, None, mart, 5.0, 1.0, 5.0, 1.0, True, False, within=LOSSES)
            for mart in (False, True)
        ]
        for call in calls:
            expected = call.run()
            with emulated_gpu.active(arch, max_shared=max_shared) as gpu:
                call.check(call.run(), expected)
                assert (len(gpu.take_launches()) == 1) == (one and arch >= 90), (rows, classes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_long_rows_are_read_once(dtype):
    """32,000 classes: several blocks a row, where the device has clusters."""
    torch.manual_seed(0)
    student, teacher = (t.to(dtype) for t in rows_of_logits(32_000))
    labels = torch.tensor([0, 31_999, 16_000, 7_999])
    call = Call(_ops.pair_loss, student, teacher, labels, None, True, 5.0, 1.0, 5.0, 1.0, True, True, within=LOSSES)
    expected = call.run()
    with emulated_gpu.active() as gpu:
        call.check(call.run(), expected)
        ((_, grid, _, cluster, _), _) = gpu.take_launches()
        assert cluster > 1
        assert grid == 4 * cluster


# What makes a row of the KL slow: the student's and the teacher's logit of one class; None leaves it.
SLOW = [(math.nan, None), (None, math.nan), (math.inf, None), (None, math.inf), (-math.inf, None), (None, -math.inf)]
SLOW += [(-math.inf, -math.inf), (1000.0, None), (-1000.0, None), (None, 1000.0), (6e4, -6e4)]


@pytest.mark.parametrize("gpu", ["sm_90", "shared"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slow_rows(dtype, gpu):
    """Each cause in each block of a row, between quick rows: the CPU's results, NaN and infinities included."""
    torch.manual_seed(0)
    classes, cases = 1100, [(pair, place) for pair in SLOW for place in (0, 300, 700, 1099, None)]
    teacher = 3 * torch.randn(len(cases) + 1, classes)
    student = teacher + 0.2 * torch.randn(len(cases) + 1, classes)
    for row, (pair, place) in enumerate(cases):
        at = int(teacher[row].argmax()) if place is None else place
        for logits, value in zip((student, teacher), pair, strict=True):
            logits[row, at] = logits[row, at] if value is None else value
    student, teacher = student.to(dtype), teacher.to(dtype)
    labels, numbers = torch.randint(classes, (len(student),)), (1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0)
    kd = _ops.kd_loss, student, teacher, *[None] * 5, *numbers, False, True, True, False
    pairs = [(_ops.pair_loss, student, teacher, labels, None, m, 5.0, 1.0, 5.0, 1.0, False, True) for m in (0, 1)]
    arch, max_shared = (GPUS | ROW_GPUS)[gpu]
    for call in (Call(*kd, within=LOSSES), *(Call(*pair, within=LOSSES) for pair in pairs)):
        expected = call.run()
        with emulated_gpu.active(arch, max_shared=max_shared) as device:
            call.check(call.run(), expected)
            ((_, _, _, cluster, _),) = device.take_launches()
            assert (cluster > 1) == (gpu == "shared")


def test_every_kernel_runs():
    """The sizes and alignments above reach every kernel that the extension has."""
    started = set()
    for family, (_, sizes) in FAMILIES.items():
        few = [n for n in sizes if n in (8, 24, 33)] + sizes[-3:]
        for dtype in DTYPES:
            started |= compare(family, dtype, "sm_90", few, [(0,), (1,)])
            for gpu in ("small", *ROW_GPUS):
                started |= compare(family, dtype, gpu, sizes[-2:], [(0,)])
    torch.manual_seed(0)
    with emulated_gpu.active() as gpu:
        for case in ("fold", "fold bf16"):
            operator, arguments = prepared(case, "cpu")
            operator(*arguments)
        operator, arguments = prepared("fold", "cpu")
        operator(arguments[0].half(), *arguments[1:])
        started |= {launch[0] for launch in gpu.take_launches()}
        assert sorted(set(gpu.kernels()) - started) == []


@pytest.mark.parametrize("case", CASES)
def test_what_hardware_may_choose(case):
    """Order of threads, error of approximate functions, contraction: the results stay within their bounds."""
    operator, arguments = prepared(case, "cpu")
    losses = operator in (_ops.kd_loss, _ops.pair_loss, _ops.attack_gradient)
    norms = "l2" in case or operator is _ops.mifgsm_step_
    call = Call(operator, *arguments, within=LOSSES if losses else NORMS if norms else None)
    expected = call.run()
    for order, approximation in itertools.product(("forward", "reverse", "shuffled"), ("extreme", "random")):
        with emulated_gpu.active(90, Mode(order, approximation, contract=approximation == "extreme", seed=3)):
            call.check(call.run(), expected)


def test_code_for_older_gpus():
    """A build for sm_80 on a newer GPU: no clusters, which its code cannot have."""
    torch.manual_seed(0)
    for call in itertools.islice(step_calls(20_000, torch.float32, (0,)), 5):
        expected = call.run()
        with emulated_gpu.active(90, code=80) as gpu:
            call.check(call.run(), expected)
            assert all(cluster == 1 for _, _, _, cluster, _ in gpu.take_launches())


@pytest.mark.parametrize("classes", [10, 1401])
@pytest.mark.parametrize("bad", ["label", "temperature"])
def test_what_a_kernel_cannot_refuse_is_nan(bad, classes):
    """A label or a temperature out of range, which the CPU refuses: NaN in its own rows, and nothing else."""
    torch.manual_seed(0)
    student, teacher = rows_of_logits(classes)
    labels = torch.tensor([0, classes if bad == "label" else 1, classes - 1, -1 if bad == "label" else 2])
    hot = torch.tensor([1.0, 2.0 if bad == "label" else 0.0, 3.0, 4.0 if bad == "label" else math.nan])
    numbers = 2.0, 3.0, 4.0, 0.75, 0.25, 0.75, 0.25
    calls = [(_ops.kd_loss, student, teacher, teacher, labels, None, hot, None, *numbers, False, True, False)]
    if bad == "label":
        calls += [(_ops.pair_loss, student, teacher, labels, None, m, 5.0, 1.0, 5.0, 1.0, False, True) for m in (0, 1)]
        calls += [(_ops.attack_gradient, student, labels, loss, None, 50.0, True) for loss in (0, 1)]
        calls += [(_ops.attack_gradient, student, labels.flip(0), 3, labels, 50.0, True)]
    for operator, *arguments in calls:
        with emulated_gpu.active():
            results = [t for t in tensors(operator(*arguments)) if t.is_floating_point() and t.numel()]
        wrong = torch.tensor([False, True, False, True])
        if operator is _ops.attack_gradient and arguments[2] == 3:
            wrong |= wrong.flip(0)
        rows = [result.isnan().reshape(4, -1).any(1) for result in results]
        assert torch.stack(rows).any(0).equal(wrong), "the loss or a gradient tells"


def test_a_view_that_does_not_exist_is_nan():
    """Of the augmentation: a position outside of the images, or a view outside of its range."""
    images = torch.randint(256, (3, 3, 5, 6), dtype=torch.uint8)
    positions, views = torch.tensor([0, 3, -1, 2, 1]), torch.tensor([0, 0, 0, 50, -1])
    with emulated_gpu.active():
        x, _ = _ops.crop_flip(images, positions, None, None, views, 2, True, 255, False)
    assert x.isnan().flatten(1).all(1).tolist() == [False, True, True, True, True]


# ------------------------------------------------------------------------------------------------- deliberate faults


def kernel_of(gpu, pattern):
    """The mangled name of the one kernel that the pattern finds."""
    (name,) = [name for name in gpu.kernels() if re.search(pattern, name)]
    return name


def call_of(make, n, index=0, dtype=torch.float32):
    """One of a family's calls."""
    torch.manual_seed(1)
    return next(itertools.islice(make(n, dtype, (0,)), index, None))


def noticed(call, expected, max_shared=None):
    """What is noticed of a fault, in any order of the threads; empty if nothing is."""
    for order in ("forward", "reverse", "shuffled"):
        with emulated_gpu.active(90, Mode(order, seed=1), max_shared=max_shared):
            try:
                call.check(call.run(), expected)
            except RuntimeError as fault:
                return str(fault)
            except AssertionError:
                return "another result"
    return ""


# What is wrong: a kernel, what is replaced in its PTX by what, a call that then does not pass, and what is said.
FAULTS = {
    "a barrier is missing": (
        "kd_loss_kernelIfLi4ELi0ELb1",
        r"bar\.sync 0;",
        "",
        (loss_calls, 1028),
        "race|not been written|nobody",
    ),
    "a tail is off by one": (
        "cuda20pgd_linf_step_kernelIfLi4",
        r"setp\.ge\.s64",
        "setp.gt.s64",
        (step_calls, 33),
        "global memory",
    ),
    "a mask leaves lanes out": (
        "sum_rows",
        r"mov\.[bu]32 (%r\d+), -1;",
        r"mov.u32 \1, 65535;",
        (sum_calls, 600),
        "take part",
    ),
    "a shuffle goes to another lane": (
        "sum_rows",
        r"mov\.[bu]32 (%r\d+), 16;",
        r"mov.u32 \1, 8;",
        (sum_calls, 600),
        "another result",
    ),
    "a vector load is misaligned": (
        "cuda20pgd_linf_step_kernelIfLi4",
        r"(ld\.global\S*v4\S* [^[]*\[%rd\d+)\]",
        r"\1+4]",
        (step_calls, 64),
        "misaligned",
    ),
    "a store goes astray": (
        "scale_rows_kernelIfLi4",
        r"(st\.global\.v4\S* \[%rd\d+)\]",
        r"\1+16]",
        (loss_calls, 1024, 14),
        "global memory|another result",
    ),
    "an fma where bits are promised": (
        "random_start_kernelILb1",
        r"mul\.rn\.f32 (%f\d+), (%f\d+), (%f\d+);\nadd\.rn\.f32 (%f\d+), (%f\d+), \1;",
        r"mul.rn.f32 \1, \2, \3;\nfma.rn.f32 \4, \2, \3, \5;",
        (step_calls, 256, 6),
        "another result",
    ),
    "a NaN is lost": ("cuda20pgd_linf_step_kernelIfLi4", r"setp\.num", "setp.nan", (step_calls, 64), "another result"),
    "shared memory is read before it is written": (
        "kd_loss_kernelIfLi4ELi0ELb1",
        r"st\.shared\.(?:v4\.)?f32 [^;]*;",
        "",
        (loss_calls, 1028),
        "not been written|nobody",
    ),
    "a rounding mode is wrong": (
        "scale_rows_kernelINS_3f16ELi8",
        r"cvt\.rn\.f16",
        "cvt.rz.f16",
        None,
        "another result",
    ),
    "a cluster does not wait": (
        "cuda18pgd_l2_step_kernelIfLi4ELb1",
        r"barrier\.cluster\.(arrive|wait)\.\w+;",
        "",
        (step_calls, 20_000, 1),
        "cluster|race|exited|nobody",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed(fault):
    kernel, before, after, call, words = FAULTS[fault]
    call = call_of(*call) if call else call_of(loss_calls, 1024, 14, torch.float16)
    expected = call.run()
    assert noticed(call, expected) == ""
    gpu = emulated_gpu.build()
    name = kernel_of(gpu, kernel)
    ptx = gpu.ptx_of(name)
    changed = re.sub(before, after, ptx)
    assert changed != ptx, "nothing was replaced"
    try:
        gpu.replace_ptx(name, changed)
        assert re.search(words, noticed(call, expected)), noticed(call, expected)
    finally:
        gpu.restore_ptx()


def test_shared_memory_must_be_asked_for():
    """A launch of more than 48 KiB is refused where the launcher has not asked."""
    gpu = emulated_gpu.build()
    gpu.grant_shared(False)
    try:
        with emulated_gpu.active(80, max_shared=100_000), pytest.raises(RuntimeError, match="dynamic shared memory"):
            call_of(loss_calls, 7000).run()
    finally:
        gpu.grant_shared(True)


# Kernels with barriers, a call that starts each, and what a block may have of shared memory.
WITH_BARRIERS = [
    ("kd_loss_kernelIfLi4ELi0ELb1", (loss_calls, 1028), None),
    ("pair_loss_kernelIfLi4ELi0ELb1ELb1", (loss_calls, 1028, 5), None),
    ("pair_loss_kernelIfLi1ELi8ELb1ELb0", (sum_calls, 300), None),  # summed in the launch
    ("ce_gradient_kernelIfLi4ELi0ELb1", (loss_calls, 1028, 6), None),
    ("ce_gradient_kernelIfLi4ELi0ELb1", (loss_calls, 1408, 6), 6000),  # in a cluster
    ("compared_gradient_kernelIfLi4ELi0", (loss_calls, 1028, 8), None),
    ("compared_gradient_kernelIfLi4ELi0", (loss_calls, 1408, 8), 2600),
    ("sum_rows", (sum_calls, 600), None),
    ("cuda18pgd_l2_step_kernelIfLi4ELb1", (step_calls, 20_000, 1), None),
    ("apgd_l2_step_kernelIfLi4ELb1", (apgd_calls, 20_000, 2), None),
]


@pytest.mark.parametrize(("kernel", "call", "max_shared"), WITH_BARRIERS)
def test_every_barrier_is_needed(kernel, call, max_shared):
    """Each one that the call reaches is taken out in turn, and its absence is noticed."""
    call = call_of(*call)
    expected = call.run()
    gpu = emulated_gpu.build()
    name = kernel_of(gpu, kernel)
    ptx = gpu.ptx_of(name)
    unnoticed = []
    try:
        for barrier in re.finditer(r"(bar\.sync 0|barrier\.cluster\.\w+\.\w+);", ptx):
            before, after = ptx[: barrier.start()], ptx[barrier.end() :]
            gpu.replace_ptx(name, f"{before}trap;{after}")
            reached = noticed(call, expected, max_shared)
            gpu.replace_ptx(name, before + after)
            if reached and not noticed(call, expected, max_shared):
                unnoticed.append(before.count("\n"))
    finally:
        gpu.restore_ptx()
    assert unnoticed == []
