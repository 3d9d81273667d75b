"""The plugin of cnn-arch-vgg: specs only, no torch."""

from __future__ import annotations

from cnn_core import ModelSpec, Paper, RecipeSpec, WeightsSpec, hookimpl, recipes_in
from cnn_core.weights.torchvision import torchvision_weights

PAPER = Paper(
    title="Very deep convolutional networks for large-scale image recognition",
    authors="K. Simonyan, A. Zisserman",
    year=2015,
    url="https://arxiv.org/abs/1409.1556",
)

CONVOLUTIONS = tuple(f"{layer}{i}" for i in range(1, 6) for layer in ("conv", "pool"))
DEPARTURES = (
    "initialised after He et al. (2015), not from N(0, 0.1^2) or a trained shallower network",
    "maps of other image sizes are averaged to 7x7 before fc6",
)
BN = "batch normalisation after every convolution"

# fmt: off
IMAGENET = (  # name, column of Table 1, batch normalisation, params, macs
    ("vgg11",    "A", False, 132_863_336,  7_609_090_048),
    ("vgg11_bn", "A", True,  132_868_840,  7_609_090_048),
    ("vgg13",    "B", False, 133_047_848, 11_308_466_176),
    ("vgg13_bn", "B", True,  133_053_736, 11_308_466_176),
    ("vgg16",    "D", False, 138_357_544, 15_470_264_320),
    ("vgg16_bn", "D", True,  138_365_992, 15_470_264_320),
    ("vgg19",    "E", False, 143_667_240, 19_632_062_464),
    ("vgg19_bn", "E", True,  143_678_248, 19_632_062_464),
)
CIFAR = (  # name, column of Table 1, params, macs
    ("vgg11_cifar", "A",  9_231_114, 152_769_536),
    ("vgg16_cifar", "D", 14_728_266, 313_201_664),
)
# fmt: on

# fmt: off
TORCHVISION = (
    # name       file                     MiB      top-1   top-5
    ("vgg11",    "vgg11-8a719046.pth",    506.840, 69.020, 88.628),
    ("vgg13",    "vgg13-19584684.pth",    507.545, 69.928, 89.246),
    ("vgg16",    "vgg16-397923af.pth",    527.796, 71.592, 90.382),
    ("vgg19",    "vgg19-dcbb9e9d.pth",    548.051, 72.376, 90.876),
    ("vgg11_bn", "vgg11_bn-6002323d.pth", 506.881, 70.370, 89.810),
    ("vgg13_bn", "vgg13_bn-abd245e5.pth", 507.590, 71.586, 90.374),
    ("vgg16_bn", "vgg16_bn-6c64b313.pth", 527.866, 73.360, 91.516),
    ("vgg19_bn", "vgg19_bn-c79401a0.pth", 548.143, 74.218, 91.842),
)
# fmt: on


@hookimpl
def cnnzoo_models() -> list[ModelSpec]:
    return [_imagenet(*row) for row in IMAGENET] + [_cifar(*row) for row in CIFAR]


def _imagenet(name: str, column: str, bn: bool, params: int, macs: int) -> ModelSpec:
    return ModelSpec(
        name=name,
        target=f"cnn_arch_vgg.vgg:{name}",
        family="vgg",
        variant=f"column {column} of Table 1{', batch normalisation' if bn else ''}",
        summary=f"VGG-{name[3:5]}{' with batch normalisation' if bn else ''}, for ImageNet",
        paper=PAPER,
        input=(3, 224, 224),
        min_size=32,
        num_classes=1000,
        params=params,
        macs=macs,
        stages=(*CONVOLUTIONS, "fc6", "fc7", "fc8"),
        cam_stage="conv5",
        key_maps="cnn_arch_vgg.weights:key_maps",
        departures=(*DEPARTURES, BN) if bn else DEPARTURES,
        tags=("torchvision",) if bn else ("paper", "torchvision"),
    )


def _cifar(name: str, column: str, params: int, macs: int) -> ModelSpec:
    return ModelSpec(
        name=name,
        target=f"cnn_arch_vgg.vgg_cifar:{name}",
        family="vgg",
        variant=f"column {column} of Table 1, for 32x32",
        summary=f"VGG-{name[3:5]} with batch normalisation and one linear layer, for 32x32",
        paper=PAPER,
        input=(3, 32, 32),
        min_size=32,
        num_classes=10,
        params=params,
        macs=macs,
        stages=(*CONVOLUTIONS, "fc"),
        cam_stage="conv4",  # 4x4 maps; those of conv5 are 2x2, too coarse for a heat map
        key_maps="cnn_arch_vgg.weights:key_maps",
        departures=(
            "not a published network: one linear layer instead of fc6 to fc8, and no dropout",
            "images are 32x32; for larger images, maps are averaged to 1x1",
            BN,
            "initialised after He et al. (2015)",
        ),
        tags=("small",),
    )


@hookimpl
def cnnzoo_recipes() -> list[RecipeSpec]:
    return recipes_in("cnn_arch_vgg")


@hookimpl
def cnnzoo_weights() -> list[WeightsSpec]:
    return [torchvision_weights(*row) for row in TORCHVISION]
