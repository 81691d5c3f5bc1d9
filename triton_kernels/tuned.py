"""The file in which tuning keeps what it chose, one a user. Read only where FUSEDNN_TUNED=1."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .configurations import FORMS, HEAD_SIZES, Candidate, Configuration


class Key(NamedTuple):
    """What a choice holds for: head sizes up to ``size`` and above the one before, on a device, with a compiler."""

    device: str
    triton: str
    way: str
    dtype: str
    size: int
    hidden: bool


def key(way: str, query: Tensor, size: int, hidden: bool) -> Key:
    """Of a call.

    Args:
        way: ``forward`` or ``backward``.
        query: queries, on a GPU.
        size: padded size of a head or of a value, the larger.
        hidden: whether a causal mask or a window hides keys.
    """
    limit = next(limit for limit in HEAD_SIZES if size <= limit)
    dtype = str(query.dtype).removeprefix("torch.")
    return Key(torch.cuda.get_device_name(query.device), triton.__version__, way, dtype, limit, hidden)


def path() -> Path:
    """Where the file lies: in XDG_CACHE_HOME, or in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fusednn" / "tuned.json"


def read() -> dict[Key, Candidate]:
    """All choices; none where there is no file.

    Raises:
        ValueError: the file is not what ``write`` makes.
    """
    file = path()
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    try:
        return dict(_choice(entry) for entry in json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file} is not a file of tuned configurations ({type(error).__name__}: {error});"
            " remove it and run python -m fusednn tune again"
        ) from error


def _choice(entry: dict) -> tuple[Key, Candidate]:
    kinds = {"device": str, "triton": str, "way": str, "dtype": str, "size": int, "hidden": bool}
    for name, kind in kinds.items():
        if type(entry[name]) is not kind:
            raise TypeError(f"{name} must be {kind.__name__}, got {entry[name]!r}")
    row = entry["row"]
    if entry["way"] not in FORMS or entry["form"] not in FORMS[entry["way"]]:
        raise ValueError(f"no form {entry['form']!r} of a pass {entry['way']!r}")
    if row is not None:
        row = Configuration(*row)
        if any(type(number) is not int or number < 1 or number & (number - 1) for number in row[:3]):
            raise ValueError(f"tiles and warps must be powers of two, got {list(row)}")
        if type(row.stages) is not int or row.stages < 1:
            raise ValueError(f"stages must be a positive number, got {row.stages!r}")
    return Key(*(entry[name] for name in kinds)), Candidate(entry["form"], row)


def write(choices: dict[Key, Candidate]) -> Path:
    """Add choices to the file, in place of older ones for the same; a reader sees the old file or the new one."""
    merged = read() | choices
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({**of._asdict(), **candidate._asdict()}) for of, candidate in sorted(merged.items())]
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    draft.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    draft.replace(file)
    return file


@functools.cache
def _table() -> dict[Key, Candidate]:
    return read()


def chosen(of: Key) -> Candidate | None:
    """What the file names, which is read at the first call."""
    return _table().get(of)
