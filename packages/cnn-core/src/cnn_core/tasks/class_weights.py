"""Training on classes of unequal size: weights of the loss, and an order that draws them equally.

Both use only the images to train on. Evaluation weights all images equally.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cnn_core.data.counter_rng import key_of
from cnn_core.data.splits import Files, Split, Subset
from cnn_core.errors import UsageError
from cnn_core.runs.recipe import Recipe
from cnn_core.text import did_you_mean, printable

__all__ = ["balanced_order", "balanced_weights", "own_targets", "require_known", "with_weights"]


def require_known(recipe: Recipe, classes: Sequence[str]) -> None:
    """Raise UsageError if the recipe weights a class that the dataset does not have."""
    for name in recipe.class_weights if not isinstance(recipe.class_weights, str) else ():
        if name not in classes:
            listed = ", ".join(printable(own) for own in classes[:8])
            raise UsageError(
                f"class_weights: no class '{printable(name)}'{did_you_mean(name, classes)}",
                f"classes: {listed}{', …' if len(classes) > 8 else ''}",
            )


def own_targets(split: Split | Files) -> Tensor:
    """Return the class numbers of a split's samples; a `Subset` shares those of its parent."""
    assert isinstance(split.targets, Tensor)
    return split.targets[split.rows] if isinstance(split, Subset) else split.targets


def balanced_weights(targets: Tensor, num_classes: int) -> Tensor:
    """Return n / (k n_c) for each class c of n_c images: equal total weights, mean 1 over images.

    k counts the classes that have images; the others get weight 0. It is scikit-learn's
    "balanced".
    """
    counts = torch.bincount(targets, minlength=num_classes)
    present = int((counts > 0).sum())
    weights = counts.sum() / (present * counts.clamp(min=1).double())
    return weights.where(counts > 0, 0.0)


def with_weights(split: Split | Files, recipe: Recipe, classes: Sequence[str]) -> Split | Files:
    """Return a split whose images have the weights of their classes, besides their own.

    A table gives the weight of each class it names, and 1 to all others. For multilabel, the
    weights are N x classes: a table weights the images that have a class, and "balanced" makes the
    images with and without a class equal in total. Weights are not scaled: the loss of a batch is
    the mean over its images of weight times loss.
    """
    if not recipe.class_weights:
        return split
    assert isinstance(split.targets, Tensor)
    several = split.targets.ndim == 2
    find = _of_several if several else _of_one
    weights = find(split.targets, own_targets(split), recipe, classes).float()
    if split.weights is not None:
        weights = weights * (split.weights[:, None] if several else split.weights)
    return replace(split, weights=weights)


def _of_one(targets: Tensor, own: Tensor, recipe: Recipe, classes: Sequence[str]) -> Tensor:
    """Return the weights of images of one class each, N; "balanced" counts those of `own`."""
    table = _table(recipe, classes)
    return (balanced_weights(own, len(classes)) if table is None else table)[targets]


def _of_several(targets: Tensor, own: Tensor, recipe: Recipe, classes: Sequence[str]) -> Tensor:
    """Return the weights of images of several classes, N x classes."""
    table = _table(recipe, classes)
    if table is None:
        pairs = [balanced_weights(column.long(), 2) for column in own.T]
        absent, present = torch.stack(pairs, 1).unbind()
    else:
        absent, present = torch.ones_like(table), table
    return present.where(targets.bool(), absent)


def _table(recipe: Recipe, classes: Sequence[str]) -> Tensor | None:
    """Return the weight of each class in the recipe's table, or None if it has none."""
    by_name = recipe.class_weights
    if isinstance(by_name, str):
        return None
    return torch.tensor([by_name.get(name, 1.0) for name in classes])


def balanced_order(targets: Tensor, seed: int, epoch: int) -> Tensor:
    """Return the samples that an epoch draws: as many as there are, equally many of each class.

    The numbers of draws of two classes, and of two images of one class, differ by at most one.
    The order depends only on (seed, epoch), so a resumed run draws the same samples.
    """
    generator = torch.Generator().manual_seed(key_of(seed, epoch, "sampler") >> 1)
    members = [(targets == number).nonzero().squeeze(1) for number in targets.unique()]
    quota, rest = divmod(len(targets), len(members))
    # In each epoch, other randomly chosen classes get one draw more.
    extra = torch.randperm(len(members), generator=generator) < rest
    drawn = [
        _drawn(own, quota + int(more), generator) for own, more in zip(members, extra, strict=True)
    ]
    return torch.cat(drawn)[torch.randperm(len(targets), generator=generator)]


def _drawn(members: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` members in random order; none is repeated before all have been drawn."""
    rounds = -(-count // len(members))
    orders = [torch.randperm(len(members), generator=generator) for _ in range(rounds)]
    return members[torch.cat([members.new_zeros(0), *orders])[:count]]
