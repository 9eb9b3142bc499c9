"""Loads, stores, atomics, variables; what programs and kernels say of themselves."""

import numpy as np
import pytest
from ptx import HEADER, WIDTH, kernel, load, options, run

PUT = "st.global.u32 [%x0], %r9;"


@pytest.mark.parametrize(
    ("load_text", "wanted"),
    [
        ("ld.global.u8 %r9, [data+1];", 0x82),
        ("ld.global.s8 %r9, [data+1];", 0xFFFFFF82),
        ("ld.global.nc.u16 %r9, [data+2];", 0x8483),
        ("ld.global.s16 %r9, [data+2];", 0xFFFF8483),
        ("ld.global.L1::no_allocate.b32 %r9, [data];", 0x84838281),
        ("ld.volatile.global.s32 %r4, [data]; cvt.s64.s32 %x3, %r4; shr.u64 %x3, %x3, 32; cvt.u32.u64 %r9, %x3;", ~0),
        ("ld.global.b64 %x3, [data]; shr.u64 %x3, %x3, 40; cvt.u32.u64 %r9, %x3;", 0x888786),
        ("ld.global.v2.u16 {%h1, %h2}, [data+4]; cvt.u32.u16 %r9, %h2;", 0x8887),
        ("ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [data+16]; add.u32 %r9, %r4, %r7;", 0x94939291 + 0xA09F9E9D),
        ("ld.global.v2.b64 {%x3, %x4}, [data]; cvt.u32.u64 %r9, %x4;", 0x8C8B8A89),
        ("ld.const.u32 %r9, [table+4];", 7),
        ("mov.u64 %x3, data; add.s64 %x4, %x3, 8; ld.global.u32 %r9, [%x4+-4];", 0x88878685),
        ("mov.u64 %x3, data; ld.u32 %r9, [%x3];", 0x84838281),
        ("st.global.u8 [%x0], %r0; mov.u32 %r9, 5; st.global.v2.u8 [%x0+2], {%r9, %r9}; ld.global.u32 %r9, [%x0];", 0),
    ],
)
def test_loads(load_text: str, wanted: int) -> None:
    values = ", ".join(str(0x81 + k) for k in range(32))
    module = f".global .align 16 .b8 data[32] = {{{values}}}; .const .align 4 .u32 table[3] = {{5, 7, 0x10}};"
    got = run(load_text + PUT, module=module)
    if "st.global.u8" in load_text:
        assert list(got) == [0x05050000 + lane for lane in range(32)]
    else:
        assert set(got) == {wanted % 2**32}


def test_parameters_have_their_natural_places() -> None:
    types = ["u8", "f64", "u16", "u32", "u8", "u64"]
    text = f"{HEADER}.visible .entry k(" + ", ".join(f".param .{t} p{n}" for n, t in enumerate(types))
    text += ", .param .u64 .ptr .global .align 1 out, .param .align 8 .b8 pack[24]) {"
    text += ".reg .b64 %x<9>; ld.param.u64 %x0, [out];"
    for n, kind in enumerate(types):
        text += f"ld.param.b{8 * WIDTH[kind]} %x1, [p{n}]; st.global.u64 [%x0+{8 * n}], %x1;"
    text += """mov.b64 %x2, pack; ld.param.u64 %x3, [%x2+8]; st.global.u64 [%x0+48], %x3; ret; }"""
    out = np.zeros(7, np.uint64)
    arguments = [np.uint8(200), np.float64(2.5), np.uint16(60000), np.uint32(7), np.uint8(9), np.uint64(1 << 63)]
    pack = np.array((1, 77, 3), "u8,u8,u8")[()]
    program = load().Program(text)
    assert program.kernel("k").parameter_sizes == [1, 8, 2, 4, 1, 8, 8, 24]
    program.launch("k", *arguments, out, pack)
    assert list(out) == [200, int(np.float64(2.5).view(np.uint64)), 60000, 7, 9, 1 << 63, 77]


def test_local_memory() -> None:
    body = """.local .align 8 .b8 depot[32]; mov.u64 %x3, depot; cvta.local.u64 %x4, %x3; st.local.u32 [%x3+8], %r0;
        ld.u32 %r9, [%x4+8]; add.u32 %r9, %r9, 1; st.u32 [%x4+8], %r9; ld.local.u32 %r9, [depot+8];"""
    assert list(run(body + PUT)) == list(range(1, 33))


def test_shared_memory_by_generic_addresses() -> None:
    body = """mov.u32 %r4, dyn; cvt.u64.u32 %x3, %r4; cvta.shared.u64 %x4, %x3; mul.wide.u32 %x5, %r0, 4;
        add.s64 %x6, %x4, %x5; st.u32 [%x6], %r0; cvta.to.shared.u64 %x8, %x6; ld.shared.u32 %r9, [%x8];"""
    assert list(run(body + PUT, shared=128)) == list(range(32))


@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomics(space: str) -> None:
    def total(text: str, kind: str = "u32", start: str = "0") -> int:
        place = "[%x3]" if space == "global" else "[st]"
        body = f"""mov.u64 %x3, cell; setp.eq.u32 %p1, %r0, 0; @%p1 st.{space}.u32 {place}, {start}; bar.sync 0;
            cvt.rn.f32.u32 %f1, %r0; {text.format(place)} bar.sync 0; ld.{space}.u32 %r9, {place};"""
        return int(run(body + PUT, block=64, module=".global .align 4 .u32 cell;")[0])

    assert total(f"red.{space}.add.u32 {{}}, %r0;") == 2016
    assert total(f"red.relaxed.gpu.{space}.max.s32 {{}}, %r0;") == 63
    assert total(f"atom.{space}.min.u32 %r4, {{}}, %r0;", start="40") == 0
    assert total(f"atom.{space}.or.b32 %r4, {{}}, %r0;") == 63
    assert np.uint32(total(f"red.{space}.add.f32 {{}}, %f1;")).view(np.float32) == 2016.0
    assert total(f"atom.{space}.exch.b32 %r4, {{}}, 9;") == 9
    loop = f"""L: ld.volatile.{space}.u32 %r4, {{0}}; add.u32 %r5, %r4, 2; atom.{space}.cas.b32 %r6, {{0}}, %r4, %r5;
        setp.ne.u32 %p2, %r6, %r4; @%p2 bra L;"""
    if space == "global":  # a plain read beside the atomics would be a race on shared memory
        assert total(loop) == 128


def test_vector_stores_in_shared_memory() -> None:
    body = """mov.u32 %r4, dyn; shl.b32 %r5, %r0, 4; add.u32 %r4, %r4, %r5; mov.u32 %r6, 3;
        st.shared.v4.u32 [%r4], {%r0, %r6, %r0, %r6}; ld.shared.v2.u32 {%r7, %r8}, [%r4+8]; add.u32 %r9, %r7, %r8;"""
    assert list(run(body + PUT, shared=512)) == list(range(3, 35))


def test_counters_and_coverage() -> None:
    program = kernel("setp.gt.u32 %p1, %r0, 99; @!%p1 bra L; mov.u32 %r9, 1; L:" + PUT, directives=".maxntid 64, 1, 1")
    out = np.zeros(64, np.uint32)
    k = program.kernel("k")
    assert (program.target, program.kernels(), k.max_threads, k.static_shared) == (90, ["k"], 64, 256)
    for _ in range(2):
        program.launch("k", out, block=64)
    assert [line.split(": ")[1] for line in k.never_executed()] == ["mov.u32 %r9, 1"]
    assert program.counters() == {"k": (2, 2 * 64 * (k.instructions - 1))}


def test_arguments_are_checked() -> None:
    program = kernel("")
    with pytest.raises(ValueError, match="takes 1 arguments, got 2"):
        program.launch("k", np.zeros(32, np.uint32), np.uint32(1))
    with pytest.raises(ValueError, match="argument 0 of k has 8 bytes, got 4"):
        program.launch("k", np.uint32(1))
    with pytest.raises(load().Fault, match="no kernel missing"):
        program.launch("missing")


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
def test_results_do_not_depend_on_the_order(order: str) -> None:
    body = """mov.u32 %r9, 0; L: add.u32 %r9, %r9, %r0; sub.u32 %r0, %r0, 1; setp.gt.s32 %p1, %r0, 0; @%p1 bra L;
        shfl.sync.bfly.b32 %r4, %r9, 1, 31, -1; bar.sync 0; add.u32 %r9, %r9, %r4;"""
    got = run(body + PUT, grid=3, block=96, order=order, seed=4)
    index = np.arange(96) % 2**32
    sums = index * (index + 1) // 2
    assert list(got) == list(sums + sums[index ^ 1]) * 3


def test_options_are_kept() -> None:
    chosen = options("random", "shuffled", contract=True, seed=7)
    assert (chosen.contract, chosen.seed) == (True, 7)
