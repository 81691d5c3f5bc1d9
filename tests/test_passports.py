"""What Triton's compiler makes of the kernels, without a GPU: the table, its gates, and what reads it."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import fusednn
from fusednn import triton_kernels
from fusednn.kernels import PASSPORTS, attention, passport_tables, passports
from fusednn.triton_kernels.configurations import HEAD_SIZES
from tools import gates, predict, sass

ROOT = Path(__file__).parent.parent
SDPA = fusednn.functional.scaled_dot_product_attention
MAIN = "attention_forward<fp16, 128>"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton's compiler")
def test_the_table_is_up_to_date_and_the_compiler_agrees_on_the_main_kernel():
    """Fingerprints of all kernels, and one of them compiled: `make passports` compiles more, on two compilers."""
    command = [sys.executable, str(ROOT / "tools/passports.py"), "--newest", "--only", f"{MAIN} sm_90$"]
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{MAIN} sm_90 {{" in done.stdout


@pytest.mark.parametrize("version", passport_tables())
def test_every_attention_call_finds_its_passports(version):
    kernels = passport_tables()[version]
    for size in HEAD_SIZES:
        for hidden in (False, True):
            for (dtype, tf32), suited in itertools.product(
                (("bfloat16", True), ("float32", True), ("float32", False)), (True, False)
            ):
                for name in attention(dtype, size - 1, hidden, suited, tf32=tf32):
                    assert {"sm_80", "sm_89", "sm_90", "sm_100", "sm_120"} <= kernels[name].code.keys()


def test_the_predictions_in_the_document_are_those_of_the_passports():
    assert predict.table() in (ROOT / "docs/kernels/attention.md").read_text(encoding="utf-8"), "tools/predict.py"


GOOD = {
    "configuration": {"warps": 8}, "threads": 256, "registers": 254, "shared": 196640, "stack": 0, "spills": 0,
    "mma": {"HGMMA.64x128x16.F32": 32}, "products": 16, "waits": 1, "exponentials": 66, "in_flight": 54,
    "serialised": False, "seconds": 3.1,
}  # fmt: skip
FAULTS = [
    ({"spills": 8}, "8 bytes of spills"),
    ({"shared": 232449}, "the device has 232448"),
    ({"serialised": True}, "serialised"),
    ({"mma": {}}, "no tensor-core instruction"),
    ({"waits": 2}, "2 waits for 16 products"),
    ({"in_flight": 53}, "53 of 66 exponentials"),
    ({"seconds": 10.1}, "10.1 s to compile"),
    ({"in_turns": False}, "groups of warps do not take turns"),
]


@pytest.mark.parametrize("version", passport_tables())
def test_every_kernel_of_the_table_passes(version):
    """With the oldest Triton too, with which the tests compile nothing."""
    assert gates.faults(json.loads(PASSPORTS.read_text())[version]) == []


def test_a_passport_within_the_figures_passes():
    assert gates.faults({MAIN: {"sm_90": GOOD}}) == []


@pytest.mark.parametrize(("broken", "said"), FAULTS, ids=[said for _, said in FAULTS])
def test_every_gate_closes(broken, said):
    (fault,) = gates.faults({MAIN: {"sm_90": {**GOOD, **broken}}})
    assert said in fault


def test_products_of_fp32_without_tf32_use_no_tensor_cores():
    name = "attention_forward<fp32, 128>"
    (fault,) = gates.faults({name: {"sm_90": GOOD}})
    assert "round fp32" in fault
    assert gates.faults({name: {"sm_90": {**GOOD, "mma": {}}}}) == []


def test_a_kernel_that_does_not_compile_is_a_fault():
    (fault,) = gates.faults({MAIN: {"sm_90": {"error": "PTXASError: too many resources"}}})
    assert "does not compile: PTXASError" in fault


LISTING = """
.L_x_0:
        MUFU.EX2 R0, R0 ;
        WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        MUFU.EX2 R1, R1 ;
        HGMMA.64x128x16.F32 R24, R4, gdesc[UR8], R24 ;
        MUFU.EX2 R2, R2 ;
   @P0  BRA `(.L_x_0) ;
        MUFU.EX2 R3, R3 ;
"""


def test_exponentials_between_issue_and_wait_are_in_flight():
    """The first one too: what the end of a turn issues flies at the start of the next."""
    loop = sass.main_loop(LISTING)
    assert sass.pipeline(loop) == {"products": 1, "waits": 1, "exponentials": 3, "in_flight": 2}
    assert sass.products(LISTING) == {"HGMMA.64x128x16.F32": 1}


IN_TURNS = ["SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR7], R2", "HGMMA.64x128x16.F32 R24, R4, gdesc[UR8], R24",
            "BAR.SYNC.DEFER_BLOCKING 0x0, 0x80", "@!P0 SYNCS.ARRIVE.TRANS64.A1T0 RZ, [UR7], RZ",
            "WARPGROUP.DEPBAR.LE gsb0, 0x0", "BAR.SYNC.DEFER_BLOCKING 0x0, 0x80",
            "@!P0 SYNCS.ARRIVE.TRANS64.A1T0 RZ, [UR7+0x8], RZ", "MUFU.EX2 R0, R0"]  # fmt: skip


@pytest.mark.parametrize(
    ("order", "taken"),
    [
        ((0, 1, 2, 3, 4, 5, 6, 7), True),
        ((1, 0, 2, 3, 4, 5, 6, 7), False),  # the turn is waited for after the product
        ((0, 7, 1, 2, 3, 4, 5, 6), False),  # exponentials before it
        ((0, 1, 4, 2, 3, 5, 6, 7), False),  # the turn is kept until the product is done
        ((0, 1, 2, 3, 5, 6, 4, 7), False),  # a buffer is given back before that
        ((0, 1, 2, 3, 4, 6, 7), False),  # and one before the warps have met
    ],
)
def test_groups_of_warps_take_turns_or_not(order, taken):
    loop = "".join(f"        {IN_TURNS[at]} ;\n" for at in order)
    assert sass.in_turns(f".L_x_0:\n{loop}   @P1  BRA `(.L_x_0) ;\n") is taken


@pytest.mark.skipif(triton_kernels.unavailable("cpu") is not None, reason=str(triton_kernels.unavailable("cpu")))
def test_explain_shows_what_an_h200_would_run():
    q = torch.zeros(1, 2, 4, 100, dtype=torch.float16)
    text = fusednn.explain(SDPA, q, q, q, is_causal=True, backend="triton")
    assert "interpreter: no machine code" in text and "attention_key_value<fp16, 128, causal, addresses>" in text
    assert "H200: 1 a multiprocessor" in text
    assert "no passport for float64" in fusednn.explain(SDPA, *3 * [q.double()], backend="triton")


def test_explain_shows_the_passports_of_the_gpu_that_is_there():
    with (
        FakeTensorMode(),
        mock.patch("torch.cuda.get_device_capability", return_value=(9, 0)),
        mock.patch("torch.cuda.get_device_name", return_value="NVIDIA H100 80GB HBM3"),
        mock.patch.object(FakeTensor, "data_ptr", lambda tensor: 0, create=True),
    ):
        q = torch.empty(2, 8, 1000, 128, dtype=torch.bfloat16, device="cuda")
        text = fusednn.explain(SDPA, q, q, q)
    code = passports()[1][MAIN].code["sm_90"]
    assert f"{MAIN}: blocks of 256 threads, {code.registers} registers" in text
    assert f"{code.in_flight} of {code.exponentials} exponentials run under a product" in text
    assert all(f"attention_{name}<fp16, 128>" in text for name in ("row", "key_value", "query"))
