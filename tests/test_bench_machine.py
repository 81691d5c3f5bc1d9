"""What a machine can give: floors and peaks, memory in use, the clock of a GPU, and what Nsight Compute counted.

The state of a GPU comes from a stand-in for NVML, and Nsight Compute's table is made to the format that it documents.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bench import achieved, check, count, floors, gpu_state, layers, load, memory, results
from bench.cases import attention_case, bytes_read, recurrent_case
from bench.claims import judge_all
from bench.fields import record
from bench.query import Cells
from bench.report import hardware, pictures, tables
from bench.verdict import CONTRADICTED, NOT_MEASURED, SUPPORTED
from test_bench_report import MACHINE
from test_bench_trust import FakeWatch, run
from test_profiling import VALUES, raw_page

CPU = torch.device("cpu")
GPU_MACHINE = {**MACHINE, "device": "cuda", "device_name": "NVIDIA Test"}


def cell(name, seconds=1e-3, **fields):
    fields = {"dtype": "float32", "threads_torch": 2, "disturbed": False, "device": "cpu", **fields}
    stats = {"data": [seconds] * 5, "median": seconds, "rounds": 5}
    bench = {"group": "g", "name": name, "fullname": f"bench/{name}", "params": None, "param": None, "options": {},
             "extra_info": record(**fields), "stats": stats}  # fmt: skip
    return {"kind": "measured", "fullname": f"bench/{name}", "bench": bench, "series": {}}


def fact(name, **series):
    return {"kind": "fact", "fullname": f"bench/{name}", "series": series}


def assembled(rows, machine=None):
    machine = machine or {"device": "cpu", "device_name": "Test CPU", "torch_threads": 2}
    return results.assemble(rows, machine, {"name": "standard", "seeds": 1}, {}, "2026-01-02T03:04:05+00:00")


def peak_rows(**more):
    yield cell("bench_floors.py::test_matrix_product[all-float32]", tflops=0.1, cell="matrix product", **more)
    yield cell("bench_floors.py::test_matrix_product[one-float32]", tflops=0.06, threads_torch=1, cell="matrix product")
    yield cell("bench_floors.py::test_copy[all]", gbps=20.0, cell="copy", **more)


# ---- peaks


def info(found, name):
    return next(c["extra_info"] for c in found["benchmarks"] if name in c["fullname"])


def test_shares_are_of_the_peaks_that_the_same_run_measured():
    layer = cell("bench_recurrent.py::test_time[x]", tflops=0.025, gbps=2.0, impl="fusednn", cell="LSTM")
    alone = cell("bench_cores.py::test_one_sequence[x]", tflops=0.03, threads_torch=1)
    half = cell("bench_attention.py::test_time[x]", tflops=0.03, dtype="bfloat16")
    found = assembled([layer, alone, half, *peak_rows()])
    assert info(found, "test_time[x]")["pct_peak_flops"] == pytest.approx(25)
    assert info(found, "test_time[x]")["pct_peak_bw"] == pytest.approx(10)
    assert info(found, "one_sequence")["pct_peak_flops"] == pytest.approx(50)
    assert info(found, "bench_attention")["pct_peak_flops"] is None  # no product in bfloat16 was measured


@pytest.mark.parametrize("floor_rows", [(), tuple(peak_rows(disturbed=True))[::2]], ids=["none", "disturbed"])
def test_without_a_quiet_peak_a_share_is_null(floor_rows):
    layer = cell("bench_recurrent.py::test_time[x]", tflops=0.025, gbps=2.0)
    found = info(assembled([layer, *floor_rows]), "test_time")
    assert found["pct_peak_flops"] is None and found["pct_peak_bw"] is None


def test_page_shows_floors_shares_and_the_roofline():
    cells = [cell(f"bench_recurrent.py::test_time[{impl}]", tflops=t, gbps=1.0, flops=10**9, bytes_min=10**7, impl=impl,
                  cell="LSTM", mode="inference") for impl, t in (("fusednn", 0.05), ("torch.nn", 0.02))]  # fmt: skip
    driver = {"floor": "thread_barrier", "us": 0.2, "low": 0.1, "high": 0.3, "threads": 2}
    found = Cells(assembled([*cells, *peak_rows(), fact("bench_floors.py::test_drivers", floors=[driver])]))
    rows = {row[0]: row for row in tables.floors(found).rows}
    assert rows["thread barrier"][1:4] == ("2 threads", "0.2", "us") and rows["copy"][2:4] == ("20", "GB/s")
    assert [row[2] for row in tables.shares(found).rows] == ["50", "20"]  # the fastest first
    assert "matrix product, 100 GFLOP/s" in getattr(hardware.roofline(found), "svg", "")
    assert hardware.roofline(Cells(assembled(cells))) is None


def test_least_bytes_are_inputs_weights_and_results_once():
    case = recurrent_case("torch.nn", "GRU", B=2, T=3, H=4, mode="inference", device=CPU)
    weights, x = 2 * 3 * 4 * 4 + 2 * 3 * 4, 3 * 2 * 4
    assert case.reads == 4 * (weights + x)
    table = torch.nn.Sequential(torch.nn.Embedding(1000, 4), torch.nn.Linear(4, 4, bias=False))
    assert bytes_read(table, [torch.zeros(5, dtype=torch.long)]) == 5 * 8 + 4 * 16


# ---- floors


def test_floors_are_read_among_what_else_a_program_says():
    text = '{"device": "NVIDIA Test", "sm": 90}\nwarming up\n{"floor": "launch", "us": 2.1, "low": 2.0, "high": 2.2}\n'
    assert floors.floors(text) == [{"floor": "launch", "us": 2.1, "low": 2.0, "high": 2.2}]


def test_a_program_that_is_not_built_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(floors, "CUDA_PROGRAM", tmp_path / "floors")
    with pytest.raises(floors.Unavailable, match=r"gpu_suite\.sh builds it"):
        floors.program(torch.device("cuda"))
    monkeypatch.setattr(floors, "CPU_PROGRAM", tmp_path / "cpu_floors")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(floors.Unavailable, match="C\\+\\+ compiler"):
        floors.program(CPU)


# ---- memory


MOMENTS = """
import torch
from bench import memory
def run():
    first = torch.ones(16 << 18)  # 16 MiB of float32
    del first
    torch.ones(8 << 18)
print(*memory.peak_growth(run, torch.device("cpu")))
"""


@pytest.mark.skipif(not memory.CLEAR.exists(), reason="needs /proc/self/clear_refs")
def test_the_most_memory_in_use_is_that_of_the_largest_moment():
    environment = {**os.environ, **memory.HEAP}
    done = subprocess.run(
        [sys.executable, "-c", MOMENTS], cwd=memory.ROOT, env=environment, capture_output=True, text=True
    )
    grown = [int(word) for word in done.stdout.split()]
    assert len(grown) == memory.RUNS and all(15 << 20 <= growth <= 17 << 20 for growth in grown), done


def test_a_system_that_does_not_tell_gives_none(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "missing" / "clear_refs")
    assert memory.peak_growth(lambda: None, CPU) is None


@pytest.mark.skipif(not memory.CLEAR.exists(), reason="needs /proc/self/clear_refs")
def test_memory_of_a_recurrence_is_linear_in_length():
    asked = {"kind": "recurrent", "lengths": (512, 1024), "impl": "torch.nn", "cell": "RNN", "B": 8, "H": 128}
    short, long = memory.saved(device=CPU, **asked)
    assert 1.9 < long / short < 2.1
    with memory.Peaks(CPU) as peaks:
        short, long = (min(runs) for runs in peaks(**asked))
        assert 1.6 < long / short < 2.4
        with pytest.raises(RuntimeError, match="ended with status"):
            peaks(**{**asked, "impl": "nobody's"})


def memory_fact(test, power, **which):
    lengths = [100, 200, 400]
    saved = [float(T) ** power for T in lengths]
    return fact(
        f"bench_memory.py::{test}[x]", lengths=lengths, saved_mib=saved, peak_mib=[[s, s] for s in saved], **which
    )


def verdict(found, id, row):
    return next(c for c in found["claims"] if (c["id"], c["row"]) == (id, row))


def test_picture_of_memory_needs_no_peak_that_is_known():
    unknown = memory_fact("test_attention", 1, cell="attention", impl="sdpa-flash")
    unknown["series"]["peak_mib"] = [None, [0.0, 0.0], None]
    assert "sdpa-flash" in getattr(pictures.memory(Cells(assembled([unknown]))), "svg", "")


@pytest.mark.parametrize("name", ["saved bytes", "peak bytes"])
def test_claims_on_memory_follow_its_suite(name):
    row = f"attention, fused: exponent of {name}"
    for power, expected in ((2, SUPPORTED), (1, CONTRADICTED)):
        rows = [memory_fact("test_attention", power, cell="attention", impl="sdpa-flash")]
        assert verdict(assembled(rows), 14, row)["verdict"] == expected
    unknown = memory_fact("test_attention", 1, cell="attention", impl="sdpa-flash")
    unknown["series"]["peak_mib"] = [None] * 3
    assert "does not tell" in verdict(assembled([unknown]), 14, "attention, fused: exponent of peak bytes")["reason"]


# ---- the clock of a GPU


class Nvml:
    """A stand-in for pynvml: one GPU, whose clock and reasons a test sets."""

    NVML_CLOCK_SM = 1

    class NVMLError(Exception):
        pass

    def __init__(self, mhz=1980, mask=0):
        self.mhz, self.mask, self.refuses = mhz, mask, False

    def nvmlDeviceGetClockInfo(self, handle, kind):
        if self.refuses:
            raise self.NVMLError
        assert kind == self.NVML_CLOCK_SM
        return self.mhz

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self.mask


def judged(nvml, at_round):
    """Ten rounds' judging in which a round may change the GPU's state."""
    watch, state = FakeWatch(), gpu_state.GpuState(nvml, object())

    def foreign(n):
        at_round(n)
        return 0.0

    return run(load.Judge(rounds=6, seconds=0.5, limit=60, watch=watch, gpu=state), watch, foreign)


def test_rounds_at_a_dropped_clock_are_rejected_and_repeated():
    nvml = Nvml()

    def drop(n):
        nvml.mhz = 1200 if 3 <= n < 9 else 1980

    got = judged(nvml, drop)
    assert got.rejected_rounds == 6 and not got.disturbed
    assert (got.sm_mhz, got.throttle) == (1980, "none")


def test_rounds_under_a_throttle_reason_are_rejected_and_named_where_nothing_else_is_left():
    hot = Nvml(mask=0x40)
    got = judged(hot, lambda n: None)
    assert got.disturbed and got.throttle == "hardware thermal slowdown"
    capped = Nvml(mask=0x04)
    got = judged(capped, lambda n: None)
    assert not got.disturbed and got.throttle == "power cap"  # no drop came of it
    idle = Nvml(mask=0x01)
    assert judged(idle, lambda n: None).throttle == "none"


def test_a_driver_that_refuses_rejects_nothing_and_leaves_nulls():
    nvml = Nvml()
    nvml.refuses = True
    got = judged(nvml, lambda n: None)
    assert not got.disturbed and got.sm_mhz is None and got.throttle is None


def test_the_gpu_is_found_by_its_uuid_and_a_missing_package_is_no_error(monkeypatch):
    assert gpu_state.gpu_state(CPU) is None
    asked = []
    nvml = Nvml()
    monkeypatch.setattr(nvml, "nvmlInit", lambda: None, raising=False)
    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByUUID", asked.append, raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12-34"))
    state = gpu_state.gpu_state(torch.device("cuda"))
    assert state is not None and state.read() == gpu_state.Reading(1980) and asked == ["GPU-12-34"]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_state.gpu_state(torch.device("cuda")) is None


# ---- the time of kernels


def test_kernels_side_by_side_keep_a_device_busy_once():
    assert count.covered([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0), (5.5, 5.8)]) == 4.0
    assert count.covered([]) == 0.0


def gap_row(gap, impl="torch.nn"):
    return cell("bench_launch.py::test_ladder[T200-LSTM-x]", impl=impl, cell="LSTM", B=1, H=64, T=200, gap_fraction=gap,
                device="cuda")  # fmt: skip


def test_claim_of_launch_latency_follows_the_gap():
    row = "gap fraction, LSTM, B = 1, torch.nn"
    for gap, expected in ((0.9, SUPPORTED), (0.1, CONTRADICTED)):
        assert verdict(assembled([gap_row(gap)], GPU_MACHINE), 6, row)["verdict"] == expected
    assert verdict(assembled([gap_row(None)], GPU_MACHINE), 6, row)["reason"] == "the profiler gave no times of kernels"
    assert "needs a GPU" in verdict(assembled([]), 6, row)["reason"]


# ---- Nsight Compute's counters

BENCHMARK = "bench/bench_models.py::test_seed_model[T200-LSTM-torch.nn]"


def profile(folder, target, page):
    folder.mkdir()
    (folder / "target.json").write_text(json.dumps(target))
    (folder / "ncu-0.csv").write_text(page)
    return folder


def two_launches():
    """A short launch at high occupancy, and one three times as long at low."""
    page = raw_page(VALUES)
    head, units, first, second = page.splitlines()[1:5]
    second = second.replace('"5,120"', '"15,360"').replace('"12.31"', '"4.31"').replace('"168"', '"255"')
    return "\n".join([head, units, first, second]) + "\n"


def utilisation_rows():
    name = BENCHMARK.removeprefix("bench/")
    return [cell(name, impl="torch.nn", cell="seed LSTM", B=32, T=200, tflops=25.0, device="cuda", gap_fraction=0.75),
            cell("bench_floors.py::test_matrix_product[all-float32]", tflops=100.0, device="cuda",
                 cell="matrix product")]  # fmt: skip


def test_counters_join_the_cell_that_was_profiled(tmp_path):
    found = assembled(utilisation_rows(), GPU_MACHINE)
    results.write(found, tmp_path / "report" / "results.json")
    folder = profile(tmp_path / "a", [BENCHMARK, "--bench-tier", "standard"], two_launches())
    layer = profile(tmp_path / "b", ["lstm", "--batch", "8"], raw_page(VALUES))
    (tmp_path / "empty").mkdir()
    file = tmp_path / "report" / "results.json"
    assert achieved.main([str(file), str(folder), str(layer), str(tmp_path / "empty")]) == 0
    after = results.load(file)
    got = info(after, "test_seed_model")
    assert got["occupancy_achieved"] == pytest.approx((12.31 + 3 * 4.31) / 4)
    assert (got["regs"], got["smem"], got["threads"], got["occupancy_limiter"]) == (255, 65536, 256, "registers")
    assert got["tensor_active_pct"] is None and got["occupancy_source"] == "Nsight Compute"
    assert got["pct_peak_flops"] == pytest.approx(25)
    assert set(after["nsight"]) == {f"{BENCHMARK} --bench-tier standard", "lstm --batch 8"}
    assert "Occupancy is not speed" in (file.parent / "index.html").read_text()
    assert len((file.parent / "tables/nsight.md").read_text().splitlines()) == 2 + 4


def test_claims_on_utilisation_follow_the_counters(tmp_path):
    found = assembled(utilisation_rows(), GPU_MACHINE)
    rows = {name: f"{name}, seeds' LSTM" for name in ("kernel busy", "warps active", "share of peak FLOP/s")}
    assert verdict(found, 4, rows["kernel busy"])["measured"] == pytest.approx(25)
    assert verdict(found, 4, rows["kernel busy"])["verdict"] == SUPPORTED  # of 20 to 30
    assert verdict(found, 4, rows["share of peak FLOP/s"])["verdict"] == SUPPORTED
    assert verdict(found, 4, rows["warps active"])["verdict"] == NOT_MEASURED
    assert achieved.join(found, BENCHMARK, achieved.read(profile(tmp_path / "a", [BENCHMARK], raw_page(VALUES)))[1])
    found["claims"] = judge_all(found)
    assert verdict(found, 4, rows["warps active"])["measured"] == pytest.approx(12.31)
    assert verdict(found, 4, rows["warps active"])["verdict"] == CONTRADICTED


def test_no_launch_or_no_time_gives_no_counters():
    assert achieved.summary([]) == {}
    assert achieved.summary([{"time_us": None}]) == {}


def test_a_backend_without_such_a_kernel_is_skipped_and_another_error_is_none():
    q = torch.zeros(1, 1, 2, 8)

    def refuses(*_):
        raise RuntimeError("No available kernel. Aborting execution.")

    def fails(*_):
        raise RuntimeError("out of memory")

    with pytest.raises(pytest.skip.Exception, match="no such kernel for float32"):
        layers.probe_attention(refuses, q, q, q)
    with pytest.raises(RuntimeError, match="out of memory"):
        layers.probe_attention(fails, q, q, q)


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_cases_in_bfloat16_are_right_and_say_so(mode):
    sizes = {"B": 2, "T": 5, "mode": mode, "device": CPU, "dtype": torch.bfloat16}
    for case in (recurrent_case("torch.nn", "GRU", H=4, **sizes), attention_case("sdpa-math", N=2, E=8, **sizes)):
        assert case.fields["dtype"] == "bfloat16" and case.results and case.torchs and case.truth
        found = case.results()
        assert all(t.dtype == torch.bfloat16 for t in found)
        check.require_right(check.worst_error(found, case.torchs(), case.truth()))


def test_flash_attn_takes_time_before_heads(monkeypatch):
    def attend(q, k, v, causal):
        assert causal and q.shape == (2, 5, 3, 8)
        return torch.nn.functional.scaled_dot_product_attention(
            *(t.transpose(1, 2) for t in (q, k, v)), is_causal=causal
        ).transpose(1, 2)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=attend, __spec__=object()))
    q, k, v = (torch.randn(2, 3, 5, 8) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(layers.attention("flash-attn", torch.device("cuda"))(q, k, v, is_causal=True), expected)
    with pytest.raises(pytest.skip.Exception, match="needs a CUDA device"):
        layers.attention("flash-attn", CPU)
