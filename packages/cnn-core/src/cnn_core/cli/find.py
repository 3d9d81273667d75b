"""The options and setup that `lr-find` and `batch-find` share."""

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
    click.option("--recipe", type=RECIPE, help="Name of a recipe, or a TOML file."),
    click.option(
        "--set", "settings", metavar="KEY=VALUE", multiple=True, help="Set a recipe key."
    ),
    data_dir_option,
    device_option,
)


def finder(search: Callable[..., None]) -> Callable[..., None]:
    """Decorate `search`: add the options of a training run, and call it with their `Setup`."""

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
        from cnn_core.training.data_checks import checked
        from cnn_core.training.device import choose_device
        from cnn_core.training.setup import find_recipe, free_keys, set_up

        keys = parse_settings(settings)
        chosen = find_recipe(model, data, recipe, keys)
        free = free_keys(model, data, recipe, keys)
        chosen_device = choose_device(device)
        if chosen_device.type == "cpu":
            keep_memory()
        dataset = load_dataset(chosen.data, data_dir=data_dir)
        setup = set_up(chosen, dataset, chosen_device, free=free)
        search(checked(setup, show=False), **own)

    for option in reversed(OPTIONS):
        command = option(command)
    return command
