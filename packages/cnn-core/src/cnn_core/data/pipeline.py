"""From a split in memory to batches that a network takes: uint8 until the last moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.dataset import Split

__all__ = ["Augmentation", "Batch", "Preprocessing", "batches"]


@dataclass(frozen=True)
class Batch:
    """Images as float32, N C H W, normalised; targets, N; their places in the split, N."""

    images: Tensor
    targets: Tensor
    indices: Tensor


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes the input of a network; travels with the weights.

    `size` is the input's (height, width), `picture` that of the data set's own pictures. With
    `fit` "resize" a picture is scaled to `size`, bilinearly and with antialiasing; with "pad" it
    is scaled to `picture`, if it is not of that size already, and framed with zeros.
    `mean` and `std` are per channel, of pictures in [0, 1].
    """

    size: tuple[int, int]
    picture: tuple[int, int]
    fit: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Return uint8 pictures, N C h w, as the network's input, float32, N C H W."""
        return self.normalise(self.fitted(images))

    def fitted(self, images: Tensor) -> Tensor:
        """Return uint8 pictures at the input's size, as float32 in [0, 1]."""
        pictures = images.float() / 255
        framed = self.fit == "pad" and max(self.picture) <= min(self.size)
        target = self.picture if framed else self.size
        if pictures.shape[-2:] != target:
            pictures = F.interpolate(pictures, target, mode="bilinear", antialias=True).clamp(0, 1)
        if not framed:
            return pictures
        rows, columns = self.size[0] - target[0], self.size[1] - target[1]
        top, left = rows // 2, columns // 2
        return F.pad(pictures, (left, columns - left, top, rows - top))

    def normalise(self, pictures: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation, channel by channel."""
        mean, std = self._statistics(pictures)
        return (pictures - mean) / std

    def pictures(self, inputs: Tensor) -> Tensor:
        """Undo `normalise`: return inputs as pictures in [0, 1], to look at."""
        mean, std = self._statistics(inputs)
        return (inputs * std + mean).clamp(0, 1)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = like.new_tensor(self.mean), like.new_tensor(self.std)
        return mean[:, None, None], std[:, None, None]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes to training images: shifts of up to `shift` pixels, mirroring."""

    shift: int = 0
    flip: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed copies of uint8 images, each by draws of its own."""
        if self.shift:
            images = self._shifted(images, generator)
        if self.flip:
            mirrored = torch.rand(len(images), generator=generator).to(images.device) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return images

    def _shifted(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Frame each image with zeros and cut it out again somewhere else (random crop)."""
        count, _, height, width = images.shape
        framed = F.pad(images, [self.shift] * 4)
        corner = torch.randint(0, 2 * self.shift + 1, (2, count, 1), generator=generator)
        corner = corner.to(images.device)
        rows = corner[0] + torch.arange(height, device=images.device)  # N H
        columns = corner[1] + torch.arange(width, device=images.device)  # N W
        sample = torch.arange(count, device=images.device)[:, None, None]
        cut = framed.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]]
        return cut.permute(0, 3, 1, 2)


def batches(
    split: Split,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    device: torch.device | None = None,
    augmentation: Augmentation | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Batch]:
    """Yield the split in batches: in its own order, or with a generator in a random one.

    The last batch may be smaller. Augmentation needs the generator; the same seed gives the
    same batches.
    """
    order = torch.arange(len(split))
    if generator is not None:
        order = torch.randperm(len(split), generator=generator)
    for indices in order.split(batch_size):
        images = split.images[indices].to(device)
        if augmentation is not None and generator is not None:
            images = augmentation(images, generator)
        targets = split.targets[indices].to(device)
        yield Batch(preprocessing(images), targets, indices)
