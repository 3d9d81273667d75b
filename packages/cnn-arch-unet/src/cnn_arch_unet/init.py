"""The initialisation of both networks."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["he_normal_"]


@torch.no_grad()
def he_normal_(model: nn.Module) -> None:
    """Draw every weight from N(0, 2/N), N the incoming nodes of a neuron; biases are 0.

    Ronneberger et al. (2015), section 3, after He et al., "Delving deep into rectifiers", 2015.
    The windows of a 2x2 up-convolution do not overlap: its N is the number of input maps.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            transposed = isinstance(module, nn.ConvTranspose2d)
            incoming = module.in_channels if transposed else module.weight[0].numel()
            module.weight.normal_(0, (2 / incoming) ** 0.5)
            if module.bias is not None:
                module.bias.zero_()
