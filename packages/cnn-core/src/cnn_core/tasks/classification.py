"""Classification: losses, and metrics accumulated over a whole split."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.augment import Mix
from cnn_core.errors import UsageError
from cnn_core.runs.recipe import Recipe

__all__ = [
    "Loss",
    "Metric",
    "Outputs",
    "Top1",
    "TopK",
    "loss_function",
    "map_loss",
    "top_k",
]

Outputs = Tensor | tuple[Tensor, ...]


class Metric(Protocol):
    """A number about a whole split, fed some images at a time.

    `sums` is one tensor with all that it has seen so far; those of two parts of a split, added,
    are those of both: so it is saved within an epoch, and added up over processes.
    """

    sums: Tensor

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Take a batch: logits N x classes, targets N."""

    def compute(self) -> float | dict[str, float]:
        """Return the number for all batches so far, or several by name."""


class TopK:
    """Fraction of images whose class is among the k highest logits.

    Of equal logits the lower class number comes first, so that a network that says the same
    of every class is not taken for a good one.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.sums: Tensor = torch.zeros(2, dtype=torch.int64)  # hits, images

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Take a batch; the sums stay on the device, so that nothing waits for it."""
        if self.k == 1:
            hits = logits.argmax(1) == targets
        else:
            own = logits.gather(1, targets[:, None])
            before = torch.arange(logits.shape[1], device=logits.device) < targets[:, None]
            rank = ((logits > own) | ((logits == own) & before)).sum(1)
            hits = (rank < self.k) & ~own.squeeze(1).isnan()
        more = torch.stack([hits.sum(), hits.new_tensor(len(hits), dtype=torch.int64)])
        self.sums = self.sums.to(more.device) + more

    def compute(self) -> float:
        """Return the fraction, from 0 to 1."""
        hits, count = self.sums.tolist()
        return float(hits / max(count, 1))


class Top1(TopK):
    """Accuracy: the fraction of images whose class has the highest logit."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(1)


def top_k(num_classes: int, topk: int) -> dict[str, Metric]:
    """Return top-k accuracy by name, "top5"; with k = 0 that is 5, or as many as there are.

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
    """What training makes small, mean over a batch."""

    def __call__(
        self,
        outputs: Outputs,
        targets: Tensor,
        mix: Mix | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Take logits, N x classes, also of auxiliary heads; targets, N; what was mixed in.

        Of pixels: logits N x classes x h x w, targets N x H x W, and their weights.
        """


def loss_function(recipe: Recipe) -> Loss:
    """Return the loss that the recipe names, mean over the batch.

    Raises:
        UsageError: the recipe wants what only pixels can have.

    Where a network gives a tuple, logits and those of auxiliary heads, theirs are added with
    the recipe's weight (Szegedy et al. 2015, arXiv:1409.4842, section 5).
    """
    if recipe.loss not in ("cross_entropy", "map"):
        raise UsageError(f"loss = '{recipe.loss}' is for segmentation")
    if recipe.tile or recipe.balance or recipe.border_weight:
        raise UsageError("tile, balance and border_weight are for segmentation")
    cross_entropy = partial(F.cross_entropy, label_smoothing=recipe.label_smoothing)

    def of(logits: Tensor, targets: Tensor, mix: Mix | None) -> Tensor:
        if recipe.loss == "map":
            return map_loss(logits, targets, margin=recipe.map_margin)
        if mix is None:
            return cross_entropy(logits, targets)
        own = cross_entropy(logits, targets, reduction="none")
        other = cross_entropy(logits, mix.targets, reduction="none")
        return (mix.part * own + (1 - mix.part) * other).mean()

    def loss(
        outputs: Outputs,
        targets: Tensor,
        mix: Mix | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        if isinstance(outputs, Tensor):
            return of(outputs, targets, mix)
        logits, *auxiliary = outputs
        others = sum(of(a, targets, mix) for a in auxiliary)
        return of(logits, targets, mix) + recipe.aux_weight * others

    return loss


def map_loss(logits: Tensor, targets: Tensor, margin: float) -> Tensor:
    """The discriminative criterion of LeCun et al. (1998), Eq. 9, mean over the batch.

    y(D) + log(exp(-j) + sum_i exp(-y(i))), with distances y = -logits and j = `margin`: the
    right class is pulled near, and wrong ones are pushed away until they are farther than j.
    """
    rubbish = torch.full_like(logits[:, :1], -margin)
    right = logits.gather(1, targets[:, None]).squeeze(1)
    return (torch.cat([logits, rubbish], dim=1).logsumexp(1) - right).mean()
