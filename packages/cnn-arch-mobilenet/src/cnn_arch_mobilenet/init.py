"""The initialisation of both networks."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["he_normal_"]


@torch.no_grad()
def he_normal_(model: nn.Module) -> None:
    """Draw a convolution's weights from N(0, 2/F), F the fan-out of its units, in place.

    He et al., "Delving deep into rectifiers", ICCV 2015, Eq. 14. A depthwise unit is read by
    the 3x3 positions of its own map only: F is 9. Linear layers: N(0, 0.01^2), and no bias.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight[:, 0].numel() // module.groups
            module.weight.normal_(0, (2 / fan_out) ** 0.5)
        elif isinstance(module, nn.Linear):
            module.weight.normal_(0, 0.01)
            module.bias.zero_()
