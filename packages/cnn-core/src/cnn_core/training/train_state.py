"""What changes while a network is trained, and how it is put into a state and taken from one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from cnn_core.runs.recipe import Recipe
from cnn_core.training.checkpoint import Checkpoint
from cnn_core.training.ema import Average
from cnn_core.training.numerics import gradient_norm
from cnn_core.training.optim import Optimizer, make_optimizer

__all__ = ["TrainState", "frozen"]

LEAST_SCALE = 1e-4  # of a loss: below it no gradient overflows that is worth something


class TrainState:
    """A network with its optimizer, the scale of its loss, and the average of its weights."""

    def __init__(self, model: nn.Module, recipe: Recipe, device: torch.device) -> None:
        self.model = model
        self.recipe = recipe
        self.optimizer: Optimizer = make_optimizer(model, recipe)
        self.scaler: torch.GradScaler = torch.GradScaler(
            device.type, enabled=recipe.precision == "fp16"
        )
        self.average: Average | None = Average(model, recipe.ema) if recipe.ema else None
        self.parameters: list[nn.Parameter] = list(self.optimizer.parameters.values())

    def load(self, state: Checkpoint) -> None:
        """Put a state's tensors where they belong; a new training's has none."""
        if not state.model:
            return
        self.model.load_state_dict(dict(state.model))
        self.optimizer.load_state(state.optimizer)
        if self.average is not None:
            self.average.model.load_state_dict(dict(state.average))
        if state.scaler:
            self.scaler.load_state_dict(dict(state.scaler))

    def state(self, before: Checkpoint, **where: Any) -> Checkpoint:
        """Return the state now; `where` says where training stands, the rest is as before."""
        average = self.average.model.state_dict() if self.average is not None else {}
        return replace(
            before,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state,
            average=average,
            scaler=self.scaler.state_dict(),
            **where,
        )

    @property
    def best_guess(self) -> nn.Module:
        """The network to measure and to keep: with averaged weights, where there are some."""
        return self.model if self.average is None else self.average.model

    def train(self) -> None:
        """Put the network in train mode, but frozen stages in eval mode: they stay as they are."""
        self.model.train()
        for stage in self.recipe.freeze:
            self.model.get_submodule(stage).eval()

    @property
    def may_overflow(self) -> bool:
        """Whether gradients that are not finite only mean that the scale is too high."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= LEAST_SCALE

    def gradient_norm(self) -> float:
        """Return the norm of all gradients, of the loss itself and not of the scaled one."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)  # type: ignore[arg-type]
        return gradient_norm(self.parameters)

    def clip(self, norm: float) -> None:
        """Shorten gradients that are longer than the recipe allows (Pascanu et al. 2013)."""
        limit = self.recipe.clip_norm
        if 0 < limit < norm:
            torch._foreach_mul_(
                [p.grad for p in self.parameters if p.grad is not None], limit / norm
            )

    def step(self, lr: float, steps: int) -> None:
        """Take the optimizer's step, after `steps` others, and drop the gradients.

        With a scaled loss a step whose gradients overflowed is left out, and the scale lowered.
        """
        self.scaler.step(self.optimizer, lr)  # type: ignore[arg-type]
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(steps)


def frozen(model: nn.Module, stages: Iterable[str]) -> nn.Module:
    """Return the model whose parameters in `stages` take no gradient."""
    for stage in stages:
        model.get_submodule(stage).requires_grad_(False)
    return model
