"""The plugin of cnn-arch-densenet: specs only, no torch."""

from __future__ import annotations

from cnn_core import ModelSpec, Paper, RecipeSpec, WeightsSpec, hookimpl, recipes_in
from cnn_core.weights.torchvision import torchvision_weights

PAPER = Paper(
    title="Densely connected convolutional networks",
    authors="G. Huang, Z. Liu, L. van der Maaten, K. Q. Weinberger",
    year=2016,
    url="https://arxiv.org/abs/1608.06993",
)

# fmt: off
IMAGENET = (
    # name         variant                             params           macs
    ("densenet121", "DenseNet-BC, 121 layers, k=32",  7_978_856, 2_834_161_664),
    ("densenet169", "DenseNet-BC, 169 layers, k=32", 14_149_480, 3_359_843_328),
    ("densenet201", "DenseNet-BC, 201 layers, k=32", 20_013_928, 4_291_365_888),
    ("densenet161", "DenseNet-BC, 161 layers, k=48", 28_681_000, 7_727_907_072),
)
CIFAR = (
    ("densenet40_cifar",  "DenseNet, L=40, k=12, no bottleneck",   1_019_722, 264_812_928),
    ("densenet100_cifar", "DenseNet-BC, L=100, k=12, theta=0.5",     769_162, 287_929_692),
)
# fmt: on
REPORTED = {  # Table 2: C10 and C10+, which is augmented by shifts and mirroring
    "densenet40_cifar": {"cifar10": "7.00 % test error, 5.24 % with shifts and mirroring"},
    "densenet100_cifar": {"cifar10": "5.92 % test error, 4.51 % with shifts and mirroring"},
}

# fmt: off
TORCHVISION = (
    # name          file                         MiB      top-1   top-5
    ("densenet121", "densenet121-a639ec97.pth",  30.845, 74.434, 91.972),
    ("densenet161", "densenet161-8d451a50.pth", 110.369, 77.138, 93.560),
    ("densenet169", "densenet169-b2777c0a.pth",  54.708, 75.600, 92.806),
    ("densenet201", "densenet201-c1103571.pth",  77.373, 76.896, 93.370),
)
# fmt: on
PORTED = "https://github.com/pytorch/vision/pull/116"  # from the authors' Torch models


@hookimpl
def cnnzoo_models() -> list[ModelSpec]:
    return [imagenet(*row) for row in IMAGENET] + [cifar(*row) for row in CIFAR]


@hookimpl
def cnnzoo_recipes() -> list[RecipeSpec]:
    return recipes_in("cnn_arch_densenet")


def imagenet(name: str, variant: str, params: int, macs: int) -> ModelSpec:
    """Return the spec of one column of Table 1."""
    return ModelSpec(
        name=name,
        target=f"cnn_arch_densenet.densenet:{name}",
        family="densenet",
        variant=variant,
        summary=f"{variant}: each layer sees the maps of all preceding layers of its block",
        paper=PAPER,
        input=(3, 224, 224),
        min_size=29,
        num_classes=1000,
        params=params,
        macs=macs,
        stages=(
            *("conv", "pool", "block1", "transition1", "block2", "transition2"),
            *("block3", "transition3", "block4", "norm", "linear"),
        ),
        cam_stage="norm",
        key_maps="cnn_arch_densenet.weights:key_maps",
        departures=(
            "batch normalisation and ReLU follow the first convolution and precede the final "
            "pooling, as in the authors' code; Table 1 shows neither",
            "the final average pooling is global (7x7 at 224x224)",
        ),
        tags=("paper", "imagenet"),
    )


def cifar(name: str, variant: str, params: int, macs: int) -> ModelSpec:
    """Return the spec of one row of Table 2."""
    return ModelSpec(
        name=name,
        target=f"cnn_arch_densenet.densenet_cifar:{name}",
        family="densenet",
        variant=variant,
        summary=f"{variant}: three dense blocks for 32x32 images",
        paper=PAPER,
        input=(3, 32, 32),
        min_size=4,
        num_classes=10,
        params=params,
        macs=macs,
        stages=(
            *("conv", "block1", "transition1", "block2", "transition2"),
            *("block3", "norm", "linear"),
        ),
        cam_stage="norm",
        key_maps="cnn_arch_densenet.weights:key_maps" if name == "densenet100_cifar" else "",
        reported=REPORTED.get(name, {}),
        departures=("the final average pooling is global (8x8 at 32x32)",),
        tags=("paper", "cifar"),
    )


@hookimpl
def cnnzoo_weights() -> list[WeightsSpec]:
    return [
        torchvision_weights(*row, naming="torchvision-files", recipe=PORTED) for row in TORCHVISION
    ]
