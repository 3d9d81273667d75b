"""U-Net with padded convolutions: the output has the input's size.

After O. Ronneberger, P. Fischer, T. Brox, "U-Net: convolutional networks for biomedical image
segmentation", MICCAI 2015, arXiv:1505.04597, Fig. 1.

    stage    operation                                maps @ size
    input    image                                       3 @ 256x256
    down.1   conv 3x3, conv 3x3                         64 @ 256x256
    down.2   max-pool 2x2, conv 3x3, conv 3x3          128 @ 128x128
    down.3   max-pool 2x2, conv 3x3, conv 3x3          256 @ 64x64
    down.4   max-pool 2x2, conv 3x3, conv 3x3          512 @ 32x32
    bottom   max-pool 2x2, conv 3x3, conv 3x3         1024 @ 16x16
    up.4     up-conv 2x2, concat, conv 3x3, conv 3x3   512 @ 32x32
    up.3     up-conv 2x2, concat, conv 3x3, conv 3x3   256 @ 64x64
    up.2     up-conv 2x2, concat, conv 3x3, conv 3x3   128 @ 128x128
    up.1     up-conv 2x2, concat, conv 3x3, conv 3x3    64 @ 256x256
    output   conv 1x1                                    2 @ 256x256

31,031,810 parameters (31,031,745 for one class), 48,171,581,440 multiply-accumulates.

Departures from the paper:
  Convolutions pad their input with zeros: nothing is cropped, and predictions near the border
  use less of the image.
  Images with sides that are not multiples of 2^depth are extended at the right and the bottom by
  repeating the border; the output is cropped back.
  Three input channels by default.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core.errors import UsageError
from cnn_core.layers import he_normal_

__all__ = ["UNetSame", "unet_same"]

# Shapes are N C H W; sizes in comments are for the default input, 3x256x256.


def convs(cin: int, cout: int, dropout: float = 0.0) -> nn.Sequential:
    """Two padded 3x3 convolutions with ReLU: N cin H W -> N cout H W."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(cin, cout, kernel_size=3, padding=1),
            relu1=nn.ReLU(inplace=True),
            conv2=nn.Conv2d(cout, cout, kernel_size=3, padding=1),
            relu2=nn.ReLU(inplace=True),
            dropout=nn.Dropout(dropout),
        )
    )


class Up(nn.Module):
    """A level of the expanding path: N cin H W, N cin/2 2H 2W -> N cin/2 2H 2W."""

    def __init__(self, cin: int) -> None:
        super().__init__()
        self.upconv = nn.ConvTranspose2d(cin, cin // 2, kernel_size=2, stride=2)
        self.convs = convs(cin, cin // 2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.convs(torch.cat([skip, self.upconv(x)], dim=1))


def pad_to_multiple(x: Tensor, step: int) -> Tensor:
    """Repeat the right and bottom border until both sides are multiples of `step`."""
    bottom, right = -x.shape[-2] % step, -x.shape[-1] % step
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x


class UNetSame(nn.Module):
    """U-Net with padded convolutions: images, N C H W -> logits, N classes H W.

    `depth` is the number of pooling layers, `width` the number of maps of the first level.
    """

    def __init__(
        self, num_classes: int = 2, in_channels: int = 3, depth: int = 4, width: int = 64
    ) -> None:
        super().__init__()
        for name, value in (("depth", depth), ("width", width)):
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} = {value!r}: expected a positive integer")
        levels = range(1, depth + 1)
        maps = [in_channels, *(width * 2**i for i in range(depth + 1))]
        rates = [0.0] * depth + [0.5]  # "at the end of the contracting path"
        self.down = nn.ModuleDict({f"{i}": convs(maps[i - 1], maps[i], rates[i]) for i in levels})
        self.bottom = convs(maps[depth], maps[depth + 1], rates[depth])
        self.up = nn.ModuleDict({f"{i}": Up(maps[i + 1]) for i in reversed(levels)})
        self.output = nn.Conv2d(width, num_classes, kernel_size=1)
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        # Every pooling layer needs even sizes; otherwise the two paths' maps would not match.
        x = pad_to_multiple(x, 2 ** len(self.down))
        skips = []
        for down in self.down.values():
            x = down(x)  #             N    3 256 256 -> N   64 256 256, ... N 512 32 32
            skips.append(x)
            x = F.max_pool2d(x, 2)  #                    N   64 128 128, ... N 512 16 16
        x = self.bottom(x)  #                            N 1024  16  16
        for up, skip in zip(self.up.values(), reversed(skips), strict=True):
            x = up(x, skip)  #                           N  512  32  32, ... N 64 256 256
        return self.output(x)[..., :height, :width]  #   N    2 256 256


def unet_same(
    num_classes: int = 2, in_channels: int = 3, depth: int = 4, width: int = 64
) -> UNetSame:
    """U-Net with padded convolutions: output of the input's size, 31,031,810 parameters."""
    return UNetSame(num_classes, in_channels, depth, width)
