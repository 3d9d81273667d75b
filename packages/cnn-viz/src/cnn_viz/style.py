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
    "label",
    "percent",
    "percent_tick",
    "share",
    "short",
    "signed",
]

# The report searches the SVG for these four values and replaces them with the colours of the
# reader's light or dark theme. So no other colour may have the same value: PAPER is almost white.
INK = "#1f2329"
MUTED = "#5f6773"
GRID = "#d9dde3"
PAPER = "#fefefe"
THEMED = "cnnzoo-themed"  # the SVG id that marks a figure as safe to recolour

# Safe for colour-blind readers: M. Okabe and K. Ito (2008), Color universal design.
BLUE = "#0072b2"
ORANGE = "#d55e00"  # Okabe and Ito call it vermilion

# One colour per run: the palette of Okabe and Ito without yellow, which is hard to see on white,
# and the wine colour of P. Tol (2021).
RUNS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK, "#882255")

SEQUENTIAL = "Blues"
DIVERGING = "RdBu_r"  # from ColorBrewer: safe for colour-blind readers, white at the centre
HEAT = "inferno"  # perceptually uniform

MINUS = "\N{MINUS SIGN}"
LTR_MARK = "\N{LEFT-TO-RIGHT MARK}"

# For scripts that DejaVu Sans lacks. The first installed font of each line is used.
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
    "font.family": ["DejaVu Sans"],  # matplotlib ships it, so figures are the same everywhere
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
    "image.interpolation": "none",  # keeps pixels sharp and the SVG small
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
        # A class name may be in a script that no installed font supports. It is then drawn as
        # boxes, which is acceptable: the tables of the report use the browser's fonts.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def figure(width: float, height: float, title: str, caption: str) -> Figure:
    """Return an empty figure, `width` x `height` inches, with a title above and a caption below.

    The report recolours it to match the reader's light or dark theme, so do not set the colours of
    text and axes. Long lines are wrapped at the width of the figure.
    """
    empty = Figure(figsize=(width, height), layout="constrained")
    empty.set_gid(THEMED)
    longest_word = int(6 * width)  # in characters: an inch holds about six of 12-point bold text
    title_words = [_shorten_middle(word, longest_word) for word in title.split(" ")]
    empty.suptitle(" ".join(title_words), x=0.01, ha="left", wrap=True)
    empty.supxlabel(caption, x=0.01, ha="left", color=MUTED, wrap=True)
    empty.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    return empty


@functools.cache
def _installed_fallbacks() -> tuple[str, ...]:
    """Return the first installed font of each line of `FALLBACKS` that has one."""
    from matplotlib.font_manager import get_font_names

    available = set(get_font_names())
    fallbacks = (next(filter(available.__contains__, names), "") for names in FALLBACKS)
    return tuple(filter(None, fallbacks))


def _shorten_middle(text: str, limit: int) -> str:
    """Cut out the middle of text longer than `limit`: names often differ only at their ends."""
    if len(text) <= limit:
        return text
    head = min(13, limit // 2)
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def percent(fraction: float, digits: int = 1) -> str:
    """Return 0.973 as "97.3 %"; a fraction below 1 is never rounded up to 100 %."""
    text = f"{100 * fraction:.{digits}f}"
    if fraction < 1 and float(text) == 100:
        return f">{100 - 10**-digits:.{digits}f} %"
    return f"{text} %"


def confidence(probability: float, digits: int = 1) -> str:
    """Return a softmax probability as a percentage; never rounded to 0 or 100 %."""
    text = percent(min(probability, math.nextafter(1, 0)), digits)
    rounded_to_0 = probability > 0 and text == percent(0, digits)
    return f"<{10**-digits:.{digits}f} %" if rounded_to_0 else text


def percent_tick(fraction: float, position: int | None = None) -> str:
    """Format a tick label: 0.2 as "20 %", and 0.205 as "20.5 %", so that close ticks differ."""
    return f"{signed(100 * fraction, '.3g')} %"


def share(fraction: float, digits: int) -> str:
    """Return 0.9731 as "0.973"; a fraction below 1 is never rounded up to 1."""
    text = f"{fraction:.{digits}f}"
    return f">{1 - 10**-digits:.{digits}f}" if fraction < 1 and float(text) == 1 else text


def signed(value: float, form: str) -> str:
    """Format a number with a typographic minus sign, and without one if it rounds to 0."""
    text = f"{value:{form}}"
    return text.replace("-", MINUS) if float(text) else text.lstrip("-")


def label(text: str, limit: int = 14) -> str:
    """Return `short` as a label: matplotlib leaves labels that begin with "_" out of legends."""
    shown = short(text, limit)
    return f"{LTR_MARK}{shown}" if shown.startswith("_") else shown


def short(text: str, limit: int = 14) -> str:
    """Return untrusted text in printable form, with its middle cut out if longer than `limit`.

    Right-to-left text is enclosed in left-to-right marks, so that the text around it keeps its
    order.
    """
    text = _shorten_middle(printable(text), limit)
    has_rtl_text = any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in text)
    return f"{LTR_MARK}{text}{LTR_MARK}" if has_rtl_text else text
