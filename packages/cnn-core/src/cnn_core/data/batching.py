"""From a split to batches that a network takes: uint8 until the last moment.

A split in memory and one on disk go the same way: images as uint8, N C H W, are taken from a
tensor or from files, and all the rest is done to whole batches, on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.augment import Draws, Mix
from cnn_core.data.counter_rng import key_of
from cnn_core.data.dataset import Files, Split, Subset
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.data.windows import shifted, windows

__all__ = ["Batch", "batch_sizes", "batches", "permutation", "shard"]


@dataclass(frozen=True)
class Batch:
    """Images as float32, N C H W, normalised; targets, N or N H W; their places, N.

    `mix` is what mixup or CutMix put into the images. `loss_weight` scales the batch's mean loss
    so that averaging over processes gives the mean over their samples: 1 for one process, 0 for a
    rank that ran out of samples and repeats one to stay in step with the others.
    `weights`, N H W, is how much each pixel counts in the loss.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    mix: Mix | None = None
    loss_weight: float = 1.0
    weights: Tensor | None = None

    def micro_batches(self, size: int) -> Iterator[Batch]:
        """Yield the batch in pieces of `size` samples; their shares add up to its own."""
        if size >= len(self.indices):
            yield self
            return
        start = 0
        for indices in self.indices.split(batch_sizes(len(self.indices), size, training=True)):
            part = slice(start, start + len(indices))
            start += len(indices)
            mix = self.mix and Mix(self.mix.targets[part], self.mix.part[part])
            loss_weight = self.loss_weight * len(indices) / len(self.indices)
            weights = None if self.weights is None else self.weights[part]
            yield Batch(self.images[part], self.targets[part], indices, mix, loss_weight, weights)


TOGETHER = 2**18  # values of images: of small batches, as many as have these are made at once


def permutation(length: int, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch: the numbers below `length`, shuffled by (seed, epoch)."""
    generator = torch.Generator().manual_seed(key_of(seed, epoch) >> 1)
    return torch.randperm(length, generator=generator)


def shard(batch: Tensor, rank: int, world: int, *, even: bool) -> tuple[Tensor, float]:
    """Return the indices of a batch that a rank computes, and their `Batch.loss_weight`.

    Every `world`-th sample, from `rank` on. With `even` no part is empty, as training in step
    needs: a rank that nothing is left for gets a sample of another, with the factor 0.
    """
    part = batch[rank::world]
    if even and len(part) == 0:
        return batch[:1], 0.0
    return part, len(part) * world / max(len(batch), 1)


def batch_sizes(count: int, batch_size: int, training: bool) -> list[int]:
    """Return how many samples each batch has.

    In training a single one that is left over joins the batch before it: batch normalisation
    over one value has nothing to normalise.
    """
    sizes = [batch_size] * (count // batch_size) + [count % batch_size] * (count % batch_size > 0)
    if training and len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [batch_size + 1]
    return sizes


def batches(
    split: Split | Files,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    device: torch.device | None = None,
    draws: Draws | None = None,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    first: int = 0,
) -> Iterator[Batch]:
    """Yield the split in batches: in its own order, or shuffled and changed by `draws`.

    The last batch may be smaller, but of changed ones none is a single image. A batch is that of
    all processes together; `rank` and `world` give one of them its share. `workers` decode files,
    and change nothing but speed. The first `first` batches are left out.
    """
    order = torch.arange(len(split))
    if draws is not None:
        order = permutation(len(split), draws.seed, draws.epoch)
    wholes = order.split(batch_sizes(len(order), batch_size, draws is not None))
    count = _together(split, wholes, draws) if isinstance(split, Split) else 1
    skipped = first % count  # groups begin where they always do, so that memory is laid out alike
    shares = [shard(whole, rank, world, even=draws is not None) for whole in wholes]
    shares = [(part, factor) for part, factor in shares[first - skipped :] if len(part)]
    if isinstance(split, Split):
        for start in range(0, len(shares), count):
            group = shares[start : start + count]
            made = _from_memory(split, group, preprocessing, device, draws)
            yield from made[skipped if start == 0 else 0 :]
            del made
        return
    from cnn_core.data.streaming import cuts_on_disk, stream

    taken = stream(split, [part for part, _ in shares], preprocessing, draws, workers)
    if draws is not None and cuts_on_disk(preprocessing, draws):
        draws = draws.without_crop()
    for (part, factor), (pictures, targets) in zip(shares, taken, strict=True):
        where = (pictures.to(device), targets.to(device), part)
        yield collate(*where, preprocessing, draws, factor)


def _from_memory(
    split: Split,
    shares: Sequence[tuple[Tensor, float]],
    preprocessing: Preprocessing,
    device: torch.device | None,
    draws: Draws | None,
) -> list[Batch]:
    """Return the batches of these parts of a split, made together."""
    parts = [part for part, _ in shares]
    whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    pictures, targets = _take(split, whole, draws)
    where = (pictures.to(device), targets.to(device), whole)
    weights = _weights(split, whole, draws)
    group = collate(*where, preprocessing, draws, shares[0][1], weights)
    if len(parts) == 1:
        return [group]
    sizes = [len(part) for part in parts]
    columns = (group.images.split(sizes), group.targets.split(sizes), shares)
    return [
        Batch(images, numbers, part, None, factor)
        for images, numbers, (part, factor) in zip(*columns, strict=True)
    ]


def _together(split: Split, wholes: Sequence[Tensor], draws: Draws | None) -> int:
    """Return how many batches are made at once: of small ones several, where nothing mixes them.

    Only where what is done to an image is the same whatever is beside it, to the bit: bytes are
    shifted, and values multiplied.
    """
    if draws is not None and (draws.what.mixes or draws.what.reshapes or split.targets.ndim > 1):
        return 1
    values = len(wholes[0]) * split.images[0].numel() if wholes else TOGETHER
    return max(TOGETHER // max(values, 1), 1)


def _take(split: Split, indices: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor]:
    """Return images and targets of a split in memory, shifted and mirrored."""
    places = split.rows.index_select(0, indices) if isinstance(split, Subset) else indices
    targets = split.targets.index_select(0, places)
    if draws is None or not (draws.what.shift or draws.what.flip):
        return split.images.index_select(0, places), targets
    return shifted(split.images, targets, places, indices, draws)


def _weights(split: Split, indices: Tensor, draws: Draws | None) -> Tensor | None:
    """Return how much the pixels of samples count, shifted and mirrored with them."""
    if split.weights is None or draws is None:
        return None
    places = split.rows.index_select(0, indices) if isinstance(split, Subset) else indices
    return windows(split.weights[:, None], places, *draws.windows(indices.numpy()))[:, 0]


def collate(
    images: Tensor,
    targets: Tensor,
    indices: Tensor,
    preprocessing: Preprocessing,
    draws: Draws | None,
    loss_weight: float,
    weights: Tensor | None = None,
) -> Batch:
    """Do all that is done to whole batches: fit, change, cut, normalise, mix."""
    if targets.ndim == 3:
        return _collate_masks(images, targets, indices, preprocessing, draws, loss_weight, weights)
    if draws is None:
        return Batch(preprocessing(images), targets, indices, None, loss_weight)
    what, places = draws.what, indices.numpy()
    if what.policy:
        images = draws.policed(images, places)
    if what.resamples or what.jitter:
        pictures = preprocessing.resized(images)
        if what.resamples:
            pictures, _ = draws.resampled(pictures, places)
        if what.jitter:
            pictures = draws.coloured(pictures, places)
        images = preprocessing.normalise(pictures)
    else:
        images = preprocessing(images)
    if what.erase or what.cutout:
        images = draws.erased(images, places)
    mix = None
    if what.mixup or what.cutmix:
        images, mix = draws.mixed(images, targets, places)
    return Batch(images, targets, indices, mix, loss_weight)


def _collate_masks(
    images: Tensor,
    masks: Tensor,
    indices: Tensor,
    preprocessing: Preprocessing,
    draws: Draws | None,
    loss_weight: float,
    weights: Tensor | None,
) -> Batch:
    """Do the same where targets are masks, which go with the images, and weights of pixels."""
    masks = preprocessing.resized_masks(masks)
    if draws is None:
        return Batch(preprocessing(images), masks, indices, None, loss_weight)
    what, places = draws.what, indices.numpy()
    pictures = preprocessing.resized(images)
    if weights is not None:
        weights = weights.to(images.device)
    if what.resamples:
        pictures, grid = draws.resampled(pictures, places)
        masks = _resampled(masks, grid)
        weights = None if weights is None else _resampled(weights, grid)
    if preprocessing.tiled:
        u = draws.uniform("tile", places, 2)
        pictures, masks = preprocessing.cropped(pictures, u), preprocessing.cropped(masks, u)
        weights = None if weights is None else preprocessing.cropped(weights, u)
    if what.jitter:
        pictures = draws.coloured(pictures, places)
    inputs = preprocessing.normalise(pictures)
    if what.erase or what.cutout:
        inputs = draws.erased(inputs, places)
    return Batch(inputs, masks, indices, None, loss_weight, weights)


def _resampled(masks: Tensor, grid: Tensor) -> Tensor:
    """See masks, N H W, through the same grid as the images, without new values."""
    layer = masks[:, None].float()
    seen = F.grid_sample(layer, grid, "nearest", "reflection", align_corners=False)
    return seen[:, 0].to(masks.dtype)
