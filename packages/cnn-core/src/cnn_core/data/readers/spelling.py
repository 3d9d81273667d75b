"""Numbers that are written as text, and names of classes that are one name in two spellings.

Names are never compared as floats: two long identifiers may have the same float.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Sequence
from decimal import Decimal, InvalidOperation

from cnn_core.text import printable

__all__ = [
    "alike",
    "differ_in_marks",
    "exact_number",
    "has_decimal_comma",
    "number_of",
    "same_names",
    "whole_numbers",
]

# Python reads more as numbers: 1_0, digits of other scripts, nan.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
WHOLE = re.compile(r"(-?\d+)\.0*", re.ASCII)


def number_of(text: str) -> float | None:
    """Return the finite number that a text is, in ASCII digits with a point; else None."""
    number = float(text) if NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def exact_number(text: str) -> Decimal | None:
    """Return the number that a text is, without rounding; else None."""
    if number_of(text) is None:
        return None
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of many digits
        return None


def has_decimal_comma(text: str) -> bool:
    """Return whether a text is a number with a decimal comma, such as 0,5."""
    return text.count(",") == 1 and NUMBER.fullmatch(text.replace(",", ".")) is not None


def whole_numbers(names: Iterable[str]) -> dict[str, str]:
    """Return each name such as 1.0 whose whole number, 1, is among the names, too, with that one.

    Programs write 1.0 for 1 in columns with empty cells.
    """
    known = set(names)
    found = {name: match[1] for name in known if (match := WHOLE.fullmatch(name))}
    return {name: whole for name, whole in found.items() if whole in known}


def alike(names: Iterable[str]) -> list[list[str]]:
    """Return groups of different names that differ only in case or Unicode form, or as numbers.

    Such as Cat and cat, or 1, 01 and 1.0.
    """
    return _groups(names, _plain)


def differ_in_marks(names: Iterable[str]) -> list[list[str]]:
    """Return groups of different names that differ in spaces, hyphens or underscores."""
    groups = _groups(names, lambda name: _plain(_without_marks(name)))
    return [same for same in groups if len({_plain(name) for name in same}) > 1]


def same_names(names: Iterable[str], where: str) -> list[str]:
    """Return faults about different classes whose names are `alike`, one for each kind."""
    kinds: dict[str, list[str]] = {}
    for same in alike(names):
        kinds.setdefault(_difference(same), []).extend(map(printable, same))
    return [f"{where}: classes whose names differ only {how}: {n}" for how, n in kinds.items()]


def _difference(same: Sequence[str]) -> str:
    """Return how names that are alike differ."""
    if len({name.casefold() for name in same}) == 1:
        return "in case"
    if len({unicodedata.normalize("NFKC", name).casefold() for name in same}) == 1:
        return "in case or Unicode form (NFC, NFD)"
    if len({_text(name) for name in same}) == 1:
        return "in characters that are not seen"
    return "in how a number is written"


def _groups(names: Iterable[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    groups: dict[Hashable, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return [same for same in groups.values() if len(same) > 1]


def _plain(name: str) -> Hashable:
    """Return a name without case and Unicode form, or its number."""
    text = _text(name)
    digits = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    number = exact_number(digits)
    return text if number is None else number


def _text(name: str) -> str:
    """Return a name without case, Unicode form and invisible characters."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in folded if unicodedata.category(c) != "Cf")


def _without_marks(name: str) -> str:
    # The hyphen of -1 is a sign.
    return re.sub(r"[\s_]+|(?!^-\d)-", "", name)
