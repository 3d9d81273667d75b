"""Specs: the frozen, keyword-only descriptions that plugins return, validated on creation.

Nothing here imports torch. A `target` or `render` names code as "package.module:name". It is
imported only when it is used, so that listing hundreds of models stays cheap.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cnn_core.errors import SpecError

__all__ = [
    "Check",
    "CommandSpec",
    "DatasetSpec",
    "MetricSpec",
    "ModelSpec",
    "Paper",
    "RecipeSpec",
    "Spec",
    "ViewSpec",
    "WeightsSpec",
]

NETWORK_TASKS = ("classification", "segmentation")
TASKS = (*NETWORK_TASKS, "multilabel")  # of datasets; networks for classification do it
FITS = ("resize", "pad", "tile", "crop")
VIEW_INPUTS = (
    "run",
    "trained",
    "weights",
    "model",
    "batch",
    "predictions",
    "validation",
    "segmented",
    "labelled",
    "embedded",
)

# Names are words on command lines and parts of folder names. They have no "/" and no ":", which
# separate a name from a distribution before it and a path after it.
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_RESOURCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[^/\\:]+(/[^/\\:]+)*")


@dataclass(frozen=True, kw_only=True)
class Paper:
    """The publication of a network or dataset.

    Raises:
        SpecError: a field has the wrong type; the message gives the field and its value.
    """

    title: str
    authors: str
    year: int
    url: str

    def __post_init__(self) -> None:
        for name in ("title", "authors", "url"):
            if not isinstance(getattr(self, name), str):
                raise SpecError(f"paper: {name} = {getattr(self, name)!r}, expected a string")
        if not _positive(self.year):
            raise SpecError(f"paper: year = {self.year!r}, expected a positive integer")

    def __str__(self) -> str:
        return f"{self.authors} ({self.year}), {self.title}. {self.url}"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The base class of all specs: a name, and methods that validate fields.

    Raises:
        SpecError: a field has an invalid value; the message gives the field and its value.
    """

    kind: ClassVar[str] = "spec"

    name: str

    def __post_init__(self) -> None:
        self.require("name", isinstance(self.name, str) and _NAME.fullmatch(self.name))

    def require(self, field_name: str, valid: object, expected: str = "") -> None:
        """Raise SpecError for the field unless `valid` is true."""
        if valid:
            return
        value = getattr(self, field_name)
        expected = expected or _EXPECTED.get(field_name, "a different value")
        raise SpecError(
            f"{self.kind} {self.name!r}: {field_name} = {value!r}, expected {expected}"
        )

    def require_target(self, field_name: str) -> None:
        """Raise SpecError unless the field has the form "package.module:name"."""
        value = getattr(self, field_name)
        self.require(field_name, isinstance(value, str) and _TARGET.fullmatch(value))

    def require_names(self, field_name: str, *, non_empty: bool = False) -> None:
        """Raise SpecError unless the field is a tuple of distinct, non-empty strings."""
        value = getattr(self, field_name)
        strings = isinstance(value, tuple) and all(isinstance(v, str) and v for v in value)
        self.require(
            field_name,
            strings and len(set(value)) == len(value) and (value or not non_empty),
            f"a{' non-empty' if non_empty else ''} tuple of distinct strings",
        )

    def require_image(self, field_name: str) -> None:
        """Raise SpecError unless the field is (channels, height, width)."""
        value = getattr(self, field_name)
        ok = isinstance(value, tuple) and len(value) == 3
        self.require(field_name, ok and all(_positive(v) for v in value))


_EXPECTED = {
    "name": "lower-case letters, digits, '_', '-' or '.', at most 64 of them",
    "target": "'package.module:name'",
    "render": "'package.module:name'",
    "key_maps": "'package.module:name'",
    "input": "(channels, height, width)",
    "image": "(channels, height, width)",
    "task": f"one of {', '.join(TASKS)}",
}


# Exclude bool, which is a subclass of int in Python.
def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Spec):
    """One network that `create_model` can build.

    The conformance checks compare three numbers exactly with the network: `params` counts
    trainable parameters; `macs` counts the multiply-accumulates of convolutions and linear layers
    for one image, by torch's flop counter; `connections` counts connections as in LeCun et al.
    (1998), with 0 for "not given". `stages` are module names in the order of the paper;
    `cam_stage` is the default stage of Grad-CAM. `key_maps` names a function
    `(model name) -> {naming: KeyMap}` for weights of other libraries. `expected_failures` maps
    conformance checks that cannot pass to reasons; `reported` maps datasets to the paper's
    results, as text.
    """

    kind: ClassVar[str] = "model"

    target: str
    family: str
    variant: str
    summary: str
    paper: Paper
    input: tuple[int, int, int]
    min_size: int
    num_classes: int
    params: int
    macs: int
    stages: tuple[str, ...]
    cam_stage: str
    connections: int = 0
    key_maps: str = ""
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    reported: Mapping[str, str] = field(default_factory=dict)
    task: str = "classification"
    departures: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_target("target")
        valid = self.task in NETWORK_TASKS
        self.require("task", valid, f"one of {', '.join(NETWORK_TASKS)}")
        self.require("paper", isinstance(self.paper, Paper), "a Paper")
        self.require_image("input")
        for count in ("min_size", "num_classes", "params", "macs"):
            self.require(count, _positive(getattr(self, count)), "a positive integer")
        self.require_names("stages", non_empty=True)
        for names in ("departures", "aliases", "tags"):
            self.require_names(names)
        valid = all(_NAME.fullmatch(alias) for alias in self.aliases)
        self.require("aliases", valid, f"names of {_EXPECTED['name']}")
        self.require("cam_stage", self.cam_stage in self.stages, "one of its stages")
        if self.key_maps:
            self.require_target("key_maps")
        is_text = isinstance(self.reported, Mapping) and all(
            isinstance(text, str) for pair in self.reported.items() for text in pair
        )
        self.require("reported", is_text, "a mapping from datasets to text")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(Spec):
    """One dataset that `load_dataset` can load.

    `target` names a function `(spec, root, download) -> Dataset`. `splits` maps each split to its
    number of samples. `image` is (channels, height, width), with height and width 0 if images
    differ in size. `mean` and `std` are per channel, of training images in [0, 1]; if empty, they
    are computed. `fit` is the way to enlarge images to a network's input: "pad" (MNIST digits, as
    in 1998) or "resize". An `embedded` dataset needs no files. A `folder` dataset is used with a
    path, as in "imagefolder:PATH", and its empty fields are filled in from the files.

    For segmentation, `mask_values` are the values of the classes in the masks, numbers or
    "#rrggbb", empty for the class numbers themselves; `colours` are the classes' colours,
    "#rrggbb" or "" for one of the palette; `background` names the class that is background.
    """

    kind: ClassVar[str] = "dataset"

    target: str
    summary: str
    classes: tuple[str, ...]
    image: tuple[int, int, int]
    splits: Mapping[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    citation: str
    homepage: str
    fit: str = "resize"
    task: str = "classification"
    embedded: bool = False
    folder: bool = False
    mask_values: tuple[int | str, ...] = ()
    colours: tuple[str, ...] = ()
    background: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_target("target")
        self.require("task", self.task in TASKS)
        self.require_names("classes", non_empty=not self.folder)
        # 0 x 0 means that images differ in size.
        if tuple(self.image[1:]) != (0, 0):
            self.require_image("image")
        valid = isinstance(self.splits, Mapping) and (self.splits or self.folder)
        self.require("splits", valid, "a table of splits")
        for values in ("mean", "std"):
            one_each = len(getattr(self, values)) in (0, self.image[0])
            self.require(values, one_each, f"{self.image[0]} numbers, one per channel")
        # Images are divided by it.
        self.require("std", min(self.std, default=1) > 0, "numbers above 0")
        self.require("fit", self.fit in ("pad", "resize"), "'pad' or 'resize'")
        for values in ("mask_values", "colours"):
            one_each = len(getattr(self, values)) in (0, len(self.classes)) or not self.classes
            self.require(values, one_each, f"{len(self.classes)} values, one per class")


@dataclass(frozen=True, kw_only=True)
class RecipeSpec(Spec):
    """How to train one model on one dataset: the hyperparameters and the measured result.

    `settings` are fields of `cnn_core.training.Recipe`; `origin` is "paper" for the authors'
    recipe, else "ours"; `claim` is the measured result (metric, mean, std, n, seeds, hardware) or
    empty; a `default` recipe is used when the user names none.
    """

    kind: ClassVar[str] = "recipe"

    model: str
    dataset: str
    summary: str
    origin: str
    settings: Mapping[str, Any]
    claim: Mapping[str, Any] = field(default_factory=dict)
    default: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("origin", self.origin in ("paper", "ours"), "'paper' or 'ours'")
        for table in ("settings", "claim"):
            self.require(table, isinstance(getattr(self, table), Mapping), "a table")
        # A result without its spread, seeds and hardware cannot be checked.
        needed = {"metric", "mean", "std", "n", "seeds", "hardware"}
        missing = ", ".join(sorted(needed - set(self.claim)))
        self.require("claim", not self.claim or not missing, f"the keys {missing}")
        for number in ("mean", "std"):
            is_number = isinstance(self.claim.get(number, 0), int | float)
            self.require("claim", is_number, f"a number for {number}")


@dataclass(frozen=True, kw_only=True)
class MetricSpec(Spec):
    """A metric of a whole split, or several metrics that are computed from the same sums.

    `target` names a factory `(num_classes) -> metric`. `metric.update(logits, targets)` adds a
    batch to the tensor `metric.sums`, and `metric.compute()` returns a float or a dict of floats.
    Checkpoints within an epoch save and restore the sums; in distributed runs they are added up.
    An `eval_only` metric is computed in evaluation, but not in every epoch. `data` are the
    datasets that the metric applies to; empty means all. If a metric has an attribute `classes`,
    it is set to the names of the classes; `background`, to the number of that class, or None.
    """

    kind: ClassVar[str] = "metric"

    target: str
    task: str
    summary: str
    higher_is_better: bool = True
    eval_only: bool = False
    data: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_target("target")
        self.require("task", self.task in TASKS)
        self.require_names("data")


@dataclass(frozen=True, kw_only=True)
class ViewSpec(Spec):
    """One figure of a trained network.

    `render` names a function that returns a matplotlib `Figure`. It gets a keyword argument for
    each of its `needs`: "trained" (`cnn_core.training.Trained`, with the names of model and
    dataset in its `recipe`), "run" (`cnn_core.training.Run`, with the log of the training),
    "weights" (`cnn_core.weights.native.Weights`, with classes and preprocessing), "model" (the
    trained `nn.Module`, in eval mode), "batch" (`cnn_core.data.Batch`, images from every class of
    the test split), "predictions" (`cnn_core.training.Predictions` for the whole split),
    "validation" (the same for the held-out validation images, or None), "segmented" (an iterable
    of `cnn_core.training.SegmentationOutput`, recomputed in each iteration), "labelled"
    (`cnn_core.training.LabelPredictions` for the whole split, for multilabel) and "embedded"
    (`cnn_viz.results.embeddings.Embedding`, features of images and their 2-D positions). Weights
    without a run have no "run", and an exported file has no "model" and no "embedded": such a view
    is then skipped. A `costly` view is drawn only when it is named, not in reports.
    """

    kind: ClassVar[str] = "view"

    render: str
    summary: str
    needs: tuple[str, ...]
    tasks: tuple[str, ...] = ("classification",)
    costly: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_target("render")
        self.require_names("needs", non_empty=True)
        known = set(self.needs) <= set(VIEW_INPUTS)
        self.require("needs", known, f"some of {', '.join(VIEW_INPUTS)}")
        known = bool(self.tasks) and set(self.tasks) <= set(TASKS)
        self.require("tasks", known, f"some of {', '.join(TASKS)}")


@dataclass(frozen=True, kw_only=True)
class WeightsSpec(Spec):
    """Trained weights of one model: where the file is, and all that is needed to use it.

    `name` has the form "MODEL:NAME", such as "resnet50:imagenet-v2"; the `default` weights of a
    model are used where only the model is named. The file is at `url`, or it is part of an
    installed package: `file` is then "package:path/in/the/package". If the package is that of
    another distribution, `requires` is the requirement to install with pip. `sha256` is the file's
    hash in hexadecimal, or at least its first 8 digits where no more is published.
    `bytes` is the file's size; publishers often give it in megabytes, so it may be rounded.

    `data` is the dataset of the training, and `classes` are the names of its `num_classes` outputs
    in order, or "package.module:NAME" of a tuple of names. `input_size` (height, width),
    `image_size`, `fit`, `resize`, `interpolation`, `mean` and `std` are the fields of
    `cnn_core.data.Preprocessing`, where `input_size` is called `size`. `naming` is the key map of
    the file, empty for cnnzoo's own files. `accuracy` maps metrics to fractions, as claimed at
    `source`, the page of the publisher. `recipe` says how the weights were trained: the name of a
    recipe, or an address.
    """

    kind: ClassVar[str] = "weights"

    model: str
    summary: str
    data: str
    num_classes: int
    classes: tuple[str, ...] | str
    sha256: str
    bytes: int
    licence: str
    source: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, int]
    image_size: tuple[int, int] = (0, 0)
    fit: str = "crop"
    resize: int = 0
    interpolation: str = "bilinear"
    url: str = ""
    file: str = ""
    requires: str = ""
    naming: str = ""
    accuracy: Mapping[str, float] = field(default_factory=dict)
    recipe: str = ""
    default: bool = False

    def __post_init__(self) -> None:
        model, colon, name = self.name.partition(":") if isinstance(self.name, str) else ("",) * 3
        named = colon and model == self.model and _NAME.fullmatch(model) and _NAME.fullmatch(name)
        self.require("name", named, f"'{self.model}:NAME'")
        self._require_place()
        digest = isinstance(self.sha256, str) and re.fullmatch(r"[0-9a-f]{8,64}", self.sha256)
        self.require("sha256", digest, "8 to 64 hexadecimal digits")
        self.require("bytes", _positive(self.bytes), "a positive integer")
        self.require("num_classes", _positive(self.num_classes), "a positive integer")
        if isinstance(self.classes, str):
            self.require_target("classes")
        else:
            names = isinstance(self.classes, tuple) and len(self.classes) == self.num_classes
            valid = names and all(isinstance(name, str) for name in self.classes)
            self.require("classes", valid, f"a tuple of {self.num_classes} names")
        self._require_preprocessing()
        fractions = isinstance(self.accuracy, Mapping) and all(
            isinstance(value, int | float) and 0 <= value <= 1 for value in self.accuracy.values()
        )
        self.require("accuracy", fractions, "a mapping from metrics to fractions")

    def _require_place(self) -> None:
        """Raise SpecError unless exactly one of `url` and `file` is given, in its form."""
        self.require("url", bool(self.url) != bool(self.file), "either it or file")
        if self.url:
            self.require("url", self.url.startswith("https://"), "an https:// address")
        else:
            self.require("file", _RESOURCE.fullmatch(self.file), "'package:path/in/the/package'")

    def _require_preprocessing(self) -> None:
        sides = isinstance(self.input_size, tuple) and len(self.input_size) == 2
        sides = sides and all(map(_positive, self.input_size))
        self.require("input_size", sides, "(height, width)")
        self.require("fit", self.fit in FITS, f"one of {', '.join(FITS)}")
        interpolations = ("bilinear", "bicubic")
        valid = self.interpolation in interpolations
        self.require("interpolation", valid, f"one of {', '.join(interpolations)}")
        enough = self.fit != "crop" or self.resize >= max(self.input_size)
        self.require("resize", enough, f"at least {max(self.input_size)}, the side of the crop")
        same_length = self.mean and len(self.mean) == len(self.std)
        self.require("std", same_length and min(self.std) > 0, "a number above 0 for each channel")


@dataclass(frozen=True, kw_only=True)
class CommandSpec(Spec):
    """One command of `cnnzoo`; `target` names a `click.Command`, imported only to run it."""

    kind: ClassVar[str] = "command"

    target: str
    summary: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_target("target")


@dataclass(frozen=True, kw_only=True)
class Check(Spec):
    """A plugin's own health check; `check` returns a problem and its remedy, or ""."""

    kind: ClassVar[str] = "check"

    check: Callable[[], str]
    summary: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("check", callable(self.check), "a function without arguments")
