"""A picture that is kept says from which results file it was drawn, so that a test can tell an old one."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

KEY = "fusednn results sha256"


def digest(results: Path) -> str:
    return hashlib.sha256(results.read_bytes()).hexdigest()


def keep(picture: Path, png: bytes, results: Path) -> None:
    """Write a picture with the digest of the results file that it was drawn from."""
    info = PngInfo()
    info.add_text(KEY, digest(results))
    with Image.open(io.BytesIO(png)) as image:
        image.save(picture, pnginfo=info, optimize=True)


def is_of(picture: Path, results: Path) -> bool:
    """Whether a picture was drawn from these results."""
    if not picture.exists():
        return False
    with Image.open(picture) as image:
        return image.info.get(KEY) == digest(results)
