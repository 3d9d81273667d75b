"""Names of GoogLeNet's parameters in torchvision."""

from __future__ import annotations

from cnn_core.weights import KeyMap

__all__ = ["key_maps"]

BRANCHES = (
    ("conv1x1", "branch1"),
    ("reduce3x3", "branch2.0"),
    ("conv3x3", "branch2.1"),
    ("reduce5x5", "branch3.0"),
    ("conv5x5", "branch3.1"),
    ("pool_proj", "branch4.1"),
)
TORCHVISION = (
    ("conv1", "conv1"),
    ("conv2.0", "conv2"),
    ("conv2.1", "conv3"),
    *(
        (f"inception{{n}}{letter}.{ours}", f"inception{{n}}{letter}.{theirs}")
        for letter in "abcde"
        for ours, theirs in BRANCHES
    ),
    ("linear", "fc"),
    ("aux{n}.conv", "aux{n}.conv"),
    ("aux{n}.fc", "aux{n}.fc1"),
    ("aux{n}.linear", "aux{n}.fc2"),
)


def key_maps(model: str) -> dict[str, KeyMap]:
    """Return the key map of each naming scheme in which weights of `model` are published."""
    if model == "googlenet":
        return {}
    # torchvision's files contain the auxiliary classifiers; with aux=False they are ignored.
    return {"torchvision": KeyMap(*TORCHVISION, ignored_prefixes=("aux1.", "aux2."))}
