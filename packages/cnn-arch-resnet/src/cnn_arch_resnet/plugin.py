"""The plugin of cnn-arch-resnet: specs only, no torch."""

from __future__ import annotations

from cnn_arch_resnet.published import akamaster_weights, chenyaofo_weights
from cnn_core import ModelSpec, Paper, RecipeSpec, WeightsSpec, hookimpl, recipes_in
from cnn_core.weights.torchvision import torchvision_weights

PAPER = Paper(
    title="Deep residual learning for image recognition",
    authors="K. He, X. Zhang, S. Ren, J. Sun",
    year=2015,
    url="https://arxiv.org/abs/1512.03385",
)

LOGITS = "the network returns logits; the softmax is part of the loss"
PADDED = "pool1 pads a pixel on each side; the authors' released networks round up instead"
IN_3X3 = "bottlenecks have their stride in the 3x3; the authors' have it in the first 1x1"
STEM = "not a published network: conv1 is 3x3 with stride 1, without pooling, for 32x32"
OPTION_B = "option B, a 1x1 convolution where maps shrink; the paper's CIFAR networks have A"

# fmt: off
IMAGENET = (
    # name           layers  parameters  multiply-adds   tag      departures
    ("resnet18",         18, 11_689_512,  1_814_073_344, "paper", (PADDED, LOGITS)),
    ("resnet34",         34, 21_797_672,  3_663_761_408, "paper", (PADDED, LOGITS)),
    ("resnet50",         50, 25_557_032,  4_089_184_256, "v1.5",  (IN_3X3, PADDED, LOGITS)),
    ("resnet101",       101, 44_549_160,  7_801_405_440, "v1.5",  (IN_3X3, PADDED, LOGITS)),
    ("resnet152",       152, 60_192_808, 11_513_626_624, "v1.5",  (IN_3X3, PADDED, LOGITS)),
    ("resnet50_v1",      50, 25_557_032,  3_857_973_248, "paper", (PADDED, LOGITS)),
    ("resnet101_v1",    101, 44_549_160,  7_570_194_432, "paper", (PADDED, LOGITS)),
    ("resnet152_v1",    152, 60_192_808, 11_282_415_616, "paper", (PADDED, LOGITS)),
)
CIFAR = (
    ("resnet20_cifar",   20,    269_722,     40_551_040),
    ("resnet32_cifar",   32,    464_154,     68_862_592),
    ("resnet44_cifar",   44,    658_586,     97_174_144),
    ("resnet56_cifar",   56,    853_018,    125_485_696),
    ("resnet110_cifar", 110,  1_727_962,    252_887_680),
)
ERRORS = {  # CIFAR-10 test error in %, Table 6
    "resnet20_cifar": "8.75",
    "resnet32_cifar": "7.51",
    "resnet44_cifar": "7.17",
    "resnet56_cifar": "6.97",
    "resnet110_cifar": "6.43",
}
CIFAR_B = (
    ("resnet20_cifar_b",   20,  272_474,     40_813_184),
    ("resnet32_cifar_b",   32,  466_906,     69_124_736),
    ("resnet44_cifar_b",   44,  661_338,     97_436_288),
    ("resnet56_cifar_b",   56,  855_770,    125_747_840),
    ("resnet110_cifar_b", 110, 1_730_714,   253_149_824),
)
CIFAR_STEM = (
    ("resnet18_cifar",   18, 11_173_962,    555_422_720, (STEM, LOGITS)),
    ("resnet50_cifar",   50, 23_520_842,  1_297_829_888, (STEM, IN_3X3, LOGITS)),
)
# fmt: on


def _model(
    module: str,
    row: tuple[str, int, int, int],
    variant: str,
    summary: str,
    tag: str,
    departures: tuple[str, ...],
) -> ModelSpec:
    """Return the spec for a row of one of the tables; `module` has the network."""
    name, _, params, macs = row
    imagenet = module == "resnet"
    last = 4 if module == "resnet_cifar" else 5
    return ModelSpec(
        name=name,
        target=f"cnn_arch_resnet.{module}:{name}",
        family="resnet",
        variant=variant,
        summary=summary,
        paper=PAPER,
        input=(3, 224, 224) if imagenet else (3, 32, 32),
        min_size=1,
        num_classes=1000 if imagenet else 10,
        params=params,
        macs=macs,
        stages=("conv1", *(f"conv{s}_x" for s in range(2, last + 1)), "fc"),
        cam_stage=f"conv{last}_x",
        key_maps="cnn_arch_resnet.weights:key_maps",
        reported={"cifar10": f"{ERRORS[name]} % test error"} if name in ERRORS else {},
        departures=departures,
        tags=("imagenet" if imagenet else "cifar", tag),
    )


def _imagenet() -> list[ModelSpec]:
    stride = {"v1.5": ", stride in the 3x3", "paper": ", stride in the first 1x1"}
    return [
        _model(
            "resnet",
            (name, layers, params, macs),
            variant := f"{layers} layers{stride[tag] if layers >= 50 else ''}",
            f"ResNet for ImageNet: {variant}",
            tag,
            departures,
        )
        for name, layers, params, macs, tag, departures in IMAGENET
    ]


def _cifar() -> list[ModelSpec]:
    a = [
        _model(
            "resnet_cifar",
            row,
            f"{row[1]} layers, option A",
            f"the paper's ResNet for CIFAR-10: {row[1]} layers, shortcuts without parameters",
            "paper",
            (LOGITS,),
        )
        for row in CIFAR
    ]
    b = [
        _model(
            "resnet_cifar",
            row,
            f"{row[1]} layers, option B",
            f"ResNet for CIFAR-10: {row[1]} layers, projections where the maps shrink",
            "option-b",
            (OPTION_B, LOGITS),
        )
        for row in CIFAR_B
    ]
    return a + b


def _cifar_stem() -> list[ModelSpec]:
    return [
        _model(
            "resnet_cifar_stem",
            (name, layers, params, macs),
            f"{layers} layers, 3x3 stem: not in the paper",
            f"the ImageNet ResNet-{layers} with a 3x3 stem, for 32x32: not in the paper",
            "cifar-stem",
            departures,
        )
        for name, layers, params, macs, departures in CIFAR_STEM
    ]


# fmt: off
TORCHVISION = (
    # name        file                       MiB      top-1   top-5   version
    ("resnet18",  "resnet18-f37072fd.pth",   44.661, 69.758, 89.078, 1),
    ("resnet34",  "resnet34-b627a593.pth",   83.275, 73.314, 91.420, 1),
    ("resnet50",  "resnet50-0676ba61.pth",   97.781, 76.130, 92.862, 1),
    ("resnet50",  "resnet50-11ad3fa6.pth",   97.790, 80.858, 95.434, 2),
    ("resnet101", "resnet101-63fe2227.pth", 170.511, 77.374, 93.546, 1),
    ("resnet101", "resnet101-cd907fc2.pth", 170.530, 81.886, 95.780, 2),
    ("resnet152", "resnet152-394f9c45.pth", 230.434, 78.312, 94.046, 1),
    ("resnet152", "resnet152-f82ba261.pth", 230.474, 82.284, 96.002, 2),
)
# fmt: on


@hookimpl
def cnnzoo_models() -> list[ModelSpec]:
    return [*_imagenet(), *_cifar(), *_cifar_stem()]


@hookimpl
def cnnzoo_recipes() -> list[RecipeSpec]:
    return recipes_in("cnn_arch_resnet")


@hookimpl
def cnnzoo_weights() -> list[WeightsSpec]:
    newest = {row[0]: row[-1] for row in TORCHVISION}
    imagenet = [
        torchvision_weights(
            name, file, size, top1, top5, version=version, default=version == newest[name]
        )
        for name, file, size, top1, top5, version in TORCHVISION
    ]
    return [*imagenet, *akamaster_weights(), *chenyaofo_weights()]
