"""ResNet-18 and ResNet-50 with a 3x3 stem, for 32x32 images. Not published networks.

After K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016,
arXiv:1512.03385 (December 2015): the ImageNet networks of Table 1, with the first layer of
K. Liu, https://github.com/kuangliu/pytorch-cifar (2017). "ResNet-18 on CIFAR-10" often means this
network, with 11.2 million parameters. The paper's own networks for CIFAR-10 are in
resnet_cifar.py; the smallest, with 20 layers, has 0.27 million.

    stage    output   18 layers       50 layers
    conv1    32x32    3x3, 64, stride 1
    conv2_x  32x32    3x3, 64         1x1, 64
                      3x3, 64  x2     3x3, 64
                                      1x1, 256   x3
    conv3_x  16x16    3x3, 128        1x1, 128
                      3x3, 128 x2     3x3, 128
                                      1x1, 512   x4
    conv4_x  8x8      3x3, 256        1x1, 256
                      3x3, 256 x2     3x3, 256
                                      1x1, 1024  x6
    conv5_x  4x4      3x3, 512        1x1, 512
                      3x3, 512 x2     3x3, 512
                                      1x1, 2048  x3
    fc       1x1      average pooling, 10-d fully connected, softmax

Departures from the paper:
  conv1 is 3x3 with stride 1 instead of 7x7 with stride 2, and no pooling follows it: 32x32 images
  would shrink to 8x8 before the first block.
  The bottlenecks of resnet50_cifar have their stride in the 3x3.
  The network returns logits; the softmax is part of the loss.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cnn_arch_resnet.resnet import (
    Block,
    basic,
    bottleneck,
    conv_bn_relu,
    stage,
)
from cnn_core.layers import Classifier, he_normal_, require_size

__all__ = ["CifarStemResNet", "resnet18_cifar", "resnet50_cifar"]

# Shapes are N C H W; sizes in comments are for the default input, 3x32x32.


class CifarStemResNet(Classifier):
    """One column of the table above: N C 32 32 -> N classes.

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
        self.conv1   = conv_bn_relu(in_channels,  64, kernel=3)
        self.conv2_x = stage(block,      64,  64 * k,  64, n2, stride=1)
        self.conv3_x = stage(block,  64 * k, 128 * k, 128, n3, stride=2)
        self.conv4_x = stage(block, 128 * k, 256 * k, 256, n4, stride=2)
        self.conv5_x = stage(block, 256 * k, 512 * k, 512, n5, stride=2)
        self.fc      = nn.Linear(512 * k, num_classes)
        # fmt: on
        he_normal_(self)

    def forward_features(self, x: Tensor) -> Tensor:
        require_size(x, 1)
        x = self.conv1(x)  #      N    3 32 32 -> N   64 32 32
        x = self.conv2_x(x)  #                    N  256 32 32  (18 layers:
        x = self.conv3_x(x)  #                    N  512 16 16   a quarter of
        x = self.conv4_x(x)  #                    N 1024  8  8   the channels)
        return self.conv5_x(x)  #                 N 2048  4  4

    def forward_head(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # N 2048
        return self.fc(x)  #                      N   10


def resnet18_cifar(num_classes: int = 10, in_channels: int = 3) -> CifarStemResNet:
    """18 layers: 11,173,962 parameters, .56e9 multiply-adds."""
    return CifarStemResNet(basic, 1, (2, 2, 2, 2), num_classes, in_channels)


def resnet50_cifar(num_classes: int = 10, in_channels: int = 3) -> CifarStemResNet:
    """50 layers: 23,520,842 parameters, 1.3e9 multiply-adds."""
    return CifarStemResNet(bottleneck, 4, (3, 4, 6, 3), num_classes, in_channels)
