"""Reader of the ISBI 2012 challenge, U-Net's first dataset: 30 slices with membrane masks."""

from __future__ import annotations

from pathlib import Path

import torch

from cnn_core.data.dataset import Dataset, Files
from cnn_core.data.readers.folders import sorted_files
from cnn_core.errors import DatasetCorruptError, DatasetMissingError
from cnn_core.specs import DatasetSpec

__all__ = ["load"]

HELD_OUT = 6  # of the 30 slices, chosen by seed 0: the challenge's test masks are not public
VALUES = {0: 0, 255: 1}  # membrane, cell


def load(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Return images/N.png with masks/N.png, from `root` or its subfolder isbi."""
    folder = next((f for f in (root, root / "isbi") if (f / "images").is_dir()), None)
    if folder is None or not (folder / "masks").is_dir():
        raise DatasetMissingError(
            f"dataset '{spec.name}': no folders images and masks in {root}",
            f"give their folder with --data-dir DIR ({spec.homepage})",
        )
    images = {path.stem: path for path in sorted_files(folder / "images")}
    masks = {path.stem: path for path in sorted_files(folder / "masks")}
    stems = sorted(images, key=lambda stem: (len(stem), stem))  # 2 before 10
    if images.keys() != masks.keys() or len(stems) != sum(spec.splits.values()):
        raise DatasetCorruptError(
            f"{folder}: {len(images)} images and {len(masks)} masks, "
            f"expected {sum(spec.splits.values())} of each, with the same names"
        )
    paths = tuple(images[stem] for stem in stems), tuple(masks[stem] for stem in stems)
    whole = Files(*paths, channels=1, values=VALUES)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    splits = {
        "train": whole.subset(order[HELD_OUT:].sort().values),
        "test": whole.subset(order[:HELD_OUT].sort().values),
    }
    return Dataset(spec, splits)
