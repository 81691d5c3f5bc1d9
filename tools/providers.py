"""Build the kernel libraries that need no torch: ``libfusednn_cuda.so`` and ``libfusednn_emulated.so``.

``python tools/providers.py emulated`` needs a C++ compiler; ``cuda`` needs a CUDA toolkit: CUDA_HOME, the toolkit
wheels beside torch, or the usual places. ninja rebuilds what changed. FUSEDNN_CUDA_ARCHITECTURES="90a" builds for that
one GPU, sooner.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import toolkit

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = os.environ.get("FUSEDNN_CUDA_ARCHITECTURES", " ".join(toolkit.ARCHITECTURES)).split()
HOW = "pip install 'cuda-toolkit[nvcc,cccl]' brings the one that matches torch, or set CUDA_HOME"
RULES = """\
rule compile
  command = {compile} -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = $in
rule link
  command = {link}
  description = $out
"""


def _host_compiler() -> str:
    return os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), "c++")


def _cuda_commands(home: Path) -> tuple[str, str]:
    runtime = next((p for folder in ("lib64", "lib") for p in sorted((home / folder).glob("libcudart.so*"))), None)
    if runtime is None:
        sys.exit(f"fusednn: {home} has no libcudart.so")
    codes = " ".join(f"-gencode arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES)
    flags = f"-std=c++20 -O3 --expt-relaxed-constexpr -Xcompiler -fPIC,-fvisibility=hidden -I{ROOT}/csrc {codes}"
    nvcc = f"{home}/bin/nvcc -ccbin {_host_compiler()}"
    return f"{nvcc} {flags}", f"{nvcc} -shared -cudart none $in {runtime} -o $out"


def _emulated_commands() -> tuple[str, str]:
    compiler = _host_compiler()
    flags = "-std=c++20 -O1 $level -fPIC -fvisibility=hidden -Wall -Wextra -Wno-unknown-pragmas -DFUSEDNN_EMULATE"
    return f"{compiler} {flags} -I{ROOT}/csrc -x c++", f"{compiler} -shared $in -o $out"


def build(name: str, folder: Path) -> Path:
    """Build one library into ``folder``; exits with the compiler's messages where the code does not compile."""
    sources = [*sorted((ROOT / "csrc/cuda").glob("*.cu")), ROOT / "csrc/cpu/cell_info.cpp"]
    if name == "emulated":
        sources += sorted((ROOT / "csrc/emulation").glob("*.cpp"))
        compile_command, link_command = _emulated_commands()
    else:
        home = toolkit.toolkit()
        if home is None:
            sys.exit(f"fusednn: no CUDA toolkit found: {HOW}")
        compile_command, link_command = _cuda_commands(home)
    out = ROOT / "build" / name
    out.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    library = folder / f"libfusednn_{name}.so"
    objects = {source: f"{source.stem}.o" for source in sources}
    lines = [RULES.format(compile=compile_command, link=link_command)]
    for source, target in objects.items():  # the emulation runs longer than it compiles
        level = "  level = -O2\n" if source.parent.name == "emulation" else ""
        lines += [f"build {target}: compile {source}\n{level}"]
    lines += [f"build {library}: link {' '.join(objects.values())}\n"]
    (out / "build.ninja").write_text("".join(lines))
    ninja = Path(sysconfig.get_paths()["scripts"]) / "ninja"
    result = subprocess.run(
        [ninja if ninja.exists() else "ninja", "-C", out], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode:
        sys.exit(result.stdout)
    return library


if __name__ == "__main__":
    for asked in sys.argv[1:]:
        build(asked, ROOT / "pyext/fusednn/lib")
