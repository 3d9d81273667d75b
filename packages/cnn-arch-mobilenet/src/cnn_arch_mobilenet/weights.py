"""Names of MobileNet's parameters in other libraries."""

from __future__ import annotations

from cnn_core.weights import KeyMap

__all__ = ["key_maps"]

V1_STAGES = (1, 2, 2, 6, 2)  # numbers of blocks in timm's stages
V2_ROWS = (1, 2, 3, 4, 3, 3, 1)  # n of Table 2

# timm crops 0.875 of the shorter side.
TIMM = {"fit": "crop", "resize": 256, "interpolation": "bicubic"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def key_maps(model: str) -> dict[str, KeyMap]:
    """Return the key map of each naming scheme in which weights of `model` are published."""
    if model == "mobilenet_v1":
        # timm's network has ReLU6, like the authors' TensorFlow code; the paper's has ReLU.
        v1 = KeyMap(
            *_v1_timm(),
            options={"activation": "relu6"},
            preprocessing={**TIMM, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
            timm="mobilenetv1_100",
        )
        return {"timm": v1}
    as_in_timm = {**TIMM, "mean": MEAN, "std": STD}
    v2 = KeyMap(*_v2_timm(), preprocessing=as_in_timm, timm="mobilenetv2_100")
    return {"timm": v2, "torchvision": KeyMap(*_v2_torchvision())}


def _v1_timm() -> list[tuple[str, str]]:
    pairs = [("conv1.conv", "conv_stem"), ("conv1.bn", "bn1"), ("fc", "classifier")]
    blocks = [f"blocks.{s}.{b}" for s, count in enumerate(V1_STAGES) for b in range(count)]
    for number, block in enumerate(blocks, start=1):
        ours = f"separable{number}"
        pairs += _layer(f"{ours}.depthwise", f"{block}.conv_dw", f"{block}.bn1")
        pairs += _layer(f"{ours}.pointwise", f"{block}.conv_pw", f"{block}.bn2")
    return pairs


def _v2_timm() -> list[tuple[str, str]]:
    pairs = [("fc", "classifier")]
    pairs += _layer("conv1", "conv_stem", "bn1")
    pairs += _layer("conv2", "conv_head", "bn2")
    pairs += _layer("bottleneck1.0.depthwise", "blocks.0.0.conv_dw", "blocks.0.0.bn1")
    pairs += _layer("bottleneck1.0.project", "blocks.0.0.conv_pw", "blocks.0.0.bn2")
    for row in range(1, len(V2_ROWS)):
        ours, theirs = f"bottleneck{row + 1}.{{b}}", f"blocks.{row}.{{b}}"
        pairs += _layer(f"{ours}.expand", f"{theirs}.conv_pw", f"{theirs}.bn1")
        pairs += _layer(f"{ours}.depthwise", f"{theirs}.conv_dw", f"{theirs}.bn2")
        pairs += _layer(f"{ours}.project", f"{theirs}.conv_pwl", f"{theirs}.bn3")
    return pairs


def _v2_torchvision() -> list[tuple[str, str]]:
    pairs = [("fc", "classifier.1")]
    pairs += _layer("conv1", "features.0.0", "features.0.1")
    pairs += _layer("conv2", "features.18.0", "features.18.1")
    blocks = [f"bottleneck{row}.{b}" for row, n in enumerate(V2_ROWS, 1) for b in range(n)]
    for number, ours in enumerate(blocks, start=1):
        layers = [f"features.{number}.conv.{i}" for i in range(4)]
        if number == 1:  # no expansion
            pairs += _layer(f"{ours}.depthwise", f"{layers[0]}.0", f"{layers[0]}.1")
            pairs += _layer(f"{ours}.project", layers[1], layers[2])
        else:
            pairs += _layer(f"{ours}.expand", f"{layers[0]}.0", f"{layers[0]}.1")
            pairs += _layer(f"{ours}.depthwise", f"{layers[1]}.0", f"{layers[1]}.1")
            pairs += _layer(f"{ours}.project", layers[2], layers[3])
    return pairs


def _layer(ours: str, conv: str, bn: str) -> list[tuple[str, str]]:
    return [(f"{ours}.conv", conv), (f"{ours}.bn", bn)]
