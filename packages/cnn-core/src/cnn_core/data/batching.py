"""From a split to the batches that a network takes.

Splits in memory and on disk go the same way: uint8 images, N C H W, come from a tensor or from
files, and `collate` does the rest to the whole batch on its device. Images stay uint8 until then,
because a byte costs a quarter of a float32 to keep, to copy and to move to the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.augment import Draws, Mix
from cnn_core.data.counter_rng import key_of
from cnn_core.data.dataset import Files, Split, Subset
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.data.windows import shift_and_flip, shifted

__all__ = ["Batch", "batch_sizes", "batches", "permutation", "shard"]


@dataclass(frozen=True)
class Batch:
    """A batch: normalised float32 images, N C H W; targets, N or N H W; split indices, N.

    `mix` is the second image of each sample under mixup or CutMix. `loss_weight` scales the
    batch's mean loss so that averaging over processes gives the mean over their samples: 1 for
    one process, 0 for a rank that ran out of samples and repeats one to stay in step with the
    others. `weights`, N H W, are the weights of the pixels in the loss; None weighs all alike.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    mix: Mix | None = None
    loss_weight: float = 1.0
    weights: Tensor | None = None

    def micro_batches(self, size: int) -> Iterator[Batch]:
        """Yield micro-batches of `size` samples; their loss weights add up to the batch's own."""
        if size >= len(self.indices):
            yield self
            return
        start = 0
        for indices in self.indices.split(batch_sizes(len(self.indices), size, training=True)):
            part = slice(start, start + len(indices))
            start += len(indices)
            yield Batch(
                images=self.images[part],
                targets=self.targets[part],
                indices=indices,
                mix=self.mix and Mix(self.mix.targets[part], self.mix.lam[part]),
                loss_weight=self.loss_weight * len(indices) / len(self.indices),
                weights=None if self.weights is None else self.weights[part],
            )


GROUP = 2**18  # image values that are preprocessed at once: several batches, if they are small


def permutation(length: int, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch: the numbers below `length`, shuffled by (seed, epoch)."""
    # A generator of its own: the order must not depend on other uses of torch's global one.
    generator = torch.Generator().manual_seed(key_of(seed, epoch) >> 1)
    return torch.randperm(length, generator=generator)


def shard(batch: Tensor, rank: int, world: int, *, even: bool) -> tuple[Tensor, float]:
    """Return the indices of a batch that a rank computes, and their `Batch.loss_weight`.

    A rank takes every `world`-th sample, starting at `rank`. With `even` no shard is empty, since
    in training all ranks have to join each all-reduce: a rank without samples of its own repeats
    another's with loss weight 0.
    """
    # Strided, because then the shards' sizes differ by one sample at most.
    part = batch[rank::world]
    if even and len(part) == 0:
        return batch[:1], 0.0
    return part, len(part) * world / max(len(batch), 1)


def batch_sizes(count: int, batch_size: int, training: bool) -> list[int]:
    """Return the size of each batch.

    In training, a final batch of one sample is merged into the one before it, unless `batch_size`
    is 1.
    """
    sizes = [batch_size] * (count // batch_size) + [count % batch_size] * (count % batch_size > 0)
    # On its own a single leftover sample would raise an error: batch norm on 1x1 maps needs more
    # than one value per channel. With batch_size = 1 every batch is like that: nothing to avoid.
    if training and len(sizes) > 1 and sizes[-1] == 1 < batch_size:
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
    """Yield the batches of a split: in order, or shuffled and augmented by `draws`.

    `batch_size` counts the samples of all processes together; each batch is sharded over `world`
    ranks. The last batch may be smaller; with `draws`, a single leftover sample joins the batch
    before it. `workers` processes decode files; their number changes nothing but speed. The first
    `first` batches are skipped, to resume within an epoch.
    """
    training = draws is not None
    order = torch.arange(len(split))
    if draws is not None:
        order = permutation(len(split), draws.seed, draws.epoch)
    whole_batches = order.split(batch_sizes(len(order), batch_size, training))
    count = _group_size(split, whole_batches, draws) if isinstance(split, Split) else 1
    # Groups begin where they do without `first`: a resumed epoch then lays out memory alike, and
    # kernels that depend on alignment give the same bits.
    skipped = first % count
    shards = [shard(whole, rank, world, even=training) for whole in whole_batches]
    # In evaluation a rank may have no sample of the last batch.
    shards = [(indices, weight) for indices, weight in shards[first - skipped :] if len(indices)]
    if isinstance(split, Split):
        for start in range(0, len(shards), count):
            group = _from_memory(
                split, shards[start : start + count], preprocessing, device, draws
            )
            yield from group[skipped if start == 0 else 0 :]
            del group  # before the next one is made, or two would be in memory at once
        return
    yield from _from_disk(
        split, shards, preprocessing, device=device, draws=draws, workers=workers
    )


def _from_memory(
    split: Split,
    shards: Sequence[tuple[Tensor, float]],
    preprocessing: Preprocessing,
    device: torch.device | None,
    draws: Draws | None,
) -> list[Batch]:
    """Return the batches of these shards, collated together."""
    parts = [indices for indices, _ in shards]
    indices = torch.cat(parts) if len(parts) > 1 else parts[0]
    images, targets = _select(split, indices, draws)
    raw = Batch(
        images=images.to(device),
        targets=targets.to(device),
        indices=indices,
        loss_weight=shards[0][1],
        weights=_select_weights(split, indices, draws),
    )
    group = collate(raw, preprocessing, draws)
    if len(parts) == 1:
        return [group]
    sizes = [len(part) for part in parts]
    # Batches made together have no `mix` and no `weights`: see `_group_size`.
    columns = (group.images.split(sizes), group.targets.split(sizes), shards)
    return [
        Batch(batch_images, batch_targets, part, loss_weight=weight)
        for batch_images, batch_targets, (part, weight) in zip(*columns, strict=True)
    ]


def _from_disk(
    files: Files,
    shards: Sequence[tuple[Tensor, float]],
    preprocessing: Preprocessing,
    *,
    device: torch.device | None,
    draws: Draws | None,
    workers: int,
) -> Iterator[Batch]:
    """Yield the batches of these shards, decoded by worker processes."""
    from cnn_core.data.streaming import crops_while_decoding, stream

    decoded = stream(files, [indices for indices, _ in shards], preprocessing, draws, workers)
    if draws is not None and crops_while_decoding(preprocessing, draws):
        draws = draws.without_crop()  # or `collate` would crop the crop
    for (indices, weight), (images, targets) in zip(shards, decoded, strict=True):
        raw = Batch(images.to(device), targets.to(device), indices, loss_weight=weight)
        yield collate(raw, preprocessing, draws)


def _group_size(split: Split, whole_batches: Sequence[Tensor], draws: Draws | None) -> int:
    """Return how many batches to collate at once."""
    # A small batch costs more in calls than in arithmetic, so several are made together. But only
    # where a sample's result cannot depend on its neighbours, to the bit: bytes are copied and
    # values multiplied one by one, while mixing and interpolation work on the batch.
    if draws is not None:
        augmentation = draws.augmentation
        if augmentation.mixes or augmentation.reshapes or split.targets.ndim > 1:
            return 1
    values = len(whole_batches[0]) * split.images[0].numel() if whole_batches else GROUP
    return max(GROUP // max(values, 1), 1)


def _positions(split: Split, indices: Tensor) -> Tensor:
    """Return the rows of the split's tensors for samples: a subset shares its split's tensors."""
    return split.rows.index_select(0, indices) if isinstance(split, Subset) else indices


def _select(split: Split, indices: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor]:
    """Return images and targets of a split in memory, shifted and mirrored by `draws`."""
    positions = _positions(split, indices)
    targets = split.targets.index_select(0, positions)
    if draws is None or not (draws.augmentation.shift or draws.augmentation.flip):
        return split.images.index_select(0, positions), targets
    return shifted(split.images, targets, positions, indices, draws)


def _select_weights(split: Split, indices: Tensor, draws: Draws | None) -> Tensor | None:
    """Return the pixel weights of samples, shifted and mirrored like their images."""
    if split.weights is None or draws is None:
        return None  # evaluation weighs all pixels alike
    positions = _positions(split, indices)
    return shift_and_flip(split.weights[:, None], positions, draws.shifts(indices.numpy()))[:, 0]


def collate(raw: Batch, preprocessing: Preprocessing, draws: Draws | None) -> Batch:
    """Turn a batch of uint8 images into the network's input: resize, augment, normalise, mix."""
    if raw.targets.ndim == 3:
        return _collate_masks(raw, preprocessing, draws)
    if draws is None:
        return replace(raw, images=preprocessing(raw.images))
    augmentation, indices, images = draws.augmentation, raw.indices.numpy(), raw.images
    # First, on bytes: torchvision's policies are defined, and tuned, for uint8 images.
    if augmentation.policy:
        images = draws.apply_policy(images, indices)
    if augmentation.resamples or augmentation.jitter:
        images = preprocessing.resized(images)
        if augmentation.resamples:
            images, _ = draws.resample(images, indices)
        if augmentation.jitter:
            images = draws.jitter_color(images, indices)
        inputs = preprocessing.normalise(images)
    else:
        inputs = preprocessing(images)  # bytes all the way: no copy as floats in between
    if augmentation.erase or augmentation.cutout:
        inputs = draws.erase(inputs, indices)
    mix = None
    if augmentation.mixes:
        inputs, mix = draws.mix(inputs, raw.targets, indices)
    return replace(raw, images=inputs, mix=mix)


def _collate_masks(raw: Batch, preprocessing: Preprocessing, draws: Draws | None) -> Batch:
    """Do the same where targets are masks: every change of shape is applied to masks, too."""
    masks = preprocessing.resized_masks(raw.targets)
    if draws is None:
        return replace(raw, images=preprocessing(raw.images), targets=masks)
    augmentation, indices = draws.augmentation, raw.indices.numpy()
    images = preprocessing.resized(raw.images)
    weights = None if raw.weights is None else raw.weights.to(raw.images.device)
    if augmentation.resamples:
        images, grid = draws.resample(images, indices)
        masks = _resample_masks(masks, grid)
        weights = None if weights is None else _resample_masks(weights, grid)
    if preprocessing.tiled:
        u = draws.uniform("tile", indices, 2)
        images, masks = preprocessing.cropped(images, u), preprocessing.cropped(masks, u)
        weights = None if weights is None else preprocessing.cropped(weights, u)
    if augmentation.jitter:
        images = draws.jitter_color(images, indices)
    inputs = preprocessing.normalise(images)
    # Masks keep the classes of erased pixels: the network has to infer them from the rest.
    if augmentation.erase or augmentation.cutout:
        inputs = draws.erase(inputs, indices)
    return replace(raw, images=inputs, targets=masks, weights=weights)


def _resample_masks(masks: Tensor, grid: Tensor) -> Tensor:
    """Sample masks, N H W, at the nearest pixels of the images' grid: no new values arise."""
    layer = masks[:, None].float()
    found = F.grid_sample(layer, grid, "nearest", "reflection", align_corners=False)
    return found[:, 0].to(masks.dtype)
