"""Checkpoints on disk: complete folders, checked by digests, kept until a newer one is complete.

state/e000003-s00000120/   after 3 epochs and 120 steps of the fourth
    model.safetensors      parameters and buffers
    training.safetensors   the optimizer's tensors, the average's, the sums of the metrics
    state.json             epoch, step, scores, and the numerical environment
    MANIFEST.json          size and SHA-256 of each of these, and of itself

A folder is written under another name, synced, read back and renamed; only then are older ones
removed, so that at every moment a complete one exists. Nothing is ever pickled.
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
PARTS = ("optimizer", "average", "epoch_metrics")  # in training.safetensors
FIELDS = (
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
    """The state of a training: with recipe and data, all that the next steps depend on.

    `epoch` epochs are done, and `step` steps of the next; those took `seconds`, and their metrics
    are in `epoch_metrics`. `average` is empty where weights are not averaged. `best` is the best
    score, None before there is one. No random state is saved: random numbers depend on (seed,
    epoch, step) alone.
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
    def kept(self) -> Mapping[str, Tensor]:
        """The weights to use: the averaged ones, where there are any."""
        return self.average or self.model

    @property
    def name(self) -> str:
        """The name of its folder; names sort in the order of training."""
        return _name(self.epoch, self.step)


class Checkpoints:
    """The checkpoints of a run, in the folder `state/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """Return the checkpoints' names, the oldest first."""
        return sorted(path.name for path in self.folder.glob("e*-s*") if path.is_dir())

    def save(self, state: Checkpoint, keep: int = 2) -> None:
        """Write a checkpoint; then remove all but the `keep` newest and the best epoch's.

        Raises:
            NumericalError: its weights are not finite; nothing is written.
            OSError: the disk is full or read-only; earlier checkpoints are left as they were.
        """
        _require_finite(state)
        self.folder.mkdir(exist_ok=True)
        training = {
            f"{part}.{name}": tensor
            for part in PARTS
            for name, tensor in getattr(state, part).items()
        }
        content = {"schema": SCHEMA, **{name: getattr(state, name) for name in FIELDS}}
        files = {
            "model.safetensors": packed(on_cpu(state.model)),
            "training.safetensors": packed(on_cpu(training)),
            "state.json": [memoryview(json.dumps(content, sort_keys=True).encode())],
        }
        with ThreadPoolExecutor(2) as pool, new_folder(self.folder / state.name) as folder:
            # hashlib releases Python's lock: the digests cost no time beside the writing.
            digests = [pool.submit(_sha256, parts) for parts in files.values()]
            for name, parts in files.items():
                write_new(folder / name, *parts)
            entries = {
                name: {"sha256": digest.result(), "size": sum(map(len, parts))}
                for (name, parts), digest in zip(files.items(), digests, strict=True)
            }
            manifest = {"checkpoint": state.name, "files": entries, "schema": SCHEMA}
            # Last, since it needs every digest: a folder without it is refused.
            write_new(folder / MANIFEST, _signed(manifest))
        # A later name is left from a training that was resumed at an older checkpoint, because
        # newer ones were broken. It must not count as one of the newest.
        newest = [name for name in self.names() if name <= state.name][-keep:]
        for name in self.names():
            # The best epoch's stays: weights.safetensors can be made from it again.
            if name not in newest and name != _name(state.best_epoch, 0):
                remove_folder(self.folder / name)

    def newest(self) -> Checkpoint | None:
        """Return the newest sound checkpoint, with a warning for each broken one; or None.

        Raises:
            CheckpointCorruptError: there are checkpoints, and none of them is sound.
        """
        # Warnings wait until a sound checkpoint is found: without one, the newest's error is
        # raised.
        refused: list[CheckpointCorruptError] = []
        for name in reversed(self.names()):
            try:
                state = self.read(name)
            except CheckpointCorruptError as error:
                refused.append(error)
                continue
            for bad in refused:
                log.warning("%s; going on from %s", bad.message, name)
            return state
        if refused:
            raise refused[0]
        return None

    def best(self, epoch: int) -> Checkpoint | None:
        """Return the checkpoint after an epoch, if it exists and is sound."""
        try:
            return self.read(_name(epoch, 0))
        except CheckpointCorruptError:
            return None

    def read(self, name: str) -> Checkpoint:
        """Read one checkpoint, every byte of it checked against the manifest.

        Raises:
            CheckpointCorruptError: a file is missing or has changed; names it.
        """
        folder = self.folder / name
        files = _checked(folder)
        try:
            content = json.loads(files["state.json"])
            training = load(files["training.safetensors"])
            parts: dict[str, Any] = {
                part: {
                    key.removeprefix(f"{part}."): tensor
                    for key, tensor in training.items()
                    if key.startswith(f"{part}.")
                }
                for part in PARTS
            }
            if content["schema"] != SCHEMA:
                raise CheckpointCorruptError(f"{folder}: written by another version of cnnzoo")
            fields = {name: content[name] for name in FIELDS}
            return Checkpoint(model=load(files["model.safetensors"]), **parts, **fields)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CheckpointCorruptError(f"{folder}: not a training state: {error}") from error

    def sweep(self) -> None:
        """Remove the unfinished folders of processes that were killed while they saved."""
        sweep(self.folder)


def _name(epoch: int, step: int) -> str:
    return f"e{epoch:06}-s{step:08}"


def _require_finite(state: Checkpoint) -> None:
    """Raise NumericalError if weights are not finite: they may replace no sound checkpoint."""
    for name, tensor in state.model.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # Fast: the sum is never finite if an element is not. It may overflow, so look again.
        if tensor.sum().isfinite():
            continue
        if not tensor.isfinite().all():
            raise NumericalError(
                f"{name} is not finite after {state.epoch} epochs, {state.step} steps: not saved",
                "the last checkpoint is sound: try a lower --lr, or --set clip_norm=1",
            )


def _signed(content: dict[str, Any]) -> bytes:
    """Return MANIFEST.json: the content, and the digest of the content."""
    whole = {**content, "sha256": _sha256([json.dumps(content, sort_keys=True).encode()])}
    return (json.dumps(whole, sort_keys=True, indent=1) + "\n").encode()


def _sha256(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _checked(folder: Path) -> dict[str, bytes]:
    """Return the contents of a checkpoint's files, checked against the manifest."""
    entries = _entries(folder)
    files = {}
    for name, entry in entries.items():
        path = folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointCorruptError(f"{path}: {error.strerror}") from error
        # The size comes first: its message tells a truncated file from a changed one.
        if len(data) != entry["size"]:
            raise CheckpointCorruptError(f"{path}: {len(data)} bytes, expected {entry['size']}")
        if (found := _sha256([data])) != entry["sha256"]:
            raise CheckpointCorruptError(
                f"{path}: SHA-256 {found[:16]}…, expected {entry['sha256'][:16]}…"
            )
        files[name] = data
    return files


def _entries(folder: Path) -> dict[str, Any]:
    """Return the manifest's entries by file, if it is unchanged and of this folder."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
        content = json.loads(data)
        del content["sha256"]
        # Compare bytes, not the parsed text: a change in white space parses alike.
        sound = _signed(content) == data and content["files"].keys() == FILES
    except OSError as error:
        raise CheckpointCorruptError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointCorruptError(f"{path}: not a manifest: {error}") from error
    if not sound:
        raise CheckpointCorruptError(f"{path}: changed since it was written")
    # A copy under another name has the right digests, but names tell which one is the newest.
    if content["checkpoint"] != folder.name:
        raise CheckpointCorruptError(f"{path}: belongs to {content['checkpoint']}")
    entries: dict[str, Any] = content["files"]
    return entries
