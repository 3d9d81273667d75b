"""Translate state-dict keys between our networks and other libraries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

__all__ = ["KeyMap"]

T = TypeVar("T")


class KeyMap:
    """Rename state-dict keys in both directions, with pairs of patterns: (ours, theirs).

    A pattern matches the start of a key, up to a dot or the end of the key; the rest is kept.
    "{b}" stands for a number, the same on both sides. The first pair that matches is used:

        KeyMap(("stem.conv", "conv1"), ("stage{s}.{b}.f.conv1", "layer{s}.{b}.conv1"))

    Without pairs nothing is renamed. `ignored_prefixes` are prefixes of keys in their files that
    the model does not use. A `warning` explains why their weights are for a different network
    although names and shapes match; the weights then load only if the caller names the key map.
    `options` are arguments of the model's constructor, such as another activation, with which it
    computes the same as their network; options of the caller take precedence. `preprocessing` are
    the fields of `cnn_core.data.Preprocessing` with which that library trains, without the sizes;
    they are used for files whose own preprocessing is unknown. `timm` is timm's name of the
    network, if timm has it under these names; timm can then read what `cnnzoo push` uploads.
    """

    def __init__(
        self,
        *pairs: tuple[str, str],
        ignored_prefixes: tuple[str, ...] = (),
        warning: str = "",
        options: Mapping[str, Any] | None = None,
        preprocessing: Mapping[str, Any] | None = None,
        timm: str = "",
    ) -> None:
        self.ignored_prefixes = ignored_prefixes
        self.warning = warning
        self.options: dict[str, Any] = dict(options or {})
        self.preprocessing: dict[str, Any] = dict(preprocessing or {})
        self.timm = timm
        self._to_theirs = [(_regex(ours), theirs) for ours, theirs in pairs]
        self._to_ours = [(_regex(theirs), ours) for ours, theirs in pairs]

    def theirs(self, key: str) -> str:
        """Return the other library's name for our key; raise KeyError if no pair matches."""
        return _renamed(key, self._to_theirs)

    def ours(self, key: str) -> str:
        """Return our name for the other library's key; raise KeyError if no pair matches."""
        return _renamed(key, self._to_ours)

    def to_theirs(self, state: Mapping[str, T]) -> dict[str, T]:
        """Return our state dict with the other library's names."""
        return {self.theirs(key): value for key, value in state.items()}

    def to_ours(self, state: Mapping[str, T]) -> dict[str, T]:
        """Return the other library's state dict with our names."""
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
