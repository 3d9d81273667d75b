"""Initialisations, each named for where it was published."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

__all__ = ["he_normal_", "lecun_uniform_"]

CONVOLUTIONS = nn.Conv2d | nn.ConvTranspose2d


@torch.no_grad()
def he_normal_(
    model: nn.Module, fan: Literal["in", "out"] = "in", linear_std: float | None = None
) -> None:
    """Draw weights from N(0, 2/n) and set biases to 0, in place.

    He et al., "Delving deep into rectifiers", ICCV 2015: n is what a unit reads (`fan` "in",
    Eq. 10) or what reads it ("out", Eq. 14), within its group of maps. Linear layers get
    N(0, linear_std^2) where that is given. Normalisations stay the identity that they begin as.
    """
    for module in model.modules():
        if not isinstance(module, CONVOLUTIONS | nn.Linear):
            continue
        if isinstance(module, nn.Linear) and linear_std is not None:
            module.weight.normal_(0, linear_std)
        else:
            module.weight.normal_(0, (2 / _fan(module, fan)) ** 0.5)
        if module.bias is not None:
            module.bias.zero_()


def _fan(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, fan: str) -> int:
    """Return how many units one unit reads, or is read by."""
    if isinstance(module, nn.Linear):
        return module.in_features if fan == "in" else module.out_features
    if isinstance(module, nn.ConvTranspose2d) and module.kernel_size == module.stride:
        positions = 1  # its windows do not overlap
    else:
        positions = module.kernel_size[0] * module.kernel_size[1]
    maps = module.in_channels if fan == "in" else module.out_channels
    return maps * positions // module.groups


@torch.no_grad()
def lecun_uniform_(model: nn.Module) -> None:
    """Draw every weight and bias from U(-2.4/F, 2.4/F), F the fan-in of its unit, in place.

    LeCun et al. (1998), appendix A. A layer that has `fan_in()` is asked for it, parameter
    by parameter; convolutions and linear layers have it from their weight.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            limit = 2.4 / _fan_in(module, name)
            limit = limit.view(-1, *[1] * (parameter.ndim - 1))
            parameter.uniform_(-1, 1).mul_(limit)


def _fan_in(module: nn.Module, name: str) -> Tensor:
    """Return the number of inputs of each unit, one for each row of the parameter."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return torch.tensor([module.weight[0].numel()])
    return cast(Tensor, module.fan_in()[name])  # type: ignore[operator]
