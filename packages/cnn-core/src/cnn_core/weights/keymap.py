"""Names of parameters in one library, and in another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

__all__ = ["KeyMap"]

T = TypeVar("T")


class KeyMap:
    """Renames state-dict keys both ways, by pairs of patterns: (ours, theirs).

    A pattern is the beginning of a key, up to a dot or its end; what follows is kept. "{b}"
    stands for a number and means the same number on both sides. The first pair that fits counts:

        KeyMap(("stem.conv", "conv1"), ("stage{s}.{b}.f.conv1", "layer{s}.{b}.conv1"))

    Without pairs nothing is renamed. `spare` are beginnings of keys that their files may have and
    the model does without. `beware` says why files of this naming are another network's, though
    names and shapes fit: they are then loaded only for someone who names the naming.
    """

    def __init__(
        self, *pairs: tuple[str, str], spare: tuple[str, ...] = (), beware: str = ""
    ) -> None:
        self.spare = spare
        self.beware = beware
        self._to_theirs = [(_regex(ours), theirs) for ours, theirs in pairs]
        self._to_ours = [(_regex(theirs), ours) for ours, theirs in pairs]

    def theirs(self, key: str) -> str:
        """Return the other library's name of our key; raises KeyError if no pair fits."""
        return _renamed(key, self._to_theirs)

    def ours(self, key: str) -> str:
        """Return our name of the other library's key; raises KeyError if no pair fits."""
        return _renamed(key, self._to_ours)

    def to_theirs(self, state: Mapping[str, T]) -> dict[str, T]:
        """Return a state dict under the other library's names."""
        return {self.theirs(key): value for key, value in state.items()}

    def to_ours(self, state: Mapping[str, T]) -> dict[str, T]:
        """Return the other library's state dict under our names."""
        return {self.ours(key): value for key, value in state.items()}


def _regex(pattern: str) -> re.Pattern[str]:
    escaped = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(pattern))
    return re.compile(rf"{escaped}(?=\.|$)")


def _renamed(key: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    if not rules:
        return key
    for pattern, template in rules:
        if match := pattern.match(key):
            return template.format(**match.groupdict()) + key[match.end() :]
    raise KeyError(key)
