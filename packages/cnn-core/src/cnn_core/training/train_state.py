"""The mutable state of training: model, optimizer, loss scaler, moving average."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from cnn_core.runs.recipe import Recipe
from cnn_core.training.checkpoint import Checkpoint
from cnn_core.training.ema import Average
from cnn_core.training.numerics import gradient_norm
from cnn_core.training.optim import Optimizer, make_optimizer

__all__ = ["TrainState"]

LEAST_SCALE = 1e-4  # of the loss: gradients that overflow even below it have diverged


class TrainState:
    """A network with its optimizer, the scale of its loss, and the average of its weights.

    The network must be on its device and in its memory format already: the average is a copy.

    Raises:
        UsageError: the recipe freezes a stage that is not there, or all of them.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, device: torch.device) -> None:
        self.model = model
        self.clip_norm = recipe.clip_norm
        self.optimizer: Optimizer = make_optimizer(model, recipe)
        self.frozen: list[nn.Module] = [model.get_submodule(stage) for stage in recipe.freeze]
        for stage in self.frozen:
            stage.requires_grad_(False)
        self.scaler: torch.GradScaler = torch.GradScaler(
            device.type, enabled=recipe.precision == "fp16"
        )
        self.average: Average | None = Average(model, recipe.ema) if recipe.ema else None
        self.parameters: list[nn.Parameter] = list(self.optimizer.parameters.values())

    def load(self, state: Checkpoint) -> None:
        """Load a checkpoint's tensors; that of a new training has none."""
        if not state.model:
            return
        self.model.load_state_dict(dict(state.model))
        self.optimizer.load_state(state.optimizer)
        if self.average is not None:
            self.average.model.load_state_dict(dict(state.average))
        # Empty without fp16: the scaler is then switched off.
        if state.scaler:
            self.scaler.load_state_dict(dict(state.scaler))

    def state(self, before: Checkpoint, **changes: Any) -> Checkpoint:
        """Return `before` with the current tensors and with `changes`."""
        average = self.average.model.state_dict() if self.average is not None else {}
        # These are the live tensors, not copies: a checkpoint is written before the next step.
        return replace(
            before,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state,
            average=average,
            scaler=self.scaler.state_dict(),
            **changes,
        )

    @property
    def eval_model(self) -> nn.Module:
        """The network to measure and to keep: with averaged weights, where there are some."""
        return self.model if self.average is None else self.average.model

    def train(self) -> None:
        """Put the network in train mode, but frozen stages in eval mode.

        Else batch normalisation would go on changing the statistics of frozen stages.
        """
        self.model.train()
        for stage in self.frozen:
            stage.eval()

    @property
    def may_overflow(self) -> bool:
        """Whether gradients that are not finite may just mean that the loss is scaled too high."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= LEAST_SCALE

    def gradient_norm(self) -> float:
        """Return the norm of all gradients of the loss itself, not of the scaled one."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)  # type: ignore[arg-type]
        return gradient_norm(self.parameters)

    def clip(self, norm: float) -> None:
        """Shorten gradients that are longer than the recipe allows (Pascanu et al. 2013)."""
        if 0 < self.clip_norm < norm:
            torch._foreach_mul_(
                [p.grad for p in self.parameters if p.grad is not None], self.clip_norm / norm
            )

    def step(self, lr: float, steps: int) -> None:
        """Take the optimizer's step, after `steps` others, and drop the gradients.

        With a scaled loss a step whose gradients overflowed is skipped, and the scale lowered.
        """
        self.scaler.step(self.optimizer, lr)  # type: ignore[arg-type]
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(steps)
