"""The examples run, small, and do what they say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("one_thread")
FOLDER = Path(__file__).parent.parent / "examples"


def main(name):
    """The function ``main`` of an example."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_streaming_shows_which_states_grow(capsys):
    main("streaming")(["--lengths", "16", "64", "--width", "32", "--reach", "16"])
    rows = {line.split()[0]: re.findall(r"([\d,]+) B", line) for line in capsys.readouterr().out.splitlines()[1:]}
    assert rows["GRU"] == ["128", "128"] and rows["LSTM"] == ["256", "256"]
    assert rows["Transformer-XL"] == ["4,096", "4,096"]  # 2 layers, 16 tokens of 32 floats
    assert rows["transformer"] == ["8,192", "32,768"]  # 2 layers, keys and values


def test_time_series_is_forecast_better_than_by_its_last_value(capsys):
    error = main("time_series")(["--steps", "150", "--hidden", "32", "--forecast", "24"])
    out = capsys.readouterr().out
    assert error < 0.7 * float(re.findall(r"last value: ([\d.]+)", out)[0])
    assert len(re.findall(r"forecast +([▁-█]+)", out)[0]) == 24


@pytest.mark.parametrize("model", ["GRU", "transformer"])
def test_character_lm_learns_and_writes(model, capsys):
    bits = main("character_lm")(["--model", model, "--steps", "40", "--length", "50"])
    assert bits < 4.0  # of 6.4 at first
    assert len(capsys.readouterr().out.split("character\n\n")[1]) == 20 + 200 + 1


def test_sequential_digits_are_told_apart(capsys):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'fusednn[test]'")
    found = main("sequential_digits")(["--epochs", "6", "--layers", "GRU"])
    assert found["GRU"] > 0.4  # of 0.1 by chance
    assert capsys.readouterr().out.count("takes this") == 1


def test_alignment_is_drawn(tmp_path, capsys):
    picture = tmp_path / "pictures/alignment.png"
    main("alignment")(["--steps", "25", "--hidden", "32", "--out", str(picture)])
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert losses[-1] < 0.8 * losses[0]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_examples_are_short():
    for path in FOLDER.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 80, path
