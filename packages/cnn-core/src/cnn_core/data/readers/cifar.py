"""Read CIFAR-10 and CIFAR-100: the binary version, or the pickled one without running code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cnn_core.data.dataset import Dataset
from cnn_core.data.fetching.download import Remote, fetch_and_extract
from cnn_core.data.readers.cifar_pickle import PIXELS, corrupt, read_pickled
from cnn_core.data.splits import Split
from cnn_core.errors import DatasetMissingError
from cnn_core.specs import DatasetSpec

__all__ = ["load"]

MAX_RECORDS = 50_000  # in one file: as many as in CIFAR-100's train.bin
MAX_PICKLE = 2 * MAX_RECORDS * (PIXELS + 100)  # bytes: as UTF-8 text a value takes up to two


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One version of a dataset: its files by split, and the folder and archive that hold them."""

    files: Mapping[str, Sequence[str]]
    folder: str
    archive: str
    pickled: bool = False

    def folders(self, root: Path) -> tuple[Path, ...]:
        """Return the folders to search: `root`, and those that unpacking the archive creates."""
        return (root, root / self.folder, root / self.archive / self.folder, root / self.archive)


CIFAR10_FILES = {
    "train": [f"data_batch_{number}" for number in range(1, 6)],
    "test": ["test_batch"],
}

LAYOUTS = {
    "cifar10": (
        Layout(
            files={
                split: [f"{name}.bin" for name in names] for split, names in CIFAR10_FILES.items()
            },
            folder="cifar-10-batches-bin",
            archive="cifar-10-binary",
        ),
        Layout(
            files=CIFAR10_FILES,
            folder="cifar-10-batches-py",
            archive="cifar-10-python",
            pickled=True,
        ),
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

# The labels before the pixels of each record, by their keys in the pickled version, with their
# numbers of classes. The last one is the target.
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
    """Read the binary version, else the pickled one, from `root`, after `download` if it is true.

    The files may also be in the folders that the published archives contain. CIFAR-100's targets
    are the fine labels.

    Raises:
        DatasetMissingError: a file is missing; the message names the folder.
        DatasetCorruptError: a file is broken; the message names the file and, if known, the byte.
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
    """Return the first layout and folder with all files, or raise DatasetMissingError."""
    missing, closest, most_present = "", root, 0
    for layout in LAYOUTS[spec.name]:
        names = [name for names in layout.files.values() for name in names]
        for folder in layout.folders(root):
            absent = [name for name in names if not (folder / name).is_file()]
            if not absent:
                return layout, folder
            present = len(names) - len(absent)
            if not missing or present > most_present:
                missing, closest, most_present = absent[0], folder, present
    raise DatasetMissingError(
        f"dataset '{spec.name}': no {missing} in {closest}",
        "give its folder with --data-dir DIR, or fetch it with --download, in Python "
        f"download=True ({spec.homepage})",
    )


def _read_split(paths: Sequence[Path], labels: Mapping[str, int], pickled: bool) -> Split:
    """Read files into one tensor, allocated from their sizes and cut to the images they have."""
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
    """Return a file's size in bytes, checked: a binary file consists of whole records."""
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
    """Read records of labels and pixels; fill the first rows, and return the last labels."""
    label_bytes = len(labels)
    record = label_bytes + PIXELS
    contents = np.frombuffer(path.read_bytes(), np.uint8)
    if len(contents) % record or len(contents) // record > len(rows):
        raise corrupt(path, "an unchanged size", f"{len(contents):,} bytes")
    records = contents.reshape(-1, record)
    for column, classes in enumerate(labels.values()):
        wrong = np.flatnonzero(records[:, column] >= classes)
        if len(wrong):
            offset = int(wrong[0]) * record + column
            raise corrupt(path, f"a label from 0 to {classes - 1}", str(contents[offset]), offset)
    rows[: len(records)] = records[:, label_bytes:]
    return torch.from_numpy(records[:, label_bytes - 1].astype(np.int64))
