"""The plugin of cnn-arch-unet: specs only, no torch."""

from __future__ import annotations

from typing import Any

from cnn_core import ModelSpec, Paper, RecipeSpec, hookimpl, recipes_in

PAPER = Paper(
    title="U-Net: convolutional networks for biomedical image segmentation",
    authors="O. Ronneberger, P. Fischer, T. Brox",
    year=2015,
    url="https://arxiv.org/abs/1505.04597",
)
DOWN = ("down.1", "down.2", "down.3", "down.4")
UP = ("up.4", "up.3", "up.2", "up.1")
CHOICES = (  # where the paper is ambiguous
    "the copied maps come first in the concatenation, as drawn in Fig. 1; in the authors' "
    "released code they come last",
    "dropout of 0.5 before the last pooling and after the bottom, as in the released code; the "
    'paper has it "at the end of the contracting path"',
)


def model(name: str, **fields: Any) -> ModelSpec:
    """Return a spec with the fields that both networks share."""
    return ModelSpec(
        name=name,
        target=f"cnn_arch_unet.{name}:{name}",
        task="segmentation",
        family="unet",
        paper=PAPER,
        num_classes=2,
        stages=(*DOWN, "bottom", *UP, "output"),
        cam_stage="bottom",
        **fields,
    )


@hookimpl
def cnnzoo_models() -> list[ModelSpec]:
    return [
        model(
            "unet",
            variant="U-Net, 2015",
            summary="U-Net as published: unpadded convolutions, cropped copies",
            input=(1, 572, 572),
            min_size=188,
            params=31_030_658,
            macs=150_428_424_448,
            departures=CHOICES,
            reported={
                "isbi_em": "on the test slices of the challenge: warping error 0.000353, Rand "
                "error 0.0382, pixel error 0.0611"
            },
            tags=("paper",),
        ),
        model(
            "unet_same",
            variant="U-Net, padded",
            summary="U-Net with padded convolutions: any input size, output of the same size",
            input=(3, 256, 256),
            min_size=1,
            params=31_031_810,
            macs=48_171_581_440,
            departures=(
                "convolutions pad their input, so that nothing is cropped",
                "sides that are not multiples of 16 are extended by repeating the border",
                "three input channels",
                *CHOICES,
            ),
            tags=("modern",),
        ),
    ]


@hookimpl
def cnnzoo_recipes() -> list[RecipeSpec]:
    return recipes_in("cnn_arch_unet")
