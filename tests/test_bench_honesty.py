"""Honesty, end to end: the real suites on the real layers, and on layers that were tampered with on purpose."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUITES = ("bench/bench_launch.py", "bench/bench_recurrent.py")
CELLS = "(test_ladder and LSTM and (sequence or torch)) or (test_time and inference)"


def start(*arguments, tamper=False):
    """pytest on the suites in a process of its own, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FUSEDNN_TAMPER": "1" if tamper else ""}
    command = [sys.executable, "-m", "pytest", "-p", "tampering", *arguments]
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)  # fmt: skip


def run(*arguments, tamper=False):
    """The exit status and what was printed."""
    process = start(*arguments, tamper=tamper)
    printed, _ = process.communicate(timeout=300)
    return process.returncode, printed


def smoke(out, *more, tamper=False, cells=CELLS):
    where = ("--bench-tier", "smoke", "--bench-out", str(out), "--bench-no-report")
    return run(*SUITES, "-k", cells, *where, *more, tamper=tamper)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The suites twice on our layers, and once on those that were tampered with: exit status and results file."""
    folder = tmp_path_factory.mktemp("honesty")
    found = {}
    for name in ("first", "second", "tampered"):
        status, printed = smoke(folder / name, tamper=name == "tampered")
        assert (folder / name / "results.json").exists(), printed[-3000:]
        found[name] = (status, folder / name / "results.json")
    return found


def compared(runs, before, after):
    """Exit status of ``python -m bench.compare``, and the status of each cell by its name."""
    command = [sys.executable, "-m", "bench.compare", str(runs[before][1]), str(runs[after][1])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "400"})
    rows = (line.split() for line in done.stdout.splitlines() if "::" in line)
    words = ("SAME", "FAST", "SLOW", "AMBIGUOUS", "CHANGED", "WRONG")
    statuses = {row[0]: next(w for w in row if w in words) for row in rows}
    return done.returncode, statuses


def verdicts(runs, name):
    claims = json.loads(runs[name][1].read_text())["claims"]
    return {(c["id"], c["row"]): c["verdict"] for c in claims}


def test_the_same_kernels_twice_are_the_same(runs):
    assert runs["first"][0] == runs["second"][0] == 0
    status, cells = compared(runs, "first", "second")
    assert len(cells) > 6 and status == 0
    assert set(cells.values()) == {"SAME"}, cells


def test_a_slowed_kernel_is_slow_and_the_others_are_not(runs):
    status, cells = compared(runs, "first", "tampered")
    assert status == 1
    assert {name for name, got in cells.items() if got == "SLOW"} == {
        "bench_recurrent.py::test_time[T8-inference-GRU-fusednn]"
    }


def test_a_wrong_kernel_is_called_wrong_gets_no_time_and_fails_the_run(runs):
    status, file = runs["tampered"]
    results = json.loads(file.read_text())
    assert status == 1
    (row,) = (r for r in results["not_measured"] if r["kind"] != "skipped")
    info = row["extra_info"]
    assert row["kind"] == "wrong" and "inference-RNN-fusednn" in row["fullname"]
    assert info["max_err"] > info["err_budget"] and "wrong result" in info["skip_reason"]
    assert info["us_per_step"] is None
    assert not any("RNN-fusednn" in cell["fullname"] for cell in results["benchmarks"])


def test_a_claim_turned_round_in_the_kernel_turns_its_verdict(runs):
    row = (5, "LSTM, sequence")
    assert (verdicts(runs, "first")[row], verdicts(runs, "tampered")[row]) == ("CONTRADICTED", "SUPPORTED")
    assert verdicts(runs, "first")[5, "LSTM, torch.nn"] == verdicts(runs, "tampered")[5, "LSTM, torch.nn"]


def test_a_cell_that_turned_wrong_is_wrong_in_the_comparison(runs):
    (name,) = (name for name, got in compared(runs, "first", "tampered")[1].items() if got == "WRONG")
    assert "inference-RNN-fusednn" in name


def test_a_changed_count_is_called_changed(runs):
    changed = {name for name, got in compared(runs, "first", "tampered")[1].items() if got == "CHANGED"}
    assert changed and all("LSTM" in name and "torch.nn" not in name for name in changed)


def test_pytest_benchmark_compares_our_files(runs, monkeypatch, capsys):
    from pytest_benchmark.cli import main

    files = [str(runs[name][1]) for name in ("first", "second")]
    monkeypatch.setattr("sys.argv", ["pytest-benchmark", "compare", *files, "--group-by", "fullname"])
    main()
    printed = capsys.readouterr().out
    assert "test_time[T8-inference-GRU-fusednn]" in printed and "(first" not in printed


def lines(out):
    file = out / "lines.jsonl"
    return file.read_text().splitlines()[1:] if file.exists() else []


def test_a_killed_run_resumes_by_shards_and_measures_nothing_twice(tmp_path):
    cells = "test_ladder and LSTM and (reference or loop or sequence or torch)"
    where = ("--bench-tier", "smoke", "--bench-out", str(tmp_path), "--bench-no-report")
    process = start("bench/bench_launch.py", "-k", cells, *where)
    until = time.monotonic() + 120
    while len(lines(tmp_path)) < 2 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = [line for line in lines(tmp_path) if line.endswith("}")]
    assert before and not (tmp_path / "results.json").exists()

    status, printed = smoke(tmp_path, "--bench-resume", "--bench-seconds", "0", cells=cells)
    left = int(re.search(r"(\d+) cells are left", printed)[1])  # type: ignore[index]
    shard = json.loads((tmp_path / "results.json").read_text())
    assert status == 0 and left + len(before) == 8
    assert [row["kind"] for row in shard["not_measured"]] == ["left"] * left

    status, printed = smoke(tmp_path, "--bench-resume", cells=cells)
    whole = json.loads((tmp_path / "results.json").read_text())
    assert status == 0 and len(whole["benchmarks"]) == 8 and not whole["not_measured"]
    assert lines(tmp_path)[: len(before)] == before


def test_help_lists_our_options():
    status, printed = run("bench", "--help")
    assert status == 0 and "how much to measure" in printed
    for option in ("tier", "device", "out", "resume", "seconds", "no-report", "profile"):
        assert f"--bench-{option}" in printed


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--bench-device=toaster", "expected one of cpu"),
        ("--bench-seconds=-1", "expected seconds, got -1"),
        ("--benchmark-disable", "one at a time"),
        ("--bench-out=README.md", "--bench-out: "),
    ],
)
def test_a_bad_option_is_refused_in_words(option, said):
    status, printed = run("bench/bench_launch.py", "-k", "T4-LSTM-torch", "--bench-tier", "smoke", option)
    assert status == 4 and said in printed and "INTERNALERROR" not in printed


def test_a_damaged_kept_file_costs_no_run(tmp_path):
    from bench import kept

    folder = tmp_path / kept.folder_of({"machine_info": {"device_name": "x"}})
    folder.mkdir(parents=True)
    (folder / "results.json").write_text("<<<<<<< HEAD")
    notes = []
    assert kept.last_run({"device_name": "x"}, tmp_path, notes.append) is None
    assert "results.json is no results file" in notes[0]


def test_a_selection_of_nothing_leaves_the_last_record(tmp_path):
    (tmp_path / "lines.jsonl").write_text("kept\n")
    for cells, status in (("no_such_cell", 5), ("and and", 4)):
        got, printed = smoke(tmp_path, cells=cells)
        assert got == status and "report:" not in printed
    assert (tmp_path / "lines.jsonl").read_text() == "kept\n"


def collected(*arguments):
    status, printed = run(*arguments, "--collect-only", "-q")
    assert status == 0, printed
    return [line for line in printed.splitlines() if "::" in line]


def test_selection_is_pytests():
    asked = ("-k", "(ladder and LSTM and loop) or bench_floors", "-m", "cost and not slow", "--bench-tier", "smoke")
    ladder = [f"bench/bench_launch.py::test_ladder[T{T}-LSTM-loop]" for T in (4, 16)]
    found = collected("bench", *asked)
    assert [name for name in found if "bench_floors" not in name] == ladder and len(found) > len(ladder)


def test_the_cells_that_the_gpu_suite_profiles_exist():
    text = (ROOT / "bench/gpu_suite.sh").read_text()
    asked = [
        name.replace("$model", model).replace("$impl", impl)
        for name in re.findall(r"bench/bench_\S+\]", text)
        for model in ("LSTM", "transformer")
        for impl in ("fusednn", "torch.nn")
    ]
    assert len(set(asked)) == 5
    assert set(collected(*dict.fromkeys(asked))) == set(asked)
