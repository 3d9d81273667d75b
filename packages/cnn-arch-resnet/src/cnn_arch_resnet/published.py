"""The weights that others publish for the CIFAR networks, as specs. Imports no torch."""

from __future__ import annotations

from cnn_core import WeightsSpec

__all__ = ["akamaster_weights", "chenyaofo_weights"]

AKAMASTER = "https://github.com/akamaster/pytorch_resnet_cifar10"
CHENYAOFO = "https://github.com/chenyaofo/pytorch-cifar-models"
CODEBASE = "https://github.com/chenyaofo/image-classification-codebase"
CLASSES = "cnn_core.builtin.datasets:{}_CLASSES"
FLOAT = 4  # bytes

# The file names contain the first eight digits of the SHA-256.
# fmt: off
AKAMASTER_CIFAR10 = (
    # layers  digits      megabytes  error in %
    ( 20,     "12fca82f",  1.1,      8.27),
    ( 32,     "d509ac18",  1.9,      7.37),
    ( 44,     "014dd654",  2.7,      6.90),
    ( 56,     "4bfd9763",  3.5,      6.61),
    (110,     "1d1ed7c2",  7.0,      6.32),
)
CHENYAOFO_CIFAR10 = (
    # layers  digits      bytes      top-1  top-5
    (20,      "4118986f", 1_139_055, 92.60, 99.81),
    (32,      "ef93fc4d", 1_944_567, 93.53, 99.77),
    (44,      "2a3cabcb", 2_750_015, 94.01, 99.77),
    (56,      "187c023a", 3_555_463, 94.37, 99.83),
)
CHENYAOFO_CIFAR100 = (
    # layers  digits      top-1  top-5
    (20,      "23dac2f1", 68.83, 91.01),
    (32,      "84213ce6", 70.16, 90.89),
    (44,      "ffe32858", 71.63, 91.58),
    (56,      "f2eff4c8", 72.63, 91.94),
)
# fmt: on


def akamaster_weights() -> list[WeightsSpec]:
    """Return the CIFAR-10 networks of Y. Idelbayev, with option A, as in the paper.

    They were trained on all 50,000 images. Their images are normalised by ImageNet's mean and
    standard deviation.
    """
    return [
        WeightsSpec(
            name=f"resnet{layers}_cifar:cifar10",
            model=f"resnet{layers}_cifar",
            summary="Y. Idelbayev's, trained as in the paper, but on all 50,000 images",
            data="cifar10",
            num_classes=10,
            classes=CLASSES.format("CIFAR10"),
            url=f"{AKAMASTER}/raw/master/pretrained_models/resnet{layers}-{digits}.th",
            sha256=digits,
            bytes=round(megabytes * 1e6),
            licence="BSD-2-Clause",
            source=AKAMASTER,
            input_size=(32, 32),
            image_size=(32, 32),
            fit="resize",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            naming="akamaster",
            accuracy={"top1": round(1 - error / 100, 5)},
            recipe=f"{AKAMASTER}/blob/master/trainer.py",
            default=True,
        )
        for layers, digits, megabytes, error in AKAMASTER_CIFAR10
    ]


def chenyaofo_weights() -> list[WeightsSpec]:
    """Return the CIFAR-10 and CIFAR-100 networks of Y. Chen, with option B.

    Of each training run, the epoch with the best accuracy on the test images was published.
    """
    cifar10 = [
        _chenyaofo(
            layers,
            digits,
            size=size,
            top1=top1,
            top5=top5,
            classes=10,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2023, 0.1994, 0.201),
        )
        for layers, digits, size, top1, top5 in CHENYAOFO_CIFAR10
    ]
    sizes = {layers: size for layers, _, size, *_ in CHENYAOFO_CIFAR10}
    cifar100 = [
        _chenyaofo(
            layers,
            digits,
            size=sizes[layers] + 90 * (64 + 1) * FLOAT,  # fc has 90 more rows
            top1=top1,
            top5=top5,
            classes=100,
            mean=(0.507, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2761),
        )
        for layers, digits, top1, top5 in CHENYAOFO_CIFAR100
    ]
    return [*cifar10, *cifar100]


def _chenyaofo(
    layers: int,
    digits: str,
    *,
    size: int,
    top1: float,
    top5: float,
    classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> WeightsSpec:
    data = f"cifar{classes}"
    return WeightsSpec(
        name=f"resnet{layers}_cifar_b:{data}",
        model=f"resnet{layers}_cifar_b",
        summary="Y. Chen's, the best of 200 epochs on the test images",
        data=data,
        num_classes=classes,
        classes=CLASSES.format(data.upper()),
        url=f"{CHENYAOFO}/releases/download/resnet/{data}_resnet{layers}-{digits}.pt",
        sha256=digits,
        bytes=size,
        licence="BSD-3-Clause",
        source=CHENYAOFO,
        input_size=(32, 32),
        image_size=(32, 32),
        fit="resize",
        mean=mean,
        std=std,
        naming="chenyaofo",
        accuracy={"top1": round(top1 / 100, 5), "top5": round(top5 / 100, 5)},
        recipe=f"{CODEBASE}/blob/master/conf/{data}.conf",
        default=classes == 10,
    )
