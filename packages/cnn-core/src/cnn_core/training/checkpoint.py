"""Checkpoints on disk: folders that are checked against SHA-256 digests.

state/e000003-s00000120/   after 3 epochs and 120 steps of the fourth
    model.safetensors      parameters and buffers
    training.safetensors   optimizer state, moving average of the weights, metric sums
    state.json             epoch, step, metrics, and the numerical environment
    MANIFEST.json          size and SHA-256 of each file above, and a digest of the manifest

A folder is written, synced and read back under a temporary name, then renamed. Older folders are
removed only after that, so a complete checkpoint exists at all times. Nothing is ever pickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from cnn_core.errors import CheckpointCorruptError, NumericalError
from cnn_core.files import new_folder, remove_folder, sweep, write_new
from cnn_core.weights.safetensors_parts import on_cpu, packed

__all__ = ["Checkpoint", "Checkpoints"]

SCHEMA = 1
TENSOR_FIELDS = ("optimizer", "average", "epoch_metrics")  # in training.safetensors
JSON_FIELDS = (  # in state.json
    "scaler",
    "epoch",
    "step",
    "seconds",
    "best",
    "best_epoch",
    "metrics",
    "numerical_environment",
)
MANIFEST = "MANIFEST.json"
FILES = {"model.safetensors", "training.safetensors", "state.json"}

log: logging.Logger = logging.getLogger("cnn_core")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a training run; with the recipe and data it determines all further steps.

    `epoch` counts finished epochs, and `step` the steps of the current epoch. Those steps took
    `seconds`, and `epoch_metrics` holds their metric sums. `average` is empty if the recipe has no
    weight EMA. `best` is the best value of the monitored metric so far, or None. No random state
    is saved, because random numbers depend only on (seed, epoch, step).
    """

    model: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    average: Mapping[str, Tensor] = field(default_factory=dict)
    epoch_metrics: Mapping[str, Tensor] = field(default_factory=dict)
    scaler: Mapping[str, Any] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    metrics: list[dict[str, float]] = field(default_factory=list)
    numerical_environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def eval_weights(self) -> Mapping[str, Tensor]:
        """The weights to evaluate and save: the moving average if any, else the model's own."""
        return self.average or self.model

    @property
    def name(self) -> str:
        """The name of the checkpoint's folder; names sort in the order of training."""
        return _name(self.epoch, self.step)


class Checkpoints:
    """The checkpoints of a run, in the folder `state/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Return the names of all checkpoints, oldest first."""
        return sorted(path.name for path in self.folder.glob("e*-s*") if path.is_dir())

    def save(self, state: Checkpoint, keep: int = 2) -> None:
        """Write a checkpoint, then remove all but the `keep` newest ones and the best epoch's.

        Checkpoints of later steps, left by a run that was resumed further back, are removed too.

        Raises:
            NumericalError: a weight is not finite; nothing is written.
            OSError: the disk is full or read-only; earlier checkpoints are unchanged.
        """
        _require_finite(state)
        self.folder.mkdir(exist_ok=True)
        training = {
            f"{part}.{name}": tensor
            for part in TENSOR_FIELDS
            for name, tensor in getattr(state, part).items()
        }
        content = {"schema": SCHEMA, **{name: getattr(state, name) for name in JSON_FIELDS}}
        files = {
            "model.safetensors": packed(on_cpu(state.model)),
            "training.safetensors": packed(on_cpu(training)),
            "state.json": [memoryview(json.dumps(content, sort_keys=True).encode())],
        }
        with ThreadPoolExecutor(2) as pool, new_folder(self.folder / state.name) as folder:
            # hashlib releases the GIL, so hashing runs in parallel with writing.
            digests = [pool.submit(_sha256, parts) for parts in files.values()]
            for name, parts in files.items():
                write_new(folder / name, *parts)
            entries = {
                name: {"sha256": digest.result(), "size": sum(map(len, parts))}
                for (name, parts), digest in zip(files.items(), digests, strict=True)
            }
            manifest = {"checkpoint": state.name, "files": entries, "schema": SCHEMA}
            # Written last because it needs every digest. A folder without it is rejected.
            write_new(folder / MANIFEST, _manifest(manifest))
        # Later names exist if the run was resumed from an older checkpoint because newer ones
        # were corrupt. They must not count among the newest.
        newest = [name for name in self.names() if name <= state.name][-keep:]
        for name in self.names():
            # Keep the best epoch's checkpoint: weights.safetensors can be restored from it.
            if name not in newest and name != _name(state.best_epoch, 0):
                remove_folder(self.folder / name)

    def newest(self) -> Checkpoint | None:
        """Return the newest intact checkpoint, or None if there are no checkpoints.

        Log a warning for each corrupt checkpoint that is skipped.

        Raises:
            CheckpointCorruptError: there are checkpoints, but all are corrupt.
        """
        # Delay the warnings: if no checkpoint is intact, the newest one's error is raised instead.
        rejected: list[CheckpointCorruptError] = []
        for name in reversed(self.names()):
            try:
                state = self.read(name)
            except CheckpointCorruptError as error:
                rejected.append(error)
                continue
            for rejection in rejected:
                log.warning("%s; resuming from %s", rejection.message, name)
            return state
        if rejected:
            raise rejected[0]
        return None

    def best(self, epoch: int) -> Checkpoint | None:
        """Return the checkpoint from the end of `epoch`, or None if it is missing or corrupt."""
        try:
            return self.read(_name(epoch, 0))
        except CheckpointCorruptError:
            return None

    def read(self, name: str) -> Checkpoint:
        """Read one checkpoint and check every byte against the manifest.

        Raises:
            CheckpointCorruptError: a file is missing, changed, unreadable or of another schema.
                The message names it.
        """
        folder = self.folder / name
        files = _read_files(folder)
        try:
            content = json.loads(files["state.json"])
            training = load(files["training.safetensors"])
            parts: dict[str, Any] = {
                part: {
                    key.removeprefix(f"{part}."): tensor
                    for key, tensor in training.items()
                    if key.startswith(f"{part}.")
                }
                for part in TENSOR_FIELDS
            }
            if content["schema"] != SCHEMA:
                raise CheckpointCorruptError(f"{folder}: written by another version of cnnzoo")
            fields = {name: content[name] for name in JSON_FIELDS}
            return Checkpoint(model=load(files["model.safetensors"]), **parts, **fields)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CheckpointCorruptError(f"{folder}: not a checkpoint: {error}") from error

    def sweep(self) -> None:
        """Remove unfinished folders left by processes that were killed while saving."""
        sweep(self.folder)


def _name(epoch: int, step: int) -> str:
    return f"e{epoch:06}-s{step:08}"


def _require_finite(state: Checkpoint) -> None:
    """Raise NumericalError if a weight is not finite, so that no good checkpoint is replaced."""
    for name, tensor in state.model.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # Fast path: a finite sum means that all elements are finite. The sum itself may overflow,
        # so check each element before raising.
        if tensor.sum().isfinite():
            continue
        if not tensor.isfinite().all():
            raise NumericalError(
                f"{name} is not finite after {state.epoch} epochs, {state.step} steps: not saved",
                "the last checkpoint is intact: try a lower --lr, or --set clip_norm=1",
            )


def _manifest(content: dict[str, Any]) -> bytes:
    """Return the bytes of MANIFEST.json: `content` with a digest of itself added."""
    signed = {**content, "sha256": _sha256([json.dumps(content, sort_keys=True).encode()])}
    return (json.dumps(signed, sort_keys=True, indent=1) + "\n").encode()


def _sha256(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _read_files(folder: Path) -> dict[str, bytes]:
    """Return the contents of a checkpoint's files by name, after checking their digests."""
    entries = _read_manifest(folder)
    files = {}
    for name, entry in entries.items():
        path = folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointCorruptError(f"{path}: {error.strerror}") from error
        # Check the size first, so that the message tells a truncated file from a changed one.
        if len(data) != entry["size"]:
            raise CheckpointCorruptError(f"{path}: {len(data)} bytes, expected {entry['size']}")
        if (found := _sha256([data])) != entry["sha256"]:
            raise CheckpointCorruptError(
                f"{path}: SHA-256 {found[:16]}…, expected {entry['sha256'][:16]}…"
            )
        files[name] = data
    return files


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Return the size and digest of each file, after checking the manifest itself."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
        content = json.loads(data)
        del content["sha256"]
        # Compare bytes, not parsed JSON, so that even a change in whitespace is detected.
        unchanged = _manifest(content) == data and content["files"].keys() == FILES
    except OSError as error:
        raise CheckpointCorruptError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointCorruptError(f"{path}: not a manifest: {error}") from error
    if not unchanged:
        raise CheckpointCorruptError(f"{path}: changed since it was written")
    # A copied folder has valid digests, but its name would make it the newest checkpoint.
    if content["checkpoint"] != folder.name:
        raise CheckpointCorruptError(f"{path}: belongs to {content['checkpoint']}")
    entries: dict[str, Any] = content["files"]
    return entries
