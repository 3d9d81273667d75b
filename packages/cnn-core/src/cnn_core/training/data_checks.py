"""What a run says about its data before the first epoch, and what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import functional_call

from cnn_core.data.batching import batch_sizes
from cnn_core.data.dataset import Dataset
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.data.splits import Files, Split
from cnn_core.errors import UsageError
from cnn_core.runs.recipe import Recipe
from cnn_core.tasks.class_weights import own_targets
from cnn_core.text import counted, printable
from cnn_core.training.setup import Setup

__all__ = ["checked", "class_counts"]

IMBALANCED = 5  # times as many images in one class as in another
SHOWN = 5  # class names in a line
SCORE = {"classification": "balanced_accuracy", "multilabel": "map"}


def checked(setup: Setup, *, show: bool = True) -> Setup:
    """Return the setup of a new run, after printing what its images are like if `show`.

    Raises:
        UsageError: a batch is too small for batch normalisation.
    """
    if show:
        for line in _lines(setup):
            print(line, file=sys.stderr)
    _require_normalisable_batches(setup)
    return setup


def _no_validation(setup: Setup) -> str:
    """Return why there are no validation images."""
    fraction = setup.recipe.validation
    if fraction == 0:
        return "validation = 0"
    each = " of each class" if class_counts(setup.train, 1) else ""
    images = counted(len(setup.train), "image")
    return (
        f"a fraction of {fraction:g}{each} rounds to none of {images}; set "
        "validation higher, or add a folder val"
    )


def _lines(setup: Setup) -> Iterator[str]:
    """Yield lines for the user: files left out, classes, validation, constant channels."""
    dataset = setup.dataset
    for lines in (dataset.faults, dataset.notes):
        if lines:
            yield printable("; ".join(lines))
    yield from _spread(setup)
    if len(setup.validation) == 0:
        why = _no_validation(setup)
        yield f"no validation: {why}; the weights of the last epoch are kept"
    yield from _statistics(setup.preprocessing, setup.recipe, dataset)


def class_counts(split: Split | Files, classes: int) -> list[int]:
    """Return the number of images of each class, or [] for masks."""
    targets = split.targets
    if not isinstance(targets, Tensor) or targets.ndim > 2:
        return []
    own = own_targets(split)
    if own.ndim == 2:  # images x classes
        return own.sum(0, dtype=torch.int64).tolist()
    return own.bincount(minlength=classes).tolist()


def _spread(setup: Setup) -> Iterator[str]:
    """Yield the number of images of each part, and what is rare in the training images."""
    names = setup.dataset.spec.classes
    test = setup.dataset.splits.get("test", ())
    parts = {"train": setup.train, "validation": setup.validation, "test": test}
    counts = {
        name: class_counts(part, len(names))
        for name, part in parts.items()
        if not isinstance(part, tuple)
    }
    texts = [
        f"{name} {len(part):,}" + (f" ({_range(counts[name])})" if counts.get(name) else "")
        for name, part in parts.items()
        if len(part)
    ]
    yield f"images: {', '.join(texts)}"
    found = counts["train"]
    if found and max(found) >= IMBALANCED * max(min(found), 1):
        *rarer, most = sorted(range(len(names)), key=found.__getitem__)
        listed = [f"{printable(names[n])} {found[n]:,}" for n in (*rarer[:SHOWN], most)]
        if len(rarer) > SHOWN:
            listed.insert(SHOWN, "…")
        yield (
            f"imbalanced training images: {', '.join(listed)}; accuracy hides rare classes, "
            f"{SCORE[setup.dataset.spec.task]} does not"
        )
    for name in ("validation", "test"):
        absent = [printable(names[n]) for n, count in enumerate(counts.get(name, ())) if not count]
        if absent and len(parts[name]):
            some = ", ".join(absent[:SHOWN]) + (", …" if len(absent) > SHOWN else "")
            yield f"no image of {len(absent)} of {len(names)} classes in {name}: {some}"


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,} of each class" if low == high else f"{low:,} to {high:,} of a class"


def _statistics(preprocessing: Preprocessing, recipe: Recipe, dataset: Dataset) -> Iterator[str]:
    """Yield a line on mean and standard deviation that were computed from the images."""
    if (recipe.mean and recipe.std) or (dataset.spec.mean and dataset.spec.std):
        return
    mean, std = (
        ", ".join(f"{value:.4f}" for value in values)
        for values in (preprocessing.mean, preprocessing.std)
    )
    yield f"mean {mean}; standard deviation {std}"
    # Images in [0, 1] have at most 0.5.
    constant = [str(n) for n, value in enumerate(preprocessing.std, 1) if value == 1]
    if constant and not recipe.std:
        yield (
            f"channel {', '.join(constant)} of {len(preprocessing.std)} has nearly the same value "
            "in all training images: it is not scaled (standard deviation 1)"
        )


def _require_normalisable_batches(setup: Setup) -> None:
    """Raise UsageError if batch normalisation would get a single value per channel.

    It fails on one image whose feature maps have become 1x1.
    """
    recipe, preprocessing = setup.recipe, setup.preprocessing
    if _smallest_batch(setup) > 1 or (recipe.sync_batchnorm and setup.world.size > 1):
        return
    setup.train_state.train()
    # Shapes are enough, so nothing is computed and no statistics change.
    state = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in setup.model.state_dict().items()
    }
    images = torch.empty(1, setup.dataset.spec.image[0], *preprocessing.size, device="meta")
    try:
        with torch.no_grad():
            functional_call(setup.model, state, images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            return
        raise UsageError(
            f"{_single(setup)}: batch normalisation in {recipe.model} needs more than one value "
            f"per channel, and feature maps become 1x1 at {_size(preprocessing)} pixels",
            "use batch_size = 2 or more, a larger image_size, or freeze_batchnorm = true",
        ) from error
    except Exception:  # a plugin's network that cannot run on shapes alone
        return


def _smallest_batch(setup: Setup) -> int:
    """Return the number of images in the smallest forward pass of an epoch."""
    sizes = batch_sizes(len(setup.train), setup.recipe.batch_size, training=True)
    shards = {max(size // setup.world.size, 1) for size in sizes}
    micro = setup.micro_batch_size
    return min(
        min(batch_sizes(shard, micro, training=True)) if micro < shard else shard
        for shard in shards
    )


def _single(setup: Setup) -> str:
    """Return why a forward pass has one image."""
    recipe = setup.recipe
    if len(setup.train) == 1:
        return f"one training image, batch_size = {recipe.batch_size}"
    text = f"batch_size = {recipe.batch_size}"
    if recipe.accumulate > 1:
        text += f", accumulate = {recipe.accumulate}"
    return text + (f", {setup.world.size} processes" if setup.world.size > 1 else "")


def _size(preprocessing: Preprocessing) -> str:
    return "x".join(map(str, preprocessing.size))
