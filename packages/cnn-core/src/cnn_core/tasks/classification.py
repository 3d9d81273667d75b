"""Classification: losses, and metrics accumulated over a whole split.

Metrics keep integer sums, such as the numbers of hits and images. Integer sums are exact in any
order, so metrics do not depend on the batch size, the number of processes or resumption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.augment import Mix
from cnn_core.errors import UsageError
from cnn_core.runs.recipe import Recipe
from cnn_core.tasks.class_counts import ClassCounts, named_recalls
from cnn_core.tasks.ranking import Auc
from cnn_core.tasks.thresholds import CRITERIA, ThresholdCounts, best_threshold

__all__ = [
    "Loss",
    "Metric",
    "Outputs",
    "Top1",
    "TopK",
    "chosen_thresholds",
    "collapsed",
    "extra_metrics",
    "focal_losses",
    "loss_function",
    "map_losses",
    "monitored",
    "probabilities",
    "top_k",
    "with_auxiliary_heads",
]

Outputs = Tensor | tuple[Tensor, ...]
HeadLoss = Callable[[Tensor, Tensor, Mix | None, Tensor | None], Tensor]
MAX_RANKED = 100  # classes; for more, the scores of all images would need too much memory


class Metric(Protocol):
    """A metric over a whole split, updated batch by batch.

    `sums` is one tensor with the whole state of the metric. It has to be additive: adding the
    sums of two parts of a split gives the sums of both. Thus checkpoints can save it within an
    epoch, and processes can add up theirs.
    """

    sums: Tensor

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits N x classes and targets N, or the shapes that a segmentation has."""

    def compute(self) -> float | dict[str, float]:
        """Return the metric over all batches so far, or several metrics by name."""


class TopK:
    """Top-k accuracy: the fraction of images whose true class is among the k highest logits.

    Ties are broken in favour of the lower class number. In favour of the true class, a network
    with constant outputs would score 100 %.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.sums: Tensor = torch.zeros(2, dtype=torch.int64)  # hits, images

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch; the sums stay on the device, so that the CPU does not wait for it."""
        if self.k == 1:
            hits = logits.argmax(1) == targets
        else:
            # Compare: `torch.topk` leaves the order of equal logits undefined.
            own = logits.gather(1, targets[:, None])
            before = torch.arange(logits.shape[1], device=logits.device) < targets[:, None]
            rank = ((logits > own) | ((logits == own) & before)).sum(1)
            hits = (rank < self.k) & ~own.squeeze(1).isnan()  # comparisons with NaN are false
        more = torch.stack([hits.sum(), hits.new_tensor(len(hits), dtype=torch.int64)])
        self.sums = self.sums.to(more.device) + more

    def compute(self) -> float:
        """Return the accuracy, from 0 to 1."""
        hits, count = self.sums.tolist()
        return float(hits / max(count, 1))


class Top1(TopK):
    """Top-1 accuracy: the fraction of images where the true class has the highest logit."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(1)


def top_k(num_classes: int, topk: int) -> dict[str, Metric]:
    """Return top-k accuracy by name, such as "top5"; topk = 0 means min(5, num_classes).

    Raises:
        UsageError: k is larger than the number of classes.
    """
    if topk > num_classes:
        raise UsageError(
            f"topk = {topk}, but there are {num_classes} classes",
            f"--set topk=N with N from 1 to {num_classes}",
        )
    k = topk or min(5, num_classes)
    return {f"top{k}": TopK(k)}


class Loss(Protocol):
    """A loss function that returns the mean over a batch."""

    def __call__(
        self,
        outputs: Outputs,
        targets: Tensor,
        mix: Mix | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the loss, a scalar.

        For classification: logits N x classes, possibly several with those of auxiliary heads,
        targets N, `mix` if images were mixed, and image weights N. For segmentation: logits
        N x classes x h x w, targets N x H x W, and pixel weights N x H x W.
        """


def extra_metrics(
    num_classes: int,
    topk: int,
    *,
    classes: Sequence[str],
    thresholds: Sequence[float],
    evaluated: bool,
) -> dict[str, Metric]:
    """Return the metrics that need more than a number of classes, or belong together, by name."""
    recalls = named_recalls(classes or numbered(num_classes), everyone=evaluated)
    found = {**top_k(num_classes, topk), "classes": ClassCounts(num_classes, recalls)}
    if 2 <= num_classes <= MAX_RANKED:
        found["auc"] = Auc(num_classes)
    if thresholds:
        found["threshold"] = ThresholdCounts(thresholds[0])
    return found


def monitored(classes: Sequence[str], topk: str) -> dict[str, bool]:
    """Return the names that `monitor` may have besides those of registered metrics."""
    names = ["balanced_accuracy", "macro_f1", *named_recalls(classes, everyone=False).values()]
    names += ["auc"] if 2 <= len(classes) <= MAX_RANKED else []
    return dict.fromkeys([*names, topk], True)


def collapsed(sums: Mapping[str, Tensor]) -> int | None:
    """Return the only class that was predicted, though there are images of others; else None."""
    _, actual, predicted = sums["classes"].cpu()
    if (actual > 0).sum() < 2 or (predicted > 0).sum() != 1:
        return None
    return int(predicted.argmax())


def chosen_thresholds(sums: Mapping[str, Tensor], criterion: str) -> tuple[float, ...]:
    """Return the best threshold of class 1 of two; () if the recipe wants none.

    `sums` are those of the metrics over a split.
    """
    if criterion not in CRITERIA:
        return ()
    rows = sums["auc"].cpu()
    chances = rows[:, :-1].double().softmax(1)[:, 1]
    return (best_threshold(chances, rows[:, -1] == 1, criterion),)


def probabilities(logits: Tensor) -> Tensor:
    """Return the probability of each class, the softmax of the logits."""
    return logits.softmax(1)


def numbered(num_classes: int) -> list[str]:
    """Return the numbers of the classes as their names."""
    return [str(number) for number in range(num_classes)]


def loss_function(recipe: Recipe) -> Loss:
    """Return the recipe's loss function for classification.

    If a network returns a tuple, its logits and those of auxiliary heads, the losses of these
    heads are added with weight `aux_weight` (Szegedy et al. 2015, arXiv:1409.4842, section 5).

    Raises:
        UsageError: a setting of the recipe is for another task, or the loss does not support it.
    """
    _require_applicable(recipe)
    mean = partial(F.cross_entropy, label_smoothing=recipe.label_smoothing)
    each = {
        "cross_entropy": partial(mean, reduction="none"),
        "focal": partial(focal_losses, gamma=recipe.focal_gamma),
        "map": partial(map_losses, margin=recipe.map_margin),
    }[recipe.loss]

    def head_loss(
        logits: Tensor, targets: Tensor, mix: Mix | None, weights: Tensor | None
    ) -> Tensor:
        # One call of torch is faster than the mean of separate losses, and its last bits differ.
        if recipe.loss == "cross_entropy" and mix is None and weights is None:
            return mean(logits, targets)
        losses = _weighted(each(logits, targets), weights)
        if mix is None:
            return losses.mean()
        # One loss with mixed one-hot targets would be equal, but needs N x classes of memory.
        others = _weighted(each(logits, mix.targets), mix.weights)
        return (mix.lam * losses + (1 - mix.lam) * others).mean()

    return with_auxiliary_heads(head_loss, recipe.aux_weight)


def _require_applicable(recipe: Recipe) -> None:
    """Raise UsageError if a setting of the recipe does not apply to classification."""
    if recipe.balance:
        raise UsageError(
            "balance = true is only for segmentation, where it weights the classes of pixels",
            "classes of images: --set class_weights=balanced, or --set sampler=balanced",
        )
    if recipe.loss not in ("cross_entropy", "map", "focal"):
        raise UsageError(f"loss = '{recipe.loss}' is not for classification")
    if recipe.tile or recipe.border_weight:
        raise UsageError("tile and border_weight are only for segmentation")
    if recipe.loss == "focal" and recipe.label_smoothing:
        raise UsageError(
            "loss = 'focal' does not support label_smoothing", "--set label_smoothing=0"
        )


def with_auxiliary_heads(head_loss: HeadLoss, aux_weight: float) -> Loss:
    """Return the loss of a network's logits, plus `aux_weight` times those of auxiliary heads."""

    def loss(
        outputs: Outputs,
        targets: Tensor,
        mix: Mix | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        if isinstance(outputs, Tensor):
            return head_loss(outputs, targets, mix, weights)
        logits, *auxiliary = outputs
        auxiliary_loss = sum(head_loss(head, targets, mix, weights) for head in auxiliary)
        return head_loss(logits, targets, mix, weights) + aux_weight * auxiliary_loss

    return loss


def _weighted(losses: Tensor, weights: Tensor | None) -> Tensor:
    return losses if weights is None else losses * weights


def focal_losses(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Return the focal loss of each image, N: -(1 - p)^gamma log p for the true class.

    T.-Y. Lin et al. (2017), Focal loss for dense object detection, Eq. 4.
    """
    log_p = -F.cross_entropy(logits, targets, reduction="none")
    # Rounding can make p a little larger than 1, and powers of negative numbers are NaN.
    return -((1 - log_p.exp()).clamp(min=0) ** gamma) * log_p


def map_losses(logits: Tensor, targets: Tensor, margin: float) -> Tensor:
    """Return the discriminative criterion of LeCun et al. (1998), Eq. 9, of each image, N.

    It is y(D) + log(exp(-j) + sum_i exp(-y(i))) for the true class D, with distances y = -logits
    and j = `margin`: the true class is pulled closer, and the others are pushed away until they
    are farther than j.
    """
    # The paper's "rubbish" class has a fixed distance, which limits the push on other classes.
    rubbish = torch.full_like(logits[:, :1], -margin)
    own = logits.gather(1, targets[:, None]).squeeze(1)
    return torch.cat([logits, rubbish], dim=1).logsumexp(1) - own
