"""Inline figures into an HTML page as SVG in the theme's colours, with images as WebP."""

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

LARGEST_SVG = 400_000  # in bytes; a larger SVG is replaced by a WebP image if that is smaller
# An image with more colours or pixels is taken for a photograph, not for data in a colour map.
MAP_COLOURS, DATA_PIXELS = 256, 128 * 128
LOSSLESS_RATIO = 1.3  # how many times larger than a lossy image a lossless one may be
QUALITY = 75  # of WebP, from 0 to 100

THEME = {
    style.INK: "var(--ink)",
    style.MUTED: "var(--muted)",
    style.GRID: "var(--line)",
    style.PAPER: "var(--card)",
}


def inline_svg(name: str, title: str, svg: bytes, png: bytes) -> Markup:
    """Return a figure as self-contained markup; screen readers read its `title`."""
    text = _compress(svg.decode())
    if len(text) > LARGEST_SVG and len(webp := _webp(png)) < len(text):
        return Markup('<img alt="{}" src="data:image/webp;base64,{}">').format(title, webp)
    prefix = re.sub(r"[^a-z0-9_-]", "-", name)
    return Markup(
        _responsive(_share_styles(_prefix_ids(_svg_element(text), prefix), prefix), title)
    )


def _compress(svg: str) -> str:
    """Return SVG with coordinates truncated to a tenth of a point, and images as WebP."""
    before, *rest = re.split(r'("data:image/png;base64,[^"]*")', svg)
    parts = [_truncate_coordinates(before)]
    for image, text in zip(rest[::2], rest[1::2], strict=True):
        png = base64.b64decode(image.partition(",")[2].strip('"'))
        parts += [f'"data:image/webp;base64,{_webp(png)}"', _truncate_coordinates(text)]
    # The font is set once, in report.css.
    return re.sub(r"font-family: 'DejaVu Sans'[^;]*; ", "", "".join(parts))


def _truncate_coordinates(svg: str) -> str:
    """Drop empty elements and truncate coordinates to one decimal; leave text untouched."""
    # matplotlib writes a rotation by -0 degrees into every tick label.
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"/>', "", svg)
    svg = re.sub(r">\s+<", "><", svg)
    return re.sub(r'(?<=<)[^<>]* (?:d|x|y)="[^<>]*(?=>)', _truncate_tag, svg)


def _truncate_tag(tag: re.Match[str]) -> str:
    return re.sub(r' (?:d|x|y)="[^"]*"', lambda match: _truncate_numbers(match[0]), tag[0])


def _truncate_numbers(text: str) -> str:
    return re.sub(r"\s*\n", " ", re.sub(r"(\.\d)\d+", r"\1", text))


def _webp(png: bytes) -> str:
    """Convert a PNG to WebP in base64: lossless if it shows data, or if that costs little.

    Lossy WebP halves the colour resolution. That is fine for photographs, but in an image of a
    5 x 5 kernel no colour would match the colour bar any more.
    """
    image = Image.open(io.BytesIO(png))
    lossless, lossy = _encode(image, True), _encode(image, False)
    use_lossless = _is_data(image) or len(lossless) < LOSSLESS_RATIO * len(lossy)
    return base64.b64encode(lossless if use_lossless else lossy).decode()


def _is_data(image: Image.Image) -> bool:
    """Return whether an image is small and has no more colours than a colour map.

    Greyscale images are excluded: lossy compression does not change their hue.
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
    """Return the svg element in the theme's colours, without prolog, comments and metadata."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    if f'id="{style.THEMED}"' in svg:
        for colour, variable in THEME.items():
            svg = svg.replace(colour, variable)
    return svg


def _prefix_ids(svg: str, prefix: str) -> str:
    """Prefix every id, because all figures of a page share one namespace; drop unused ids."""
    referenced = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in referenced else "", svg)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)


def _share_styles(svg: str, prefix: str) -> str:
    """Replace frequent style attributes with classes, to make the page smaller."""
    tags = re.findall(r"<[^<>]*>", svg)
    counts = Counter(css for tag in tags for css in re.findall(r' style="([^"]*)"', tag))
    frequent = [css for css, count in counts.items() if count > 2 and "url(" not in css]
    names = {css: f"{prefix}-{n}" for n, css in enumerate(frequent)}

    def use_class(tag: re.Match[str]) -> str:
        return re.sub(
            r' style="([^"]*)"',
            lambda css: f' class="{names[css[1]]}"' if css[1] in names else css[0],
            tag[0],
        )

    rules = "".join(f".{name}{{{css}}}" for css, name in names.items())
    open_tag, _, rest = re.sub(r"<[^<>]*>", use_class, svg).partition(">")
    return f"{open_tag}><style>{rules}</style>{rest}"


def _responsive(svg: str, title: str) -> str:
    """Let the page choose the display width; `--wide` is the figure's own width."""
    open_tag, _, rest = svg.partition(">")
    box = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', open_tag)
    assert box is not None  # matplotlib always writes a viewBox
    return (
        f'<svg {box[0]} role="img" aria-label="{escape(title)}" '
        f'style="--wide: {float(box[1]):.0f}px">{rest}'
    )
