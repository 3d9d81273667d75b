"""Names of SqueezeNet's parameters in torchvision."""

from __future__ import annotations

from cnn_core.weights import KeyMap

__all__ = ["key_maps"]

INDICES = {  # indices of fire2 to fire9 in torchvision's `features`
    "squeezenet1_0": (3, 4, 5, 7, 8, 9, 10, 12),
    "squeezenet1_1": (3, 4, 6, 7, 9, 10, 11, 12),
}


def key_maps(model: str) -> dict[str, KeyMap]:
    """Return the key map of each naming scheme in which weights of `model` are published."""
    fires = ((f"fire{n}", f"features.{i}") for n, i in enumerate(INDICES[model], start=2))
    return {
        "torchvision": KeyMap(("conv1", "features.0"), *fires, ("conv10", "classifier.1")),
    }
