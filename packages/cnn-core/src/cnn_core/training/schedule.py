"""Learning rates over time."""

from __future__ import annotations

import itertools
import math

from cnn_core.training.recipe import Recipe

__all__ = ["learning_rate"]


def learning_rate(recipe: Recipe, time: float) -> float:
    """Return the learning rate after `time` epochs, a fraction within an epoch included.

    Warm-up rises linearly from 0 to `lr` over `warmup_epochs`. "cosine" (Loshchilov and
    Hutter 2017, arXiv:1608.03983, Eq. 5, without restarts) falls over what remains.
    """
    if time < recipe.warmup_epochs:
        return recipe.lr * time / recipe.warmup_epochs
    if recipe.schedule == "step":
        factors = itertools.cycle(recipe.step_factors)
        steps = zip(recipe.step_epochs, factors, strict=False)
        return recipe.lr * math.prod(factor for epoch, factor in steps if time >= epoch)
    if recipe.schedule == "cosine":
        remaining = max(recipe.epochs - recipe.warmup_epochs, 1e-12)
        progress = min((time - recipe.warmup_epochs) / remaining, 1.0)
        fall = (1 + math.cos(math.pi * progress)) / 2
        return recipe.final_lr + (recipe.lr - recipe.final_lr) * fall
    return recipe.lr
