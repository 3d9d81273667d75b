"""Classification: losses, and metrics accumulated over a whole split.

Metrics keep integer sums, such as the numbers of hits and images. Integer sums are exact in any
order, so metrics do not depend on the batch size, the number of processes or resumption.
"""

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
        targets N, and `mix` if images were mixed. For segmentation: logits N x classes x h x w,
        targets N x H x W, and pixel weights N x H x W.
        """


def loss_function(recipe: Recipe) -> Loss:
    """Return the recipe's loss function for classification.

    If a network returns a tuple, its logits and those of auxiliary heads, the losses of these
    heads are added with weight `aux_weight` (Szegedy et al. 2015, arXiv:1409.4842, section 5).

    Raises:
        UsageError: a setting of the recipe is for segmentation.
    """
    if recipe.loss not in ("cross_entropy", "map"):
        raise UsageError(f"loss = '{recipe.loss}' is only for segmentation")
    if recipe.tile or recipe.balance or recipe.border_weight:
        raise UsageError("tile, balance and border_weight are only for segmentation")
    cross_entropy = partial(F.cross_entropy, label_smoothing=recipe.label_smoothing)

    def head_loss(logits: Tensor, targets: Tensor, mix: Mix | None) -> Tensor:
        if recipe.loss == "map":
            return map_loss(logits, targets, margin=recipe.map_margin)
        if mix is None:
            return cross_entropy(logits, targets)
        # One loss with mixed one-hot targets would be equal, but needs N x classes of memory.
        own = cross_entropy(logits, targets, reduction="none")
        other = cross_entropy(logits, mix.targets, reduction="none")
        return (mix.lam * own + (1 - mix.lam) * other).mean()

    def loss(
        outputs: Outputs,
        targets: Tensor,
        mix: Mix | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        if isinstance(outputs, Tensor):
            return head_loss(outputs, targets, mix)
        logits, *auxiliary = outputs
        auxiliary_loss = sum(head_loss(head, targets, mix) for head in auxiliary)
        return head_loss(logits, targets, mix) + recipe.aux_weight * auxiliary_loss

    return loss


def map_loss(logits: Tensor, targets: Tensor, margin: float) -> Tensor:
    """Return the discriminative criterion of LeCun et al. (1998), Eq. 9, mean over the batch.

    It is y(D) + log(exp(-j) + sum_i exp(-y(i))) for the true class D, with distances y = -logits
    and j = `margin`: the true class is pulled closer, and the others are pushed away until they
    are farther than j.
    """
    # The paper's "rubbish" class has a fixed distance, which limits the push on other classes.
    rubbish = torch.full_like(logits[:, :1], -margin)
    own = logits.gather(1, targets[:, None]).squeeze(1)
    return (torch.cat([logits, rubbish], dim=1).logsumexp(1) - own).mean()
