"""Escape untrusted text, suggest similar names, and extract tables from docstrings."""

from __future__ import annotations

import itertools
import textwrap
import unicodedata
from collections.abc import Iterable

__all__ = ["did_you_mean", "paper_table", "printable"]


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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ', did you mean …?' with the nearest known names, or an empty string.

    >>> did_you_mean("lenet", ["lenet5", "unet", "vgg11"])
    ", did you mean 'lenet5' or 'unet'?"
    """
    import difflib

    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    if not near:
        return ""
    return f", did you mean {' or '.join(repr(by_lower[n]) for n in near)}?"


def paper_table(docstring: str) -> str:
    """Return the first indented block of a docstring, or "": in model files the paper's table."""
    lines = itertools.dropwhile(lambda line: not line.startswith("    "), docstring.splitlines())
    block = itertools.takewhile(lambda line: not line.strip() or line.startswith("    "), lines)
    return textwrap.dedent("\n".join(block)).strip("\n")
