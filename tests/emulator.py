"""Builds and loads the host emulator of the CUDA kernels, and calls it with torch CPU tensors.

The kernels of ``csrc/cuda`` are compiled by the ordinary C++ compiler ($CXX, else c++) into ``build/emulator``, once
for each state of the sources. The functions here take and return torch tensors and do what the bindings of the CUDA
ops do: same parameters, same launch geometry, other processor.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
SOURCES = sorted((CSRC / "testing").glob("*.cpp"))
# IEEE and without contraction, so that the step and the random start have the bits of the CPU op.
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off"]
FLAGS += ["-Wall", "-Wextra", "-Wno-unknown-pragmas"]


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX", "c++"))
    if not shutil.which(command[0]):
        raise RuntimeError(f"the emulator needs a C++ compiler, {command[0]!r} was not found; set CXX")
    return command


@lru_cache(maxsize=1)
def _build() -> tuple[Path, str]:
    """Path of the library for the sources as they are now, and why it could not be built ("" when it is there)."""
    import pybind11

    includes = [f"-I{CSRC}", f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_path('include')}"]
    command = [*_compiler(), *FLAGS, *includes, *map(str, SOURCES)]
    digest = hashlib.sha256("\0".join([*command, sys.version]).encode())
    headers = [*CSRC.glob("core/*.h"), *CSRC.glob("cuda/*.cuh"), *CSRC.glob("cuda/*.h"), *CSRC.glob("testing/*.h")]
    for path in sorted([*SOURCES, *headers]):
        digest.update(path.name.encode() + path.read_bytes())
    folder = ROOT / "build" / "emulator"
    library = folder / f"_emulator_{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library, ""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("_emulator_*"):
        if time.time() - old.stat().st_mtime > 24 * 3600:
            old.unlink(missing_ok=True)
    unfinished = library.with_suffix(f".{os.getpid()}.tmp")  # another process may be building the same
    run = subprocess.run([*command, "-o", str(unfinished), "-ldl"], capture_output=True, text=True)
    if run.returncode != 0:
        return library, f"compiling the emulator failed:\n{shlex.join(command)}\n{run.stderr[-8000:]}"
    os.replace(unfinished, library)
    return library, ""


@lru_cache(maxsize=1)
def load() -> ModuleType:
    """The extension module ``_emulator``, compiled if the sources have changed since the last time."""
    library, error = _build()
    if error:
        raise RuntimeError(error)
    loader = importlib.machinery.ExtensionFileLoader("_emulator", str(library))
    spec = importlib.util.spec_from_loader("_emulator", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _flat(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a dense tensor in memory order, as a 1-d array that shares it; 16-bit floats as uint16."""
    flat = tensor.detach().as_strided((tensor.numel(),), (1,))
    return _bits(flat)


def _bits(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.detach().view(torch.int16).numpy().view(np.uint16)
    return tensor.detach().numpy()


def _dtype(tensor: torch.Tensor) -> str:
    return {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}[tensor.dtype]


def _per_sample(value: float | torch.Tensor) -> tuple[float, np.ndarray | None]:
    return (0.0, value.numpy()) if isinstance(value, torch.Tensor) else (value, None)


def set_order(order: str, seed: int = 0) -> None:
    """Order of the threads of a block between barriers: "forward", "reverse" or "shuffled"."""
    load().set_order(order, seed)


def pgd_linf_step_(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float | torch.Tensor,
    eps: float | torch.Tensor,
    targeted: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> torch.Tensor:
    """As ``ard_fast.functional.pgd_linf_step_``, by the CUDA kernel."""
    step, steps = _per_sample(step_size)
    radius, radii = _per_sample(eps)
    batch = x_adv.shape[0] if x_adv.dim() else 1
    load().pgd_linf_step_(
        x_adv=_flat(x_adv),
        grad=_flat(grad),
        grad_dtype=_dtype(grad),
        x=_flat(x),
        step_size_per_sample=steps,
        eps_per_sample=radii,
        batch=batch,
        step_size=step,
        eps=radius,
        direction=-1.0 if targeted else 1.0,
        lower=bounds[0],
        upper=bounds[1],
    )
    return x_adv


def random_start(
    x: torch.Tensor,
    *,
    eps: float | torch.Tensor,
    seed: int,
    sample_ids: torch.Tensor | None = None,
    init: str = "uniform",
    std: float = 0.001,
    clamp: bool = True,
    bounds: tuple[float, float] = (0.0, 1.0),
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As ``ard_fast.functional.random_start``, by the CUDA kernel; ``out`` takes the place of a new tensor."""
    if out is None:
        out = torch.empty_like(x)
    channels_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    assert channels_last or x.is_contiguous()
    radius, radii = _per_sample(eps)
    load().random_start(
        out=_flat(out),
        x=_flat(x),
        eps_per_sample=radii,
        seed=np.array([seed], dtype=np.int64),
        sample_ids=None if sample_ids is None else sample_ids.numpy(),
        batch=x.shape[0],
        channels=x.shape[1] if channels_last else 1,
        eps=radius,
        std=std,
        lower=bounds[0] if clamp else -np.inf,
        upper=bounds[1] if clamp else np.inf,
        normal=init == "normal",
    )
    return out


def kd_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    clean: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    *,
    temperature: float = 1.0,
    teacher_temperature: float | torch.Tensor | None = None,
    clean_teacher_temperature: float | torch.Tensor | None = None,
    kl_weight: float = 1.0,
    clean_weight: float = 0.0,
    weight: torch.Tensor | None = None,
    with_grad: bool = True,
    grad_teacher: torch.Tensor | None = None,
    grad_scale: torch.Tensor | None = None,
    variant: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Row losses [B] and the gradients [B, C] of their sum, by the CUDA kernel.

    ``grad_teacher``, contiguous and of the student's dtype, receives the gradient for the teacher; ``grad_scale``,
    float32 [B], the powers of two that the rows of the gradients are multiplied by if it is given.

    ``variant``: "auto" as the launcher decides, "warp" (a warp a row, up to 1,024 classes), "block" (a block of two
    warps a row, kept in shared memory) or "block_uncached" (read again from memory for every pass).
    """
    grads = [torch.full_like(t, torch.nan, memory_format=torch.contiguous_format) for t in (student, student)]
    loss = torch.full((student.shape[0],), torch.nan)
    of_teacher, per_sample = _per_sample(temperature if teacher_temperature is None else teacher_temperature)
    of_clean, clean_per_sample = _per_sample(
        temperature if clean_teacher_temperature is None else clean_teacher_temperature
    )
    load().kd_loss(
        student=_bits(student),
        teacher=_bits(teacher),
        clean=None if clean is None else _bits(clean),
        labels=None if labels is None else labels.numpy(),
        weight=None if weight is None else weight.numpy(),
        teacher_temperature=per_sample,
        clean_teacher_temperature=clean_per_sample,
        dtype=_dtype(student),
        loss_rows=loss.numpy(),
        grad_student=_bits(grads[0]) if with_grad else None,
        grad_clean=_bits(grads[1]) if with_grad and clean is not None else None,
        grad_teacher=None if grad_teacher is None else _bits(grad_teacher),
        grad_scale=None if grad_scale is None else grad_scale.numpy(),
        inv_temperature=1.0 / temperature,
        inv_teacher_temperature=1.0 / of_teacher if of_teacher else 0.0,
        inv_clean_teacher_temperature=1.0 / of_clean if of_clean else 0.0,
        kl_weight=kl_weight,
        clean_weight=clean_weight,
        kl_grad_weight=kl_weight / temperature,
        clean_grad_weight=clean_weight if labels is not None else clean_weight / temperature,
        variant=variant,
    )
    return loss, grads[0] if with_grad else None, grads[1] if with_grad and clean is not None else None


def sum_rows(rows: torch.Tensor) -> float:
    """The sum of a float32 vector, by the CUDA kernel."""
    return load().sum_rows(rows.numpy())


def scale_rows_(grad: torch.Tensor, scale: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """``grad[i] *= factor * scale[i]`` of [B, C] in place, by the CUDA kernel; `scale` has one element or B."""
    load().scale_rows(
        grad=_flat(grad), dtype=_dtype(grad), classes=grad.shape[1], scale=scale.reshape(-1).numpy(), factor=factor
    )
    return grad
