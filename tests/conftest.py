"""Settings for all tests: emulated CUDA kernels, a seed a test, two threads, and the cases that the registry yields."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports triton, which fixes its mode
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The CUDA kernels run on the host here, where `make emulated` has built them. Children of a test do not inherit it.
if (Path(__file__).parent.parent / "pyext/fusednn/lib/libfusednn_emulated.so").exists():
    os.environ["FUSEDNN_EMULATE"] = "1"
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="FUSEDNN_EMULATE=1")
    from fusednn.reference.cells import CELLS
os.environ.pop("FUSEDNN_EMULATE", None)


@pytest.fixture(autouse=True)
def seed():
    """Each test starts from the same random state, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def device_of_triton(request):
    """Where there is a GPU, tensors of the Triton tests lie on it unless they say otherwise."""
    if torch.cuda.is_available() and request.module.__name__.startswith("test_triton"):
        with torch.device("cuda"):
            yield
    else:
        yield


@pytest.fixture(scope="session", autouse=True)
def threads():
    """Two threads, so that the threaded paths run on every machine."""
    torch.set_num_threads(2)


@pytest.fixture
def one_thread():
    """Small models gain nothing from threads, and tests may share their cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument ``cell`` runs for every cell of the registry."""
    own = [m for m in metafunc.definition.iter_markers("parametrize") if "cell" in m.args[0]]
    if "cell" in metafunc.fixturenames and not own:
        metafunc.parametrize("cell", sorted(CELLS))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked ``gpu`` need one."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU is visible to torch")
