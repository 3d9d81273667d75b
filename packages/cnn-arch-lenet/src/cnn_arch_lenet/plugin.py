"""The plugin of cnn-arch-lenet: specs only, no torch."""

from __future__ import annotations

from cnn_core import ModelSpec, Paper, RecipeSpec, WeightsSpec, hookimpl, recipes_in

PAPER = Paper(
    title="Gradient-based learning applied to document recognition",
    authors="Y. LeCun, L. Bottou, Y. Bengio, P. Haffner",
    year=1998,
    url="https://doi.org/10.1109/5.726791",
)

DIGITS = tuple("0123456789")
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
# fmt: off
DATA = {
    # dataset:       classes, image size, fit,       mean,      std
    "digits":        (DIGITS,  (8, 8),    "resize", (0.305,),  (0.376,)),
    "mnist":         (DIGITS,  (28, 28),  "pad",    (0.1307,), (0.3081,)),
    "fashion_mnist": (FASHION, (28, 28),  "pad",    (0.286,),  (0.353,)),
}
# What `cnnzoo train MODEL --recipe MODEL-DATASET` saved, with seed 0, and its test accuracy.
TRAINED = (
    # model           dataset          bytes    top-1   SHA-256
    ("lenet5",        "digits",        244_952, 0.9889, "f607f25d041dbce8ae2e3fb10455991e34e61a9e37e298673ab53d7d6f060ffb"),  # noqa: E501
    ("lenet5",        "mnist",         244_952, 0.9891, "a89b95e40ba1fe8954864d56d3c613dca24a91d70f3939008ecee34560228c41"),  # noqa: E501
    ("lenet5",        "fashion_mnist", 245_008, 0.8966, "fa19f5656c35881b82aa260a161ee651306aa9b28cd3a5f33c7082ca2f6952b8"),  # noqa: E501
    ("lenet5_modern", "digits",        248_208, 0.9889, "1dc8d967ab3961f801c495dcafc421b395426130e655fa31233ab506fa093351"),  # noqa: E501
    ("lenet5_modern", "mnist",         248_208, 0.9930, "01d048c23307451aa374a55440ee791bbf2ce416fa1682d9628a8a6b0353c8b8"),  # noqa: E501
    ("lenet5_modern", "fashion_mnist", 248_264, 0.9092, "891910217c1cb53f44d282a5db42e6e2433182c0c1ef1ab69dc7eca42df41f99"),  # noqa: E501
)
# fmt: on


def _trained(model: str, data: str, size: int, top1: float, sha256: str) -> WeightsSpec:
    """Return the spec of weights that are part of this package."""
    classes, image_size, fit, mean, std = DATA[data]
    return WeightsSpec(
        name=f"{model}:{data}",
        model=model,
        summary=f"trained here by the recipe {model}-{data}, seed 0",
        data=data,
        num_classes=len(classes),
        classes=classes,
        file=f"cnn_arch_lenet:trained/{model}-{data}.safetensors",
        sha256=sha256,
        bytes=size,
        licence="MIT",
        source="README of cnn-arch-lenet",
        input_size=(32, 32),
        image_size=image_size,
        fit=fit,
        mean=mean,
        std=std,
        accuracy={"top1": top1},
        recipe=f"{model}-{data}",
        default=data == "mnist",
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


@hookimpl
def cnnzoo_weights() -> list[WeightsSpec]:
    return [_trained(*row) for row in TRAINED]
