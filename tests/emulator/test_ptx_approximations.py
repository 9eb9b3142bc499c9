"""Where hardware may choose: approximate functions and contraction."""

import numpy as np
import pytest
from ptx import apply, decode, encode, floats

F32 = ["f32"]
MODES = ["exact", "extreme", "random"]


def ulp(x: np.ndarray) -> np.ndarray:
    return np.spacing(np.abs(x.astype(np.float32))).astype(np.float64)


# function, the documented error beside the rounding of the result
FUNCTIONS = {
    "ex2.approx": (np.exp2, lambda x, y: 2 * ulp(y)),
    "lg2.approx": (np.log2, lambda x, y: np.where((x > 0.5) & (x < 2), 1.0, np.abs(y)) * 2.0**-22),
    "rcp.approx": (lambda x: 1 / x, lambda x, y: ulp(y)),
    "sqrt.approx": (np.sqrt, lambda x, y: np.abs(y) * 2.0**-23),
    "rsqrt.approx": (lambda x: 1 / np.sqrt(x), lambda x, y: np.abs(y) * 2.0**-22.9),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_is_within_what_is_documented(name: str, mode: str) -> None:
    function, bound = FUNCTIONS[name]
    rng = np.random.default_rng(0)
    ordinary = encode(np.abs(rng.standard_normal(2000)) * np.exp(rng.uniform(-3, 3, 2000)), "f32")
    bits = np.concatenate([floats("f32", 300), ordinary])
    x = decode(bits, "f32")
    with np.errstate(all="ignore"):
        exact = function(x)
        nearest = exact.astype(np.float32)
        got = apply(f"{name}.f32 %d, %s0;", "f32", F32, [bits], approximation=mode, seed=5)
        values = decode(got, "f32")
        finite = np.isfinite(nearest) & (nearest != 0)
        error = np.abs(values - exact)[finite] - ulp(exact[finite]) / 2
        assert (error <= bound(x, exact)[finite] * (1 + 1e-6) if mode != "exact" else error <= 0).all()
    assert np.array_equal(values[~finite], nearest[~finite].astype(np.float64), equal_nan=True)
    assert (got[np.isnan(values)] == 0x7FFFFFFF).all()
    if mode != "exact":
        assert np.mean(values[finite] != nearest[finite]) > 0.3
        assert np.array_equal(got, apply(f"{name}.f32 %d, %s0;", "f32", F32, [bits], approximation=mode, seed=5))
        other = apply(f"{name}.f32 %d, %s0;", "f32", F32, [bits], approximation=mode, seed=6)
        assert not np.array_equal(got, other)


def test_flushed_exponential() -> None:
    arguments = encode(np.array([-127.0, -126.0, -130, 0.0, 128.0, -np.inf, np.inf, np.nan]), "f32")
    got = apply("ex2.approx.ftz.f32 %d, %s0;", "f32", F32, [arguments])
    assert list(got) == [0, 0x800000, 0, 0x3F800000, 0x7F800000, 0, 0x7F800000, 0x7FFFFFFF]


def test_division() -> None:
    a, b = floats("f32", 500, 0), floats("f32", 500, 1)
    x, y = decode(a, "f32"), decode(b, "f32")
    keep = (np.abs(y) >= 2.0**-126) & (np.abs(y) <= 2.0**126) & np.isfinite(x)
    exact = x[keep] / y[keep]
    with np.errstate(all="ignore"):
        finite = np.isfinite(exact.astype(np.float32)) & (np.abs(exact) > 2.0**-120)
        for mode in MODES:
            got = decode(apply("div.full.f32 %d, %s0, %s1;", "f32", F32 * 2, [a, b], approximation=mode), "f32")[keep]
            assert (np.abs(got - exact)[finite] <= 2.51 * ulp(exact[finite])).all()
            assert np.any(got[finite] != exact.astype(np.float32)[finite]) == (mode != "exact")


def test_contraction() -> None:
    bits = [encode(np.random.default_rng(seed).standard_normal(300), "f32") for seed in range(3)]

    def both(text: str) -> list[np.ndarray]:
        text = ".reg .f32 m, n; " + text
        return [apply(text, "f32", F32 * 3, bits, contract=contract) for contract in (False, True)]

    fma = "fma.rn.f32 %d, %s0, %s1, %s2;"
    fused = {
        "mul.f32 m, %s0, %s1; add.f32 %d, m, %s2;": fma,
        "mul.f32 m, %s0, %s1; add.f32 %d, %s2, m;": fma,
        "mul.f32 m, %s0, %s1; sub.f32 %d, m, %s2;": "neg.f32 %s2, %s2; " + fma,
        "mul.f32 m, %s0, %s1; sub.f32 %d, %s2, m;": "neg.f32 %s0, %s0; " + fma,
        # in the block beyond a branch, of values that are written at one place only
        "mul.f32 m, %s0, %s1; setp.gt.f32 %p1, %s0, %s1; @%p1 bra L; L: add.f32 %d, m, %s2;": fma,
    }
    for text, wanted in fused.items():
        plain, contracted = both(text)
        assert np.array_equal(contracted, both(wanted)[0]), text
        assert not np.array_equal(contracted, plain), text
    for text in (
        "mul.rn.f32 m, %s0, %s1; add.f32 %d, m, %s2;",
        "mul.f32 m, %s0, %s1; add.rn.f32 %d, m, %s2;",
        "mul.f32 m, %s0, %s1; mov.f32 %s0, %s2; add.f32 %d, m, %s2;",
        "mul.f32 m, %s0, %s1; mov.f32 m, %s0; add.f32 %d, m, %s2;",
        "mul.ftz.f32 m, %s0, %s1; add.f32 %d, m, %s2;",
        "mul.sat.f32 m, %s0, %s1; add.f32 %d, m, %s2;",
    ):
        plain, contracted = both(text)
        assert np.array_equal(contracted, plain), text
