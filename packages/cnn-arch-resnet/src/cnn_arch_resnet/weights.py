"""Names of ResNet's parameters in the checkpoints of other projects.

Names and shapes cannot tell v1 from v1.5, since the stride of a bottleneck is in neither.
torchvision's checkpoints have the stride in the 3x3 and belong in `resnet50`; `resnet50_v1` loads
files with these names only if the caller asks for `naming="torchvision"`. Names and shapes cannot
tell variants of option A apart either: ours puts half of the zeros before the channels and half
after, like the networks of the scheme "akamaster".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cnn_core.weights import KeyMap

__all__ = ["key_maps"]

# The normalisation in the training scripts of akamaster (of ImageNet) and kuangliu (of CIFAR-10).
AKAMASTER = {"fit": "resize", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
KUANGLIU = {"fit": "resize", "mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.201)}
V15 = "torchvision's bottlenecks have their stride in the 3x3 (v1.5): its files are for '{}'"


def key_maps(model: str) -> dict[str, KeyMap]:
    """Return the key map of each naming scheme in which checkpoints of this model exist.

    "torchvision": the ImageNet networks (timm uses the same names). "akamaster":
    github.com/akamaster/pytorch_resnet_cifar10, followed by most CIFAR checkpoints. "chenyaofo":
    github.com/chenyaofo/pytorch-cifar-models, for the networks with option B. "kuangliu":
    github.com/kuangliu/pytorch-cifar, for the networks with the 3x3 stem.
    """
    if model in ("resnet18_cifar", "resnet50_cifar"):
        return {"kuangliu": _key_map(4, "shortcut", "linear", preprocessing=KUANGLIU)}
    akamaster = _key_map(3, "shortcut", "linear", preprocessing=AKAMASTER)
    if model.endswith("_cifar"):
        return {"akamaster": akamaster}
    if model.endswith("_cifar_b"):
        return {
            "akamaster": akamaster,
            "chenyaofo": _key_map(3, "downsample", "fc"),
        }
    if model.endswith("_v1"):
        warning = V15.format(model.removesuffix("_v1"))
        return {"torchvision": _key_map(4, "downsample", "fc", warning)}
    return {"torchvision": _key_map(4, "downsample", "fc", timm=model)}


def _key_map(
    stages: int,
    shortcut: str,
    last: str,
    warning: str = "",
    preprocessing: Mapping[str, Any] | None = None,
    timm: str = "",
) -> KeyMap:
    """Return the key map of a project that calls our conv2_x layer1, our conv3_x layer2 and so on.

    `shortcut` and `last` are its names of the projections and of fc.
    """
    pairs = [("conv1.conv", "conv1"), ("conv1.bn", "bn1"), ("fc", last)]
    for s in range(1, stages + 1):
        ours, theirs = f"conv{s + 1}_x.{{b}}", f"layer{s}.{{b}}"
        for i in range(3):  # a bottleneck has three convolutions; a basic block ignores the third
            pairs.append((f"{ours}.residual.{i}.conv", f"{theirs}.conv{i + 1}"))
            pairs.append((f"{ours}.residual.{i}.bn", f"{theirs}.bn{i + 1}"))
        pairs.append((f"{ours}.shortcut.conv", f"{theirs}.{shortcut}.0"))
        pairs.append((f"{ours}.shortcut.bn", f"{theirs}.{shortcut}.1"))
    return KeyMap(*pairs, warning=warning, preprocessing=preprocessing, timm=timm)
