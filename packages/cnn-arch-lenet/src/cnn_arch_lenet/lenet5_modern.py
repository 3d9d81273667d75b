"""LeNet-5 as it is taught today.

After Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document
recognition", Proceedings of the IEEE 86(11):2278-2324, November 1998, section II.B.

    layer   operation               maps @ size    trainable
    input   image                    1 @ 32x32
    C1      convolution 5x5, ReLU    6 @ 28x28           156
    S2      max-pooling 2x2          6 @ 14x14
    C3      convolution 5x5, ReLU   16 @ 10x10         2,416
    S4      max-pooling 2x2         16 @ 5x5
    C5      convolution 5x5, ReLU  120 @ 1x1          48,120
    F6      fully connected, ReLU   84                10,164
    output  fully connected         10                   850
                                                      61,706

Departures from the paper:
  C3 is dense: every map is connected to all six maps of S2.
  S2 and S4 are max-pooling, without parameters.
  ReLU instead of the scaled tanh; torch's default initialisation.
  The output is linear, with one logit per class, for the cross-entropy loss.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core.layers import Classifier, require_size

__all__ = ["LeNet5Modern", "lenet5_modern"]

# Shapes are N C H W; sizes in comments are for the default input, 1x32x32.


class LeNet5Modern(Classifier):
    """LeNet-5 with the layers of today: N C 32 32 -> N classes."""

    classifier = "output"

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(in_channels, 6, kernel_size=5)
        self.s2 = nn.MaxPool2d(2)
        self.c3 = nn.Conv2d(6, 16, kernel_size=5)
        self.s4 = nn.MaxPool2d(2)
        self.c5 = nn.Conv2d(16, 120, kernel_size=5)
        self.f6 = nn.Linear(120, 84)
        self.output = nn.Linear(84, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        require_size(x, 32, exactly=True)
        x = self.s2(F.relu(self.c1(x)))  #   N   1 32 32 -> N   6 14 14
        x = self.s4(F.relu(self.c3(x)))  #                  N  16  5  5
        x = F.relu(self.c5(x))  #                           N 120  1  1
        return F.relu(self.f6(x.flatten(1)))  #             N  84

    def forward_head(self, x: Tensor) -> Tensor:
        return self.output(x)  #                            N  10


def lenet5_modern(num_classes: int = 10, in_channels: int = 1) -> LeNet5Modern:
    """LeNet-5 with dense C3, max-pooling, ReLU and a linear output: 61,706 parameters."""
    return LeNet5Modern(num_classes, in_channels)
