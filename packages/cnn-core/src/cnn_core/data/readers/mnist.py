"""Read MNIST, and other datasets in its format: four IDX files."""

from __future__ import annotations

from pathlib import Path

from cnn_core.data.dataset import Dataset
from cnn_core.data.fetching.download import Remote, fetch
from cnn_core.data.readers.idx import read_idx
from cnn_core.data.splits import Split
from cnn_core.errors import DatasetMissingError
from cnn_core.specs import DatasetSpec

__all__ = ["load"]

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

# MD5 of the gzipped files, as in torchvision.datasets.
REMOTES = {
    "mnist": Remote(
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        md5={
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion_mnist": Remote(
        mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        md5={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
}


def load(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Read the four files, gzipped or not, from `root`; download them first if asked to."""
    if download:
        fetch(REMOTES[spec.name], root)
    splits = {}
    for name, (images, labels) in FILES.items():
        splits[name] = Split(
            images=read_idx(_find(spec, root, images), 3)[:, None],
            targets=read_idx(_find(spec, root, labels), 1).long(),
        )
    return Dataset(spec, splits)


def _find(spec: DatasetSpec, root: Path, name: str) -> Path:
    """Return the file, gzipped or not, in `root` or in torchvision's subfolder raw/."""
    for folder in (root, root / "raw"):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise DatasetMissingError(
        f"dataset '{spec.name}': no {name} or {name}.gz in {root}",
        "give its folder with --data-dir DIR, or fetch it with --download, in Python "
        f"download=True ({spec.homepage})",
    )
