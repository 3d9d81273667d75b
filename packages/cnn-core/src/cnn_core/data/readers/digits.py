"""The 1,797 handwritten digits that scikit-learn ships; cnn-core ships them, too: no download.

They are the test part of UCI's "Optical Recognition of Handwritten Digits": 8x8 counts of ink
from 0 to 16, here scaled to 0 to 255. The dataset has no test split of its own, so a fixed random
fifth of each class becomes one. Digits of both splits were written by the same people.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch

from cnn_core.data.dataset import Dataset, Split
from cnn_core.data.readers.idx import read_idx
from cnn_core.specs import DatasetSpec

__all__ = ["load"]


def load(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Return the digits; `root` and `download` are not used."""
    with resources.as_file(resources.files("cnn_core.data") / "files") as folder:
        ink = read_idx(folder / "digits-images-idx3-ubyte.gz", 3)
        labels = read_idx(folder / "digits-labels-idx1-ubyte.gz", 1)
    images = (ink * 255.0 / 16).round().to(torch.uint8)[:, None]
    whole = Dataset(spec, {"train": Split(images, labels.long())})
    train, test = whole.hold_out(0.2, seed=0)
    return Dataset(spec, {"train": train, "test": test})
