"""Compile what changed in csrc, in place; nothing to do and no torch imported where nothing changed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import providers
import toolkit


def stale(root: Path) -> bool:
    """Whether a source is newer than the built module (or there is none)."""
    built = max((p.stat().st_mtime for p in (root / "pyext/fusednn").glob("_C*.so")), default=0.0)
    sources = [root / "setup.py", *(p for p in (root / "csrc").rglob("*") if p.suffix in {".cpp", ".h"})]
    return any(p.stat().st_mtime > built for p in sources)


def torch_has_cuda() -> bool:
    """Whether this environment's torch was built for CUDA; decided without importing it."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    return (Path(found.origin).parent / "lib/libtorch_cuda.so").exists()


def main() -> None:
    """Run setup.py's build where it is needed, and that of the CUDA kernels; show output only where one fails."""
    root = Path(__file__).resolve().parent.parent
    if torch_has_cuda():
        if toolkit.toolkit() is None:
            print(f"fusednn: no CUDA toolkit found, so no CUDA kernels: {providers.HOW}")
        else:
            providers.build("cuda", root / "pyext/fusednn/lib")
    if not stale(root):
        return
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        sys.exit(result.stdout)


if __name__ == "__main__":
    main()
