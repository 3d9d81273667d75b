"""Weights and training state on disk: safetensors with one JSON text beside the tensors.

Both are single files, written under another name, synced, and renamed into place: what is on
disk is always one whole checkpoint. Nothing is ever pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cnn_core import registry
from cnn_core.create import create_model
from cnn_core.data.pipeline import Preprocessing
from cnn_core.errors import CorruptError, UsageError
from cnn_core.files import write_bytes
from cnn_core.plugins import plugins

__all__ = [
    "State",
    "Weights",
    "is_ours",
    "read_state",
    "read_weights",
    "write_state",
    "write_weights",
]

SCHEMA = 1
KEY = "cnnzoo"  # one key: with several, safetensors orders them differently every time


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A model's parameters and buffers, and all that is needed to use them."""

    tensors: Mapping[str, Tensor]
    model: str
    num_classes: int
    in_channels: int
    options: Mapping[str, Any]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    epoch: int
    path: Path | None = None

    def build(self) -> nn.Module:
        """Return the model with these weights, in eval mode."""
        model = create_model(
            self.model,
            num_classes=self.num_classes,
            in_channels=self.in_channels,
            **self.options,
        )
        self.load_into(model)
        return model.eval()

    def load_into(self, model: nn.Module) -> None:
        """Copy the tensors into a model that has exactly these names and shapes.

        Raises:
            UsageError: it has not; says the first difference.
        """
        expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        found = {name: tuple(t.shape) for name, t in self.tensors.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise UsageError(
                    f"{self.path}: {name} is {found.get(name, 'missing')}, "
                    f"the model has {expected.get(name, 'none')}",
                    f"these weights are of {self.model} with {self.num_classes} classes "
                    f"and {self.in_channels} input channels",
                )
        model.load_state_dict(dict(self.tensors))


@dataclass(frozen=True, kw_only=True)
class State:
    """Where training stands after `epoch` epochs: all that the next one depends on."""

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    scaler: Mapping[str, Any]
    epoch: int
    best: float
    best_epoch: int
    metrics: list[dict[str, float]]


def write_weights(path: Path, weights: Weights) -> None:
    """Write weights.safetensors."""
    fields = asdict(weights)
    for name in ("tensors", "path"):
        del fields[name]
    origin = registry.models().entry(weights.model).plugin
    versions = {"torch": torch.__version__, origin.distribution: origin.version}
    versions["cnn-core"] = plugins().all[0].version
    _write(path, weights.tensors, {"schema": SCHEMA, **fields, "versions": versions})


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Read the weights of a run directory, or of a weights.safetensors.

    Raises:
        UsageError: there are none.
        CorruptError: the file is broken, or not of ours; names it.
    """
    file = Path(path)
    if file.is_dir():
        if not (file / "weights.safetensors").is_file():
            raise UsageError(
                f"{file}: no weights.safetensors: no epoch of this run has ended yet",
                f"cnnzoo train --resume {file}",
            )
        file = file / "weights.safetensors"
    tensors, fields = _read(file)
    try:
        preprocessing: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields["preprocessing"].items()
        }
        return Weights(
            tensors=tensors,
            model=fields["model"],
            num_classes=fields["num_classes"],
            in_channels=fields["in_channels"],
            options=fields["options"],
            classes=tuple(fields["classes"]),
            preprocessing=Preprocessing(**preprocessing),
            epoch=fields["epoch"],
            path=file,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"{file}: its description of the model is broken: {error}") from error


def is_ours(path: Path) -> bool:
    """Whether a file is weights that cnnzoo wrote; false for any other safetensors or format.

    Raises:
        UsageError: there is no such file.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return KEY in (file.metadata() or {})
    except SafetensorError as error:
        raise CorruptError(f"{path}: not a sound safetensors file: {error}") from error


def write_state(path: Path, state: State) -> None:
    """Write the training state."""
    tensors = {f"model.{name}": tensor for name, tensor in state.model.items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in state.optimizer.items()}
    names = ("scaler", "epoch", "best", "best_epoch", "metrics")
    _write(path, tensors, {"schema": SCHEMA, **{name: getattr(state, name) for name in names}})


def read_state(path: Path) -> State:
    """Read the training state.

    Raises:
        UsageError: there is none.
        CorruptError: the file is broken; names it.
    """
    tensors, fields = _read(path)
    try:
        return State(
            model=_part(tensors, "model."),
            optimizer=_part(tensors, "optimizer."),
            scaler=fields["scaler"],
            epoch=fields["epoch"],
            best=float(fields["best"]),
            best_epoch=fields["best_epoch"],
            metrics=fields["metrics"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"{path}: not a training state: {error}") from error


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _write(path: Path, tensors: Mapping[str, Tensor], fields: Mapping[str, Any]) -> None:
    whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_bytes(path, save(whole, {KEY: json.dumps(fields, sort_keys=True)}))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a file's tensors and its JSON text."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        fields = json.loads(metadata[KEY])
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CorruptError(f"{path}: not a sound safetensors file: {error}") from error
    except KeyError:
        raise CorruptError(f"{path}: has no '{KEY}' metadata: not written by cnnzoo") from None
    if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
        raise CorruptError(f"{path}: written by another version of cnnzoo")
    return tensors, fields
