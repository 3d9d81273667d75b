"""Names of AlexNet's parameters in torchvision."""

from __future__ import annotations

from cnn_core.weights import KeyMap

__all__ = ["key_maps"]

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


def key_maps(model: str) -> dict[str, KeyMap]:
    """Return the key map of each naming scheme in which weights of `model` are published."""
    return {"torchvision": TORCHVISION} if model == "alexnet_owt" else {}
