"""What `lr-find` and `batch-find` start from: the same as a training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from cnn_core.training.setup import Setup

__all__ = ["prepared"]


def prepared(
    model: str,
    data: str,
    recipe: str | None,
    settings: tuple[str, ...],
    data_dir: Path | None,
    device: str,
) -> tuple[Setup, torch.device]:
    """Return what `cnnzoo train` with these arguments would begin with, and where."""
    from cnn_core.data.dataset import load_dataset
    from cnn_core.runs.recipe import parse_settings
    from cnn_core.training.allocator import keep_memory
    from cnn_core.training.device import choose_device
    from cnn_core.training.setup import find_recipe, set_up

    chosen = find_recipe(model, data, recipe, parse_settings(settings))
    where = choose_device(device)
    if where.type == "cpu":
        keep_memory()
    return set_up(chosen, load_dataset(chosen.data, data_dir=data_dir), where), where
