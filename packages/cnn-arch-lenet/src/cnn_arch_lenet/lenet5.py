"""LeNet-5.

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document
recognition", Proceedings of the IEEE 86(11):2278-2324, November 1998, section II.B.

    layer   operation               maps @ size    trainable   connections
    input   digit, centred           1 @ 32x32
    C1      convolution 5x5          6 @ 28x28           156       122,304
    S2      sub-sampling 2x2         6 @ 14x14            12         5,880
    C3      convolution 5x5, sparse 16 @ 10x10         1,516       151,600
    S4      sub-sampling 2x2        16 @ 5x5              32         2,000
    C5      convolution 5x5        120 @ 1x1          48,120        48,120
    F6      fully connected         84                10,164        10,164
    output  Euclidean RBF           10                     0           840
                                                      60,000       340,908

Departures from the paper:
  The output is the negated squared distance, so that the largest value, not the smallest, wins.
  The codes of the output are redrawn by hand: the paper prints them as an image (Fig. 3).
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from cnn_core.layers import (
    Classifier,
    EuclideanRBF,
    ScaledTanh,
    SparseConv2d,
    Subsampling,
    lecun_uniform_,
    require_size,
)

__all__ = ["CODES", "LeNet5", "TABLE_I", "lenet5"]

# Shapes are N C H W; sizes in comments are for the default input, 1x32x32.


class LeNet5(Classifier):
    """LeNet-5 (1998), layer by layer under the paper's names: N C 32 32 -> N classes."""

    classifier = "output"

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(in_channels, 6, kernel_size=5)
        self.s2 = Subsampling(6)
        self.c3 = SparseConv2d(6, TABLE_I, kernel_size=5)
        self.s4 = Subsampling(16)
        self.c5 = nn.Conv2d(16, 120, kernel_size=5)
        self.f6 = nn.Linear(120, 84)
        self.output = EuclideanRBF(codes(num_classes))
        self.squash = ScaledTanh()
        lecun_uniform_(self)

    def forward_features(self, x: Tensor) -> Tensor:
        require_size(x, 32, exactly=True)
        x = self.squash(self.c1(x))  # N   1 32 32 -> N   6 28 28
        x = self.squash(self.s2(x))  #               N   6 14 14
        x = self.squash(self.c3(x))  #               N  16 10 10
        x = self.squash(self.s4(x))  #               N  16  5  5
        x = self.squash(self.c5(x))  #               N 120  1  1
        return self.squash(self.f6(x.flatten(1)))  # N  84

    def forward_head(self, x: Tensor) -> Tensor:
        return self.output(x)  #                     N  10

    def reset_classifier(self, num_classes: int) -> None:
        self.output = EuclideanRBF(codes(num_classes).to(self.output.codes))


# Table I, one entry per column: entry j lists the S2 maps that C3 map j is connected to. Different
# inputs break the symmetry between the maps, so that they learn different features.
TABLE_I = (
    (0, 1, 2),
    (1, 2, 3),
    (2, 3, 4),
    (3, 4, 5),
    (0, 4, 5),
    (0, 1, 5),
    (0, 1, 2, 3),
    (1, 2, 3, 4),
    (2, 3, 4, 5),
    (0, 3, 4, 5),
    (0, 1, 4, 5),
    (0, 1, 2, 5),
    (0, 1, 3, 4),
    (1, 2, 4, 5),
    (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)

# Fig. 3: the code of a class is a stylised image of it, 7 pixels wide and 12 high. Characters that
# look alike have similar codes, so that a later stage, e.g. a language model, can resolve
# confusions from context.
GLYPHS = """
.......  .......  .......  .......  .......  .......  .......  .......  .......  .......
..###..  ...#...  ..###..  #######  .....#.  #######  ..####.  #######  ..###..  ..###..
.##.##.  ..##...  .##.##.  .....##  ....##.  ##.....  .##....  .....##  .##.##.  .##.##.
##...##  .###...  ##...##  ....##.  ...###.  ##.....  ##.....  ....##.  ##...##  ##...##
##...##  ..##...  .....##  ...##..  ..#.##.  ##.....  ##.....  ....##.  .##.##.  ##...##
##...##  ..##...  ....##.  ..###..  .##.##.  ######.  ##.###.  ...##..  ..###..  ##..###
##...##  ..##...  ...##..  ....##.  ##..##.  .....##  ###..##  ...##..  .##.##.  .###.##
##...##  ..##...  ..##...  .....##  #######  .....##  ##...##  ..##...  ##...##  .....##
##...##  ..##...  .##....  .....##  ....##.  .....##  ##...##  ..##...  ##...##  .....##
.##.##.  ..##...  ##.....  ##...##  ....##.  ##...##  .##.##.  .##....  .##.##.  ....##.
..###..  .####..  #######  .#####.  ....##.  .#####.  ..###..  .##....  ..###..  .####..
.......  .......  .......  .......  .......  .......  .......  .......  .......  .......
"""
ROWS = [line.split() for line in GLYPHS.split("\n") if line]
CODES = [
    [1.0 if pixel == "#" else -1.0 for row in ROWS for pixel in row[digit]] for digit in range(10)
]


def codes(num_classes: int) -> Tensor:
    """Return one 84-component code per class: the digits' first, then fixed random codes."""
    rng = random.Random(1998)
    more = [rng.choices((-1.0, 1.0), k=84) for _ in range(10, num_classes)]
    return torch.tensor([*CODES, *more][:num_classes])


def lenet5(num_classes: int = 10, in_channels: int = 1) -> LeNet5:
    """LeNet-5 as published in 1998: 60,000 trainable parameters, 340,908 connections."""
    return LeNet5(num_classes, in_channels)
