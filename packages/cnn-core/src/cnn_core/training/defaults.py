"""Choose the hyperparameters that neither the user nor a recipe gives.

They are chosen from the network and the images, in this order: the input's size, the batch, the
optimizer with its learning rate, the warm-up. A recipe is never changed: `free` names the keys
that are open.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from cnn_core import registry
from cnn_core.create import create_model
from cnn_core.data.dataset import Dataset
from cnn_core.data.headers import probe_image
from cnn_core.data.splits import Files
from cnn_core.errors import DatasetCorruptError, UsageError
from cnn_core.runs.recipe import Recipe
from cnn_core.training.initial_weights import sizes_of

__all__ = ["FREE", "describe", "with_optimizer", "with_sizes"]

FREE = frozenset(
    {  # the keys that are chosen
        *("image_size", "batch_size", "optimizer", "lr", "weight_decay", "weight_decay_on"),
        *("clip_norm", "warmup_epochs"),
    }
)
# Rates of networks with normalisation. AdamW: Kingma and Ba (2015), algorithm 1. RMSprop's
# momentum of 0.9 adds steps up instead of averaging them, so they become ten times as long.
RATES = {"adamw": 1e-3, "sgd": 0.05, "rmsprop": 1e-4}
WIDE = 1024  # inputs of a unit, above which an unnormalised network gets a lower rate
CLIP_NORM = 1.0
WARMUP = 20  # the warm-up is one step in 20
SIZE_STEP = 32  # pixels; the total stride of most networks
# Largest batches, and pixels of a batch. A U-Net needs far more memory per pixel.
BATCHES = {"classification": (128, 2**21), "segmentation": (16, 2**19)}
SMALLEST_BATCH = {"classification": 16, "segmentation": 2}  # batch norm needs several images
STEPS = 16  # per epoch, at least: otherwise the batches get smaller
PROBES = 64  # images whose size is read if sizes differ
FEW_STEPS = 200


def with_sizes(recipe: Recipe, dataset: Dataset, free: Collection[str]) -> Recipe:
    """Choose `image_size` and `batch_size`, if they are free.

    The input has the network's default size. For smaller images it is reduced in steps of 32
    pixels, for classification to half at most: otherwise feature maps would shrink to one pixel. A
    batch is a power of two: as many images as fit into a fixed number of pixels, and few enough
    for 16 steps in an epoch.
    """
    # Initial weights determine the size, and with tiles images keep theirs.
    if "image_size" in free and not (recipe.weights or recipe.tile):
        recipe = dataclasses.replace(recipe, image_size=_image_size(recipe, dataset))
    if "batch_size" in free:
        size = max(_batch_size(recipe, dataset), recipe.accumulate)
        recipe = dataclasses.replace(recipe, batch_size=size)
    return recipe


def with_optimizer(
    recipe: Recipe, dataset: Dataset, model: nn.Module, free: Collection[str]
) -> Recipe:
    """Choose those of optimizer, rate, weight decay, clipping and warm-up that are free."""
    name = "adamw" if "optimizer" in free else recipe.optimizer
    chosen: dict[str, Any] = {
        "optimizer": name,
        "lr": _rate(name, model),
        # The decay of AdamW is decoupled: its strength does not depend on the gradients.
        "weight_decay": 0.01 if name == "adamw" else recipe.weight_decay,
        "weight_decay_on": "weights" if name == "adamw" else recipe.weight_decay_on,
        "clip_norm": CLIP_NORM,
        # The first rate is 0: with few steps a warm-up would waste one of them.
        "warmup_epochs": recipe.epochs / WARMUP if _steps(recipe, dataset) >= WARMUP else 0.0,
    }
    return dataclasses.replace(recipe, **{key: chosen[key] for key in chosen.keys() & free})


def describe(recipe: Recipe, dataset: Dataset, free: Collection[str]) -> str:
    """Return lines that say what was chosen, and what may be unexpected; "" if nothing was."""
    if not free:
        return ""
    sides = _text(_probed_size(dataset))
    texts = {
        "optimizer": recipe.optimizer,
        "lr": f"lr {recipe.lr:g}",
        "warmup_epochs": f"warmup_epochs {recipe.warmup_epochs:g}" if recipe.warmup_epochs else "",
        "clip_norm": f"clip_norm {recipe.clip_norm:g}",
        "batch_size": f"batch_size {recipe.batch_size}",
        "image_size": f"image_size {recipe.image_size} for images of {sides}",
    }
    if not recipe.image_size:
        del texts["image_size"]
    chosen = ", ".join(text for key, text in texts.items() if key in free and text)
    notes = [_squashed(recipe, dataset), _too_short(recipe, dataset)]
    first = f"no recipe for {recipe.model} on {recipe.data}, so chosen: {chosen}"
    return "\n".join([first, *filter(None, notes)])


def _squashed(recipe: Recipe, dataset: Dataset) -> str:
    """Say that images lose their shape, if they do."""
    height, width = _probed_size(dataset)
    if height == width or recipe.tile or (recipe.fit or dataset.spec.fit) != "resize":
        return ""
    classification = dataset.spec.task == "classification"
    kept = "--set fit=crop" if classification else f"--set tile={recipe.image_size or 256}"
    return (
        f"images are squashed from {_text((height, width))} to a square; {kept} keeps their shape"
    )


def _too_short(recipe: Recipe, dataset: Dataset) -> str:
    """Say that the training is short, if it is."""
    steps = _steps(recipe, dataset)
    if steps >= FEW_STEPS:
        return ""
    return f"{steps} steps in all are few for training from scratch: --epochs N trains longer"


def _text(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _rate(optimizer: str, model: nn.Module) -> float:
    """Return the learning rate: lower for wide layers in a network without normalisation.

    An optimizer that divides by the size of gradients moves every weight by about the rate. A sum
    over n inputs then moves by the rate times the square root of n, and nothing normalises it.
    """
    rate = RATES[optimizer]
    if any(isinstance(module, NORMALISED) for module in model.modules()):
        return rate
    widest = max((p[0].numel() for p in model.parameters() if p.ndim > 1), default=1)
    return float(f"{rate * min(math.sqrt(WIDE / widest), 1):.1g}")


NORMALISED = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def _image_size(recipe: Recipe, dataset: Dataset) -> int:
    """Return the side of the network's input for these images; 0 if its input is not square."""
    spec = registry.get_spec(recipe.model)
    default, largest = spec.input[1], max(_probed_size(dataset))
    if spec.input[1] != spec.input[2]:
        return 0
    smallest = default / 2 if spec.task == "classification" else SIZE_STEP
    needed = max(largest, spec.min_size, math.ceil(smallest))
    size = default - max(default - needed, 0) // SIZE_STEP * SIZE_STEP
    return size if size == default or _trains_at(recipe, dataset, size) else default


def _trains_at(recipe: Recipe, dataset: Dataset, size: int) -> bool:
    """Whether the network takes images of this size in train mode, with its auxiliary heads."""
    try:
        with torch.device("meta"):  # shapes only, which costs next to nothing
            model = create_model(recipe.model, **sizes_of(dataset), **recipe.options)
            model.train()(torch.empty(2, dataset.spec.image[0], size, size))
    except UsageError:
        return False
    except Exception:  # a network that cannot run on shapes alone
        return True
    return True


def _probed_size(dataset: Dataset) -> tuple[int, int]:
    """Return the (height, width) of the images, or the medians if sizes differ."""
    height, width = dataset.spec.image[1:]
    train = dataset.split("train")
    if height or not isinstance(train, Files):
        return height, width
    sizes = []
    for path in train.images[:: max(len(train) // PROBES, 1)]:
        try:
            sizes.append(probe_image(path)[:2])
        except DatasetCorruptError:  # reported when it is decoded
            continue
    if not sizes:
        return 0, 0
    heights, widths = zip(*sizes, strict=True)
    return statistics.median_low(heights), statistics.median_low(widths)


def _batch_size(recipe: Recipe, dataset: Dataset) -> int:
    spec = registry.get_spec(recipe.model)
    side = recipe.tile or recipe.image_size or spec.input[1]
    largest, pixels = BATCHES[spec.task]
    fitting = min(largest, pixels // side**2, _training_images(recipe, dataset) // STEPS)
    smallest = SMALLEST_BATCH[spec.task]
    return max(1 << (max(fitting, 1).bit_length() - 1), smallest)


def _training_images(recipe: Recipe, dataset: Dataset) -> int:
    held_out = 0.0 if "val" in dataset.splits else recipe.validation
    return math.ceil(len(dataset.split("train")) * (1 - held_out))


def _steps(recipe: Recipe, dataset: Dataset) -> int:
    """Return the number of steps of the whole training."""
    return recipe.epochs * math.ceil(_training_images(recipe, dataset) / recipe.batch_size)
