"""Compile what changed in csrc, in place; nothing to do and no torch imported where nothing changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def stale(root: Path) -> bool:
    """Whether a source is newer than the built module (or there is none)."""
    built = max((p.stat().st_mtime for p in (root / "pyext/fusednn").glob("_C*.so")), default=0.0)
    sources = [root / "setup.py", *(p for p in (root / "csrc").rglob("*") if p.suffix in {".cpp", ".h"})]
    return any(p.stat().st_mtime > built for p in sources)


def main() -> None:
    """Run setup.py's build where it is needed; show its output only where it fails."""
    root = Path(__file__).resolve().parent.parent
    if not stale(root):
        return
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        sys.exit(result.stdout)


if __name__ == "__main__":
    main()
