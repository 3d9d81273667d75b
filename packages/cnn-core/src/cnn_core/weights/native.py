"""weights.safetensors: a model's weights, the arguments that rebuild it, and a digest of both.

safetensors does not detect a flipped bit; the digest does. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from cnn_core import registry
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.errors import CheckpointCorruptError, CorruptError, UsageError
from cnn_core.files import expanded, write_bytes
from cnn_core.plugins import plugins
from cnn_core.registry.names import recorded_name
from cnn_core.runs.recipe import RESERVED
from cnn_core.specs import TASKS
from cnn_core.text import printable
from cnn_core.weights.blueprint import key_maps
from cnn_core.weights.keymap import KeyMap
from cnn_core.weights.safetensors_parts import on_cpu, packed

__all__ = ["Weights", "is_ours", "read_weights", "write_weights"]

SCHEMA = 1
KEY = "cnnzoo"  # one key only: safetensors would write several in random order
BEGINNING = f'{{"__metadata__":{{"{KEY}":'.encode()  # of our files' headers
DIGEST = 64  # hexadecimal digits of SHA-256


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A model's parameters and buffers, and the settings needed to use them.

    `mask_values`, `colours` and `background` are those of the `DatasetSpec` that it was trained
    on: predicted masks have the values and the colours of the masks of the training.
    """

    tensors: Mapping[str, Tensor]
    model: str
    num_classes: int
    in_channels: int
    options: Mapping[str, Any]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    epoch: int
    mask_values: tuple[int | str, ...] = ()
    colours: tuple[str, ...] = ()
    background: str = ""
    task: str = ""  # "": that of the model; "multilabel" is done by models for classification
    thresholds: tuple[float, ...] = ()  # of each class, or of class 1 of two; empty: none
    path: Path | None = None
    digest: str = ""  # SHA-256 of the file's contents; empty if not read from a file

    def __post_init__(self) -> None:
        # A file may say anything.
        if self.task not in ("", *TASKS):
            raise CorruptError(f"{self.path}: unknown task '{printable(str(self.task))}'")
        numbers = all(isinstance(t, int | float) and 0 <= t <= 1 for t in self.thresholds)
        if not numbers or len(self.thresholds) not in (0, 1, self.num_classes):
            raise CorruptError(
                f"{self.path}: thresholds: expected numbers from 0 to 1, one per class"
            )

    def load_into(self, model: nn.Module, fresh: Collection[str] = ()) -> tuple[str, ...]:
        """Copy the tensors into a model, which must have the same names and shapes.

        Tensors named in `fresh` keep the model's values if the shapes differ; return their names.

        Raises:
            UsageError: a name or a shape differs; the message gives the first difference.
        """
        own = model.state_dict()
        expected = {name: tuple(t.shape) for name, t in own.items()}
        found = {name: tuple(t.shape) for name, t in self.tensors.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name) and name not in fresh:
                raise UsageError(
                    f"{self.path}: {name} is {found.get(name, 'missing')}, "
                    f"the model has {expected.get(name, 'none')}",
                    f"these weights are for {self.model} with {self.num_classes} classes "
                    f"and {self.in_channels} input channels",
                )
        matching = {name for name in expected if expected[name] == found.get(name)}
        model.load_state_dict({n: self.tensors[n] if n in matching else own[n] for n in expected})
        return tuple(name for name in expected if name not in matching)


def write_weights(path: Path, weights: Weights, naming: str = "") -> None:
    """Write weights.safetensors; with `naming`, under another library's names (a key map)."""
    fields = asdict(weights)
    for name in ("tensors", "path", "digest"):
        del fields[name]
    origin = registry.models().entry(weights.model).plugin
    versions = {"torch": torch.__version__, origin.distribution: origin.version}
    versions["cnn-core"] = plugins().all[0].version
    # Another plugin may claim the model's name later; the origin keeps it unambiguous.
    recorded = registry.origin(registry.models(), weights.model)
    content = {"schema": SCHEMA, **fields, "versions": versions, "origin": recorded}
    tensors = on_cpu(weights.tensors)
    if naming:
        content["naming"] = naming
        tensors = _key_map(weights.model, naming, path).to_theirs(tensors)
    text = json.dumps(content, sort_keys=True)
    write_bytes(path, *packed(tensors, {KEY: _digest(text, tensors) + text}))


def _key_map(model: str, naming: object, path: Path) -> KeyMap:
    """Return a key map of a model; raise CorruptError if it has none of that name."""
    known = key_maps(registry.models().entry(model))
    if naming not in known:
        raise CorruptError(f"{path}: '{model}' has no key map '{printable(str(naming))}'")
    return known[str(naming)]


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a text and of the tensors' names, dtypes, shapes and bytes."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        # Bytes alone do not distinguish float32 from int32, or 2 x 3 from 3 x 2.
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Read the weights in a run directory or in a weights.safetensors file.

    Raises:
        UsageError: there are no weights at `path`.
        PluginError: the model is from a plugin that is not installed.
        CorruptError: the file was damaged or changed, or was not written by cnnzoo.
    """
    file = _weights_file(expanded(path))
    tensors, fields = _read(file)
    try:
        origin = fields.get("origin")
        model = recorded_name(registry.models(), fields["model"], origin, file)
        preprocessing: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields["preprocessing"].items()
        }
        if reserved := RESERVED & fields["options"].keys():
            raise CorruptError(f"{file}: option '{min(reserved)}' is not one of a network")
        if naming := fields.get("naming"):
            tensors = _key_map(model, naming, file).to_ours(tensors)
        return Weights(
            tensors=tensors,
            model=model,
            num_classes=fields["num_classes"],
            in_channels=fields["in_channels"],
            options=fields["options"],
            classes=tuple(fields["classes"]),
            preprocessing=Preprocessing(**preprocessing),
            epoch=fields["epoch"],
            # Files from before masks kept their values do not have these.
            mask_values=tuple(fields.get("mask_values", ())),
            colours=tuple(fields.get("colours", ())),
            background=fields.get("background", ""),
            # Files from before there were these fields have the task of their model.
            task=fields.get("task", ""),
            thresholds=tuple(fields.get("thresholds", ())),
            path=file,
            digest=fields["digest"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"{file}: its metadata is incomplete or invalid: {error}") from error


def _weights_file(path: Path) -> Path:
    """Return the weights file of a run, or the path of a file itself."""
    if not path.is_dir():
        return path
    file = path / "weights.safetensors"
    if not (path / "recipe.toml").is_file() and not file.is_file():
        raise UsageError(
            f"{path}: not a run: recipe.toml is missing", "give a run or a weights file"
        )
    if not file.is_file():
        raise UsageError(
            f"{path}: no weights.safetensors: this run has not finished an epoch yet",
            f"cnnzoo train --resume {path}",
        )
    return file


def is_ours(path: Path) -> bool:
    """Return whether cnnzoo wrote a file; False for other safetensors files and formats.

    Raises:
        UsageError: there is no such file.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(len(BEGINNING) + 8)
    return start[8:] == BEGINNING


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, and the fields of the metadata plus the verified digest."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        # Read once, so that the digest is checked on the same bytes that are loaded.
        data = path.read_bytes()
        tensors, text_with_digest = load(data), _metadata(data)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointCorruptError(f"{path}: not a valid safetensors file: {error}") from error
    if text_with_digest is None:
        raise CorruptError(f"{path}: has no '{KEY}' metadata: not written by cnnzoo")
    digest, text = text_with_digest[:DIGEST], text_with_digest[DIGEST:]
    if (found := _digest(text, tensors)) != digest:
        raise CheckpointCorruptError(
            f"{path}: the contents have changed: SHA-256 {found[:16]}…, expected {digest[:16]}…",
            "restore a backup, or try cnnzoo train --resume RUN: its checkpoint may have a copy",
        )
    fields = json.loads(text)
    if fields.get("schema") != SCHEMA:
        raise CorruptError(f"{path}: written by another version of cnnzoo")
    return tensors, {**fields, "digest": digest}


def _metadata(data: bytes) -> str | None:
    """Return our metadata in a safetensors file, or None. `load` has checked the header."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = header.get("__metadata__", {}).get(KEY)
    return text if isinstance(text, str) else None
