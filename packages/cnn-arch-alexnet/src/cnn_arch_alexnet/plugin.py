"""The plugin of cnn-arch-alexnet: specs only, no torch."""

from __future__ import annotations

from cnn_core import ModelSpec, Paper, RecipeSpec, WeightsSpec, hookimpl, recipes_in
from cnn_core.weights.torchvision import torchvision_weights

ALEXNET_2012 = Paper(
    title="ImageNet classification with deep convolutional neural networks",
    authors="A. Krizhevsky, I. Sutskever, G. E. Hinton",
    year=2012,
    url="https://papers.nips.cc/paper/4824-imagenet-classification-with-deep-convolutional-neural-networks",
)
ONE_WEIRD_TRICK = Paper(
    title="One weird trick for parallelizing convolutional neural networks",
    authors="A. Krizhevsky",
    year=2014,
    url="https://arxiv.org/abs/1404.5997",
)

LATER = ("conv3", "conv4", "conv5", "pool5", "fc6", "fc7", "fc8")
WITHOUT_NORM = ("conv1", "pool1", "conv2", "pool2", *LATER)
WITH_NORM = ("conv1", "norm1", "pool1", "conv2", "norm2", "pool2", *LATER)

ALEXNET = ModelSpec(
    name="alexnet",
    target="cnn_arch_alexnet.alexnet:alexnet",
    family="alexnet",
    variant="AlexNet, 2012",
    summary="AlexNet as published: two towers, response normalisation",
    paper=ALEXNET_2012,
    input=(3, 227, 227),
    min_size=67,
    num_classes=1000,
    params=60_965_224,
    macs=724_406_816,
    stages=WITH_NORM,
    cam_stage="conv5",
    departures=(
        "one device: the two towers are the two groups of a grouped convolution",
        "images are 227x227: 224x224 would not give conv1 a whole number of positions",
        "maps of other image sizes are averaged to 6x6 before fc6",
    ),
    tags=("paper",),
)
ALEXNET_OWT = ModelSpec(
    name="alexnet_owt",
    target="cnn_arch_alexnet.alexnet_owt:alexnet_owt",
    family="alexnet",
    variant="AlexNet in one tower, 2014, as in torchvision",
    summary="AlexNet in one tower, without response normalisation, as in torchvision",
    paper=ONE_WEIRD_TRICK,
    input=(3, 224, 224),
    min_size=63,
    num_classes=1000,
    params=61_100_840,
    macs=714_188_480,
    stages=WITHOUT_NORM,
    cam_stage="conv5",
    key_maps="cnn_arch_alexnet.weights:key_maps",
    departures=(
        "conv4 has 256 kernels, not the 384 of the paper's text",
        "dropout is applied to the inputs of fc6 and fc7, not to their outputs",
        "no response normalisation, and torch's initialisation",
        "a softmax over the classes instead of a thousand logistic units",
        "maps of other image sizes are averaged to 6x6 before fc6",
    ),
    tags=("torchvision",),
)
ALEXNET_SMALL = ModelSpec(
    name="alexnet_small",
    target="cnn_arch_alexnet.alexnet_small:alexnet_small",
    family="alexnet",
    variant="one tower of AlexNet, for small images",
    summary="one tower of AlexNet with a 5x5 first layer, for 32x32 and 96x96",
    paper=ALEXNET_2012,
    input=(3, 32, 32),
    min_size=8,
    num_classes=10,
    params=9_345_226,
    macs=100_962_304,
    stages=WITH_NORM,
    cam_stage="conv5",
    departures=(
        "not a published network: one of the two towers, with its widths",
        "conv1 has 5x5 kernels with stride 1 instead of 11x11 with stride 4",
        "pooling rounds sizes up",
        "maps are averaged to 4x4 before fc6",
        "initialised after He et al. (2015), with biases of 0",
    ),
    tags=("small",),
)

TORCHVISION = torchvision_weights(
    "alexnet_owt", "alexnet-owt-7be5be79.pth", 233.087, 56.522, 79.066
)


@hookimpl
def cnnzoo_models() -> list[ModelSpec]:
    return [ALEXNET, ALEXNET_OWT, ALEXNET_SMALL]


@hookimpl
def cnnzoo_recipes() -> list[RecipeSpec]:
    return recipes_in("cnn_arch_alexnet")


@hookimpl
def cnnzoo_weights() -> list[WeightsSpec]:
    return [TORCHVISION]
