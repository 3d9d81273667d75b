"""The names of ImageNet's 1,000 classes, in the order of ILSVRC 2012, as torchvision has them."""

from __future__ import annotations

from importlib import resources

__all__ = ["CLASSES"]

CLASSES: tuple[str, ...] = tuple(
    resources.files("cnn_core.data")
    .joinpath("imagenet_classes.txt")
    .read_text("utf-8")
    .splitlines()
)
