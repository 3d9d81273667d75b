"""Click parameter types with shell completion, and options shared by several commands."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cnn_core.files import expanded
from cnn_core.text import did_you_mean

__all__ = [
    "Choice",
    "DATASET",
    "MODEL",
    "PATH",
    "PathType",
    "RECIPE",
    "RegistryName",
    "SOURCE",
    "Source",
    "VIEW",
    "data_dir_option",
    "data_option",
    "device_option",
    "optimize_options",
    "source_options",
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


class PathType(click.Path):
    """A path in which a leading "~" stands for the home folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path with the home folder in place of "~"."""
        return super().convert(expanded(value), param, ctx)


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


class Source(click.types.StringParamType):
    """A trained network: a path or a name. Opening it validates it."""

    name = "source"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the source with the home folder in place of "~"."""
        return os.path.expanduser(super().convert(value, param, ctx))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        names = _names_of("weights")() if incomplete and "/" not in incomplete else ()
        found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        # "file" lets the shell complete paths.
        return found or [CompletionItem(incomplete, type="file")]


SOURCE = Source()
PATH = PathType(path_type=Path)
MODEL = RegistryName("model", _names_of("models"))
DATASET = RegistryName("dataset", _names_of("datasets"))
RECIPE = RegistryName("recipe", _names_of("recipes"))
VIEW = RegistryName("view", _names_of("views"))

data_dir_option: Decorator = click.option(
    "--data-dir", type=PATH, help="Directory that contains the dataset."
)
device_option: Decorator = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Device to run on: auto, cpu, cuda, cuda:N or mps.",
)
data_option: Decorator = click.option(
    "--data",
    type=DATASET,
    metavar="DATASET",
    help="Use this dataset instead of the one in training; classes are matched by name.",
)


def source_options(command: Any) -> Any:
    """Add the options that say how to open a source: --model, --naming and --download."""
    options = (
        click.option(
            "--model",
            default="",
            help="The network of a weights file of another library: MODEL, or MODEL:NAME of the "
            "published weights with the same classes and preprocessing.",
        ),
        click.option(
            "--naming",
            help="The library whose parameter names the weights file has; NAMING@PREFIX also says "
            "which of several state dicts to take.",
        ),
        click.option(
            "--download",
            is_flag=True,
            help="Fetch published weights that are missing, or the newest files of hf:OWNER/NAME.",
        ),
    )
    return functools.reduce(
        lambda decorated, option: option(decorated), reversed(options), command
    )


def optimize_options(command: Any) -> Any:
    """Add the options of faster inference: --optimize, --precision and --compile."""
    options = (
        click.option(
            "--optimize",
            is_flag=True,
            help="Fold batch normalisation and repack the weights: faster, with outputs equal to "
            "1e-4 of the largest one.",
        ),
        click.option(
            "--precision",
            type=Choice(["fp32", "bf16"]),
            default="fp32",
            show_default=True,
            help="Precision of the optimised network; bf16 needs hardware with bf16 instructions.",
        ),
        click.option(
            "--compile", is_flag=True, help="Compile the optimised network; takes a minute."
        ),
    )
    return functools.reduce(
        lambda decorated, option: option(decorated), reversed(options), command
    )
