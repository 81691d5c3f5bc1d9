"""Numbers for users: the rule for loss curves, the tables of docs/should-i-use-it.md, and what is kept for it."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from bench import curves, kept, results, text, train, users
from bench.fields import record
from bench.models.byte_lm import RecurrentLM

MACHINE = {"device": "cpu", "device_name": "Test CPU (R) 3000", "cpu_count": 2, "torch_threads": 2, "torch": "2.13.0"}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def row(name, series=None, kind="measured", **fields):
    fullname = f"bench/bench_users.py::{name}"
    bench = {"fullname": fullname, "extra_info": record(disturbed=False, **fields), "stats": {"data": [1.0]}}
    return {"kind": kind, "fullname": fullname, "bench": bench, "series": series or {}}


def layer_row(cell, B, H, mode, ratio, **fields):
    saved = None if mode == "inference" else 3.0
    series = {"other_memory": {"saved_mib": saved and 1.5, "peak_mem_mib": None}}
    name = f"test_layer[{cell}-B{B}-H{H}-{mode}]"
    return row(name, series, cell=cell, B=B, H=H, mode=mode, ratio=ratio, saved_mib=saved, **fields)


def curve_row(cell, apart=1e-4):
    theirs = [[8.0, 4.0, 3.0], [8.1, 4.1, 3.1], [7.9, 3.9, 2.9]]
    bits = {"torch.nn": theirs, "fusednn": [[b + apart for b in seed] for seed in theirs],
            "torch.nn, noisy": [[b - 1e-4 for b in seed] for seed in theirs]}  # fmt: skip
    return row(f"test_curve[{cell}]", {"bits": bits}, cell=cell, ratio=1.5)


def rows():
    made = [layer_row("GRU", B, H, mode, B * H / 64) for B in (1, 8) for H in (64, 128) for mode in users.MODES]
    for mode in users.MODES:
        made.append(row(f"test_encoder_layer[{mode}]", cell="encoder layer", B=8, H=64, mode=mode, ratio=1.0))
    return [*made, curve_row("GRU")]


def assembled(made, tier="users"):
    return results.assemble(made, MACHINE, {"name": tier, "seeds": 3, "lm_steps": 500}, {}, "2026-01-02T03:04:05+00:00")


def test_distances_are_those_of_the_curves():
    found = curves.distances(assembled(rows())["series"]["bench/bench_users.py::test_curve[GRU]"]["bits"])
    assert found.largest == pytest.approx(1e-4)
    assert (found.noise_largest, found.seeds_largest) == (pytest.approx(1e-4), pytest.approx(0.2))
    assert found.allowed == pytest.approx(2e-4, rel=0.05)


def test_curves_farther_apart_than_noise_differ():
    series = curve_row("GRU", apart=3e-4)["series"]
    assert not curves.distances(series["bits"]).within_noise
    assert curves.distances(curve_row("GRU", apart=1.5e-4)["series"]["bits"]).within_noise


def test_noise_moves_every_weight_to_a_neighbour_in_train_mode_alone():
    model, x = nn.Linear(30, 20), torch.randn(2, 30)
    curves.add_noise(model, seed=0)
    before = model.weight.detach().clone()
    model.eval()(x)
    assert torch.equal(model.weight, before)
    model.train()(x)
    up, down = (torch.nextafter(before, torch.full_like(before, end)) for end in (torch.inf, -torch.inf))
    assert ((model.weight == up) | (model.weight == down)).all()
    assert (model.weight == up).any() and (model.weight == down).any()


def test_all_sides_start_alike_and_repeat(monkeypatch):
    monkeypatch.setattr(train, "bits_per_byte", partial(train.bits_per_byte, count=4))
    data = text.load(50_000, 5_000)

    def run():
        return curves.run(lambda f: RecurrentLM(f, "GRU", 8), data, "GRU", 2, (0, 1), torch.device("cpu"))

    found = run()
    assert found.bits == run().bits
    for seed in range(2):
        theirs, ours, noisy = (found.bits[side][seed][0] for side in curves.SIDES)
        assert theirs == noisy == pytest.approx(ours, rel=1e-5)
    assert found.bits["torch.nn"][0][0] != found.bits["torch.nn"][1][0]
    assert len(found.seconds["fusednn"]) == 2


def test_page_shows_every_ratio_its_mean_and_the_least():
    page = kept.USERS.text([assembled(rows())])
    assert "### Test CPU (R) 3000, 2 cores, 2 threads" in page
    assert "| GRU | 8 | 8 | 16 | 11.3 | 8 |" in page
    assert "| all |  |  |  | 4 | 1 |" in page
    assert "| GRU | 1.5 of 3 | 1.5 of 3 |" in page
    assert "| GRU | 3.0000 | 3.0001 |" in page and "same within noise" in page


def test_disturbed_cells_are_marked_and_left_out_of_the_mean():
    made = assembled(rows())
    slow = next(c for c in made["benchmarks"] if c["extra_info"]["ratio"] == 16)
    slow["extra_info"]["disturbed"] = True
    page = kept.USERS.text([made])
    assert "| GRU | 8 | 8 | 16 \\* | 8 | 8 |" in page and "left out of means" in page


def test_only_a_whole_run_of_its_tier_is_kept():
    assert kept.USERS.refusal(assembled(rows())) is None
    assert "tier users, got tier smoke" in (kept.USERS.refusal(assembled(rows(), "smoke")) or "")
    assert "curve" in (kept.USERS.refusal(assembled(rows()[:-1])) or "")
    wrong = [*rows(), row("test_curve[RNN]", kind="wrong", cell="RNN")]
    assert "test_curve[RNN]" in (kept.USERS.refusal(assembled(wrong)) or "")


def test_page_is_generated_and_checked(tmp_path):
    (tmp_path / "docs").mkdir()
    page = tmp_path / users.PAGE
    page.write_text(f"# x\n{kept.BEGIN}\n{kept.NOTHING}\n{kept.END}\nend\n")
    assert kept.USERS.check(tmp_path) is None
    made = assembled(rows())
    results.write(made, tmp_path / kept.folder_of(made) / kept.USERS.stored_as)
    assert "differs" in (kept.USERS.check(tmp_path) or "")
    page.write_text(kept.USERS.paged(tmp_path))
    assert kept.USERS.check(tmp_path) is None
    assert page.read_text().endswith("end\n") and "Test CPU" in page.read_text()
    other = copy.deepcopy(made)
    other["machine_info"]["device_name"] = "Another"
    results.write(other, tmp_path / kept.folder_of(other) / kept.USERS.stored_as)
    assert kept.USERS.paged(tmp_path).index("### Another") < kept.USERS.paged(tmp_path).index("### Test CPU")


@pytest.mark.parametrize("suite", kept.SUITES, ids=lambda suite: suite.name)
def test_a_page_equals_its_results(suite):
    assert suite.check() is None
