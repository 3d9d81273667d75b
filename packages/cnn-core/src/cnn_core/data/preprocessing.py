"""Preprocessing: turn uint8 images into the input of a network."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.augment import IGNORED
from cnn_core.data.pixels import Reading
from cnn_core.data.resizing import resize_image, resize_images
from cnn_core.data.windows import crop_reflected

__all__ = ["Preprocessing"]


SAME_SHAPE = 0.02  # relative difference of two aspect ratios that is too small to see


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The settings that turn an image into network input; saved with the weights.

    `size` is the (height, width) of the input, `image_size` the (height, width) of the dataset's
    images. `fit` is one of:

    - "resize": resize to `size`, bilinear with antialiasing. Images of another size than
      `image_size` are rounded to whole grey levels, as files are when they are decoded for
      training.
    - "pad": pad with zeros to `size`, after resizing to `image_size` if an image has another size.
      Like "resize" if `image_size` is larger than `size`.
    - "tile": keep the image's own size. The network processes tiles of `size` and crops `margin`
      pixels from each side of a tile (`cnn_core.tasks.tiles`).
    - "crop": resize the shorter side to `resize` pixels with Pillow's antialiased `interpolation`,
      "bilinear" or "bicubic", and cut out the centre of `size`. Published accuracies on ImageNet
      are measured like this (Krizhevsky et al. 2012, section 4.1). In training, a recipe's `crop`
      replaces the centre by a random part of the image.

    `mean` and `std`, one value per channel, are those of images in [0, 1]. `value_range` and
    `alpha_background` say how files are read: see `cnn_core.data.pixels.Reading`.
    """

    size: tuple[int, int]
    image_size: tuple[int, int]
    fit: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    margin: int = 0
    resize: int = 0
    interpolation: str = "bilinear"
    value_range: tuple[float, ...] = ()
    alpha_background: str = "white"

    @property
    def summary(self) -> str:
        """The settings in one line: "resized to 32x32, grey, mean 0.306, std 0.377"."""
        (height, width), channels = self.size, len(self.mean)
        fitted = {
            "resize": f"resized to {height}x{width}",
            "pad": f"resized to {'x'.join(map(str, self.resize_to))}, padded to {height}x{width}",
            "tile": f"in tiles of {height}x{width}",
            "crop": f"shorter side resized to {self.resize} ({self.interpolation}), centre of "
            f"{height}x{width}",
        }
        mean, std = (" ".join(f"{v:.3g}" for v in values) for values in (self.mean, self.std))
        colours = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
        return f"{fitted[self.fit]}, {colours}, mean {mean}, std {std}"

    @property
    def reading(self) -> Reading:
        """How image files are read."""
        return Reading(self.value_range, self.alpha_background)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the network's input, float32 N C H W, for uint8 images, N C h w."""
        images = self._fitted(images)
        if images.shape[-2:] == self.resize_to:
            # No resizing: then (x / 255 - mean) / std is one multiplication and one subtraction.
            scale, shift = _scale_and_shift(self.mean, self.std, images.device)
            return self.padded(images).float().mul_(scale).sub_(shift)
        return self.normalise(self.resized(images))

    @property
    def resize_to(self) -> tuple[int, int]:
        """The (height, width) that images are resized to, before padding."""
        return self.image_size if self._pads or self.tiled else self.size

    @property
    def tiled(self) -> bool:
        """Whether the network processes images in tiles."""
        return self.fit == "tile"

    @property
    def crops(self) -> bool:
        """Whether the input is the centre of an image, resized by its shorter side."""
        return self.fit == "crop"

    @property
    def after_cropping(self) -> Preprocessing:
        """The preprocessing of images that are cropped already, if `fit` is "crop"."""
        return replace(self, fit="resize") if self.crops else self

    @property
    def scale_note(self) -> str:
        """How images, and thus distances, are resized; empty if images keep their own pixels."""
        if self.tiled or self.resize_to == self.image_size:
            return ""
        (height, width), (own_height, own_width) = self.resize_to, self.image_size
        line = f"resized to {height}x{width}: distances, such as hd95, are in pixels of that size"
        if not own_height:
            return f"images of various sizes are {line}, and their shapes may change"
        same = abs(height * own_width / (width * own_height) - 1) < SAME_SHAPE
        shape = "" if same else ", and their shape changes"
        return f"images of {own_height}x{own_width} are {line}{shape}"

    def center_cropped(self, image: Tensor) -> Tensor:
        """Return the centre of an image, uint8 C h w, at the input's size, if `fit` is "crop"."""
        return self._center_of(self.by_shorter_side(image))

    def center_square(self, image: Tensor) -> Tensor:
        """Return a square of `resize` pixels whose `center_cropped` is exactly the image's own.

        It replaces the image in memory: squares of images of any size can be stacked.
        """
        resized, side = self.by_shorter_side(image), self.resize
        inner = _center((side, side), self.size)
        outer = _center(resized.shape[-2:], self.size)
        top, left = outer[0] - inner[0], outer[1] - inner[1]
        return resized[:, top : top + side, left : left + side]

    def _center_of(self, images: Tensor) -> Tensor:
        top, left = _center(images.shape[-2:], self.size)
        return images[..., top : top + self.size[0], left : left + self.size[1]]

    def by_shorter_side(self, image: Tensor) -> Tensor:
        """Return an image, uint8 C h w, with its shorter side resized, if `fit` is "crop"."""
        size = self._resized_size(image)
        resized = image.shape[-2:] == size
        return image if resized else resize_image(image, size, self.interpolation)

    def _resized_size(self, images: Tensor) -> tuple[int, int]:
        """Return the (height, width) of images whose shorter side is resized."""
        height, width = images.shape[-2:]
        shorter = min(height, width)
        # The rounding of torchvision's Resize, so that all pixels are equal.
        return self.resize * height // shorter, self.resize * width // shorter

    def visible(self, images: Tensor) -> Tensor:
        """Return the part of images, N C h w, that the network sees, at their own resolution."""
        if not self.crops:
            return images
        height, width = images.shape[-2:]
        scale = min(height, width) / self.resize
        rows, columns = (max(round(scale * side), 1) for side in self.size)
        top, left = (height - rows) // 2, (width - columns) // 2
        return images[..., top : top + rows, left : left + columns]

    def _centers(self, images: Tensor) -> Tensor:
        """Return images, N C h w, cropped if `fit` is "crop", else unchanged."""
        if not self.crops:
            return images
        # Squares in memory need no resizing, which Pillow does on the CPU, image by image.
        if images.shape[-2:] == self._resized_size(images):
            return self._center_of(images)
        cropped = [self.center_cropped(image) for image in images.cpu()]
        return torch.stack(cropped).to(images.device)

    def _fitted(self, images: Tensor) -> Tensor:
        """Return images, N C h w, at the input's size, unless they have the dataset's own size."""
        images = self._centers(images)
        if self.tiled or images.shape[-2:] in (self.resize_to, self.image_size):
            return images
        # Rounded, so that training, evaluation, prediction and an exported file that takes uint8
        # images see the same pixels.
        return resize_images(images, self.resize_to)

    @property
    def _pads(self) -> bool:
        return self.fit == "pad" and max(self.image_size) <= min(self.size)

    def resized(self, images: Tensor) -> Tensor:
        """Return uint8 images as float32 in [0, 1], resized and padded according to `fit`."""
        images = self._fitted(images).float() / 255
        if images.shape[-2:] != self.resize_to and not self.tiled:
            images = F.interpolate(images, self.resize_to, mode="bilinear", antialias=True)
        return self.padded(images.clamp(0, 1))

    def resized_masks(self, masks: Tensor) -> Tensor:
        """Return masks, uint8 N h w, resized and padded like images; padding is ignored (255)."""
        if masks.shape[-2:] != self.resize_to and not self.tiled:
            # Class numbers cannot be averaged, so take the nearest pixel.
            masks = F.interpolate(masks[:, None].float(), self.resize_to, mode="nearest-exact")
            masks = masks[:, 0].to(torch.uint8)
        return self.padded(masks, IGNORED)

    def cropped(self, images: Tensor, u: Tensor) -> Tensor:
        """Return a random tile of each image, N … H W; `u`, N x 2 in [0, 1), are the positions.

        The tile without its margin, for which the network returns logits, lies within the image
        if the image is large enough. The margin may extend beyond the image, which is reflected.
        """
        room = torch.tensor(images.shape[-2:]) - torch.tensor(self.size) + 2 * self.margin
        starts = torch.where(room < 0, room.float() / 2, u * (room + 1)).floor().long()
        corners = zip(images, (starts - self.margin).tolist(), strict=True)
        tiles = [crop_reflected(image, top, left, *self.size) for image, (top, left) in corners]
        return torch.stack(tiles)

    def padded(self, images: Tensor, value: int = 0) -> Tensor:
        """Pad images on all sides to the input's size with `value`, if `fit` is "pad"."""
        if not self._pads or self.size == self.image_size:
            return images
        rows, columns = self.size[0] - self.image_size[0], self.size[1] - self.image_size[1]
        top, left = rows // 2, columns // 2
        return F.pad(images, (left, columns - left, top, rows - top), value=value)

    def normalise(self, images: Tensor) -> Tensor:
        """Subtract each channel's mean and divide by its standard deviation."""
        mean, std = self._statistics(images)
        return (images - mean) / std

    def denormalise(self, inputs: Tensor) -> Tensor:
        """Undo `normalise`: return images, clamped to [0, 1], for display."""
        mean, std = self._statistics(inputs)
        return (inputs * std + mean).clamp(0, 1)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = like.new_tensor(self.mean), like.new_tensor(self.std)
        return mean[:, None, None], std[:, None, None]


def _center(size: tuple[int, ...], crop: tuple[int, int]) -> tuple[int, int]:
    """Return (top, left) of the crop in the centre of an image of `size`."""
    # Python's rounding to even numbers, as in torchvision's CenterCrop.
    return round((size[0] - crop[0]) / 2), round((size[1] - crop[1]) / 2)


# Cached: otherwise every batch would copy two small tensors to the device, and wait for them.
@functools.lru_cache(maxsize=64)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return (scale, shift), C 1 1 each: x * scale - shift normalises x from 0 to 255."""
    means, stds = torch.tensor(mean, device=device), torch.tensor(std, device=device)
    return (1 / (255 * stds))[:, None, None], (means / stds)[:, None, None]
