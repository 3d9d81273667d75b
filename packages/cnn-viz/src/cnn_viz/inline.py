"""Figures inside an HTML page: SVG in the reader's colours, or PNG where that is smaller."""

from __future__ import annotations

import base64
import re

from markupsafe import Markup, escape

from cnn_viz import style

__all__ = ["inlined"]

LARGEST_SVG = 240_000  # bytes; a larger one only if its PNG is larger still

THEME = {
    style.INK: "var(--ink)",
    style.MUTED: "var(--muted)",
    style.GRID: "var(--line)",
    style.PAPER: "var(--card)",
}


def inlined(name: str, title: str, svg: bytes, png: bytes) -> Markup:
    """Return a figure as markup that needs no other file; `title` describes it in words."""
    if len(svg) > max(LARGEST_SVG, len(png)):
        source = base64.b64encode(png).decode()
        return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(title, source)
    return Markup(_responsive(_own_ids(_bare(svg.decode()), name), title))


def _bare(svg: str) -> str:
    """Return the svg element alone, without prolog, comments and metadata."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    if f'id="{style.THEMED}"' in svg:
        for colour, variable in THEME.items():
            svg = svg.replace(colour, variable)
    return svg


def _own_ids(svg: str, name: str) -> str:
    """Put the view's name before every id: a page has many figures, and one name space.

    Images lose theirs: nothing refers to them, and equal images have equal ones.
    """
    svg = re.sub(r'(<image [^>]*?) id="image[0-9a-f]+"', r"\1", svg)
    prefix = re.sub(r"[^a-z0-9_-]", "-", name)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)


def _responsive(svg: str, title: str) -> str:
    """Let the page decide how wide the figure is, up to its own width."""
    head, _, rest = svg.partition(">")
    box = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', head)
    assert box is not None  # matplotlib always writes one
    return (
        f'<svg {box[0]} role="img" aria-label="{escape(title)}" '
        f'style="max-width: {float(box[1]) * 1.5:.0f}px">{rest}'
    )
