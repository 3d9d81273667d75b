"""How figures look, in one place: colours, sizes, and matplotlib's settings."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from cnn_core.text import printable

__all__ = [
    "BLUE",
    "DIVERGING",
    "GRID",
    "HEAT",
    "INK",
    "MUTED",
    "ORANGE",
    "PAPER",
    "RUNS",
    "SEQUENTIAL",
    "THEMED",
    "applied",
    "figure",
    "per_cent",
    "percent",
    "short",
]

# The report replaces these four by colours of the reader's light or dark theme, so they are
# values that occur nowhere else: paper is not quite white.
INK = "#1f2329"
MUTED = "#5f6773"
GRID = "#d9dde3"
PAPER = "#fefefe"
THEMED = "cnnzoo-themed"  # the SVG id of figures that may be recoloured

# M. Okabe and K. Ito (2008), Color universal design: told apart by colour-blind readers.
BLUE = "#0072b2"
ORANGE = "#d55e00"  # their vermilion

# One a run: theirs without yellow, which paper swallows; the last is the wine of P. Tol (2021).
RUNS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK, "#882255")

SEQUENTIAL = "Blues"
DIVERGING = "RdBu_r"  # ColorBrewer: colour-blind safe, white at the centre
HEAT = "inferno"  # perceptually uniform

SETTINGS: dict[Any, Any] = {
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.edgecolor": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": GRID,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same everywhere
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.labelsize": 9.0,
    "figure.titlesize": 12.0,
    "figure.titleweight": "bold",
    "figure.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "text.parse_math": False,  # a class may be called "$5"
    "image.interpolation": "none",  # pixels stay pixels, and few of them go into an SVG
    "image.composite_image": False,
    "pdf.fonttype": 42,  # TrueType: its text can be searched, and edited
    "svg.fonttype": "path",
    "svg.hashsalt": "cnnzoo",  # the same figure gives the same bytes
}


@contextlib.contextmanager
def applied() -> Iterator[None]:
    """Draw and save under these settings; matplotlib's own are as before afterwards."""
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        # A class name in a script that the font lacks is drawn as boxes; tables spell it out.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def figure(width: float, height: float, title: str, caption: str) -> Figure:
    """Return an empty figure, sizes in inches, with a title above and a caption below.

    Its ink and paper follow the report's light or dark theme: leave the colours of text and
    axes to the settings.
    """
    made = Figure(figsize=(width, height), layout="constrained")
    made.set_gid(THEMED)
    made.suptitle(title, x=0.01, ha="left")
    made.supxlabel(caption, x=0.01, ha="left", color=MUTED)
    made.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    return made


def percent(fraction: float, digits: int = 1) -> str:
    """Return 0.973 as "97.3 %", and no rounding makes 100 % of what is less."""
    shown = f"{100 * fraction:.{digits}f}"
    if fraction < 1 and float(shown) == 100:
        return f">{100 - 10**-digits:.{digits}f} %"
    return f"{shown} %"


def per_cent(fraction: float, position: int | None = None) -> str:
    """Return 0.2 as "20 %": for the ticks of a colour bar."""
    return f"{100 * fraction:.0f} %"


def short(text: str, limit: int = 14) -> str:
    """Return text from elsewhere, printable and at most `limit` characters long."""
    shown = printable(text)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"
