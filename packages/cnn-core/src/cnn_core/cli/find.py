"""What `lr-find` and `batch-find` share: they start as a training does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cnn_core.cli.params import DATASET, MODEL, RECIPE, data_dir_option, device_option

__all__ = ["finder"]

OPTIONS = (
    click.argument("model", type=MODEL),
    click.option("--data", type=DATASET, required=True, help="The dataset."),
    click.option("--recipe", type=RECIPE, help="A recipe's name, or a TOML file."),
    click.option(
        "--set", "settings", metavar="KEY=VALUE", multiple=True, help="Set a recipe key."
    ),
    data_dir_option,
    device_option,
)


def finder(search: Callable[..., None]) -> Callable[..., None]:
    """Add the options that choose a training; call `search` with the training's `Setup`."""

    @functools.wraps(search)
    def command(
        *,
        model: str,
        data: str,
        recipe: str | None,
        settings: tuple[str, ...],
        data_dir: Path | None,
        device: str,
        **own: Any,
    ) -> None:
        from cnn_core.data.dataset import load_dataset
        from cnn_core.runs.recipe import parse_settings
        from cnn_core.training.allocator import keep_memory
        from cnn_core.training.device import choose_device
        from cnn_core.training.setup import find_recipe, set_up

        chosen = find_recipe(model, data, recipe, parse_settings(settings))
        where = choose_device(device)
        if where.type == "cpu":
            keep_memory()
        search(set_up(chosen, load_dataset(chosen.data, data_dir=data_dir), where), **own)

    for option in reversed(OPTIONS):
        command = option(command)
    return command
