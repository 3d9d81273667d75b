"""Core's own plugin: its data sets, metrics and commands come through the same hooks."""

from __future__ import annotations

from cnn_core.hookspecs import hookimpl
from cnn_core.specs import CommandSpec, DatasetSpec, MetricSpec

__all__ = ["COMMANDS"]

DIGITS = DatasetSpec(
    name="digits",
    target="cnn_core.data.digits:load",
    summary="1,797 real handwritten digits, 8x8, shipped with cnn-core",
    classes=tuple("0123456789"),
    image=(1, 8, 8),
    splits={"train": 1438, "test": 359},
    mean=(0.305,),
    std=(0.376,),
    fit="resize",
    embedded=True,
    licence="CC BY 4.0",
    citation=(
        "E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, "
        "UCI Machine Learning Repository, doi:10.24432/C50P49"
    ),
    homepage="https://archive.ics.uci.edu/dataset/80",
)

MNIST = DatasetSpec(
    name="mnist",
    target="cnn_core.data.mnist:load",
    summary="70,000 handwritten digits, 28x28",
    classes=tuple("0123456789"),
    image=(1, 28, 28),
    splits={"train": 60_000, "test": 10_000},
    mean=(0.1307,),
    std=(0.3081,),
    fit="pad",
    licence="CC BY-SA 3.0",
    citation=(
        "Y. LeCun, L. Bottou, Y. Bengio and P. Haffner (1998), Gradient-based learning "
        "applied to document recognition, Proceedings of the IEEE 86(11)"
    ),
    homepage="http://yann.lecun.com/exdb/mnist/",
)

FASHION_MNIST = DatasetSpec(
    name="fashion_mnist",
    target="cnn_core.data.mnist:load",
    summary="70,000 pictures of clothes, 28x28: a drop-in replacement for MNIST",
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    image=(1, 28, 28),
    splits={"train": 60_000, "test": 10_000},
    mean=(0.2860,),
    std=(0.3530,),
    fit="pad",
    licence="MIT",
    citation=(
        "H. Xiao, K. Rasul and R. Vollgraf (2017), Fashion-MNIST: a novel image dataset "
        "for benchmarking machine learning algorithms, arXiv:1708.07747"
    ),
    homepage="https://github.com/zalandoresearch/fashion-mnist",
)

COMMANDS = {
    "demo": "Train LeNet-5 on real digits and open what it learned: the tour",
    "list-models": "The architectures",
    "list-datasets": "The data sets",
    "list-recipes": "The recipes, with what they reached",
    "list-views": "The figures that can be drawn of a run",
    "show": "One model: paper, stages, shapes, parameters, receptive field",
    "train": "Train a model on a data set, or go on with a run",
    "evaluate": "Measure a run's weights on a split",
    "predict": "Classify images with a run's weights",
    "check": "Hold the models of an installed package to the conformance checks",
    "plugins": "The installed plugins, and where they are from",
    "doctor": "Find what is wrong with plugins and surroundings",
}


@hookimpl
def cnnzoo_datasets() -> list[DatasetSpec]:
    return [DIGITS, MNIST, FASHION_MNIST]


@hookimpl
def cnnzoo_metrics() -> list[MetricSpec]:
    return [
        MetricSpec(
            name="top1",
            target="cnn_core.tasks.classification:Top1",
            task="classification",
            summary="fraction of images whose class has the highest logit",
        ),
    ]


@hookimpl
def cnnzoo_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            name=name,
            target=f"cnn_core.cli.{name.replace('-', '_')}:command",
            summary=summary,
        )
        for name, summary in COMMANDS.items()
    ]
