"""Parameter types that complete in the shell and suggest, without importing torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

from cnn_core.text import did_you_mean

__all__ = ["Choice", "DATASET", "MODEL", "RECIPE", "RegistryName", "VIEW"]


class RegistryName(click.types.StringParamType):
    """The name of something that plugins offer; checked where it is looked up."""

    def __init__(self, kind: str, names: Callable[[], Iterable[str]]) -> None:
        self.name = kind
        self._names = names

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(n) for n in self._names() if n.startswith(incomplete)]


class Choice(click.Choice[str]):
    """A click.Choice that says which value was probably meant."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        message = super().get_invalid_choice_message(value, ctx)
        return message.rstrip(".") + did_you_mean(str(value), self.choices)


def _names_of(catalogue: str) -> Callable[[], Iterable[str]]:
    def names() -> Iterable[str]:
        from cnn_core import registry

        found: Iterable[str] = getattr(registry, catalogue)().names()
        return found

    return names


MODEL = RegistryName("model", _names_of("models"))
DATASET = RegistryName("dataset", _names_of("datasets"))
RECIPE = RegistryName("recipe", _names_of("recipes"))
VIEW = RegistryName("view", _names_of("views"))
