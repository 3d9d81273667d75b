"""Find the shapes of a model's parameters, and which belong to the head, without allocating it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cnn_core import registry
from cnn_core.plugins import isolated, required
from cnn_core.specs import ModelSpec
from cnn_core.weights.foreign import ForeignFile
from cnn_core.weights.keymap import KeyMap
from cnn_core.weights.naming import best_match

__all__ = ["Blueprint", "blueprint_of", "key_maps", "sizes_in_file"]

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Blueprint:
    """A model's constructor with its arguments; `sizes` are num_classes and in_channels."""

    entry: registry.Entry[ModelSpec]
    build: Callable[..., Any]
    sizes: Mapping[str, int]
    options: Mapping[str, Any] = field(default_factory=dict)

    def shapes(self, **sizes: int) -> Shapes:
        """Return the shapes of the parameters and buffers, by name, with changed sizes."""
        message = f"model '{self.entry.spec.name}' ({self.entry.plugin.origin}) cannot be built"
        failed = required(self.entry.plugin, message)
        # The meta device needs no memory, and fork_rng keeps the caller's random state.
        with (
            torch.random.fork_rng(devices=[]),
            torch.device("meta"),
            isolated(self.entry.plugin, f"building of {self.entry.spec.name}", failed=failed),
        ):
            state = self.build(**{**self.sizes, **sizes}, **self.options).state_dict()
        return {name: tuple(tensor.shape) for name, tensor in state.items()}

    def dimensions_of(self, size: str) -> dict[str, int]:
        """Return the tensors that grow with num_classes or in_channels, and their dimensions."""
        number = self.sizes[size]
        before, after = self.shapes(), self.shapes(**{size: number + 1})
        grown = {}
        for name, shape in before.items():
            for dimension, (old, new) in enumerate(zip(shape, after[name], strict=True)):
                if old != new:
                    grown[name] = dimension
        return grown


def blueprint_of(entry: registry.Entry[ModelSpec]) -> Blueprint:
    """Return the blueprint of a model with the paper's sizes and no options."""
    spec = entry.spec
    sizes = {"num_classes": spec.num_classes, "in_channels": spec.input[0]}
    return Blueprint(entry, registry.resolve(entry), sizes)


def key_maps(entry: registry.Entry[ModelSpec]) -> Mapping[str, KeyMap]:
    """Return the key maps of a model by naming."""
    has_maps = bool(entry.spec.key_maps)
    maps: Mapping[str, KeyMap] = {}
    return registry.resolve(entry, "key_maps")(entry.spec.name) if has_maps else maps


def sizes_in_file(
    entry: registry.Entry[ModelSpec], file: ForeignFile, naming: str | None = None
) -> tuple[int, int]:
    """Return the numbers of classes and of input channels in a weights file of another library.

    They are the sizes of those dimensions of the model's tensors that grow with them; the model's
    own numbers if the file has no such tensor.
    """
    blueprint, sizes = blueprint_of(entry), []
    shapes = blueprint.shapes()
    found = best_match(shapes, file.tensors, key_maps(entry), naming).found
    for size, own in blueprint.sizes.items():
        tensors = (
            (file.tensors[found[key]], dimension)
            for key, dimension in blueprint.dimensions_of(size).items()
            # A dimension may grow as a multiple of the size: take one that equals the size.
            if key in found and shapes[key][dimension] == own
        )
        there = (t.shape[dimension] for t, dimension in tensors if dimension < t.ndim)
        sizes.append(next(there, own))
    return sizes[0], sizes[1]
