"""Settings for all tests: a seed a test, two threads, and the cases that the registry of cells yields."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports triton, which fixes its mode
    os.environ.setdefault("TRITON_INTERPRET", "1")

from fusednn.reference.cells import CELLS


@pytest.fixture(autouse=True)
def seed():
    """Each test starts from the same random state, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def threads():
    """Two threads, so that the threaded paths run on every machine."""
    torch.set_num_threads(2)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument ``cell`` runs for every cell of the registry."""
    own = [m for m in metafunc.definition.iter_markers("parametrize") if "cell" in m.args[0]]
    if "cell" in metafunc.fixturenames and not own:
        metafunc.parametrize("cell", sorted(CELLS))
