"""A moving average of the weights, which often generalises better than the weights themselves."""

from __future__ import annotations

import copy

import torch
from torch import nn

__all__ = ["Average"]


class Average:
    """An exponential moving average of a model's weights (Polyak and Juditsky 1992).

    a <- d a + (1 - d) w after every step, with d = min(decay, (1 + n) / (10 + n)) at the n-th:
    a short training would otherwise stay near its initial weights. Buffers of normalisation are
    averaged as weights are; integers are copied. `model` is the network with the average in it.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model: nn.Module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        # The tensors of a state dict share memory with the model: collected once, they stay
        # current.
        pairs = list(
            zip(model.state_dict().values(), self.model.state_dict().values(), strict=True)
        )
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Average in the weights after the step that follows `steps` others."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        ours = [average for _, average in self._floats]
        torch._foreach_lerp_(ours, [value for value, _ in self._floats], 1 - decay)
        # Counters, such as the batches that normalisation has seen, have no meaningful mean.
        for value, average in self._others:
            average.copy_(value)
