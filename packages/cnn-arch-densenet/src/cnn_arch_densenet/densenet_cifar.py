"""DenseNet and DenseNet-BC for CIFAR.

G. Huang, Z. Liu, L. van der Maaten, K. Q. Weinberger, "Densely connected convolutional
networks", CVPR 2017, arXiv:1608.06993 (2016), section 3 and Table 2:

    layers           output  DenseNet (L=40, k=12)    DenseNet-BC (L=100, k=12)
    convolution      32x32   3x3 conv, 16 filters     3x3 conv, 2k = 24 filters
    dense block 1    32x32   3x3 conv x 12            [1x1 conv, 3x3 conv] x 16
    transition 1     16x16   1x1 conv, 2x2 avg pool   the same, half the maps
    dense block 2    16x16   3x3 conv x 12            [1x1 conv, 3x3 conv] x 16
    transition 2     8x8     1x1 conv, 2x2 avg pool   the same, half the maps
    dense block 3    8x8     3x3 conv x 12            [1x1 conv, 3x3 conv] x 16
    classification   1x1     8x8 global average pool, 10-d fully connected

    depth L                  3 x 12 + 4               3 x 16 x 2 + 4
    parameters               1.0M                     0.8M
    error C10+ (C10)         5.24 (7.00) %            4.51 (5.92) %

Every "conv" of a block or a transition stands for batch normalisation, ReLU, convolution.

Departures from the paper: none at 32x32. The paper does not mention the batch normalisation and
ReLU before the final pooling; they are as in the authors' code. The final pooling is global, so
other input sizes work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from cnn_arch_densenet.densenet import (
    Bottleneck,
    Composite,
    DenseBlock,
    RecomputedComposite,
    Transition,
)
from cnn_core.layers import Classifier, he_normal_, require_size

__all__ = ["DenseNetCIFAR", "densenet100_cifar", "densenet40_cifar"]

# Shapes are N C H W; sizes in comments are for the default input, 3x32x32.


class DenseNetCIFAR(Classifier):
    """Three dense blocks of `depth` layers: N C 32 32 -> N classes.

    `layer` builds a layer from its number of input maps and the growth rate k. `first` is the
    number of filters of the first convolution. Transitions keep a fraction `theta` of the maps.
    """

    classifier = "linear"

    def __init__(
        self,
        layer: Callable[[int, int], nn.Module],
        depth: int,
        growth: int,
        first: int,
        theta: float,
        num_classes: int = 10,
        in_channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        n, k = depth, growth
        # fmt: off
        self.conv        = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.block1      = DenseBlock(first,                 n, k, layer)
        self.transition1 = Transition(self.block1.cout,      theta, dropout)
        self.block2      = DenseBlock(self.transition1.cout, n, k, layer)
        self.transition2 = Transition(self.block2.cout,      theta, dropout)
        self.block3      = DenseBlock(self.transition2.cout, n, k, layer)
        self.norm        = nn.Sequential(nn.BatchNorm2d(self.block3.cout), nn.ReLU(inplace=True))
        self.linear      = nn.Linear(self.block3.cout, num_classes)
        # fmt: on
        he_normal_(self)

    # fmt: off
    def forward_features(self, x: Tensor) -> Tensor:
        require_size(x, 4)
        x = self.conv(x)         # N 3 32 32 -> N  16 32 32   BC N  24 32 32
        x = self.block1(x)       #              N 160 32 32      N 216 32 32
        x = self.transition1(x)  #              N 160 16 16      N 108 16 16
        x = self.block2(x)       #              N 304 16 16      N 300 16 16
        x = self.transition2(x)  #              N 304  8  8      N 150  8  8
        x = self.block3(x)       #              N 448  8  8      N 342  8  8
        return self.norm(x)

    def forward_head(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # N C
        return self.linear(x)                       # N 10
    # fmt: on


def plain(
    cin: int, growth: int, dropout: float = 0.0, memory_efficient: bool = False
) -> Composite:
    """Return a layer without a bottleneck: a 3x3 convolution to k new maps."""
    kind = RecomputedComposite if memory_efficient else Composite
    return kind(cin, growth, 3, dropout)


def densenet40_cifar(
    num_classes: int = 10,
    in_channels: int = 3,
    dropout: float = 0.0,
    memory_efficient: bool = False,
) -> DenseNetCIFAR:
    """DenseNet (L=40, k=12): 1,019,722 parameters.

    `dropout` is a probability; the paper uses 0.2 on data without augmentation.
    """
    layer = partial(plain, dropout=dropout, memory_efficient=memory_efficient)
    return DenseNetCIFAR(
        layer,
        depth=12,
        growth=12,
        first=16,
        theta=1.0,
        num_classes=num_classes,
        in_channels=in_channels,
        dropout=dropout,
    )


def densenet100_cifar(
    num_classes: int = 10,
    in_channels: int = 3,
    dropout: float = 0.0,
    memory_efficient: bool = False,
) -> DenseNetCIFAR:
    """DenseNet-BC (L=100, k=12): 769,162 parameters. Dropout as for densenet40_cifar."""
    layer = partial(Bottleneck, dropout=dropout, memory_efficient=memory_efficient)
    return DenseNetCIFAR(
        layer,
        depth=16,
        growth=12,
        first=24,
        theta=0.5,
        num_classes=num_classes,
        in_channels=in_channels,
        dropout=dropout,
    )
