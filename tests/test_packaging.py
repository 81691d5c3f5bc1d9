"""What setup.py does where something is missing: it says so, or it fails; it never hides a failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path):
    """What a build needs, in a folder of its own."""
    for name in ("csrc", "pyext", "triton_kernels"):
        shutil.copytree(
            ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def run(checkout, *arguments, before="pass", **environment):
    code = f"import sys; {before}; sys.argv = ['setup.py', *{arguments!r}]; exec(open('setup.py').read())"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_an_isolated_build_stops_with_two_lines_that_say_what_to_do(checkout):
    result = run(checkout, "-q", "build_ext", before="sys.modules['torch'] = None")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-2:]
    assert "build isolation" in last[0] and last[1].strip().startswith("pip install torch")


def test_an_old_setuptools_stops_with_two_lines_that_say_what_to_do(checkout):
    """Python 3.10 and 3.11 put one of 65 into every new environment, and `pip install setuptools` keeps it."""
    result = run(checkout, "-q", "build", before="import setuptools; setuptools.__version__ = '65.5.0'")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-2:]
    assert "this environment has 65.5.0" in last[0] and "'setuptools>=77'" in last[1]


def test_without_a_compiler_the_package_is_pure_and_says_so(checkout):
    environment = {k: v for k, v in os.environ.items() if k != "CXX"} | {"PATH": "/nonexistent"}
    result = subprocess.run(
        [sys.executable, "setup.py", "-q", "build"], cwd=checkout, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "no C++ compiler found" in result.stderr
    assert list(checkout.glob("build/lib*/fusednn/layers/recurrent.py"))
    assert list(checkout.glob("build/lib*/fusednn/triton_kernels/__init__.py"))
    assert not list(checkout.glob("build/**/*.so"))


def test_a_compiler_that_fails_on_the_code_is_an_error(checkout):
    (checkout / "csrc/cells/lstm.h").write_text("#error broken on purpose\n")
    result = run(checkout, "-q", "build_ext", "--inplace")
    assert result.returncode != 0
    assert "broken on purpose" in result.stdout + result.stderr
    assert not list(checkout.glob("pyext/fusednn/*.so"))


def test_a_checkout_that_lost_the_link_still_packs_the_triton_kernels(checkout):
    (checkout / "pyext/fusednn/triton_kernels").unlink()
    environment = {k: v for k, v in os.environ.items() if k != "CXX"} | {"PATH": "/nonexistent"}
    subprocess.run([sys.executable, "setup.py", "-q", "build"], cwd=checkout, env=environment, check=True)
    assert list(checkout.glob("build/lib*/fusednn/triton_kernels/__init__.py"))
