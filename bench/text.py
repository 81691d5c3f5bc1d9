"""Real text that every machine has: the source files of Python's own standard library.

Files in sorted order, every tenth one held out, so that no file is in both parts. Tests and generated tables are left
out. The text depends on the version of Python; its digest stands in the record.
"""

from __future__ import annotations

import hashlib
import math
import sysconfig
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LEFT_OUT = {"__pycache__", "dist-packages", "encodings", "idlelib", "lib2to3", "pydoc_data", "site-packages",
            "test", "tests", "turtledemo", "unidata"}  # fmt: skip
EVERY = 10  # one file in so many is held out


@dataclass(frozen=True)
class Text:
    """Training and held-out bytes."""

    train: bytes
    held_out: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.train + b"\0" + self.held_out).hexdigest()[:16]


def source_files(root: Path | None = None) -> list[Path]:
    """The library's source files in a fixed order."""
    root = root or Path(sysconfig.get_path("stdlib"))
    found = (p for p in root.rglob("*.py") if not LEFT_OUT & set(p.relative_to(root).parts))
    return sorted(found, key=lambda p: p.relative_to(root).as_posix())


@cache
def load(train_bytes: int = 2_000_000, held_out_bytes: int = 100_000) -> Text:
    """Bytes of the library, up to the given sizes."""
    train, held = bytearray(), bytearray()
    for index, path in enumerate(source_files()):
        part, size = (held, held_out_bytes) if index % EVERY == EVERY - 1 else (train, train_bytes)
        if len(part) < size:
            part += path.read_bytes()[: size - len(part)]
    if len(train) < 10_000 or len(held) < 2_000:
        raise FileNotFoundError("the standard library's source files are not installed here")
    return Text(bytes(train), bytes(held))


def unigram_bits(data: bytes) -> float:
    """Entropy of the byte frequencies, in bits a byte: what a model that ignores context can reach."""
    total = len(data)
    return -sum(n / total * math.log2(n / total) for n in Counter(data).values())
