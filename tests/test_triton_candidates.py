"""Candidates beside the default attention kernels, and tuning: what it refuses, what it keeps, who reads it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

from fusednn import triton_kernels
from fusednn.__main__ import main
from fusednn.attention_call import Inputs
from fusednn.triton_kernels.configurations import (
    ARCHITECTURES,
    CANDIDATES,
    FORMS,
    Candidate,
    Configuration,
    candidates,
    configuration,
)
from fusednn.triton_kernels.tuning import agree, measured, race, tune
from test_triton_sequences import SEED, options

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    triton_kernels.unavailable(DEVICE) is not None, reason=str(triton_kernels.unavailable(DEVICE))
)
interpreted = pytest.mark.skipif(DEVICE == "cuda", reason="small shapes for the interpreter; GPUs are tuned below")
gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


def made(M=70, K=70, N=2, heads=2, E=8, dtype=torch.float32, **more) -> Inputs:
    query, key, value = (torch.randn(1, n, T, E).to(dtype) for n, T in ((N, M), (heads, K), (heads, K)))
    return Inputs(query, key, value, **more)


CASES = {
    "plain": ({"M": 150}, {}),
    "causal": ({"M": 130}, {"right": 0}),
    "window, bottom right": ({"K": 100}, {"left": 33, "right": 2, "bottom_right": True}),
    "grouped": ({"N": 2, "heads": 1, "K": 40, "E": 24}, {"right": 0}),
    "float16": ({"dtype": torch.float16}, {"right": 0}),
    "bfloat16": ({"dtype": torch.bfloat16}, {"right": 0}),
    "addresses": ({"E": 5, "K": 40}, {"right": 0}),
    "no keys": ({"K": 0}, {}),
    "modifiers": (
        {"mask": torch.randn(70, 70), "slopes": torch.rand(2), "sink": torch.randn(2)},
        {"softcap": 2.0, "right": 20},
    ),
    "dropout": ({"seed": torch.tensor([SEED])}, {"dropout_p": 0.3}),
}


@interpreted
@pytest.mark.parametrize(
    ("form", "name"),
    [
        (form, name)
        for form in ("persistent", "specialized")
        for name in CASES
        if (form, name) != ("specialized", "addresses")
    ],
)
def test_other_forms_compute_what_the_default_does(form, name, monkeypatch):
    """But for the one in Gluon, which the interpreter cannot run: test_ping_pong.py."""
    from fusednn.triton_kernels import launch

    sizes, more = CASES[name]
    monkeypatch.setattr(launch, "processors", lambda x: 3)  # a program of the persistent grid has several blocks
    inputs = made(**sizes)
    chosen = options("triton", inputs.query.shape[2], inputs.key.shape[2], **more)
    found = []
    for candidate in (Candidate("shifted"), Candidate(form)):
        out, lse = (
            torch.full_like(inputs.query, torch.nan),
            inputs.query.new_full(inputs.query.shape[:3], torch.nan, dtype=torch.float32),
        )
        launch.forward(inputs, chosen, out, lse, candidate)
        found.append((out, lse))
    for ours, default in zip(*found, strict=True):
        assert agree(ours, default)


@interpreted
def test_both_forms_of_the_backward_pass_agree():
    from fusednn.triton_kernels import launch

    inputs = made(K=40, N=4)
    chosen = options("triton", 70, 40, right=0, deterministic=False)
    out, lse = torch.empty_like(inputs.query), inputs.query.new_empty(inputs.query.shape[:3])
    launch.forward(inputs, chosen, out, lse)
    grad, found = torch.randn_like(out), []
    for form in FORMS["backward"]:
        grads = [torch.full_like(x, torch.nan) for x in inputs[:3]]
        launch.backward(grad, None, inputs, chosen, out, lse, [*grads, None, None, None], Candidate(form))
        found.append(grads)
    for one, other in zip(*found, strict=True):
        assert agree(one, other)


@pytest.mark.parametrize("known", ARCHITECTURES)
@pytest.mark.parametrize("way", FORMS)
def test_the_default_comes_first_and_nothing_twice(way, known):
    for size in (16, 64, 128, 256):
        for hidden in (False, True):
            tried = candidates(way, known, torch.float16, size, hidden)
            assert tried[0].row is None and len(set(tried)) == len(tried)
            assert all(c.form in FORMS[way] for c in tried)
            row = configuration("forward", known, torch.float16, size, hidden)
            assert Candidate("shifted", row) not in tried
    assert any(known == of[2] for of in CANDIDATES) == (known == 90)


DEFAULT, WRONG, RAISING, FAST = (Candidate("shifted", Configuration(16, 16, 4, n)) for n in (1, 2, 3, 4))


def runner(kept):
    """Computes ones; one candidate forgets a number, one does not compile."""

    def run(candidate):
        if candidate == RAISING:
            raise RuntimeError("out of resources\n  and a long dump")
        kept[:] = 1.0
        if candidate == WRONG:
            kept[3] = 1.001
        return [kept]

    return run


@pytest.mark.parametrize(("gain", "best"), [(0.5, FAST), (0.01, DEFAULT), (-0.5, DEFAULT)])
def test_the_fastest_right_candidate_wins_if_it_gains(gain, best):
    kept = torch.empty(8)
    run = runner(kept)
    order = iter([10.0, 10.0 * (1 - gain)] * 3)  # the default, then the other, three rounds

    def timer(call):
        call()
        return next(order)

    results = race("forward", [DEFAULT, WRONG, RAISING, FAST], run, timer, repeats=3)
    assert [r.verdict for r in results] == ["right", "wrong", "RuntimeError: out of resources", "right"]
    assert [r.candidate for r in results if r.chosen] == [best]
    assert [r.milliseconds is None for r in results] == [False, True, True, False]


def test_numbers_that_were_not_written_are_wrong():
    expected = torch.tensor([1.0, -torch.inf])
    assert agree(expected.clone(), expected)
    assert not agree(torch.tensor([torch.nan, -torch.inf]), expected)
    assert not agree(torch.tensor([1.0, torch.inf]), expected)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The file's folder; nobody has read the file yet, nor will it be remembered."""
    from fusednn.triton_kernels import tuned

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuned._table.cache_clear()
    yield tmp_path / "fusednn"
    tuned._table.cache_clear()


def test_choices_are_written_and_read(folder):
    from fusednn.triton_kernels import tuned

    key = tuned.Key("NVIDIA H200", "3.9.0", "forward", "float16", 128, True)
    other, row = key._replace(way="backward"), Configuration(128, 64, 8, 3)
    assert tuned.read() == {}
    assert tuned.write({key: Candidate("persistent", row), other: Candidate("two kernels")}) == folder / "tuned.json"
    tuned.write({key: Candidate("shifted", row)})
    assert tuned.read() == {key: Candidate("shifted", row), other: Candidate("two kernels")}
    assert [path.name for path in folder.iterdir()] == ["tuned.json"]


GOOD = {"device": "X", "triton": "3.9.0", "way": "forward", "dtype": "float16", "size": 64, "hidden": True,
        "form": "shifted", "row": [128, 64, 8, 3]}  # fmt: skip
MALFORMED = {
    "no JSON": "{",
    "no list": "3",
    "no entries": "[3]",
    "a key is missing": json.dumps([{"form": "shifted"}]),
    "type": json.dumps([{**GOOD, "hidden": 1}]),
    "form": json.dumps([{**GOOD, "form": "fast"}]),
    "form of the other pass": json.dumps([{**GOOD, "form": "one kernel"}]),
    "row": json.dumps([{**GOOD, "row": [128, 64]}]),
    "tile": json.dumps([{**GOOD, "row": [128, 65, 8, 3]}]),
    "stages": json.dumps([{**GOOD, "row": [128, 64, 8, 0]}]),
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_named(text, folder):
    from fusednn.triton_kernels import tuned

    folder.mkdir()
    (folder / "tuned.json").write_text(text)
    with pytest.raises(ValueError, match="tuned.json is not a file of tuned configurations"):
        tuned.read()


@pytest.mark.parametrize(("value", "expected"), [(None, False), ("0", False), ("1", True)])
def test_the_table_is_frozen_unless_the_environment_says_otherwise(value, expected, monkeypatch):
    monkeypatch.delenv("FUSEDNN_TUNED", raising=False)
    if value is not None:
        monkeypatch.setenv("FUSEDNN_TUNED", value)
    assert runpy.run_path(str(Path(triton_kernels.__file__)))["TUNED"] is expected


TUNED_ROW = Configuration(128, 128, 8, 2)


@pytest.mark.parametrize(
    ("on", "more", "sizes", "taken"),
    [
        (False, {"right": 0}, {}, False),
        (True, {"right": 0}, {}, True),
        (True, {}, {}, False),  # another call: nothing hidden
        (True, {"right": 0, "softcap": 1.0}, {}, False),
        (True, {"right": 0}, {"E": 60}, False),  # addresses
    ],
    ids=["frozen", "tuned", "not measured", "modifier", "addresses"],
)
def test_only_calls_like_those_measured_are_tuned(on, more, sizes, taken, folder, monkeypatch):
    from fusednn.triton_kernels import launch, tuned

    for name, value in (("INTERPRETED", False), ("TUNED", on)):
        monkeypatch.setattr(launch, name, value)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    inputs = made(dtype=torch.float16, **{"E": 64} | sizes)
    key = tuned.key("forward", inputs.query, 64, True)
    tuned.write({key: Candidate("persistent", TUNED_ROW)})
    call = launch.Call(inputs, options("triton", 70, 70, **more))
    plan = call.plan("forward", inputs[:3], call.tuned("forward", inputs[:3]))
    assert (plan.form, plan.configuration == TUNED_ROW) == (
        ("persistent", True) if taken else ("shifted", plan.described)
    )


@interpreted
def test_tuning_tries_every_candidate_and_writes_the_winners(folder, monkeypatch):
    """In the interpreter, by a clock that likes the last candidate of each pass; rows of tiles have no effect there."""
    from fusednn.triton_kernels import tuned

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    inputs = made(M=33, K=40, N=1, heads=1, E=64, dtype=torch.float16)
    ticks = iter([4.0, 3.0, 2.0, 1.0, 2.0, 1.0])
    results = measured(*inputs[:3], True, None, True, 1, lambda run: (run(), next(ticks))[1])
    assert [(r.way, str(r.candidate), r.verdict) for r in results] == [
        ("forward", "shifted", "right"),
        ("forward", "shifted 128x64, stages 3", "right"),
        ("forward", "persistent 128x128, stages 2", "right"),
        ("forward", "specialized 128x128, stages 2", "right"),
        ("forward", "ping-pong 128x128, stages 4", "ValueError: Triton's interpreter cannot run Gluon"),
        ("backward", "one kernel", "right"),
        ("backward", "two kernels", "right"),
    ]
    for way, last in (("forward", results[3]), ("backward", results[6])):
        assert last.chosen
        assert tuned.read()[tuned.key(way, inputs.query, 64, True)] == last.candidate


@interpreted
def test_tuning_needs_a_gpu(folder, capsys):
    query, key, value, *_ = made()
    with pytest.raises(RuntimeError, match="tuning measures on a GPU, and torch finds none"):
        tune(query, key, value)
    assert main(["tune", "--causal"]) == 2
    assert "tuning measures on a GPU" in capsys.readouterr().err
    assert not folder.exists()


@gpu
@pytest.mark.parametrize("size", [64, 128])
def test_candidates_on_this_gpu_are_right(size, folder):
    query, key, value = (torch.randn(1, 4, 1024, size, dtype=torch.float16, device="cuda") for _ in range(3))
    results = tune(query, key, value, True, repeats=2)
    assert [r for r in results if r.verdict != "right"] == []
    assert (folder / "tuned.json").exists()


ODD = {
    "plain": ({"M": 130, "K": 1000}, {}),
    "causal": ({"M": 1000, "K": 1000}, {"right": 0}),
    "one block": ({"M": 5, "K": 7}, {"right": 0}),
    "empty rows": ({"M": 700, "K": 300}, {"right": 0, "bottom_right": True}),
    "window, bottom right": ({"M": 300, "K": 900}, {"left": 200, "right": 20, "bottom_right": True}),
    "grouped": ({"M": 300, "K": 300, "N": 6}, {"right": 0}),
}


@gpu
@pytest.mark.parametrize("size", [16, 32, 40, 64, 104, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ODD)
def test_ping_pong_on_this_gpu_computes_what_the_default_does(name, dtype, size):
    from fusednn.triton_kernels import launch

    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("written for Hopper")
    sizes, more = ODD[name]
    inputs = made(**sizes, E=size, dtype=dtype)
    chosen, found = options("triton", sizes["M"], sizes["K"], **more), []
    for candidate in candidates("forward", 90, dtype, size, bool(more)):
        if candidate.row is None or candidate.form == "ping-pong":
            out = torch.full_like(inputs.query, torch.nan)
            lse = out.new_full(out.shape[:3], torch.nan, dtype=torch.float32)
            launch.forward(inputs, chosen, out, lse, candidate)
            found.append((out, lse))
    for ours, default in zip(*found, strict=True):
        assert agree(ours, default)
