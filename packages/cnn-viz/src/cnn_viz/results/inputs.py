"""What views are made from, prepared once for a run: its model, a batch, the predictions."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from cnn_core import registry
from cnn_core.create import build
from cnn_core.data import Batch, batches
from cnn_core.registry.recorded import open_run
from cnn_core.training import Predictions, Run, predictions, segmented
from cnn_core.training.device import choose_device
from cnn_core.training.evaluation import eval_batch_size, held_out, load_data
from cnn_core.weights.native import Weights, read_weights
from cnn_viz.results.embeddings import METHODS, Embedding, evenly_spaced, features_of
from cnn_viz.results.segmentations import SegmentationResults

__all__ = ["ViewInputs", "round_robin_by_class"]

BATCH = 64
PIXELS = 2**20  # of the batch of a network that segments: its images may be large


class ViewInputs:
    """A run, and what its weights make of the test split; each part is made when asked for.

    Raises, when asked: what `read_weights` and `load_dataset` raise for files that are missing
    or broken.
    """

    def __init__(
        self,
        run: Run | str | os.PathLike[str],
        *,
        data_dir: str | os.PathLike[str] | None = None,
        device: str = "auto",
    ) -> None:
        self.run: Run = run if isinstance(run, Run) else open_run(run)
        self.data_dir = data_dir
        self.device: torch.device = choose_device(device)

    @cached_property
    def weights(self) -> Weights:
        """The kept weights, with the classes' names and the preprocessing."""
        return read_weights(self.run.path)

    @cached_property
    def model(self) -> nn.Module:
        """The network with the kept weights, in eval mode."""
        return build(self.weights).to(self.device)

    @cached_property
    def batch(self) -> Batch:
        """64 images of the test split, the first of each class in turn: it may be sorted by class.

        Of pixels with classes the first images, 2^20 pixels at most; of images that are seen tile
        by tile, the tile at the centre.
        """
        split, preprocessing = (
            load_data(self.run, self.data_dir).split("test"),
            self.weights.preprocessing,
        )
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
        """Return what a network is given of a batch at once: where there are tiles, that at the
        centre.
        """
        preprocessing = self.weights.preprocessing
        if not preprocessing.tiled:
            return batch
        centre = torch.full((len(batch.indices), 2), 0.5)
        images, targets = (preprocessing.cropped(x, centre) for x in (batch.images, batch.targets))
        return Batch(images, targets, batch.indices)

    @cached_property
    def predictions(self) -> Predictions:
        """What the network says of the whole test split."""
        return predictions(self.run, data_dir=self.data_dir, device=str(self.device))

    @cached_property
    def validation(self) -> Predictions | None:
        """What it says of the images that training held out; None where it held out none."""
        return held_out(self.run, data_dir=self.data_dir, device=str(self.device))

    @cached_property
    def segmented(self) -> SegmentationResults:
        """What the network says of each image of the test split, with the classes' names."""
        make = partial(segmented, self.run, data_dir=self.data_dir, device=str(self.device))
        length = len(load_data(self.run, self.data_dir).split("test"))
        return SegmentationResults(self.weights.classes, make, length)

    @cached_property
    def embedded(self) -> Embedding:
        """Features of the test split, of up to 10,000 images in even steps.

        What goes into the last stage of a network that classifies; what comes out of the CAM's
        stage, the bottleneck, of one that segments.
        """
        spec, data = registry.get_spec(self.run.recipe.model), load_data(self.run, self.data_dir)
        split, inside = data.split("test"), spec.task == "segmentation"
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
        file = self.run.path / "weights.safetensors"
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        where = "come out of" if inside else "go into"
        return Embedding(
            features=features,
            indices=indices,
            labels=labels,
            about=f"The {features.shape[1]:,} numbers that {where} {stage}, of "
            f"{len(indices):,} images of the test split.",
            folder=self.run.path / "embeddings",
            key=f"{digest} {data.fingerprint()} {stage} {inside}",
            coloured="mIoU" if inside else "class",
        )

    def select(self, needs: Iterable[str]) -> dict[str, Any]:
        """Return what a `ViewSpec` needs, by name."""
        return {name: getattr(self, name) for name in needs}


def round_robin_by_class(classes: Iterable[int], count: int) -> list[int]:
    """Return the places of up to `count` samples: one of each class, then a second, and so on."""
    seen: Counter[int] = Counter()
    ranked = []
    for place, number in enumerate(classes):
        ranked.append((seen[number], number, place))
        seen[number] += 1
    return [place for _, _, place in sorted(ranked)[:count]]
