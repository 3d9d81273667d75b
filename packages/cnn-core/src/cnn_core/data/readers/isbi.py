"""Read the ISBI 2012 challenge, U-Net's first dataset: 30 slices with membrane masks."""

from __future__ import annotations

from pathlib import Path

import torch

from cnn_core.data.dataset import Dataset
from cnn_core.data.readers.folders import sorted_files
from cnn_core.data.splits import Files
from cnn_core.errors import DatasetCorruptError, DatasetMissingError
from cnn_core.specs import DatasetSpec
from cnn_core.text import counted

__all__ = ["load"]

HELD_OUT = 6  # test slices of the 30, chosen with seed 0: the official test masks are secret
VALUES = {0: 0, 255: 1}  # membrane, cell


def load(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Return images/N.png with masks/N.png, from `root` or its subfolder isbi.

    Raises:
        DatasetMissingError: there are no such folders.
        DatasetCorruptError: images and masks do not pair up, or their number is wrong.
    """
    folder = next((f for f in (root, root / "isbi") if (f / "images").is_dir()), None)
    if folder is None or not (folder / "masks").is_dir():
        raise DatasetMissingError(
            f"dataset '{spec.name}': no folders images and masks in {root}",
            f"give their folder with --data-dir DIR ({spec.homepage})",
        )
    images = {path.stem: path for path in sorted_files(folder / "images")}
    masks = {path.stem: path for path in sorted_files(folder / "masks")}
    stems = sorted(images, key=lambda stem: (len(stem), stem))  # so that 2 comes before 10
    if images.keys() != masks.keys() or len(stems) != sum(spec.splits.values()):
        raise DatasetCorruptError(
            f"{folder}: {counted(len(images), 'image')} and {counted(len(masks), 'mask')}, "
            f"expected {sum(spec.splits.values())} of each, with the same names"
        )
    pairs = tuple(images[stem] for stem in stems), tuple(masks[stem] for stem in stems)
    whole = Files(*pairs, channels=1, values=VALUES)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    splits = {
        "train": whole.subset(order[HELD_OUT:].sort().values),
        "test": whole.subset(order[:HELD_OUT].sort().values),
    }
    return Dataset(spec, splits)
