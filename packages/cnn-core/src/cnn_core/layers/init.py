"""Initialisations, each named for where it was published."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["lecun_uniform_"]


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
