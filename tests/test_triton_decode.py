"""Few queries over many keys: the kernel that splits the keys, and the merge of its parts."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from attention_truth import EVERYTHING, Case, attend, check
from fusednn import triton_kernels
from fusednn.attention_call import Inputs
from test_triton_sequences import SEED, agree, options

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    triton_kernels.unavailable(DEVICE) is not None, reason=str(triton_kernels.unavailable(DEVICE))
)


@pytest.fixture
def splits(monkeypatch):
    """How many parts each call was split into."""
    from fusednn.triton_kernels import decode

    seen = []
    kernel = decode.decode_kernel

    class Spy:
        def __getitem__(self, grid):
            def run(*arguments, **constants):
                seen.append(arguments[-1])
                return kernel[grid](*arguments, **constants)

            return run

    monkeypatch.setattr(decode, "decode_kernel", Spy())
    return seen


CASES = {
    "one query": (Case(B=1, N=2, M=1, K=1100, is_causal=True, causal_alignment="bottom_right"), 4),
    "grouped, everything": (replace(EVERYTHING, B=1, M=3, K=515, causal_alignment="bottom_right"), 2),
    "wide heads, whose queries are loaded anew": (Case(B=1, N=2, groups=2, M=3, K=515, E=136), 2),
    "window within one part": (Case(B=1, N=1, M=2, K=800, window=(9, 3), causal_alignment="bottom_right"), 3),
    "nothing to see on the right": (Case(B=1, N=1, M=2, K=530, is_causal=True, sink=True), 2),
}


@pytest.mark.parametrize(("case", "parts"), CASES.values(), ids=CASES)
def test_split_keys(case, parts, splits):
    check(case, torch.float32, True, "triton")
    assert splits == [parts]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_split_keys_in_16_bits(dtype):
    check(Case(B=1, N=3, groups=3, M=5, K=600, E=24, Ev=20, mask="bool"), dtype, False, "triton")


def test_keys_are_not_split_where_the_heads_fill_the_device(splits, monkeypatch):
    from fusednn.triton_kernels import launch

    monkeypatch.setattr(launch, "processors", lambda x: 1)
    check(Case(B=1, N=2, groups=2, M=1, K=512, sink=True), torch.float32, True, "triton")
    assert splits == [1]


def test_dropout_in_parts(splits):
    query, key, value = (torch.randn(2, n, T, 8) for n, T in ((2, 3), (1, 520), (1, 520)))
    agree(Inputs(query, key, value, seed=torch.tensor([SEED])), options("triton", 3, 520, 0.4))
    assert splits == [2]


def test_a_cache_with_lengths_of_its_own_a_row(splits):
    """Keys beyond a row's length are hidden by a mask and may hold anything but NaN; empty rows are defined."""
    lengths = torch.tensor([600, 300, 0])
    query, key, value = torch.randn(3, 4, 1, 8), torch.randn(3, 2, 600, 8), torch.randn(3, 2, 600, 8)
    seen = (torch.arange(600) < lengths[:, None])[:, None, None]
    out, lse = attend(query, key, value, seen, enable_gqa=True, return_lse=True, backend="triton")
    for b, length in enumerate(lengths.tolist()):
        alone, alone_lse = attend(
            query[b], key[b, :, :length], value[b, :, :length], enable_gqa=True, return_lse=True, backend="torch"
        )
        torch.testing.assert_close(out[b], alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(lse[b], alone_lse, rtol=1e-5, atol=1e-5)
    assert splits == [2]


def test_step_by_step_equals_all_at_once():
    query, key, value = (torch.randn(1, 2, 514, 8) for _ in range(3))
    whole = attend(query, key, value, is_causal=True, backend="torch")
    for t in (511, 512, 513):
        step = attend(query[:, :, t : t + 1], key[:, :, : t + 1], value[:, :, : t + 1], backend="triton")
        torch.testing.assert_close(step[:, :, 0], whole[:, :, t], rtol=1e-5, atol=1e-5)


def test_launches_compile_and_a_growing_cache_compiles_nothing_anew():
    """What the launcher makes of each call's arguments: types and properties that a kernel is compiled for.

    The interpreter does not go this way, so that the names of a kernel's arguments could clash with the launcher's.
    """
    code = """
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature
from fusednn.attention_call import Inputs, Options
from fusednn.triton_kernels import launch

compiled = {}
class Kernel:
    def __init__(self, kernel, name):
        self.name = name
        backend = make_backend(GPUTarget("cuda", 90, 32))
        self.bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    def __getitem__(self, grid):
        def run(*arguments, **constants):
            compiled.setdefault(self.name, set()).add(str(self.bind(*arguments, **constants)[1]))
        return run

for module in (launch.forward_kernels, launch.decode_kernels, launch.backward_kernels):
    for name in vars(module):
        if name.endswith("_kernel"):
            setattr(module, name, Kernel(getattr(module, name), name))
torch.cuda.get_device_capability = lambda device: (9, 0)
for K, p in [(K, p) for K in (1, 2, 16, 17, 511, 512, 515, 768, 1024, 2048) for p in (0.0, 0.1)]:
    cache = torch.empty(1, 2, 2048, 64, dtype=torch.float16)
    query = torch.empty(1, 8, 1, 64, dtype=torch.float16)
    inputs = Inputs(query, cache[:, :, :K], cache[:, :, :K], seed=torch.zeros(1, dtype=torch.int64))
    options = Options(0.125, None, None, 0, True, p, 1, K, False, "triton")
    out, lse = torch.empty_like(query), torch.empty(1, 8, 1)
    launch.forward(inputs, options, out, lse)
    found = [torch.empty_like(x) for x in inputs[:3]] + 3 * [None]
    launch.backward(out, None, inputs, options, out, lse, found)
print({name: len(kinds) for name, kinds in sorted(compiled.items())})
"""
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Each is compiled with dropout and without; without it one kernel gives all gradients.
    kinds = {"decode": 2, "forward": 2, "key_value": 2, "merge": 1, "query": 1, "row": 1}
    assert done.stdout.strip() == str({f"{name}_kernel": count for name, count in kinds.items()})
