"""Our names of parameters, and those of the checkpoints that others share.

Names and shapes do not tell v1 from v1.5: the stride of a bottleneck is in neither. What
torchvision publishes has it in the 3x3 and belongs in `resnet50`, never in `resnet50_v1`, which
takes files of these names only from those who say `naming="torchvision"`. Nor do they tell option
A of one CIFAR network from another's: ours puts half of the zeros before the channels and half
after, as the networks of the naming "akamaster".
"""

from __future__ import annotations

from cnn_core.weights import KeyMap

__all__ = ["key_maps"]

V15 = "torchvision's bottlenecks have their stride in the 3x3 (v1.5): its files are for '{}'"


def key_maps(model: str) -> dict[str, KeyMap]:
    """Return the key map of each naming that checkpoints of this model come in.

    "torchvision": the ImageNet networks (timm's names are the same). "akamaster":
    github.com/akamaster/pytorch_resnet_cifar10, which most CIFAR checkpoints follow. "chenyaofo":
    github.com/chenyaofo/pytorch-cifar-models, which has option B. "kuangliu":
    github.com/kuangliu/pytorch-cifar, the networks of the 3x3 stem.
    """
    if model in ("resnet18_cifar", "resnet50_cifar"):
        return {"kuangliu": _key_map(4, "shortcut", "linear")}
    if model.endswith("_cifar"):
        return {"akamaster": _key_map(3, "shortcut", "linear")}
    if model.endswith("_cifar_b"):
        return {
            "akamaster": _key_map(3, "shortcut", "linear"),
            "chenyaofo": _key_map(3, "downsample", "fc"),
        }
    beware = V15.format(model.removesuffix("_v1")) if model.endswith("_v1") else ""
    return {"torchvision": _key_map(4, "downsample", "fc", beware)}


def _key_map(stages: int, shortcut: str, last: str, beware: str = "") -> KeyMap:
    """conv1; `stages` stages, of which conv2_x is theirs layer1; the last layer."""
    pairs = [("conv1.conv", "conv1"), ("conv1.bn", "bn1"), ("fc", last)]
    for s in range(1, stages + 1):
        ours, theirs = f"conv{s + 1}_x.{{b}}", f"layer{s}.{{b}}"
        for i in range(3):  # convolutions of a bottleneck; a basic block has two
            pairs.append((f"{ours}.residual.{i}.conv", f"{theirs}.conv{i + 1}"))
            pairs.append((f"{ours}.residual.{i}.bn", f"{theirs}.bn{i + 1}"))
        pairs.append((f"{ours}.shortcut.conv", f"{theirs}.{shortcut}.0"))
        pairs.append((f"{ours}.shortcut.bn", f"{theirs}.{shortcut}.1"))
    return KeyMap(*pairs, beware=beware)
