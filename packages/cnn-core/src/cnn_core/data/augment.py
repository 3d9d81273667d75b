"""Random changes to training images, whole batches at a time, each by draws of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.colour import jittered
from cnn_core.data.counter_rng import Indices, key_of, normal, uniform

if TYPE_CHECKING:
    from cnn_core.runs.recipe import Recipe

__all__ = ["Augmentation", "Draws", "IGNORED", "Mix"]

IGNORED = 255  # the target of pixels that count in no loss and no metric


@dataclass(frozen=True)
class Mix:
    """What was mixed into each image: the targets of the other one, and the own one's part."""

    targets: Tensor
    part: Tensor


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may change at random. A sample's draws depend on (seed, epoch, index) only.

    In this order: `shift` (pixels of zeros around an image, of which a window of its size is cut)
    and `flip` (left and right) while images are uint8; `policy` ("randaugment",
    "trivialaugment"); at the network's size, in one resampling, `crop` (the least and the largest
    part of the area), `rotate` (degrees, both ways), `zoom` (factor, both ways) and `elastic`
    (pixels, the deviation of a 3x3 grid's displacements, Ronneberger et al. 2015); `jitter`
    (brightness, contrast, saturation, hue); after normalisation `erase` (probability, Zhong et
    al. 2017) and `cutout` (pixels, DeVries and Taylor 2017); `mixup` (alpha, Zhang et al. 2018)
    or `cutmix` (alpha, Yun et al. 2019).
    """

    shift: int = 0
    flip: bool = False
    policy: str = ""
    crop: tuple[float, ...] = ()
    rotate: float = 0.0
    zoom: float = 1.0
    elastic: float = 0.0
    jitter: tuple[float, ...] = ()
    erase: float = 0.0
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe) -> Augmentation:
        """Return what a recipe says may change."""
        return cls(**{key.name: getattr(recipe, key.name) for key in fields(cls)})

    @property
    def resamples(self) -> bool:
        """Whether images change in shape, not only by whole pixels."""
        return bool(self.crop or self.rotate or self.zoom != 1 or self.elastic)

    @property
    def mixes(self) -> bool:
        """Whether an image changes with those beside it in the batch."""
        return bool(self.mixup or self.cutmix)

    @property
    def reshapes(self) -> bool:
        """Whether more is done to images than to move, mirror and normalise them."""
        return bool(self.resamples or self.policy or self.jitter or self.erase or self.cutout)

    def draws(self, seed: int, epoch: int) -> Draws:
        """Return the changes of one epoch."""
        return Draws(self, seed, epoch)


@dataclass(frozen=True)
class Draws:
    """The changes that an augmentation makes in one epoch."""

    what: Augmentation
    seed: int
    epoch: int

    def uniform(self, purpose: str, indices: Indices, count: int) -> Tensor:
        """Return numbers in [0, 1), N x count, for one purpose."""
        return torch.from_numpy(uniform(self._key(purpose), indices, count)).float()

    def _key(self, purpose: str) -> int:
        return key_of(self.seed, self.epoch, purpose)

    def windows(self, indices: Indices) -> tuple[Indices, Indices, Indices]:
        """Return pixels down and right that each sample moves, and whether it is mirrored."""
        u = uniform(self._key("window"), indices, 3)
        moves = np.floor(u[:, :2] * (2 * self.what.shift + 1)).astype(np.int64) - self.what.shift
        mirrored = (u[:, 2] < 0.5) & self.what.flip
        return moves[:, 0], moves[:, 1], mirrored.astype(np.int64)

    def policed(self, images: Tensor, indices: Indices) -> Tensor:
        """Apply torchvision's RandAugment or TrivialAugmentWide to uint8 images, one by one."""
        from torchvision.transforms import v2

        policy = v2.RandAugment() if self.what.policy == "randaugment" else v2.TrivialAugmentWide()
        key, changed = self._key("policy"), []
        with torch.random.fork_rng(devices=[]):
            for image, index in zip(images, indices.tolist(), strict=True):
                torch.default_generator.manual_seed((key + index) & (2**63 - 1))
                changed.append(policy(image))
        return torch.stack(changed)

    def resampled(self, images: Tensor, indices: Indices) -> tuple[Tensor, Tensor]:
        """Return images, float N C H W, seen through a changed grid; and the grid, N H W 2."""
        grid = self._grid(indices, *images.shape[-2:]).to(images.device)
        changed = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
        return changed.clamp(0, 1), grid

    def _grid(self, indices: Indices, height: int, width: int) -> Tensor:
        """Return where each pixel of the result comes from, N H W 2, in [-1, 1]."""
        theta = self._affine(indices, height / width)
        shape = [len(indices), 1, height, width]
        grid = F.affine_grid(theta, shape, align_corners=False)
        if self.what.elastic:
            coarse = torch.from_numpy(normal(self._key("elastic"), indices, 18)).float()
            coarse = coarse.view(-1, 2, 3, 3) * self.what.elastic
            fine = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
            pixels = torch.tensor([2 / width, 2 / height])
            grid = grid + fine.permute(0, 2, 3, 1) * pixels
        return grid

    def _affine(self, indices: Indices, aspect: float) -> Tensor:
        """Return the affine part of the grid, N 2 3: crop, zoom and rotation about the centre."""
        u = self.uniform("affine", indices, 2)
        top, left, down, across = self.boxes(indices).unbind(1)
        zoom = torch.exp((2 * u[:, 0] - 1) * math.log(self.what.zoom))
        angle = (2 * u[:, 1] - 1) * math.radians(self.what.rotate)
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        x = [across * cos, -down * sin * aspect, 2 * left + across - 1]
        y = [across * sin / aspect, down * cos, 2 * top + down - 1]
        return torch.stack([*x, *y], dim=1).view(-1, 2, 3)

    def boxes(self, indices: Indices) -> Tensor:
        """Return the windows that `crop` cuts: top, left, height, width, as parts, N x 4."""
        u = self.uniform("crop", indices, 4)
        low, high = self.what.crop or (1.0, 1.0)
        area = low + (high - low) * u[:, 0]
        ratio = torch.exp((2 * u[:, 1] - 1) * math.log(4 / 3)) if self.what.crop else 1.0
        across, down = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        return torch.stack([u[:, 2] * (1 - down), u[:, 3] * (1 - across), down, across], dim=1)

    def without_crop(self) -> Draws:
        """Return the same changes for images that are cut already."""
        return replace(self, what=replace(self.what, crop=()))

    def coloured(self, pictures: Tensor, indices: Indices) -> Tensor:
        """Change brightness, contrast, saturation and hue of images in [0, 1]."""
        u = self.uniform("jitter", indices, 4).to(pictures.device)
        return jittered(pictures, self.what.jitter, u)

    def erased(self, images: Tensor, indices: Indices) -> Tensor:
        """Set a rectangle of normalised images to 0, their mean."""
        height, width = images.shape[-2:]
        u = self.uniform("erase", indices, 5)
        holes = torch.zeros(len(images), height, width, dtype=torch.bool)
        if self.what.erase:
            area = (0.02 + 0.31 * u[:, 0]) * height * width
            ratio = torch.exp((2 * u[:, 1] - 1) * math.log(3.3))
            tall, wide = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
            top = (u[:, 2] * (height - tall).clamp(min=0)).round()
            left = (u[:, 3] * (width - wide).clamp(min=0)).round()
            hit = u[:, 4] < self.what.erase
            holes |= hit[:, None, None] & _inside(top, left, tall, wide, height, width)
        if self.what.cutout:
            u = self.uniform("cutout", indices, 2)
            size = torch.full((len(images),), float(self.what.cutout))
            top = (u[:, 0] * height).floor() - self.what.cutout // 2
            left = (u[:, 1] * width).floor() - self.what.cutout // 2
            holes |= _inside(top, left, size, size, height, width)
        return images.masked_fill(holes[:, None].to(images.device), 0)

    def mixed(self, images: Tensor, targets: Tensor, indices: Indices) -> tuple[Tensor, Mix]:
        """Mix each image with the one before it in the batch."""
        part = self._parts(indices).to(images.device)
        others, other_targets = images.roll(1, 0), targets.roll(1, 0)
        if self.what.mixup:
            weight = part[:, None, None, None]
            return weight * images + (1 - weight) * others, Mix(other_targets, part)
        height, width = images.shape[-2:]
        u = self.uniform("cutmix", indices, 2).to(images.device)
        tall, wide = (1 - part).sqrt() * height, (1 - part).sqrt() * width
        top, left = u[:, 0] * height - tall / 2, u[:, 1] * width - wide / 2
        hole = _inside(top.round(), left.round(), tall.round(), wide.round(), height, width)
        part = 1 - hole.float().mean((1, 2))
        return torch.where(hole[:, None], others, images), Mix(other_targets, part)

    def _parts(self, indices: Indices) -> Tensor:
        """Return Beta(alpha, alpha) numbers, N."""
        alpha, key = self.what.mixup or self.what.cutmix, self._key("mix")
        bits = (np.random.Philox(key=[key, index]) for index in indices.tolist())
        return torch.tensor([np.random.Generator(b).beta(alpha, alpha) for b in bits]).float()


def _inside(
    top: Tensor, left: Tensor, tall: Tensor, wide: Tensor, height: int, width: int
) -> Tensor:
    """Return the pixels of N rectangles as a mask, N H W."""
    rows = torch.arange(height, device=top.device)[None, :, None]
    columns = torch.arange(width, device=top.device)[None, None, :]
    top, left, tall, wide = (edge[:, None, None] for edge in (top, left, tall, wide))
    return (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
