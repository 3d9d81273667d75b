"""How an image becomes the input of a network."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.augment import IGNORED
from cnn_core.data.windows import mirrored

__all__ = ["Preprocessing"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the input of a network; travels with the weights.

    `size` is the input's (height, width), `image` that of the dataset's own images. With
    `fit` "resize" an image is scaled to `size`, bilinearly and with antialiasing; with "pad" it
    is scaled to `image`, if it is not of that size already, and framed with zeros. With "tile"
    it stays as it is, and is seen in tiles of `size`, of which a network cuts off `margin` on
    each side (`cnn_core.tasks.tiles`).
    `mean` and `std` are per channel, of images in [0, 1].
    """

    size: tuple[int, int]
    image_size: tuple[int, int]
    fit: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    margin: int = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Return uint8 images, N C h w, as the network's input, float32, N C H W."""
        if images.shape[-2:] == self.target:  # at once: (x / 255 - mean) / std
            scale, shift = _affine(self.mean, self.std, images.device)
            return self.padded(images).float().mul_(scale).sub_(shift)
        return self.normalise(self.resized(images))

    @property
    def target(self) -> tuple[int, int]:
        """The size that images of a dataset are scaled to, before they are framed."""
        return self.image_size if self._pads or self.tiled else self.size

    @property
    def tiled(self) -> bool:
        """Whether images are seen in tiles."""
        return self.fit == "tile"

    @property
    def _pads(self) -> bool:
        return self.fit == "pad" and max(self.image_size) <= min(self.size)

    def resized(self, images: Tensor) -> Tensor:
        """Return uint8 images at the input's size, as float32 in [0, 1]."""
        pictures = images.float() / 255
        if pictures.shape[-2:] != self.target and not self.tiled:
            pictures = F.interpolate(pictures, self.target, mode="bilinear", antialias=True)
        return self.padded(pictures.clamp(0, 1))

    def resized_masks(self, masks: Tensor) -> Tensor:
        """Return masks, uint8 N h w, at the input's size; the frame counts in no loss."""
        if masks.shape[-2:] != self.target and not self.tiled:
            masks = F.interpolate(masks[:, None].float(), self.target, mode="nearest-exact")
            masks = masks[:, 0].to(torch.uint8)
        return self.padded(masks, IGNORED)

    def cropped(self, images: Tensor, u: Tensor) -> Tensor:
        """Return a tile of each of images, N … H W, at a place that `u`, N x 2 in [0, 1), draws.

        What the network says of a tile is within the image, if that is large enough.
        """
        room = torch.tensor(images.shape[-2:]) - torch.tensor(self.size) + 2 * self.margin
        starts = torch.where(room < 0, room.float() / 2, u * (room + 1)).floor().long()
        corners = zip(images, (starts - self.margin).tolist(), strict=True)
        return torch.stack([mirrored(i, top, left, *self.size) for i, (top, left) in corners])

    def padded(self, pictures: Tensor, value: int = 0) -> Tensor:
        """Put a frame around images that are smaller than the input, if they get one."""
        if not self._pads or self.size == self.image_size:
            return pictures
        rows, columns = self.size[0] - self.image_size[0], self.size[1] - self.image_size[1]
        top, left = rows // 2, columns // 2
        return F.pad(pictures, (left, columns - left, top, rows - top), value=value)

    def normalise(self, pictures: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation, channel by channel."""
        mean, std = self._statistics(pictures)
        return (pictures - mean) / std

    def denormalise(self, inputs: Tensor) -> Tensor:
        """Undo `normalise`: return inputs as images in [0, 1], to look at."""
        mean, std = self._statistics(inputs)
        return (inputs * std + mean).clamp(0, 1)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = like.new_tensor(self.mean), like.new_tensor(self.std)
        return mean[:, None, None], std[:, None, None]


@functools.lru_cache(maxsize=64)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return scale and shift that normalise values from 0 to 255, C 1 1 each."""
    means, stds = torch.tensor(mean, device=device), torch.tensor(std, device=device)
    return (1 / (255 * stds))[:, None, None], (means / stds)[:, None, None]
