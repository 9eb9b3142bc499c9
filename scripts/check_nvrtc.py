#!/usr/bin/env python3
"""Compiles every CUDA kernel with NVRTC, without a GPU, as a machine without nvcc does, and checks the results.

Run from anywhere: ``python scripts/check_nvrtc.py [--arch 80 90 120] [--kernels REGEX] [--jobs 2]``. It needs the
package built (its module ``_C_rtc`` lists the kernels), and NVRTC from PyPI: ``pip install cuda-bindings
nvidia-cuda-nvrtc`` (version 12 or 13 of both, ``nvidia-cuda-nvrtc-cu12`` for the former). It fails (exit status 1) when

* NVRTC or ptxas warns, or refuses a kernel's name,
* a kernel spills more than a few registers, or one that must keep everything in registers does not.

With --nvcc it also compares each kernel's machine code with what nvcc makes of the same source, byte for byte, and
lists where it differs. The same code gives the same bits; different code need not give different ones: the compilers'
own headers differ, those of the warp shuffles for one.

Exit status 2 means that the check could not run.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import check_nvcc  # noqa: E402

# Bytes. nvcc spills nothing (check_nvcc.py); NVRTC 13.0 spills 16 bytes in 4 of 528 kernels, all of them of long rows
# that are not aligned.
FEW = 32

# In a process of its own: importing the module registers its operators for good.
LIST = """
import json, sys
from ard_fast import _cuda_part
from ard_fast._load import load
path = _cuda_part.module_file(load().c_path.parent, "_C_rtc")
if path is None:
    sys.exit(f"no _C_rtc beside {load().c_path}: build the package")
print(json.dumps(_cuda_part.import_file("ard_fast._C_rtc", path).kernels()))
"""


def kernels(pattern: str) -> dict[str, list[str]]:
    """The name expressions that match, by the header that defines them."""
    run = subprocess.run([sys.executable, "-c", LIST], text=True, capture_output=True, cwd=ROOT)
    if run.returncode != 0:
        raise check_nvcc.CannotRun(run.stderr.strip())
    found: dict[str, list[str]] = defaultdict(list)
    for header, name in json.loads(run.stdout.splitlines()[-1]):
        if re.search(pattern, name):
            found[header].append(name)
    return found


def machine_code(image: bytes) -> dict[str, bytes]:
    """The code of each kernel in a cubin, which is an ELF file of 64 bits: the sections `.text.<kernel>`."""
    table, size, count, names = (
        *struct.unpack_from("<Q", image, 0x28),
        *struct.unpack_from("<HHH", image, 0x3A),
    )
    sections = [struct.unpack_from("<IIQQQQ", image, table + i * size) for i in range(count)]
    strings = sections[names][4]
    code = {}
    for name, _, _, _, offset, length in sections:
        begin = strings + name
        text = image[begin : image.index(b"\0", begin)].decode()
        if text.startswith(".text."):
            code[text.removeprefix(".text.")] = image[offset : offset + length]
    return code


def by_short_name(code: dict[str, bytes]) -> dict[str, bytes]:
    """With readable names: NVRTC and nvcc mangle int64_t differently."""
    readable = check_nvcc.demangle(list(code))
    return {check_nvcc.short_name(readable[mangled]): text for mangled, text in code.items()}


def compile_header(header: str, names: list[str], arch: str) -> tuple[list[check_nvcc.Kernel], dict[str, bytes], str]:
    """The kernels of a header as ptxas describes them, their code by short name, and what is wrong ("": nothing)."""
    from ard_fast.nvrtc import program, toolchain

    try:
        image, entries, log = toolchain.CudaBindings().compile_all(
            program.text(header), (*program.options(), "--ptxas-options=-v"), names, f"sm_{arch}"
        )
    except toolchain.CompileError as error:
        return [], {}, f"{header}: {error}"
    said = [line for line in log.splitlines() if line.strip() and not line.startswith(("ptxas info", "ptxas   "))]
    described = {kernel.mangled: kernel for kernel in check_nvcc.parse_ptxas(header, log).values()}
    readable = check_nvcc.demangle(entries)
    for entry in entries:
        described[entry].name = check_nvcc.short_name(readable[entry])
    complaint = f"{header} on sm_{arch}:\n" + "\n".join(said) if said else ""
    return [described[entry] for entry in entries], by_short_name(machine_code(image)), complaint


def compile_with_nvcc(nvcc: str, header: str, arch: str) -> dict[str, bytes]:
    """The code that nvcc makes of the kernels of a header, by short name, with the options of setup.py."""
    source = check_nvcc.CSRC / header.replace("_kernels.cuh", "_cuda.cu")
    with tempfile.TemporaryDirectory(prefix="ard_nvcc_") as folder:
        cubin = Path(folder) / "out.cubin"
        command = [nvcc, "-cubin", f"-arch=sm_{arch}", str(source), "-o", str(cubin), "-std=c++20", "-O3", "-lineinfo"]
        command += ["--expt-relaxed-constexpr", "-DNDEBUG", "-I", str(check_nvcc.CSRC)]
        subprocess.run(command, check=True)
        return by_short_name(machine_code(cubin.read_bytes()))


def judge(kernel: check_nvcc.Kernel) -> list[str]:
    """Sentences about what is wrong; empty when nothing is."""
    found = []
    if kernel.registers < 0:
        found.append("ptxas reported no register count")
    if max(kernel.spill_stores, kernel.spill_loads) > FEW:
        found.append(f"spills {kernel.spill_stores} bytes (stores), {kernel.spill_loads} bytes (loads)")
    if kernel.stack and kernel.name.startswith(check_nvcc.REGISTERS_ONLY):
        found.append(f"uses {kernel.stack} bytes of local memory")
    return [f"{kernel.name} on {kernel.arch}: {fault}" for fault in found]


def compare(header: str, arch: str, mine: dict[str, bytes], nvcc: str) -> list[str]:
    """The kernels whose code is not nvcc's."""
    theirs = compile_with_nvcc(nvcc, header, arch)
    return [f"{name} on sm_{arch}" for name in mine if mine[name] != theirs.get(name)]


def check_one(work: tuple[str, list[str], str, str | None]) -> tuple[str, str, int, float, list[str], list[str]]:
    """One header for one architecture: header, architecture, kernels, seconds, faults, those unlike nvcc's."""
    header, names, arch, nvcc = work
    started = time.perf_counter()
    described, code, complaint = compile_header(header, names, arch)
    faults = [complaint] if complaint else []
    faults += [fault for kernel in described for fault in judge(kernel)]
    unlike = compare(header, arch, code, nvcc) if nvcc and code else []
    return header, arch, len(described), time.perf_counter() - started, faults, unlike


def check(archs: list[str], pattern: str, jobs: int, nvcc: str | None) -> int:
    """Compiles, prints a line a header and the faults; returns the exit status."""
    from ard_fast.nvrtc import toolchain

    try:
        compiler = toolchain.CudaBindings()
    except Exception as error:
        raise check_nvcc.CannotRun(f"no NVRTC: {type(error).__name__}: {error}") from None
    print(compiler.name, flush=True)
    work = [(header, names, arch, nvcc) for arch in archs for header, names in kernels(pattern).items()]
    if not work:
        raise check_nvcc.CannotRun(f"no kernel's name matches {pattern!r}")
    counted, faults, unlike = 0, [], []
    with ProcessPoolExecutor(jobs) as pool:
        for header, arch, count, seconds, found, other in pool.map(check_one, work):
            print(f"{header} sm_{arch}: {count} kernels, {seconds:.1f} s", flush=True)
            for fault in found:
                print(f"FAULT: {fault}", file=sys.stderr, flush=True)
            for name in other:
                print(f"not the code of nvcc: {name}", flush=True)
            counted, faults, unlike = counted + count, faults + found, unlike + other
    if nvcc:
        print(f"{counted - len(unlike)} of {counted} kernels have the machine code of nvcc, byte for byte")
    print(f"{counted} kernels checked, {len(faults)} faults")
    return 1 if faults else 0


def main() -> int:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["80", "90", "120"], help="compute capabilities")
    parser.add_argument("--kernels", default="", metavar="REGEX", help="only those whose name matches")
    parser.add_argument("--jobs", type=int, default=2, help="headers compiled at once")
    parser.add_argument("--nvcc", action="store_true", help="compare the machine code with nvcc's")
    arguments = parser.parse_args()
    try:
        nvcc = check_nvcc.find_nvcc() if arguments.nvcc else None
        return check(arguments.arch, arguments.kernels, arguments.jobs, nvcc)
    except check_nvcc.CannotRun as reason:
        print(f"check_nvrtc: cannot run: {reason}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
