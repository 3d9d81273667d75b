"""Residual networks for ImageNet.

K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016,
arXiv:1512.03385 (December 2015), Table 1:

    stage    output   18 layers    34 layers    50 layers      101 layers     152 layers
    conv1    112x112  7x7, 64, stride 2
    conv2_x  56x56    3x3 max pooling, stride 2, then
                      3x3, 64      3x3, 64      1x1, 64        1x1, 64        1x1, 64
                      3x3, 64  x2  3x3, 64  x3  3x3, 64        3x3, 64        3x3, 64
                                                1x1, 256   x3  1x1, 256   x3  1x1, 256   x3
    conv3_x  28x28    3x3, 128     3x3, 128     1x1, 128       1x1, 128       1x1, 128
                      3x3, 128 x2  3x3, 128 x4  3x3, 128       3x3, 128       3x3, 128
                                                1x1, 512   x4  1x1, 512   x4  1x1, 512   x8
    conv4_x  14x14    3x3, 256     3x3, 256     1x1, 256       1x1, 256       1x1, 256
                      3x3, 256 x2  3x3, 256 x6  3x3, 256       3x3, 256       3x3, 256
                                                1x1, 1024  x6  1x1, 1024 x23  1x1, 1024 x36
    conv5_x  7x7      3x3, 512     3x3, 512     1x1, 512       1x1, 512       1x1, 512
                      3x3, 512 x2  3x3, 512 x3  3x3, 512       3x3, 512       3x3, 512
                                                1x1, 2048  x3  1x1, 2048  x3  1x1, 2048  x3
    fc       1x1      average pooling, 1000-d fully connected, softmax
    FLOPs             1.8e9        3.6e9        3.8e9          7.6e9          11.3e9

conv3_1, conv4_1 and conv5_1 halve the maps with stride 2. In the authors' networks the stride of a
bottleneck is in the first 1x1, which gives the 3.8e9 of the table: `resnet50_v1`, `resnet101_v1`
and `resnet152_v1`. The models without "_v1" have it in the 3x3 (4.1e9), like fb.resnet.torch and
torchvision. Parameters have the same names and shapes in both, but the networks compute different
functions: the weights of one are useless in the other.

Departures from the paper:
  resnet50, resnet101 and resnet152 have the stride of a bottleneck in its 3x3.
  The 3x3 pooling pads a pixel on each side; the authors' released networks round up instead.
  The network returns logits; the softmax is part of the loss.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core.layers import Classifier, he_normal_, require_size

__all__ = [
    "ResNet",
    "Residual",
    "basic",
    "bottleneck",
    "bottleneck_v1",
    "conv_bn",
    "conv_bn_relu",
    "projection",
    "resnet101",
    "resnet101_v1",
    "resnet152",
    "resnet152_v1",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet50_v1",
    "stage",
]

# Shapes are N C H W; sizes in comments are for the default input, 3x224x224.


def conv_bn(cin: int, cout: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, then batch normalisation (section 3.4), whose shift replaces the bias."""
    conv = nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(cout)))


def conv_bn_relu(cin: int, cout: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU: N cin H W -> N cout H/stride W/stride."""
    layer = conv_bn(cin, cout, kernel, stride)
    layer.add_module("relu", nn.ReLU(inplace=True))
    return layer


class Residual(nn.Module):
    """Fig. 2: y = relu(F(x) + x) (Eq. 1), or relu(F(x) + W x) if F changes the shape (Eq. 2)."""

    def __init__(self, *layers: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.residual = nn.Sequential(*layers)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        # In-place is safe: batch normalisation needs its input, not its output, for the gradient.
        return self.residual(x).add_(self.shortcut(x)).relu_()


def projection(cin: int, cout: int, stride: int) -> nn.Module:
    """Option B (section 3.3): the identity, or a 1x1 convolution where the shapes differ."""
    return nn.Identity() if (cin, stride) == (cout, 1) else conv_bn(cin, cout, 1, stride)


# fmt: off
def basic(cin: int, width: int, stride: int) -> Residual:
    """Fig. 5, left: N cin H W -> N width H/stride W/stride."""
    return Residual(
        conv_bn_relu(cin,   width, 3, stride),
        conv_bn     (width, width, 3),
        shortcut=projection(cin, width, stride),
    )


def bottleneck(cin: int, width: int, stride: int) -> Residual:
    """Fig. 5, right, with the stride in the 3x3: N cin H W -> N 4*width H/stride W/stride."""
    return Residual(
        conv_bn_relu(cin,       width, 1),
        conv_bn_relu(width,     width, 3, stride),
        conv_bn     (width, 4 * width, 1),
        shortcut=projection(cin, 4 * width, stride),
    )


def bottleneck_v1(cin: int, width: int, stride: int) -> Residual:
    """Fig. 5, right, with the stride in the first 1x1, as in the authors' networks."""
    return Residual(
        conv_bn_relu(cin,       width, 1, stride),
        conv_bn_relu(width,     width, 3),
        conv_bn     (width, 4 * width, 1),
        shortcut=projection(cin, 4 * width, stride),
    )
# fmt: on


Block = Callable[[int, int, int], Residual]  # (input channels, width, stride) -> block


def stage(block: Block, cin: int, cout: int, width: int, n: int, stride: int) -> nn.Sequential:
    """n blocks, the "x n" of the table; the first has the stride and changes the channels."""
    return nn.Sequential(block(cin, width, stride), *(block(cout, width, 1) for _ in range(1, n)))


class ResNet(Classifier):
    """One column of Table 1: N C 224 224 -> N classes.

    `depths` are the numbers of blocks in conv2_x to conv5_x. A block's output is `k` times as wide
    as its 3x3 convolutions: 1 for basic blocks, 4 for bottlenecks.
    """

    classifier = "fc"

    def __init__(
        self,
        block: Block,
        k: int,
        depths: tuple[int, int, int, int],
        num_classes: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        n2, n3, n4, n5 = depths
        # fmt: off
        self.conv1   = conv_bn_relu(in_channels,  64, kernel=7, stride=2)
        self.pool1   = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.conv2_x = stage(block,      64,  64 * k,  64, n2, stride=1)
        self.conv3_x = stage(block,  64 * k, 128 * k, 128, n3, stride=2)
        self.conv4_x = stage(block, 128 * k, 256 * k, 256, n4, stride=2)
        self.conv5_x = stage(block, 256 * k, 512 * k, 512, n5, stride=2)
        self.fc      = nn.Linear(512 * k, num_classes)
        # fmt: on
        he_normal_(self)  # section 3.4

    def forward_features(self, x: Tensor) -> Tensor:
        require_size(x, 1)
        x = self.conv1(x)  #      N    3 224 224 -> N   64 112 112
        x = self.pool1(x)  #                        N   64  56  56
        x = self.conv2_x(x)  #                      N  256  56  56  (18 and 34 layers:
        x = self.conv3_x(x)  #                      N  512  28  28   a quarter of
        x = self.conv4_x(x)  #                      N 1024  14  14   the channels)
        return self.conv5_x(x)  #                   N 2048   7   7

    def forward_head(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # N 2048
        return self.fc(x)  #                        N 1000


def resnet18(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """18 layers: 11,689,512 parameters, 1.8e9 multiply-adds."""
    return ResNet(basic, 1, (2, 2, 2, 2), num_classes, in_channels)


def resnet34(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """34 layers: 21,797,672 parameters, 3.7e9 multiply-adds."""
    return ResNet(basic, 1, (3, 4, 6, 3), num_classes, in_channels)


def resnet50(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """50 layers, stride in the 3x3: 25,557,032 parameters, 4.1e9 multiply-adds."""
    return ResNet(bottleneck, 4, (3, 4, 6, 3), num_classes, in_channels)


def resnet101(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """101 layers, stride in the 3x3: 44,549,160 parameters, 7.8e9 multiply-adds."""
    return ResNet(bottleneck, 4, (3, 4, 23, 3), num_classes, in_channels)


def resnet152(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """152 layers, stride in the 3x3: 60,192,808 parameters, 11.5e9 multiply-adds."""
    return ResNet(bottleneck, 4, (3, 8, 36, 3), num_classes, in_channels)


def resnet50_v1(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """50 layers, stride in the first 1x1: 25,557,032 parameters, 3.9e9 multiply-adds."""
    return ResNet(bottleneck_v1, 4, (3, 4, 6, 3), num_classes, in_channels)


def resnet101_v1(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """101 layers, stride in the first 1x1: 44,549,160 parameters, 7.6e9 multiply-adds."""
    return ResNet(bottleneck_v1, 4, (3, 4, 23, 3), num_classes, in_channels)


def resnet152_v1(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """152 layers, stride in the first 1x1: 60,192,808 parameters, 11.3e9 multiply-adds."""
    return ResNet(bottleneck_v1, 4, (3, 8, 36, 3), num_classes, in_channels)
