"""Floating point against exact rational arithmetic: rounding modes, NaN, -0, subnormal numbers, .sat, .ftz."""

import math
from fractions import Fraction

import numpy as np
import pytest
from ptx import EDGES, UNSIGNED, WIDTH, apply, assert_floats, decode, encode, floats

# digits, lowest exponent, highest exponent
FORMATS = {"f16": (11, -14, 15), "bf16": (8, -126, 127), "f32": (24, -126, 127), "f64": (53, -1022, 1023)}
MODES = ["rn", "rz", "rm", "rp"]


def rounded(x: Fraction, mode: str, kind: str) -> float:
    """The float of the format that the mode rounds x to; x = 0 gives 0."""
    digits, lowest, highest = FORMATS[kind]
    size, negative = abs(x), x < 0
    sign = -1 if negative else 1
    if not size:
        return 0.0
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent = max(exponent - (Fraction(2) ** exponent > size), lowest)
    unit = Fraction(2) ** (exponent - digits + 1)
    low, rest = divmod(size, unit)
    half = unit / 2
    away = mode == ("rm" if negative else "rp")
    low += (rest > half or (rest == half and low % 2 == 1)) if mode == "rn" else away and rest > 0
    if low * unit >= Fraction(2) ** (highest + 1):
        largest = float((2 - Fraction(2) ** (1 - digits)) * Fraction(2) ** highest)
        return sign * (math.inf if mode == "rn" or away else largest)
    return sign * float(low * unit)


def exactly(name: str, args: list[float], mode: str, kind: str) -> float:
    """One operation as IEEE has it."""
    if all(map(math.isfinite, args)) and not (name == "div" and args[1] == 0):
        x, y, *z = map(Fraction, args)
        value = {"add": x + y, "sub": x - y, "mul": x * y, "fma": x * y + sum(z)}.get(name)
        value = x / y if value is None else value
        if value:
            return rounded(value, mode, kind)
        sign = [math.copysign(1, v) for v in args]
        if name in ("mul", "div"):
            return sign[0] * sign[1] * 0.0
        terms = [sign[0] * sign[1], sign[2]] if name == "fma" else [sign[0], sign[1] * (-1 if name == "sub" else 1)]
        zeros = (x == 0 or y == 0) and not any(z) if name == "fma" else x == y == 0
        return terms[0] * 0.0 if zeros and terms[0] == terms[1] else (-0.0 if mode == "rm" else 0.0)
    with np.errstate(all="ignore"):
        a, b, *c = map(np.float64, args)
        if name == "fma" and math.isfinite(a) and math.isfinite(b):
            return float(c[0])
        return float({"add": a + b, "sub": a - b, "mul": a * b, "fma": a * b + sum(c)}.get(name, a / b))


def check(text: str, name: str, bits: list[np.ndarray], mode: str, kind: str) -> None:
    values = [decode(x, kind) for x in bits]
    wanted = np.array([exactly(name, list(args), mode, kind) for args in zip(*values, strict=True)])
    assert_floats(apply(text, kind, [kind] * len(bits), bits), wanted, kind, text)


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("mode", MODES)
def test_arithmetic(kind: str, mode: str) -> None:
    bits = [floats(kind, 150, seed) for seed in range(3)]
    # products and sums that cancel, and ties
    with np.errstate(all="ignore"):
        bits[2][::7] = encode(-decode(bits[0], kind) * decode(bits[1], kind), kind)[::7]
    for name in ("add", "sub", "mul", "div"):
        check(f"{name}.{mode}.{kind} %d, %s0, %s1;", name, bits[:2], mode, kind)
    check(f"fma.{mode}.{kind} %d, %s0, %s1, %s2;", "fma", bits, mode, kind)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_halves(kind: str) -> None:
    bits = [floats(kind, 200, seed) for seed in range(3)]
    for name in ("add", "sub", "mul"):
        check(f"{name}.{kind} %d, %s0, %s1;", name, bits[:2], "rn", kind)
    check(f"fma.rn.{kind} %d, %s0, %s1, %s2;", "fma", bits, "rn", kind)
    pairs = [x[: x.size // 2 * 2].view(np.uint32) for x in bits]
    for text in ("add.{} %d, %s0, %s1;", "mul.{} %d, %s0, %s1;", "fma.rn.{} %d, %s0, %s1, %s2;", "neg.{} %d, %s0;"):
        sources = text.count("%s")
        single = apply(text.format(kind), kind, [kind] * sources, [p.view(np.uint16) for p in pairs[:sources]])
        packed = apply(text.format(kind + "x2"), kind + "x2", [kind + "x2"] * sources, pairs[:sources])
        assert np.array_equal(packed.view(np.uint16), single), text


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("mode", MODES)
def test_roots_and_reciprocals(kind: str, mode: str) -> None:
    bits = floats(kind, 150)
    values = decode(bits, kind)
    finite = values[np.isfinite(values) & (values != 0)]
    got = apply(f"rcp.{mode}.{kind} %d, %s0;", kind, [kind], [encode(finite, kind)])
    assert_floats(got, np.array([rounded(1 / Fraction(v), mode, kind) for v in finite]), kind)
    digits = FORMATS[kind][0]
    roots = []
    for value in finite[finite > 0]:
        # enough bits to decide, and one more if there is a rest
        shift = 2 * max(0, digits + 4 - int(math.log2(value)) // 2)
        scaled = Fraction(value) * Fraction(2) ** shift
        whole = math.isqrt(int(scaled))
        roots.append(rounded(Fraction(2 * whole + (whole * whole != scaled), 2 << shift // 2), mode, kind))
    positive = encode(finite[finite > 0], kind)
    assert_floats(apply(f"sqrt.{mode}.{kind} %d, %s0;", kind, [kind], [positive]), np.array(roots), kind)
    special = encode(np.array([0.0, -0.0, np.inf, -np.inf, -1.0, np.nan]), kind)
    got = apply(f"sqrt.{mode}.{kind} %d, %s0;", kind, [kind], [special])
    assert_floats(got, np.array([0.0, -0.0, np.inf, np.nan, np.nan, np.nan]), kind)
    got = apply(f"rcp.{mode}.{kind} %d, %s0;", kind, [kind], [special])
    assert_floats(got, np.array([np.inf, -np.inf, 0.0, -0.0, -1.0, np.nan]), kind)


def pairs_of_edges(kind: str) -> list[np.ndarray]:
    edges = np.array(EDGES[kind], UNSIGNED[WIDTH[kind]])
    return [x.ravel() for x in np.meshgrid(edges, edges)]


@pytest.mark.parametrize("kind", ["f32", "f64", "f16", "bf16"])
def test_minimum_and_maximum(kind: str) -> None:
    bits = pairs_of_edges(kind)
    a, b = (decode(x, kind) for x in bits)
    with np.errstate(invalid="ignore"):
        low = (a < b) | ((a == b) & np.signbit(a))  # -0 is less than +0
    for name, first in {"min": low, "max": ~low}.items():
        wanted = np.where(np.isnan(a), b, np.where(np.isnan(b), a, np.where(first, a, b)))
        assert_floats(apply(f"{name}.{kind} %d, %s0, %s1;", kind, [kind] * 2, bits), wanted, kind, name)


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_signs(kind: str) -> None:
    bits = pairs_of_edges(kind)
    a, b = (decode(x, kind) for x in bits)
    assert_floats(apply(f"neg.{kind} %d, %s0;", kind, [kind], bits[:1]), -a, kind)
    assert_floats(apply(f"abs.{kind} %d, %s0;", kind, [kind], bits[:1]), abs(a), kind)
    assert_floats(apply(f"copysign.{kind} %d, %s0, %s1;", kind, [kind] * 2, bits), np.copysign(b, a), kind)


def flush(bits: np.ndarray) -> np.ndarray:
    return np.where(bits & 0x7F800000, bits, bits & 0x80000000)


def test_flush_and_saturate() -> None:
    bits = pairs_of_edges("f32")
    for name in ("add", "mul", "div"):
        text = f"{name}.rn.{{}}f32 %d, %s0, %s1;"
        plain = apply(text.format(""), "f32", ["f32"] * 2, bits)
        flushed = apply(text.format(""), "f32", ["f32"] * 2, [flush(x) for x in bits])
        assert np.array_equal(apply(text.format("ftz."), "f32", ["f32"] * 2, bits), flush(flushed)), name
        if name != "div":
            value = decode(plain, "f32")
            wanted = np.where(value > 0, np.minimum(value, 1.0), 0.0)  # NaN and -0 become +0
            assert_floats(apply(text.format("sat."), "f32", ["f32"] * 2, bits), wanted, "f32", name)
    text = "setp.eq.ftz.f32 %p1, %s0, 0f00000000; selp.u16 %d, 1, 0, %p1;"
    assert np.array_equal(apply(text, "u16", ["f32"], bits[:1]), flush(bits[0]) & 0x7FFFFFFF == 0)


@pytest.mark.parametrize("kind", ["f32", "f64", "f16", "bf16"])
def test_comparisons(kind: str) -> None:
    bits = pairs_of_edges(kind)
    a, b = (decode(x, kind) for x in bits)
    nan = np.isnan(a) | np.isnan(b)
    tests = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    tests = {c: v & ~nan for c, v in tests.items()} | {c + "u": v | nan for c, v in tests.items()}
    for name, wanted in (tests | {"num": ~nan, "nan": nan}).items():
        text = f"setp.{name}.{kind} %p3, %s0, %s1; selp.u16 %d, 1, 0, %p3;"
        assert np.array_equal(apply(text, "u16", [kind] * 2, bits), wanted), name
    for name, combine in {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}.items():
        text = f"""setp.gt.{kind} %p1, %s0, %s1; setp.eq.{name}.{kind} %p3|%p4, %s0, %s1, %p1;
            selp.u16 %d, 1, 0, %p3; @%p4 add.u16 %d, %d, 2;"""
        wanted = combine(tests["eq"], tests["gt"]) + 2 * combine(~tests["eq"], tests["gt"])
        assert np.array_equal(apply(text, "u16", [kind] * 2, bits), wanted), name
