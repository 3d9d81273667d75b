"""Segmentation: losses, and metrics over all pixels of a split, never averaged per batch.

Targets are uint8, N H W; pixels of 255 count in nothing. A network without padding gives logits
for the centre of its input: of targets, the same centre counts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.augment import IGNORED, Mix
from cnn_core.errors import UsageError
from cnn_core.runs.recipe import Recipe
from cnn_core.tasks.classification import Loss, Outputs

__all__ = [
    "MeanIoU",
    "PixelAccuracy",
    "centred",
    "classes_of",
    "confusion",
    "loss_function",
    "two_sided",
]


def centred(targets: Tensor, logits: Tensor) -> Tensor:
    """Return the centre of targets, N H W, that logits, N classes h w, are for."""
    height, width = logits.shape[-2:]
    top, left = (targets.shape[-2] - height) // 2, (targets.shape[-1] - width) // 2
    return targets[..., top : top + height, left : left + width]


def loss_function(recipe: Recipe) -> Loss:
    """Return the loss that the recipe names, over the pixels that count of a whole batch.

    Pixels count by their weights, where they have some. "bce" and "dice_ce" are sums of losses.

    Raises:
        UsageError: the recipe wants what only whole images can have.
    """
    if recipe.loss == "map":
        raise UsageError(f"loss = '{recipe.loss}' is for classification")
    if recipe.mixup or recipe.cutmix or recipe.policy:
        raise UsageError("mixup, cutmix and policy are for classification")
    if recipe.loss in OVERLAPS and (recipe.balance or recipe.border_weight):
        raise UsageError(f"loss = '{recipe.loss}' weighs no pixels: no balance, no border_weight")

    def loss(
        outputs: Outputs,
        targets: Tensor,
        mix: Mix | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        targets = centred(targets, logits)
        counted = (targets != IGNORED).float()
        weights = counted if weights is None else counted * centred(weights, logits)
        return LOSSES[recipe.loss](logits.float(), targets.long(), weights, recipe)

    return loss


def two_sided(logits: Tensor) -> Tensor:
    """Return logits of two classes, [0, x], where there is one channel x; others as they are."""
    return logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], 1)


def classes_of(logits: Tensor) -> Tensor:
    """Return the class of the highest logit, N h w, the first of several; N classes h w."""
    return logits.max(1).indices  # argmax(1) is the same, and ten times slower over channels


def confusion(predicted: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Return pixels of each class taken for each: classes x classes, targets down."""
    pairs = targets.long() * num_classes + predicted
    pairs = pairs.masked_fill_(targets == IGNORED, num_classes**2)
    found = torch.bincount(pairs.flatten(), minlength=num_classes**2 + 1)
    return found[:-1].view(num_classes, -1)


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """Cross-entropy, mean over pixels by their weights (Ronneberger et al. 2015, Eq. 1)."""
    return _mean(_entropy(logits, targets, recipe.label_smoothing), weights)


def bce(logits: Tensor, targets: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """Binary cross-entropy of each class against all others, summed over classes.

    Where there is one channel, of class 1: sigmoid cross-entropy.
    """
    wanted = _one_hot(targets, two_sided(logits))[:, -logits.shape[1] :]
    each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return _mean(each.sum(1), weights)


def focal(logits: Tensor, targets: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """(1 - p)^gamma times cross-entropy, p the right class's (Lin et al. 2017, Eq. 4)."""
    log_p = -_entropy(logits, targets)
    return _mean(-((1 - log_p.exp()).clamp(min=0) ** recipe.focal_gamma) * log_p, weights)


def dice(logits: Tensor, targets: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """1 - soft Dice, mean over the classes that targets have (Milletari et al. 2016, section 3).

    With sums, not squares, below: that is Tversky's index with both costs one half.
    """
    return _tversky(logits, targets, weights, 0.5, 0.5)


def tversky(logits: Tensor, targets: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """1 - TP / (TP + a FP + b FN), softly, mean over classes (Salehi et al. 2017, Eq. 3)."""
    return _tversky(logits, targets, weights, *recipe.tversky)


def dice_ce(logits: Tensor, targets: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """Soft Dice loss and cross-entropy, added (Isensee et al. 2021, nnU-Net)."""
    entropy = cross_entropy(logits, targets, weights, recipe)
    return dice(logits, targets, weights, recipe) + entropy


Term = Callable[[Tensor, Tensor, Tensor, Recipe], Tensor]
LOSSES: dict[str, Term] = {
    f.__name__: f for f in (cross_entropy, bce, focal, dice, tversky, dice_ce)
}
OVERLAPS = ("dice", "tversky", "dice_ce")


def _mean(each: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of pixels by their weights; of none, 0 and not NaN."""
    total = weights.sum()
    return (each * weights).sum() / total.where(total > 0, 1.0)


def _entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of each pixel, N h w; 0 of ignored ones."""
    return F.cross_entropy(
        two_sided(logits),
        targets,
        ignore_index=IGNORED,
        label_smoothing=smoothing,
        reduction="none",
    )


def _one_hot(targets: Tensor, logits: Tensor) -> Tensor:
    """Return targets, N h w, as zeros and ones, N classes h w; ignored pixels are of class 0."""
    numbers = targets.where(targets != IGNORED, 0)
    return torch.zeros_like(logits).scatter_(1, numbers[:, None], 1.0)


def _tversky(
    logits: Tensor, targets: Tensor, weights: Tensor, false: float, missed: float
) -> Tensor:
    logits, weights = two_sided(logits), weights[:, None]
    p, wanted = logits.softmax(1) * weights, _one_hot(targets, logits) * weights
    found = (p * wanted).sum((0, 2, 3))
    costs = false * (p.sum((0, 2, 3)) - found) + missed * (wanted.sum((0, 2, 3)) - found)
    there = wanted.sum((0, 2, 3)) > 0
    ratios = found / (found + costs).where(there, 1.0)
    return ((1 - ratios) * there).sum() / there.sum().clamp(min=1)


class Confusion:
    """How many pixels of each class were taken for each: classes x classes, targets down."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.sums: Tensor = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Take a batch: logits N x classes x h x w, targets N x H x W."""
        logits, targets = two_sided(logits), centred(targets, logits)
        found = confusion(classes_of(logits), targets, self.num_classes)
        self.sums = self.sums.to(found.device) + found


class PixelAccuracy(Confusion):
    """Fraction of pixels whose class has the highest logit; of no pixels, 0."""

    def compute(self) -> float:
        """Return the fraction for all batches so far."""
        return float(self.sums.diagonal().sum()) / max(int(self.sums.sum()), 1)


class MeanIoU(Confusion):
    """Intersection over union of each class, over the whole split; mean of the classes there.

    A class that neither targets nor predictions have counts in nothing; of no class, 0.
    """

    def compute(self) -> float:
        """Return the mean for all batches so far."""
        both = self.sums.diagonal().double()
        either = self.sums.sum(0) + self.sums.sum(1) - self.sums.diagonal()
        there = either > 0
        return float((both[there] / either[there]).mean()) if there.any() else 0.0
