"""Read STL-10: images stored column by column, labels from 1, folds, unlabelled images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cnn_core.data.dataset import Dataset
from cnn_core.data.fetching.download import Remote, fetch_and_extract
from cnn_core.data.splits import Split
from cnn_core.errors import DatasetCorruptError, DatasetMissingError
from cnn_core.specs import DatasetSpec
from cnn_core.text import printable

__all__ = ["folds", "load", "load_unlabelled"]

IMAGE = (3, 96, 96)
PIXELS = 3 * 96 * 96
CLASSES = 10
MAX_LABELLED = 8_000  # images; test_X.bin has this many
MAX_UNLABELLED = 100_000
BLOCK = 100  # images that are read and transposed at once
FOLDS, FOLD_SIZE, TRAIN_SIZE = 10, 1_000, 5_000

HOMEPAGE = "https://cs.stanford.edu/~acoates/stl10/"
ARCHIVE = "stl10_binary.tar.gz"
REMOTES = {
    "stl10": Remote(
        mirrors=("http://ai.stanford.edu/~acoates/stl10/",),
        md5={ARCHIVE: "91f7769df0f17e558f3565bffb0c7dfb"},
        size={ARCHIVE: 2_640_397_119},
    )
}


def load(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Read the labelled images, train and test, from `root`; download the archive if asked to.

    Also search the folder stl10_binary, which the published archive contains.

    Raises:
        DatasetMissingError: a file was not found; the message names the folder.
        DatasetCorruptError: a file is broken; the message names the file and the byte.
    """
    if download:
        fetch_and_extract(REMOTES[spec.name], ARCHIVE, root)
    splits = {}
    for split in ("train", "test"):
        images, labels = (_find(root, f"{split}_{letter}.bin") for letter in "Xy")
        splits[split] = Split(_read_images(images), _read_labels(labels, _count(images)))
    return Dataset(spec, splits)


def load_unlabelled(root: Path) -> Tensor:
    """Return the unlabelled images, uint8 N 3 96 96, memory-mapped, since they take 2.6 GB.

    The tensor is a transposed view. Writing to it does not change the file, and the file must not
    be truncated while the tensor is in use.

    Raises:
        DatasetMissingError: there is no unlabeled_X.bin.
        DatasetCorruptError: its size is not a multiple of the size of an image.
    """
    path = _find(root, "unlabeled_X.bin")
    count = _count(path, MAX_UNLABELLED)
    pixels = torch.from_file(str(path), shared=False, size=count * PIXELS, dtype=torch.uint8)
    return pixels.view(count, *IMAGE).transpose(2, 3)


def folds(root: Path) -> list[Tensor]:
    """Return the ten published folds, each 1,000 indices into the training split, int64.

    Raises:
        DatasetMissingError: there is no fold_indices.txt.
        DatasetCorruptError: the file is not ten lines of 1,000 distinct numbers from 0 to 4,999.
    """
    path = _find(root, "fold_indices.txt")
    # Check the size before reading: a wrong file may have gigabytes.
    if (size := path.stat().st_size) > FOLDS * FOLD_SIZE * 10:
        raise _corrupt(path, 0, f"at most {FOLDS * FOLD_SIZE * 10:,} bytes", f"{size:,}")
    lines = path.read_bytes().splitlines(keepends=True)
    if len(lines) != FOLDS:
        raise _corrupt(path, 0, f"{FOLDS} lines", str(len(lines)))
    found, offset = [], 0
    for line in lines:
        found.append(_fold(path, offset, line))
        offset += len(line)
    return found


def _fold(path: Path, offset: int, line: bytes) -> Tensor:
    words = line.split()
    for word in words:
        # Check the length first: converting a million digits to an int would take minutes.
        if not word.isdigit() or len(word) > 4 or int(word) >= TRAIN_SIZE:
            quoted = printable(word[:20].decode("latin-1"))
            raise _corrupt(path, offset, f"indices from 0 to {TRAIN_SIZE - 1:,}", f"'{quoted}'")
    indices = torch.tensor([int(word) for word in words], dtype=torch.int64)
    if len(indices) != FOLD_SIZE or len(indices.unique()) != FOLD_SIZE:
        found = f"{len(indices):,}, {len(indices.unique()):,} of them distinct"
        raise _corrupt(path, offset, f"{FOLD_SIZE:,} distinct indices", found)
    return indices


def _find(root: Path, name: str) -> Path:
    """Return the file called `name`, in `root` or in the folders of the unpacked archive."""
    unpacked = root / "stl10_binary"
    for folder in (root, unpacked, unpacked / "stl10_binary"):
        if (folder / name).is_file():
            return folder / name
    raise DatasetMissingError(
        f"dataset 'stl10': no {name} in {root}",
        "give its folder with --data-dir DIR, or fetch it with --download, in Python "
        f"download=True ({HOMEPAGE})",
    )


def _count(path: Path, limit: int = MAX_LABELLED) -> int:
    """Return the number of images in a file, computed from its size before memory is allocated."""
    size = path.stat().st_size
    count, rest = divmod(size, PIXELS)
    if rest or not count:
        raise _corrupt(path, size - rest, f"an image of {PIXELS:,} bytes", f"{rest:,}")
    if count > limit:
        raise _corrupt(path, 0, f"at most {limit:,} images", f"{count:,}")
    return count


def _read_images(path: Path) -> Tensor:
    """Read images and transpose them: in the file they are column-major, as in Matlab.

    Images are read block by block, so that memory holds no second copy of the split.
    """
    count = _count(path)
    images = torch.empty((count, *IMAGE), dtype=torch.uint8)
    with path.open("rb") as file:
        for start in range(0, count, BLOCK):
            part = images.numpy()[start : start + BLOCK]
            block = file.read(part.size)
            if len(block) != part.size:
                at = start * PIXELS
                raise _corrupt(path, at, f"{part.size:,} bytes", f"{len(block):,}")
            part[:] = np.frombuffer(block, np.uint8).reshape(part.shape).transpose(0, 1, 3, 2)
    return images


def _read_labels(path: Path, count: int) -> Tensor:
    """Read labels, one byte each; they count from 1 in the file and from 0 in the result."""
    if (size := path.stat().st_size) != count:
        raise _corrupt(path, 0, f"{count:,} labels, one for each image", f"{size:,}")
    labels = np.frombuffer(path.read_bytes(), np.uint8).astype(np.int64) - 1
    wrong = np.flatnonzero((labels < 0) | (labels >= CLASSES))
    if len(wrong):
        at = int(wrong[0])
        raise _corrupt(path, at, f"a label from 1 to {CLASSES}", str(labels[at] + 1))
    return torch.from_numpy(labels)


def _corrupt(path: Path, offset: int, expected: str, found: str) -> DatasetCorruptError:
    return DatasetCorruptError(
        f"{path}: at byte {offset}: expected {expected}, found {found}",
        "delete it and fetch it again",
    )
