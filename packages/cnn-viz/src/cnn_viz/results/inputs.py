"""The inputs of views: weights, model, a batch, predictions, each computed once."""

from __future__ import annotations

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnn_core import registry
from cnn_core.data import Batch, batches
from cnn_core.data.dataset import ALL, Dataset
from cnn_core.data.splits import single_classes
from cnn_core.errors import CorruptError, NumericalError, UsageError
from cnn_core.specs import ModelSpec
from cnn_core.text import counted, printable
from cnn_core.training import (
    LabelPredictions,
    Predictions,
    Trained,
    label_predictions,
    predictions,
    segmented,
)
from cnn_core.training.evaluation import eval_batch_size
from cnn_core.training.exported import require_layers
from cnn_core.training.outputs import validation_predictions
from cnn_core.training.prediction import task_of
from cnn_core.training.stage_features import features_of
from cnn_viz.results.embeddings import METHODS, Embedding, evenly_spaced
from cnn_viz.results.segmentations import SegmentationResults

__all__ = ["ViewInputs", "round_robin_by_class"]

log: logging.Logger = logging.getLogger("cnn_core")
BATCH_SIZE = 64
MAX_NAME = 60  # characters of a dataset's name or path in the name of a folder
MAX_BATCH_PIXELS = 2**20  # of a batch for segmentation, where images may be large


class ViewInputs(Trained):
    """A trained network and its outputs on the test split, computed at first use.

    Of other images in a folder without split folders, all are the test split, as in `evaluate`.
    Errors for missing or damaged files, as in `read_weights` and `load_dataset`, are raised then.
    With `out`, nothing is written to the default folder of weights without a run.
    """

    out: Path | None = None
    measured: str = ""  # why the test split is all images, if it is, once they are read
    fault: str = ""  # why there are no outputs to draw or measure, once that is known

    def fresh(self) -> ViewInputs:
        """Return new inputs of the same source, which read all files again."""
        fresh = ViewInputs(self.path, data=self.data, data_dir=self.data_dir)
        fresh.device, fresh._open = self.device, self._open
        return fresh

    @property
    def trained(self) -> Trained:
        """The trained network itself, for views that need the names of its model and dataset."""
        return self

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset; of other images in a folder without split folders, all are "test"."""
        found: Dataset = super().dataset
        if self.data is None or not found.divided:
            return found
        everything = found.split(ALL)
        self.measured = (
            f"{'' if len(everything) == 1 else 'all '}{counted(len(everything), 'image')}, since "
            f"there are no split folders{' and none was trained on' if self.is_run else ''}"
        )
        log.warning("split 'test': %s: %s", printable(self.data), self.measured)
        return replace(found, splits={"test": everything}, divided=False)

    @cached_property
    def spec(self) -> ModelSpec:
        """The spec of the network."""
        # A run without weights knows its model, too: curves of an epoch that failed, say.
        model = self.run.recipe.model if self.is_run else self.weights.model
        return registry.get_spec(model)

    @cached_property
    def task(self) -> str:
        """The task of the network; networks for classification also do multilabel."""
        # Views of the log alone work without weights.
        try:
            return task_of(self.weights)
        except (UsageError, CorruptError):
            return self.spec.task

    @property
    def output(self) -> Path:
        """The default folder for figures and reports.

        It is the run, or a folder beside a weights file with the file's name, or a folder with the
        name of published weights. With `data`, it is a subfolder of this folder, so that results
        on other data replace nothing.
        """
        folder = self.folder
        if self.path.is_file():
            # Not the file's own folder: it may be a run with a report, or have other weights.
            stem = self.path.stem if self.path.suffix else f"{self.path.name}-results"
            folder = self.path.with_name(stem)
        if self.data is None:
            return folder
        name = re.sub(r"[^\w.-]+", "-", self.data).strip("-")[-MAX_NAME:]
        return folder / f"on-{name}"

    def require(self, needs: Iterable[str]) -> None:
        """Raise UsageError if this source cannot have an input that a `ViewSpec` needs."""
        wanted = set(needs)
        if "run" in wanted and not self.is_run:
            _ = self.run  # raises the error that explains it
        if wanted & {"model", "embedded"}:
            require_layers(self.weights)

    def inputs(self, indices: Iterable[int]) -> Tensor:
        """Return the network's inputs for these images of the test split, in this order."""
        selected = torch.tensor(list(indices))
        split, preprocessing = self.dataset.split("test"), self.weights.preprocessing
        loader = batches(split.subset(selected), preprocessing, len(selected), device=self.device)
        return next(loader).images

    @cached_property
    def batch(self) -> Batch:
        """Up to 64 images of the test split.

        For classification the classes take turns, because the split may be sorted by class. For
        segmentation these are the first images of the split, with at most 2^20 pixels in all; of
        images that are cut into tiles, only the centre tile is used.
        """
        split, preprocessing = self.dataset.split("test"), self.weights.preprocessing
        if self.task == "segmentation":
            height, width = preprocessing.resize_to
            selected = list(
                range(min(max(MAX_BATCH_PIXELS // (height * width), 1), BATCH_SIZE, len(split)))
            )
        else:
            assert isinstance(split.targets, Tensor)
            selected = round_robin_by_class(single_classes(split.targets).tolist(), BATCH_SIZE)
        indices = torch.tensor(selected)
        found = next(
            batches(split.subset(indices), preprocessing, len(selected), device=self.device)
        )
        return self._center_crops(Batch(found.images, found.targets, indices[found.indices.cpu()]))

    def _center_crops(self, batch: Batch) -> Batch:
        """Return a batch with the centre tile of each image if images are cut into tiles."""
        preprocessing = self.weights.preprocessing
        if not preprocessing.tiled:
            return batch
        centre = torch.full((len(batch.indices), 2), 0.5)
        images, targets = (preprocessing.cropped(x, centre) for x in (batch.images, batch.targets))
        return Batch(images, targets, batch.indices)

    @contextlib.contextmanager
    def finding_faults(self) -> Iterator[None]:
        """Record outputs that are not finite in `fault`, instead of raising NumericalError."""
        try:
            yield
        except NumericalError as error:
            self.fault = error.message

    @cached_property
    def predictions(self) -> Predictions:
        """The network's outputs on the whole test split."""
        return predictions(self)

    @cached_property
    def labelled(self) -> LabelPredictions:
        """The outputs of a multilabel network on the whole test split."""
        return label_predictions(self)

    @cached_property
    def validation(self) -> Predictions | None:
        """The outputs for the validation images, or None if none were held out."""
        return validation_predictions(self)

    @cached_property
    def segmented(self) -> SegmentationResults:
        """The outputs of a segmentation network on the test split, with the class names."""
        length = len(self.dataset.split("test"))
        weights = self.weights
        return SegmentationResults(
            weights.classes,
            partial(segmented, self),
            length,
            spec_colours=weights.colours,
            declared=weights.background,
        )

    @cached_property
    def embedded(self) -> Embedding:
        """Features of up to 10,000 evenly spaced images of the test split, to embed.

        For classification they are the inputs of the last stage; for segmentation they are the
        outputs of the CAM stage, the bottleneck.
        """
        require_layers(self.weights)
        spec = self.spec
        split, use_outputs = self.dataset.split("test"), spec.task == "segmentation"
        indices = evenly_spaced(len(split), METHODS["PCA"][1])
        stage = spec.cam_stage if use_outputs else spec.stages[-1]
        size = eval_batch_size(self.weights.preprocessing)
        subset = split if len(indices) == len(split) else split.subset(indices)
        found = batches(subset, self.weights.preprocessing, size, device=self.device)
        features = features_of(
            self.model, stage, map(self._center_crops, found), use_outputs=use_outputs
        )
        if use_outputs:
            scores = {int(line["index"]): line["miou"] for line in self.segmented.scores}
            labels = torch.tensor([scores.get(n, torch.nan) for n in indices.tolist()])
        else:
            labels = self.predictions.targets[indices]
        side = "outputs" if use_outputs else "inputs"
        return Embedding(
            features=features,
            indices=indices,
            labels=labels,
            description=f"Features: the {features.shape[1]:,} {side} of {stage} for "
            f"{len(indices):,} images of the test split.",
            folder=self._cache() / "embeddings",
            key=f"{self.weights.digest} {self.dataset.fingerprint()} {stage} {use_outputs}",
            label_name="mIoU" if use_outputs else "class",
        )

    def _cache(self) -> Path:
        """Return the folder to cache embeddings in; a run keeps its own, whatever `out` is."""
        return self.output if self.out is None or self.is_run else self.out

    def select(self, needs: Iterable[str]) -> dict[str, Any]:
        """Return the inputs that a `ViewSpec` needs, by name."""
        return {name: getattr(self, name) for name in needs}


def round_robin_by_class(classes: Iterable[int], count: int) -> list[int]:
    """Return the indices of up to `count` samples: one of each class, then a second, and so on."""
    seen: Counter[int] = Counter()
    ranked = []
    for index, class_index in enumerate(classes):
        ranked.append((seen[class_index], class_index, index))
        seen[class_index] += 1
    return [index for _, _, index in sorted(ranked)[:count]]
