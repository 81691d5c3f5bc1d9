"""The suites themselves: models of equal size, equal work, the text, and the smoke tier end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import flops, text, train
from bench.count import parameter_count
from bench.models import EncoderStack, Factory, SeedLSTM, SeedTransformer, byte_lm, recurrent_stack
from bench.models.byte_lm import KINDS
from bench.models.stacks import EQUAL_LAYERS, equal_flops_ff
from bench.schema import problems

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parent.parent
TORCH = Factory("torch.nn")


def test_byte_models_have_equal_size():
    sizes = [parameter_count(byte_lm(TORCH, kind)) for kind in KINDS]
    assert max(sizes) / min(sizes) <= 1.02


@pytest.mark.parametrize("kind", KINDS)
def test_byte_models_see_only_the_past(kind):
    torch.manual_seed(0)
    model = byte_lm(TORCH, kind).eval()
    a = torch.randint(256, (1, 20))
    b = a.clone()
    b[0, 12:] = (b[0, 12:] + 1) % 256
    with torch.no_grad():
        x, y = model(a), model(b)
    assert torch.allclose(x[:, :12], y[:, :12], atol=1e-5)
    assert not torch.allclose(x[:, 12:], y[:, 12:], atol=1e-3)


@pytest.mark.parametrize("cell", EQUAL_LAYERS)
def test_stacks_have_equal_parameters(cell):
    d = 128
    ratio = parameter_count(recurrent_stack(TORCH, cell, d)) / parameter_count(EncoderStack(TORCH, d, 8))
    assert 0.98 <= ratio <= 1.02


@pytest.mark.parametrize("cell", EQUAL_LAYERS)
@pytest.mark.parametrize("T", (16, 200))
def test_stacks_have_equal_flops(cell, T):
    d = 256
    ours = flops.recurrent(cell, 4, T, d, d, EQUAL_LAYERS[cell])
    theirs = flops.encoder(4, T, d, equal_flops_ff(d, T), 2)
    assert ours == theirs


def test_flops_agree_with_torchs_counter():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # it can't count the CPU's flash
        layer(torch.randn(2, 10, 32))
    assert counter.get_total_flops() == flops.encoder(2, 10, 32, 64, 1)
    x, w = torch.randn(2 * 10, 8), torch.randn(8, 3 * 16)
    with FlopCounterMode(display=False) as counter:
        x @ w
        for _ in range(10):
            torch.randn(2, 16) @ torch.randn(16, 3 * 16)
    assert counter.get_total_flops() == flops.recurrent("GRU", 2, 10, 8, 16)


def test_seed_models_have_the_seeds_shapes():
    tokens = torch.randint(50, (2, 7))
    for model in (SeedLSTM(TORCH, vocabulary=50, width=16), SeedTransformer(TORCH, vocabulary=50, width=16)):
        assert model(tokens).shape == (2, 7, 50)
    assert len(SeedTransformer(TORCH, vocabulary=50, width=16).layers) == 6


def test_text_is_real_split_by_file_and_the_same_every_time(tmp_path):
    data = text.load(50_000, 5_000)
    assert (len(data.train), len(data.held_out)) == (50_000, 5_000)
    text.load.cache_clear()
    assert text.load(50_000, 5_000).digest == data.digest
    assert b"import" in data.train
    assert data.held_out[:200] not in data.train
    for n in range(20):
        (tmp_path / f"m{n:02d}.py").write_bytes(b"x" * n)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "a.py").write_bytes(b"")
    assert [p.name for p in text.source_files(tmp_path)] == [f"m{n:02d}.py" for n in range(20)]


def test_unigram_entropy():
    assert text.unigram_bits(bytes(range(256)) * 3) == pytest.approx(8)
    assert text.unigram_bits(b"aaaa") == 0
    assert text.unigram_bits(b"abab") == pytest.approx(1)


def test_training_learns_and_repeats(monkeypatch):
    data, steps = text.load(50_000, 5_000), 8
    monkeypatch.setattr(train, "BATCH", 4)

    def curve():
        torch.manual_seed(0)
        return train.train(byte_lm(TORCH, "GRU"), data, "GRU", steps, torch.device("cpu"))

    a, b = curve(), curve()
    assert a.bits == b.bits
    assert a.final < a.bits[0] - 0.3
    assert a.bytes_seen[-1] == steps * train.BATCH * train.LENGTH
    assert a.seconds == sorted(a.seconds)


def run(*arguments):
    """pytest in a process of its own, on one thread: spinning thread pools make a shared machine very slow."""
    command = [sys.executable, "-m", "pytest", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_smoke_tier_end_to_end(tmp_path):
    done = run("bench", "--bench-tier", "smoke", "--bench-out", str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    got = json.loads((tmp_path / "results.json").read_text())
    assert (tmp_path / "index.html").exists()
    cells = len(got["benchmarks"]) + len(got["not_measured"]) + len(got["facts"])
    assert len((tmp_path / "lines.jsonl").read_text().splitlines()) == 1 + cells
    occupancy = got["facts"]["bench/bench_occupancy.py::test_theoretical[H200]"]
    assert all(row[occupancy["columns"].index("blocks")] > 0 for row in occupancy["rows"])
    assert "step_forward&lt;Lstm, Bf16, false&gt;" in (tmp_path / "index.html").read_text()
    assert got["facts"]["bench/bench_memory.py::test_recurrent[(16, 32)-LSTM, fusednn]"]["saved_mib"][0] > 0
    tests = {b["fullname"].split("[")[0].removeprefix("bench/") for b in got["benchmarks"]}
    assert {
        "bench_floors.py::test_copy",
        "bench_launch.py::test_ladder",
        "bench_duel.py::test_stacks",
        "bench_models.py::test_byte_lm",
    } <= tests
    assert {r["kind"] for r in got["not_measured"]} <= {"skipped"}
    assert all(r["extra_info"]["skip_reason"] for r in got["not_measured"])
    floors = [b for b in got["benchmarks"] if "bench_floors.py" in b["fullname"]]
    assert problems(got) == []
    for b in got["benchmarks"]:
        info = b["extra_info"]
        assert b["stats"]["median"] > 0
        assert isinstance(info["dtype"], str)
        assert not any(isinstance(v, (list, dict)) for v in info.values())
        if info["max_err"] is not None:
            assert info["max_err"] <= info["err_budget"]
        if info["device"] == "cpu":
            assert info["sm_active_pct"] is None
            assert info["peak_mem_mib"] is None and info["gap_fraction"] is None and info["sm_mhz"] is None
        if info["tflops"] is not None and not any(c["extra_info"]["disturbed"] for c in floors):
            assert info["pct_peak_flops"] > 0
    ladder = {(b["extra_info"]["cell"], b["extra_info"]["impl"], b["extra_info"]["T"]): b["extra_info"]["launches"]
              for b in got["benchmarks"] if "test_ladder" in b["fullname"]}  # fmt: skip
    for cell in ("RNN", "LSTM", "GRU"):
        assert ladder[cell, "reference", 16] - ladder[cell, "reference", 4] >= 12
    if ("LSTM", "sequence", 16) in ladder:
        assert ladder["LSTM", "sequence", 16] == ladder["LSTM", "sequence", 4]
        assert ladder["LSTM", "loop", 16] - ladder["LSTM", "loop", 4] == 12
    assert str(ROOT) not in (tmp_path / "results.json").read_text()
    assert str(ROOT) not in (tmp_path / "index.html").read_text()
