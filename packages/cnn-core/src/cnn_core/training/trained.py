"""A trained network, from any source, with its dataset; each part is loaded once."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnn_core import registry
from cnn_core.create import build
from cnn_core.data.dataset import ALL, Dataset, load_dataset, object_name
from cnn_core.data.pixels import Reading
from cnn_core.data.split_names import split_of
from cnn_core.data.splits import Files, Split
from cnn_core.errors import DatasetMissingError, RunError, UsageError, ZooError
from cnn_core.files import expanded
from cnn_core.registry.recorded import open_run
from cnn_core.runs.recipe import Recipe
from cnn_core.runs.run import Run
from cnn_core.text import printable
from cnn_core.training.allocator import keep_memory
from cnn_core.training.device import choose_device
from cnn_core.training.exported import ExportedNetwork
from cnn_core.training.inference import OptimizedNetwork, optimized
from cnn_core.training.matching import matched
from cnn_core.training.sources import Opened, is_run, open_source
from cnn_core.weights.hub import is_hub_name
from cnn_core.weights.native import Weights
from cnn_core.weights.published import weights_of

__all__ = ["Source", "Trained", "load_data", "read_as"]

Source = Run | str | os.PathLike[str]
log: logging.Logger = logging.getLogger("cnn_core")


class Trained:
    """A trained network: weights, dataset and the run, if any, each loaded on first access.

    `source` is a run or its directory, the name of published weights ("MODEL" or "MODEL:NAME"), a
    repository ("hf:owner/name"), a weights file, or an exported .pt2 or .onnx file. For weights
    files of other libraries, `model` names the network, and `naming` the library if the names of
    the parameters are ambiguous. With `download`, published weights are fetched if they are not
    here. `data` replaces the dataset that the network was trained on: its name, or an object as
    for `load_dataset`. Pass the same `Trained` to several functions to load everything once.

    Raises:
        UsageError: the device does not exist; on access, if the run, weights or dataset do not
            exist, or an option does not apply to the source.
        WeightsMissingError: on access, if published weights are not on this machine.
        CorruptError: on access, if a file has changed since it was written. The message names it.
    """

    def __init__(
        self,
        source: Source,
        *,
        model: str = "",
        naming: str | None = None,
        download: bool = False,
        data: Any = None,
        data_dir: str | os.PathLike[str] | None = None,
        device: str = "auto",
    ) -> None:
        self.path: Path = source.path if isinstance(source, Run) else expanded(source)
        self.data: str | None = None if data is None else object_name(data)
        self.given: Any = None if isinstance(data, str) else data
        self.data_dir = data_dir
        self._splits: dict[str, Split | Files] = {}
        self.device: torch.device = choose_device(device)
        self._open = partial(open_source, self.path, model=model, naming=naming, download=download)
        # Fill the cached property, so that an open run is not read again.
        if isinstance(source, Run):
            self.run = source

    @classmethod
    def of(
        cls,
        source: Trained | Source,
        *,
        data: Any = None,
        data_dir: str | os.PathLike[str] | None = None,
        device: str = "auto",
    ) -> Trained:
        """Return `source` if it is a `Trained`, ignoring the other arguments; else wrap it."""
        if isinstance(source, Trained):
            return source
        return cls(source, data=data, data_dir=data_dir, device=device)

    @property
    def is_run(self) -> bool:
        """Whether the network comes with the run that trained it."""
        return is_run(self.path)

    @property
    def name(self) -> str:
        """What the weights are called: a run and its epoch, a published name, or a file."""
        if self.is_run:
            return f"{self.path} (epoch {self.weights.epoch})"
        entry = self.opened.entry
        return str(self.path) if entry is None else entry.spec.name

    @property
    def folder(self) -> Path:
        """The default folder for output: the run, that of a weights file, or one of their name."""
        if self.path.is_file():
            return self.path.parent
        entry = None if self.is_run else self.opened.entry
        if entry is not None or is_hub_name(self.path):
            # Not only the model's name: a folder of that name would be mistaken for a run.
            name = str(self.path) if entry is None else entry.spec.name
            return Path(re.sub(r"[^\w.-]+", "-", name))
        return self.path

    @cached_property
    def run(self) -> Run:
        """The run directory and its recipe."""
        if not self.is_run and (self.opened.entry is not None or not self.path.is_dir()):
            raise UsageError(
                f"{self.path}: weights without a run, so there is no log of the training",
                "give the directory of a run: ls runs/",
            )
        return open_run(self.path)

    @cached_property
    def recipe(self) -> Recipe:
        """The run's recipe; for weights without a run, a recipe of default values."""
        if self.is_run:
            return (
                self.run.recipe if self.data is None else replace(self.run.recipe, data=self.data)
            )
        return Recipe(model=self.weights.model, data=self.data or self._published_data())

    @cached_property
    def opened(self) -> Opened:
        """What the source contains."""
        opened = self._open()
        for note in opened.notes:
            log.warning("%s", note)
        return opened

    @property
    def weights(self) -> Weights:
        """The saved weights, with class names and preprocessing."""
        return self.opened.weights

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset given as `data`, with the classes of the weights; else the run's own."""
        if self.data is None and self.is_run:
            return load_data(self.run, self.data_dir)
        try:
            given = self.recipe.data if self.given is None else self.given
            loaded = load_dataset(given, data_dir=self.data_dir)
        except DatasetMissingError as error:
            raise self._with_others(error) from error
        found = matched(loaded, self.weights, self.recipe.data)
        # If all images are new to the network, there is no reason to measure only the test split.
        return replace(found, divided=found.divided and not self._trained_on(loaded))

    def _with_others(self, error: DatasetMissingError) -> DatasetMissingError:
        """Add a hint for published weights: other weights of the model whose dataset is here."""
        if self.data is not None or self.opened.entry is None:
            return error
        here = []
        for entry in weights_of(self.weights.model).values():
            with contextlib.suppress(ZooError):
                load_dataset(entry.spec.data)
                here.append(entry.spec.name)
        if not here:
            return error
        hint = f"weights whose data is here: {', '.join(here)}"
        return DatasetMissingError(error.message, f"{error.hint}\n{hint}".strip())

    def _trained_on(self, dataset: Dataset) -> bool:
        """Return whether `data` is what the run was trained on, here or in another place."""
        if not self.is_run:
            return False
        recorded = self.run.environment()
        name, _, folder = self.recipe.data.partition(":")
        # By path, too: since then, images may have been added.
        same_path = recorded.get("data") == f"{name}:{expanded(folder).absolute()}"
        return same_path or recorded.get("data_fingerprint") == dataset.fingerprint()

    @property
    def default_split(self) -> str:
        """The split to measure: "test", or "all" of other images in a folder without splits."""
        return ALL if self.data is not None and self.dataset.divided else "test"

    def split(self, name: str) -> Split | Files:
        """Return a split of the dataset; "val" may be the images that the run held out.

        "all" is the images of all splits.

        Raises:
            UsageError: there is no such split.
        """
        if name not in self._splits:
            self._splits[name] = self._split(name)
        return self._splits[name]

    def _split(self, name: str) -> Split | Files:
        dataset, known = self.dataset, self.dataset.split_name(name)
        if known == "test" and self.data is not None and dataset.divided:
            log.warning(
                "split 'test': %s of the %s images of %s, a fifth of each class, since it has no "
                "test split",
                f"{len(dataset.split(known)):,}",
                f"{sum(map(len, dataset.splits.values())):,}",
                printable(self.data),
            )
        own = self.data is None and self.is_run and split_of(name) == ("val", "")
        if known in dataset.splits or not own or self.recipe.validation == 0:
            if known != name and known in dataset.splits:
                log.warning("split '%s': it is the split '%s' here", printable(name), known)
            return dataset.split(name)
        # Do not use `divide`: its parts share the tensors of the whole split.
        _, held_out = dataset.hold_out(*self.recipe.part())
        if len(held_out) == 0:
            raise UsageError(
                f"{self.path}: split '{name}': the run held out no images",
                f"one of {', '.join(dataset.splits)}",
            )
        log.warning(
            "split '%s': %s of %s images of 'train', which were not trained on but selected the "
            "epoch",
            name,
            f"{len(held_out):,}",
            f"{len(dataset.split('train')):,}",
        )
        return held_out

    def _published_data(self) -> str:
        """Return the dataset that published weights were trained on, if it can be loaded."""
        entry = self.opened.entry
        data = entry.spec.data if entry is not None else ""
        if not registry.datasets().claims(data):
            trained = f" on {data}" if data else ""
            raise UsageError(
                f"{self.path}: weights without a run, trained{trained or ' on unknown data'}",
                "say which images to use: --data DATASET, or --data imagefolder:PATH",
            )
        return data

    @cached_property
    def model(self) -> nn.Module:
        """The network with the saved weights, in eval mode, on the device."""
        return self.new_model() if self.opened.model is None else self._moved(self.opened.model)

    def new_model(self) -> nn.Module:
        """Return a network with the saved weights that nobody else uses."""
        if isinstance(self.opened.model, ExportedNetwork):
            return self._moved(self.opened.model)
        # Tensors created in inference mode can never require gradients, so leave it here.
        with torch.inference_mode(mode=False):
            return self._moved(build(self.weights))

    def optimized_model(
        self, *, precision: str = "fp32", compile: bool = False
    ) -> OptimizedNetwork:
        """Return a copy of the network for inference; see `cnn_core.training.optimized`.

        Raises:
            UsageError: the source is an exported file, the hardware has no bf16 instructions, or
                torch.compile fails.
        """
        if isinstance(self.opened.model, ExportedNetwork):
            raise UsageError(
                f"{self.path}: the network of an exported file cannot be optimised further",
                "leave out --optimize",
            )
        shape = (self.weights.in_channels, *self.weights.preprocessing.size)
        return optimized(self.model, shape, precision=precision, compile=compile)

    def _moved(self, model: nn.Module) -> nn.Module:
        # As in training: page faults would take a third of the time of an evaluation.
        if self.device.type == "cpu":
            keep_memory()
        return model.to(self.device)


def load_data(
    run: Run, data_dir: str | os.PathLike[str] | None = None, given: Any = None
) -> Dataset:
    """Load a run's dataset from `data_dir`; by default from the path that the run recorded.

    `given` is the dataset if it was given as an object. For a dataset such as "imagefolder:PATH",
    `data_dir` replaces PATH.

    Raises:
        RunError: the classes or files have changed since the run began.
    """
    recorded = run.environment()
    # The path in the recipe may be relative; environment.json has the absolute path.
    name, colon, path = run.recipe.data.partition(":")
    if given is not None:
        data_dir = data_dir or recorded.get("data_dir")
    elif colon:
        name = f"{name}:{data_dir or (recorded.get('data') or '').partition(':')[2] or path}"
        data_dir = None
    elif data_dir is None and (folder := recorded.get("data_dir")) is not None:
        data_dir = Path(folder)
    loaded = load_dataset(name if given is None else given, data_dir=data_dir)
    dataset = _as_recorded(loaded, recorded.get("data_fingerprint"))
    if dataset is None:
        raise RunError(
            f"{run.path}: the classes or files of '{name}', or the values of its "
            "masks, have changed since the run began",
            "restore the dataset, or train again",
        )
    dataset = read_as(run.recipe, dataset)
    if allowed := run.recipe.bad_samples():
        streamed = run.recipe.pipeline in ("streaming", "packed")
        splits = {
            name: _without_bad_files(split, allowed, streamed)
            for name, split in dataset.splits.items()
        }
        dataset = replace(dataset, splits=splits)
    return dataset.pooled() if run.recipe.fold else dataset


def read_as(recipe: Recipe, dataset: Dataset) -> Dataset:
    """Return the dataset with its files read as the recipe says, else as the dataset says."""
    own = dataset.reading
    return dataset.read_as(
        Reading(
            recipe.value_range or own.value_range, recipe.alpha_background or own.alpha_background
        )
    )


def _as_recorded(dataset: Dataset, fingerprint: str | None) -> Dataset | None:
    """Return the dataset with the order of classes that gives this fingerprint; None if none does.

    The fingerprint covers all files, even bad ones.
    """
    if fingerprint in (None, dataset.fingerprint()):
        return dataset
    # In older runs on folders, classes are not in natural order: 10 comes before 2.
    if not dataset.labels and any(
        isinstance(s, Files) and isinstance(s.targets, Tensor) for s in dataset.splits.values()
    ):
        earlier = dataset.with_class_order(tuple(sorted(dataset.spec.classes)))
        return earlier if earlier.fingerprint() == fingerprint else None
    return None


def _without_bad_files(split: Split | Files, allowed: int, streamed: bool) -> Split | Files:
    """Return a split without the unreadable files that the run skipped.

    A run that `streamed` them kept their places, so they are left out only when they are read.
    """
    if not isinstance(split, Files):
        return split
    from cnn_core.data.bad_samples import BadSamples
    from cnn_core.data.streaming import drop_bad_files

    bad = BadSamples(allowed)
    if streamed:
        return replace(split, bad=bad)
    return drop_bad_files(split, torch.get_num_threads(), bad)
