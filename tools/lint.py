"""Lint everything: ruff, clang-format, pyright. Exits non-zero where one of them finds something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Run each tool over the checkout and say which failed."""
    root = Path(__file__).resolve().parent.parent
    bin_ = Path(sys.executable).parent
    sources = [str(p) for p in sorted((root / "csrc").rglob("*")) if p.suffix in {".h", ".cpp", ".cu"}]
    commands = {
        "ruff check": [bin_ / "ruff", "check", "."],
        "ruff format": [bin_ / "ruff", "format", "--check", "."],
        "clang-format": [bin_ / "clang-format", "--dry-run", "-Werror", *sources],
        "pyright": [bin_ / "pyright", "--pythonpath", sys.executable],
    }
    failed = [name for name, command in commands.items() if subprocess.run(command, cwd=root).returncode]
    if failed:
        sys.exit(f"lint: {', '.join(failed)} failed")


if __name__ == "__main__":
    main()
