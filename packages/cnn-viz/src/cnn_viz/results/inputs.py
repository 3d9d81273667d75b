"""The inputs of views, each made once for a run: weights, model, a batch, the predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cached_property, partial
from typing import Any

import torch

from cnn_core import registry
from cnn_core.data import Batch, batches
from cnn_core.training import Predictions, Trained, predictions, segmented
from cnn_core.training.evaluation import eval_batch_size
from cnn_core.training.outputs import validation_predictions
from cnn_viz.results.embeddings import METHODS, Embedding, evenly_spaced, features_of
from cnn_viz.results.segmentations import SegmentationResults

__all__ = ["ViewInputs", "round_robin_by_class"]

BATCH = 64
PIXELS = 2**20  # of the batch of a network that segments: its images may be large


class ViewInputs(Trained):
    """A trained network and its outputs for the test split; each part is made when asked for.

    Missing and broken files raise what `read_weights` and `load_dataset` raise, when asked for.
    """

    @cached_property
    def batch(self) -> Batch:
        """64 images of the test split, the first of each class in turn: it may be sorted by class.

        For segmentation it is the first images, at most 2^20 pixels, and of images that are cut
        into tiles the tile at the centre.
        """
        split, preprocessing = self.dataset.split("test"), self.weights.preprocessing
        if registry.get_spec(self.run.recipe.model).task == "segmentation":
            height, width = preprocessing.target
            chosen = list(range(min(max(PIXELS // (height * width), 1), BATCH, len(split))))
        else:
            chosen = round_robin_by_class(map(int, split.targets), BATCH)
        indices = torch.tensor(chosen)
        found = next(
            batches(split.subset(indices), preprocessing, len(chosen), device=self.device)
        )
        return self._seen(Batch(found.images, found.targets, indices[found.indices.cpu()]))

    def _seen(self, batch: Batch) -> Batch:
        """Return the part of a batch that a network sees at once: of tiles, that at the centre."""
        preprocessing = self.weights.preprocessing
        if not preprocessing.tiled:
            return batch
        centre = torch.full((len(batch.indices), 2), 0.5)
        images, targets = (preprocessing.cropped(x, centre) for x in (batch.images, batch.targets))
        return Batch(images, targets, batch.indices)

    @cached_property
    def predictions(self) -> Predictions:
        """The network's outputs for the whole test split."""
        return predictions(self)

    @cached_property
    def validation(self) -> Predictions | None:
        """The outputs for the images that training held out; None where it held out none."""
        return validation_predictions(self)

    @cached_property
    def segmented(self) -> SegmentationResults:
        """The network's outputs for each image of the test split, with the classes' names."""
        length = len(self.dataset.split("test"))
        return SegmentationResults(self.weights.classes, partial(segmented, self), length)

    @cached_property
    def embedded(self) -> Embedding:
        """Features of the test split, of up to 10,000 images in even steps.

        For classification they are the inputs of the last stage, for segmentation the outputs of
        the CAM's stage, the bottleneck.
        """
        spec = registry.get_spec(self.run.recipe.model)
        split, inside = self.dataset.split("test"), spec.task == "segmentation"
        indices = evenly_spaced(len(split), METHODS["PCA"][1])
        stage = spec.cam_stage if inside else spec.stages[-1]
        size = eval_batch_size(self.weights.preprocessing)
        part = split if len(indices) == len(split) else split.subset(indices)
        found = batches(part, self.weights.preprocessing, size, device=self.device)
        features = features_of(self.model, stage, map(self._seen, found), inside=inside)
        if inside:
            scores = {int(line["index"]): line["miou"] for line in self.segmented.scores}
            labels = torch.tensor([scores.get(n, torch.nan) for n in indices.tolist()])
        else:
            labels = self.predictions.targets[indices]
        where = "come out of" if inside else "go into"
        return Embedding(
            features=features,
            indices=indices,
            labels=labels,
            about=f"The {features.shape[1]:,} numbers that {where} {stage}, of "
            f"{len(indices):,} images of the test split.",
            folder=self.run.path / "embeddings",
            key=f"{self.weights.digest} {self.dataset.fingerprint()} {stage} {inside}",
            coloured="mIoU" if inside else "class",
        )

    def select(self, needs: Iterable[str]) -> dict[str, Any]:
        """Return the needs of a `ViewSpec`, by name."""
        return {name: getattr(self, name) for name in needs}


def round_robin_by_class(classes: Iterable[int], count: int) -> list[int]:
    """Return the places of up to `count` samples: one of each class, then a second, and so on."""
    seen: Counter[int] = Counter()
    ranked = []
    for place, number in enumerate(classes):
        ranked.append((seen[number], number, place))
        seen[number] += 1
    return [place for _, _, place in sorted(ranked)[:count]]
