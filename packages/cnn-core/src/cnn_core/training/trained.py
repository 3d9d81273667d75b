"""A trained network: a run, its kept weights and its dataset, each read once."""

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
    """A run, its kept weights, dataset and network; each is made once, when first asked for.

    `source` is a run or its directory; for `weights` and `model` alone also a
    weights.safetensors. Functions that are given the same object share what was read.

    Raises:
        UsageError: there is no such device; when asked for, no such run, weights or dataset.
        CorruptError: when asked for, a file has changed since it was written; names it.
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
        # This fills the cached property: a run that is open already is not read again.
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
        """Return `source` itself if it is a `Trained`, which has its own folder and device."""
        if isinstance(source, Trained):
            return source
        return cls(source, data_dir=data_dir, device=device)

    @cached_property
    def run(self) -> Run:
        """The run: its recipe and what it recorded."""
        return open_run(self.path)

    @cached_property
    def weights(self) -> Weights:
        """The kept weights, with the names of the classes and the preprocessing."""
        return read_weights(self.path)

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset that the run was trained on."""
        return load_data(self.run, self.data_dir)

    @cached_property
    def model(self) -> nn.Module:
        """The network with the kept weights, in eval mode, on the device."""
        # Callers may be in inference mode, whose tensors can never take a gradient again.
        with torch.inference_mode(mode=False):
            return build(self.weights).to(self.device)


def load_data(run: Run, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a run's dataset from `data_dir`, else from where the run found it.

    Your own folder, as "imagefolder:PATH", is looked for in `data_dir` as well.

    Raises:
        RunError: its classes, counts or files are not those of when the run began.
    """
    recorded = run.environment()
    # The recipe's path may be relative to another directory; environment.json has it absolute.
    name, own_folder, path = run.recipe.data.partition(":")
    if own_folder:
        name = f"{name}:{data_dir or (recorded.get('data') or '').partition(':')[2] or path}"
    elif data_dir is None and (folder := recorded.get("data_dir")) is not None:
        data_dir = Path(folder)
    dataset = load_dataset(name, data_dir=data_dir)
    # Before bad files are dropped: the recorded fingerprint is of all files that were found.
    if recorded.get("data_fingerprint", dataset.fingerprint()) != dataset.fingerprint():
        raise RunError(
            f"{run.path}: dataset '{name}' has other classes or files than when the run began",
            "put back what was there, or train again",
        )
    if allowed := run.recipe.bad_samples():
        splits = {name: _readable(split, allowed) for name, split in dataset.splits.items()}
        return Dataset(dataset.spec, splits)
    return dataset


def _readable(split: Split | Files, allowed: int) -> Split | Files:
    """Return a split without the files that the run left out."""
    if not isinstance(split, Files):
        return split
    from cnn_core.data.streaming import BadSamples, drop_bad_files

    return drop_bad_files(split, torch.get_num_threads(), BadSamples(allowed))
