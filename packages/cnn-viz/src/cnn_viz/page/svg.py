"""Inline figures into an HTML page: SVG in the theme's colours, with images as WebP."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from cnn_viz import style

__all__ = ["inline_svg"]

LARGEST_SVG = 400_000  # bytes: a larger SVG is replaced by its image, if that is smaller
MAP_COLOURS, DATA_PIXELS = 256, 128 * 128  # the limits of an image that counts as data
LOSSLESS_RATIO = 1.3  # how much larger than lossy a lossless image may be
QUALITY = 75

THEME = {
    style.INK: "var(--ink)",
    style.MUTED: "var(--muted)",
    style.GRID: "var(--line)",
    style.PAPER: "var(--card)",
}


def inline_svg(name: str, title: str, svg: bytes, png: bytes) -> Markup:
    """Return a figure as self-contained markup; `title` is its text for screen readers."""
    text = _compress(svg.decode())
    if len(text) > LARGEST_SVG and len(webp := _webp(png)) < len(text):
        return Markup('<img alt="{}" src="data:image/webp;base64,{}">').format(title, webp)
    prefix = re.sub(r"[^a-z0-9_-]", "-", name)
    return Markup(
        _responsive(_share_styles(_prefix_ids(_svg_element(text), prefix), prefix), title)
    )


def _compress(svg: str) -> str:
    """Return SVG with coordinates rounded to a tenth of a point and images as WebP."""
    head, *rest = re.split(r'("data:image/png;base64,[^"]*")', svg)
    parts = [_round_coordinates(head)]
    for image, text in zip(rest[::2], rest[1::2], strict=True):
        png = base64.b64decode(image.partition(",")[2].strip('"'))
        parts += [f'"data:image/webp;base64,{_webp(png)}"', _round_coordinates(text)]
    # The font is set once, in report.css.
    return re.sub(r"font-family: 'DejaVu Sans'[^;]*; ", "", "".join(parts))


def _round_coordinates(svg: str) -> str:
    """Drop empty elements and round coordinates; leave text untouched."""
    # matplotlib writes a rotation by -0 degrees for every tick label.
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"/>', "", svg)
    svg = re.sub(r">\s+<", "><", svg)
    return re.sub(r'(?<=<)[^<>]* (?:d|x|y)="[^<>]*(?=>)', _round_tag, svg)


def _round_tag(tag: re.Match[str]) -> str:
    return re.sub(r' (?:d|x|y)="[^"]*"', lambda match: _round_numbers(match[0]), tag[0])


def _round_numbers(places: str) -> str:
    return re.sub(r"\s*\n", " ", re.sub(r"(\.\d)\d+", r"\1", places))


def _webp(png: bytes) -> str:
    """Convert a PNG to base64 of WebP, lossless if it shows data or if that costs little.

    Lossy WebP halves the resolution of colours, which only suits photographs: in a kernel of
    5 x 5 pixels no colour would match the colour bar any more.
    """
    image = Image.open(io.BytesIO(png))
    lossless, lossy = _encode(image, True), _encode(image, False)
    use_lossless = _is_data(image) or len(lossless) < LOSSLESS_RATIO * len(lossy)
    return base64.b64encode(lossless if use_lossless else lossy).decode()


def _is_data(image: Image.Image) -> bool:
    """Return whether a small image has no more colours than a colour map, so shows data.

    Grey photographs have as few colours, but lossy compression does not change their hue.
    """
    if image.width * image.height > DATA_PIXELS:
        return False
    pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    return len(np.unique(pixels, axis=0)) <= MAP_COLOURS and bool(np.ptp(pixels, axis=1).any())


def _encode(image: Image.Image, lossless: bool) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=QUALITY, lossless=lossless, method=4)
    return file.getvalue()


def _svg_element(svg: str) -> str:
    """Return the svg element without prolog, comments and metadata, in the theme's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    if f'id="{style.THEMED}"' in svg:
        for colour, variable in THEME.items():
            svg = svg.replace(colour, variable)
    return svg


def _prefix_ids(svg: str, prefix: str) -> str:
    """Prefix every id, as all figures of a page share one namespace; drop unreferenced ids."""
    referenced = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in referenced else "", svg)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)


def _share_styles(svg: str, prefix: str) -> str:
    """Replace styles that many elements share by classes, to make the page smaller."""
    tags = re.findall(r"<[^<>]*>", svg)
    counts = Counter(css for tag in tags for css in re.findall(r' style="([^"]*)"', tag))
    frequent = [css for css, count in counts.items() if count > 2 and "url(" not in css]
    names = {css: f"{prefix}-{n}" for n, css in enumerate(frequent)}

    def named(tag: re.Match[str]) -> str:
        return re.sub(
            r' style="([^"]*)"',
            lambda css: f' class="{names[css[1]]}"' if css[1] in names else css[0],
            tag[0],
        )

    rules = "".join(f".{name}{{{css}}}" for css, name in names.items())
    head, _, rest = re.sub(r"<[^<>]*>", named, svg).partition(">")
    return f"{head}><style>{rules}</style>{rest}"


def _responsive(svg: str, title: str) -> str:
    """Let the page choose the displayed width; `--wide` passes on the figure's own width."""
    head, _, rest = svg.partition(">")
    box = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', head)
    assert box is not None  # matplotlib always writes one
    return (
        f'<svg {box[0]} role="img" aria-label="{escape(title)}" '
        f'style="--wide: {float(box[1]):.0f}px">{rest}'
    )
