"""cvt between all types: rounding, saturation, NaN, extension to a wider register."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from ptx import UNSIGNED, WIDTH, apply, assert_floats, decode, encode, floats
from test_ptx_floats import rounded

INTEGERS = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"]
FLOATS = ["f16", "bf16", "f32", "f64"]
MODES = ["rn", "rz", "rm", "rp"]


def integers(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Bits, and the Python integers that they mean."""
    rng = np.random.default_rng(1)
    edges = [0, 1, 2**24 + 1, 2**24 + 3, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 2**53 + 1, 2**25 + 2, 2**63 - 512, 65520]
    values = np.concatenate(
        [
            np.array(edges, np.uint64),
            rng.integers(0, 2**64, 150, dtype=np.uint64) >> rng.integers(0, 64, 150, dtype=np.uint64),
        ]
    )
    width = 8 * WIDTH[kind]
    bits = values.astype(UNSIGNED[WIDTH[kind]])
    exact = bits.astype(object)
    return bits, exact - ((exact >> (width - 1)) << width) if kind[0] == "s" else exact


def bounds(kind: str) -> tuple[int, int]:
    width = 8 * WIDTH[kind]
    return (-(1 << (width - 1)), (1 << (width - 1)) - 1) if kind[0] == "s" else (0, (1 << width) - 1)


@pytest.mark.parametrize("source", INTEGERS)
def test_integers(source: str) -> None:
    bits, exact = integers(source)
    for target, sat in itertools.product(INTEGERS, ("", ".sat")):
        width = 8 * WIDTH[target]
        wanted = np.clip(exact, *bounds(target)) if sat else exact
        got = apply(f"cvt{sat}.{target}.{source} %d, %s0;", target, [source], [bits])
        assert np.array_equal(got.astype(object), wanted % (1 << width)), (target, sat)


def test_extension() -> None:
    """A result narrower than its register fills it by its own sign."""
    bits = np.array([0, 1, 0x7F, 0x80, 0xFF], np.uint32)
    for text, wanted in {
        "cvt.s8.s32 %d, %s0;": [0, 1, 0x7F, 0xFFFFFF80, 0xFFFFFFFF],
        "cvt.u8.s32 %d, %s0;": [0, 1, 0x7F, 0x80, 0xFF],
        "cvt.s32.s8 %d, %s0;": [0, 1, 0x7F, 0xFFFFFF80, 0xFFFFFFFF],
    }.items():
        assert list(apply(text, "u32", ["u32"], [bits])) == wanted, text


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("target", FLOATS)
def test_integer_to_float(source: str, target: str) -> None:
    bits, exact = integers(source)
    for mode in MODES:
        wanted = np.array([rounded(Fraction(v), mode, target) for v in exact])
        got = apply(f"cvt.{mode}.{target}.{source} %d, %s0;", target, [source], [bits])
        assert_floats(got, wanted, target, mode)


@pytest.mark.parametrize("source", FLOATS)
def test_float_to_integer(source: str) -> None:
    near = [2147483648.0, 2147483520.0, -2147483904.0, 4294967296.0, 9.2233720e18, -9.3e18, 1.9e19, 0.5, 1.5, 2.5, -0.5]
    bits = np.concatenate([floats(source, 60), encode(np.array([*near, -1.5, 254.5, 255.5, 127.5, -128.5]), source)])
    modes = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}
    for target, (mode, rounds) in itertools.product(INTEGERS, modes.items()):
        low, high = bounds(target)
        # NaN becomes 0, but with 64 bits on either side the highest bit alone
        nan = 1 << (8 * WIDTH[target] - 1) if source == "f64" or WIDTH[target] == 8 else 0
        wanted = []
        for value in decode(bits, source):
            inside = nan if math.isnan(value) else high if value == math.inf else low if value == -math.inf else None
            wanted.append(min(max(rounds(Fraction(value)), low), high) if inside is None else inside)
        got = apply(f"cvt.{mode}.{target}.{source} %d, %s0;", target, [source], [bits])
        assert np.array_equal(got.astype(object), np.array(wanted, object) % (1 << 8 * WIDTH[target])), (target, mode)


@pytest.mark.parametrize(("source", "target"), [p for p in itertools.product(FLOATS, FLOATS) if p[0] != p[1]])
def test_floats(source: str, target: str) -> None:
    bits = floats(source, 150)
    if source == "f32":  # ties of both small formats
        halves = floats("f16", 100)
        bits = np.concatenate([bits, (halves.view(np.float16).astype(np.float32).view(np.uint32) + 0x1000).ravel()])
    values = decode(bits, source)
    widens = (source, target) in [("f16", "f32"), ("bf16", "f32"), ("f16", "f64"), ("bf16", "f64"), ("f32", "f64")]
    for mode in [""] if widens else MODES:
        wanted = np.array([v if not math.isfinite(v) else rounded(Fraction(v), mode or "rn", target) for v in values])
        wanted = np.where(wanted == 0, np.copysign(0.0, values), wanted)
        text = f"cvt.{mode + '.' if mode else ''}{target}.{source} %d, %s0;"
        assert_floats(apply(text, target, [source], [bits]), wanted, target, text)


def test_every_half() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    for kind in ("f16", "bf16"):
        assert_floats(apply(f"cvt.f32.{kind} %d, %s0;", "f32", [kind], [bits]), decode(bits, kind), "f32")


def test_pairs() -> None:
    a, b = floats("f32", 100, 0), floats("f32", 100, 1)
    for kind in ("f16", "bf16"):
        high, low = (apply(f"cvt.rn.{kind}.f32 %d, %s0;", kind, ["f32"], [x]) for x in (a, b))
        got = apply(f"cvt.rn.{kind}x2.f32 %d, %s0, %s1;", "b32", ["f32"] * 2, [a, b])
        assert np.array_equal(got, high.astype(np.uint32) << 16 | low)


def test_integral_and_saturated() -> None:
    bits = floats("f32", 300)
    values = decode(bits, "f32")
    for mode, rounds in {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}.items():
        assert_floats(apply(f"cvt.{mode}.f32.f32 %d, %s0;", "f32", ["f32"], [bits]), rounds(values), "f32", mode)
    wanted = np.where(values > 0, np.minimum(values, 1.0), 0.0)
    assert_floats(apply("cvt.sat.f32.f32 %d, %s0;", "f32", ["f32"], [bits]), wanted, "f32")
    flushed = np.where(bits & 0x7F800000, values, np.copysign(0.0, values))
    assert_floats(apply("cvt.ftz.f64.f32 %d, %s0;", "f64", ["f32"], [bits]), flushed, "f64")
