"""How figures look, in one place: colours, sizes, and matplotlib's settings."""

from __future__ import annotations

import contextlib
import functools
import math
import unicodedata
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
    "MINUS",
    "MUTED",
    "ORANGE",
    "PAPER",
    "RUNS",
    "SEQUENTIAL",
    "THEMED",
    "applied",
    "confidence",
    "figure",
    "percent",
    "percent_tick",
    "share",
    "short",
    "signed",
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

MINUS = "\N{MINUS SIGN}"
MARK = "\N{LEFT-TO-RIGHT MARK}"

# For scripts that DejaVu Sans lacks, the first of each line that is installed.
FALLBACKS = (
    ("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "PingFang SC", "Microsoft YaHei"),
    ("Noto Sans CJK KR", "Noto Sans KR", "Apple SD Gothic Neo", "Malgun Gothic"),
    ("Noto Sans Devanagari", "Kohinoor Devanagari", "Nirmala UI"),
    ("Noto Emoji", "Segoe UI Emoji", "Symbola"),
)

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
    settings = {**SETTINGS, "font.family": [*SETTINGS["font.family"], *_installed()]}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A class name in a script that no font has is drawn as boxes; tables spell it out.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def figure(width: float, height: float, title: str, caption: str) -> Figure:
    """Return an empty figure, sizes in inches, with a title above and a caption below.

    Its ink and paper follow the report's light or dark theme: leave the colours of text and
    axes to the settings. Lines that are longer than the figure is wide are broken.
    """
    made = Figure(figsize=(width, height), layout="constrained")
    made.set_gid(THEMED)
    longest = int(6 * width)  # bold characters of 12 points
    words = [_middle_out(word, longest) for word in title.split(" ")]
    made.suptitle(" ".join(words), x=0.01, ha="left", wrap=True)
    made.supxlabel(caption, x=0.01, ha="left", color=MUTED, wrap=True)
    made.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    return made


@functools.cache
def _installed() -> tuple[str, ...]:
    """Return the fonts of `FALLBACKS` that there are."""
    from matplotlib.font_manager import get_font_names

    there = set(get_font_names())
    found = (next(filter(there.__contains__, names), "") for names in FALLBACKS)
    return tuple(filter(None, found))


def _middle_out(text: str, limit: int) -> str:
    """Return text at most `limit` long: classes and folders often differ only at their ends."""
    if len(text) <= limit:
        return text
    head = min(13, limit // 2)
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def percent(fraction: float, digits: int = 1) -> str:
    """Return 0.973 as "97.3 %", and no rounding makes 100 % of what is less."""
    shown = f"{100 * fraction:.{digits}f}"
    if fraction < 1 and float(shown) == 100:
        return f">{100 - 10**-digits:.{digits}f} %"
    return f"{shown} %"


def confidence(probability: float, digits: int = 1) -> str:
    """Return a softmax's probability, which is below 100 % even where float32 rounds it to 1."""
    return percent(min(probability, math.nextafter(1, 0)), digits)


def percent_tick(fraction: float, position: int | None = None) -> str:
    """Return 0.2 as "20 %" and 0.205 as "20.5 %": for ticks, which may lie close together."""
    return f"{signed(100 * fraction, '.3g')} %"


def share(fraction: float, digits: int) -> str:
    """Return 0.9731 as "0.973", and no rounding makes 1 of what is less."""
    shown = f"{fraction:.{digits}f}"
    return f">{1 - 10**-digits:.{digits}f}" if fraction < 1 and float(shown) == 1 else shown


def signed(value: float, form: str) -> str:
    """Return a number with a real minus, and none where it is rounded to 0."""
    shown = f"{value:{form}}"
    return shown.replace("-", MINUS) if float(shown) else shown.lstrip("-")


def short(text: str, limit: int = 14) -> str:
    """Return text from elsewhere, printable, and at most `limit` long: without its middle.

    Between marks if it runs from right to left, so that what stands beside it stays there.
    """
    shown = _middle_out(printable(text), limit)
    leftwards = any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in shown)
    return f"{MARK}{shown}{MARK}" if leftwards else shown
