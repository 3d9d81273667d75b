"""Multilabel: an image can be of several classes, or of none; the loss, the metrics.

Targets are uint8, N x classes: 1 for the classes of an image, else 0. Each class has a logit of
its own, whose sigmoid is its probability; they need not add up to 1. Networks are those of
classification. A class is predicted if its probability reaches its threshold: 0.5, or the one that
was chosen on the validation images and is kept with the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.augment import Mix
from cnn_core.errors import UsageError
from cnn_core.runs.recipe import Recipe
from cnn_core.tasks.class_counts import class_keys, named_recalls
from cnn_core.tasks.classification import Loss, Metric, numbered, with_auxiliary_heads
from cnn_core.tasks.ranking import Rows, area_under_roc, average_precision
from cnn_core.tasks.thresholds import best_threshold

__all__ = [
    "LabelCounts",
    "LabelRanking",
    "chosen_thresholds",
    "collapsed",
    "extra_metrics",
    "loss_function",
    "monitored",
    "predicted_labels",
    "probabilities",
]


def loss_function(recipe: Recipe) -> Loss:
    """Return binary cross-entropy or focal loss, the mean over images and classes.

    Weights are N, of images, or N x classes.

    Raises:
        UsageError: a setting of the recipe is for another task.
    """
    _require_applicable(recipe)
    gamma = recipe.focal_gamma if recipe.loss == "focal" else 0.0

    def each(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        expected = targets.to(logits.dtype)
        smoothed = expected * (1 - recipe.label_smoothing) + recipe.label_smoothing / 2
        losses = F.binary_cross_entropy_with_logits(logits, smoothed, reduction="none")
        if gamma:  # Lin et al. 2017, Eq. 4: p is the probability of the true label
            missed = (expected - logits.sigmoid()).abs()
            losses = missed**gamma * losses
        if weights is not None:
            losses = losses * (weights[:, None] if weights.ndim == 1 else weights)
        return losses.mean(1)

    def head_loss(
        logits: Tensor, targets: Tensor, mix: Mix | None, weights: Tensor | None
    ) -> Tensor:
        losses = each(logits, targets, weights)
        if mix is None:
            return losses.mean()
        others = each(logits, mix.targets, mix.weights)
        return (mix.lam * losses + (1 - mix.lam) * others).mean()

    return with_auxiliary_heads(head_loss, recipe.aux_weight)


def _require_applicable(recipe: Recipe) -> None:
    """Raise UsageError if a setting of the recipe does not apply to multilabel."""
    if recipe.loss not in ("cross_entropy", "bce", "focal"):
        raise UsageError(f"loss = '{recipe.loss}' is not for multilabel", "bce, or focal")
    if recipe.tile or recipe.border_weight or recipe.balance:
        raise UsageError("tile, balance and border_weight are only for segmentation")
    if recipe.sampler:
        raise UsageError(
            "sampler = 'balanced' is for images of one class each, and this is multilabel",
            "--set class_weights=balanced",
        )
    if recipe.topk:
        raise UsageError(f"topk = {recipe.topk} is only for classification, not for multilabel")


def probabilities(logits: Tensor) -> Tensor:
    """Return the probability of each class, the sigmoid of its logit."""
    return logits.sigmoid()


def predicted_labels(logits: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Return the classes that are predicted, bool N x classes; none where a logit is NaN."""
    least = torch.tensor(tuple(thresholds) or 0.5, dtype=torch.float64)
    return logits.cpu().double().sigmoid() >= least


def extra_metrics(
    num_classes: int,
    topk: int,
    *,
    classes: Sequence[str],
    thresholds: Sequence[float],
    evaluated: bool,
) -> dict[str, Metric]:
    """Return the metrics of multilabel, by name."""
    names = classes or numbered(num_classes)
    recalls = named_recalls(names, everyone=evaluated)
    precisions = dict(enumerate(class_keys(names))) if evaluated else {}
    return {
        "labels": LabelCounts(num_classes, thresholds, recalls),
        "ranking": LabelRanking(num_classes, precisions),
    }


def monitored(classes: Sequence[str], topk: str) -> dict[str, bool]:
    """Return the names that `monitor` may have besides those of registered metrics."""
    names = ["map", "auc", "macro_f1", "micro_f1", "exact_match"]
    return dict.fromkeys([*names, *named_recalls(classes, everyone=False).values()], True)


def collapsed(sums: Mapping[str, Tensor]) -> int | None:
    """Return -1 if no class is predicted for any image, though images have classes; else None."""
    _, actual, predicted = sums["labels"][:-1].cpu().unbind(1)
    return -1 if actual.any() and not predicted.any() else None


def chosen_thresholds(sums: Mapping[str, Tensor], criterion: str) -> tuple[float, ...]:
    """Return the best threshold of each class, for the sums of the metrics over a split."""
    logits, targets = _logits_and_targets(sums["ranking"])
    columns = zip(logits.double().sigmoid().T, targets.T, strict=True)
    return tuple(best_threshold(*column, criterion or "f1") for column in columns)


def _logits_and_targets(rows: Tensor) -> tuple[Tensor, Tensor]:
    half = rows.shape[1] // 2
    return rows[:, :half].cpu(), rows[:, half:].cpu().bool()


class LabelCounts:
    """Macro and micro F1, exact matches and the recall of each class, from counts by class.

    `sums`, classes + 1 x 3, has a row for each class, with the true positives, the images and the
    predictions of it; the last row has the exact matches and the images in all.
    """

    def __init__(
        self,
        num_classes: int,
        thresholds: Sequence[float] = (),
        recalls: dict[int, str] | None = None,
    ) -> None:
        self.thresholds: Sequence[float] = thresholds
        self.recalls: dict[int, str] = recalls or {}
        self.sums: Tensor = torch.zeros(num_classes + 1, 3, dtype=torch.int64)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits and targets N x classes."""
        predicted, actual = predicted_labels(logits, self.thresholds), targets.cpu().bool()
        exact = (predicted == actual).all(1) & ~logits.cpu().isnan().any(1)
        columns = [(predicted & actual).sum(0), actual.sum(0), predicted.sum(0)]
        last = torch.tensor([[int(exact.sum()), len(exact), 0]])
        self.sums = self.sums.cpu() + torch.cat([torch.stack(columns, 1), last])

    def compute(self) -> dict[str, float]:
        """Return the metrics by name, from 0 to 1; {} without images.

        Macro F1 is the mean over the classes that have images or predictions: the others have no
        F1. A class without images has no recall.
        """
        hits, actual, predicted = self.sums[:-1].cpu().double().unbind(1)
        exact, images, _ = self.sums[-1].tolist()
        either = actual + predicted
        if not images:
            return {}
        scores = {"exact_match": exact / images}
        if either.any():
            f1 = (2 * hits / either)[either > 0]
            scores |= {
                "macro_f1": float(f1.mean()),
                "micro_f1": float(2 * hits.sum() / either.sum()),
            }
        recalls = {key: float(hits[n] / actual[n]) for n, key in self.recalls.items() if actual[n]}
        return {**scores, **recalls}


class LabelRanking(Rows):
    """Mean average precision and mean area under the ROC curve over classes; both exact.

    `named` are the classes, by number, whose average precision is returned too.
    """

    def __init__(self, num_classes: int, named: dict[int, str] | None = None) -> None:
        super().__init__(2 * num_classes)
        self.named: dict[int, str] = named or {}

    def compute(self) -> dict[str, float]:
        """Return "map" and "auc", from 0 to 1, and average precisions.

        Classes without images are left out; "auc" also leaves out classes that all images have.
        {} if no class is left, or a logit is NaN.
        """
        logits, targets = _logits_and_targets(self.sums)
        if logits.isnan().any():
            return {}
        columns = list(zip(logits.T, targets.T, strict=True))
        found = {n: average_precision(*c) for n, c in enumerate(columns) if c[1].any()}
        areas = [area_under_roc(*c) for c in columns if c[1].any() and not c[1].all()]
        return {
            **({"map": sum(found.values()) / len(found)} if found else {}),
            **({"auc": sum(areas) / len(areas)} if areas else {}),
            **{f"ap_{key}": found[n] for n, key in self.named.items() if n in found},
        }
