"""What stands between the layers of a folded network, the folding, and the batch it begins with. For bench_ops.py.

affine_relu, channels_last activations of a batch of 128 on CUDA and of 32 on a CPU. Every forward pass leaves what its
backward pass needs: ours a bit an element, the others their result. The least traffic counts the bits as ours has them.

    norm       relu(x * scale[c] + shift[c]) to new memory; `torch` is batch_norm in eval mode and relu_
    add        relu(x + residual) over x; `torch` is add_ and relu_
    backward   the gradient through relu; `torch` is threshold_backward

fold: every batch norm of a network folded into its convolution, in memory that stays where it is. Least traffic: each
weight read as float32 and written in the dtype, four vectors read and one written for each output channel.

    layers     layer by layer: five operations each, none of them with an intermediate of the weight's size
    foreach    scales and shifts of all layers by torch._foreach_*, then one product a layer straight into its place
    compile    torch.compile of the first form over all layers
    fused      ard_fast.folding.FoldedWeights.refresh

augment: crop, flip and conversion of stored bytes to float32, the same views for everybody. Least traffic: a byte read
and four written for each pixel.

    indexing   one advanced indexing of a padded copy of the data set
    masks      as cifar10-airbench does: rows and columns cut by a loop over the shifts with a mask each
    compile    torch.compile of an indexing form, from the images as they are, without a padded copy
    fused      ard_fast.functional.crop_flip, which also draws the views: those of the others are drawn beforehand
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from _run import Problem, Row, Sets, WrongResult, compiled, copies, require_close
from torch import Tensor, nn
from torch.nn.functional import pad

BATCH = {"cpu": 32, "cuda": 128}
AFFINE_SHAPES = {
    "resnet18-64": (64, 32, 32),  # the widest and the narrowest planes of ResNet-18 on 32x32 images
    "resnet18-512": (512, 4, 4),
    "mobilenetv2-144": (144, 32, 32),  # the same of MobileNetV2
    "mobilenetv2-960": (960, 4, 4),
    "imagenet-64": (64, 112, 112),  # behind the first convolution of a ResNet on 224x224 images
}
NETWORKS = ("mobilenetv2", "resnet18")
AUGMENT_SIZES: dict[str, tuple[int, ...]] = {"cifar-128": (128, 3, 32, 32), "imagenet-128": (128, 3, 224, 224)}

BN_EPS = 1e-5
PADDING = 4
SEED = 7


def keeping(work: Callable[[int], Any], n: int) -> Callable[[int], Any]:
    """The call with its last result a buffer set kept, so that each result goes to other memory."""
    kept: list[object] = [None] * n

    def call(i: int) -> Any:
        kept[i] = out = work(i)
        return out

    return call


# ---------------------------------------------------------------------------------------------------------------------
# affine_relu
# ---------------------------------------------------------------------------------------------------------------------


def affine(form: str, size: str, dtype: torch.dtype, device: torch.device, sets: Sets) -> Problem:
    """Returns "norm", "add" or "backward" at `size`."""
    from ard_fast import functional as F
    from ard_fast import reference

    shape = (BATCH[device.type], *AFFINE_SHAPES[size])
    generator = torch.Generator().manual_seed(0)

    def activations() -> Tensor:
        values = torch.randn(shape, generator=generator).to(device, dtype)
        return values.contiguous(memory_format=torch.channels_last)

    x0, other0 = activations(), activations()
    if form == "backward":
        other0.relu_()
    gamma, beta, mean, var = torch.randn(4, shape[1], generator=generator).to(device)
    var = var.square() + 0.5
    scale = gamma / (var + BN_EPS).sqrt()
    shift = beta - mean * scale
    bytes_min = x0.numel() * dtype.itemsize * (3 if form == "add" else 2) + x0.numel() // 8
    n = sets(bytes_min)
    x, other = copies(x0, n), copies(other0, n) if form != "norm" else []
    masks = copies(reference.pack_mask(other0), n) if form == "backward" else []

    def reset(n: int) -> None:
        for tensor in x[: n if form == "add" else 0]:
            tensor.copy_(x0)

    def torch_norm(i: int) -> Tensor:
        return torch.relu_(nn.functional.batch_norm(x[i], mean, var, gamma, beta, False, 0.0, BN_EPS))

    def plain_norm(x: Tensor) -> Tensor:
        return torch.relu(x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).to(x.dtype)

    def add(x: Tensor, residual: Tensor) -> Tensor:
        return x.add_(residual).relu_()

    def backward(grad: Tensor, y: Tensor) -> Tensor:
        return torch.ops.aten.threshold_backward(grad, y, 0)

    def over_compiled(function: Callable[..., Tensor]) -> Callable[[int], Tensor]:
        whole = compiled(function)
        return lambda i: whole(x[i], *other[i : i + 1])

    calls: dict[str, Callable[[], Callable[[int], object]]] = {
        "norm": {
            "torch": lambda: torch_norm,
            "compile": lambda: over_compiled(plain_norm),
            "fused": lambda: lambda i: F.affine_relu(x[i], scale, shift, mask=True),
        },
        "add": {
            "torch": lambda: lambda i: add(x[i], other[i]),
            "compile": lambda: over_compiled(add),
            "fused": lambda: lambda i: (x[i], F.affine_relu_(x[i], residual=other[i], mask=True)),
        },
        "backward": {
            "torch": lambda: lambda i: backward(x[i], other[i]),
            "compile": lambda: over_compiled(backward),
            "fused": lambda: lambda i: F.affine_relu_backward(x[i], masks[i]),
        },
    }[form]

    def check(name: str, out: Any) -> Row:
        if form == "norm":
            want, _ = reference.affine_relu(x0.double(), scale.double(), shift.double())
        elif form == "add":
            want, _ = reference.affine_relu(x0.double(), residual=other0.double())
        else:
            want = x0.double().where(other0 > 0, torch.zeros((), dtype=torch.float64, device=device))
        got, mask = out if isinstance(out, tuple) else (out, None)
        if mask is not None and not mask.equal(reference.pack_mask(got)):
            raise WrongResult(f"{name}: not the mask of its result")
        if not got.is_contiguous(memory_format=torch.channels_last):
            raise WrongResult(f"{name}: not channels_last")
        # Rounded once at the end by all; torch's batch norm has its own order of float32 operations.
        tolerance = float(want.abs().max()) * (2e-7 if dtype == torch.float32 else 4e-3)
        return require_close(name, "result", got, want, tolerance)

    return Problem(
        shape=shape,
        bytes_min=bytes_min,
        traffic=("two tensors read, one" if form == "add" else "a tensor read, one") + " written, a bit an element",
        baseline="torch",
        makers={name: lambda make=make: keeping(make(), n) for name, make in calls.items()},
        check=check,
        reset=reset,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Folding
# ---------------------------------------------------------------------------------------------------------------------


class Layers:
    """A new network's convolutions and norms, and where the torch forms write the folded weights and shifts.

    Args:
        name: Of the network.
        layout: Of its parameters.
        seed: Of parameters and statistics, which are of a trained network's size.
        dtype: Of the folded weights.
    """

    def __init__(self, name: str, layout: torch.memory_format, device: torch.device, seed: int, dtype: torch.dtype):
        from ard_fast.models import build_model

        torch.manual_seed(seed)
        network = build_model(name, num_classes=10).to(device, memory_format=layout)
        modules = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
        self.pairs: list[Any] = list(zip(modules[::2], modules[1::2], strict=True))
        norms = [norm for _, norm in self.pairs]
        with torch.no_grad():
            for norm in norms:
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.1, 2.0)
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_()
        self.eps = norms[0].eps
        self.sources = [conv.weight.detach() for conv, _ in self.pairs]
        self.gammas, self.betas = [norm.weight.detach() for norm in norms], [norm.bias.detach() for norm in norms]
        self.means, self.variances = [norm.running_mean for norm in norms], [norm.running_var for norm in norms]
        self.weights = [torch.empty_like(s, dtype=dtype, memory_format=torch.channels_last) for s in self.sources]
        self.shifts = [torch.empty_like(beta) for beta in self.betas]

    def layers(self) -> None:
        """Layer by layer, each product straight into its place."""
        for i, source in enumerate(self.sources):
            scale = (self.variances[i] + self.eps).rsqrt_().mul_(self.gammas[i])
            torch.mul(source, scale.view(-1, 1, 1, 1), out=self.weights[i])
            torch.addcmul(self.betas[i], self.means[i], scale, value=-1, out=self.shifts[i])

    def foreach(self) -> None:
        """The vectors of all layers at once."""
        scales = torch._foreach_add(self.variances, self.eps)
        torch._foreach_rsqrt_(scales)
        torch._foreach_mul_(scales, self.gammas)
        torch._foreach_copy_(self.shifts, torch._foreach_addcmul(self.betas, self.means, scales, value=-1))
        for source, scale, weight in zip(self.sources, scales, self.weights, strict=True):
            torch.mul(source, scale.view(-1, 1, 1, 1), out=weight)


def functional_layers(
    sources: list[Tensor],
    gammas: list[Tensor],
    betas: list[Tensor],
    means: list[Tensor],
    variances: list[Tensor],
    weights: list[Tensor],
    shifts: list[Tensor],
    eps: float,
) -> None:
    """For the compiler: the same, layer by layer."""
    for i, source in enumerate(sources):
        scale = gammas[i] * (variances[i] + eps).rsqrt()
        weights[i].copy_(source * scale.view(-1, 1, 1, 1))
        shifts[i].copy_(betas[i] - means[i] * scale)


def fold(name: str, channels_last: bool, dtype: torch.dtype, device: torch.device, sets: Sets) -> Problem:
    """Returns the folding of a network whose parameters are channels_last or contiguous."""
    from ard_fast import reference
    from ard_fast.folding import FoldedWeights, FoldLayer

    layout = torch.channels_last if channels_last else torch.contiguous_format
    first = Layers(name, layout, device, 0, dtype)
    weights, channels = sum(s.numel() for s in first.sources), sum(b.numel() for b in first.betas)
    bytes_min = weights * (4 + dtype.itemsize) + channels * 4 * (4 + 1)
    n = sets(bytes_min)
    networks = [first, *(Layers(name, layout, device, seed, dtype) for seed in range(1, n))]
    written: dict[str, Any] = {}

    def make(variant: str) -> Callable[[int], object]:
        if variant == "fused":
            folded = [FoldedWeights([FoldLayer(*pair) for pair in network.pairs], dtype) for network in networks]
            written[variant] = [(folded[0].weight(i), folded[0].shift(i)) for i in range(len(first.pairs))]
            return lambda i: folded[i].refresh()
        written[variant] = list(zip(first.weights, first.shifts, strict=True))
        if variant == "compile":
            whole = compiled(functional_layers)
            tensors = [{key: value for key, value in vars(network).items() if key != "pairs"} for network in networks]
            return lambda i: whole(**tensors[i])
        return lambda i: getattr(networks[i], variant)()

    def check(variant: str, _: object) -> Row:
        row: Row = {}
        for (conv, norm), (weight, shift) in zip(first.pairs, written[variant], strict=True):
            tensors = (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
            kernel, gamma, beta, mean, var = (t.detach().double() for t in tensors)
            wanted = reference.fold_batch_norm(kernel, None, gamma, beta, mean, var, norm.eps)
            # 2^-8 is half a unit of bfloat16's last place just above a power of two.
            rounding = 5e-7 if dtype == torch.float32 else 2.0**-8 + 5e-7
            require_close(variant, "a shift", shift, wanted[2], 5e-7 * float(wanted[2].abs().max()))
            row = require_close(variant, "a weight", weight, wanted[0], rounding * float(wanted[0].abs().max()))
            weight.zero_()
            shift.zero_()
        return row

    return Problem(
        shape=(len(first.pairs), weights),
        bytes_min=bytes_min,
        traffic=f"4 bytes read, {dtype.itemsize} written for each weight, 20 for each channel",
        baseline="layers",
        makers={v: lambda v=v: make(v) for v in ("layers", "foreach", "compile", "fused")},
        check=check,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Augmentation
# ---------------------------------------------------------------------------------------------------------------------


def _indices(count: int, height: int, width: int, row: Tensor, column: Tensor, flip: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [count, height] and columns [count, width] of the padded image that the views show."""
    columns = torch.arange(width, device=row.device).expand(count, width)
    columns = torch.where(flip[:, None], width - 1 - columns, columns) + column[:, None]
    return row[:, None] + torch.arange(height, device=row.device), columns


def indexing(padded: Tensor, positions: Tensor, row: Tensor, column: Tensor, flip: Tensor) -> Tensor:
    """Crops, flips and gathers by one index per dimension."""
    channels, height, width = padded.shape[1], padded.shape[2] - 2 * PADDING, padded.shape[3] - 2 * PADDING
    rows, columns = _indices(len(positions), height, width, row, column, flip)
    channel = torch.arange(channels, device=padded.device)[None, :, None, None]
    pixels = padded[positions[:, None, None, None], channel, rows[:, None, :, None], columns[:, None, None, :]]
    return pixels.to(torch.float32) / 255


def unpadded(images: Tensor, positions: Tensor, row: Tensor, column: Tensor, flip: Tensor) -> Tensor:
    """For the compiler: the same from the images as they are, zero where the index leaves them."""
    channels, height, width = images.shape[1:]
    rows, columns = _indices(len(positions), height, width, row - PADDING, column - PADDING, flip)
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None, :]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    pixels = images[positions[:, None, None, None], channel, rows[:, None, :, None], columns[:, None, None, :]]
    return torch.where(inside, pixels.to(torch.float32) / 255, 0.0)


def masks(padded: Tensor, positions: Tensor, row: Tensor, column: Tensor, flip: Tensor) -> Tensor:
    """Crops one direction after the other, all images of a shift at once, then flips."""
    images = padded[positions]
    count, channels, padded_height, padded_width = images.shape
    height, width = padded_height - 2 * PADDING, padded_width - 2 * PADDING
    half = images.new_empty((count, channels, height, padded_width))
    out = images.new_empty((count, channels, height, width))
    for shift in range(2 * PADDING + 1):
        half[row == shift] = images[row == shift, :, shift : shift + height]
    for shift in range(2 * PADDING + 1):
        out[column == shift] = half[column == shift, :, :, shift : shift + width]
    pixels = out.to(torch.float32) / 255
    return torch.where(flip.view(-1, 1, 1, 1), pixels.flip(-1), pixels)


def augment(size: str, channels_last: bool, dtype: torch.dtype, device: torch.device, sets: Sets) -> Problem:
    """Returns the batches of a case, of different images; `dtype` is of no account."""
    from ard_fast import functional as F
    from ard_fast import reference

    batch, *image = AUGMENT_SIZES[size]
    bytes_min = 5 * torch.Size(AUGMENT_SIZES[size]).numel()
    n = sets(bytes_min)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n * batch, *image), dtype=torch.uint8, generator=generator).to(device)
    padded = pad(images, (PADDING,) * 4)
    positions = torch.randperm(len(images), generator=generator).view(n, batch).to(device)
    ids, seed = torch.arange(len(images), device=device), torch.tensor([SEED], device=device)
    views = [reference.draw_views(ids[chosen], seed=SEED, padding=PADDING, flip=True) for chosen in positions]
    span = 2 * PADDING + 1
    parts = [(view // 2 // span, view // 2 % span, view % 2 != 0) for view in views]  # row, column, flip
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def formed(form: Callable[..., Tensor], source: Tensor) -> Callable[[int], Tensor]:
        return lambda i: form(source, positions[i], *parts[i]).contiguous(memory_format=layout)

    def over_compiled() -> Callable[[int], Tensor]:
        whole = compiled(lambda *arguments: unpadded(*arguments).contiguous(memory_format=layout))
        return lambda i: whole(images, positions[i], *parts[i])

    def fused(i: int) -> Tensor:
        settings = {"seed": seed, "ids": ids, "padding": PADDING, "levels": 255, "channels_last": channels_last}
        return F.crop_flip(images, positions[i], **settings)[0]

    def check(name: str, got: Tensor) -> Row:
        if not got.is_contiguous(memory_format=layout):
            raise WrongResult(f"{name}: not in the memory format asked for")
        chosen = images.cpu(), positions[0].cpu()
        want, _ = reference.crop_flip(*chosen, views=views[0].cpu(), padding=PADDING, levels=255)
        # On CUDA torch's own division by a number is a product with its reciprocal, an ulp off.
        return require_close(name, "pixels", got.cpu(), want, 0.0 if name == "fused" or device.type == "cpu" else 2e-7)

    makers = {
        "indexing": lambda: formed(indexing, padded),
        "masks": lambda: formed(masks, padded),
        "compile": over_compiled,
        "fused": lambda: fused,
    }
    return Problem(
        shape=AUGMENT_SIZES[size],
        bytes_min=bytes_min,
        traffic="a byte read, 4 written for each pixel",
        baseline="indexing",
        makers={name: lambda make=make: keeping(make(), n) for name, make in makers.items()},
        check=check,
        uncapturable=("masks",),
    )
