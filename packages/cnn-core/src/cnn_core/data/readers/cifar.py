"""CIFAR-10 and CIFAR-100: the binary version, or the pickled one, which runs no code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cnn_core.data.dataset import Dataset, Split
from cnn_core.data.fetching.download import Remote, fetch_and_extract
from cnn_core.data.readers.cifar_pickle import PIXELS, corrupt, read_pickled
from cnn_core.errors import DatasetMissingError
from cnn_core.specs import DatasetSpec

__all__ = ["load"]

MAX_RECORDS = 50_000  # of one file: CIFAR-100's train.bin
MAX_PICKLE = 2 * MAX_RECORDS * (PIXELS + 100)  # bytes: each of a pixel's may take two in UTF-8


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One version of a dataset: its files by split, and the folders that they come in."""

    files: Mapping[str, Sequence[str]]
    folder: str
    archive: str
    pickled: bool = False

    def folders(self, root: Path) -> tuple[Path, ...]:
        """Return where to look: `root`, and what the archive makes in it."""
        return (root, root / self.folder, root / self.archive / self.folder, root / self.archive)


TEN = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}

LAYOUTS = {
    "cifar10": (
        Layout(
            files={split: [f"{name}.bin" for name in names] for split, names in TEN.items()},
            folder="cifar-10-batches-bin",
            archive="cifar-10-binary",
        ),
        Layout(files=TEN, folder="cifar-10-batches-py", archive="cifar-10-python", pickled=True),
    ),
    "cifar100": (
        Layout(
            files={"train": ["train.bin"], "test": ["test.bin"]},
            folder="cifar-100-binary",
            archive="cifar-100-binary",
        ),
        Layout(
            files={"train": ["train"], "test": ["test"]},
            folder="cifar-100-python",
            archive="cifar-100-python",
            pickled=True,
        ),
    ),
}

# Label bytes ahead of a record's pixels, by the key that the pickled version gives them, and
# the number of classes of each; the last are the targets.
LABELS = {"cifar10": {"labels": 10}, "cifar100": {"coarse_labels": 20, "fine_labels": 100}}

MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
ARCHIVES = {name: f"{layouts[0].archive}.tar.gz" for name, layouts in LAYOUTS.items()}
REMOTES = {
    "cifar10": Remote(
        mirrors=MIRRORS,
        md5={ARCHIVES["cifar10"]: "c32a1d4ab5d03f1284b67883e8d87530"},
        size={ARCHIVES["cifar10"]: 170_052_171},
    ),
    "cifar100": Remote(
        mirrors=MIRRORS,
        md5={ARCHIVES["cifar100"]: "03b5dce01913d631647c71ecec9e9cb8"},
        size={ARCHIVES["cifar100"]: 168_513_733},
    ),
}


def load(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Read the binary version, else the pickled one, from `root`; fetch it first if asked to.

    Also looks in the folders that the published archives make. CIFAR-100's targets are the
    fine labels.

    Raises:
        DatasetMissingError: files are not there; says where it looked.
        DatasetCorruptError: a file breaks its format; names the file and the byte.
    """
    if download:
        fetch_and_extract(REMOTES[spec.name], ARCHIVES[spec.name], root)
    layout, folder = _find(spec, root)
    splits = {}
    for split, names in layout.files.items():
        paths = [folder / name for name in names]
        splits[split] = _read_split(paths, LABELS[spec.name], layout.pickled)
    return Dataset(spec, splits)


def _find(spec: DatasetSpec, root: Path) -> tuple[Layout, Path]:
    """Return the first folder with every file; if there is none, say what is missing where."""
    missing, nearest, there = "", root, 0
    for layout in LAYOUTS[spec.name]:
        names = [name for names in layout.files.values() for name in names]
        for folder in layout.folders(root):
            absent = [name for name in names if not (folder / name).is_file()]
            if not absent:
                return layout, folder
            if not missing or len(names) - len(absent) > there:
                missing, nearest, there = absent[0], folder, len(names) - len(absent)
    raise DatasetMissingError(
        f"dataset '{spec.name}': no {missing} in {nearest}",
        f"--data-dir DIR says where it is, --download fetches it ({spec.homepage})",
    )


def _read_split(paths: Sequence[Path], labels: Mapping[str, int], pickled: bool) -> Split:
    """Read files into one tensor, as large as their sizes allow and cut to what they hold."""
    read = read_pickled if pickled else _read_binary
    record = PIXELS if pickled else len(labels) + PIXELS
    sizes = [_checked_size(path, record, pickled) for path in paths]
    images = torch.empty((sum(sizes) // record, PIXELS), dtype=torch.uint8)
    rows, targets = images.numpy(), []
    count = 0
    for path in paths:
        targets.append(read(path, labels, rows[count:]))
        count += len(targets[-1])
    return Split(images[:count].view(count, 3, 32, 32), torch.cat(targets))


def _checked_size(path: Path, record: int, pickled: bool) -> int:
    """Return a file's size, which is whole records if it has no other structure."""
    size = path.stat().st_size
    if pickled:
        if not PIXELS <= size <= MAX_PICKLE:
            raise corrupt(path, f"{PIXELS:,} to {MAX_PICKLE:,} bytes", f"{size:,}")
    elif size < record or size % record:
        whole = size // record * record
        raise corrupt(path, f"a record of {record:,} bytes", f"{size - whole:,}", whole)
    elif size > MAX_RECORDS * record:
        raise corrupt(path, f"at most {MAX_RECORDS:,} records", f"{size // record:,}")
    return size


def _read_binary(path: Path, labels: Mapping[str, int], rows: np.ndarray) -> Tensor:
    """Read records of label bytes and pixels into the first rows; return the last labels."""
    ahead = len(labels)
    contents = np.frombuffer(path.read_bytes(), np.uint8)
    if len(contents) % (ahead + PIXELS) or len(contents) // (ahead + PIXELS) > len(rows):
        raise corrupt(path, "the size it had", f"{len(contents):,} bytes")
    records = contents.reshape(-1, ahead + PIXELS)
    for column, classes in enumerate(labels.values()):
        wrong = np.flatnonzero(records[:, column] >= classes)
        if len(wrong):
            at = int(wrong[0]) * (ahead + PIXELS) + column
            raise corrupt(path, f"a label from 0 to {classes - 1}", str(contents[at]), at)
    rows[: len(records)] = records[:, ahead:]
    return torch.from_numpy(records[:, ahead - 1].astype(np.int64))
