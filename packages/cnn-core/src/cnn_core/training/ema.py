"""An exponential moving average of the weights, which often generalises better than they do."""

from __future__ import annotations

import copy

import torch
from torch import nn

__all__ = ["Average"]


class Average:
    """An exponential moving average of a model's weights (Polyak and Juditsky 1992).

    After step n, counted from 0: a <- d a + (1 - d) w, with d = min(decay, (1 + n) / (10 + n)).
    The smaller d at the start keeps the average of a short run from staying near the initial
    weights. Floating-point buffers are averaged like weights; integer buffers are copied. `model`
    is a copy of the network that holds the average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model: nn.Module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        # A state dict's tensors share memory with the model, so they need collecting only once.
        pairs = list(
            zip(model.state_dict().values(), self.model.state_dict().values(), strict=True)
        )
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Update the average after an optimizer step that `steps` others preceded."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        averages = [average for _, average in self._floats]
        torch._foreach_lerp_(averages, [value for value, _ in self._floats], 1 - decay)
        # Counters, such as BatchNorm's number of batches, have no meaningful mean.
        for value, average in self._others:
            average.copy_(value)
