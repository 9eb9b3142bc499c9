"""Each thing that the interpreter refuses, and nothing of it in what is allowed."""

import re
from typing import Any

import numpy as np
import pytest
from ptx import HEADER, kernel, load, options, run
from test_ptx_warps import BARRIER, MIRROR, ORDERS, PUT, SPREAD

SHARE = "sub.u32 %r2, %r2, 1;" + MIRROR
SOME_LEAVE = "setp.eq.u32 %p1, %r0, 3; @%p1 ret; "
NO_SHARED = "read of shared memory that nobody has written"

FAULTS = [
    # memory
    ("misaligned", "st.global.v4.b32 [%x0], {%r0, %r0, %r0, %r0};", {}),
    ("misaligned", "mov.u32 %r4, dyn; st.shared.u32 [%r4+2], %r0;", {"shared": 64}),
    ("write to global memory out of bounds", "st.global.u32 [%x0+128], %r0;", {}),
    ("read of global memory out of bounds", "ld.global.u32 %r9, [%x0+-4];", {}),
    ("read of global memory out of bounds", "mov.u64 %x3, 0; ld.global.u32 %r9, [%x3];", {}),
    ("read-only", "st.global.u32 [table], %r0;", {"module": ".const .align 4 .u32 table[2] = {1, 2};"}),
    ("write to a parameter", "mov.b64 %x3, out; st.param.b32 [%x3], %r0;", {}),
    ("parameter out of bounds", "mov.b64 %x3, out; ld.param.b32 %r9, [%x3+8];", {}),
    ("local memory out of bounds", ".local .align 4 .b8 l[16]; st.local.u32 [l+16], %r0;", {}),
    ("local memory that has not been written", ".local .align 4 .b8 l[16]; ld.local.u32 %r9, [l+4];", {}),
    ("offset -192 + 4 of 320", "mov.u32 %r4, st; ld.shared.u32 %r9, [%r4+-192];", {"shared": 64}),
    ("offset 320 + 4 of 320", "mov.u32 %r4, dyn; st.shared.u32 [%r4+64], %r0;", {"shared": 64}),
    (NO_SHARED, "ld.shared.u32 %r9, [st+4];", {}),
    (NO_SHARED, "atom.shared.add.u32 %r9, [st+4], 1;", {}),
    # races
    ("race on shared memory: write after a write by thread 0", "st.shared.u32 [st], %r0;", {}),
    ("race on shared memory: read after a write", "{one} st.shared.u32 [st], 1; E: ld.shared.u32 %r9, [st];", {}),
    (
        "race on shared memory: write after a read",
        "{one} st.shared.u32 [st], 1; E: bar.sync 0; ld.shared.u32 %r9, [st];{one2} st.shared.u32 [st], 2; F:",
        {},
    ),
    (
        "race on shared memory",
        "setp.ne.u32 %p1, %r0, 40; @%p1 bra E; st.shared.u16 [st], 1; E: @!%p1 bra F;"
        "setp.ne.u32 %p2, %r0, 2; @%p2 bra F; st.shared.u16 [st], 1; F:",
        {"block": 64},
    ),
    # the threads that met are not those that share
    (
        "race on shared memory",
        "{one} st.shared.u32 [st], 1; bra.uni F; E: setp.lt.u32 %p1, %r0, 16; @%p1 bra F;"
        "bar.warp.sync 0xffff0000; ld.shared.u32 %r9, [st]; F:",
        {},
    ),
    # warps
    ("not in its own mask", "shfl.sync.bfly.b32 %r9, %r0, 0, 31, 1;", {}),
    ("a lane of the mask has exited", SOME_LEAVE + "shfl.sync.bfly.b32 %r9, %r0, 1, 31, -1;", {}),
    ("a lane of the mask does not exist", "bar.warp.sync -1;", {"block": 20}),
    (
        "which does not take part",
        "setp.ge.u32 %p1, %r0, 16; @%p1 bra E; shfl.sync.bfly.b32 %r9, %r0, 16, 31, 0xffff; E:",
        {},
    ),
    (
        "at another place",
        "setp.lt.u32 %p1, %r0, 5; @%p1 bra A; bar.warp.sync -1; bra.uni B; A: bar.warp.sync -1; B:",
        {},
    ),
    ("deadlock", "setp.lt.u32 %p1, %r0, 5; @%p1 bra A; bar.warp.sync -1; bra.uni B; A: bar.sync 0; B:", {}),
    # blocks
    ("threads of the block have exited", SOME_LEAVE + "bar.sync 0;", {}),
    ("wait at different places", "setp.lt.u32 %p1, %r0, 5; @%p1 bra A; bar.sync 0; bra.uni B; A: bar.sync 0; B:", {}),
    ("at different barriers", "shr.u32 %r4, %r0, 5; bar.sync %r4;", {"block": 64}),
    ("another number of threads", "bar.sync 0, 32;", {"block": 64}),
    ("deadlock", f"setp.lt.u32 %p1, %r0, 5; @%p1 bra A; bar.sync 0; bra.uni B; A: {BARRIER} B:", {}),
    # clusters
    ("before any cluster barrier", SPREAD.format(first="", second=BARRIER), {"shared": 64, "grid": 4, "cluster": 4}),
    ("wait without an arrive", "barrier.cluster.wait;", {"grid": 2, "cluster": 2}),
    ("arrive twice", "barrier.cluster.arrive; barrier.cluster.arrive;", {"grid": 2, "cluster": 2}),
    ("exited without arriving", SOME_LEAVE + BARRIER, {"grid": 2, "cluster": 2}),
    ("the cluster has no block 2", "mapa.shared::cluster.u32 %r9, %r0, 2;", {"grid": 2, "cluster": 2}),
    (
        "of no block of the cluster",
        "mov.u32 %r4, 0x05000400; ld.shared::cluster.u32 %r9, [%r4];",
        {"grid": 2, "cluster": 2},
    ),
    # instructions
    ("integer division by zero", "sub.u32 %r4, %r0, %r0; div.u32 %r9, %r0, %r4;", {}),
    ("index beyond the branch targets", "T: .branchtargets A; brx.idx %r0, T; A:", {}),
    ("trap", "trap;", {}),
    ("not supported: unknown instruction", "tex.2d.v4.f32.f32 {%f1, %f2, %f3, %f4}, [t, {%f1, %f2}];", {}),
    ("not supported: unknown modifier .cc", "add.cc.u32 %r9, %r0, %r0;", {}),
    (
        "is not a thread's first barrier or access",
        "mov.u32 %r4, dyn; st.shared.u32 [%r4], %r0; barrier.cluster.arrive.relaxed;",
        {"grid": 2, "cluster": 2, "block": 1, "shared": 64},
    ),
    ("not supported: unknown register", "mov.u32 %r99, 1;", {}),
    # launches
    ("65 threads a block, its launch bounds allow 64", "", {"block": 65, "directives": ".maxntid 64, 1, 1"}),
    ("3 blocks in clusters of 2", "", {"grid": 3, "cluster": 2}),
    ("1025 threads a block", "", {"block": 1025}),
    ("an empty grid or block", "", {"block": 0}),
]
ONE = {"{one}": "setp.ne.u32 %p1, %r0, 0; @%p1 bra E;", "{one2}": "@%p1 bra F;"}


@pytest.mark.parametrize(("words", "body", "shape"), FAULTS)
def test_fault(words: str, body: str, shape: dict[str, Any]) -> None:
    for name, text in ONE.items():
        body = body.replace(name, text)
    with pytest.raises(load().Fault, match=re.escape(words)):
        run(body, **shape)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("body", "shape"),
    [
        (SHARE.format(barrier="", last="%r2"), {"block": 96, "shared": 384}),
        (MIRROR.format(barrier="", last="31"), {"shared": 128}),
        (MIRROR.format(barrier="bar.warp.sync -1;", last="63"), {"block": 64, "shared": 256}),
        (SPREAD.format(first=BARRIER, second=""), {"grid": 4, "cluster": 4, "shared": 64}),
        (SPREAD.format(first=BARRIER, second="bar.sync 0;"), {"grid": 4, "cluster": 4, "shared": 64}),
    ],
)
def test_missing_barrier_in_any_order(body: str, shape: dict[str, Any], order: str) -> None:
    with pytest.raises(load().Fault, match=r"race|nobody has written|have exited"):
        run(body + PUT, order=order, seed=1, **shape)


def test_fault_says_where() -> None:
    with pytest.raises(load().Fault) as fault:
        run("\nsetp.ne.u32 %p1, %r3, 37;\n@!%p1 st.global.u32 [%x0+2],\n %r0;", grid=2)
    assert re.match(r"k, block 1, thread 5, line \d+ '@!%p1 st.global.u32 \[%x0\+2\],", str(fault.value))


def test_arrays_that_are_read_only() -> None:
    frozen = np.zeros(32, np.uint32)
    frozen.flags.writeable = False
    kernel("ld.global.u32 %r9, [%x0];").launch("k", frozen, block=32)
    with pytest.raises(load().Fault, match="read-only"):
        kernel("st.global.u32 [%x0], %r0;").launch("k", frozen, block=32)


def test_an_access_lies_in_one_array() -> None:
    both = np.zeros(4, np.uint32)
    text = f"""{HEADER}.visible .entry k(.param .u64 a, .param .u64 b) {{ .reg .b64 %x<5>; ld.param.u64 %x0, [a];
        ld.global.u64 %x1, [%x0]; ret; }}"""
    program = load().Program(text)
    program.launch("k", both[:2], both[2:])
    with pytest.raises(load().Fault, match="out of bounds"):
        program.launch("k", both[:1], both[1:])
    program.launch("k", both[:1], both[:3])  # overlapping views are one range


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("no .target", ".version 9.0"),
        ("expected a directive, found 'hello", ".target sm_90\nhello"),
        ("'}' is missing", ".target sm_90\n.visible .entry k() { ret;"),
        ("comment has no end", ".target sm_90 /*"),
    ],
)
def test_text_that_is_no_ptx(words: str, text: str) -> None:
    with pytest.raises(load().Fault, match=re.escape(words)):
        load().Program(text)


def test_atomics_do_not_race_with_each_other() -> None:
    body = "setp.eq.u32 %p1, %r0, 0; @%p1 st.shared.u32 [st], 0; bar.sync 0; red.shared.add.u32 [st], 1; "
    assert set(run(body + "bar.sync 0; ld.shared.u32 %r9, [st];" + PUT, block=64)) == {64}
    with pytest.raises(load().Fault, match="race on shared memory: read after a write"):
        run(body + "ld.shared.u32 %r9, [st];" + PUT, block=64)


def test_neighbours_of_a_byte_do_not_race() -> None:
    body = "mov.u32 %r4, dyn; add.u32 %r4, %r4, %r0; st.shared.u8 [%r4], %r0; ld.shared.u8 %r9, [%r4];"
    assert list(run(body + PUT, shared=32)) == list(range(32))


def test_options_of_unknown_names() -> None:
    with pytest.raises(AttributeError):
        options("sloppy")
