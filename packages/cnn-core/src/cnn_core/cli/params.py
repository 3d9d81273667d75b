"""Click parameter types with shell completion, and options shared by several commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cnn_core.text import did_you_mean

__all__ = [
    "Choice",
    "DATASET",
    "MODEL",
    "RECIPE",
    "RegistryName",
    "VIEW",
    "data_dir_option",
    "device_option",
]


class RegistryName(click.types.StringParamType):
    """A name registered by a plugin. Not validated by click; the registry lookup does that."""

    def __init__(self, kind: str, names: Callable[[], Iterable[str]]) -> None:
        self.name = kind
        self._names = names

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(n) for n in self._names() if n.startswith(incomplete)]


class Choice(click.Choice[str]):
    """A click.Choice that suggests the nearest value."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        message = super().get_invalid_choice_message(value, ctx)
        return message.rstrip(".") + did_you_mean(str(value), self.choices)


def _names_of(catalogue: str) -> Callable[[], Iterable[str]]:
    def names() -> Iterable[str]:
        from cnn_core import registry

        found: Iterable[str] = getattr(registry, catalogue)().names()
        return found

    return names


Decorator = Callable[[Any], Any]

MODEL = RegistryName("model", _names_of("models"))
DATASET = RegistryName("dataset", _names_of("datasets"))
RECIPE = RegistryName("recipe", _names_of("recipes"))
VIEW = RegistryName("view", _names_of("views"))

data_dir_option: Decorator = click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Directory that contains the dataset."
)
device_option: Decorator = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Device to run on: auto, cpu, cuda, cuda:N or mps.",
)
