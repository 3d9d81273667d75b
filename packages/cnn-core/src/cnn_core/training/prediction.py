"""Classify or segment images of any kind with trained networks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from cnn_core.errors import NumericalError, UsageError, ZooError
from cnn_core.training.ensemble import Network, class_order, task_of, thresholds_for
from cnn_core.training.evaluation import eval_batch_size, require_optimize
from cnn_core.training.image_stream import (
    Images,
    LoadedImage,
    Loader,
    image_files,
    load_ahead,
    require_distinct_names,
)
from cnn_core.training.numerics import all_finite
from cnn_core.training.trained import Source, Trained

__all__ = [
    "Prediction",
    "Predictor",
    "Segmentation",
    "image_files",
    "predict",
    "require_distinct_names",
    "segment",
    "task_of",
]

SHOWN = 3  # class names in the representation
MAX_BATCH = 256  # images; more make no network faster, and results come later

USE = {
    "classification": "use cnn_core.training.predict()",
    "segmentation": "use cnn_core.training.segment()",
    "multilabel": "use Predictor.tag()",
}

OnError = Callable[[ZooError], object]


@dataclass(frozen=True)
class Prediction:
    """An image and its most likely classes, best first, with their probabilities.

    For multilabel these are all classes whose probability reaches their threshold; there may be
    none. For two classes with a threshold, the first is the one that the threshold decides for,
    even if the other is more likely. `index` is the position of the image among all that were
    given. `path` is its file, or None if it was not given as a file.
    """

    path: str | None
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    index: int = 0


@dataclass(frozen=True)
class Segmentation:
    """A segmented image, at its original size.

    `image` is uint8, C H W. `probabilities` are classes x H x W, in [0, 1]. `index` is the
    position of the image among all that were given. `path` is its file, or None if it was not
    given as a file. `mask_values`, `colours` and `background` are those of the weights.
    `threshold` is the probability from which on a pixel is of class 1 of two, if there is one.
    """

    path: Path | None
    image: Tensor
    probabilities: Tensor
    classes: tuple[str, ...]
    index: int = 0
    mask_values: tuple[int | str, ...] = ()
    colours: tuple[str, ...] = ()
    background: str = ""
    threshold: float | None = None

    @property
    def mask(self) -> Tensor:
        """The index of the predicted class of each pixel, uint8, H W: by default the likeliest."""
        if self.threshold is not None:
            return (self.probabilities[1] >= self.threshold).to(torch.uint8)
        return self.probabilities.argmax(0).to(torch.uint8)


class Predictor:
    """Apply a trained network, or the mean of several, to images.

    `source` is a run, the name of published weights, "hf:owner/name", a weights file or an
    exported file; `model`, `naming` and `download` say how to open it, as for `Trained`. The
    probabilities of the networks in `ensemble` are averaged with its own; their classes must have
    the same names.

    Images may be paths, folders, PIL images, arrays (H W or H W C), tensors (C H W or N C H W),
    or iterables of any of them. Arrays and tensors are uint8, or floats in [0, 1]. Images are
    converted to the network's size and channels. They are decoded ahead in threads and processed
    in batches of `batch_size`, so memory use does not depend on their number.

    With `optimize`, faster copies of the networks compute the outputs, equal to 1e-4; `precision`
    ("fp32" or "bf16") and `compile` are options of it. `embed` always uses the network itself.

    `threshold`, from 0 to 1, replaces the thresholds of the weights: class 1 of two, or each class
    if multilabel, is predicted if its probability is at least this. `thresholds` are those in use;
    () means that the most likely class is predicted, of a pixel, too.

    Raises:
        UsageError: the device does not exist, `batch_size` is not positive, or `precision` or
            `compile` is given without `optimize`, the source does not exist, an option does not
            apply, or networks of an ensemble differ in their task or their classes.
        WeightsMissingError: published weights are not on this machine.
        CorruptError: a weights file is damaged.
    """

    def __init__(
        self,
        source: Trained | Source,
        *,
        ensemble: Sequence[Trained | Source] = (),
        model: str = "",
        naming: str | None = None,
        download: bool = False,
        device: str = "auto",
        batch_size: int | None = None,
        threshold: float | None = None,
        optimize: bool = False,
        precision: str = "fp32",
        compile: bool = False,
    ) -> None:
        require_optimize(optimize, precision, compile)
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch_size = {batch_size}: expected a positive integer")
        if not isinstance(source, Trained):
            source = Trained(source, model=model, naming=naming, download=download, device=device)
        self.trained: Trained = source
        self._others = [Trained.of(other, device=device) for other in ensemble]
        self.thresholds: tuple[float, ...] = thresholds_for(source.weights, threshold)
        self._batch_size = batch_size
        self._blamed: str | None = None  # the first module whose output was not finite
        self._optimized = {"precision": precision, "compile": compile} if optimize else None
        _ = (
            self._networks
        )  # reads the weights, so that errors come here and not at the first image

    def __repr__(self) -> str:
        names = ", ".join(map(repr, self.classes[:SHOWN])) + ", …" * (len(self.classes) > SHOWN)
        return f"<Predictor {'; '.join(self.networks)}; {len(self.classes):,} classes: {names}>"

    @property
    def networks(self) -> tuple[str, ...]:
        """For each network, its name, which weights it has, and the preprocessing."""
        return tuple(
            f"{net.trained.weights.model}, weights {net.trained.name}: images "
            f"{net.preprocessing.summary}"
            for net in self._networks
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities."""
        return self.trained.weights.classes

    @property
    def task(self) -> str:
        """The task: "classification", "segmentation" or "multilabel"."""
        return task_of(self.trained.weights)

    @cached_property
    def batch_size(self) -> int:
        """The number of images per batch; segmentation processes images one by one."""
        if self.task == "segmentation":
            return 1
        sizes = [eval_batch_size(net.preprocessing) for net in self._networks]
        return self._batch_size or min(*sizes, MAX_BATCH)

    def __call__(
        self, images: Images, *, top_k: int = 1, flips: bool = False
    ) -> list[Prediction] | list[Segmentation]:
        """Return the predictions for all images, or their segmentations; see `stream`."""
        if self.task == "segmentation":
            _require_top_1(top_k, self.task)
            return [*self.segment(images, flips=flips)]
        return [*self.decide(images, top_k=top_k, flips=flips)]

    def stream(
        self,
        images: Images,
        *,
        top_k: int = 1,
        flips: bool = False,
        on_error: OnError | None = None,
    ) -> Iterator[Prediction] | Iterator[Segmentation]:
        """Return an iterator over predictions or segmentations, in the order of the images.

        It is `classify`, `tag` or `segment`, depending on the task of the network.
        """
        if self.task == "segmentation":
            _require_top_1(top_k, self.task)
            return self.segment(images, flips=flips, on_error=on_error)
        return self.decide(images, top_k=top_k, flips=flips, on_error=on_error)

    def decide(
        self,
        images: Images,
        *,
        top_k: int = 1,
        flips: bool = False,
        on_error: OnError | None = None,
    ) -> Iterator[Prediction]:
        """Return an iterator over the classes of the images: `classify`, or `tag` if multilabel.

        Raises:
            UsageError: as for these two, or `top_k` is given for multilabel.
        """
        if self.task == "multilabel":
            _require_top_1(top_k, self.task)
            return self.tag(images, flips=flips, on_error=on_error)
        return self.classify(images, top_k=top_k, flips=flips, on_error=on_error)

    def classify(
        self,
        images: Images,
        *,
        top_k: int = 1,
        flips: bool = False,
        on_error: OnError | None = None,
    ) -> Iterator[Prediction]:
        """Return an iterator over the `top_k` most likely classes of each image, in order.

        With `flips`, probabilities are averaged over the image and its mirror image. `on_error` is
        called with the error of each image that is unreadable or has an output that is not finite;
        it is then skipped.

        Raises:
            UsageError: the task is not classification, `top_k` is not between 1 and the number of
                classes, a path does not exist, or an image has the wrong type or shape.
            CorruptError: a file is not a readable image, and there is no `on_error`.
            NumericalError: an output is not finite, and there is no `on_error`.
        """
        self._require_task("classification")
        if not 1 <= top_k <= len(self.classes):
            raise UsageError(
                f"top_k = {top_k}: expected 1 to {len(self.classes)}, the number of classes"
            )
        # Separate generators, so that the errors above are raised here, not at the first image.
        return self._classify(images, top_k, flips, on_error)

    def tag(
        self, images: Images, *, flips: bool = False, on_error: OnError | None = None
    ) -> Iterator[Prediction]:
        """Return an iterator over all classes of each image, for a multilabel network.

        These are the classes whose probability reaches their threshold, the most likely first. The
        thresholds are those of the weights, of an ensemble those of its first network, or else
        0.5, unless one is given. `flips` and `on_error` are as for `classify`.

        Raises:
            UsageError: the task is not multilabel, a path does not exist, or an image has the
                wrong type or shape.
            CorruptError: a file is not a readable image, and there is no `on_error`.
        """
        self._require_task("multilabel")
        return self._tag(images, flips, on_error)

    def segment(
        self, images: Images, *, flips: bool = False, on_error: OnError | None = None
    ) -> Iterator[Segmentation]:
        """Return an iterator over the segmentations of the images, in order.

        A network that was trained on tiles processes images at their original size, tile by tile.
        For any other network, images are resized to its input size, and the logits are resized
        back. With `flips`, probabilities are averaged over the image, its two mirror images, and
        the image rotated by 180 degrees. `on_error` is called with the error of each image
        that is unreadable or has an output that is not finite; it is then skipped.

        Raises:
            UsageError: the task is not segmentation, a path does not exist, or an image has the
                wrong type or shape.
            CorruptError: a file is not a readable image, and there is no `on_error`.
        """
        self._require_task("segmentation")
        return self._segment(images, flips, on_error)

    def logits(self, images: Images) -> Tensor:
        """Return the logits of all images, float32, N x classes.

        Raises:
            UsageError: the task is not classification, or this is an ensemble, which averages
                probabilities.
        """
        network = self._only_network("logits")
        found = [network.logits(inputs[0]) for _, inputs in self._batches(images, None)]
        return torch.cat(found) if found else torch.empty(0, len(self.classes))

    def embed(self, images: Images, stage: str | None = None) -> Tensor:
        """Return the features of all images, float32, N x D: the outputs of a stage.

        By default they are the inputs of the last stage, the classifier. Feature maps are averaged
        over their positions.

        Raises:
            UnknownNameError: the network has no such stage; suggests names.
            UsageError: there are no images, the stage is not called exactly once, the task is not
                classification, or this is an ensemble or an exported file.
        """
        network = self._only_network("embed")
        found = [network.features(inputs[0], stage) for _, inputs in self._batches(images, None)]
        if not found:
            raise UsageError("embed: no images")
        return torch.cat(found)

    def _classify(
        self, images: Images, top_k: int, flips: bool, on_error: OnError | None
    ) -> Iterator[Prediction]:
        for image, probabilities in self._probabilities(images, flips, on_error):
            best = probabilities.topk(top_k).indices
            if self.thresholds:  # of class 1 of two
                first = int(probabilities[1] >= self.thresholds[0])
                best = best.new_tensor([first, 1 - first][:top_k])
            yield self._prediction(image, best, probabilities)

    def _tag(self, images: Images, flips: bool, on_error: OnError | None) -> Iterator[Prediction]:
        least = torch.tensor(self.thresholds or (0.5,) * len(self.classes))
        for image, probabilities in self._probabilities(images, flips, on_error):
            order = probabilities.argsort(descending=True, stable=True)
            yield self._prediction(image, order[(probabilities >= least)[order]], probabilities)

    def _prediction(self, image: LoadedImage, order: Tensor, probabilities: Tensor) -> Prediction:
        """Return the prediction of an image: the classes in `order`."""
        path = None if image.path is None else str(image.path)
        names = tuple(self.classes[number] for number in order.tolist())
        return Prediction(path, names, tuple(probabilities[order].tolist()), image.index)

    def _probabilities(
        self, images: Images, flips: bool, on_error: OnError | None
    ) -> Iterator[tuple[LoadedImage, Tensor]]:
        """Yield each image with the probabilities of its classes, the mean over the networks."""
        for loaded, inputs in self._batches(images, on_error):
            found = [net.probabilities(x, flips) for net, x in self._with_inputs(inputs)]
            for image, probabilities in zip(loaded, _mean(found), strict=True):
                if all_finite(probabilities):
                    yield image, probabilities
                else:
                    self._not_finite(image, inputs, on_error)

    def _segment(
        self, images: Images, flips: bool, on_error: OnError | None
    ) -> Iterator[Segmentation]:
        for (loaded,), inputs in self._batches(images, on_error):
            image = loaded.image
            assert image is not None  # the loader keeps it for segmentation
            size = image.shape[-2:]
            maps = _mean(
                [net.pixel_probabilities(x, size, flips) for net, x in self._with_inputs(inputs)]
            )
            if not all_finite(maps):
                self._not_finite(loaded, inputs, on_error)
                continue
            weights = self.trained.weights
            yield Segmentation(
                path=loaded.path,
                image=image,
                probabilities=maps[0],
                classes=weights.classes,
                index=loaded.index,
                mask_values=weights.mask_values,
                colours=weights.colours,
                background=weights.background,
                threshold=next(iter(self.thresholds), None),
            )

    def _not_finite(
        self, image: LoadedImage, inputs: list[Tensor], on_error: OnError | None
    ) -> None:
        """Report an image whose probabilities are not finite, which are no prediction."""
        if self._blamed is None:
            # Once, since each search runs the networks again; the others have the same cause.
            names = (net.blame(x) for net, x in self._with_inputs(inputs))
            self._blamed = next(filter(None, names), "")
        where = f", first in the output of {self._blamed}" if self._blamed else ""
        name = f"image {image.index}" if image.path is None else image.path
        error = NumericalError(f"{name}: the output of the network is not finite{where}")
        if on_error is None:
            raise error
        on_error(error)

    def _with_inputs(self, inputs: list[Tensor]) -> Iterator[tuple[Network, Tensor]]:
        return zip(self._networks, inputs, strict=True)

    def _batches(
        self, images: Images, on_error: OnError | None
    ) -> Iterator[tuple[list[LoadedImage], list[Tensor]]]:
        """Yield batches of readable images, and for each network its inputs, N C h w.

        Batches are full except for the last, whatever files are unreadable.
        """
        size = self.batch_size
        loader = Loader(
            tuple((net.in_channels, net.preprocessing) for net in self._networks),
            keep_image=self.task == "segmentation",
        )
        batch: list[LoadedImage] = []
        # One batch is decoded while the one before it is computed.
        with contextlib.closing(load_ahead(images, loader, limit=max(size, 2))) as stream:
            for loaded in stream:
                if isinstance(loaded, LoadedImage):
                    batch.append(loaded)
                elif on_error is None:
                    raise loaded
                else:
                    on_error(loaded)
                if len(batch) == size:
                    yield batch, _stacked(batch)
                    batch = []
        if batch:
            yield batch, _stacked(batch)

    @cached_property
    def _networks(self) -> list[Network]:
        """The networks of the ensemble; their classes are put into the order of the first."""
        first = self.trained
        orders = [None, *(class_order(first, other) for other in self._others)]
        return [
            Network(trained, order, self._optimized)
            for trained, order in zip((first, *self._others), orders, strict=True)
        ]

    def _require_task(self, task: str, hint: str = "") -> None:
        """Raise UsageError unless the networks do this task and fit together."""
        if self.task != task:
            raise UsageError(
                f"{self.trained.path}: '{self.trained.weights.model}' is a {self.task} model; "
                f"{hint or USE[self.task]}"
            )
        _ = self._networks  # compares the classes of an ensemble

    def _only_network(self, method: str) -> Network:
        """Return the network of a classifier; raise UsageError for an ensemble."""
        if self.task != "multilabel":
            self._require_task("classification", f"{method} is for classification")
        if self._others:
            raise UsageError(f"{method}: an ensemble of {len(self._networks)} networks has none")
        return self._networks[0]


def _mean(probabilities: list[Tensor]) -> Tensor:
    """Return the mean over networks; of a single one, exactly its own probabilities."""
    return torch.stack(probabilities).mean(0) if len(probabilities) > 1 else probabilities[0]


def _stacked(batch: list[LoadedImage]) -> list[Tensor]:
    """Return the inputs of a batch for each network, N C h w."""
    return [torch.stack(inputs) for inputs in zip(*(image.inputs for image in batch), strict=True)]


def _require_top_1(top_k: int, task: str) -> None:
    if top_k != 1:
        raise UsageError(f"top_k = {top_k}: it is for classification, and this is {task}")


def predict(
    run: Trained | Source, images: Images, *, top_k: int = 1, device: str = "auto"
) -> list[Prediction]:
    """Classify images with a trained network; see `Predictor` for what images may be.

    For a multilabel network, return all classes of each image; see `Predictor.tag`.

    Raises:
        UsageError: the network's task is segmentation, `top_k` is not between 1 and the
            number of classes, a path does not exist, or an image has the wrong type or shape.
        CorruptError: a file is not an image, or its format or size is not supported.
    """
    return [*Predictor(run, device=device).decide(images, top_k=top_k)]


def segment(
    run: Trained | Source, images: Images, *, flips: bool = False, device: str = "auto"
) -> Iterator[Segmentation]:
    """Return an iterator that segments images; see `Predictor.segment`.

    Raises:
        UsageError: the network's task is not segmentation, a path does not exist, or an image has
            the wrong type or shape.
        CorruptError: a file is not an image, or its format or size is not supported.
    """
    return Predictor(run, device=device).segment(images, flips=flips)
