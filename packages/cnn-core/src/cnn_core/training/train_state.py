"""The mutable state of training: model, optimizer, loss scaler, moving average."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cnn_core.errors import UsageError
from cnn_core.runs.recipe import Recipe
from cnn_core.training.checkpoint import Checkpoint
from cnn_core.training.ema import Average
from cnn_core.training.numerics import gradient_norm
from cnn_core.training.optim import Optimizer, make_optimizer

__all__ = ["TrainState"]

MIN_LOSS_SCALE = 1e-4  # below this, overflowing gradients mean that training has diverged


class TrainState:
    """A network with its optimizer, loss scaler, and moving average of the weights.

    The network must already be on its device and in its memory format, because the average starts
    as a copy of it. `head` are the parameters to train in the recipe's `head_epochs`.

    Raises:
        UsageError: the recipe freezes an unknown stage, or all stages, or it needs something that
            the network lacks: batch normalisation, or a head to train.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        device: torch.device,
        head: Collection[str] = (),
    ) -> None:
        self.model = model
        self.head_epochs: int = recipe.head_epochs
        self.clip_norm: float = recipe.clip_norm
        self.optimizer: Optimizer = make_optimizer(model, recipe)
        self.frozen: list[nn.Module] = [model.get_submodule(stage) for stage in recipe.freeze]
        for stage in self.frozen:
            stage.requires_grad_(False)
        self.scaler: torch.GradScaler = torch.GradScaler(
            device.type, enabled=recipe.precision == "fp16"
        )
        self.average: Average | None = Average(model, recipe.ema) if recipe.ema else None
        self.parameters: list[nn.Parameter] = list(self.optimizer.parameters.values())
        # Parameters of frozen stages are not among those of the optimizer.
        self.head: frozenset[str] = frozenset(head) & self.optimizer.parameters.keys()
        if head and not self.head:
            raise UsageError(
                f"head_epochs = {recipe.head_epochs}, but the head is frozen or has no parameters",
                "--set head_epochs=0",
            )
        self.batchnorms: list[nn.Module] = [
            m for m in model.modules() if isinstance(m, _BatchNorm)
        ]
        if recipe.precise_batchnorm and (recipe.freeze_batchnorm or not self.batchnorms):
            reason = "freeze_batchnorm = true" if self.batchnorms else f"{recipe.model} has none"
            raise UsageError(f"precise_batchnorm = true, but {reason}")
        self.freeze_batchnorm: bool = recipe.freeze_batchnorm
        if self.freeze_batchnorm and not self.batchnorms:
            raise UsageError(
                f"freeze_batchnorm = true, but {recipe.model} has no batch normalisation"
            )

    def load(self, state: Checkpoint) -> None:
        """Load a checkpoint's tensors; do nothing if it is the empty one of a new run."""
        if not state.model:
            return
        self.model.load_state_dict(dict(state.model))
        self.optimizer.load_state(state.optimizer)
        if self.average is not None:
            self.average.model.load_state_dict(dict(state.average))
        # Empty without fp16: the scaler is then switched off.
        if state.scaler:
            self.scaler.load_state_dict(dict(state.scaler))

    def state(self, previous: Checkpoint, **changes: Any) -> Checkpoint:
        """Return `previous` with the current tensors and with `changes` to other fields."""
        average = self.average.model.state_dict() if self.average is not None else {}
        # Do not copy the tensors: the checkpoint is written before the next step changes them.
        return replace(
            previous,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state,
            average=average,
            scaler=self.scaler.state_dict(),
            **changes,
        )

    @property
    def eval_model(self) -> nn.Module:
        """The network to evaluate and save: the averaged one if there is one."""
        return self.model if self.average is None else self.average.model

    def start_epoch(self, epoch: int) -> bool:
        """Put the network in train mode for an epoch, counted from 0.

        In the recipe's `head_epochs` only the head requires gradients. Return whether this
        changed.
        """
        only_head = epoch < self.head_epochs
        before = [parameter.requires_grad for parameter in self.parameters]
        for name, parameter in self.optimizer.parameters.items():
            parameter.requires_grad_(not only_head or name in self.head)
        self.train(only_head=only_head)
        return before != [parameter.requires_grad for parameter in self.parameters]

    def train(self, *, only_head: bool = False) -> None:
        """Put the network in train mode, but frozen stages in eval mode.

        In train mode, batch normalisation would update the statistics of frozen stages. With
        `only_head` those of the whole network stay fixed.
        """
        self.model.train()
        for stage in self.frozen:
            stage.eval()
        if only_head or self.freeze_batchnorm:
            for module in self.batchnorms:
                module.eval()

    @property
    def may_overflow(self) -> bool:
        """Whether non-finite gradients may be caused by a loss scale that is too high."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= MIN_LOSS_SCALE

    def gradient_norm(self) -> float:
        """Unscale the gradients if the loss is scaled; return the norm of all of them."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)  # type: ignore[arg-type]
        return gradient_norm(self.parameters)

    def clip(self, norm: float) -> None:
        """Scale the gradients down if `norm` exceeds `clip_norm` (Pascanu et al. 2013)."""
        if 0 < self.clip_norm < norm:
            torch._foreach_mul_(
                [p.grad for p in self.parameters if p.grad is not None], self.clip_norm / norm
            )

    def step(self, lr: float, steps: int) -> None:
        """Take an optimizer step, which `steps` others preceded, and clear the gradients.

        With loss scaling, a step with overflowing gradients is skipped and the scale is reduced.
        """
        self.scaler.step(self.optimizer, lr)  # type: ignore[arg-type]
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(steps)
