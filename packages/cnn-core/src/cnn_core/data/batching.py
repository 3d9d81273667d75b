"""Turn a split into batches for a network.

In-memory and on-disk splits share one path: uint8 images, N C H W, come from a tensor or from
files, and `collate` does everything else to the whole batch on its device. Until then images stay
uint8, which takes a quarter of the memory and bandwidth of float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.augment import Draws, Mix
from cnn_core.data.counter_rng import key_of
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.data.splits import Files, Split, Subset
from cnn_core.data.windows import shift_and_flip, shifted

__all__ = ["Batch", "batch_sizes", "batches", "permutation", "shard"]


@dataclass(frozen=True)
class Batch:
    """A batch: normalised float32 images, N C H W; targets, N or N H W; indices in the split, N.

    Under mixup and CutMix, `mix` holds the second image's targets and the mixing weights.
    `loss_weight` scales the batch's mean loss so that the average over all ranks is the mean over
    all samples. It is 1 with a single process, and 0 on a rank that repeats a sample because it
    has none of its own. `weights` are loss weights: of images, N; of their classes, N x classes;
    or of pixels, N H W. None weights all equally.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    mix: Mix | None = None
    loss_weight: float = 1.0
    weights: Tensor | None = None

    def micro_batches(self, size: int) -> Iterator[Batch]:
        """Yield micro-batches of about `size` samples; their loss weights sum to the batch's.

        The last micro-batch may be smaller, or larger by one sample (see `batch_sizes`).
        """
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
                mix=self.mix and self.mix.part(part),
                loss_weight=self.loss_weight * len(indices) / len(self.indices),
                weights=None if self.weights is None else self.weights[part],
            )


# Target number of image values per preprocessing call: small batches are grouped to reach it.
VALUES_PER_GROUP = 2**18


def permutation(length: int, seed: int, epoch: int) -> Tensor:
    """Return the sample order of an epoch: 0 to length - 1, shuffled by (seed, epoch)."""
    # A generator of its own: the order must not depend on other uses of torch's global one.
    generator = torch.Generator().manual_seed(key_of(seed, epoch) >> 1)
    return torch.randperm(length, generator=generator)


def shard(batch: Tensor, rank: int, world: int, *, never_empty: bool) -> tuple[Tensor, float]:
    """Return the sample indices of a batch that this rank processes, and `Batch.loss_weight`.

    A rank takes every `world`-th sample, starting at `rank`. With `never_empty`, a rank without
    samples repeats the first one with loss weight 0: in training every rank has to join every
    all-reduce.
    """
    # Strided, so that the sizes of the shards differ by at most one sample.
    part = batch[rank::world]
    if never_empty and len(part) == 0:
        return batch[:1], 0.0
    return part, len(part) * world / max(len(batch), 1)


def batch_sizes(count: int, batch_size: int, training: bool) -> list[int]:
    """Return the size of each batch.

    In training, a final batch of one sample is merged into the one before it, unless `batch_size`
    is 1.
    """
    sizes = [batch_size] * (count // batch_size) + [count % batch_size] * (count % batch_size > 0)
    # On its own it would raise an error: batch norm on 1x1 maps needs more than one value per
    # channel. If batch_size is 1, all batches are like that, and merging two would not help.
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
    """Yield the batches of a split.

    `draws` shuffles and augments the samples, for training. None, for evaluation, yields them in
    order and without augmentation. `batch_size` is the total over all ranks: each batch is
    sharded over `world` ranks. The last batch may be smaller; in training, a final batch of one
    sample is merged into the one before it. Files are decoded by `workers` processes; their
    number affects only speed. `first` is the number of the first batch to yield, from 0, for
    resuming within an epoch.
    """
    training = draws is not None
    order = torch.arange(len(split))
    if draws is not None:
        order = permutation(len(split), draws.seed, draws.epoch)
    whole_batches = order.split(batch_sizes(len(order), batch_size, training))
    count = _group_size(split, whole_batches, draws) if isinstance(split, Split) else 1
    # Keep group boundaries independent of `first`: a resumed epoch then has the same memory
    # layout, and kernels that depend on alignment give bit-identical results.
    skipped = first % count
    shards = [shard(whole, rank, world, never_empty=training) for whole in whole_batches]
    # In evaluation a rank may have no samples of the last batch.
    shards = [(indices, weight) for indices, weight in shards[first - skipped :] if len(indices)]
    if isinstance(split, Split):
        for start in range(0, len(shards), count):
            group = _from_memory(
                split, shards[start : start + count], preprocessing, device, draws
            )
            yield from group[skipped if start == 0 else 0 :]
            del group  # before the next one is made: otherwise two would be in memory at once
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
    # `_group_size` never groups batches that have `mix` or `weights`.
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
        draws = draws.without_crop()  # otherwise `collate` would crop a second time
    for (indices, weight), batch in zip(shards, decoded, strict=True):
        if batch is None:
            continue
        weights = None if files.weights is None or draws is None else files.weights[batch.indices]
        raw = Batch(
            images=batch.images.to(device),
            targets=batch.targets.to(device),
            # In training, they determine the random numbers, also of samples in another's place.
            indices=batch.indices if draws is None else indices,
            loss_weight=weight,
            weights=weights,
        )
        yield collate(raw, preprocessing.after_cropping, draws)


def _group_size(split: Split, whole_batches: Sequence[Tensor], draws: Draws | None) -> int:
    """Return how many batches to collate at once."""
    # For small batches call overhead dominates, so several are collated together, but only if
    # the augmentation is element-wise and the result therefore bit-identical.
    if draws is not None:
        augmentation = draws.augmentation
        if augmentation.mixes or augmentation.beyond_shift_and_flip or split.targets.ndim > 1:
            return 1
        if split.weights is not None:
            return 1
    values = len(whole_batches[0]) * split.images[0].numel() if whole_batches else VALUES_PER_GROUP
    return max(VALUES_PER_GROUP // max(values, 1), 1)


def _rows(split: Split, indices: Tensor) -> Tensor:
    """Map sample indices to rows of the split's tensors: a Subset is a view of its parent's."""
    return split.rows.index_select(0, indices) if isinstance(split, Subset) else indices


def _select(split: Split, indices: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor]:
    """Return images and targets of a split in memory, shifted and mirrored by `draws`."""
    rows = _rows(split, indices)
    targets = split.targets.index_select(0, rows)
    if draws is None or not (draws.augmentation.shift or draws.augmentation.flip):
        return split.images.index_select(0, rows), targets
    return shifted(split.images, targets, rows, indices, draws)


def _select_weights(split: Split, indices: Tensor, draws: Draws | None) -> Tensor | None:
    """Return the weights of samples; those of pixels are shifted and mirrored like the images."""
    if split.weights is None or draws is None:
        return None  # evaluation weights everything equally
    rows = _rows(split, indices)
    if split.weights.ndim < 3:
        return split.weights[rows]
    return shift_and_flip(split.weights[:, None], rows, draws.shifts(indices.numpy()))[:, 0]


def collate(raw: Batch, preprocessing: Preprocessing, draws: Draws | None) -> Batch:
    """Turn a batch of uint8 images into network input: resize, augment, normalise, mix."""
    if raw.targets.ndim == 3:
        return _collate_masks(raw, preprocessing, draws)
    if draws is None:
        return replace(raw, images=preprocessing(raw.images))
    augmentation, indices, images = draws.augmentation, raw.indices.numpy(), raw.images
    weights = None if raw.weights is None else raw.weights.to(images.device)
    # First, while images are uint8: torchvision's policies are defined and tuned for that.
    if augmentation.policy:
        images = draws.apply_policy(images, indices)
    if augmentation.resamples or augmentation.jitter:
        # A random part of the whole image replaces the centre, so it is resized only now.
        random_part = preprocessing.crops and bool(augmentation.crop)
        images = images.float() / 255 if random_part else preprocessing.resized(images)
        if augmentation.resamples:
            size = preprocessing.size if random_part else None
            images, _ = draws.resample(images, indices, size)
        if augmentation.jitter:
            images = draws.jitter_color(images, indices)
        inputs = preprocessing.normalise(images)
    else:
        inputs = preprocessing(images)  # straight from uint8, unless images have to be resized
    if augmentation.erase or augmentation.cutout:
        inputs = draws.erase(inputs, indices)
    mix = None
    if augmentation.mixes:
        inputs, mix = draws.mix(inputs, raw.targets, indices, weights)
    return replace(raw, images=inputs, mix=mix, weights=weights)


def _collate_masks(raw: Batch, preprocessing: Preprocessing, draws: Draws | None) -> Batch:
    """`collate` for mask targets: geometric transforms are applied to the masks, too."""
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
    """Sample masks or weights, N H W, on the images' grid, nearest neighbour: no new values."""
    maps = masks[:, None].float()
    resampled = F.grid_sample(maps, grid, "nearest", "reflection", align_corners=False)
    return resampled[:, 0].to(masks.dtype)
