"""What threads do together: shuffles, votes, barriers of warps, blocks and clusters, in every order of threads."""

import numpy as np
import pytest
from ptx import run

PUT = "st.global.u32 [%x0], %r9;"
ORDERS = ["forward", "reverse", "shuffled"]


@pytest.fixture(params=ORDERS)
def order(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles(mode: str) -> None:
    lane = np.arange(64) % 32
    for width in (32, 16, 8, 4, 2, 1):
        for amount in (0, 1, 2, 3, 7, 16, 31):
            clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
            text = f"""mul.lo.u32 %r4, %r0, 10; shfl.sync.{mode}.b32 %r9|%p1, %r4, {amount}, {clamp}, -1;
                selp.u32 %r5, 1000, 0, %p1; add.u32 %r9, %r9, %r5;"""
            first = lane // width * width
            source = {"up": lane - amount, "down": lane + amount, "bfly": lane ^ amount, "idx": first + amount % width}
            inside = (source[mode] >= first) & (source[mode] < first + width)
            if mode == "bfly":
                inside = source[mode] < first + width  # lower segments may be read
            wanted = (np.arange(64) - lane + np.where(inside, source[mode], lane)) * 10 + 1000 * inside
            assert np.array_equal(run(text + PUT, block=64), wanted), (width, amount)


def test_votes_and_reductions(order: str) -> None:
    lanes = np.arange(32, dtype=np.uint32)
    for text, wanted in {
        "setp.lt.u32 %p1, %r0, 5; vote.sync.ballot.b32 %r9, %p1, -1;": 31,
        "setp.lt.u32 %p1, %r0, 5; vote.sync.ballot.b32 %r9, !%p1, -1;": 2**32 - 32,
        "setp.lt.u32 %p1, %r0, 5; vote.sync.any.pred %p2, %p1, -1; selp.u32 %r9, 1, 0, %p2;": 1,
        "setp.lt.u32 %p1, %r0, 5; vote.sync.all.pred %p2, %p1, -1; selp.u32 %r9, 1, 0, %p2;": 0,
        "setp.lt.u32 %p1, %r0, 50; vote.sync.uni.pred %p2, %p1, -1; selp.u32 %r9, 1, 0, %p2;": 1,
        "redux.sync.add.u32 %r9, %r0, -1;": 496,
        "sub.u32 %r4, %r0, 9; redux.sync.min.s32 %r9, %r4, -1;": 2**32 - 9,
        "sub.u32 %r4, %r0, 9; redux.sync.max.u32 %r9, %r4, -1;": 2**32 - 1,
        "redux.sync.or.b32 %r9, %r0, -1;": 31,
        "redux.sync.xor.b32 %r9, %r0, -1;": 0,
        "mov.u32 %r9, %lanemask_lt;": (1 << lanes.astype(np.uint64)) - 1,
        "mov.u32 %r9, %laneid;": lanes,
    }.items():
        assert np.array_equal(run(text + PUT, order=order), np.broadcast_to(wanted, 32)), text


def test_part_of_a_warp(order: str) -> None:
    """Two halves, each with its own mask, at different instructions of the same place."""
    text = """setp.lt.u32 %p1, %r0, 16; selp.b32 %r4, 0x0000ffff, 0xffff0000, %p1; @%p1 add.u32 %r0, %r0, 100;
        shfl.sync.bfly.b32 %r9, %r0, 1, 31, %r4;"""
    lanes = np.arange(32)
    wanted = (lanes ^ 1) + np.where(lanes < 16, 100, 0)
    assert np.array_equal(run(text + PUT, order=order), wanted)
    inside = (
        """mov.u32 %r9, 0; setp.lt.u32 %p1, %r0, 16; @!%p1 bra E; shfl.sync.down.b32 %r9, %r0, 1, 4127, 0xffff; E:"""
    )
    assert np.array_equal(run(inside + PUT, order=order)[:15], lanes[1:16])


# Each thread writes its element of shared memory and reads that of its mirror image.
MIRROR = """mov.u32 %r4, dyn; shl.b32 %r5, %r0, 2; add.s32 %r6, %r4, %r5; st.shared.u32 [%r6], %r0;
    {barrier} sub.s32 %r7, {last}, %r0; shl.b32 %r8, %r7, 2; add.s32 %r10, %r4, %r8; ld.shared.u32 %r9, [%r10];"""


def test_block_barrier(order: str) -> None:
    text = "sub.u32 %r2, %r2, 1;" + MIRROR.format(barrier="bar.sync 0;", last="%r2")
    got = run(text + PUT, grid=2, block=96, shared=384, order=order, seed=1)
    assert list(got) == list(range(95, -1, -1)) * 2


def test_warp_barrier(order: str) -> None:
    text = MIRROR.format(barrier="bar.warp.sync -1;", last="31")
    assert list(run(text + PUT, shared=128, order=order, seed=2)) == list(range(31, -1, -1))


# Block r of a cluster writes 100 + r into slot r of every block.
BARRIER = "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;"
SPREAD = """mov.u32 %r4, dyn; mov.u32 %r5, %cluster_ctarank; mov.u32 %r6, %cluster_nctarank; {first}
    setp.ge.u32 %p1, %r0, %r6; @%p1 bra S; shl.b32 %r7, %r5, 2; add.s32 %r8, %r4, %r7;
    mapa.shared::cluster.u32 %r10, %r8, %r0; add.s32 %r11, %r5, 100; st.shared::cluster.u32 [%r10], %r11; S:
    {second} mov.u32 %r9, 0; @%p1 bra T; shl.b32 %r7, %r0, 2; add.s32 %r8, %r4, %r7; ld.shared.u32 %r9, [%r8]; T:"""


@pytest.mark.parametrize("cluster", [2, 4, 8])
def test_clusters(cluster: int, order: str) -> None:
    text = SPREAD.format(first=BARRIER.replace("release", "relaxed"), second=BARRIER)
    got = run(text + PUT, grid=2 * cluster, cluster=cluster, shared=64, order=order, seed=3)
    wanted = np.zeros((2 * cluster, 32), np.uint32)
    wanted[:, :cluster] = 100 + np.arange(cluster)
    assert np.array_equal(got.reshape(wanted.shape), wanted)


def test_loads_of_other_blocks(order: str) -> None:
    text = f"""mov.u32 %r4, dyn; mov.u32 %r5, %cluster_ctarank; st.shared.u32 [%r4], %r5; {BARRIER}
        add.u32 %r6, %r5, 1; and.b32 %r6, %r6, 3; cvt.u64.u32 %x3, %r4; cvta.shared.u64 %x4, %x3;
        mapa.u64 %x5, %x4, %r6; ld.u32 %r9, [%x5]; {BARRIER}"""
    assert list(run(text + PUT, grid=4, cluster=4, block=1, shared=16, order=order)) == [1, 2, 3, 0]
