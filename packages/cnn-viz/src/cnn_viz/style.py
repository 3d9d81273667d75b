"""The look of every figure: colours, sizes and matplotlib settings."""

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

# The report finds these four by their text in the SVG and replaces them with the reader's light
# or dark theme. So no other colour may have the same value: paper is not quite white.
INK = "#1f2329"
MUTED = "#5f6773"
GRID = "#d9dde3"
PAPER = "#fefefe"
THEMED = "cnnzoo-themed"  # the SVG id that marks a figure as safe to recolour

# M. Okabe and K. Ito (2008), Color universal design: colour-blind readers can distinguish them.
BLUE = "#0072b2"
ORANGE = "#d55e00"  # their vermilion

# One colour per run: Okabe and Ito's without yellow, which is invisible on paper; the last is the
# wine of P. Tol (2021).
RUNS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK, "#882255")

SEQUENTIAL = "Blues"
DIVERGING = "RdBu_r"  # ColorBrewer: colour-blind safe, white at the centre
HEAT = "inferno"  # perceptually uniform

MINUS = "\N{MINUS SIGN}"
MARK = "\N{LEFT-TO-RIGHT MARK}"

# For scripts that DejaVu Sans lacks. From each line the first installed font is used.
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
    "font.family": ["DejaVu Sans"],  # ships with matplotlib, so figures are the same everywhere
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
    "text.parse_math": False,  # a class name may be "$5"
    "image.interpolation": "none",  # keep pixels sharp, and the SVG small
    "image.composite_image": False,
    "pdf.fonttype": 42,  # TrueType, so that text can be searched and edited
    "svg.fonttype": "path",
    "svg.hashsalt": "cnnzoo",  # the same figure always gives the same bytes
}


@contextlib.contextmanager
def applied() -> Iterator[None]:
    """Apply these settings while drawing and saving, then restore matplotlib's own."""
    settings = {**SETTINGS, "font.family": [*SETTINGS["font.family"], *_installed_fallbacks()]}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # No installed font may have the script of a class name. It is then drawn as boxes, which
        # is no reason to fail: the report's tables show the name in the browser's fonts.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def figure(width: float, height: float, title: str, caption: str) -> Figure:
    """Return an empty figure with a title above and a caption below; sizes in inches.

    The report recolours it to match the reader's light or dark theme, so leave the colours of
    text and axes to the settings. Long lines are wrapped at the figure's width.
    """
    empty = Figure(figsize=(width, height), layout="constrained")
    empty.set_gid(THEMED)
    longest_word = int(6 * width)  # characters: about six of 12-point bold text fit into an inch
    title_words = [_shorten_middle(word, longest_word) for word in title.split(" ")]
    empty.suptitle(" ".join(title_words), x=0.01, ha="left", wrap=True)
    empty.supxlabel(caption, x=0.01, ha="left", color=MUTED, wrap=True)
    empty.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    return empty


@functools.cache
def _installed_fallbacks() -> tuple[str, ...]:
    """Return the first installed font of each line of `FALLBACKS`."""
    from matplotlib.font_manager import get_font_names

    available = set(get_font_names())
    fallbacks = (next(filter(available.__contains__, names), "") for names in FALLBACKS)
    return tuple(filter(None, fallbacks))


def _shorten_middle(text: str, limit: int) -> str:
    """Cut the middle of text longer than `limit`: names often differ only at their ends."""
    if len(text) <= limit:
        return text
    head = min(13, limit // 2)
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def percent(fraction: float, digits: int = 1) -> str:
    """Return 0.973 as "97.3 %"; a fraction below 1 is never rounded up to 100 %."""
    shown = f"{100 * fraction:.{digits}f}"
    if fraction < 1 and float(shown) == 100:
        return f">{100 - 10**-digits:.{digits}f} %"
    return f"{shown} %"


def confidence(probability: float, digits: int = 1) -> str:
    """Return a softmax probability as per cent, below 100 % even if float32 rounded it to 1."""
    return percent(min(probability, math.nextafter(1, 0)), digits)


def percent_tick(fraction: float, position: int | None = None) -> str:
    """Format a tick: 0.2 as "20 %" and 0.205 as "20.5 %", so that close ticks differ."""
    return f"{signed(100 * fraction, '.3g')} %"


def share(fraction: float, digits: int) -> str:
    """Return 0.9731 as "0.973"; a fraction below 1 is never rounded up to 1."""
    shown = f"{fraction:.{digits}f}"
    return f">{1 - 10**-digits:.{digits}f}" if fraction < 1 and float(shown) == 1 else shown


def signed(value: float, form: str) -> str:
    """Format a number with a typographic minus sign, and without one if it rounds to 0."""
    shown = f"{value:{form}}"
    return shown.replace("-", MINUS) if float(shown) else shown.lstrip("-")


def short(text: str, limit: int = 14) -> str:
    """Return untrusted text made printable, its middle cut if it is longer than `limit`.

    Right-to-left text is enclosed in left-to-right marks, so that it does not reorder the text
    around it.
    """
    shown = _shorten_middle(printable(text), limit)
    leftwards = any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in shown)
    return f"{MARK}{shown}{MARK}" if leftwards else shown
