"""The direction of imports and includes, the size of files, and what the documents say about the code."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import fusednn

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pyext/fusednn"

# A module may import from its own level and below.
LEVELS = [
    {"native", "attention_call", "without_data"},
    {"reference", "triton_kernels"},
    {
        "occupancy",
        "kernels",
        "plan",
        "operators",
        "layer_operators",
        "padded_operators",
        "blocked_attention",
        "cpu_attention",
        "attention_operators",
        "scan_operators",
        "additive_operators",
        "kernel_operators",
    },
    {"functional"},
    {"layers"},
    {"attention_explanation", "recurrent_explanation", "models"},
    {"conversion", "comparison", "explanation", "environment", "integrations", "distributed", "onnx", "profiling"},
    {"__init__", "__main__"},
]
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names}


def package_imports(path: Path) -> set[str]:
    """Top-level parts of fusednn that a file imports."""
    found = set()
    inside = path.relative_to(PACKAGE).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = list(inside[: len(inside) - node.level])
            if node.module:
                found.add([*base, *node.module.split(".")][0])
            else:
                found |= {[*base, alias.name][0] for alias in node.names}
    return found & set(LEVEL)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_python_imports_go_down(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    upward = {name for name in package_imports(path) if LEVEL[name] > LEVEL[part]}
    assert not upward, f"{part} imports {upward}"


def includes(folder: str) -> dict[str, set[str]]:
    files = [p for p in (ROOT / "csrc" / folder).rglob("*") if p.suffix in {".h", ".cpp", ".cu"}]
    return {str(p): set(re.findall(r'#include ["<]([^">]+)', p.read_text())) for p in files}


def test_cells_include_only_cells_and_the_standard_library():
    for path, names in includes("cells").items():
        assert not [n for n in names if "/" in n and not n.startswith("cells/")], path


@pytest.mark.parametrize("folder", ["cpu", "cuda", "emulation"])
def test_kernels_do_not_include_bindings_or_torch(folder):
    for path, names in includes(folder).items():
        assert not [n for n in names if n.startswith(("bindings/", "torch/", "pybind11/", "ATen/"))], path


def test_ptx_stands_in_the_primitives_alone():
    for path in (ROOT / "csrc").rglob("*.*"):
        if path.parent.name not in ("primitives", "emulation"):
            assert not re.search(r"\basm\b", path.read_text()), path


def test_one_file_includes_torch():
    users = {path for path, names in includes(".").items() if any(n.startswith("torch/") for n in names)}
    assert [Path(u).name for u in users] == ["torch_ops.cpp"]


def test_benchmarks_use_the_public_interface():
    for path in (ROOT / "bench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fusednn"):
                assert not any(part.startswith("_") for part in node.module.split(".")), path
                assert not [a.name for a in node.names if a.name.startswith("_")], path


def modules():
    return [m.name for m in pkgutil.walk_packages(fusednn.__path__, "fusednn.") if "__main__" not in m.name]


@pytest.mark.parametrize("name", [n for n in modules() if not n.endswith("._C")])
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


@pytest.mark.parametrize("name", [n for n in fusednn.__all__ if n not in ("functional",)])
def test_every_public_name_has_an_example(name):
    assert ">>>" in (getattr(fusednn, name).__doc__ or ""), f"fusednn.{name} needs an example in its docstring"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("name", ["README.md", "docs/layers.md"])
def test_python_in_the_documents_runs(name, tmp_path, monkeypatch):
    """Block after block, as one program would; processes that a launcher would start are this one alone."""
    monkeypatch.chdir(tmp_path)
    for key, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(key, value)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL):
        exec(compile(block, name, "exec"), names)


def test_paths_named_in_the_documents_exist():
    for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text()
        for path in re.findall(r"`((?:csrc|pyext|tests|bench|docs|tools|triton_kernels)/[\w./-]+)`", text):
            assert "NAME" in path or (ROOT / path).exists(), f"{name} names {path}"
