"""Elements more than 2^31 away from the first: 64-bit addresses in every kernel, without the memory of such tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fusednn import triton_kernels
from fusednn.attention_call import Inputs
from test_triton_sequences import options, starts

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" or triton_kernels.unavailable(DEVICE) is not None,
    reason="pages that nothing touches cost memory on a GPU" if DEVICE == "cuda" else "no interpreter",
)
STEP = 2**30 + 64  # fits into 32 bits, which two do not
SPAN = 2 * STEP + 2**26  # elements of fp16: 4 GiB of addresses, of which some pages are touched


def far(shape: tuple[int, ...], strides: tuple[int, ...], values: Tensor | None = None) -> Tensor:
    """A view of uninitialised memory, which is written only where the view has elements."""
    try:
        memory = torch.empty(SPAN, dtype=torch.float16)
    except RuntimeError:
        pytest.skip("the system refuses addresses that it cannot back")
    return memory.as_strided(shape, strides).copy_(torch.randn(shape) if values is None else values)


def run(tensors, chosen, grad=None, **more) -> list[Tensor]:
    """Output, LSE and gradients of query, key and value."""
    inputs = [x.detach().requires_grad_() for x in tensors]
    out, lse = torch.ops.fusednn.attention_forward(*Inputs(*inputs, **more), *chosen)
    grad = torch.ones((), dtype=out.dtype).expand_as(out) if grad is None else grad
    return [out, lse, *torch.autograd.grad(out, inputs, grad)]


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


LAYOUTS = {
    "heads": ((1, 3, 3, 4), (0, STEP, 4, 1)),
    "rows": ((1, 2, 3, 4), (0, 16, STEP, 1)),
    "elements": ((1, 2, 3, 3), (0, 16, 4, STEP)),
}


@pytest.mark.parametrize(("shape", "strides"), LAYOUTS.values(), ids=LAYOUTS)
def test_views_with_elements_far_apart(shape, strides):
    """Outputs and gradients are those of dense copies."""
    tensors = [far(shape, strides) for _ in range(3)]
    chosen = options("triton", shape[2], shape[2], right=0)
    assert same(run(tensors, chosen), run([x.contiguous() for x in tensors], chosen))


def test_a_far_gradient_of_the_output_and_a_far_mask():
    tensors = [torch.randn(1, 3, 3, 4, dtype=torch.float16) for _ in range(3)]
    mask, grad = far((1, 3, 3, 3), (0, STEP, 3, 1)), far((1, 3, 3, 4), (0, STEP, 4, 1))
    chosen = options("triton", 3, 3)
    near = run(tensors, chosen, grad.contiguous(), mask=mask.contiguous())
    assert same(run(tensors, chosen, grad, mask=mask), near)


def test_a_far_key_cache():
    query, key, value = (torch.randn(1, n, T, 4).half() for n, T in ((2, 1), (1, 520), (1, 520)))
    step = 2 * STEP // 512  # the last block begins beyond
    cache = [far((1, 1, 520, 4), (0, 0, step, 1), x) for x in (key, value)]
    chosen = options("triton", 1, 520)
    assert same(run((query, *cache), chosen), run((query, key, value), chosen))


@pytest.mark.parametrize("deterministic", [True, False])
def test_far_sequences(deterministic):
    tensors = [far((1, 2, 3, 4), (0, 16, STEP, 1)) for _ in range(3)]
    begin = {"starts_q": starts([2, 1]), "starts_k": starts([2, 1])}
    chosen = options("triton", 2, 2, deterministic=deterministic)
    assert same(run(tensors, chosen, **begin), run([x.contiguous() for x in tensors], chosen, **begin))
