"""Segmentation: losses, and metrics over all pixels of a split.

Targets are uint8, N H W; pixels of 255 are ignored. A network without padding gives logits for
the centre of its input only, so targets are cropped to the same centre.

Metrics come from integer counts of pixels, which add up exactly in any order. IoU is a ratio of
such counts: a mean of the IoUs of batches would be another number, and depend on the batch size.
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
    "center_crop",
    "confusion_matrix",
    "loss_function",
    "predicted_classes",
    "two_class_logits",
]


def center_crop(targets: Tensor, logits: Tensor) -> Tensor:
    """Crop targets, … H W, to the centre that logits, N classes h w, are for."""
    height, width = logits.shape[-2:]
    top, left = (targets.shape[-2] - height) // 2, (targets.shape[-1] - width) // 2
    return targets[..., top : top + height, left : left + width]


def loss_function(recipe: Recipe) -> Loss:
    """Return the recipe's loss for segmentation, over all pixels of a batch but ignored ones.

    Pixels are weighted by their weights, if there are any. "bce" is summed over classes, and
    "dice_ce" is the sum of two losses.

    Raises:
        UsageError: a setting of the recipe is for classification, or does not fit the loss.
    """
    if recipe.loss == "map":
        raise UsageError(f"loss = '{recipe.loss}' is only for classification")
    if recipe.mixup or recipe.cutmix or recipe.policy:
        raise UsageError("mixup, cutmix and policy are only for classification")
    if recipe.loss in OVERLAPS and (recipe.balance or recipe.border_weight):
        raise UsageError(f"loss = '{recipe.loss}' takes neither balance nor border_weight")

    def loss(
        outputs: Outputs,
        targets: Tensor,
        mix: Mix | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        targets = center_crop(targets, logits)
        # Ignored pixels have weight 0: no loss below needs to know of them.
        counted = (targets != IGNORED).float()
        weights = counted if weights is None else counted * center_crop(weights, logits)
        return LOSSES[recipe.loss](logits.float(), targets.long(), weights, recipe)

    return loss


def two_class_logits(logits: Tensor) -> Tensor:
    """Return logits [0, x] for one channel x, and others unchanged.

    The softmax of [0, x] is the sigmoid of x, so a binary network needs no code of its own.
    """
    return logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], 1)


def predicted_classes(logits: Tensor) -> Tensor:
    """Return the class with the highest of logits, N classes h w, as N h w; the first if equal."""
    return logits.max(1).indices  # argmax(1) is the same, and ten times slower over channels


def confusion_matrix(predicted: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Count pixels by true and predicted class: int64, rows are targets, columns predictions."""
    pairs = targets.long() * num_classes + predicted
    # Ignored pixels go to one bin more: masking with an index would wait for the device.
    pairs = pairs.masked_fill_(targets == IGNORED, num_classes**2)
    found = torch.bincount(pairs.flatten(), minlength=num_classes**2 + 1)
    return found[:-1].view(num_classes, -1)


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """Return cross-entropy, the weighted mean over pixels (Ronneberger et al. 2015, Eq. 1)."""
    return _mean(_entropy(logits, targets, recipe.label_smoothing), weights)


def bce(logits: Tensor, targets: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """Return binary cross-entropy of each class against all others, summed over classes.

    One channel stands for class 1: sigmoid cross-entropy.
    """
    expected = _one_hot(targets, two_class_logits(logits))[:, -logits.shape[1] :]
    each = F.binary_cross_entropy_with_logits(logits, expected, reduction="none")
    return _mean(each.sum(1), weights)


def focal(logits: Tensor, targets: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """Return (1 - p)^gamma times cross-entropy, p of the true class (Lin et al. 2017, Eq. 4)."""
    log_p = -_entropy(logits, targets)
    # Rounding can make p a little larger than 1, and a power of a negative number is NaN.
    return _mean(-((1 - log_p.exp()).clamp(min=0) ** recipe.focal_gamma) * log_p, weights)


def dice(logits: Tensor, targets: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """Return 1 - soft Dice, mean over the classes in targets (Milletari et al. 2016, section 3).

    The denominator has sums, not the paper's squares: Tversky's index with both costs 1/2.
    """
    return _tversky(logits, targets, weights, 0.5, 0.5)


def tversky(logits: Tensor, targets: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """Return 1 - soft TP / (TP + a FP + b FN), mean over classes (Salehi et al. 2017, Eq. 3)."""
    return _tversky(logits, targets, weights, *recipe.tversky)


def dice_ce(logits: Tensor, targets: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """Return the sum of soft Dice loss and cross-entropy (Isensee et al. 2021, nnU-Net)."""
    entropy = cross_entropy(logits, targets, weights, recipe)
    return dice(logits, targets, weights, recipe) + entropy


Term = Callable[[Tensor, Tensor, Tensor, Recipe], Tensor]
LOSSES: dict[str, Term] = {
    f.__name__: f for f in (cross_entropy, bce, focal, dice, tversky, dice_ce)
}
OVERLAPS = ("dice", "tversky", "dice_ce")


def _mean(each: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean over pixels; 0, not NaN, if no pixel counts."""
    total = weights.sum()
    return (each * weights).sum() / total.where(total > 0, 1.0)


def _entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of each pixel, N h w; 0 for ignored ones."""
    return F.cross_entropy(
        two_class_logits(logits),
        targets,
        ignore_index=IGNORED,
        label_smoothing=smoothing,
        reduction="none",
    )


def _one_hot(targets: Tensor, logits: Tensor) -> Tensor:
    """Return targets, N h w, one-hot, N classes h w; ignored pixels become class 0."""
    numbers = targets.where(targets != IGNORED, 0)
    return torch.zeros_like(logits).scatter_(1, numbers[:, None], 1.0)


def _tversky(
    logits: Tensor, targets: Tensor, weights: Tensor, fp_cost: float, fn_cost: float
) -> Tensor:
    logits, weights = two_class_logits(logits), weights[:, None]
    p, expected = logits.softmax(1) * weights, _one_hot(targets, logits) * weights
    # Over the whole batch, not image by image: an image without a class has no Dice for it.
    found = (p * expected).sum((0, 2, 3))
    costs = fp_cost * (p.sum((0, 2, 3)) - found) + fn_cost * (expected.sum((0, 2, 3)) - found)
    present = expected.sum((0, 2, 3)) > 0
    ratios = found / (found + costs).where(present, 1.0)
    return ((1 - ratios) * present).sum() / present.sum().clamp(min=1)


class Confusion:
    """A confusion matrix of pixels: `sums` has targets in rows and predictions in columns."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.sums: Tensor = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits N x classes x h x w, targets N x H x W."""
        logits, targets = two_class_logits(logits), center_crop(targets, logits)
        found = confusion_matrix(predicted_classes(logits), targets, self.num_classes)
        self.sums = self.sums.to(found.device) + found


class PixelAccuracy(Confusion):
    """Pixel accuracy: the fraction of pixels that are predicted correctly; 0 without pixels."""

    def compute(self) -> float:
        """Return the accuracy over all batches so far, from 0 to 1."""
        return float(self.sums.diagonal().sum()) / max(int(self.sums.sum()), 1)


class MeanIoU(Confusion):
    """Mean IoU: intersection over union of each class over the whole split, mean over classes.

    A class that is in neither targets nor predictions is left out; without any class, 0.
    """

    def compute(self) -> float:
        """Return the mean over all batches so far, from 0 to 1."""
        both = self.sums.diagonal().double()
        either = self.sums.sum(0) + self.sums.sum(1) - self.sums.diagonal()
        present = either > 0
        return float((both[present] / either[present]).mean()) if present.any() else 0.0
