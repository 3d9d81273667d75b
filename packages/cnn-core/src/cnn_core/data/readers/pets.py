"""Read Oxford-IIIT Pets: 37 breeds, two species, and masks of the pet.

In a trimap, 1 is the pet, 2 the background, and 3 the border and other undecided pixels. Several
public readers swap 1 and 2; a model that predicts "pet" everywhere then gets a Dice of 0.82.
"""

from __future__ import annotations

from pathlib import Path

import torch

from cnn_core.data.augment import IGNORED
from cnn_core.data.dataset import Dataset
from cnn_core.data.fetching.download import Remote, fetch_and_extract
from cnn_core.data.splits import Files
from cnn_core.errors import DatasetCorruptError, DatasetMissingError
from cnn_core.specs import DatasetSpec
from cnn_core.text import printable

__all__ = ["load_breeds", "load_masks", "load_species", "load_trimaps"]

REMOTE = Remote(  # MD5 as in torchvision.datasets.OxfordIIITPet
    mirrors=(
        "https://www.robots.ox.ac.uk/~vgg/data/pets/data/",
        "https://thor.robots.ox.ac.uk/pets/",
    ),
    md5={
        "images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
        "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f",
    },
)
LISTS = {"train": "trainval.txt", "test": "test.txt"}
PET, BACKGROUND, BORDER = 1, 2, 3  # values in a trimap


def load_breeds(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Return images labelled by breed."""
    return _classified(spec, root, download, column=0)


def load_species(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Return images labelled by species: 0 for cats, 1 for dogs."""
    return _classified(spec, root, download, column=1)


def load_masks(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Return images with masks: 1 for the pet, 0 for the background; the border is ignored."""
    return _masked(spec, root, download, {BACKGROUND: 0, PET: 1, BORDER: IGNORED})


def load_trimaps(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Return images with masks of three classes: background, pet, border."""
    return _masked(spec, root, download, {BACKGROUND: 0, PET: 1, BORDER: 2})


def _classified(spec: DatasetSpec, root: Path, download: bool, column: int) -> Dataset:
    """Return the images with classes from a column of the lists: 0 is breed, 1 is species."""
    images, annotations = _folders(spec, root, download)
    splits = {}
    for name, file in LISTS.items():
        rows = _rows(annotations / file)
        targets = [numbers[column] - 1 for _, numbers in rows]
        if wrong := [n + 1 for n in targets if not 0 <= n < len(spec.classes)]:
            raise DatasetCorruptError(
                f"{annotations / file}: number {wrong[0]}, expected 1 to {len(spec.classes)}"
            )
        paths = tuple(images / f"{stem}.jpg" for stem, _ in rows)
        splits[name] = Files(paths, torch.tensor(targets))
    return Dataset(spec, splits)


def _masked(spec: DatasetSpec, root: Path, download: bool, values: dict[int, int]) -> Dataset:
    """Return the images with their trimaps; `values` maps trimap values to class numbers."""
    images, annotations = _folders(spec, root, download)
    splits = {}
    for name, file in LISTS.items():
        stems = [stem for stem, _ in _rows(annotations / file)]
        masks = tuple(annotations / "trimaps" / f"{stem}.png" for stem in stems)
        splits[name] = Files(tuple(images / f"{stem}.jpg" for stem in stems), masks, 3, values)
    return Dataset(spec, splits)


def _folders(spec: DatasetSpec, root: Path, download: bool) -> tuple[Path, Path]:
    """Return the folders images and annotations, in `root` or in an unpacked archive."""
    if download:
        for archive in REMOTE.md5:
            fetch_and_extract(REMOTE, archive, root)
    found = []
    for part in ("images", "annotations"):
        candidates = (root / part / part, root / part, root / "oxford-iiit-pet" / part)
        folder = next((path for path in candidates if path.is_dir()), None)
        if folder is None:
            raise DatasetMissingError(
                f"dataset '{spec.name}': no folder {part} in {root}",
                "give its folder with --data-dir DIR, or fetch it with --download, in Python "
                f"download=True ({spec.homepage})",
            )
        found.append(folder)
    return found[0], found[1]


def _rows(path: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Return the rows of a list: a file stem, then breed, species and breed within species."""
    if not path.is_file():
        raise DatasetMissingError(f"{path}: no such file")
    rows = []
    for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
        if line.startswith("#") or not line.strip():
            continue
        stem, *numbers = line.split()
        valid = len(numbers) == 3 and all(n.isascii() and n.isdigit() for n in numbers)
        # A stem becomes part of a path: with a slash it could point to a file anywhere.
        if not valid or "/" in stem or "\\" in stem:
            raise DatasetCorruptError(
                f"{path}: line {number}: expected a name and three numbers, "
                f"found '{printable(line[:60])}'"
            )
        rows.append((stem, tuple(map(int, numbers))))
    if not rows:
        raise DatasetCorruptError(f"{path}: no lines")
    return rows
