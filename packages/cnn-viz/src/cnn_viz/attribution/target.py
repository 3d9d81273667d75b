"""The target of an explanation: one class per image, for the whole image or for a region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cnn_core.errors import UsageError
from cnn_core.tasks.segmentation import two_class_logits

__all__ = ["Classes", "Target"]

Classes = Tensor | Sequence[int] | None


@dataclass(frozen=True)
class Target:
    """The class to explain in each image, N, and for segmentation the region, bool, N h w."""

    classes: Tensor
    region: Tensor | None = None

    @classmethod
    def of_images(cls, logits: Tensor, classes: Classes = None) -> Target:
        """Return the target for logits, N x classes; the default is the predicted classes.

        Raises:
            UsageError: the classes do not match the logits, or the logits have another shape.
        """
        if logits.ndim != 2:
            raise UsageError(f"logits of shape {list(logits.shape)}: expected N x classes")
        return cls(_check_classes(classes, logits))

    @classmethod
    def of_pixels(cls, logits: Tensor, classes: Classes, region: Tensor | None = None) -> Target:
        """Return the target for logits, N x classes x h x w, within a region, bool, N h w.

        The default region is the pixels predicted as the class.

        Raises:
            UsageError: the classes or the region do not match the logits, or the logits have
                another shape.
        """
        if logits.ndim != 4:
            raise UsageError(f"logits of shape {list(logits.shape)}: expected N x classes x h x w")
        # One logit per pixel stands for two classes, background and foreground.
        logits = two_class_logits(logits)
        chosen = _check_classes(classes, logits)
        pixels = logits.argmax(1) == chosen[:, None, None] if region is None else region
        if pixels.shape != logits[:, 0].shape:
            raise UsageError(
                f"region of shape {list(pixels.shape)}: expected {list(logits[:, 0].shape)}"
            )
        return cls(chosen, pixels.to(logits.device))

    def scores(self, logits: Tensor) -> Tensor:
        """Return the score of each image, N: the class's logit, or its sum over the region."""
        rows = torch.arange(len(self.classes), device=logits.device)
        if self.region is None:
            return logits[rows, self.classes]
        return (two_class_logits(logits)[rows, self.classes] * self.region).sum((1, 2))

    def __getitem__(self, rows: Tensor) -> Target:
        """Return the target for a subset of the images."""
        return Target(self.classes[rows], None if self.region is None else self.region[rows])


def _check_classes(classes: Classes, logits: Tensor) -> Tensor:
    """Return the classes to explain, one per image; the default is the predicted classes."""
    if classes is None:
        return logits.detach().argmax(1)
    # A copy: the caller may change its tensor later.
    chosen = torch.as_tensor(classes, device=logits.device).clone()
    count, num_classes = logits.shape[:2]
    # A negative class would silently index from the end.
    if chosen.shape != (count,) or not bool(((chosen >= 0) & (chosen < num_classes)).all()):
        raise UsageError(
            f"classes = {chosen.tolist()}: expected {count} numbers from 0 to {num_classes - 1}"
        )
    return chosen
