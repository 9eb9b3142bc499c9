#!/usr/bin/env python3
"""Compiles every CUDA source with nvcc, without a GPU, and checks what the compiler made of the kernels.

Run from anywhere: ``python scripts/check_nvcc.py [--arch 80 90 120] [--jobs 2]``. It needs nvcc and a torch package
(any build from 2.11 on, the CPU one too) for the stable-ABI headers. It fails (exit status 1) when

* nvcc, the host compiler or ptxas warns,
* any kernel spills registers,
* the PGD steps, the random start, the augmentation, the folding or affine_relu keep anything in local memory,
* a kernel has more static shared memory than its launcher allows for,
* the vector variant of an L-infinity step kernel moves anything by less than 128 bits, or the augmentation of whole
  quads its pixels.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
# As setup.py: no --use_fast_math. Host warnings of torch's own headers are not ours to fix: -isystem.
FLAGS = ["-O3", "--expt-relaxed-constexpr", "-DNDEBUG", "-Xptxas", "-v"]
FLAGS += ["-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off"]
WARNINGS = ["-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Wno-unused-parameter,-Werror"]
DEFINES = ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
# Kernels that must keep everything in registers, and the 128-bit global loads and stores of their vector variants
# for kVec elements a thread (pixels are float, so kVec of them are kVec / 4 vectors).
STEP_KERNEL = "pgd_linf_step_kernel"
# (tensors of gradients read, of pixels read, of gradients written, of pixels written)
# Those that the APGD step needs whatever it decides are read before its loop and in it.
WIDE_TENSORS = {STEP_KERNEL: (1, 2, 0, 1), "apgd_linf_step_kernel": (3, 7, 1, 4)}
REGISTERS_ONLY = ("pgd_linf_step", "random_start", "apgd_", "crop_flip", "fold_batch_norm", "affine_relu")
# Least 128-bit loads and stores whatever the dtype: two vectors a thread, of each tensor, and the coefficients. How
# often a load is written in the PTX depends on the branches of those that are not always given.
WIDE_AT_LEAST = {"affine_relu_kernel": (4, 2), "affine_relu_backward_kernel": (2, 2), "crop_flip_kernel": (0, 1)}
# What the launchers leave of the 48 KiB that a block has without asking.
MOST_SHARED = 16 * 1024


@dataclass
class Kernel:
    """What ptxas and the PTX say about one kernel on one architecture."""

    source: str
    arch: str
    mangled: str
    name: str = ""
    registers: int = -1
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    shared: int = 0
    wide_loads: int = 0
    wide_stores: int = 0

    def faults(self) -> list[str]:
        """Sentences about what is wrong; empty when nothing is."""
        found = []
        if self.registers < 0:
            found.append("ptxas reported no register count")
        if self.spill_stores or self.spill_loads:
            found.append(f"spills {self.spill_stores} bytes (stores), {self.spill_loads} bytes (loads)")
        if self.stack and self.name.startswith(REGISTERS_ONLY):
            found.append(f"uses {self.stack} bytes of local memory")
        if self.shared > MOST_SHARED:
            found.append(
                f"has {self.shared} bytes of static shared memory, at most {MOST_SHARED} (csrc/common/launch.h)"
            )
        family, _, arguments = self.name.partition("<")
        elements = int(arguments.rstrip(">").rsplit(",", 1)[-1]) if family in WIDE_TENSORS else 1
        wide, wanted = (self.wide_loads, self.wide_stores), WIDE_AT_LEAST.get(family, (0, 0))
        if elements > 1:
            grads_read, pixels_read, grads_written, pixels_written = WIDE_TENSORS[family]
            wanted = grads_read + pixels_read * elements // 4, grads_written + pixels_written * elements // 4
        if (wide != wanted) if elements > 1 else wide[0] < wanted[0] or wide[1] < wanted[1]:
            least = "" if elements > 1 else "at least "
            found.append(
                f"expected {least}{wanted[0]} 128-bit loads and {wanted[1]} stores, got {wide[0]} and {wide[1]}"
            )
        return found


def find_nvcc() -> str:
    """Path of nvcc: below $CUDA_HOME, on PATH, or in /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME")
    for candidate in [f"{home}/bin/nvcc"] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]:
        if path := shutil.which(candidate):
            return path
    sys.exit("check_nvcc: nvcc not found; install a CUDA toolkit or set CUDA_HOME")


def torch_include() -> list[str]:
    """Include flags for the headers in the torch package, found without importing it."""
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("check_nvcc: torch is not installed in this Python; its headers are needed (pip install torch)")
    base = Path(spec.submodule_search_locations[0]) / "include"
    return ["-isystem", str(base), "-isystem", str(base / "torch" / "csrc" / "api" / "include")]


def demangle(names: list[str]) -> dict[str, str]:
    """Readable names of mangled ones."""
    out = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return dict(zip(names, out.splitlines(), strict=True))


def short_name(name: str) -> str:
    """``void ard::cuda::f<float, (int)4>(ard::P)`` -> ``f<float, 4>``."""
    name = re.sub(r"\((?:int|bool|unsigned int|long|ard::cuda::Spread)\)", "", name)
    name = re.sub(r"^void ", "", name)
    name = re.sub(r"\b(?:ard|cuda|core|detail)::", "", name)
    depth = 0
    for position, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            return name[:position]
    return name


def parse_ptxas(source: str, log: str) -> dict[tuple[str, str], Kernel]:
    """Kernels by (architecture, mangled name) from the output of ``ptxas -v``."""
    kernels: dict[tuple[str, str], Kernel] = {}
    current = described = None
    for line in log.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            mangled, arch = found.groups()
            current = kernels.setdefault((arch, mangled), Kernel(source, arch, mangled))
        elif found := re.search(r"Function properties for (\w+)", line):
            described = found.group(1)
        elif current is None:
            continue
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            # Also printed for device functions that were not inlined: their spills count for the kernel.
            stack, stores, loads = map(int, found.groups())
            current.spill_stores += stores
            current.spill_loads += loads
            if described == current.mangled:
                current.stack = stack
        elif found := re.search(r"Used (\d+) registers", line):
            current.registers = int(found.group(1))
            shared = re.search(r"(\d+) bytes smem", line)
            current.shared = int(shared.group(1)) if shared else 0
    return kernels


WIDE = r"(?:\.\w+(?:::\w+)*)*\.(?:v4\.[fbus]32|v2\.[fbus]64|v8\.[fbus]16|b128)\b"


def count_wide_accesses(ptx: str) -> dict[str, tuple[int, int]]:
    """128-bit global loads and stores of each ``.entry`` of a PTX text."""
    counts = {}
    for entry in re.split(r"^(?:\.\w+\s+)*\.entry\s+", ptx, flags=re.MULTILINE)[1:]:
        name = re.match(r"\w+", entry)
        body = re.split(r"^\}", entry, maxsplit=1, flags=re.MULTILINE)[0]
        if name:
            counts[name.group()] = (
                len(re.findall(r"\bld\.global" + WIDE, body)),
                len(re.findall(r"\bst\.global" + WIDE, body)),
            )
    return counts


def compile_source(nvcc: str, source: Path, archs: list[str], include: list[str]) -> tuple[list[Kernel], str, float]:
    """Compiles one source for all architectures; returns its kernels, the compiler's complaint, the seconds taken."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="ard_nvcc_") as folder:
        command = [nvcc, "-c", str(source), "-o", str(Path(folder) / "out.o"), "--keep", "--keep-dir", folder]
        command += ["--threads=2"]  # architectures at once
        command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        command += ["-std=c++20", *FLAGS, *WARNINGS, *DEFINES, "-I", str(CSRC), *include]
        run = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        log = run.stdout + run.stderr
        if run.returncode != 0:
            lines = [line for line in log.splitlines() if not line.startswith(("ptxas info", "    "))]
            return [], "\n".join(lines[-60:]) or log[-4000:], time.perf_counter() - started
        kernels = parse_ptxas(source.name, log)
        for path in Path(folder).glob("*.ptx"):
            text = path.read_text()
            target = re.search(r"^\.target\s+(sm_\w+)", text, flags=re.MULTILINE)
            for mangled, (loads, stores) in count_wide_accesses(text).items():
                kernel = kernels.get((target.group(1) if target else "", mangled))
                if kernel:
                    kernel.wide_loads, kernel.wide_stores = loads, stores
    names = demangle([kernel.mangled for kernel in kernels.values()])
    for kernel in kernels.values():
        kernel.name = short_name(names[kernel.mangled])
    return list(kernels.values()), "", time.perf_counter() - started


def print_table(kernels: list[Kernel]) -> None:
    """One line a kernel and architecture."""
    width = max(len(kernel.name) for kernel in kernels)
    print(f"{'kernel':<{width}}  arch    regs stack spill   smem ld128 st128")
    for k in sorted(kernels, key=lambda k: (k.source, k.name, int(re.sub(r"\D", "", k.arch)))):
        print(
            f"{k.name:<{width}}  {k.arch:<7} {k.registers:>4} {k.stack:>5} {k.spill_stores + k.spill_loads:>5} "
            f"{k.shared:>6} {k.wide_loads:>5} {k.wide_stores:>5}"
        )


def main() -> int:
    """Compiles, prints the table and the faults; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["80", "90", "120"], help="compute capabilities")
    parser.add_argument("--jobs", type=int, default=2, help="sources compiled at once")
    parser.add_argument(
        "--counts", nargs="*", metavar="KERNEL", help="instead: what kernel_counts.py says of all, or these"
    )
    parser.add_argument("--update", action="store_true", help="with --counts of all: write the committed table")
    arguments = parser.parse_args()
    if arguments.update and arguments.counts != []:
        parser.error("--update goes with --counts of all kernels")
    if arguments.counts is not None:
        sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
        import kernel_counts

        return kernel_counts.main(arguments.counts, arguments.update)
    nvcc, include = find_nvcc(), torch_include()
    kernels: list[Kernel] = []
    faults: list[str] = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        sources = sorted(CSRC.glob("**/*.cu"))
        results = pool.map(lambda path: compile_source(nvcc, path, arguments.arch, include), sources)
        for source, (found, complaint, seconds) in zip(sources, results, strict=True):
            print(f"{source.relative_to(ROOT)}: {len(found)} kernels, {seconds:.1f} s", flush=True)
            kernels += found
            if complaint:
                faults.append(f"{source.name} does not compile cleanly:\n{complaint}")
    if kernels:
        print_table(kernels)
    faults += [f"{k.name} on {k.arch}: {fault}" for k in kernels for fault in k.faults()]
    # What nvcc and ptxas write has been understood: the kernels that are held to most are among those found.
    for arch in arguments.arch:
        if not any(k.name.startswith(STEP_KERNEL) and k.arch == f"sm_{arch}" for k in kernels):
            faults.append(f"no {STEP_KERNEL} was compiled for sm_{arch}")
    for fault in faults:
        print(f"FAULT: {fault}", file=sys.stderr)
    print(f"{len(kernels)} kernels checked, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
