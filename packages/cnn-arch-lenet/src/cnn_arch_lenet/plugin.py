"""The plugin of cnn-arch-lenet: specs only, no torch."""

from __future__ import annotations

from cnn_core import ModelSpec, Paper, RecipeSpec, hookimpl, recipes_in

PAPER = Paper(
    title="Gradient-based learning applied to document recognition",
    authors="Y. LeCun, L. Bottou, Y. Bengio, P. Haffner",
    year=1998,
    url="https://doi.org/10.1109/5.726791",
)


@hookimpl
def cnnzoo_models() -> list[ModelSpec]:
    return [
        ModelSpec(
            name="lenet5",
            target="cnn_arch_lenet.lenet5:lenet5",
            family="lenet",
            variant="LeNet-5, 1998",
            summary="LeNet-5 as published: sparse C3, scaled tanh, RBF output",
            paper=PAPER,
            input=(1, 32, 32),
            min_size=32,
            num_classes=10,
            params=60_000,
            macs=415_680,
            connections=340_908,
            stages=("c1", "s2", "c3", "s4", "c5", "f6", "output"),
            cam_stage="c3",
            reported={
                "mnist": "0.95 % test error; 0.8 % with distorted images added to the training set"
            },
            departures=(
                "the output is the negated squared distance, so that the largest value wins",
                "the output codes are redrawn by hand, because the paper prints them only as an "
                "image (Fig. 3)",
            ),
            tags=("paper",),
        ),
        ModelSpec(
            name="lenet5_modern",
            target="cnn_arch_lenet.lenet5_modern:lenet5_modern",
            family="lenet",
            variant="LeNet-5, as taught today",
            summary="LeNet-5 with dense C3, max-pooling, ReLU and a linear output",
            paper=PAPER,
            input=(1, 32, 32),
            min_size=32,
            num_classes=10,
            params=61_706,
            macs=416_520,
            connections=423_038,
            stages=("c1", "s2", "c3", "s4", "c5", "f6", "output"),
            cam_stage="c3",
            departures=(
                "C3 is dense",
                "S2 and S4 are max-pooling, without parameters",
                "ReLU instead of the scaled tanh, and torch's initialisation",
                "the output is linear",
            ),
            tags=("modern",),
        ),
    ]


@hookimpl
def cnnzoo_recipes() -> list[RecipeSpec]:
    return recipes_in("cnn_arch_lenet")
