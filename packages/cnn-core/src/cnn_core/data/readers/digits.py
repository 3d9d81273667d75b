"""Read the 1,797 handwritten digits of scikit-learn, which come with cnn-core.

They are the test set of UCI's "Optical Recognition of Handwritten Digits": 8x8 images with values
from 0 to 16, here scaled to 0 to 255. The dataset has no test split of its own, so a random but
fixed fifth of each class becomes one. The same people wrote the digits of both splits.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch

from cnn_core.data.dataset import Dataset
from cnn_core.data.readers.idx import read_idx
from cnn_core.data.splits import Split
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
