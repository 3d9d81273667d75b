"""Translate parameter names between our networks and other libraries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

__all__ = ["KeyMap"]

T = TypeVar("T")


class KeyMap:
    """Renames state-dict keys both ways, with pairs of patterns: (ours, theirs).

    A pattern matches the start of a key, up to a dot or its end; the rest of the key is kept.
    "{b}" stands for a number, the same one on both sides. The first pair that matches is used:

        KeyMap(("stem.conv", "conv1"), ("stage{s}.{b}.f.conv1", "layer{s}.{b}.conv1"))

    Without pairs nothing is renamed. `spare` has the starts of keys that their files may have
    and the model does not use. `beware` is the reason why these files hold another network's
    weights although names and shapes fit; they then load only if the caller names the key map.
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
