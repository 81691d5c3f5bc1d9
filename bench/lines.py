"""The record on disk: one JSON line a test, appended at once, so that a killed run loses nothing and can resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from bench.fields import record

DONE = ("measured", "fact")  # what a resumed run keeps
FAULTS = ("wrong", "failed")
KINDS = (*DONE, "skipped", *FAULTS)
LEFT = "left"  # for a later shard: stands in the results of this one, and not on disk


def left_over(fullname: str) -> dict[str, Any]:
    """The row of a cell that this shard had no time for."""
    bench = {"fullname": fullname, "extra_info": record(skip_reason="left to a later shard: --bench-resume goes on")}
    return {"kind": LEFT, "fullname": fullname, "bench": bench, "series": {}}


def clean(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    return value


class Lines:
    """An append-only file of finished tests. Nothing is written before `begin`."""

    def __init__(self, path: Path, resume: bool, key: dict[str, Any]) -> None:
        self.path = path
        self.key = key
        self.lines: dict[str, dict[str, Any]] = {}
        if resume and path.exists():
            self._load()

    def _load(self) -> None:
        rows = []
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                rows.append(json.loads(text))
            except json.JSONDecodeError:
                continue  # the line a killed run was writing
        if not rows or not isinstance(rows[0], dict) or rows[0].get("key") != self.key:
            raise ValueError(f"{self.path.name} was written with other settings; run without --bench-resume")
        whole = (
            row for row in rows[1:] if isinstance(row, dict) and set(row) >= {"kind", "fullname", "bench", "series"}
        )
        self.lines = {row["fullname"]: row for row in whole if row["kind"] in DONE}

    def begin(self) -> None:
        """Write what is kept, in place of what was there; a run that is killed meanwhile leaves the old file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        body = "".join(json.dumps(row) + "\n" for row in [{"key": self.key}, *self.lines.values()])
        part.write_text(body, encoding="utf-8")
        part.replace(self.path)

    def _append(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(clean(row), allow_nan=False) + "\n")

    def add(self, kind: str, bench: dict[str, Any], series: dict[str, Any] | None = None) -> dict[str, Any]:
        """Append one finished test."""
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
        row = clean({"kind": kind, "fullname": bench["fullname"], "bench": bench, "series": series or {}})
        self.lines[bench["fullname"]] = row
        self._append(row)
        return row

    def __contains__(self, fullname: str) -> bool:
        return fullname in self.lines
