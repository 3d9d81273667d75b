"""Names of VGG's parameters in other libraries, which number the layers of Table 1."""

from __future__ import annotations

from cnn_arch_vgg.table1 import TABLE_1
from cnn_core.weights import KeyMap

__all__ = ["key_maps"]

COLUMNS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}
# The normalisation in kuangliu's main.py.
KUANGLIU = {"fit": "resize", "mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.201)}
TORCHVISION_HEAD = [("fc6", "classifier.0"), ("fc7", "classifier.3"), ("fc8", "classifier.6")]


def key_maps(model: str) -> dict[str, KeyMap]:
    """Return the key map of each naming scheme in which weights of `model` are published.

    "kuangliu" is the scheme of github.com/kuangliu/pytorch-cifar.
    """
    depth, _, form = model.partition("_")
    column = COLUMNS[depth]
    if form == "cifar":
        pairs = (*_features_bn(column), ("fc", "classifier"))
        return {"kuangliu": KeyMap(*pairs, preprocessing=KUANGLIU)}
    features = _features_bn(column) if form == "bn" else _features(column)
    return {"torchvision": KeyMap(*features, *TORCHVISION_HEAD)}


def _features(column: str) -> list[tuple[str, str]]:
    """Pair our names with torchvision's, which numbers convolutions and ReLUs."""
    return [(conv, f"features.{index}") for conv, index in _convolutions(column, layers=2)]


def _features_bn(column: str) -> list[tuple[str, str]]:
    """Pair our names with theirs, which number convolutions, batch normalisations and ReLUs."""
    return [
        pair
        for conv, index in _convolutions(column, layers=3)
        for pair in (
            (f"{conv}.conv", f"features.{index}"),
            (f"{conv}.bn", f"features.{index + 1}"),
        )
    ]


def _convolutions(column: str, layers: int) -> list[tuple[str, int]]:
    """Return (our name, their number) of each convolution, which takes up `layers` numbers."""
    pairs, index = [], 0
    for stage, depth in enumerate(TABLE_1[column], start=1):
        for i in range(depth):
            pairs.append((f"conv{stage}.{i}", index))
            index += layers
        index += 1  # the pooling layer after the stage
    return pairs
