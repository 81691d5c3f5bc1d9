"""profile: what it runs, what it reads, what it says where a tool is missing; ranges on the time line.

The reports below are made to the formats that Nsight Compute 2025 and Nsight Systems 2025 document; none was recorded.
"""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn
from torch.nn.modules import module as hooks

import fusednn
from fusednn.__main__ import main
from fusednn.profiling import ranges
from fusednn.profiling.reports import LIMITS, METRICS, ncu_kernels, nsys_kernels, nsys_ranges
from fusednn.profiling.target import parse_target

VALUES = ["5,120", "168", "65,536", "256", "128", "0.97", "12.5", "12.31", "3.40", "n/a", "32", "8", "1", "3"]


def raw_page(values: list[str]) -> str:
    """Two launches of one kernel, between the tool's own lines."""
    names = ["ID", "Kernel Name", *METRICS.values(), *LIMITS.values()]
    units = [
        "",
        "",
        "ns",
        "register/thread",
        "byte/block",
        "",
        "",
        "",
        "%",
        "%",
        "%",
        "%",
        "block",
        "block",
        "block",
        "block",
    ]
    rows = [names, units, ["0", "void step_forward<Lstm, Bf16>(Args, int)", *values], ["1", "gemm", *values]]
    table = "\n".join(",".join(f'"{cell}"' for cell in row) for row in rows)
    return f"==PROF== Connected to process 7\n{table}\n==PROF== Disconnected from process 7\n"


KERNELS = """Processing [nsys.sqlite] with [cuda_gpu_kern_sum.py]...
Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name
75.0,300000,100,3000.0,2990.0,2800,3300,31.1,"void step_forward<Lstm, Bf16>(Args, int)"
25.0,100000,2,50000.0,50000.0,49000,51000,1000.0,sgemm
"""
RANGES = """
Range,Style,Total Proj Time (ns),Total Range Time (ns),Range Instances,Proj Avg (ns),Proj Med (ns),Proj Min (ns),Proj Max (ns),Proj StdDev (ns),Total GPU Ops,Avg GPU Ops,Avg Range Lvl,Avg Num Child
fusednn:steps 0-63,PushPop,192000,150000,1,192000.0,192000.0,192000,192000,0.0,64,64.0,2.0,0.0
"""  # noqa: E501


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["lstm", "--batch", "2"], ["-m", "fusednn.profiling.workload", "lstm", "--batch", "2"]),
        (
            ["bench/bench_launch.py::test_x[T50]"],
            ["-m", "pytest", "bench/bench_launch.py::test_x[T50]", "--bench-profile"],
        ),
        (["train.py", "--epochs", "1"], ["train.py", "--epochs", "1"]),
        (["python", "-m", "mypackage.train", "x"], ["-m", "mypackage.train", "x"]),
    ],
)
def test_a_target_is_a_layer_a_benchmark_a_script_or_a_module(words, command):
    assert parse_target(words).command == [sys.executable, *command]


@pytest.mark.parametrize("words", [[], ["lstn"], ["train.sh"]])
def test_another_target_is_refused_with_what_there_is(words):
    with pytest.raises(ValueError, match="lstm"):
        parse_target(words)


def test_a_missing_file_is_no_target_and_a_file_no_folder(tmp_path, capsys):
    (tmp_path / "file").touch()
    for words, said in (
        (["--", "bench/bench_nope.py::test_x"], "no file bench/bench_nope.py"),
        (["--", "missing.py"], "no file missing.py"),
        (["--out", str(tmp_path / "file"), "--", "lstm"], "--out: "),
    ):
        assert main(["profile", *words]) == 2 and said in capsys.readouterr().err


def test_compute_report_gives_fields_in_our_units_and_none_for_what_it_lacks():
    first, second = ncu_kernels(raw_page(VALUES))
    assert first["kernel"].startswith("void step_forward<Lstm") and second["kernel"] == "gemm"
    assert (first["time_us"], first["regs"], first["shared"]) == (5.12, 168, 65536)
    assert (first["occupancy_theoretical"], first["occupancy_achieved"]) == (12.5, 12.31)
    assert first["occupancy_limiter"] == "registers" and first["tensor_active_pct"] is None


def test_a_multiprocessor_is_active_while_it_holds_a_warp_whatever_its_throughput():
    metrics = (f"sm__{what}.avg.pct_of_peak_sustained_elapsed" for what in ("throughput", "cycles_active"))
    page = ",".join(["ID", "Kernel Name", *metrics]) + "\n0,step,9.38,97.2\n"
    assert ncu_kernels(page)[0]["sm_active_pct"] == 97.2


def test_compute_report_without_a_table_is_refused_with_the_tools_error():
    with pytest.raises(ValueError, match="No kernels were profiled"):
        ncu_kernels("==WARNING== x\n==ERROR== No kernels were profiled.\n")


def test_systems_report_gives_launches_and_ranges():
    step, gemm = nsys_kernels(KERNELS)
    assert (step["instances"], step["total_us"], step["mean_us"], gemm["instances"]) == (100, 300, 3, 2)
    assert nsys_ranges(RANGES) == [
        {"range": "steps 0-63", "instances": 1, "gpu_us": 192, "host_us": 150, "launches": 64}
    ]


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Puts a program of a name and a shell text on an otherwise empty PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)

    def put(name: str, text: str) -> None:
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)

    return put


@pytest.mark.parametrize("name", ["ncu", "nsys"])
def test_without_the_tool_the_exact_commands_are_printed(name, tool, capsys):
    assert main(["profile", "--tool", name, "--", "gru", "--hidden", "8"]) == 2
    said = capsys.readouterr().err
    assert f"{name} of Nsight" in said and "fusednn.profiling.workload gru --hidden 8" in said
    assert "measured" in said and "FUSEDNN_NVTX=1" in said


def test_compute_records_then_reads_and_prints_a_row_a_launch(tool, tmp_path, capsys):
    (tmp_path / "raw.csv").write_text(raw_page(VALUES))
    tool(
        "ncu", f'case "$1" in --import) while read -r l; do echo "$l"; done < {tmp_path}/raw.csv;; *) echo "$@";; esac'
    )
    assert main(["profile", "--tool", "ncu", "--kernel", "step", "--out", str(tmp_path), "--", "gru"]) == 0
    said = capsys.readouterr().out
    assert "step_forward<Lstm, Bf16>" in said and "12.3%" in said and "registers" in said
    assert json.loads((tmp_path / "target.json").read_text()) == ["gru"]
    log = (tmp_path / "log.txt").read_text()
    assert "--nvtx-include fusednn@measured/ --kernel-name regex:step" in log


def test_counters_that_the_driver_refuses_are_explained(tool, tmp_path, capsys):
    tool("ncu", "echo '==ERROR== ERR_NVGPUCTRPERM - The user does not have permission'; exit 1")
    assert main(["profile", "--tool", "ncu", "--out", str(tmp_path), "--", "gru"]) == 2
    assert "NVreg_RestrictProfilingToAdminUsers" in capsys.readouterr().err


def test_torchs_profiler_names_the_operator_and_counts_the_measured_calls_alone(tmp_path, capsys):
    sizes = ["--batch", "1", "--time", "4", "--hidden", "8", "--repeat", "2"]
    assert main(["profile", "--out", str(tmp_path), "--", "gru", *sizes]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("fusednn::recurrent "))
    assert line.split()[1] == "2"
    assert (tmp_path / "trace.json").exists()


def test_a_script_is_profiled_as_a_whole_whatever_it_says_is_measured(tmp_path, capsys):
    script = tmp_path / "two.py"
    script.write_text(
        "import torch, fusednn\nfrom fusednn.profiling import measured\n"
        "layer, x = fusednn.GRU(2, 3).requires_grad_(False), torch.zeros(4, 1, 2)\n"
        "with measured():\n    layer(x)\nlayer(x)\n"
    )
    assert main(["profile", "--out", str(tmp_path), "--", str(script)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("fusednn::recurrent "))
    assert line.split()[1] == "2"


@pytest.mark.slow
def test_a_benchmark_is_profiled_checked_and_not_timed(tmp_path, capsys):
    name = "bench/bench_recurrent.py::test_time"
    assert main(["profile", "--out", str(tmp_path), "--", name, "--bench-tier", "smoke", "-k", "GRU and fusednn"]) == 0
    assert "fusednn::recurrent" in capsys.readouterr().out


class Domain:
    """Writes down what NVTX would get."""

    def __init__(self):
        self.names, self.open = [], 0

    def get_event_attributes(self, message):
        return message

    def push_range(self, name):
        self.names.append("  " * self.open + name)
        self.open += 1

    def pop_range(self):
        self.open -= 1


@pytest.fixture
def domain():
    made = Domain()
    handles = ranges.listen(made)
    yield made
    ranges.listen(None)
    for handle in handles:
        handle.remove()


def test_a_layer_is_a_range_named_as_it_prints_itself(domain):
    model = nn.Sequential(nn.Linear(3, 4), fusednn.GRU(4, 8))
    with ranges.span("mine"):
        model(torch.randn(5, 2, 3))
    assert domain.names == ["mine", "  GRU(4, 8)"] and domain.open == 0


def test_a_layer_that_fails_closes_its_range(domain):
    with pytest.raises(RuntimeError):
        fusednn.GRU(4, 8)(torch.randn(5, 2, 3))
    assert domain.names == ["GRU(4, 8)"] and domain.open == 0


def test_layers_inside_layers_are_ranges_inside_ranges(domain):
    fusednn.TransformerEncoderLayer(8, 2, 16, batch_first=True)(torch.randn(2, 5, 8))
    assert domain.names[0] == "TransformerEncoderLayer" and domain.names[1].startswith("  MultiheadAttention")


@pytest.mark.filterwarnings(r"ignore:Using `torch.compile\(module\)` when there are global hooks")
def test_a_compiled_layer_is_one_graph_with_ranges_on(domain):
    layer = torch.compile(fusednn.GRU(4, 8), fullgraph=True, backend="eager")
    layer(torch.randn(5, 2, 4))


def test_off_nothing_is_registered():
    assert not hooks._global_forward_pre_hooks and not hooks._global_forward_hooks
    with ranges.span("nobody"), ranges.measured():
        pass
