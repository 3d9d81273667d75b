"""Escape untrusted text, sort and suggest names, and extract tables from docstrings."""

from __future__ import annotations

import itertools
import re
import textwrap
import unicodedata
from collections.abc import Iterable

__all__ = ["counted", "did_you_mean", "natural", "paper_table", "printable"]


def printable(text: str) -> str:
    """Return `text` with control and format characters escaped, safe for a terminal.

    Escapes the Unicode categories Cc, Cf, Cs, Zl and Zp, for example newlines, ANSI escape
    sequences, bidirectional overrides and lone surrogates.
    """
    if text.isascii() and text.isprintable():
        return text
    unsafe = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in unsafe else c
        for c in text
    )


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with what it counts; `many` is by default `one` and an s.

    >>> counted(1, "image"), counted(1200, "image"), counted(1, "of 9 is", "of 9 are")
    ('1 image', '1,200 images', '1 of 9 is')
    """
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def natural(name: str) -> tuple[tuple[int | str, ...], str]:
    """Return the sort key for which 2 comes before 10."""
    parts = re.split(r"(\d+)", name)
    return tuple(int(part) if n % 2 else part for n, part in enumerate(parts)), name


NEAR = 0.05  # names less similar than the best one by more than this (of 0 to 1) are not suggested


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ', did you mean …?' with the nearest known names, or an empty string.

    Names that begin with `name` come first; else those that are about as similar as the best.

    >>> did_you_mean("lenet6", ["lenet5", "alexnet", "vgg11"])
    ", did you mean 'lenet5'?"
    """
    import difflib

    wanted, by_lower = name.lower(), {candidate.lower(): candidate for candidate in known}
    near = sorted((n for n in by_lower if wanted and n.startswith(wanted)), key=len)
    if not near:
        near = difflib.get_close_matches(wanted, by_lower, n=3, cutoff=0.6)
        # Keep this order of arguments: the similarity is not symmetric.
        scores = [difflib.SequenceMatcher(None, lower, wanted).ratio() for lower in near]
        near = [n for n, score in zip(near, scores, strict=True) if score >= scores[0] - NEAR]
    if not near:
        return ""
    return f", did you mean {' or '.join(repr(by_lower[n]) for n in near[:3])}?"


def paper_table(docstring: str) -> str:
    """Return the first indented block of a docstring, or "": in model files the paper's table."""
    lines = itertools.dropwhile(lambda line: not line.startswith("    "), docstring.splitlines())
    block = itertools.takewhile(lambda line: not line.strip() or line.startswith("    "), lines)
    return textwrap.dedent("\n".join(block)).strip("\n")
