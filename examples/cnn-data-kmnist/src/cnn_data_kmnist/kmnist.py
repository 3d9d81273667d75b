"""Read Kuzushiji-MNIST: four IDX files, in the same format as MNIST."""

from __future__ import annotations

from pathlib import Path

from cnn_core import DatasetSpec
from cnn_core.data import Dataset, Remote, Split, fetch, read_idx
from cnn_core.errors import DatasetMissingError

__all__ = ["REMOTE", "load"]

REMOTE = Remote(  # checksums as in torchvision.datasets
    mirrors=("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
    md5={
        "train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
        "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
        "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
        "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
    },
)
PREFIXES = {"train": "train", "test": "t10k"}  # of the files of each split


def load(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Read the four files, gzipped or not, from `root`; download them first if `download`.

    Raises:
        DatasetMissingError: a file is not in `root`.
    """
    if download:
        fetch(REMOTE, root)
    splits = {}
    for split, prefix in PREFIXES.items():
        images = read_idx(_find(root, f"{prefix}-images-idx3-ubyte"), 3)
        labels = read_idx(_find(root, f"{prefix}-labels-idx1-ubyte"), 1)
        splits[split] = Split(images[:, None], labels.long())
    return Dataset(spec, splits)


def _find(root: Path, name: str) -> Path:
    for path in (root / name, root / f"{name}.gz"):
        if path.is_file():
            return path
    raise DatasetMissingError(
        f"dataset 'kmnist': no {name} or {name}.gz in {root}",
        "--data-dir DIR reads it from a directory, --download fetches it",
    )
