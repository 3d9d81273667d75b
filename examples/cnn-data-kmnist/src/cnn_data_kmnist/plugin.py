"""The plugin of cnn-data-kmnist: specs only, no torch, since every command imports it."""

from __future__ import annotations

from cnn_core import DatasetSpec, hookimpl


@hookimpl
def cnnzoo_datasets() -> list[DatasetSpec]:
    return [
        DatasetSpec(
            name="kmnist",
            target="cnn_data_kmnist.kmnist:load",
            summary="70,000 cursive Japanese characters in ten classes, 28x28: harder than MNIST",
            classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
            image=(1, 28, 28),
            splits={"train": 60_000, "test": 10_000},
            mean=(),  # computed from the training images
            std=(),
            fit="pad",
            licence="CC BY-SA 4.0",
            citation=(
                "T. Clanuwat, M. Bober-Irizar, A. Kitamoto, A. Lamb, K. Yamamoto, D. Ha (2018), "
                "Deep learning for classical Japanese literature, arXiv:1812.01718; 'KMNIST "
                "Dataset' (created by CODH), adapted from 'Kuzushiji Dataset' (created by NIJL "
                "and others), doi:10.20676/00000341"
            ),
            homepage="http://codh.rois.ac.jp/kmnist/",
        )
    ]
