"""A trained network: a run, its saved weights and its dataset, each loaded once."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from cnn_core.create import build
from cnn_core.data.dataset import Dataset, Files, Split, load_dataset
from cnn_core.errors import RunError
from cnn_core.registry.recorded import open_run
from cnn_core.runs.run import Run
from cnn_core.training.device import choose_device
from cnn_core.weights.native import Weights, read_weights

__all__ = ["Source", "Trained", "load_data"]

Source = Run | str | os.PathLike[str]


class Trained:
    """A run with its saved weights, dataset and network, each loaded on first access.

    `source` is a run or its directory. If only `weights` and `model` are needed, it can also be a
    weights.safetensors file. Pass the same object to several functions to load everything once.

    Raises:
        UsageError: the device does not exist; on access, if the run, weights or dataset do not
            exist.
        CorruptError: on access, if a file has changed since it was written. The message names it.
    """

    def __init__(
        self,
        source: Source,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        device: str = "auto",
    ) -> None:
        self.path: Path = source.path if isinstance(source, Run) else Path(source)
        self.data_dir = data_dir
        self.device: torch.device = choose_device(device)
        # Fill the cached property, so that an open run is not read again.
        if isinstance(source, Run):
            self.run = source

    @classmethod
    def of(
        cls,
        source: Trained | Source,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        device: str = "auto",
    ) -> Trained:
        """Return `source` if it is a `Trained`, ignoring the other arguments; else wrap it."""
        if isinstance(source, Trained):
            return source
        return cls(source, data_dir=data_dir, device=device)

    @cached_property
    def run(self) -> Run:
        """The run directory and its recipe."""
        return open_run(self.path)

    @cached_property
    def weights(self) -> Weights:
        """The saved weights, with class names and preprocessing."""
        return read_weights(self.path)

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset that the run was trained on."""
        return load_data(self.run, self.data_dir)

    @cached_property
    def model(self) -> nn.Module:
        """The network with the saved weights, in eval mode, on the device."""
        # Tensors created in inference mode can never require gradients, so leave it here.
        with torch.inference_mode(mode=False):
            return build(self.weights).to(self.device)


def load_data(run: Run, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a run's dataset from `data_dir`; by default from the path that the run recorded.

    For a dataset such as "imagefolder:PATH", `data_dir` replaces PATH.

    Raises:
        RunError: the classes or files have changed since the run began.
    """
    recorded = run.environment()
    # The path in the recipe may be relative; environment.json has the absolute path.
    name, colon, path = run.recipe.data.partition(":")
    if colon:
        name = f"{name}:{data_dir or (recorded.get('data') or '').partition(':')[2] or path}"
    elif data_dir is None and (folder := recorded.get("data_dir")) is not None:
        data_dir = Path(folder)
    dataset = load_dataset(name, data_dir=data_dir)
    # Compare before dropping bad files: the recorded fingerprint covers all files.
    if recorded.get("data_fingerprint", dataset.fingerprint()) != dataset.fingerprint():
        raise RunError(
            f"{run.path}: the classes or files of '{name}' have changed since the run began",
            "restore the dataset, or train again",
        )
    if allowed := run.recipe.bad_samples():
        splits = {
            name: _without_bad_files(split, allowed) for name, split in dataset.splits.items()
        }
        return Dataset(dataset.spec, splits)
    return dataset


def _without_bad_files(split: Split | Files, allowed: int) -> Split | Files:
    """Return a split without the unreadable files that the run skipped."""
    if not isinstance(split, Files):
        return split
    from cnn_core.data.streaming import BadSamples, drop_bad_files

    return drop_bad_files(split, torch.get_num_threads(), BadSamples(allowed))
