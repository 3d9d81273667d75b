"""Augmentation: random changes to whole batches of training images, with their own numbers.

An `Augmentation` holds the settings of a recipe. Its `draws(seed, epoch)` are the random numbers
of one epoch, with a method for each change. Every method takes the indices of the samples in
their split, since the numbers of a sample depend on nothing but (seed, epoch, index); see
`cnn_core.data.counter_rng`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.colour import jitter
from cnn_core.data.counter_rng import Indices, key_of, normal, uniform

if TYPE_CHECKING:
    from cnn_core.runs.recipe import Recipe

__all__ = ["Augmentation", "Draws", "IGNORED", "Mix", "Shifts"]

IGNORED = 255  # the target of pixels that are left out of every loss and metric


@dataclass(frozen=True)
class Mix:
    """The second image mixed into each sample: its target, N, and `lam`, N, the papers' lambda.

    The loss of a sample is lam * loss(own target) + (1 - lam) * loss(`targets`).
    """

    targets: Tensor
    lam: Tensor


class Shifts(NamedTuple):
    """Whole-pixel changes of N samples: pixels down, pixels right, and 1 if mirrored, else 0."""

    down: Indices
    right: Indices
    flipped: Indices


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The settings of augmentation, in the order in which they are applied.

    On uint8 images: `shift` (pixels, from -shift to shift, zeros move in), `flip` (left and
    right) and `policy` ("randaugment", "trivialaugment"). At the network's input size, in one
    resampling: `crop` (smallest and largest fraction of the area), `rotate` (degrees, both ways),
    `zoom` (factor, both ways) and `elastic` (pixels, standard deviation of the displacements of a
    3x3 grid, Ronneberger et al. 2015). Then `jitter` (brightness, contrast, saturation, hue).
    After normalisation: `erase` (probability, Zhong et al. 2017), `cutout` (pixels, DeVries and
    Taylor 2017), and `mixup` (alpha, Zhang et al. 2018) or `cutmix` (alpha, Yun et al. 2019).
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
        """Return the augmentation settings of a recipe."""
        return cls(**{key.name: getattr(recipe, key.name) for key in fields(cls)})

    @property
    def resamples(self) -> bool:
        """Whether images are interpolated on a changed grid, not only shifted or mirrored."""
        return bool(self.crop or self.rotate or self.zoom != 1 or self.elastic)

    @property
    def mixes(self) -> bool:
        """Whether a sample depends on its neighbour in the batch."""
        return bool(self.mixup or self.cutmix)

    @property
    def reshapes(self) -> bool:
        """Whether images are changed by more than shifting, mirroring and normalising."""
        return bool(self.resamples or self.policy or self.jitter or self.erase or self.cutout)

    def draws(self, seed: int, epoch: int) -> Draws:
        """Return the random changes of one epoch."""
        return Draws(self, seed, epoch)


@dataclass(frozen=True)
class Draws:
    """The random changes of one epoch: an augmentation with its seed and epoch."""

    augmentation: Augmentation
    seed: int
    epoch: int

    def uniform(self, purpose: str, indices: Indices, count: int) -> Tensor:
        """Return `count` uniform numbers in [0, 1) for each sample and one purpose, N x count."""
        return torch.from_numpy(uniform(self._key(purpose), indices, count)).float()

    def _key(self, purpose: str) -> int:
        return key_of(self.seed, self.epoch, purpose)

    def shifts(self, indices: Indices) -> Shifts:
        """Return how far each sample is shifted, and whether it is mirrored."""
        reach = self.augmentation.shift
        # Three numbers, also where two are enough: `flip` then does not change the shifts.
        u = uniform(self._key("window"), indices, 3)
        moves = np.floor(u[:, :2] * (2 * reach + 1)).astype(np.int64) - reach
        flipped = (u[:, 2] < 0.5) & self.augmentation.flip
        return Shifts(moves[:, 0], moves[:, 1], flipped.astype(np.int64))

    def apply_policy(self, images: Tensor, indices: Indices) -> Tensor:
        """Apply torchvision's RandAugment or TrivialAugmentWide to uint8 images, one by one."""
        from torchvision.transforms import v2

        randaugment = self.augmentation.policy == "randaugment"
        policy = v2.RandAugment() if randaugment else v2.TrivialAugmentWide()
        key, changed = self._key("policy"), []
        # torchvision draws from the global generator: seed it for each image, then restore it.
        with torch.random.fork_rng(devices=[]):
            for image, index in zip(images, indices.tolist(), strict=True):
                torch.default_generator.manual_seed((key + index) & (2**63 - 1))
                changed.append(policy(image))
        return torch.stack(changed)

    def resample(self, images: Tensor, indices: Indices) -> tuple[Tensor, Tensor]:
        """Interpolate images, float N C H W, on a changed grid; return them and it, N H W 2.

        Crop, rotation, zoom and elastic deformation are one grid, so that images are
        interpolated once and blur once.
        """
        grid = self._grid(indices, *images.shape[-2:]).to(images.device)
        changed = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
        return changed.clamp(0, 1), grid

    def _grid(self, indices: Indices, height: int, width: int) -> Tensor:
        """Return the source position of each output pixel, N H W 2, in [-1, 1]."""
        theta = self._affine(indices, height / width)
        shape = [len(indices), 1, height, width]
        grid = F.affine_grid(theta, shape, align_corners=False)
        if self.augmentation.elastic:
            coarse = torch.from_numpy(normal(self._key("elastic"), indices, 18)).float()
            coarse = coarse.view(-1, 2, 3, 3) * self.augmentation.elastic
            fine = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
            pixels = torch.tensor([2 / width, 2 / height])  # one pixel, in grid units
            grid = grid + fine.permute(0, 2, 3, 1) * pixels
        return grid

    def _affine(self, indices: Indices, aspect: float) -> Tensor:
        """Return the affine part of the grid, N 2 3: crop, then zoom and rotate about its centre.

        Grid units are relative to each side, so a rotation has to undo the `aspect` ratio,
        height / width, or it would shear images that are not square.
        """
        u = self.uniform("affine", indices, 2)
        top, left, down, across = self.crop_boxes(indices).unbind(1)
        # Uniform in the logarithm: zooming in by a factor is as likely as zooming out by it.
        zoom = torch.exp((2 * u[:, 0] - 1) * math.log(self.augmentation.zoom))
        angle = (2 * u[:, 1] - 1) * math.radians(self.augmentation.rotate)
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        x = [across * cos, -down * sin * aspect, 2 * left + across - 1]
        y = [across * sin / aspect, down * cos, 2 * top + down - 1]
        return torch.stack([*x, *y], dim=1).view(-1, 2, 3)

    def crop_boxes(self, indices: Indices) -> Tensor:
        """Return the boxes of `crop`, N x 4: top, left, height, width, as fractions of the image.

        The aspect ratio is from 3/4 to 4/3 (Szegedy et al. 2015, section 6).
        """
        u = self.uniform("crop", indices, 4)
        low, high = self.augmentation.crop or (1.0, 1.0)
        area = low + (high - low) * u[:, 0]
        widest = 4 / 3 if self.augmentation.crop else 1.0
        ratio = torch.exp((2 * u[:, 1] - 1) * math.log(widest))
        across, down = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        return torch.stack([u[:, 2] * (1 - down), u[:, 3] * (1 - across), down, across], dim=1)

    def without_crop(self) -> Draws:
        """Return the same changes for images that were already cropped."""
        return replace(self, augmentation=replace(self.augmentation, crop=()))

    def jitter_color(self, images: Tensor, indices: Indices) -> Tensor:
        """Jitter brightness, contrast, saturation and hue of images in [0, 1]."""
        u = self.uniform("jitter", indices, 4).to(images.device)
        return jitter(images, self.augmentation.jitter, u)

    def erase(self, images: Tensor, indices: Indices) -> Tensor:
        """Set a rectangle of normalised images to 0, which is their mean."""
        height, width = images.shape[-2:]
        holes = torch.zeros(len(images), height, width, dtype=torch.bool)
        if self.augmentation.erase:
            u = self.uniform("erase", indices, 5)
            hit = u[:, 4] < self.augmentation.erase
            holes |= hit[:, None, None] & _inside(_erase_boxes(u, height, width), height, width)
        if self.augmentation.cutout:
            boxes = self._cutout_boxes(indices, height, width)
            holes |= _inside(boxes, height, width)
        return images.masked_fill(holes[:, None].to(images.device), 0)

    def _cutout_boxes(self, indices: Indices, height: int, width: int) -> Tensor:
        """Return squares around a random pixel, N x 4: near a border they reach beyond it."""
        u, side = self.uniform("cutout", indices, 2), self.augmentation.cutout
        size = torch.full((len(indices),), float(side))
        top = (u[:, 0] * height).floor() - side // 2
        left = (u[:, 1] * width).floor() - side // 2
        return torch.stack([top, left, size, size], dim=1)

    def mix(self, images: Tensor, targets: Tensor, indices: Indices) -> tuple[Tensor, Mix]:
        """Mix each image with the one before it in the batch, by mixup or CutMix."""
        lam = self._lambdas(indices).to(images.device)
        # Batches are shuffled, so the neighbour is as random as a second permutation would be.
        others, other_targets = images.roll(1, 0), targets.roll(1, 0)
        if self.augmentation.mixup:
            weight = lam[:, None, None, None]
            return weight * images + (1 - weight) * others, Mix(other_targets, lam)
        height, width = images.shape[-2:]
        u = self.uniform("cutmix", indices, 2).to(images.device)
        tall, wide = (1 - lam).sqrt() * height, (1 - lam).sqrt() * width
        top, left = u[:, 0] * height - tall / 2, u[:, 1] * width - wide / 2
        boxes = torch.stack([top.round(), left.round(), tall.round(), wide.round()], dim=1)
        hole = _inside(boxes, height, width)
        # The box may reach beyond the image: the target follows the pixels that were replaced.
        lam = 1 - hole.float().mean((1, 2))
        return torch.where(hole[:, None], others, images), Mix(other_targets, lam)

    def _lambdas(self, indices: Indices) -> Tensor:
        """Return a Beta(alpha, alpha) number for each sample, N."""
        alpha, key = self.augmentation.mixup or self.augmentation.cutmix, self._key("mix")
        # Beta numbers come by rejection, from any number of draws: a generator for each sample.
        bits = (np.random.Philox(key=[key, index]) for index in indices.tolist())
        return torch.tensor([np.random.Generator(b).beta(alpha, alpha) for b in bits]).float()


def _erase_boxes(u: Tensor, height: int, width: int) -> Tensor:
    """Return boxes of 2 to 33 % of the area, N x 4, with torchvision's RandomErasing defaults."""
    area = (0.02 + 0.31 * u[:, 0]) * height * width
    ratio = torch.exp((2 * u[:, 1] - 1) * math.log(3.3))
    tall, wide = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    top = (u[:, 2] * (height - tall).clamp(min=0)).round()
    left = (u[:, 3] * (width - wide).clamp(min=0)).round()
    return torch.stack([top, left, tall, wide], dim=1)


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return the pixels inside boxes, N x 4 (top, left, height, width), as masks, N H W."""
    rows = torch.arange(height, device=boxes.device)[None, :, None]
    columns = torch.arange(width, device=boxes.device)[None, None, :]
    top, left, tall, wide = boxes[:, :, None, None].unbind(1)
    return (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
