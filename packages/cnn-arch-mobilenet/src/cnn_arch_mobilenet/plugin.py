"""The plugin of cnn-arch-mobilenet: specs only, no torch."""

from __future__ import annotations

from typing import Any

from cnn_core import ModelSpec, Paper, RecipeSpec, WeightsSpec, hookimpl, recipes_in
from cnn_core.weights.torchvision import torchvision_weights

V1 = Paper(
    title="MobileNets: efficient convolutional neural networks for mobile vision applications",
    authors=(
        "A. G. Howard, M. Zhu, B. Chen, D. Kalenichenko, W. Wang, T. Weyand, M. Andreetto, H. Adam"
    ),
    year=2017,
    url="https://arxiv.org/abs/1704.04861",
)
V2 = Paper(
    title="MobileNetV2: inverted residuals and linear bottlenecks",
    authors="M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen",
    year=2018,
    url="https://arxiv.org/abs/1801.04381",
)
PADDING = (
    "layers with stride 2 pad one pixel on each side; the authors' TensorFlow code pads only at "
    "the right and the bottom"
)
INITIALISATION = (
    "initialised after He et al. (2015), by fan-out; the paper gives no initialisation"
)


def model(name: str, **fields: Any) -> ModelSpec:
    """Return a spec with the fields that both networks share."""
    return ModelSpec(
        name=name,
        target=f"cnn_arch_mobilenet.{name}:{name}",
        family="mobilenet",
        input=(3, 224, 224),
        min_size=1,
        num_classes=1000,
        key_maps="cnn_arch_mobilenet.weights:key_maps",
        tags=("paper",),
        **fields,
    )


TORCHVISION = (
    torchvision_weights(
        "mobilenet_v2", "mobilenet_v2-b0353104.pth", 13.555, 71.878, 90.286, default=False
    ),
    torchvision_weights(
        "mobilenet_v2", "mobilenet_v2-7ebf99e0.pth", 13.598, 72.154, 90.822, version=2
    ),
)


@hookimpl
def cnnzoo_models() -> list[ModelSpec]:
    return [
        model(
            "mobilenet_v1",
            variant="MobileNet v1, width 1 (the paper also uses 0.75, 0.5 and 0.25)",
            summary="thirteen depthwise separable convolutions, with a width multiplier",
            paper=V1,
            params=4_231_976,
            macs=568_740_352,
            stages=("conv1", *(f"separable{i}" for i in range(1, 14)), "fc"),
            cam_stage="separable13",
            departures=(
                "the last depthwise layer has stride 1: Table 1 prints s2, but 7x7 maps after it",
                PADDING,
                INITIALISATION,
            ),
        ),
        model(
            "mobilenet_v2",
            variant="MobileNet v2, width 1 (the paper also uses 0.35, 0.5, 0.75 and 1.4)",
            summary="inverted residuals with linear bottlenecks, with a width multiplier",
            paper=V2,
            params=3_504_872,
            macs=300_774_272,
            stages=("conv1", *(f"bottleneck{i}" for i in range(1, 8)), "conv2", "fc"),
            cam_stage="conv2",
            departures=(
                PADDING,
                "dropout of 0.2 before the last layer, as in the authors' code",
                INITIALISATION,
            ),
        ),
    ]


@hookimpl
def cnnzoo_recipes() -> list[RecipeSpec]:
    return recipes_in("cnn_arch_mobilenet")


@hookimpl
def cnnzoo_weights() -> list[WeightsSpec]:
    return [*TORCHVISION]
