"""Every operator, and every public function over them, with sample arguments."""

import torch
from fold_cases import make_layers, places

from ard_fast import functional as F
from ard_fast.functional import _ops


def last(levels):
    """An argument that is left out at its default."""
    return () if levels is None else (levels,)


def step_arguments(device, grad_dtype=torch.float32, shape=(2, 3, 4, 5), per_sample=False, levels=None):
    x = torch.rand(shape, device=device)
    sizes = torch.full((shape[0],), 0.1, device=device) if per_sample else None
    numbers = 0.1, 0.2, False, 0.0, 1.0
    return x.clone(), torch.randn_like(x).to(grad_dtype), x, sizes, sizes, *numbers, *last(levels)


def linf_arguments(device, **options):
    x_adv, grad, x, steps, radii, *numbers = step_arguments(device, **options)
    if steps is None:
        return x_adv, grad, x, *numbers
    return x_adv, grad, x, *numbers, 0, steps, radii


def mifgsm_arguments(device, **options):
    x_adv, grad, x, steps, radii, step_size, eps, *rest = step_arguments(device, **options)
    return x_adv, torch.randn_like(x), grad, x, steps, radii, step_size, eps, 0.9, *rest


def select_arguments(device, lower=False):
    best, candidate = torch.rand(2, 4, 3, 5, device=device)
    best_loss, loss, out = torch.rand(3, 4, device=device)
    return best, candidate, best_loss, loss, out, lower


def start_arguments(device, normal=False, channels_last=False, levels=None):
    x = torch.rand(2, 3, 4, 5, device=device)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    seed = torch.tensor([7], device=device)
    ids = torch.tensor([5, 6], device=device)
    return x, None, 0.1, seed, ids if channels_last else None, normal, 0.001, True, 0.0, 1.0, *last(levels)


def loss_arguments(
    device,
    dtype=torch.float32,
    with_clean=True,
    reduce=True,
    with_grad=True,
    with_teacher=False,
    with_labels=True,
    per_sample=False,
    scaled=False,
):
    student, teacher, clean = (torch.randn(3, 6, device=device).to(dtype) for _ in range(3))
    labels = torch.tensor([0, 5, 2], device=device) if with_clean and with_labels else None
    clean = clean if with_clean else None
    rows = [torch.rand(3, device=device) + 0.5 if per_sample else None for _ in range(3)]
    if labels is not None or clean is None:
        rows[2] = None
    numbers = 4.0, 3.0, 2.0, 0.5, 0.25, 0.5, 0.25, reduce, with_grad, with_teacher, scaled
    return student, teacher, clean, labels, *rows, *numbers


def pair_arguments(device, mart, dtype=torch.float32, weighted=False, reduce=True, with_grad=True):
    adv, clean = (torch.randn(3, 6, device=device).to(dtype) for _ in range(2))
    labels = torch.tensor([0, 5, 2], device=device)
    weight = torch.rand(3, device=device) if weighted else None
    return adv, clean, labels, weight, mart, 5.0, 1.0, 5.0, 1.0, reduce, with_grad


def gradient_arguments(device, loss=0, dtype=torch.float32, with_rows=True, scaled=False):
    logits = torch.randn(3, 6, device=device).to(dtype)
    labels = torch.tensor([0, 5, 2], device=device)
    return logits, labels, loss, labels.flip(0) if loss == 3 else None, 50.0, with_rows, scaled


def apgd_arguments(
    device,
    grad_dtype=torch.float32,
    l2=False,
    first=False,
    grad=True,
    per_sample=False,
    window=0,
    shape=(3, 2, 4, 5),
    levels=None,
):
    pixels = torch.rand(5, *shape, device=device)
    x_adv, x_prev, x_best, x_fooled, x = (p.clone() for p in pixels)
    gradients = torch.randn(2, *x.shape, device=device).to(grad_dtype)
    state, state_out = torch.rand(2, 7, 3, device=device).unbind()
    loss_rows, correct = torch.rand(3, device=device), torch.tensor([True, False, True], device=device)
    radii = torch.full((3,), 0.1, device=device) if per_sample else None
    written = x_adv, x_prev, x_best, gradients[0].clone(), x_fooled, state.clone(), state_out.clone()
    read = gradients[1].clone() if grad else None, x, loss_rows, correct, radii
    return *written, *read, 0.1, l2, first, window, 0.75, 0.75, 0.0, 1.0, *last(levels)


def crop_arguments(device, given=False, last=False, ids=True, shift=0, cut=0):
    images = torch.randint(0, 256, (5, 3, 6, 4), dtype=torch.uint8, device=device)
    positions = torch.tensor([4, 0, 0, 2], device=device)
    seed, names = torch.tensor([7], device=device), torch.arange(5, device=device) * 3
    drawn = (None, None, positions * 3) if given else (seed, names if ids else None, None)
    return images, positions, *drawn, 0 if shift else 2, True, 255, last, shift, cut


def fold_arguments(device, dtype=torch.float32):
    layers = make_layers(shapes=[(3, 2, 3, 3), (5, 4, 1, 1), None], parts=[(1, 1, 1, True)], device=device)
    layers += make_layers(shapes=[(2, 3, 1, 1)], parts=[(0, 0, 0, False)], device=device)
    layers += make_layers(shapes=[None], parts=[(0, 1, 1, True)], device=device)
    at, weights, affine = places(layers)
    out = torch.zeros(weights, dtype=dtype, device=device), torch.zeros(affine, device=device)
    return *out, [t for layer in layers for t in layer.tensors], [layer.eps for layer in layers], at


def affine_arguments(device, dtype=torch.float32, last=False, coefficients=True, relu=True, mask=True):
    layout = torch.channels_last if last else torch.contiguous_format
    x, residual = (torch.randn(2, 3, 4, 5, device=device).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    scale, shift = torch.randn(2, 3, device=device).unbind() if coefficients else (None, None)
    return x, scale, shift, residual if coefficients else None, relu, mask


def affine_backward_arguments(device, dtype=torch.float32, last=False, masked=True):
    grad, scale, *_ = affine_arguments(device, dtype, last)
    return grad, torch.randint(256, (15,), dtype=torch.uint8, device=device) if masked else None, scale


def scale_arguments(device):
    return torch.randn(3, 6, device=device), torch.rand(3, device=device), 2.0


# Every way that an operator is called: the operator, what makes its arguments, and how. A new operator needs a case.
HALF, SMALL = torch.float16, torch.bfloat16
CASES = {
    "affine": (_ops.affine_relu, affine_arguments, {}),
    "affine plain": (_ops.affine_relu, affine_arguments, {"coefficients": False, "mask": False}),
    "affine bf16 channels_last": (_ops.affine_relu, affine_arguments, {"dtype": SMALL, "last": True}),
    "affine in place": (_ops.affine_relu_, affine_arguments, {"last": True}),
    "affine in place fp16 linear": (_ops.affine_relu_, affine_arguments, {"dtype": HALF, "relu": False, "mask": False}),
    "affine backward": (_ops.affine_relu_backward, affine_backward_arguments, {}),
    "affine backward bf16 channels_last": (
        _ops.affine_relu_backward,
        affine_backward_arguments,
        {"dtype": SMALL, "last": True},
    ),
    "affine backward linear": (_ops.affine_relu_backward, affine_backward_arguments, {"masked": False}),
    "apgd first": (_ops.apgd_step_, apgd_arguments, {"first": True}),
    "apgd checkpoint bf16": (_ops.apgd_step_, apgd_arguments, {"grad_dtype": SMALL, "window": 2}),
    "apgd l2 per sample": (
        _ops.apgd_step_,
        apgd_arguments,
        {"grad_dtype": HALF, "l2": True, "per_sample": True, "window": 3},
    ),
    "apgd levels": (_ops.apgd_step_, apgd_arguments, {"levels": 255}),
    "apgd last": (_ops.apgd_step_, apgd_arguments, {"grad": False}),
    "crop": (_ops.crop_flip, crop_arguments, {}),
    "crop by position channels_last": (_ops.crop_flip, crop_arguments, {"last": True, "ids": False}),
    "crop given": (_ops.crop_flip, crop_arguments, {"given": True}),
    "cropshift and cutout": (_ops.crop_flip, crop_arguments, {"shift": 3, "cut": 2, "last": True}),
    "fold": (_ops.fold_batch_norm_, fold_arguments, {}),
    "fold bf16": (_ops.fold_batch_norm_, fold_arguments, {"dtype": SMALL}),
    "step": (_ops.pgd_linf_step_, linf_arguments, {}),
    "step bf16": (_ops.pgd_linf_step_, linf_arguments, {"grad_dtype": SMALL}),
    "step levels": (_ops.pgd_linf_step_, linf_arguments, {"levels": 255, "shape": (2, 3, 4, 7)}),
    "step per sample": (_ops.pgd_linf_step_, linf_arguments, {"per_sample": True}),
    "l2 step": (_ops.pgd_l2_step_, step_arguments, {}),
    "l2 step fp16 per sample": (_ops.pgd_l2_step_, step_arguments, {"grad_dtype": HALF, "per_sample": True}),
    "mifgsm step": (_ops.mifgsm_step_, mifgsm_arguments, {}),
    "mifgsm step levels": (_ops.mifgsm_step_, mifgsm_arguments, {"levels": 255}),
    "mifgsm step bf16 per sample": (_ops.mifgsm_step_, mifgsm_arguments, {"grad_dtype": SMALL, "per_sample": True}),
    "select": (_ops.select_best_, select_arguments, {}),
    "select lower": (_ops.select_best_, select_arguments, {"lower": True}),
    "start": (_ops.random_start, start_arguments, {}),
    "start normal channels_last": (_ops.random_start, start_arguments, {"normal": True, "channels_last": True}),
    "start levels": (_ops.random_start, start_arguments, {"levels": 255}),
    "start levels channels_last": (_ops.random_start, start_arguments, {"levels": 16, "channels_last": True}),
    "loss": (_ops.kd_loss, loss_arguments, {}),
    "loss fp16 rows": (_ops.kd_loss, loss_arguments, {"dtype": HALF, "with_clean": False, "reduce": False}),
    "loss both gradients": (_ops.kd_loss, loss_arguments, {"with_clean": False, "with_teacher": True}),
    "loss per sample": (
        _ops.kd_loss,
        loss_arguments,
        {"with_clean": False, "with_teacher": True, "per_sample": True},
    ),
    "loss two students bf16": (
        _ops.kd_loss,
        loss_arguments,
        {"dtype": SMALL, "with_labels": False, "per_sample": True},
    ),
    "loss alone": (_ops.kd_loss, loss_arguments, {"with_grad": False}),
    "loss scaled": (
        _ops.kd_loss,
        loss_arguments,
        {"dtype": HALF, "with_clean": False, "reduce": False, "with_teacher": True, "scaled": True},
    ),
    "trades": (_ops.pair_loss, pair_arguments, {"mart": False}),
    "trades fp16 weighted": (_ops.pair_loss, pair_arguments, {"mart": False, "dtype": HALF, "weighted": True}),
    "mart": (_ops.pair_loss, pair_arguments, {"mart": True}),
    "mart rows": (_ops.pair_loss, pair_arguments, {"mart": True, "dtype": SMALL, "weighted": True, "reduce": False}),
    "mart alone": (_ops.pair_loss, pair_arguments, {"mart": True, "with_grad": False}),
    "gradient": (_ops.attack_gradient, gradient_arguments, {}),
    "gradient alone": (_ops.attack_gradient, gradient_arguments, {"loss": 1, "with_rows": False}),
    "gradient dlr": (_ops.attack_gradient, gradient_arguments, {"loss": 2, "dtype": HALF}),
    "gradient scaled": (_ops.attack_gradient, gradient_arguments, {"dtype": HALF, "scaled": True}),
    "gradient dlr scaled": (_ops.attack_gradient, gradient_arguments, {"loss": 2, "scaled": True}),
    "gradient targeted": (_ops.attack_gradient, gradient_arguments, {"loss": 3, "dtype": SMALL}),
    "scale": (_ops.scale_rows_, scale_arguments, {}),
}


def pixels(seed=0):
    return torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(seed))


def logits(seed=0):
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(seed))


LABELS, SIZES = torch.tensor([0, 5, 2]), torch.tensor([0.1, 0.2, 0.05])
CHANNELS = torch.tensor([0.5, -2.0])
GRAD = pixels(1) - 0.5


def apgd(x, start, grad, loss, correct, eps):
    run = F.APGDRun(x, start, eps=eps, steps=2)
    run.step(grad, loss, correct)
    run = run.take(LABELS.clamp(max=2) if isinstance(x, torch.Tensor) else LABELS.clamp(max=2).numpy())
    run.step(grad, loss, correct)
    run.finish(loss, correct)
    return run.x_best, run.x_fooled, run.state


# Every public function: arguments that are tensors or arrays, and the others. A new one needs a case here.
CALLS = {
    "pgd_linf_step_": (F.pgd_linf_step_, (pixels(), GRAD, pixels(2)), {"eps": SIZES, "step_size": SIZES}),
    "pgd_l2_step_": (F.pgd_l2_step_, (pixels(), GRAD, pixels(2)), {"eps": 0.3, "step_size": SIZES}),
    "mifgsm_step_": (F.mifgsm_step_, (pixels(), pixels(3), GRAD, pixels(2)), {"eps": SIZES, "step_size": 0.1}),
    "select_best_": (F.select_best_, (pixels(), SIZES, pixels(1), SIZES.flip(0)), {}),
    "random_start": (F.random_start, (pixels(),), {"eps": SIZES, "seed": torch.tensor([7]), "sample_ids": LABELS}),
    "kl_distill_loss": (F.kl_distill_loss, (logits(), logits(1)), {"weight": SIZES, "teacher_temperature": SIZES}),
    "ard_loss": (
        F.ard_loss,
        (logits(),),
        {"teacher_logits": logits(1), "student_logits": logits(2), "labels": LABELS, "alpha": 0.5, "weight": SIZES},
    ),
    "rslad_loss": (
        F.rslad_loss,
        (logits(),),
        {"student_logits": logits(1), "teacher_logits": logits(2), "clean_teacher_temperature": SIZES},
    ),
    "trades_loss": (F.trades_loss, (logits(),), {"clean_logits": logits(1), "labels": LABELS, "weight": SIZES}),
    "mart_loss": (F.mart_loss, (logits(),), {"clean_logits": logits(1), "labels": LABELS}),
    "attack_gradient": (F.attack_gradient, (logits(), LABELS), {"with_rows": True}),
    "attack_gradient targeted": (
        F.attack_gradient,
        (logits(), LABELS),
        {"loss": "dlr_targeted", "labels": LABELS.flip(0)},
    ),
    "attack_gradient kl": (F.attack_gradient, (logits(), logits(1)), {"loss": "kl"}),
    "attack_gradient scaled": (F.attack_gradient, (logits(), LABELS), {"scaled": True}),
    "crop_flip": (
        F.crop_flip,
        ((pixels() * 255).to(torch.uint8), LABELS.clamp(max=2)),
        {"padding": 1, "levels": 255, "seed": torch.tensor([3]), "ids": LABELS},
    ),
    "crop_flip views": (
        F.crop_flip,
        ((pixels() * 255).to(torch.uint8), LABELS.clamp(max=2)),
        {"padding": 1, "levels": 255, "views": LABELS},
    ),
    "affine_relu": (F.affine_relu, (pixels(), CHANNELS, CHANNELS, pixels(1)), {"mask": True}),
    "affine_relu_": (F.affine_relu_, (pixels(), CHANNELS, CHANNELS, pixels(1)), {"mask": True}),
    "affine_relu_backward": (
        F.affine_relu_backward,
        (pixels(), torch.arange(15, dtype=torch.uint8), CHANNELS),
        {},
    ),
    "APGDRun": (apgd, (pixels(), pixels(), GRAD, SIZES, LABELS > 1, SIZES), {}),
}


# Those that write, and what.
WRITTEN = {
    "pgd_linf_step_": ("x_adv",),
    "pgd_l2_step_": ("x_adv",),
    "mifgsm_step_": ("x_adv", "momentum"),
    "select_best_": ("best",),
    "affine_relu_": ("x",),
}


def apgd_run(x, start, norm="linf", steps=6):
    """Auto-PGD on a loss whose gradient needs no network."""
    run = F.APGDRun(x, start, eps=0.1, norm=norm, steps=steps)
    weight = torch.linspace(-1, 1, x[0].numel(), device=x.device).view(x[0].shape)
    for _ in range(steps):
        loss = (weight * run.x_adv.square()).flatten(1).sum(1)
        run.step(2 * weight * run.x_adv, loss, loss < 0)
    loss = (weight * run.x_adv.square()).flatten(1).sum(1)
    run.finish(loss, loss < 0)
    return run.x_best, run.x_fooled, run.loss_best, run.fooled, run.step_size


def prepared(case, device):
    """An operator and its arguments, the same numbers each time."""
    torch.manual_seed(0)
    operator, make, options = CASES[case]
    return operator, make(device, **options)


def kd_rows(student, teacher, _):
    numbers = None, None, None, None, None, 4.0, 4.0, 4.0, 1.0, 0.0, 1.0, 0.0, False, True, False
    return _ops.kd_loss(student, teacher, *numbers)


def pair_rows(adv, clean, labels):
    return _ops.pair_loss(adv, clean, labels, None, True, 5.0, 1.0, 5.0, 1.0, True, True)


def ce_gradient_rows(logits, _, labels):
    return _ops.attack_gradient(logits, labels, 0, None, 50.0, True)


# A loss, the rows of logits that it keeps in shared memory, and their classes. Two fp32 rows of 6080 classes fill what
# 512 bytes of static shared memory leave of the 48 KiB that a kernel may have without asking, of 6144 the whole 48 KiB.
AROUND_48_KIB = [
    (loss, rows, dtype, classes * 8 // (rows * dtype.itemsize))
    for loss, rows in ((kd_rows, 2), (pair_rows, 2), (ce_gradient_rows, 1))
    for dtype in (torch.float32, torch.float16)
    for classes in (6080, 6081, 6112, 6144, 6145)
]


def mapped(values, function):
    """Arguments with every tensor, also those in lists, replaced."""
    if isinstance(values, torch.Tensor):
        return function(values)
    return type(values)(mapped(v, function) for v in values) if isinstance(values, list | tuple) else values


def tensors(*values):
    """All tensors in nested arguments or results, in order."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors(*value)


def call(case, device):
    """What the operator returned, and its arguments as it left them."""
    op, arguments = prepared(case, device)
    return [*tensors(op(*arguments)), *tensors(arguments)]


def assert_same_bits(got, expected):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
