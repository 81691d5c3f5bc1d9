"""Attention written a second time, the way a user would in PyTorch, for the attention tests to compare with.

It shares no code with fusednn: masks are built by comparing positions pair by pair, the sink is one more column of
scores, and softmax and log-sum-exp are torch's. Where torch's own operator can express the request, that operator with
its math kernel is the baseline instead.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusednn import blocked_attention, cpu_attention
from fusednn.functional import attention_paths, torch_attention
from fusednn.functional import scaled_dot_product_attention as attend
from numerics import assert_numerics


@contextmanager
def small_blocks():
    """Within it a few queries make several blocks, on the paths that have any, and no request is too small for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_paths, "FEW_SCORES", -1)
        patch.setattr(cpu_attention, "ROWS", 3)
        patch.setattr(blocked_attention, "ROWS", (2, 4))
        patch.setattr(blocked_attention, "SCORES", 64)
        patch.setattr(torch_attention, "FEW_PAIRS", -1)
        patch.setattr(torch_attention, "ROWS", (2, 4))
        yield


@dataclass(frozen=True)
class Case:
    """Sizes and modifiers of one call. ``mask`` is None, "bool" or "float"; masks leave some rows empty."""

    B: int = 2
    N: int = 2
    M: int = 5
    K: int = 7
    E: int = 8
    Ev: int | None = None
    groups: int = 1  # query heads that share a key head
    mask: str | None = None
    is_causal: bool = False
    causal_alignment: str = "top_left"
    window: tuple[int | None, int | None] | None = None
    softcap: float | None = None
    alibi: bool = False
    sink: bool = False
    scale: float | None = None

    def __str__(self) -> str:
        changed = {k: v for k, v in vars(self).items() if v != getattr(Case, k)}
        return "-".join(f"{k}={v}" for k, v in changed.items()).replace(" ", "") or "plain"

    @property
    def options(self) -> dict:
        """Arguments of the call other than tensors."""
        names = ("is_causal", "scale", "window", "softcap", "causal_alignment")
        return {name: getattr(self, name) for name in names} | {"enable_gqa": self.groups > 1}


def any_case(length: int, batch: int, groups: int, size: int, value_size: int) -> st.SearchStrategy[Case]:
    """Random combinations of all modifiers, of at most so many queries and keys, batch rows, and so on."""
    side = st.none() | st.integers(0, length)
    return st.builds(
        lambda groups, heads, **sizes: Case(N=groups * heads, groups=groups, **sizes),
        groups=st.integers(1, groups),
        heads=st.integers(1, 2),
        B=st.integers(1, batch),
        M=st.integers(1, length),
        K=st.integers(1, length),
        E=st.integers(1, size),
        Ev=st.none() | st.integers(1, value_size),
        mask=st.sampled_from([None, "bool", "float"]),
        is_causal=st.booleans(),
        causal_alignment=st.sampled_from(["top_left", "bottom_right"]),
        window=st.none() | st.tuples(side, side),
        softcap=st.none() | st.floats(0.5, 50),
        alibi=st.booleans(),
        sink=st.booleans(),
        scale=st.none() | st.floats(-1, 2),
    )


def tensors(case: Case, dtype: torch.dtype, requires_grad: bool = False) -> dict[str, Tensor]:
    """Random tensors of a call, by argument name."""
    heads = case.N // case.groups
    made = {
        "query": torch.randn(case.B, case.N, case.M, case.E),
        "key": torch.randn(case.B, heads, case.K, case.E),
        "value": torch.randn(case.B, heads, case.K, case.Ev or case.E),
    }
    if case.mask:
        seen = torch.rand(case.B, 1, case.M, case.K) < 0.7
        seen[:, :, ::3] = False  # rows that see nothing
        made["attn_mask"] = seen
        if case.mask == "float":
            made["attn_mask"] = torch.randn(case.B, case.N, case.M, case.K).masked_fill(~seen, -torch.inf)
    if case.alibi:
        made["alibi_slopes"] = torch.rand(case.N)
    if case.sink:
        made["sink"] = torch.randn(case.N)
    made = {name: x if x.dtype == torch.bool else x.to(dtype) for name, x in made.items()}
    return {n: x.requires_grad_(requires_grad and x.is_floating_point()) for n, x in made.items()}


def visible(case: Case) -> Tensor:
    """[M, K], from the words of the contract: one decision for each pair."""
    seen = torch.ones(case.M, case.K, dtype=torch.bool)
    left, right = case.window or (None, None)
    for i in range(case.M):
        at = i + case.K - case.M if case.causal_alignment == "bottom_right" else i
        for j in range(case.K):
            hidden = case.is_causal and j > at
            hidden |= left is not None and at - j > left
            hidden |= right is not None and j - at > right
            seen[i, j] = not hidden
    return seen


def naive(case: Case, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Output and LSE in the precision of torch's math kernel: fp32, or fp64 for fp64 inputs."""
    given = x["query"].dtype
    dtype = torch.float64 if given == torch.float64 else torch.float32
    q, k, v = (x[n].to(dtype) for n in ("query", "key", "value"))
    k, v = (t.repeat_interleave(case.groups, 1) for t in (k, v))
    s = torch.einsum("bnme,bnke->bnmk", q, k) * (case.E**-0.5 if case.scale is None else case.scale)
    if case.softcap is not None:
        s = case.softcap * torch.tanh(s / case.softcap)
    if case.alibi:
        shift = case.K - case.M if case.causal_alignment == "bottom_right" else 0
        away = (torch.arange(case.M)[:, None] + shift - torch.arange(case.K)[None, :]).abs()
        s = s - x["alibi_slopes"].to(dtype)[:, None, None] * away
    seen = visible(case).expand_as(s)
    if case.mask == "bool":
        seen = seen & x["attn_mask"]
    elif case.mask == "float":
        seen = seen & (x["attn_mask"] != -torch.inf)
        s = s + torch.where(seen, x["attn_mask"].to(dtype), 0.0)
    s = torch.where(seen, s, -torch.inf)
    if case.sink:
        column = x["sink"].to(dtype)[None, :, None, None].expand(*s.shape[:-1], 1)
        s, seen = torch.cat([s, column], -1), F.pad(seen, (0, 1), value=True)
    alive = seen.any(-1, keepdim=True)
    s = torch.where(alive, s, 0.0)
    weights = torch.where(alive, torch.softmax(s, -1), 0.0)[..., : case.K]
    lse = torch.where(alive, torch.logsumexp(s, -1, keepdim=True), -torch.inf).squeeze(-1)
    return (weights @ v).to(given), lse


def torch_own(case: Case, x: dict[str, Tensor]) -> Tensor:
    """torch's operator with its math kernel, for cases without softcap, ALiBi and sink."""
    mask = visible(case)
    if case.mask == "bool":
        mask = mask & x["attn_mask"]
    elif case.mask == "float":
        mask = x["attn_mask"].masked_fill(~mask, -torch.inf)
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(
            x["query"], x["key"], x["value"], mask, scale=case.scale, enable_gqa=case.groups > 1
        )


def gradients(outputs, x: dict[str, Tensor], weights) -> dict[str, Tensor]:
    """Gradient of the weighted sum of the outputs for every tensor that has one; zero where it reaches nothing."""
    total = sum(
        (torch.where(o.isfinite(), o, 0.0) * w.to(o.dtype)).sum() for o, w in zip(outputs, weights, strict=True)
    )
    leaves = {n: t for n, t in x.items() if t.requires_grad}
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(leaves.items(), found, strict=True)}


def check(case: Case, dtype: torch.dtype, with_lse: bool = False, backend: str = "auto") -> None:
    """Outputs and all gradients of one case follow the numerics rule."""
    ours = tensors(case, dtype, requires_grad=True)
    torchs, truth = ({n: copy(t, d) for n, t in ours.items()} for d in (dtype, torch.float64))
    plain = case.softcap is None and not case.alibi and not case.sink and not with_lse

    mine = attend(**ours, **case.options, return_lse=with_lse, backend=backend)
    mine = mine if with_lse else (mine,)
    n = len(mine)
    base = (torch_own(case, torchs),) if plain else naive(case, torchs)[:n]
    true = naive(case, truth)[:n]
    if with_lse:
        empty = torch.isneginf(true[1])
        assert torch.equal(torch.isneginf(mine[1]), empty), "LSE must be -inf in exactly the rows that see nothing"
        finite = [t[1].masked_fill(empty, 0.0) for t in (mine, base, true)]
        assert_numerics(*finite, f"LSE of {case}")
    assert_numerics(mine[0], base[0], true[0], f"output of {case}")

    weights = [torch.randn(t.shape, dtype=torch.float64) for t in true]
    g = [gradients(o, x, weights) for o, x in ((mine, ours), (base, torchs), (true, truth))]
    for name in g[0]:
        row = "fp64 gradient" if dtype == torch.float64 else "single" if g[0][name].numel() == 1 else "rule"
        assert_numerics(g[0][name], g[1][name], g[2][name], f"gradient of {name} of {case}", row)


def copy(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A leaf of the same values in another dtype; bool stays bool."""
    if not x.is_floating_point():
        return x
    return x.detach().to(dtype).clone().requires_grad_(x.requires_grad)


MODIFIERS = {
    "plain": Case(),
    "causal": Case(is_causal=True, M=7),
    "causal, long keys": Case(is_causal=True, M=3, K=9),
    "causal, long queries": Case(is_causal=True, M=9, K=3),
    "bottom right": Case(is_causal=True, M=3, K=9, causal_alignment="bottom_right"),
    "bottom right, long queries": Case(is_causal=True, M=9, K=3, causal_alignment="bottom_right"),
    "window": Case(window=(2, 1)),
    "window, left only": Case(window=(1, None)),
    "window, right only": Case(window=(None, 0)),
    "window, bottom right": Case(window=(1, 1), M=9, K=4, causal_alignment="bottom_right"),
    "softcap": Case(softcap=0.7),
    "alibi": Case(alibi=True),
    "alibi, bottom right": Case(alibi=True, causal_alignment="bottom_right"),
    "sink": Case(sink=True),
    "bool mask": Case(mask="bool"),
    "float mask": Case(mask="float"),
    "mask and causal": Case(mask="bool", is_causal=True),
    "float mask and causal": Case(mask="float", is_causal=True),
    "scale": Case(scale=0.3),
    "grouped": Case(N=6, groups=3),
    "multi-query": Case(N=4, groups=4),
    "value width": Case(Ev=5),
}
EVERYTHING = Case(
    N=4, groups=2, M=9, mask="float", is_causal=True, window=(4, 2), softcap=1.5, alibi=True, sink=True, scale=0.4
)
MODIFIERS["everything"] = EVERYTHING
MODIFIERS["everything, bottom right, no sink"] = replace(EVERYTHING, causal_alignment="bottom_right", sink=False)
