"""Build fusednn._C and, for a torch with CUDA, the CUDA kernels; all metadata is in pyproject.toml.

Three cases, decided here and nowhere else: a C++ compiler and torch (build), no C++ compiler (a pure Python package
that says so at import), no torch (an isolated build: stop, with two lines that say what to do).
"""

import os
import platform
import shutil
import sys
from pathlib import Path

import setuptools
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

HOW = """\
  pip install torch 'setuptools>=77' wheel pybind11 ninja && pip install --no-build-isolation ."""
ISOLATED = f"""\
fusednn compiles against the torch that will load it, and build isolation hides that torch. Run:
{HOW}"""
OLD = f"""\
fusednn needs setuptools 77 or newer, and this environment has {setuptools.__version__}. Run:
{HOW}"""

SOURCES = sorted(str(p) for folder in ("csrc/cpu", "csrc/bindings") for p in Path(folder).rglob("*.cpp"))
HEADERS = sorted(str(p) for p in Path("csrc").rglob("*.h"))
OPTIMIZE = os.environ.get("FUSEDNN_OPTIMIZE", "-O3")  # -O0: a quarter of the time, for checks of the build itself
FLAGS = ["-std=c++20", OPTIMIZE, "-g0", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
OPENMP = ["-fopenmp"] if platform.system() == "Linux" else []  # Apple's clang has none: one thread there


def compiler() -> str | None:
    """The C++ compiler that setuptools will call, or None."""
    asked = os.environ.get("CXX")
    if asked is not None:
        return asked  # a compiler asked for by name and not found is the builder's error to see
    return next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


class NeedsTorch(build_ext):
    """What runs in place of the build where torch cannot be imported."""

    def run(self) -> None:
        """Stop with what to do."""
        raise SystemExit(ISOLATED)


def extension() -> dict:
    """Arguments of ``setup`` for the extension module."""
    if compiler() is None:
        print("fusednn: no C++ compiler found, building without kernels; install g++ or clang++", file=sys.stderr)
        return {}
    try:
        import pybind11
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        return {"ext_modules": [Extension("fusednn._C", [])], "cmdclass": {"build_ext": NeedsTorch}}
    module = CppExtension(
        "fusednn._C",
        SOURCES,
        include_dirs=[str(Path("csrc").resolve()), pybind11.get_include()],  # ninja runs in another folder
        depends=HEADERS,
        extra_compile_args=FLAGS + OPENMP,
        extra_link_args=OPENMP,
    )
    build = BuildExtension.with_options(use_ninja=True)
    if torch.version.cuda is not None:
        build = with_cuda_kernels(build)
    return {"ext_modules": [module], "cmdclass": {"build_ext": build}}


def with_cuda_kernels(build: type) -> type:
    """The build command that also makes libfusednn_cuda.so, where there is a CUDA toolkit."""
    sys.path.insert(0, "tools")
    import providers
    import toolkit

    class BuildWithCuda(build):
        def run(self) -> None:
            super().run()
            if toolkit.toolkit() is None:
                print(
                    "fusednn: no CUDA toolkit found, building without CUDA kernels; " + providers.HOW, file=sys.stderr
                )
                return
            root = Path("pyext" if self.inplace else self.build_lib)
            providers.build("cuda", root.resolve() / "fusednn/lib")

    return BuildWithCuda


def packages() -> dict:
    """``triton_kernels`` lies at the top and is installed inside fusednn; a checkout without the link maps it."""
    found, folders = find_packages("pyext"), {"": "pyext"}
    if "fusednn.triton_kernels" not in found:
        found.append("fusednn.triton_kernels")
        folders["fusednn.triton_kernels"] = "triton_kernels"
    return {"packages": found, "package_dir": folders}


if int(setuptools.__version__.split(".")[0]) < 77:  # what Python 3.11 puts into a new environment; its message misleads
    raise SystemExit(OLD)
setup(**extension(), **packages())
