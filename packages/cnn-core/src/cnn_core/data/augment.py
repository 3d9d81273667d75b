"""Augmentation: random changes to whole batches of training images.

An `Augmentation` holds the settings of a recipe. Its method `draws(seed, epoch)` returns a `Draws`
with the random changes of one epoch, one method for each kind. Every method takes the samples'
indices in their split: the random numbers of a sample depend only on seed, epoch, kind of change
and index (see `cnn_core.data.counter_rng`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.colour import jitter
from cnn_core.data.counter_rng import Indices, key_of, normal, uniform

if TYPE_CHECKING:
    from cnn_core.runs.recipe import Recipe

__all__ = ["Augmentation", "Draws", "IGNORED", "Mix", "Shifts"]

IGNORED = 255  # the target value of pixels that losses and metrics ignore


@dataclass(frozen=True)
class Mix:
    """The targets of the images that are mixed in, N, and `lam`, N, lambda in the papers.

    The loss of a sample is lam * loss(own target) + (1 - lam) * loss(`targets`). `weights`, N, are
    the weights of the images that are mixed in; None weights all equally.
    """

    targets: Tensor
    lam: Tensor
    weights: Tensor | None = None

    def part(self, rows: slice) -> Mix:
        """Return the mix of some rows of the batch."""
        weights = None if self.weights is None else self.weights[rows]
        return Mix(self.targets[rows], self.lam[rows], weights)


class Shifts(NamedTuple):
    """The shifts of N images: pixels down, pixels right, and 1 if mirrored afterwards, else 0."""

    down: Indices
    right: Indices
    flipped: Indices


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The settings of augmentation, in the order in which they are applied.

    On uint8 images: `shift` (at most this many pixels in each direction, filled with zeros),
    `flip` (mirror half of the images) and `policy` ("randaugment", "trivialaugment"). On resized
    images, with a single interpolation: `crop` (smallest and largest fraction of the area),
    `rotate` (at most this many degrees either way), `zoom` (at most by this factor, in or out) and
    `elastic` (standard deviation, in pixels, of the displacements of a 3x3 grid, Ronneberger et
    al. 2015). Then `jitter` (limits for brightness, contrast, saturation, hue). After
    normalisation: `erase` (probability, Zhong et al. 2017), `cutout` (side in pixels, DeVries and
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
        """Whether images are interpolated, not only shifted by whole pixels or mirrored."""
        return bool(self.crop or self.rotate or self.zoom != 1 or self.elastic)

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with each other."""
        return bool(self.mixup or self.cutmix)

    @property
    def beyond_shift_and_flip(self) -> bool:
        """Whether single images are changed in other ways than shifting and mirroring."""
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
        """Return `count` uniform random numbers in [0, 1) for each sample, N x count."""
        return torch.from_numpy(uniform(self._key(purpose), indices, count)).float()

    def _key(self, purpose: str) -> int:
        return key_of(self.seed, self.epoch, purpose)

    def shifts(self, indices: Indices) -> Shifts:
        """Return the random shift of each sample, and whether it is mirrored."""
        limit = self.augmentation.shift
        # Always three numbers, even without `flip`, so that `flip` does not change the shifts.
        u = uniform(self._key("window"), indices, 3)
        moves = np.floor(u[:, :2] * (2 * limit + 1)).astype(np.int64) - limit
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

    def resample(
        self, images: Tensor, indices: Indices, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return images, float N C H W, sampled on a random grid, and the grid, N H W 2.

        The grid combines crop, rotation, zoom and elastic deformation, so that images are
        interpolated, and thus blurred, only once. With `size`, (height, width), they are resized,
        too, and the aspect ratios of the crops are in pixels, not in fractions of the sides.
        """
        height, width = images.shape[-2:]
        theta = self._affine(indices, height / width, true_aspect=size is not None)
        grid = self._grid(indices, *(size or (height, width)), theta).to(images.device)
        changed = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
        return changed.clamp(0, 1), grid

    def _grid(
        self, indices: Indices, height: int, width: int, theta: Tensor | None = None
    ) -> Tensor:
        """Return where each output pixel is sampled, N H W 2, as `F.grid_sample` expects it."""
        if theta is None:
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

    def _affine(self, indices: Indices, aspect: float, *, true_aspect: bool = False) -> Tensor:
        """Return an affine matrix for each sample, N 2 3: crop, then zoom and rotate the crop.

        Grid coordinates are relative to height and width. A rotation has to correct for the
        `aspect` ratio, height / width; otherwise it would shear images that are not square.
        """
        u = self.uniform("affine", indices, 2)
        boxes = self.crop_boxes(indices, aspect if true_aspect else 1.0)
        top, left, down, across = torch.from_numpy(boxes).float().unbind(1)
        # Uniform in the logarithm: zooming in by a factor is as likely as zooming out by it.
        zoom = torch.exp((2 * u[:, 0] - 1) * math.log(self.augmentation.zoom))
        angle = (2 * u[:, 1] - 1) * math.radians(self.augmentation.rotate)
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        x = [across * cos, -down * sin * aspect, 2 * left + across - 1]
        y = [across * sin / aspect, down * cos, 2 * top + down - 1]
        return torch.stack([*x, *y], dim=1).view(-1, 2, 3)

    def crop_boxes(self, indices: Indices, aspect: float = 1.0) -> npt.NDArray[np.float64]:
        """Return random crops, N x 4: top, left, height, width, as fractions of the image's sides.

        Aspect ratios range from 3/4 to 4/3 (Szegedy et al. 2015, section 6). They are ratios of
        the fractions, or of pixels if `aspect` is the image's height / width. Without `crop` each
        box is the whole image.
        """
        u = uniform(self._key("crop"), indices, 4)
        low, high = self.augmentation.crop or (1.0, 1.0)
        area = low + (high - low) * u[:, 0]
        widest = 4 / 3 if self.augmentation.crop else 1.0
        ratio = np.exp((2 * u[:, 1] - 1) * math.log(widest)) * aspect
        across = np.minimum(np.sqrt(area * ratio), 1)
        down = np.minimum(np.sqrt(area / ratio), 1)
        return np.stack([u[:, 2] * (1 - down), u[:, 3] * (1 - across), down, across], axis=1)

    def without_crop(self) -> Draws:
        """Return the same changes without the crop, for images that are already cropped."""
        return replace(self, augmentation=replace(self.augmentation, crop=()))

    def jitter_color(self, images: Tensor, indices: Indices) -> Tensor:
        """Jitter brightness, contrast, saturation and hue of images in [0, 1]."""
        u = self.uniform("jitter", indices, 4).to(images.device)
        return jitter(images, self.augmentation.jitter, u)

    def erase(self, images: Tensor, indices: Indices) -> Tensor:
        """Apply `erase` and `cutout`: set rectangles of normalised images to 0, their mean."""
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
        """Return squares centred on random pixels, N x 4; they may extend beyond the image."""
        u, side = self.uniform("cutout", indices, 2), self.augmentation.cutout
        size = torch.full((len(indices),), float(side))
        top = (u[:, 0] * height).floor() - side // 2
        left = (u[:, 1] * width).floor() - side // 2
        return torch.stack([top, left, size, size], dim=1)

    def mix(
        self, images: Tensor, targets: Tensor, indices: Indices, weights: Tensor | None = None
    ) -> tuple[Tensor, Mix]:
        """Mix each image with the previous one of the batch, by mixup or CutMix."""
        lam = self._lambdas(indices).to(images.device)
        # Batches are shuffled, so the neighbour is as random as a second permutation would be.
        others, other_targets = images.roll(1, 0), targets.roll(1, 0)
        other_weights = None if weights is None else weights.roll(1, 0)
        if self.augmentation.mixup:
            weight = lam[:, None, None, None]
            return weight * images + (1 - weight) * others, Mix(other_targets, lam, other_weights)
        height, width = images.shape[-2:]
        u = self.uniform("cutmix", indices, 2).to(images.device)
        tall, wide = (1 - lam).sqrt() * height, (1 - lam).sqrt() * width
        top, left = u[:, 0] * height - tall / 2, u[:, 1] * width - wide / 2
        boxes = torch.stack([top.round(), left.round(), tall.round(), wide.round()], dim=1)
        hole = _inside(boxes, height, width)
        # The box may extend beyond the image, so lambda is the fraction of pixels really kept.
        lam = 1 - hole.float().mean((1, 2))
        return torch.where(hole[:, None], others, images), Mix(other_targets, lam, other_weights)

    def _lambdas(self, indices: Indices) -> Tensor:
        """Return a random number from Beta(alpha, alpha) for each sample, N."""
        alpha, key = self.augmentation.mixup or self.augmentation.cutmix, self._key("mix")
        # Rejection sampling takes any number of draws, so each sample has a generator of its own.
        bits = (np.random.Philox(key=[key, index]) for index in indices.tolist())
        return torch.tensor([np.random.Generator(b).beta(alpha, alpha) for b in bits]).float()


def _erase_boxes(u: Tensor, height: int, width: int) -> Tensor:
    """Return boxes that cover 2 to 33 % of the area, N x 4, like torchvision's RandomErasing."""
    area = (0.02 + 0.31 * u[:, 0]) * height * width
    ratio = torch.exp((2 * u[:, 1] - 1) * math.log(3.3))
    tall, wide = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    top = (u[:, 2] * (height - tall).clamp(min=0)).round()
    left = (u[:, 3] * (width - wide).clamp(min=0)).round()
    return torch.stack([top, left, tall, wide], dim=1)


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return bool masks, N H W, of the pixels in boxes, N x 4 (top, left, height, width)."""
    rows = torch.arange(height, device=boxes.device)[None, :, None]
    columns = torch.arange(width, device=boxes.device)[None, None, :]
    top, left, tall, wide = boxes[:, :, None, None].unbind(1)
    return (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
