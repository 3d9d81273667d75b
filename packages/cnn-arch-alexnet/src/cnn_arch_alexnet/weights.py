"""Names of AlexNet's parameters in torchvision."""

from __future__ import annotations

from cnn_core.weights import KeyMap

__all__ = ["key_maps"]


def key_maps(model: str) -> dict[str, KeyMap]:
    """Return the key map of each naming scheme that has this model; there may be none."""
    return {"torchvision": TORCHVISION} if model == "alexnet_owt" else {}


# fmt: off
TORCHVISION = KeyMap(
    ("conv1", "features.0"),
    ("conv2", "features.3"),
    ("conv3", "features.6"),
    ("conv4", "features.8"),
    ("conv5", "features.10"),
    ("fc6",   "classifier.1"),
    ("fc7",   "classifier.4"),
    ("fc8",   "classifier.6"),
)
# fmt: on
