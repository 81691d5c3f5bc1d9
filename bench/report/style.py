"""Colours and axes of every picture. In the page, ink and grid follow the reader's light or dark setting."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT, GRID = "#1b1f24", "#59636e", "#d8dee4"
# Okabe and Ito's palette: told apart by readers with any colour vision, on white and on dark alike.
COLOURS = {
    "reference": "#999999", "loop": "#e69f00", "sequence": "#0072b2", "torch.nn": "#d55e00", "fusednn": "#0072b2",
    "RNN": "#e69f00", "LSTM": "#0072b2", "GRU": "#009e73", "transformer": "#d55e00", "attention": "#d55e00",
    "fusednn-torch": "#0072b2", "sdpa-flash": "#009e73", "sdpa-math": "#d55e00",
    "LSTM forget bias 1": "#56b4e9", "IRNN": "#cc79a7", "RNN norm 1.5": "#b8860b", "RNN radius 1.5": "#999999",
    "posed": "#d55e00", "parameters": "#0072b2", "flops": "#009e73",
}  # fmt: skip
SPARE = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#999999")
SIZE = (6.4, 3.9)
PIXELS = 108  # of the page, an inch of a picture


def colour(name: str) -> str:
    """The colour that a name has in every picture."""
    if name in COLOURS:
        return COLOURS[name]
    return SPARE[int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(SPARE)]


RC: dict[Any, Any] = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": FAINT, "ytick.color": FAINT, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.7,
    "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 9, "axes.titlesize": 11,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "lines.linewidth": 1.8, "lines.markersize": 5,
    "figure.constrained_layout.use": True,
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A drawn picture: its name, what it shows in one sentence, and both forms."""

    name: str
    title: str
    caption: str
    svg: str
    png: bytes


def draw(
    name: str, title: str, caption: str, plot: Callable[[Figure], None], size: tuple[float, float] = SIZE
) -> Picture:
    """Call ``plot`` on an empty figure and keep it as SVG text and as PNG bytes."""
    with plt.rc_context({**RC, "svg.hashsalt": name}):
        figure = plt.figure(figsize=size)
        try:
            plot(figure)
            png, svg = io.BytesIO(), io.StringIO()
            figure.savefig(png, format="png", dpi=150, facecolor="white")
            figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        finally:
            plt.close(figure)
    return Picture(name, title, caption, inline(svg.getvalue(), name, title, size[0]), png.getvalue())


def inline(svg: str, name: str, title: str, inches: float) -> str:
    """An SVG document as an element of a page: own ids, as wide as the page allows or until its letters have the size
    that they have in every picture, colours by CSS variable."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{name}-\1"', svg)
    for literal, variable in ((INK, "--ink"), (FAINT, "--faint"), (GRID, "--grid")):
        svg = svg.replace(literal, f"var({variable})")
    svg = re.sub(r"font: ([^;\"]*?)('[^\"]*|sans-serif)(?=[;\"])", r"font: \1 sans-serif", svg)
    svg = re.sub(r"(\d)\.(\d{2})\d+", r"\1.\2", svg)
    widest = f"--widest: {PIXELS * inches:.0f}px"
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" style="{widest}" ', 1)


def disturbed_note(cells: Iterable[dict[str, Any]]) -> str:
    """A sentence where some of the cells were measured under foreign load."""
    cells = list(cells)
    n = sum(1 for c in cells if c["extra_info"].get("disturbed"))
    return f" {n} of {len(cells)} points were disturbed by foreign load." if n else ""


def log_axes(ax: Axes, x: str, y: str, xs: list[float] | None = None) -> None:
    """Both axes logarithmic, with the measured x as ticks."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    if xs:
        ax.set_xticks(xs, [f"{v:g}" for v in xs])
        ax.minorticks_off()
