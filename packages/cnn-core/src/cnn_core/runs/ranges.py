"""Ranges of recipe keys, such as "lr=0.001..0.1:log", and random draws from them. No torch."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnn_core.errors import UsageError
from cnn_core.runs.recipe import Recipe, parse_setting, require_key
from cnn_core.text import counted, printable

__all__ = ["Range", "draw_cells", "parse_range"]

DIGITS = 4  # significant, of a value: more would only make the names of runs longer
TRIES = 100  # for each combination, to find one that was not drawn before
_RANGE = re.compile(r"\s*([^,\s.\[\]]\S*?)\.\.([^:,\[\]]+)(?::(.*))?", re.DOTALL)
_NUMBERS = {"int": int, "float": float}


@dataclass(frozen=True)
class Range:
    """The values of a recipe key from `low` to `high`, both included.

    They are integers if both ends are, else floats. With `log`, the logarithms of the values are
    uniform, so that each factor of ten is as likely as any other.

    Raises:
        UsageError: `low` is not below `high`, or not positive with `log`.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UsageError(f"{self}: expected a lower and a higher number")
        if self.log and self.low <= 0:
            raise UsageError(f"{self}: a logarithmic range is above 0", "leave out :log")

    def __str__(self) -> str:
        return f"{self.low:.10g}..{self.high:.10g}{':log' * self.log}"

    @property
    def whole(self) -> bool:
        """Whether the values are integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def draw(self, rng: random.Random) -> float:
        """Return a random value."""
        # Integers are drawn from the intervals of size 1 that begin with them.
        high = self.high + 1 if self.whole else self.high
        if self.log:
            return self.value(math.exp(rng.uniform(math.log(self.low), math.log(high))))
        return self.value(rng.uniform(self.low, high))

    def value(self, drawn: float) -> float:
        """Return a drawn number as a value: an integer, or rounded to four significant digits."""
        rounded = math.floor(drawn) if self.whole else float(f"{drawn:.{DIGITS}g}")
        return min(max(rounded, self.low), self.high)


def parse_range(text: str) -> tuple[str, Range] | None:
    """Parse "key=low..high" or "key=low..high:log"; return None if the text has no range.

    The values of a key that is an integer are integers; those of an option of the network are, if
    both ends are.

    Raises:
        UsageError: the key is unknown or no number, or the range is not a range of its numbers.
    """
    key, _, values = text.partition("=")
    match = _RANGE.fullmatch(values)
    if match is None or not (_is_number(match[1]) and _is_number(match[2])):
        return None
    require_key(parse_setting(text)[0])
    key, scale = key.strip(), match[3]
    if scale not in (None, "log"):
        raise UsageError(f"'{printable(text)}': ':{printable(scale)}' is no scale", "only :log is")
    low, high = _ends(key, match[1], match[2])
    return key, Range(low, high, log=scale == "log")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _ends(key: str, *texts: str) -> tuple[float, ...]:
    """Return the ends of a range as the numbers that the key has."""
    whole = all(re.fullmatch(r"\s*[+-]?[0-9]+\s*", text) for text in texts)
    types = {field.name: str(field.type) for field in dataclasses.fields(Recipe)}
    kind = types.get(key, "int" if whole else "float")  # of options: as they are written
    if kind not in _NUMBERS:
        raise UsageError(f"{key}: a range is of numbers", f"{key}=VALUE,VALUE lists values")
    if kind == "int" and not whole:
        raise UsageError(f"{key} = {'..'.join(texts)}: expected integers")
    return tuple(_NUMBERS[kind](text) for text in texts)


def draw_cells(
    grid: Mapping[str, Sequence[Any] | Range], count: int, seed: int
) -> list[dict[str, Any]]:
    """Return `count` different random combinations, of values and of values in ranges.

    They depend only on the grid and the seed, and more of them begin with the same ones.

    Raises:
        UsageError: there are not so many.
    """
    rng, found = random.Random(seed), dict[str, dict[str, Any]]()
    for _ in range(TRIES * count):
        cell = {
            key: values.draw(rng) if isinstance(values, Range) else rng.choice(values)
            for key, values in grid.items()
        }
        found.setdefault(repr(cell), cell)
        if len(found) == count:
            return list(found.values())
    raise UsageError(f"samples = {count}: there are only {counted(len(found), 'combination')}")
