"""The fused kernels with dropout and with sequences of different lengths, against the reference with the same seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fusednn
from fusednn import triton_kernels
from fusednn.attention_call import Inputs, Options
from fusednn.attention_operators import compose
from fusednn.reference import attention as reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    triton_kernels.unavailable(DEVICE) is not None, reason=str(triton_kernels.unavailable(DEVICE))
)
SEED = 0x7123456789ABCDEF  # both halves, and the sign of the lower one


def options(path: str, longest_q: int, longest_k: int, dropout_p: float = 0.0, **more) -> Options:
    plain = {"scale": 0.3, "softcap": None, "left": None, "right": None, "bottom_right": False, "deterministic": True}
    return Options(**plain | more, dropout_p=dropout_p, longest_q=longest_q, longest_k=longest_k, path=path)


def starts(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def results(inputs: Inputs, chosen: Options) -> list[Tensor]:
    """Output, LSE, and the gradients of everything that has one; 'compose' is the reference."""
    leaves = [None if x is None else x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    call = Inputs(*leaves)
    run = compose if chosen.path == "compose" else lambda i, o: torch.ops.fusednn.attention_forward(*i, *o)
    out, lse = run(call, chosen)
    weight = torch.linspace(-1, 1, out.numel(), dtype=lse.dtype).view_as(out)
    total = (out * weight).sum() + lse.masked_fill(torch.isneginf(lse), 0.0).sum()
    wanted = [x for x in leaves if x is not None and x.requires_grad]
    return [out, lse, *(torch.zeros_like(x) if g is None else g for x, g in
                        zip(wanted, torch.autograd.grad(total, wanted, allow_unused=True), strict=True))]  # fmt: skip


def agree(inputs: Inputs, chosen: Options, other: str = "compose") -> None:
    for ours, theirs in zip(results(inputs, chosen), results(inputs, chosen._replace(path=other)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


def dense(M: int, K: int, heads: int = 1, E: int = 8, **more) -> Inputs:
    query, key, value = (torch.randn(2, n, T, E) for n, T in ((2, M), (heads, K), (heads, K)))
    return Inputs(query, key, value, seed=torch.tensor([SEED]), **more)


@pytest.mark.parametrize("seed", [0, SEED, 2**63 - 1])
def test_the_weights_dropped_are_those_of_the_definition(seed):
    """Values that pick one key each show every weight."""
    query, key = torch.randn(2, 1, 40, 4), torch.randn(2, 1, 64, 4)
    inputs = Inputs(query, key, torch.eye(64).expand(2, 1, 64, 64), seed=torch.tensor([seed]))
    out, _ = torch.ops.fusednn.attention_forward(*inputs, *options("triton", 40, 64, 0.5))
    b, i, j = torch.arange(2).view(2, 1, 1, 1), torch.arange(40)[:, None], torch.arange(64)
    assert torch.equal(out != 0, reference.kept(torch.tensor([seed]), 0.5, b, i, j))


@pytest.mark.parametrize(
    ("p", "more"),
    [
        (0.3, {"deterministic": False}),
        (1.0, {"right": 0}),
        (0.6, {"right": 0, "left": 20, "bottom_right": True, "softcap": 2.0}),
    ],
    ids=str,
)
def test_dropout_and_its_gradients(p, more):
    tensors = {}
    if "softcap" in more:
        tensors = {"mask": torch.randn(2, 2, 35, 37), "slopes": torch.rand(1, 2), "sink": torch.randn(2)}
    agree(dense(35, 37, **tensors), options("triton", 35, 37, p, **more))


def test_dropout_through_the_public_function_follows_torchs_generator():
    x = torch.randn(1, 2, 5, 8)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(fusednn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5, backend="triton"))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def packed(lengths_q: list[int], lengths_k: list[int], heads: int = 1, **more) -> Inputs:
    sizes = ((2, sum(lengths_q)), (heads, sum(lengths_k)), (heads, sum(lengths_k)))
    # The rows of a head lie apart, as the public function gives them.
    query, key, value = (torch.randn(1, rows, n, 8).transpose(1, 2) for n, rows in sizes)
    return Inputs(
        query, key, value, starts_q=starts(lengths_q), starts_k=starts(lengths_k), seed=torch.tensor([SEED]), **more
    )


lengths = st.sampled_from([0, 0, 1, 2, 7, 31, 34])


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    pairs=st.lists(st.tuples(lengths, lengths), min_size=1, max_size=3),
    heads=st.integers(1, 2),
    slopes=st.sampled_from([None, "head", "sequence"]),
    sink=st.booleans(),
    dropout_p=st.sampled_from([0.0, 0.25]),
    left=st.none() | st.integers(0, 40),
    right=st.none() | st.integers(0, 40),
    bottom_right=st.booleans(),
    softcap=st.none() | st.floats(0.5, 50),
)
def test_sequences_are_as_each_alone(pairs, heads, slopes, sink, dropout_p, **more):
    torch.manual_seed(0)
    q, k = (list(side) for side in zip(*pairs, strict=True))
    inputs = packed(
        q, k, heads,
        slopes=None if slopes is None else torch.rand(len(pairs) if slopes == "sequence" else 1, 2),
        sink=torch.randn(2) if sink else None,
    )  # fmt: skip
    agree(inputs, options("triton", max(q), max(k), dropout_p, **more))


@pytest.mark.parametrize("deterministic", [True, False])
def test_several_blocks_a_sequence(deterministic):
    """And either form of the backward: gradients of slopes come with the deterministic one alone."""
    lengths = [67, 3]
    slopes = torch.rand(2, 2) if deterministic else None
    inputs = packed(lengths, lengths[::-1], slopes=slopes, sink=torch.randn(2))
    chosen = options("triton", 67, 67, 0.2, right=5, bottom_right=True, deterministic=deterministic)
    agree(inputs, chosen, "blocked")


@pytest.fixture
def poisoned():
    """Memory that is not written holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_neighbours_do_not_reach_a_sequence(poisoned):
    """Bit for bit the same beside sequences that hold NaN; and everything is written."""
    inputs = packed([5, 9, 3], [7, 4, 11])
    clean = results(inputs, options("triton", 9, 11, right=1))
    assert all(x.isfinite().all() for x in clean)
    for x, first, stop in ((inputs.query, 5, 14), (inputs.key, 7, 11), (inputs.value, 7, 11)):
        x[:, :, first:stop] = torch.nan
    for one, two in zip(clean, results(inputs, options("triton", 9, 11, right=1)), strict=True):
        first, stop = (7, 11) if one.shape[2] == 22 else (5, 14)
        assert torch.equal(one[:, :, :first], two[:, :, :first]) and torch.equal(one[:, :, stop:], two[:, :, stop:])


def test_wrong_starts_stay_within_the_rows():
    inputs = packed([3, 6], [2, 7])
    wrong = inputs._replace(starts_q=starts([3, 10**6]), starts_k=torch.tensor([-5, 2, 2**31 - 1], dtype=torch.int32))
    chosen = options("triton", 6, 7)
    for right, found in zip(results(inputs, chosen), results(wrong, chosen), strict=True):
        assert torch.equal(right, found)


def test_the_public_function_and_second_gradients():
    q = torch.randn(7, 2, 4, dtype=torch.float64, requires_grad=True)
    begin = starts([3, 4])

    def run(backend: str) -> Tensor:
        return fusednn.functional.varlen_attention(q, q, q, begin, begin, 4, 4, is_causal=True, backend=backend)

    ours, theirs = run("triton"), run("torch")
    torch.testing.assert_close(ours, theirs)
    first = [torch.autograd.grad(x.square().sum(), q, create_graph=True)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*first)
    torch.testing.assert_close(*(torch.autograd.grad(g.square().sum(), q)[0] for g in first))
