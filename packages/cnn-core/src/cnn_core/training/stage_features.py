"""Features of images: the inputs or outputs of one stage of a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnn_core.data.batching import Batch
from cnn_core.errors import UnknownNameError, UsageError

__all__ = ["features_of", "stage_features"]


def features_of(
    model: nn.Module, stage: str, batches: Iterable[Batch], *, use_outputs: bool = False
) -> Tensor:
    """Return the inputs of a stage, or its outputs if `use_outputs`, as features: N x D, float32.

    Feature maps are averaged over their positions.

    Raises:
        UnknownNameError: the network has no such stage; suggests names.
        UsageError: the stage is not called exactly once.
    """
    inputs = (batch.images for batch in batches)
    return torch.cat([*stage_features(model, stage, inputs, use_outputs=use_outputs)])


def stage_features(
    model: nn.Module, stage: str, inputs: Iterable[Tensor], *, use_outputs: bool = False
) -> Iterator[Tensor]:
    """Yield the features of each batch of `inputs`, N C H W, as in `features_of`, on the CPU.

    Raises:
        UnknownNameError, UsageError: as in `features_of`.
    """
    modules = dict(model.named_modules())
    if not stage or stage not in modules:
        stages = ", ".join(name for name, _ in model.named_children())
        known = [name for name in modules if name]
        raise UnknownNameError("stage", stage, known, f"its stages: {stages}")
    return _computed(model, modules[stage], stage, inputs, use_outputs)


def _computed(
    model: nn.Module, module: nn.Module, stage: str, inputs: Iterable[Tensor], use_outputs: bool
) -> Iterator[Tensor]:
    stored: list[Tensor] = []

    def store(module: nn.Module, given: Sequence[Any], output: Any = None) -> None:
        features = output if use_outputs else given[0]
        if not isinstance(features, Tensor):
            kind = type(features).__name__
            raise UsageError(f"stage '{stage}' has {kind} instead of a tensor: choose another")
        pooled = features.mean((2, 3)) if features.ndim == 4 else features.flatten(1)
        stored.append(pooled.float().cpu())

    register = module.register_forward_hook if use_outputs else module.register_forward_pre_hook
    for images in inputs:
        # Hooked for one batch only: between batches the network may be used for something else.
        with register(store), torch.no_grad():
            model(images)
        if len(stored) != 1:
            raise UsageError(f"stage '{stage}' is called {len(stored)} times, expected once")
        yield stored.pop()
