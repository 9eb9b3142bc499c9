"""Runs pieces of PTX on arrays, by the interpreter of ``csrc/emulator``."""

from __future__ import annotations

from typing import Any

import numpy as np
from emulated_gpu import interpreter as load

HEADER = ".version 9.0\n.target sm_90\n.address_size 64\n"
WIDTH = {"pred": 1} | {letter + str(8 * size): size for letter in "bus" for size in (1, 2, 4, 8)}
WIDTH |= {"f16": 2, "bf16": 2, "f16x2": 4, "bf16x2": 4, "f32": 4, "f64": 8}
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def options(approximation: str = "exact", order: str = "forward", **others: Any) -> Any:
    module = load()
    return module.Options(
        approximation=getattr(module.Approximation, approximation), order=getattr(module.ThreadOrder, order), **others
    )


def apply(text: str, result: str, types: list[str], arrays: list[np.ndarray], **chosen: Any) -> np.ndarray:
    """The bits that ``text`` leaves in %d, a thread an element; %s0, %s1.. hold the elements of ``arrays``."""
    sizes = [WIDTH[t] for t in types]
    body = [f".reg .b{max(16, 8 * WIDTH[result])} %d;"]
    for n, size in enumerate(sizes):
        body += [
            f".reg .b{max(16, 8 * size)} %s{n}; ld.param.u64 %x0, [a{n}]; mul.wide.u32 %x1, %n3, {size};",
            f"add.s64 %x2, %x0, %x1; ld.global.b{8 * size} %s{n}, [%x2];",
        ]
    size = WIDTH[result]
    parameters = ", ".join(f".param .u64 a{n}" for n in range(len(types)))
    program = load().Program(
        f"""{HEADER}.visible .entry k(.param .u32 n, .param .u64 o, {parameters}) {{
        .reg .pred %p<9>; .reg .b32 %n<9>; .reg .b64 %x<30>;
        mov.u32 %n0, %tid.x; mov.u32 %n1, %ctaid.x; mov.u32 %n2, %ntid.x; mad.lo.s32 %n3, %n1, %n2, %n0;
        ld.param.u32 %n4, [n]; setp.ge.u32 %p0, %n3, %n4; @%p0 bra END;
        {" ".join(body)}
        {text}
        ld.param.u64 %x3, [o]; mul.wide.u32 %x4, %n3, {size}; add.s64 %x5, %x3, %x4; st.global.b{8 * size} [%x5], %d;
        END: ret; }}"""
    )
    count = arrays[0].size
    out = np.zeros(count, UNSIGNED[size])
    bits = [np.ascontiguousarray(a).view(UNSIGNED[s]) for a, s in zip(arrays, sizes, strict=True)]
    program.launch("k", np.uint32(count), out, *bits, grid=-(-count // 128), block=128, options=options(**chosen))
    return out


def kernel(body: str, *, module: str = "", directives: str = "") -> Any:
    """A program of one kernel k(out): %x0 is the address of the thread's own element of ``out`` (32 bits), %r0 its
    index in the block, %r1 the block, %r2 threads a block; "st" and "dyn" are static and dynamic shared memory."""
    return load().Program(
        f"""{HEADER}{module} .extern .shared .align 16 .b8 dyn[];
        .visible .entry k(.param .u64 out) {directives} {{
        .reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<40>; .reg .b64 %x<20>; .reg .f32 %f<9>; .reg .f64 %d<9>;
        .shared .align 8 .b8 st[256];
        mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mad.lo.s32 %r3, %r1, %r2, %r0;
        ld.param.u64 %x0, [out]; mul.wide.u32 %x1, %r3, 4; add.s64 %x0, %x0, %x1;
        {body}
        ret; }}"""
    )


def run(body: str, *, grid: int = 1, block: int = 32, shared: int = 0, cluster: int = 1, **others: Any) -> np.ndarray:
    """What the kernel leaves in its array, in which every thread of the grid has an element."""
    texts = {name: others.pop(name) for name in ("module", "directives") if name in others}
    out = np.zeros(grid * block, np.uint32)
    kernel(body, **texts).launch(
        "k", out, grid=grid, block=block, dynamic_shared=shared, cluster=cluster, options=options(**others)
    )
    return out


# ---- samples and exact references

# fmt: off
EDGES = {
    "f32": [0, 1 << 31, 1, 0x80000001, 0x7FFFFF, 0x800000, 0x80800000, 0x3F800000, 0xBF800000, 0x7F7FFFFF, 0xFF7FFFFF,
            0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0x3F800001, 0x3F7FFFFF, 0x4B800000, 0x33800000],
    "f64": [0, 1 << 63, 1, 0x7FF0 << 48, 0xFFF0 << 48, 0x7FF8 << 48, 0x3FF0 << 48, 0x000F << 48, 0x7FEF << 48, 1 << 52],
    "f16": [0, 1 << 15, 1, 0x8001, 0x3FF, 0x400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0x7C01],
    "bf16": [0, 1 << 15, 1, 0x8001, 0x7F, 0x80, 0x3F80, 0xBF80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0x7F81],
}
# fmt: on


def floats(kind: str, count: int, seed: int = 0) -> np.ndarray:
    """Bits of floats in random order: edges, any bits, and ones near 1."""
    rng = np.random.default_rng(seed)
    width = UNSIGNED[WIDTH[kind]]
    edges, any_bits = np.array(EDGES[kind], width), rng.integers(0, 1 << 64, count, dtype=np.uint64).astype(width)
    return rng.permutation(np.concatenate([edges, any_bits, encode(rng.standard_normal(count), kind)]))


def decode(bits: np.ndarray, kind: str) -> np.ndarray:
    """float64 of the bits of any format."""
    with np.errstate(invalid="ignore"):
        if kind == "bf16":
            return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return bits.view({"f16": np.float16, "f32": np.float32, "f64": np.float64}[kind]).astype(np.float64)


def encode(values: np.ndarray, kind: str) -> np.ndarray:
    """Bits of float64 values that the format holds; others are rounded somehow."""
    with np.errstate(all="ignore"):
        if kind == "bf16":
            return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return values.astype({"f16": np.float16, "f32": np.float32, "f64": np.float64}[kind]).view(
            UNSIGNED[WIDTH[kind]]
        )
