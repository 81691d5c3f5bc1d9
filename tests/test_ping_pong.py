"""The kernel in Gluon: results and turns of its own source on the CPU, and faults that must be seen there."""

from __future__ import annotations

import importlib.util
import itertools

import pytest
import torch
from torch import Tensor

from fusednn.attention_call import Inputs
from fusednn.attention_operators import compose
from numerics import assert_numerics
from test_triton_sequences import options

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

BLOCK_M, BLOCK_N = 16, 8
CASES = {  # queries, keys, (left, right, bottom right)
    "one block": (5, 8, (None, None, 0)),
    "one key": (1, 1, (None, None, 0)),
    "two blocks": (16, 9, (None, None, 0)),
    "three blocks": (20, 24, (None, None, 0)),
    "many blocks": (17, 131, (None, None, 0)),
    "causal, one block": (7, 7, (None, 0, 0)),
    "causal, two blocks": (16, 16, (None, 0, 0)),
    "causal, three programs": (45, 45, (None, 0, 0)),
    "causal, many blocks": (150, 150, (None, 0, 0)),
    "causal, more keys": (18, 70, (None, 0, 1)),
    "causal, empty rows": (40, 13, (None, 0, 1)),
    "window": (50, 60, (9, 3, 0)),
}


def execute(q: Tensor, k: Tensor, v: Tensor, position: tuple, stages: int, seed: int, changed=lambda gluon: {}):
    """Output, LSE, and of each program the groups that issued products, in order."""
    from fusednn.triton_kernels.ping_pong import ping_pong_kernel
    from gluon_threads import Block, Gluon, Pointer

    (B, N, M, E), (_, heads, K, EV) = q.shape, v.shape
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    out, lse = torch.full((B, N, M, EV), torch.nan, dtype=q.dtype), torch.full((B, N, M), torch.nan, dtype=wide)
    blocks = (Block(q, (1, 1, BLOCK_M // 2, E)), Block(k, (1, 1, BLOCK_N, E)), Block(v, (1, 1, BLOCK_N, EV)))
    settings = (0.3, None, *position)
    issued = []
    for program in range(B * N * -(-M // BLOCK_M)):
        gluon = Gluon(program, seed + program, wide)
        gluon.run(
            ping_pong_kernel,
            (*blocks, Pointer(lse), Pointer(out), out.stride(), N, N // heads, M, K, settings,
             EV, BLOCK_M, BLOCK_N, stages),
            **changed(gluon),
        )  # fmt: skip
        issued.append(gluon.issued)
    return out, lse, issued


def made(M: int, K: int, dtype: torch.dtype = torch.float64, B: int = 1, N: int = 2, heads: int = 1) -> list[Tensor]:
    return [torch.randn(B, n, T, size).to(dtype) for n, T, size in ((N, M, 16), (heads, K, 16), (heads, K, 32))]


def reference(q: Tensor, k: Tensor, v: Tensor, position: tuple) -> tuple[Tensor, Tensor]:
    left, right, bottom_right = position
    chosen = options("compose", q.shape[2], k.shape[2], left=left, right=right, bottom_right=bool(bottom_right))
    return compose(Inputs(q, k, v), chosen)


def in_turns(issued: list[str]) -> bool:
    """Whether groups 0 and 1 issue in turns, the same number of times."""
    groups = [name for name, _ in itertools.groupby(issued)]
    return groups == ["0", "1"] * (len(groups) // 2)


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("name", CASES)
def test_results_are_right_and_groups_take_turns(name, stages):
    M, K, position = CASES[name]
    tensors = made(M, K)
    expected = reference(*tensors, position)
    for seed in range(0, 300, 100):
        out, lse, issued = execute(*tensors, position, stages, seed)
        for found, truth, what in zip((out, lse), expected, ("output", "LSE"), strict=True):
            empty = torch.isneginf(truth)
            assert torch.equal(torch.isneginf(found), empty)
            filled = (x.masked_fill(empty, 0.0) for x in (found, truth, truth))
            assert_numerics(*filled, what)
        assert all(map(in_turns, issued))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(dtype):
    tensors = made(33, 40, dtype, B=2, N=4, heads=2)
    position = (None, 0, 0)
    out, _, _ = execute(*tensors, position, 2, 0)
    truth, _ = reference(*(x.double() for x in tensors), position)
    assert_numerics(out, reference(*tensors, position)[0], truth, "output")


def take_at_once(ring, t, stages):
    tiles = ring[0]
    return tiles.index(t % stages).reshape([tiles.shape[3], tiles.shape[4]])


def taken_is_read(gluon):
    def take(ring, t, stages):
        tiles, ready, free = ring
        gluon.wait(ready.index(t % stages), t // stages & 1)
        gluon.arrive(free.index(t % stages))
        return tiles.index(t % stages).reshape([tiles.shape[3], tiles.shape[4]])

    return {"take": take, "release": lambda *_: None}


FAULTS = {
    "a block is read before it came": lambda gluon: {"take": take_at_once},
    "a buffer is given back before it was read": taken_is_read,
    "a buffer is never given back": lambda gluon: {"release": lambda *_: None},
    "the loader is a phase behind": lambda gluon: {"freed": lambda t, stages: 1 if t < stages else t // stages & 1},
    "group 1 does not wait for its first turn": lambda gluon: {"given": lambda turn, side: (turn + 1) & 1},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(name):
    """In one order of events out of 30 at least."""
    tensors, position = made(16, 80, N=1), (None, None, 0)
    expected, _ = reference(*tensors, position)

    def right(seed: int) -> bool:
        try:
            out, _, (issued,) = execute(*tensors, position, 2, seed, FAULTS[name])
        except AssertionError:
            return False
        return in_turns(issued) and torch.allclose(out, expected)

    assert not all(map(right, range(30)))


def test_without_a_fault_every_order_of_events_is_right():
    tensors, position = made(16, 80, N=1), (None, None, 0)
    expected, _ = reference(*tensors, position)
    for seed in range(100):
        out, _, (issued,) = execute(*tensors, position, 2, seed)
        assert in_turns(issued)
        assert torch.allclose(out, expected)
