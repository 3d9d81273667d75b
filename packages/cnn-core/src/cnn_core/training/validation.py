"""The images that a run validates on: chosen by the data, kept by runs that start from others."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnn_core.data.dataset import Dataset
from cnn_core.errors import UsageError
from cnn_core.registry.names import base_name
from cnn_core.runs.recipe import Recipe
from cnn_core.runs.run import Run
from cnn_core.training.device import recorded_location
from cnn_core.training.sources import is_run

__all__ = ["count_validated", "described", "require_validation", "with_own_part"]


def described(recipe: Recipe, dataset: Dataset, fingerprint: str) -> dict[str, Any]:
    """Return what a run records of its validation images: their number, and a digest.

    `fingerprint` is that of the dataset. Equal digests mean that the images are the same.
    """
    mask = _validated(recipe, dataset)
    digest = hashlib.sha256(fingerprint.encode() + mask.numpy().tobytes())
    return {"images": int(mask.sum()), "digest": digest.hexdigest()[:16]}


def count_validated(recipe: Recipe, dataset: Dataset) -> int:
    """Return the number of validation images."""
    return int(_validated(recipe, dataset).sum())


def _validated(recipe: Recipe, dataset: Dataset) -> Tensor:
    """Return which of the images of train and val are for validation, bool N."""
    if recipe.fold or "val" not in dataset.splits:
        return dataset.pooled().held_out(*recipe.part())
    counts = [len(dataset.split(name)) for name in ("train", "val")]
    return torch.arange(sum(counts)) >= counts[0]


def with_own_part(recipe: Recipe, dataset: Dataset) -> tuple[Recipe, str]:
    """Return the recipe with the validation images chosen, and a warning for the user, or "".

    If the initial weights are those of a run on the same data, its choice is kept: other images
    would be among those that the weights were trained on.

    Raises:
        UsageError: the recipe chooses images that the run was trained on.
    """
    origin = _origin(recipe)
    own = replace(recipe, split_seed=max(recipe.split_seed, 0))
    if origin is None or base_name(origin.recipe.data) != base_name(recipe.data):
        return own, ""
    recorded = origin.environment()
    if recorded.get("data_fingerprint") != dataset.fingerprint():
        moved = recorded.get("data") != recorded_location(recipe.data)
        return own, "" if moved else (
            f"{origin.path}: {recipe.data} has changed since: it may have been trained on images "
            "that are now for validation"
        )
    kept = replace(
        recipe,
        split_seed=origin.recipe.part()[1] if recipe.split_seed < 0 else recipe.split_seed,
        fold=recipe.fold or origin.recipe.fold,
    )
    return kept, _leak(kept, origin, dataset)


def _origin(recipe: Recipe) -> Run | None:
    """Return the run that the initial weights are from, or None."""
    path = Path(recipe.weights)
    folder = path.parent if path.name == "weights.safetensors" else path
    return Run.open(folder) if recipe.weights and is_run(folder) else None


def _leak(recipe: Recipe, origin: Run, dataset: Dataset) -> str:
    """Return a warning if the run had no validation images; raise if it was trained on ours."""
    theirs, ours = _validated(origin.recipe, dataset), _validated(recipe, dataset)
    count = int((ours & ~theirs).sum())
    if not count:
        return ""
    fact = f"{origin.path}: was trained on {count:,} of {int(ours.sum()):,} validation images"
    if not theirs.any():
        return f"{fact}: expect scores that are too good"
    chosen = {key: getattr(origin.recipe, key) for key in ("validation", "split_seed", "fold")}
    differ = [f"--set {k}={v}" for k, v in chosen.items() if v != getattr(recipe, k)]
    raise UsageError(fact, f"to keep those that it left out: {' '.join(differ)}")


def require_validation(recipe: Recipe, monitor: str, images: int) -> None:
    """Raise UsageError if a setting needs validation images and `images`, their number, is 0."""
    if images:
        return
    needs = {
        f"patience = {recipe.patience}": recipe.patience and monitor.startswith("val/"),
        f"monitor = '{recipe.monitor}'": recipe.monitor.startswith("val/"),
        "evaluate_on = 'val'": recipe.evaluate_on == "val",
        f"fold = '{recipe.fold}'": bool(recipe.fold),
    }
    for setting, needed in needs.items():
        if needed:
            raise UsageError(
                f"{setting} needs validation images, and validation = {recipe.validation:g} holds "
                "out none",
                "set validation higher, or add images in a folder val",
            )
