"""Figures inside an HTML page: SVG in the reader's colours, its images as WebP."""

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

LARGEST_SVG = 400_000  # bytes; a larger one is shown as an image, if that is smaller
COLOURS, DATA = 256, 128 * 128  # of a colour map, and pixels of what it drew, to be exact
LITTLE = 1.3  # times what is lossy: what other images may cost to be exact
QUALITY = 75

THEME = {
    style.INK: "var(--ink)",
    style.MUTED: "var(--muted)",
    style.GRID: "var(--line)",
    style.PAPER: "var(--card)",
}


def inline_svg(name: str, title: str, svg: bytes, png: bytes) -> Markup:
    """Return a figure as markup that needs no other file; `title` describes it in words."""
    text = _slim(svg.decode())
    if len(text) > LARGEST_SVG and len(picture := _webp(png)) < len(text):
        return Markup('<img alt="{}" src="data:image/webp;base64,{}">').format(title, picture)
    prefix = re.sub(r"[^a-z0-9_-]", "-", name)
    return Markup(_responsive(_styled(_own_ids(_bare(text), prefix), prefix), title))


def _slim(svg: str) -> str:
    """Return SVG with a tenth of a point as its smallest length, and its images as WebP."""
    head, *rest = re.split(r'("data:image/png;base64,[^"]*")', svg)
    parts = [_rounded(head)]
    for image, text in zip(rest[::2], rest[1::2], strict=True):
        png = base64.b64decode(image.partition(",")[2].strip('"'))
        parts += [f'"data:image/webp;base64,{_webp(png)}"', _rounded(text)]
    return re.sub(r"font-family: 'DejaVu Sans'[^;]*; ", "", "".join(parts))  # the page says which


def _rounded(svg: str) -> str:
    """Leave out what draws nothing, and digits of places; what is written stays as it is."""
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"/>', "", svg)
    svg = re.sub(r">\s+<", "><", svg)
    return re.sub(r'(?<=<)[^<>]* (?:d|x|y)="[^<>]*(?=>)', _short, svg)


def _short(tag: re.Match[str]) -> str:
    return re.sub(r' (?:d|x|y)="[^"]*"', lambda found: _cut(found[0]), tag[0])


def _cut(places: str) -> str:
    return re.sub(r"\s*\n", " ", re.sub(r"(\.\d)\d+", r"\1", places))


def _webp(png: bytes) -> str:
    """Return a PNG as base64 of WebP: exact if it is data, or if that costs little.

    What is lossy has half the places for colours that it has for brightness, so it is for
    photographs: in a kernel of 5 x 5 no colour would be that of the colour bar.
    """
    picture = Image.open(io.BytesIO(png))
    exactly, nearly = _encoded(picture, True), _encoded(picture, False)
    exact = _is_data(picture) or len(exactly) < LITTLE * len(nearly)
    return base64.b64encode(exactly if exact else nearly).decode()


def _is_data(picture: Image.Image) -> bool:
    """Whether an image has no more colours than a colour map: as kernels in RGB, of few pixels.

    Grey photographs have as few; their colour is nowhere wrong.
    """
    if picture.width * picture.height > DATA:
        return False
    pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    return len(np.unique(pixels, axis=0)) <= COLOURS and bool(np.ptp(pixels, axis=1).any())


def _encoded(picture: Image.Image, exact: bool) -> bytes:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=QUALITY, lossless=exact, method=4)
    return file.getvalue()


def _bare(svg: str) -> str:
    """Return the svg element alone, without prolog, comments and metadata."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    if f'id="{style.THEMED}"' in svg:
        for colour, variable in THEME.items():
            svg = svg.replace(colour, variable)
    return svg


def _own_ids(svg: str, prefix: str) -> str:
    """Put a prefix before every id: a page has many figures, and one name space.

    Those that nothing refers to go.
    """
    resolve_for = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in resolve_for else "", svg)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)


def _styled(svg: str, prefix: str) -> str:
    """Name the looks that many elements of a figure have, and say each once."""
    tags = re.findall(r"<[^<>]*>", svg)
    looks = Counter(look for tag in tags for look in re.findall(r' style="([^"]*)"', tag))
    often = [look for look, count in looks.items() if count > 2 and "url(" not in look]
    names = {look: f"{prefix}-{n}" for n, look in enumerate(often)}

    def named(tag: re.Match[str]) -> str:
        return re.sub(
            r' style="([^"]*)"',
            lambda look: f' class="{names[look[1]]}"' if look[1] in names else look[0],
            tag[0],
        )

    rules = "".join(f".{name}{{{look}}}" for look, name in names.items())
    head, _, rest = re.sub(r"<[^<>]*>", named, svg).partition(">")
    return f"{head}><style>{rules}</style>{rest}"


def _responsive(svg: str, title: str) -> str:
    """Let the page decide how wide the figure is, from `--wide`, its own width."""
    head, _, rest = svg.partition(">")
    box = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', head)
    assert box is not None  # matplotlib always writes one
    return (
        f'<svg {box[0]} role="img" aria-label="{escape(title)}" '
        f'style="--wide: {float(box[1]):.0f}px">{rest}'
    )
