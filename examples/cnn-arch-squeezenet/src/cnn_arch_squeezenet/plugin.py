"""The plugin of cnn-arch-squeezenet: specs only, no torch, since every command imports it."""

from __future__ import annotations

from cnn_core import ModelSpec, Paper, RecipeSpec, hookimpl, recipes_in

PAPER = Paper(
    title=("SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size"),
    authors="F. N. Iandola, S. Han, M. W. Moskewicz, K. Ashraf, W. J. Dally, K. Keutzer",
    year=2016,
    url="https://arxiv.org/abs/1602.07360",
)
DEPARTURES = (
    "initialised after He et al. (2015), conv10 from N(0, 0.01^2)",
    "pooling keeps incomplete windows at the border, as in Caffe",
)


@hookimpl
def cnnzoo_models() -> list[ModelSpec]:
    return [
        ModelSpec(
            name="squeezenet1_0",
            target="cnn_arch_squeezenet.squeezenet:squeezenet1_0",
            family="squeezenet",
            variant="SqueezeNet 1.0, Table 1",
            summary="Fire modules: squeeze to few maps, then expand by 1x1 and 3x3 convolutions",
            paper=PAPER,
            input=(3, 224, 224),
            min_size=21,
            num_classes=1000,
            params=1_248_424,
            macs=818_924_576,
            stages=(
                *("conv1", "maxpool1", "fire2", "fire3", "fire4", "maxpool4", "fire5", "fire6"),
                *("fire7", "fire8", "maxpool8", "fire9", "conv10"),
            ),
            cam_stage="fire9",
            key_maps="cnn_arch_squeezenet.weights:key_maps",
            departures=DEPARTURES,
            tags=("paper",),
        ),
        ModelSpec(
            name="squeezenet1_1",
            target="cnn_arch_squeezenet.squeezenet:squeezenet1_1",
            family="squeezenet",
            variant="SqueezeNet 1.1, the authors' later version",
            summary="SqueezeNet with earlier pooling: 2.3 times less computation",
            paper=PAPER,
            input=(3, 224, 224),
            min_size=17,
            num_classes=1000,
            params=1_235_496,
            macs=349_151_936,
            stages=(
                *("conv1", "maxpool1", "fire2", "fire3", "maxpool3", "fire4", "fire5", "maxpool5"),
                *("fire6", "fire7", "fire8", "fire9", "conv10"),
            ),
            cam_stage="fire9",
            key_maps="cnn_arch_squeezenet.weights:key_maps",
            departures=DEPARTURES,
        ),
    ]


@hookimpl
def cnnzoo_recipes() -> list[RecipeSpec]:
    return recipes_in("cnn_arch_squeezenet")
