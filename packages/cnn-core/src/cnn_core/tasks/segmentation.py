"""Segmentation: losses, and metrics over all pixels of a split.

Targets are uint8, N H W; pixels with value 255 are ignored. A network without padding returns
logits only for the centre of its input, so targets are cropped to the same centre.

Metrics are computed from integer counts of pixels, which add up exactly in any order. IoU is a
ratio of such counts over the split: averaging the IoU of batches would depend on the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.augment import IGNORED, Mix
from cnn_core.errors import UsageError
from cnn_core.runs.recipe import Recipe
from cnn_core.tasks.classification import Loss, Metric, Outputs
from cnn_core.tasks.thresholds import CRITERIA, ThresholdCounts, binned_threshold

__all__ = [
    "MeanIoU",
    "PixelAccuracy",
    "PixelThresholdCounts",
    "center_crop",
    "chosen_thresholds",
    "collapsed",
    "confusion_matrix",
    "counted_pixels",
    "extra_metrics",
    "loss_function",
    "monitored",
    "predicted_classes",
    "probabilities",
    "two_class_logits",
]


def center_crop(targets: Tensor, logits: Tensor) -> Tensor:
    """Crop targets, … H W, to the central part that logits, N classes h w, cover."""
    height, width = logits.shape[-2:]
    top, left = (targets.shape[-2] - height) // 2, (targets.shape[-1] - width) // 2
    return targets[..., top : top + height, left : left + width]


def extra_metrics(
    num_classes: int,
    topk: int,
    *,
    classes: Sequence[str],
    thresholds: Sequence[float],
    evaluated: bool,
) -> dict[str, Metric]:
    """Return the metrics at the threshold, if there is one; all others are registered ones."""
    return {"threshold": PixelThresholdCounts(thresholds[0])} if thresholds else {}


def monitored(classes: Sequence[str], topk: str) -> dict[str, bool]:
    """Return {}: `monitor` may name registered metrics only."""
    return {}


def collapsed(sums: Mapping[str, Tensor]) -> int | None:
    """Return the only class that was predicted, though there are pixels of others; else None."""
    pixels = sums["miou"].cpu()
    if (pixels.sum(1) > 0).sum() < 2 or (pixels.sum(0) > 0).sum() != 1:
        return None
    return int(pixels.sum(0).argmax())


def chosen_thresholds(sums: Mapping[str, Tensor], criterion: str) -> tuple[float, ...]:
    """Return the best threshold of the pixels of class 1 of two, or () if the recipe wants none.

    `sums` are those of the metrics of an evaluation over a split.
    """
    if criterion not in CRITERIA:
        return ()
    positives, negatives = sums["curves"][1].cpu().unbind(1)
    return (binned_threshold(positives, negatives, criterion),)


def probabilities(logits: Tensor) -> Tensor:
    """Return the probability of each class, the softmax of the logits."""
    return logits.softmax(1)


def loss_function(recipe: Recipe) -> Loss:
    """Return the recipe's loss function for segmentation, over the pixels that are not ignored.

    Raises:
        UsageError: a setting of the recipe is only for classification, or the loss does not
            support it.
    """
    if recipe.class_weights or recipe.sampler:
        raise UsageError(
            "class_weights and sampler are for classes of images, and this is segmentation",
            "classes of pixels: --set balance=true",
        )
    if recipe.loss == "map":
        raise UsageError(f"loss = '{recipe.loss}' is only for classification")
    if recipe.mixup or recipe.cutmix or recipe.policy:
        raise UsageError("mixup, cutmix and policy are only for classification")
    if recipe.loss in OVERLAPS and (recipe.balance or recipe.border_weight):
        raise UsageError(f"loss = '{recipe.loss}' supports neither balance nor border_weight")

    def loss(
        outputs: Outputs,
        targets: Tensor,
        mix: Mix | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        targets = center_crop(targets, logits)
        # Ignored pixels get weight 0, so that they count in no loss.
        counted = (targets != IGNORED).float()
        weights = counted if weights is None else counted * center_crop(weights, logits)
        return LOSSES[recipe.loss](logits.float(), targets.long(), weights, recipe)

    return loss


def two_class_logits(logits: Tensor) -> Tensor:
    """Return logits of a single channel x as two channels, [0, x]; return others unchanged.

    The softmax of [0, x] has the sigmoid of x for class 1, so that binary networks need no code of
    their own.
    """
    return logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], 1)


def counted_pixels(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return float64 logits, pixels x classes, and targets, without ignored pixels."""
    logits = two_class_logits(logits)
    targets = center_crop(targets, logits)
    counted = targets != IGNORED
    logits = logits.movedim(1, -1)
    if counted.all():  # usually true, and a reshape is many times faster than masking
        logits, targets = logits.reshape(-1, logits.shape[-1]), targets.flatten()
    else:
        logits, targets = logits[counted], targets[counted]
    if logits.device.type == "mps":  # MPS has no float64
        logits, targets = logits.cpu(), targets.cpu()
    return logits.double(), targets


def predicted_classes(logits: Tensor) -> Tensor:
    """Return the most likely class, N h w, for logits, N classes h w; if several, the first."""
    return logits.max(1).indices  # argmax(1) is equal, but ten times slower over channels


def confusion_matrix(predicted: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Return the confusion matrix of pixels, int64: rows are targets, columns predictions."""
    pairs = targets.long() * num_classes + predicted
    # Ignored pixels go to an extra bin: indexing with a mask would wait for the device.
    pairs = pairs.masked_fill_(targets == IGNORED, num_classes**2)
    counts = torch.bincount(pairs.flatten(), minlength=num_classes**2 + 1)
    return counts[:-1].view(num_classes, -1)


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """Return the weighted mean cross-entropy over pixels (Ronneberger et al. 2015, Eq. 1)."""
    return _mean(_entropy(logits, targets, recipe.label_smoothing), weights)


def bce(logits: Tensor, targets: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """Return binary cross-entropy of each class against all others, summed over classes.

    A single channel is class 1 of two; the loss is then its sigmoid cross-entropy.
    """
    expected = _one_hot(targets, two_class_logits(logits))[:, -logits.shape[1] :]
    each = F.binary_cross_entropy_with_logits(logits, expected, reduction="none")
    return _mean(each.sum(1), weights)


def focal(logits: Tensor, targets: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """Return focal loss, -(1 - p)^gamma log p for the true class (Lin et al. 2017, Eq. 4)."""
    log_p = -_entropy(logits, targets)
    # Rounding can make p a little larger than 1, and powers of negative numbers are NaN.
    return _mean(-((1 - log_p.exp()).clamp(min=0) ** recipe.focal_gamma) * log_p, weights)


def dice(logits: Tensor, targets: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """Return 1 - soft Dice, mean over the classes in targets (Milletari et al. 2016, section 3).

    The denominator sums probabilities, not their squares as in the paper. This is the Tversky
    loss with both weights 1/2.
    """
    return _tversky(logits, targets, weights, 0.5, 0.5)


def tversky(logits: Tensor, targets: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """Return 1 - TP / (TP + a FP + b FN), soft; a and b are `recipe.tversky`.

    The mean is over the classes in the targets (Salehi et al. 2017, Eq. 3).
    """
    return _tversky(logits, targets, weights, *recipe.tversky)


def dice_ce(logits: Tensor, targets: Tensor, weights: Tensor, recipe: Recipe) -> Tensor:
    """Return the sum of the soft Dice loss and cross-entropy (nnU-Net, Isensee et al. 2021)."""
    entropy = cross_entropy(logits, targets, weights, recipe)
    return dice(logits, targets, weights, recipe) + entropy


Term = Callable[[Tensor, Tensor, Tensor, Recipe], Tensor]
LOSSES: dict[str, Term] = {
    f.__name__: f for f in (cross_entropy, bce, focal, dice, tversky, dice_ce)
}
OVERLAPS = ("dice", "tversky", "dice_ce")


def _mean(each: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean over pixels, or 0 if all weights are 0."""
    total = weights.sum()
    return (each * weights).sum() / total.where(total > 0, 1.0)


def _entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of each pixel, N h w; 0 for ignored pixels."""
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
    # Over the whole batch, not per image: for a class that an image lacks, Dice is undefined.
    tp = (p * expected).sum((0, 2, 3))
    costs = fp_cost * (p.sum((0, 2, 3)) - tp) + fn_cost * (expected.sum((0, 2, 3)) - tp)
    present = expected.sum((0, 2, 3)) > 0
    ratios = tp / (tp + costs).where(present, 1.0)
    return ((1 - ratios) * present).sum() / present.sum().clamp(min=1)


class Confusion:
    """A confusion matrix of pixels, `sums`: rows are targets, columns are predictions."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.sums: Tensor = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits N x classes x h x w, targets N x H x W."""
        logits, targets = two_class_logits(logits), center_crop(targets, logits)
        counts = confusion_matrix(predicted_classes(logits), targets, self.num_classes)
        self.sums = self.sums.to(counts.device) + counts


class PixelThresholdCounts(ThresholdCounts):
    """Accuracy, precision, recall and F1 of the pixels of class 1 of two, from a threshold on."""

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits N x 2 x h x w, or N x 1 x h x w; targets N x H x W."""
        super().update(*counted_pixels(logits, targets))


class PixelAccuracy(Confusion):
    """Pixel accuracy: the fraction of correctly predicted pixels, or 0 if there are no pixels."""

    def compute(self) -> float:
        """Return the accuracy over all batches so far, from 0 to 1."""
        return float(self.sums.diagonal().sum()) / max(int(self.sums.sum()), 1)


class MeanIoU(Confusion):
    """Mean IoU: the mean over classes of each class's IoU over the whole split.

    Classes that are in neither targets nor predictions are left out. Without any class the mean
    is 0.
    """

    def compute(self) -> float:
        """Return the mean over all batches so far, from 0 to 1."""
        both = self.sums.diagonal().double()
        either = self.sums.sum(0) + self.sums.sum(1) - self.sums.diagonal()
        present = either > 0
        return float((both[present] / either[present]).mean()) if present.any() else 0.0
