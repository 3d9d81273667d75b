"""Tell the labels in the cells of a table: one name, names such as a|b, or a program's list."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from cnn_core.data.readers.columns import SEPARATORS
from cnn_core.data.readers.spelling import number_of

__all__ = ["NO_LABEL", "evident_separator", "list_in", "words"]

# What programs write for an empty cell.
NO_LABEL = ("", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "#N/A", "<NA>", "None", "null", "NULL")

BRACKETS = {"[": "]", "(": ")", "{": "}"}
CALL = re.compile(r"(?:frozenset|array|c)(\(.*\))", re.DOTALL)  # of Python, numpy and R
EMPTY = ("set()", "frozenset()")
SCALAR = re.compile(r"np\.\w+\(([^()]*)\)")  # np.str_('a'), in lists that numpy 2 has filled
QUOTED = r"""[ub]?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
ITEM = re.compile(rf"""({QUOTED}|[^\s,'"()\[\]{{}}:]+)(?:\s*,\s*|\s+|$)""", re.DOTALL)
ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)


def evident_separator(values: Iterable[str]) -> str:
    """Return the key in SEPARATORS of the mark between labels, if cells look like lists, or "".

    They do if most of their words are in other cells, too. Names of classes such as "black cat"
    and "black dog" have spaces: with spaces, one of the words must also be a cell of its own.
    """
    distinct = set(values)
    for name in ("semicolon", "comma", "space"):
        lists = {value: set(words(value, SEPARATORS[name])) for value in distinct}
        counts = Counter(word for words in lists.values() for word in words)
        inside = {word for words in lists.values() if len(words) > 1 for word in words}
        shared = sum(counts[word] > 1 for word in inside)
        if 2 * shared > len(inside) and (name != "space" or inside & distinct):
            return name
    return ""


def words(value: str, mark: str) -> list[str]:
    """Return the texts between marks, without blanks around them and without empty ones."""
    return [word.strip() for word in value.split(mark) if word.strip()]


def list_in(cell: str) -> list[str] | None:
    """Return the items of a list as a program writes it, or None if the cell holds none.

    Such as ['a', 'b'], ("a", "b"), {a,b} and numpy's ['a' 'b']. Items such as None are left out.

    Raises:
        ValueError: the cell has brackets and quotes, but is not a flat list.
    """
    if cell in EMPTY:
        return []
    text = SCALAR.sub(r"\1", cell)
    if call := CALL.fullmatch(text):
        inner = re.sub(r",\s*dtype=[^,]*\)$", ")", call[1])
        text = inner[1:-1].strip() if inner[1:2] in BRACKETS else inner
    if len(text) < 2 or BRACKETS.get(text[0]) != text[-1]:
        return None
    inside = text[1:-1].strip()
    if not re.search(r"""['"]""", inside):
        return _plain_items(inside, text[0])
    items, at = [], 0
    while at < len(inside):
        found = ITEM.match(inside, at)
        if found is None or not _is_item(found[1]):
            raise ValueError(cell)
        items.append(_unquoted(found[1]))
        at = found.end()
    return [item for item in items if item not in NO_LABEL]


def _plain_items(inside: str, bracket: str) -> list[str] | None:
    """Return items without quotes; (a) without a comma is a name, and not a list."""
    if re.search(r"[()\[\]{}]", inside) or (bracket == "(" and inside and "," not in inside):
        return None
    if bracket == "{" and ":" in inside:
        raise ValueError(inside)
    # numpy separates numbers by spaces; a name may have spaces.
    numbers = "," not in inside and all(number_of(word) is not None for word in inside.split())
    items = inside.split() if numbers else words(inside, ",")
    return [item for item in items if item not in NO_LABEL]


def _is_item(text: str) -> bool:
    quoted = text[-1] in "'\""
    return quoted or text in (*NO_LABEL, "True", "False") or number_of(text) is not None


def _unquoted(text: str) -> str:
    """Return a quoted text without quotes and escapes; any other text as it is."""
    if text[-1] not in "'\"":
        return text
    inner = text.lstrip("ub")[1:-1]

    def character(match: re.Match[str]) -> str:
        escape = match[1]
        return chr(int(escape[1:], 16)) if len(escape) > 1 else escape

    return ESCAPE.sub(character, inner).strip()
