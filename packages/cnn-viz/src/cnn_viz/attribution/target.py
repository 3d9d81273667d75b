"""What is explained: one class of each image, of an image as a whole or of some pixels."""

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
    """One of the classes, N, of each image; where pixels have classes in a region, bool N h w."""

    classes: Tensor
    region: Tensor | None = None

    @classmethod
    def of_images(cls, logits: Tensor, classes: Classes = None) -> Target:
        """Return these classes, by default the predicted ones, of logits, N classes.

        Raises:
            UsageError: they do not fit, or the logits have another shape.
        """
        if logits.ndim != 2:
            raise UsageError(f"logits of shape {list(logits.shape)}: expected N classes")
        return cls(_chosen(classes, logits))

    @classmethod
    def of_pixels(cls, logits: Tensor, classes: Classes, region: Tensor | None = None) -> Target:
        """Return these classes of logits, N classes h w, in a region, N h w.

        By default in the pixels that the network takes for the class.

        Raises:
            UsageError: classes or region do not fit, or the logits have another shape.
        """
        if logits.ndim != 4:
            raise UsageError(f"logits of shape {list(logits.shape)}: expected N classes h w")
        logits = two_class_logits(logits)
        chosen = _chosen(classes, logits)
        pixels = logits.argmax(1) == chosen[:, None, None] if region is None else region
        if pixels.shape != logits[:, 0].shape:
            raise UsageError(
                f"region of shape {list(pixels.shape)}: expected {list(logits[:, 0].shape)}"
            )
        return cls(chosen, pixels.to(logits.device))

    def scores(self, logits: Tensor) -> Tensor:
        """Return each image's score: the class's logit, or its sum over the region; N."""
        numbers = torch.arange(len(self.classes), device=logits.device)
        if self.region is None:
            return logits[numbers, self.classes]
        return (two_class_logits(logits)[numbers, self.classes] * self.region).sum((1, 2))

    def __getitem__(self, rows: Tensor) -> Target:
        """Return the targets of some of the images."""
        return Target(self.classes[rows], None if self.region is None else self.region[rows])


def _chosen(classes: Classes, logits: Tensor) -> Tensor:
    """Return the classes to explain, one for each image."""
    if classes is None:
        return logits.detach().argmax(1)
    chosen = torch.as_tensor(classes, device=logits.device).clone()
    count, known = logits.shape[:2]
    if chosen.shape != (count,) or not bool(((chosen >= 0) & (chosen < known)).all()):
        raise UsageError(
            f"classes = {chosen.tolist()}: expected {count} numbers from 0 to {known - 1}"
        )
    return chosen
