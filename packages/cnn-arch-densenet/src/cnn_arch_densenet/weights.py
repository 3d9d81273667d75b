"""Names of DenseNet's parameters in other libraries."""

from __future__ import annotations

from cnn_core.weights import KeyMap

__all__ = ["key_maps"]

LAYERS = range(48)  # the deepest block, the third of densenet201, has 48 layers


def torchvision(dot: str, timm: str = "") -> KeyMap:
    """Return the key map of torchvision's code ("norm1") or, with dot = ".", files ("norm.1").

    torchvision counts layers from 1; here they count from 0. timm has torchvision's names.
    """
    layers = (
        (f"block{{b}}.layers.{i}.{ours}", f"features.denseblock{{b}}.denselayer{i + 1}.{theirs}")
        for i in LAYERS
        for ours, theirs in (
            ("reduce.norm", f"norm{dot}1"),
            ("reduce.conv", f"conv{dot}1"),
            ("grow.norm", f"norm{dot}2"),
            ("grow.conv", f"conv{dot}2"),
        )
    )
    return KeyMap(
        ("conv.0", "features.conv0"),
        ("conv.1", "features.norm0"),
        *layers,
        ("transition{b}", "features.transition{b}"),
        ("norm.0", "features.norm5"),
        ("linear", "classifier"),
        timm=timm,
    )


def pytorchcv() -> KeyMap:
    """Return the key map of pytorchcv, where a transition belongs to the next stage."""
    layers = (
        (f"block{{b}}.layers.{i}.{ours}", f"features.stage{{b}}.unit{i + 1}.{theirs}")
        for i in LAYERS
        for ours, theirs in (
            ("reduce.norm", "conv1.bn"),
            ("reduce.conv", "conv1.conv"),
            ("grow.norm", "conv2.bn"),
            ("grow.conv", "conv2.conv"),
        )
    )
    return KeyMap(
        ("conv", "features.init_block"),
        *layers,
        ("transition1.norm", "features.stage2.trans2.conv.bn"),
        ("transition1.conv", "features.stage2.trans2.conv.conv"),
        ("transition2.norm", "features.stage3.trans3.conv.bn"),
        ("transition2.conv", "features.stage3.trans3.conv.conv"),
        ("norm.0", "features.post_activ.bn"),
        ("linear", "output"),
    )


def key_maps(model: str) -> dict[str, KeyMap]:
    """Return the key map of each naming scheme in which weights of `model` are published.

    densenet40_cifar has none: pytorchcv's version compresses in transitions, which the paper does
    only in DenseNet-BC.
    """
    if model == "densenet100_cifar":
        return {"pytorchcv": pytorchcv()}
    if model == "densenet40_cifar":
        return {}
    return {"torchvision": torchvision("", timm=model), "torchvision-files": torchvision(".")}
