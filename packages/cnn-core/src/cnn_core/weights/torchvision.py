"""The weights that torchvision publishes, as specs. Imports no torch."""

from __future__ import annotations

from cnn_core.specs import WeightsSpec

__all__ = ["torchvision_weights"]

FOLDER = "https://download.pytorch.org/models/"
PAGE = "https://docs.pytorch.org/vision/stable/models.html"
SCRIPTS = "https://github.com/pytorch/vision/tree/main/references/classification"
NEW_RECIPE = "https://github.com/pytorch/vision/issues/3995"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision has them


def torchvision_weights(
    model: str,
    file: str,
    mebibytes: float,
    top1: float,
    top5: float,
    *,
    version: int = 1,
    default: bool = True,
    recipe: str = "",
    naming: str = "torchvision",
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> WeightsSpec:
    """Return the spec of one of torchvision's ImageNet weights.

    `file` has the first digits of its SHA-256 in its name, and torchvision gives its size in units
    of 2^20 bytes. `top1` and `top5` are torchvision's own accuracies on the validation set, in
    per cent. `version` 1 and 2 are its IMAGENET1K_V1 and IMAGENET1K_V2; 2 was trained with a newer
    recipe and resizes to 232 instead of 256 pixels before the centre is cropped.
    """
    return WeightsSpec(
        name=f"{model}:imagenet-v{version}",
        model=model,
        summary=f"torchvision's IMAGENET1K_V{version}",
        data="imagenet",
        num_classes=1000,
        classes="cnn_core.data.imagenet:CLASSES",
        url=FOLDER + file,
        sha256=file.rpartition("-")[2].partition(".")[0],
        bytes=round(mebibytes * 2**20),
        licence="BSD-3-Clause",
        source=PAGE,
        input_size=(224, 224),
        resize=256 if version == 1 else 232,
        mean=mean,
        std=std,
        naming=naming,
        accuracy={"top1": round(top1 / 100, 5), "top5": round(top5 / 100, 5)},
        recipe=recipe or (SCRIPTS if version == 1 else NEW_RECIPE),
        default=default,
    )
