"""DenseNet-BC for ImageNet.

G. Huang, Z. Liu, L. van der Maaten, K. Q. Weinberger, "Densely connected convolutional
networks", CVPR 2017, arXiv:1608.06993 (2016), Table 1:

    layers            output   DenseNet-121    -169    -201    -161
    growth rate k                    32         32      32      48
    convolution       112x112  7x7 conv, stride 2, 2k filters
    pooling           56x56    3x3 max pool, stride 2
    dense block 1     56x56    [1x1, 3x3] x 6    x 6     x 6     x 6
    transition 1      28x28    1x1 conv, 2x2 average pool, stride 2
    dense block 2     28x28    [1x1, 3x3] x 12   x 12    x 12    x 12
    transition 2      14x14    1x1 conv, 2x2 average pool, stride 2
    dense block 3     14x14    [1x1, 3x3] x 24   x 32    x 48    x 36
    transition 3      7x7      1x1 conv, 2x2 average pool, stride 2
    dense block 4     7x7      [1x1, 3x3] x 16   x 32    x 32    x 24
    classification    1x1      7x7 global average pool, 1000-d fully connected

Every "conv" of a block or a transition stands for batch normalisation, ReLU, convolution.
DenseNet-161 is in the first versions of the paper and in the authors' code; the last version of
the paper has DenseNet-264 instead.

Departures from the paper:
  Batch normalisation and ReLU follow the first convolution, and are applied once more before the
  final pooling, as in the authors' code; Table 1 shows neither.
  The final average pooling is global (7x7 at 224x224), so other input sizes work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_arch_densenet.recomputed import recomputed
from cnn_core.layers import Classifier, he_normal_, require_size

__all__ = [
    "Bottleneck",
    "Composite",
    "DenseBlock",
    "DenseNet",
    "RecomputedComposite",
    "Transition",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
]

# Shapes are N C H W; sizes in comments are for the default input, 3x224x224, and k = 32.


class Composite(nn.Module):
    """Concatenation of the inputs, then batch normalisation, ReLU, convolution.

    Two of these make H_l of DenseNet-B.
    """

    def __init__(self, cin: int, cout: int, kernel: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(cin)
        self.conv = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False)
        self.dropout = dropout  # 0.2 for training without data augmentation (section 4.2)

    def forward(self, *maps: Tensor) -> Tensor:
        x = torch.cat(maps, 1) if len(maps) > 1 else maps[0]
        x = self.conv(F.relu(self.norm(x), inplace=True))
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class RecomputedComposite(Composite):
    """A Composite that recomputes its intermediate maps in the backward pass, to save memory."""

    def forward(self, *maps: Tensor) -> Tensor:
        forward = super().forward
        return recomputed(forward, self.norm, *maps) if self.training else forward(*maps)


class Bottleneck(nn.Module):
    """A layer of DenseNet-B (section 3): a 1x1 convolution to 4k maps, then a 3x3 to k maps."""

    def __init__(
        self, cin: int, growth: int, dropout: float = 0.0, memory_efficient: bool = False
    ) -> None:
        super().__init__()
        first = RecomputedComposite if memory_efficient else Composite
        self.reduce = first(cin, 4 * growth, 1, dropout)
        self.grow = Composite(4 * growth, growth, 3, dropout)

    def forward(self, *maps: Tensor) -> Tensor:
        return self.grow(self.reduce(*maps))


class DenseBlock(nn.Module):
    """`depth` layers; each gets the input and the maps of all preceding layers (Fig. 1)."""

    def __init__(
        self, cin: int, depth: int, growth: int, layer: Callable[[int, int], nn.Module]
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer(cin + i * growth, growth) for i in range(depth))
        self.cout = cin + depth * growth

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(*maps))  # Eq. 2: x_l = H_l([x_0, x_1, ..., x_{l-1}])
        return torch.cat(maps, 1)


class Transition(Composite):
    """Between blocks: keep a fraction theta of the maps (compression) and halve their size."""

    def __init__(self, cin: int, theta: float, dropout: float = 0.0) -> None:
        super().__init__(cin, math.floor(theta * cin), 1, dropout)
        self.cout = self.conv.out_channels

    def forward(self, *maps: Tensor) -> Tensor:
        return F.avg_pool2d(super().forward(*maps), 2, stride=2)


class DenseNet(Classifier):
    """DenseNet-BC for ImageNet: N C 224 224 -> N classes.

    `memory_efficient` saves memory in training at the cost of time; the results are the same.
    """

    classifier = "linear"

    def __init__(
        self,
        growth: int,
        layers: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_channels: int = 3,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        k, (l1, l2, l3, l4) = growth, layers
        layer = partial(Bottleneck, memory_efficient=memory_efficient)
        conv = nn.Conv2d(in_channels, 2 * k, 7, stride=2, padding=3, bias=False)
        # fmt: off
        self.conv        = nn.Sequential(conv, nn.BatchNorm2d(2 * k), nn.ReLU(inplace=True))
        self.pool        = nn.MaxPool2d(3, stride=2, padding=1)
        self.block1      = DenseBlock(2 * k,                 l1, k, layer)
        self.transition1 = Transition(self.block1.cout,      theta=0.5)
        self.block2      = DenseBlock(self.transition1.cout, l2, k, layer)
        self.transition2 = Transition(self.block2.cout,      theta=0.5)
        self.block3      = DenseBlock(self.transition2.cout, l3, k, layer)
        self.transition3 = Transition(self.block3.cout,      theta=0.5)
        self.block4      = DenseBlock(self.transition3.cout, l4, k, layer)
        self.norm        = nn.Sequential(nn.BatchNorm2d(self.block4.cout), nn.ReLU(inplace=True))
        self.linear      = nn.Linear(self.block4.cout, num_classes)
        # fmt: on
        he_normal_(self)

    # fmt: off
    def forward_features(self, x: Tensor) -> Tensor:
        require_size(x, 29)
        x = self.conv(x)         # N 3 224 224 -> N   64 112 112
        x = self.pool(x)         #                N   64  56  56   121   169   201
        x = self.block1(x)       #                N  256  56  56
        x = self.transition1(x)  #                N  128  28  28
        x = self.block2(x)       #                N  512  28  28
        x = self.transition2(x)  #                N  256  14  14
        x = self.block3(x)       #                N    C  14  14  1024  1280  1792
        x = self.transition3(x)  #                N    C   7   7   512   640   896
        x = self.block4(x)       #                N    C   7   7  1024  1664  1920
        return self.norm(x)

    def forward_head(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # N C
        return self.linear(x)                       # N 1000
    # fmt: on


# fmt: off
TABLE_1 = {  #    k    layers of the blocks
    "densenet121": (32, (6, 12, 24, 16)),
    "densenet169": (32, (6, 12, 32, 32)),
    "densenet201": (32, (6, 12, 48, 32)),
    "densenet161": (48, (6, 12, 36, 24)),
}
# fmt: on


def densenet121(
    num_classes: int = 1000, in_channels: int = 3, memory_efficient: bool = False
) -> DenseNet:
    """DenseNet-121: 7,978,856 parameters."""
    return DenseNet(*TABLE_1["densenet121"], num_classes, in_channels, memory_efficient)


def densenet169(
    num_classes: int = 1000, in_channels: int = 3, memory_efficient: bool = False
) -> DenseNet:
    """DenseNet-169: 14,149,480 parameters."""
    return DenseNet(*TABLE_1["densenet169"], num_classes, in_channels, memory_efficient)


def densenet201(
    num_classes: int = 1000, in_channels: int = 3, memory_efficient: bool = False
) -> DenseNet:
    """DenseNet-201: 20,013,928 parameters."""
    return DenseNet(*TABLE_1["densenet201"], num_classes, in_channels, memory_efficient)


def densenet161(
    num_classes: int = 1000, in_channels: int = 3, memory_efficient: bool = False
) -> DenseNet:
    """DenseNet-161, with k = 48: 28,681,000 parameters."""
    return DenseNet(*TABLE_1["densenet161"], num_classes, in_channels, memory_efficient)
