"""Results file, claims, page, comparison, publishing: from a results file made on the fly."""

from __future__ import annotations

import copy
import json
import re

import pytest

from bench import achieved, claims, compare, kept, publish, results
from bench.claims import CLAIMS, ROWS, judge_all
from bench.fields import record
from bench.lines import Lines
from bench.machine import slug
from bench.report import __main__ as report
from bench.report import render
from bench.schema import problems
from bench.verdict import CONTRADICTED, MIXED, NOT_MEASURED, SUPPORTED, VERDICTS

MACHINE = {"device": "cpu", "device_name": "Test CPU (R) 3000", "cpu_model": "Test CPU", "cpu_count": 2,
           "torch_threads": 2, "torch": "2.13.0", "torch_isa": "AVX2", "python": "3.11.0",
           "fusednn": {"version": "0.1.0", "isa": "avx2", "compiler": "gcc", "note": None}}  # fmt: skip


def row(fullname, seconds, series=None, group="group", **fields):
    data = [seconds * f for f in (0.99, 1.0, 1.0, 1.01, 1.0)]
    bench = {"group": group, "name": fullname, "fullname": f"bench/{fullname}", "params": None, "param": None,
             "extra_info": record(**fields), "options": {},
             "stats": {"data": data, "median": seconds, "rounds": len(data), "mean": seconds, "min": min(data),
                       "max": max(data), "stddev": 0.0, "iqr": 0.0, "q1": seconds, "q3": seconds, "iqr_outliers": 0,
                       "stddev_outliers": 0, "outliers": "0;0", "ld15iqr": min(data), "hd15iqr": max(data),
                       "ops": 1 / seconds, "total": sum(data), "iterations": 1}}  # fmt: skip
    return {"kind": "measured", "fullname": f"bench/{fullname}", "bench": bench, "series": series or {}}


def ladder_rows():
    rungs = {"reference": (11, 0, 4e-5), "loop": (1, 0, 1e-5), "sequence": (0, 4, 2e-6), "torch.nn": (0, 4, 6e-6)}
    for T in (10, 50, 100, 200):
        for rung, (each, fixed, step) in rungs.items():
            calls = each * T + fixed
            fields = {"B": 1, "T": T, "H": 64, "launches": calls, "aten_ops": calls, "us_per_step": step * 1e6}
            name = f"bench_launch.py::test_ladder[T{T}-LSTM-{rung}]"
            yield row(name, step * T, impl=rung, cell="LSTM", group="launch LSTM", **fields)


def layer_rows(T, mode):
    fields = {"cell": "LSTM", "mode": mode, "B": 8, "T": T, "H": 256, "tflops": 0.05, "saved_mib": T * 0.5}
    for impl, step in (("fusednn", 1e-4), ("torch.nn", 2e-4)):
        name = f"bench_recurrent.py::test_time[T{T}-{mode}-LSTM-{impl}]"
        yield row(name, step * T, impl=impl, us_per_step=step * 1e6, **fields)
    ratio = {"ratio": T / 100, "ratio_low": T / 101, "ratio_high": T / 99}
    name = f"bench_duel.py::test_posed[T{T}-{mode}-fusednn]"
    yield row(name, 1.0, impl="fusednn", cell="seed LSTM", B=4, T=T, mode=mode, basis="posed", **ratio)


def model_row(k, kind):
    bits = [8.0, 4.4, 3.3 - 0.1 * k]
    series = {"bits": bits, "bytes": [0, 10_000, 20_000], "seconds": [0.0, 10.0, 20.0 + k]}
    fields = {"B": 16, "T": 128, "params": 141_000 + k, "held_out_bits": bits[-1], "unigram_bits": 4.4}
    name = f"bench_models.py::test_byte_lm[fusednn-{kind}]"
    return row(name, 20.0 + k, series, impl="fusednn", cell=kind, mode="training", **fields)


def rows():
    made = list(ladder_rows())
    made += [r for T in (50, 100, 200) for mode in ("inference", "training") for r in layer_rows(T, mode)]
    made += [model_row(k, kind) for k, kind in enumerate(("RNN", "LSTM", "GRU", "transformer"))]
    skipped = {"group": None, "name": "x", "fullname": "bench/bench_x.py::test_x", "params": None, "param": None,
               "extra_info": record(skip_reason="needs a CUDA device"), "options": {}}  # fmt: skip
    return [*made, {"kind": "skipped", "fullname": skipped["fullname"], "bench": skipped, "series": {}}]


@pytest.fixture
def found():
    return results.assemble(rows(), MACHINE, {"name": "standard", "seeds": 20}, {"id": "0", "dirty": False},
                            "2026-01-02T03:04:05+00:00")  # fmt: skip


def claim(found, id, name):
    return next(c for c in found["claims"] if c["id"] == id and c["row"] == name)


def test_every_claim_has_a_row_and_every_row_a_claim(found):
    assert {r.id for r in ROWS} == set(CLAIMS) == set(range(1, 24))
    assert {c["id"] for c in found["claims"]} == set(CLAIMS)
    for c in found["claims"]:
        assert {"id", "verdict", "measured", "interval", "claimed", "device", "basis"} <= set(c)
        assert c["verdict"] in VERDICTS
        assert (c["verdict"] == NOT_MEASURED) == (c["measured"] is None)
        assert c["basis"] or c["reason"], c


def test_verdicts_come_from_the_figures(found):
    assert claim(found, 1, "LSTM, fusednn")["verdict"] == SUPPORTED
    assert claim(found, 1, "LSTM, fusednn")["measured"] == pytest.approx(1)
    assert claim(found, 5, "LSTM, reference")["verdict"] == SUPPORTED
    assert claim(found, 5, "LSTM, sequence")["verdict"] == CONTRADICTED
    assert claim(found, 5, "every rung: the least slope")["measured"] == pytest.approx(0)
    assert claim(found, 2, "as posed, inference, fusednn")["verdict"] == MIXED  # 1.98 to 2.02 against 2 to 4
    assert claim(found, 4, "SM active, seeds' LSTM")["reason"] == "needs a GPU and its counters"


def test_disturbed_cells_carry_no_verdict(found):
    for cell in found["benchmarks"]:
        cell["extra_info"]["disturbed"] = True
    judged = {(c["id"], c["row"]): c for c in judge_all(found)}
    assert judged[1, "LSTM, fusednn"]["verdict"] == NOT_MEASURED
    assert "foreign load" in judged[1, "LSTM, fusednn"]["reason"]
    assert judged[5, "LSTM, sequence"]["verdict"] == CONTRADICTED  # load doesn't disturb a count


def test_results_file_is_readable_and_keeps_what_was_not_timed(found, tmp_path):
    results.write(found, tmp_path / "results.json")
    again = results.load(tmp_path / "results.json")
    assert again == json.loads(json.dumps(found))
    assert all("stats" in b for b in again["benchmarks"])
    assert again["not_measured"][0]["extra_info"]["skip_reason"] == "needs a CUDA device"
    assert {"machine_info", "commit_info", "benchmarks", "datetime", "version", "claims"} <= set(again)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="schema"):
        results.load(tmp_path / "other.json")


def test_pytest_benchmark_reads_it(found, tmp_path, monkeypatch, capsys):
    from pytest_benchmark.cli import main

    results.write(found, tmp_path / "results.json")
    monkeypatch.setattr("sys.argv", ["pytest-benchmark", "compare", str(tmp_path / "results.json")])
    main()
    assert "test_ladder" in capsys.readouterr().out


def test_page_is_whole_and_self_contained(found, tmp_path):
    page = render(found, tmp_path).read_text()
    assert page.count("<svg") >= 5
    assert len(page) < 3_000_000
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    assert page.index('id="verdicts"') < page.index('id="ladder"')
    for id in CLAIMS:
        assert f'id="claim-{id}"' in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "pictures share ids"
    assert {"ladder.png", "duel.png", "language-models.png", "recurrent.png"} <= {p.name for p in tmp_path.iterdir()}
    assert "| # | claim |" in (tmp_path / "tables" / "claims.md").read_text()


def test_page_of_an_empty_run_renders(tmp_path):
    empty = results.assemble([], MACHINE, {"name": "smoke", "seeds": 3}, {}, "2026-01-02T03:04:05+00:00")
    assert "NOT MEASURED" in render(empty, tmp_path).read_text()


def test_same_file_twice_says_same(found, tmp_path, capsys):
    results.write(found, tmp_path / "a.json")
    assert compare.main([str(tmp_path / "a.json"), str(tmp_path / "a.json")]) == 0
    assert {c.status for c in compare.compare(found, found)} == {compare.SAME}


def slowed(found, factor):
    other = copy.deepcopy(found)
    cell = other["benchmarks"][0]
    cell["stats"]["data"] = [d * factor for d in cell["stats"]["data"]]
    return other


def test_slower_is_slow_and_faster_is_fast(found, tmp_path, capsys):
    slow, fast = slowed(found, 1.5), slowed(found, 0.5)
    assert compare.compare(found, slow)[0].status == compare.SLOW
    assert compare.compare(found, fast)[0].status == compare.FAST
    for name, data in (("a", found), ("slow", slow), ("fast", fast)):
        results.write(data, tmp_path / f"{name}.json")
    assert compare.main([str(tmp_path / "a.json"), str(tmp_path / "slow.json")]) == 1
    assert compare.main([str(tmp_path / "a.json"), str(tmp_path / "fast.json")]) == 0


def test_noise_is_ambiguous_and_a_changed_count_is_not_excused(found):
    noisy = copy.deepcopy(found)
    noisy["benchmarks"][0]["stats"]["data"] = [
        found["benchmarks"][0]["stats"]["median"] * f for f in (0.5, 1, 2, 1, 0.7)
    ]
    assert compare.compare(found, noisy)[0].status == compare.AMBIGUOUS
    counted = copy.deepcopy(found)
    counted["benchmarks"][0]["extra_info"]["launches"] += 1
    assert compare.compare(found, counted)[0].status == compare.CHANGED


def test_a_cell_that_turned_wrong_is_told_and_not_left_out(found, tmp_path, capsys):
    other = copy.deepcopy(found)
    cell = other["benchmarks"].pop(0)
    info = record(skip_reason="wrong result: error 1 exceeds the budget 0")
    other["not_measured"].append({"fullname": cell["fullname"], "kind": "wrong", "params": None, "extra_info": info})
    for name, data in (("a", found), ("b", other)):
        results.write(data, tmp_path / f"{name}.json")
    assert compare.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    said = capsys.readouterr().out
    assert "WRONG" in said and "exceeds the budget" in said and "1 WRONG" in said
    other["datetime"] = "2026-01-03T03:04:05+00:00"
    assert "1 WRONG" in render(other, tmp_path, found).read_text()


@pytest.mark.parametrize("text", [None, "", "[1, 2]", '{"schema": 1}', '{"schema": 1, "bench', "\udcff"])
@pytest.mark.parametrize("command", [compare, report, achieved])
def test_a_damaged_file_is_refused_in_words(command, text, found, tmp_path, capsys):
    whole, damaged = tmp_path / "whole.json", tmp_path / "damaged.json"
    results.write(found, whole)
    if text is not None:
        damaged.write_text(text, errors="surrogateescape")
    files = [damaged] if command is report else [whole, damaged] if command is compare else [damaged, tmp_path]
    try:
        status = command.main([str(file) for file in files])
    except SystemExit as left:
        status = left.code
    captured = capsys.readouterr()
    assert status == 2 and "damaged.json" in captured.out + captured.err


def test_what_the_readme_cannot_show_is_refused(found):
    found["machine_info"] = {**found["machine_info"], "system": "Linux"}
    assert "no cells of stacks" in (publish.refusal(found) or "")  # the duels of equal size are missing here
    found["tier"]["name"] = "smoke"
    assert "got tier smoke" in (publish.refusal(found) or "")
    kept_one = publish.published()
    assert kept_one is not None and publish.refusal(results.load(kept_one)) is None


def test_two_devices_are_not_compared(found, tmp_path):
    other = copy.deepcopy(found)
    other["machine_info"]["device_name"] = "another"
    with pytest.raises(compare.NotComparable, match="different devices"):
        compare.compare(found, other)
    for name, data in (("a", found), ("b", other)):
        results.write(data, tmp_path / f"{name}.json")
    assert compare.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2


def bench_of(name, value=1):
    return {"fullname": name, "name": name, "extra_info": {"x": value}}


def test_record_resumes_after_a_kill(tmp_path):
    path, key = tmp_path / "lines.jsonl", {"tier": "smoke"}
    first = Lines(path, resume=False, key=key)
    first.begin()
    first.add("measured", bench_of("a"))
    first.add("failed", bench_of("b"))
    with path.open("a") as out:
        out.write('7\n{}\n{"kind": "measured", "fullname": "c", "be')  # damaged, and killed while writing
    again = Lines(path, resume=True, key=key)
    again.begin()
    assert "a" in again
    assert "b" not in again, "what failed is tried again"
    assert "c" not in again
    again.add("measured", bench_of("c"))
    assert set(Lines(path, resume=True, key=key).lines) == {"a", "c"}
    with pytest.raises(ValueError, match="other settings"):
        Lines(path, resume=True, key={"tier": "full"})
    fresh = Lines(path, resume=False, key=key)
    assert not fresh.lines
    assert set(Lines(path, resume=True, key=key).lines) == {"a", "c"}, "a run that begins nothing loses nothing"
    fresh.begin()
    assert not Lines(path, resume=True, key=key).lines


def test_nan_becomes_null_on_disk(tmp_path):
    path = tmp_path / "lines.jsonl"
    lines = Lines(path, resume=False, key={})
    lines.begin()
    lines.add("measured", bench_of("a", float("nan")))
    assert '"x": null' in path.read_text()


def test_readme_block_is_generated_and_checked(found, tmp_path):
    where = tmp_path / publish.folder_of(found)
    where.mkdir(parents=True)
    assert where.name == "test-3000"
    assert slug("../NVIDIA H200 \u00b5/MIG 1g.18gb") == "nvidia-h200-mig-1g.18gb" and slug("..") == "unknown"
    results.write(found, where / "results.json")
    loaded = results.load(where / "results.json")
    readme = tmp_path / "README.md"
    readme.write_text(f"# x\n{publish.BEGIN}\n{publish.END}\nend\n")
    readme.write_text(publish.replaced(readme.read_text(), publish.block(loaded)))
    assert publish.check(tmp_path) is None
    assert "torch.nn" in readme.read_text()
    readme.write_text(readme.read_text().replace("operator calls", "operator  calls", 1))
    assert "differs" in (publish.check(tmp_path) or "")


def test_readme_equals_its_results_file():
    assert publish.check() is None


def test_rows_of_the_table_name_their_rule():
    for r in ROWS:
        judged = claims.judge_row(r, claims.Cells(results.assemble([], MACHINE, {"name": "smoke", "seeds": 1}, {}, "")))
        assert judged["verdict"] == NOT_MEASURED
        assert judged["reason"]


@pytest.mark.parametrize("file", sorted(publish.ROOT.glob("bench/results/*/*.json")), ids=lambda f: f"{f.parent.name}")
def test_kept_results_are_what_a_results_file_must_be(file):
    assert problems(json.loads(file.read_text())) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda r: r.pop("claims"), "claims: expected list"),
        (lambda r: r["benchmarks"][0]["stats"]["data"].append(float("nan")), "rounds that are no times"),
        (lambda r: r["benchmarks"][0]["extra_info"].update(colour="red"), "colour is not a field"),
        (lambda r: r["benchmarks"][0]["extra_info"].update(tflops="3"), "tflops: expected a number"),
        (lambda r: r["benchmarks"][0]["extra_info"].update(occupancy_achieved=120.0), "120.0 %"),
        (lambda r: r["benchmarks"][0]["extra_info"].update(max_err=2.0, err_budget=1.0), "in spite of a wrong result"),
        (lambda r: r["benchmarks"].append(r["benchmarks"][0]), "twice"),
        (lambda r: r["not_measured"][0]["extra_info"].update(skip_reason=None), "no reason"),
        (lambda r: r["claims"][0].update(verdict="TRUE"), "verdict 'TRUE'"),
        (lambda r: claim(r, 1, "LSTM, fusednn").update(interval=[5.0, 6.0]), "outside its interval"),
        (lambda r: r["commit_info"].update(id="/home/somebody"), "a path of somebody's machine"),
    ],
)
def test_a_spoilt_results_file_is_refused(found, spoil, said):
    found["machine_info"] = {**found["machine_info"], "system": "Linux"}
    assert problems(found) == []
    spoil(found)
    assert any(said in wrong for wrong in problems(found))


def test_kept_pictures_are_of_their_results():
    assert kept.old_pictures(publish.RESULTS_FILE, publish.PICTURES) is None


def test_a_picture_of_other_results_is_told_and_drawn_anew(found, tmp_path):
    source = tmp_path / kept.folder_of(found) / "results.json"
    results.write(found, source)
    kept.redraw("results.json", ["ladder.png"], tmp_path)
    assert kept.old_pictures("results.json", ["ladder.png"], tmp_path) is None
    found["datetime"] = "2026-01-03T03:04:05+00:00"
    results.write(found, source)
    assert "ladder.png: not drawn from results.json" in (
        kept.old_pictures("results.json", ["ladder.png"], tmp_path) or ""
    )


def test_page_compares_with_the_kept_run_what_asks_for_a_look_first(found, tmp_path):
    before = slowed(found, 0.5)
    before["datetime"] = "2026-01-01T00:00:00+00:00"
    before["benchmarks"][1]["extra_info"]["launches"] += 1
    page = render(found, tmp_path, before).read_text()
    assert "Against the kept run of 2026-01-01: 1 CHANGED, 1 SLOW" in page
    lines = (tmp_path / "tables" / "comparison.md").read_text().splitlines()
    assert [line.split(" | ")[4] for line in lines[2:]] == ["CHANGED", "SLOW"]
    before["machine_info"] = {**before["machine_info"], "device_name": "another"}
    assert "Against the kept run" not in render(found, tmp_path, before).read_text()


def test_report_in_markdown_has_every_picture_and_table(found, tmp_path):
    render(found, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert all(f"({path.name})" in text for path in tmp_path.glob("*.png"))
    assert all(f"(tables/{path.name})" in text for path in (tmp_path / "tables").glob("*.md"))
    assert "&" not in text.replace("&middot;", "")
