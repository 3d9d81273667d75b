"""The plugin of cnn-arch-googlenet: specs only, no torch."""

from __future__ import annotations

from cnn_core import ModelSpec, Paper, RecipeSpec, WeightsSpec, hookimpl, recipes_in
from cnn_core.weights.torchvision import torchvision_weights

PAPER = Paper(
    title="Going deeper with convolutions",
    authors=(
        "C. Szegedy, W. Liu, Y. Jia, P. Sermanet, S. Reed, D. Anguelov, D. Erhan, "
        "V. Vanhoucke, A. Rabinovich"
    ),
    year=2014,
    url="https://arxiv.org/abs/1409.4842",
)
STAGES = (  # Table 1, from top to bottom
    *("conv1", "pool1", "conv2", "pool2"),
    *("inception3a", "inception3b", "pool3"),
    *("inception4a", "inception4b", "inception4c", "inception4d", "inception4e", "pool4"),
    *("inception5a", "inception5b", "avg_pool", "dropout", "linear"),
)

GOOGLENET = ModelSpec(
    name="googlenet",
    target="cnn_arch_googlenet.googlenet:googlenet",
    family="googlenet",
    variant="GoogLeNet, 2014",
    summary="GoogLeNet as published: 5x5, LRN, two auxiliary classifiers in training",
    paper=PAPER,
    input=(3, 224, 224),
    min_size=31,
    num_classes=1000,
    params=13_378_280,
    macs=1_582_671_872,
    stages=STAGES,
    cam_stage="inception5b",
    departures=(
        "the constants of the local response normalisation and the initialisation are not in "
        "the paper; they are those of BVLC's replication",
        "the final average pooling is global (7x7 at 224x224)",
        "training with the auxiliary classifiers needs images of 223x223 to 270x270",
    ),
    tags=("paper", "imagenet"),
)
GOOGLENET_BN = ModelSpec(
    name="googlenet_bn",
    target="cnn_arch_googlenet.googlenet_bn:googlenet_bn",
    family="googlenet",
    variant="GoogLeNet with batch normalisation, as in torchvision",
    summary="GoogLeNet with batch normalisation and 3x3 instead of 5x5, as in torchvision",
    paper=PAPER,
    input=(3, 224, 224),
    min_size=15,
    num_classes=1000,
    params=13_004_888,
    macs=1_498_376_192,
    stages=STAGES,
    cam_stage="inception5b",
    key_maps="cnn_arch_googlenet.weights:key_maps",
    departures=(
        "batch normalisation (eps 0.001) after every convolution; convolutions have no bias",
        "no local response normalisation",
        "the 5x5 convolutions are 3x3",
        "the last max pooling is 2x2",
        "dropout of 20 %, not 40 %",
        "the auxiliary classifiers pool adaptively to 4x4, with 4x4 windows on the 14x14 maps; "
        "the paper's windows are 5x5 with stride 3",
        "weights from N(0, 0.01^2)",
    ),
    tags=("modern", "imagenet"),
)

# torchvision undoes its own normalisation in the network, because these weights were trained by
# TensorFlow on images from -1 to 1. Here the preprocessing does it.
TORCHVISION = torchvision_weights(
    "googlenet_bn",
    "googlenet-1378be20.pth",
    49.731,
    69.778,
    89.530,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


@hookimpl
def cnnzoo_models() -> list[ModelSpec]:
    return [GOOGLENET, GOOGLENET_BN]


@hookimpl
def cnnzoo_recipes() -> list[RecipeSpec]:
    return recipes_in("cnn_arch_googlenet")


@hookimpl
def cnnzoo_weights() -> list[WeightsSpec]:
    return [TORCHVISION]
