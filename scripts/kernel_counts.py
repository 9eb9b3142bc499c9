"""What the hot kernels cost, in numbers that need no GPU: `python scripts/check_nvcc.py --counts [--update]`.

Each call of `cases()` runs on the emulated GPU (`tests/emulated_gpu.py`, sm_90), which says how often a warp executed
each line of PTX. The kernels that ran are compiled from this very PTX, and a warp's instruction counts 32, whatever
lanes it is for: what idle lanes cost is a cost. Columns of the table, an element being one logit or pixel of the
output, or one weight:

    sass       executed instructions of the machine code an element. An instruction of SASS is executed as often as the
               line of PTX that ptxas made it from, so the path is the one that this input takes. Left out: what only
               diverged warps reach (BRA.DIV), and blocks that call a subroutine of ptxas for unusual operands. Where
               ptxas unrolled a loop, copies of a block count as one of mean length; there are as many copies as of the
               block's loads, stores, shuffles and floating-point additions and products, which never become two.
    ptx        executed instructions of PTX an element
    global     executed loads and stores of global memory an element; a 16-byte access of fp32 is 0.25
    wide       percent of these that are of 16 bytes
    registers  of a thread \\
    blocks     that a multiprocessor holds, by registers, threads and shared memory: of the kernel with most of `sass`
    launches   of a call, backward included
"""

from __future__ import annotations

import csv
import math
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import emulated_gpu
import torch
from check_nvcc import WIDE, find_nvcc, parse_ptxas

from ard_fast import functional as F
from ard_fast.functional import _ops

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "scripts" / "kernel_counts.csv"
ARCH = 90
MORE = 1.05  # a count may grow by this much
COLUMNS = ("sass", "ptx", "global", "wide", "registers", "blocks", "launches")
LARGER_IS_BETTER = ("wide", "blocks")
# What sm_90 has: registers, warps and blocks of a multiprocessor, its shared memory, what each block takes of it.
REGISTERS, WARPS, BLOCKS, SHARED, SHARED_OF_SYSTEM = 65536, 64, 32, 228 * 1024, 1024
# PTX that becomes one of these instructions of SASS, beside moves of its operands, or none.
ONE_TO_ONE = re.compile(
    r"\b(?:(?:ld|st)\.(?!param|local|const)|shfl\.|bar\.|(?:add|sub|mul|fma)\.(?:rn\.)?f(?:32|64)\b)"
)
THAT_ONE = re.compile(r"(?:LD[GS]?|ST[GS]?|SHFL|BAR|[FD]ADD|[FD]MUL|FFMA|DFMA)\b")
GLOBAL = re.compile(r"\b(?:ld|st)(?:\.volatile|\.weak|\.relaxed\.\w+)?\.global")
WIDE_GLOBAL = re.compile(r"\b(?:ld|st)\.global" + WIDE)


class Case(NamedTuple):
    """A call to count, and the size of what it is about."""

    name: str
    size: tuple[int, ...]
    call: Callable[[], Any]


def starts() -> Iterator[Case]:
    """What makes float32 images."""
    size, seed = (68, 3, 32, 32), torch.tensor([1])
    x, stored = torch.rand(size), torch.randint(256, size, dtype=torch.uint8)
    yield Case("random_start", size, lambda: F.random_start(x, eps=0.1, seed=seed))
    ids = torch.arange(len(x))
    yield Case("crop_flip", size, lambda: F.crop_flip(stored, ids, padding=4, levels=255, seed=seed))


def steps(dtype: torch.dtype, size: tuple[int, ...]) -> Iterator[Case]:
    """The steps of attacks, with the gradient in this dtype."""
    x, momentum, grad = torch.rand(size), torch.zeros(size), torch.randn(size).to(dtype)
    by = {"eps": 0.1, "step_size": 0.01}
    yield Case("pgd_linf_step", size, lambda: F.pgd_linf_step_(x.clone(), grad, x, **by))
    yield Case("pgd_l2_step", size, lambda: F.pgd_l2_step_(x.clone(), grad, x, **by))
    yield Case("mifgsm_step", size, lambda: F.mifgsm_step_(x.clone(), momentum, grad, x, **by))
    loss, correct = torch.rand(len(x)), torch.ones(len(x), dtype=torch.bool)
    for norm in ("linf", "l2"):
        run = F.APGDRun(x, x.clone(), eps=0.1, norm=norm)
        run.step(grad, loss, correct)  # the second one compares
        yield Case(f"apgd_{norm}_step", size, partial(run.step, grad, loss + 1, correct))


def layers(dtype: torch.dtype) -> Iterator[Case]:
    """What folding a network takes, and what is left of its norms."""
    weight, affine = torch.randn(64, 64, 3, 3), torch.zeros(64)
    folded, layer = torch.zeros(weight.numel(), dtype=dtype), [weight, None, *torch.rand(4, 64)]
    fold = partial(_ops.fold_batch_norm_, folded, affine, layer, [1e-5], [0, -1, 0])
    yield Case("fold_batch_norm", tuple(weight.shape), fold)
    size = 4, 32, 32, 32
    x, residual = torch.randn(2, *size).to(dtype)
    scale, shift = torch.randn(2, size[1])
    mask = torch.randint(256, (x.numel() // 8,), dtype=torch.uint8)
    yield Case("affine_relu", size, lambda: F.affine_relu(x, scale, shift, residual, mask=True))
    yield Case("affine_relu_backward", size, lambda: F.affine_relu_backward(x, mask, scale))


def losses(dtype: torch.dtype, size: tuple[int, int]) -> Iterator[Case]:
    """The losses with their backward, rows near to the teacher's or the clean ones, and the attacks' gradients."""
    labels = torch.randint(size[1], size[:1])
    student, clean = (3 * torch.randn(2, *size)).to(dtype)
    adv = clean + 0.1 * torch.randn(size).to(dtype)
    factors = torch.rand(len(labels))

    def leaf(logits: torch.Tensor) -> torch.Tensor:
        return logits.detach().requires_grad_()

    yield Case("kd", size, lambda: F.kl_distill_loss(leaf(student), clean, temperature=30.0).backward())
    pair = {"clean_logits": leaf(clean), "labels": labels}
    yield Case("trades", size, lambda: F.trades_loss(leaf(adv), **pair).backward())
    yield Case("mart", size, lambda: F.mart_loss(leaf(adv), **pair).backward())
    for loss in ("ce", "margin", "dlr"):
        yield Case(loss, size, partial(F.attack_gradient, clean, labels, loss=loss))
    yield Case("scale_rows", size, lambda: _ops.scale_rows_(adv, factors, 2.0))


def cases() -> Iterator[tuple[Case, str]]:
    """All of them, each with its dtype."""
    yield from ((case, "fp32") for case in starts())
    for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
        for size in ((68, 3, 32, 32), (2, 3, 224, 224)):  # a block a sample, a cluster a sample
            yield from ((case, name) for case in steps(dtype, size))
        yield from ((case, name) for case in layers(dtype))
        for size in ((128, 10), (4, 1000), (2, 32000)):
            yield from ((case, name) for case in losses(dtype, size))


class Machine(NamedTuple):
    """What ptxas made of a kernel: by line of PTX, the instructions on paths of warps that have not diverged."""

    registers: int
    shared: int
    instructions: Counter[int]
    copies: Counter[int]  # of these, `THAT_ONE`


def tool(name: str) -> str:
    """Path of a program of the toolkit: on PATH, beside nvcc, or of the package that pip installs."""
    places = [Path(find_nvcc()).resolve().parent, Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin"]
    for path in (name, *(str(place / name) for place in places)):
        if found := shutil.which(path):
            return found
    sys.exit(f"check_nvcc: {name} was not found: install a CUDA toolkit, or pip install nvidia-cuda-{name}")


def machine_code(ptx: Path, names: list[str]) -> dict[str, Machine]:
    """Compiles the named kernels of a PTX file and looks at them."""
    cubin = str(ptx.with_suffix(".cubin"))
    entries = [word for name in names for word in ("--entry", name)]
    command = [tool("ptxas"), f"-arch=sm_{ARCH}", "-lineinfo", "-v", *entries, str(ptx), "-o", cubin]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"check_nvcc: ptxas failed:\n{run.stderr[-2000:]}")
    kernels = parse_ptxas(ptx.name, run.stdout + run.stderr)
    sass = subprocess.run([tool("nvdisasm"), "-gp", "-c", cubin], capture_output=True, text=True, check=True).stdout
    found = {}
    for name in names:
        kernel = kernels[f"sm_{ARCH}", name]
        found[name] = Machine(kernel.registers, kernel.shared, *instructions_of_lines(sass, name))
    return found


def instructions_of_lines(sass: str, mangled: str) -> tuple[Counter[int], Counter[int]]:
    """The instructions on paths of warps that have not diverged, all and `THAT_ONE`, by line of PTX."""
    body = re.split(r"^\t\.section", sass.partition(f"\n.text.{mangled}:")[2], maxsplit=1, flags=re.MULTILINE)[0]
    blocks: list[list[tuple[int, str, bool]]] = [[]]  # (line, opcode with operands, whether there is a predicate)
    at: dict[str, int] = {}
    line = 0
    for row in body.splitlines():
        if found := re.match(r"(\S+):$", row):
            blocks.append([])
            at[found.group(1)] = len(blocks) - 1
        elif found := re.match(r"\s*//## .*line (\d+)", row):
            line = int(found.group(1))
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(@\S+\s+)?([^;/]+);", row):
            blocks[-1].append((line, found.group(2), bool(found.group(1))))
            if re.match(r"BRA|BRX|JMP|EXIT|RET", found.group(2)):
                blocks.append([])
    counts: Counter[int] = Counter()
    copies: Counter[int] = Counter()
    seen, todo = set(), [0]
    while todo:
        block = todo.pop()
        if block in seen or block == len(blocks):
            continue
        seen.add(block)
        goes_on = True
        for _, code, predicate in blocks[block]:
            opcode, _, operands = code.partition(" ")
            if re.match(r"BRA(?!\.DIV)|BRX|JMP|BSSY", opcode):
                todo += [at[label] for label in re.findall(r"\.L_\w+", operands)]
            if re.match(r"EXIT|RET|BRX|JMP|BRA", opcode):
                goes_on = predicate or bool(re.match(r"\s*!?(?:U?P\d|UR\d)", operands))
        if goes_on:
            todo.append(block + 1)
        if not any(code.startswith("CALL") for _, code, _ in blocks[block]):
            counts.update(line for line, code, _ in blocks[block] if not code.startswith("NOP"))
            copies.update(line for line, code, _ in blocks[block] if THAT_ONE.match(code))
    return counts, copies


def executed_sass(ptx: list[str], times: dict[int, int], made: Machine) -> float:
    """Instructions of SASS that warps executed, from those of PTX by line."""
    total = 0.0
    block: list[int] = []
    for line in range(min(times), max(times) + 1):
        if line in times:
            block.append(line)
        # A block of PTX ends with a branch or before a label.
        if block and (line == max(times) or re.match(r"\S+:|\s*(?:@!?%\w+\s+)?(?:bra|brx|ret|exit)\b", ptx[line - 1])):
            copies = max(made.copies[each] if ONE_TO_ONE.search(ptx[each - 1]) else 1 for each in block)
            total += times[block[0]] * sum(made.instructions[each] for each in block) / max(copies, 1)
            block = []
    return total


def blocks_of_sm(registers: int, threads: int, shared: int) -> int:
    """Blocks that a multiprocessor of sm_90 holds."""
    warps = -(-threads // 32)
    # Registers come in units of 256 a warp, from a quarter of the multiprocessor.
    by_registers = REGISTERS // 4 // (-(-registers * 32 // 256) * 256) * 4
    by_shared = SHARED // (-(-(shared + SHARED_OF_SYSTEM) // 128) * 128)
    return min(BLOCKS, min(WARPS, by_registers) // warps, by_shared)


Table = dict[tuple[str, str, str], dict[str, float]]  # (kernel, size, dtype) -> columns


def measured(names: list[str]) -> Table:
    """Counts the calls of these names, or of all."""
    torch.manual_seed(0)
    runs: list[tuple[Case, str, list[Any], dict[str, list[tuple[int, int]]]]] = []
    modules: dict[str, str] = {}  # PTX by kernel
    with emulated_gpu.active(ARCH) as gpu:
        for case, dtype in cases():
            if names and case.name not in names:
                continue
            gpu.take_launches(), gpu.take_executed()
            case.call()
            if error := gpu.take_error():
                sys.exit(f"check_nvcc: {case.name} {case.size} {dtype} on the emulated GPU: {error}")
            runs.append((case, dtype, gpu.take_launches(), gpu.take_executed()))
            modules |= {name: gpu.module_of(name) for name, *_ in runs[-1][2] if name not in modules}
    made: dict[str, Machine] = {}
    with tempfile.TemporaryDirectory(prefix="ard_counts_") as folder, ThreadPoolExecutor(2) as pool:
        jobs = []
        for number, ptx in enumerate(set(modules.values())):
            path = Path(folder) / f"{number}.ptx"
            path.write_text(ptx)
            jobs.append(pool.submit(machine_code, path, [name for name in modules if modules[name] == ptx]))
        for job in jobs:
            made |= job.result()
    lines_of = {ptx: ptx.splitlines() for ptx in set(modules.values())}
    table: Table = {}
    for case, dtype, launches, executed in runs:
        sums: dict[str, float] = defaultdict(float)
        sass: dict[str, float] = {}
        for name in {launch[0] for launch in launches}:
            ptx, ran = lines_of[modules[name]], executed[name]
            sass[name] = executed_sass(ptx, dict(ran), made[name])
            sums["ptx"] += sum(times for _, times in ran)
            sums["global"] += sum(times for line, times in ran if GLOBAL.search(ptx[line - 1]))
            sums["wide"] += sum(times for line, times in ran if WIDE_GLOBAL.search(ptx[line - 1]))
        hot = max(sass, key=lambda name: sass[name])
        _, _, threads, _, dynamic = next(launch for launch in launches if launch[0] == hot)
        per_element = 32 / math.prod(case.size)
        table[case.name, "x".join(map(str, case.size)), dtype] = {
            "sass": round(sum(sass.values()) * per_element, 1),
            "ptx": round(sums["ptx"] * per_element, 1),
            "global": round(sums["global"] * per_element, 3),
            "wide": round(100 * sums["wide"] / sums["global"]),
            "registers": made[hot].registers,
            "blocks": blocks_of_sm(made[hot].registers, threads, made[hot].shared + dynamic),
            "launches": len(launches),
        }
    first = {name: at for at, (name, *_) in reversed(list(enumerate(table)))}
    return dict(sorted(table.items(), key=lambda row: (first[row[0][0]], int(row[0][1].rpartition("x")[2]))))


def read_table() -> tuple[str, Table]:
    """What made the committed table, and the table."""
    with TABLE.open(newline="") as file:
        made_by = file.readline().lstrip("# ").strip()
        rows = list(csv.DictReader(file))
    keys = [(row["kernel"], row["size"], row["dtype"]) for row in rows]
    return made_by, {key: {name: float(row[name]) for name in COLUMNS} for key, row in zip(keys, rows, strict=True)}


def main(names: list[str], update: bool) -> int:
    """Prints the table and what has grown beyond the committed one, or writes that; returns the exit status."""
    version = subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    made_by = f"nvcc {version.partition('release ')[2].partition(',')[0]}, sm_{ARCH}"
    table = measured(names)
    print(f"{'kernel':<21}{'size':<13}{'dtype':<6}" + "".join(f"{name:>10}" for name in COLUMNS))
    for key, row in table.items():
        print("{:<21}{:<13}{:<6}".format(*key) + "".join(f"{row[name]:>10g}" for name in COLUMNS))
    if update:
        with TABLE.open("w", newline="") as file:
            file.write(f"# {made_by}\n")
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["kernel", "size", "dtype", *COLUMNS])
            writer.writerows([*key, *(f"{row[name]:g}" for name in COLUMNS)] for key, row in table.items())
        return 0
    written_by, committed = read_table()
    committed = {key: row for key, row in committed.items() if not names or key[0] in names}
    faults = [f"{' '.join(key)}: in one of the committed table and this one only" for key in table.keys() ^ committed]
    better = 0
    for key in table.keys() & committed:
        for name in COLUMNS:
            before, now = committed[key][name], table[key][name]
            grew, fell = now > before * MORE, now * MORE < before
            if fell if name in LARGER_IS_BETTER else grew:
                faults.append(f"{' '.join(key)}: {name} was {before:g} and is {now:g}")
            elif grew or fell:
                better += 1
    for fault in sorted(faults):
        print(f"FAULT: {fault}", file=sys.stderr)
    if faults:
        print(f"{TABLE.relative_to(ROOT)} is of {written_by}, this table of {made_by}.", file=sys.stderr)
    print(f"{len(table)} calls counted, {len(faults)} faults, {better} numbers better by more than 5 %")
    if faults or better:
        print("Where that is meant: python scripts/check_nvcc.py --counts --update")
    return 1 if faults else 0
