"""Integer and bit instructions against Python's integers, on random values and on edges."""

import numpy as np
import pytest
from ptx import UNSIGNED, WIDTH, apply

INTEGERS = ["u16", "s16", "u32", "s32", "u64", "s64"]
EDGES = [0, 1, 2, 7, 31, 32, 33, 63, 64, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63]
COUNT = 300


def samples(kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = np.concatenate([np.array([*EDGES, 2**64 - 1], np.uint64), rng.integers(0, 2**64, COUNT, dtype=np.uint64)])
    return rng.permutation(values).astype(UNSIGNED[WIDTH[kind]])


def signed(bits: np.ndarray, kind: str) -> np.ndarray:
    """Python integers of the values."""
    values, width = bits.astype(object), 8 * WIDTH[kind]
    return values - ((values >> (width - 1)) << width) if kind[0] == "s" else values


def truncated_division(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return abs(a) // abs(b) * np.where((a < 0) == (b < 0), 1, -1)


def check(text: str, result: str, types: list[str], arrays: list[np.ndarray], wanted: np.ndarray) -> None:
    got = apply(text, result, types, arrays).astype(object)
    wanted = wanted % (1 << 8 * WIDTH[result])
    wrong = np.flatnonzero(got != wanted)
    assert not wrong.size, (text, [(hex(got[k]), hex(wanted[k]), [hex(a[k]) for a in arrays]) for k in wrong[:3]])


@pytest.mark.parametrize("kind", INTEGERS)
def test_arithmetic(kind: str) -> None:
    width = 8 * WIDTH[kind]
    bits = [samples(kind, seed) for seed in range(3)]
    bits[1][bits[1] == 0] = 3
    a, b, c = (signed(x, kind) for x in bits)
    two = {
        "add": a + b,
        "sub": a - b,
        "mul.lo": a * b,
        "mul.hi": (a * b) >> width,
        "div": truncated_division(a, b),
        "rem": a - b * truncated_division(a, b),
        "min": np.minimum(a, b),
        "max": np.maximum(a, b),
    }
    for name, wanted in two.items():
        check(f"{name}.{kind} %d, %s0, %s1;", kind, [kind] * 2, bits[:2], wanted)
    check(f"mad.lo.{kind} %d, %s0, %s1, %s2;", kind, [kind] * 3, bits, a * b + c)
    check(f"mad.hi.{kind} %d, %s0, %s1, %s2;", kind, [kind] * 3, bits, ((a * b) >> width) + c)
    if kind[0] == "s":
        check(f"neg.{kind} %d, %s0;", kind, [kind], bits[:1], -a)
        check(f"abs.{kind} %d, %s0;", kind, [kind], bits[:1], abs(a))
    if width < 64:
        wide = f"{kind[0]}{2 * width}"
        addend = samples(wide, 3)
        check(f"mul.wide.{kind} %d, %s0, %s1;", wide, [kind] * 2, bits[:2], a * b)
        text = f"mad.wide.{kind} %d, %s0, %s1, %s2;"
        check(text, wide, [kind, kind, wide], [*bits[:2], addend], a * b + signed(addend, wide))


@pytest.mark.parametrize("kind", INTEGERS)
def test_shifts_clamp(kind: str) -> None:
    a, width = samples(kind, 0), 8 * WIDTH[kind]
    amounts = np.resize(np.array([0, 1, 5, 15, 16, 31, 32, 33, 63, 64, 65, 2**31, 2**32 - 1], np.uint32), a.size)
    n = np.minimum(amounts, width).astype(object)
    check(f"shr.{kind} %d, %s0, %s1;", kind, [kind, "u32"], [a, amounts], signed(a, kind) >> n)
    check(f"shl.b{width} %d, %s0, %s1;", kind, [kind, "u32"], [a, amounts], a.astype(object) << n)


@pytest.mark.parametrize("kind", [*INTEGERS, "b32"])
def test_comparisons(kind: str) -> None:
    bits = [samples(kind, seed) for seed in range(2)]
    bits[1][::3] = bits[0][::3]
    a, b = (signed(x, kind) for x in bits)
    tests = {"eq": a == b, "ne": a != b}
    if kind != "b32":
        tests |= {"lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    if kind == "u32":
        tests |= {"lo": a < b, "ls": a <= b, "hi": a > b, "hs": a >= b}
    for name, wanted in tests.items():
        text = f"setp.{name}.{kind} %p1|%p2, %s0, %s1; selp.u16 %d, 1, 2, %p1; @%p2 add.u16 %d, %d, 4;"
        check(text, "u16", [kind] * 2, bits, np.where(wanted, 1, 6))


@pytest.mark.parametrize("width", [16, 32, 64])
def test_logic(width: int) -> None:
    kind = f"b{width}"
    a, b = samples(kind, 0), samples(kind, 1)
    for name, wanted in {"and": a & b, "or": a | b, "xor": a ^ b}.items():
        check(f"{name}.{kind} %d, %s0, %s1;", kind, [kind] * 2, [a, b], wanted.astype(object))
    check(f"not.{kind} %d, %s0;", kind, [kind], [a], (~a).astype(object))


def test_predicates() -> None:
    a, b = (np.resize(np.array(x, np.uint32), 4) for x in ([0, 0, 1, 1], [0, 1]))
    expect = {"and": a & b, "or": a | b, "xor": a ^ b}
    for name, wanted in expect.items():
        text = f"setp.ne.u32 %p1, %s0, 0; setp.ne.u32 %p2, %s1, 0; {name}.pred %p3, %p1, %p2; selp.u32 %d, 1, 0, %p3;"
        check(text, "u32", ["u32"] * 2, [a, b], wanted.astype(object))
        text = f"setp.ne.u32 %p1, %s0, 0; setp.ne.{name}.u32 %p3, %s1, 0, !%p1; selp.u32 %d, 1, 0, %p3;"
        check(text, "u32", ["u32"] * 2, [1 - a, b], wanted.astype(object))
    text = (
        "mov.pred %p1, -1; setp.ne.u32 %p2, %s0, 0; xor.pred %p3, %p1, %p2; not.pred %p4, %p3; selp.u32 %d, 1, 0, %p4;"
    )
    check(text, "u32", ["u32"], [a], a.astype(object))


@pytest.mark.parametrize("width", [32, 64])
def test_bit_fields(width: int) -> None:
    kind, rng = f"b{width}", np.random.default_rng(2)
    bits = [samples(kind, seed) for seed in range(2)]
    a, b = (x.astype(object) for x in bits)
    positions, lengths = (rng.integers(0, 80, a.size).astype(np.uint32) for _ in range(2))
    p, n = positions.astype(object), lengths.astype(object)
    check(f"popc.{kind} %d, %s0;", "u32", [kind], bits[:1], np.array([bin(x).count("1") for x in a], object))
    check(f"clz.{kind} %d, %s0;", "u32", [kind], bits[:1], np.array([width - x.bit_length() for x in a], object))
    turned = np.array([int(f"{x:0{width}b}"[::-1], 2) for x in a], object)
    check(f"brev.{kind} %d, %s0;", kind, [kind], bits[:1], turned)
    mask = (((1 << n) - 1) << p) % (1 << width)
    inserted = (b & ~mask) | ((a << p) & mask)
    types, arrays = [kind, kind, "u32", "u32"], [*bits, positions, lengths]
    check(f"bfi.{kind} %d, %s0, %s1, %s2, %s3;", kind, types, arrays, inserted)
    field = (a >> p) & ((1 << n) - 1)
    check(f"bfe.u{width} %d, %s0, %s1, %s2;", kind, [kind, "u32", "u32"], [bits[0], positions, lengths], field)
    there = np.maximum(0, np.minimum(n, width - p))
    negative = (a >> np.minimum(p + np.maximum(n, 1) - 1, width - 1)) & 1 & (n > 0)
    filled = field | np.where(negative, (1 << width) - (1 << there), 0)
    check(f"bfe.s{width} %d, %s0, %s1, %s2;", kind, [kind, "u32", "u32"], [bits[0], positions, lengths], filled)


def test_bytes_and_funnels() -> None:
    bits = [samples("u32", seed) for seed in range(3)]
    a, b, c = (x.astype(object) for x in bits)
    both, wanted = b << 32 | a, np.zeros(a.size, object)
    for k in range(4):
        nibble = c >> 4 * k & 15
        byte = both >> 8 * (nibble & 7) & 255
        wanted |= np.where(nibble & 8, (byte >> 7) * 255, byte) << 8 * k
    check("prmt.b32 %d, %s0, %s1, %s2;", "u32", ["u32"] * 3, bits, wanted)
    amounts = np.resize(np.arange(40, dtype=np.uint32), a.size)
    for mode, n in {"wrap": amounts.astype(object) & 31, "clamp": np.minimum(amounts, 32).astype(object)}.items():
        for side, moved in {"l": (both << n) >> 32, "r": both >> n}.items():
            check(f"shf.{side}.{mode}.b32 %d, %s0, %s1, %s2;", "u32", ["u32"] * 3, [*bits[:2], amounts], moved)


def test_packing() -> None:
    a, b = samples("u32", 0), samples("u32", 1)
    both = b.astype(object) << 32 | a.astype(object)
    check("mov.b64 %d, {%s0, %s1};", "u64", ["u32"] * 2, [a, b], both)
    text = ".reg .b32 lo, hi; mov.b64 {lo, hi}, %s0; sub.u32 %d, hi, lo;"
    check(text, "u32", ["u64"], [both.astype(np.uint64)], b.astype(object) - a.astype(object))
    halves = (a >> 16 | a << 16).astype(object)
    check("{ .reg .b16 l, h; mov.b32 {l, h}, %s0; mov.b32 %d, {h, l}; }", "u32", ["u32"], [a], halves)
    check("{ .reg .b16 l, h; mov.b32 {_, h}, %s0; cvt.u32.u16 %d, h; }", "u32", ["u32"], [a], a.astype(object) >> 16)


def test_branches() -> None:
    a = np.arange(20, dtype=np.uint32)
    text = "mov.u32 %d, 7; setp.gt.u32 %p2, %s0, 10; @!%p2 bra L1; mov.u32 %d, 0f3F800000; L1:"
    check(text, "u32", ["u32"], [a], np.where(a > 10, 0x3F800000, 7).astype(object))
    text = "mov.u32 %d, 0; L: add.u32 %d, %d, %s0; sub.u32 %s0, %s0, 1; setp.lt.s32 %p1, %s0, 0; @!%p1 bra L;"
    check(text, "u32", ["u32"], [a], (a * (a + 1) // 2).astype(object) - (a == 0) * 0)
    text = """and.b32 %n5, %s0, 3; T: .branchtargets A, B, C; setp.eq.u32 %p1, %n5, 3; @%p1 bra C; brx.idx %n5, T;
        A: mov.u32 %d, 10; bra.uni E; B: mov.u32 %d, 20; bra.uni E; C: mov.u32 %d, 30; E:"""
    check(text, "u32", ["u32"], [a], np.array([10, 20, 30, 30], object)[a % 4])
