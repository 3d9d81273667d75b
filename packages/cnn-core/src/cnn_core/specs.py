"""Specs: the frozen, keyword-only descriptions that plugins return, checked on creation.

Nothing here imports torch. A `target` or `render` names code as "package.module:name", which is
imported only when it is used: listing hundreds of models stays cheap.
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

TASKS = ("classification", "segmentation")
INGREDIENTS = (
    "run",
    "weights",
    "model",
    "batch",
    "predictions",
    "validation",
    "segmented",
    "embedded",
)

# Names are words on command lines and parts of folder names; "/" and ":" in front of and behind
# them stand for a distribution and a path.
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class Paper:
    """The publication of a network or dataset.

    Raises:
        SpecError: a field has the wrong type; gives field and value.
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
    """The base of all specs: a name, and checks of field values.

    Raises:
        SpecError: a field has an invalid value; gives field and value.
    """

    kind: ClassVar[str] = "spec"

    name: str

    def __post_init__(self) -> None:
        self.require("name", isinstance(self.name, str) and _NAME.fullmatch(self.name))

    def require(self, field_name: str, holds: object, expected: str = "") -> None:
        """Raise SpecError for `field_name` unless the condition `holds`."""
        if holds:
            return
        value = getattr(self, field_name)
        expected = expected or _EXPECTED.get(field_name, "another value")
        raise SpecError(
            f"{self.kind} {self.name!r}: {field_name} = {value!r}, expected {expected}"
        )

    def require_target(self, field_name: str) -> None:
        """Raise SpecError unless the field reads "package.module:name"."""
        value = getattr(self, field_name)
        self.require(field_name, isinstance(value, str) and _TARGET.fullmatch(value))

    def require_names(self, field_name: str, *, some: bool = False) -> None:
        """Raise SpecError unless the field is a tuple of distinct, non-empty strings."""
        value = getattr(self, field_name)
        strings = isinstance(value, tuple) and all(isinstance(v, str) and v for v in value)
        self.require(
            field_name,
            strings and len(set(value)) == len(value) and (value or not some),
            f"a{' non-empty' if some else ''} tuple of distinct strings",
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


# A bool is an int in Python, and True would pass for 1.
def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Spec):
    """One network that `create_model` can build.

    `params`, `macs` and `connections` are checked exactly by tests: trainable parameters;
    multiply-accumulates of convolutions and linear layers by torch's flop counter, for one image;
    connections as LeCun et al. (1998) count them (0: not given). `stages` are module names in the
    order of the paper; `cam_stage` is the default of Grad-CAM. `key_maps` names a function
    `(model name) -> {naming: KeyMap}` for weights of other libraries. `expected_failures` maps
    conformance checks that cannot pass to the reasons; `reported` maps datasets to the paper's
    results, in words.
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
        self.require("task", self.task in TASKS)
        self.require("paper", isinstance(self.paper, Paper), "a Paper")
        self.require_image("input")
        for count in ("min_size", "num_classes", "params", "macs"):
            self.require(count, _positive(getattr(self, count)), "a positive integer")
        self.require_names("stages", some=True)
        for names in ("departures", "aliases", "tags"):
            self.require_names(names)
        named = all(_NAME.fullmatch(alias) for alias in self.aliases)
        self.require("aliases", named, f"of each {_EXPECTED['name']}")
        self.require("cam_stage", self.cam_stage in self.stages, "one of its stages")
        if self.key_maps:
            self.require_target("key_maps")
        words = isinstance(self.reported, Mapping) and all(
            isinstance(word, str) for pair in self.reported.items() for word in pair
        )
        self.require("reported", words, "words by dataset")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(Spec):
    """One dataset that `load_dataset` can load.

    `target` names a function `(spec, root, download) -> Dataset`. `splits` maps each split to its
    number of samples. `image` is (channels, height, width), with 0 and 0 where images differ in
    size. `mean` and `std` are per channel, of training images in [0, 1]; where empty, they are
    computed. `fit` enlarges images to a network's input: "pad" (MNIST digits, as in 1998) or
    "resize". A `folder` is used with a path, "imagefolder:PATH"; its empty fields are filled in
    from the files there.
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

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_target("target")
        self.require("task", self.task in TASKS)
        self.require_names("classes", some=not self.folder)
        # 0 x 0 stands for images of different sizes.
        if tuple(self.image[1:]) != (0, 0):
            self.require_image("image")
        known = isinstance(self.splits, Mapping) and (self.splits or self.folder)
        self.require("splits", known, "a table")
        for values in ("mean", "std"):
            one_each = len(getattr(self, values)) in (0, self.image[0])
            self.require(values, one_each, f"{self.image[0]} numbers, one a channel")
        # Images are divided by it.
        self.require("std", min(self.std, default=1) > 0, "numbers above 0")
        self.require("fit", self.fit in ("pad", "resize"), "'pad' or 'resize'")


@dataclass(frozen=True, kw_only=True)
class RecipeSpec(Spec):
    """How to train one model on one dataset: hyper-parameters and the measured result.

    `settings` are keys of `cnn_core.training.Recipe`; `origin` is "paper" for the authors' own
    recipe, else "ours"; `claim` is the measured result (metric, mean, std, n, seeds, hardware) or
    empty; `default` recipes are used when none is named.
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
        self.require("claim", not self.claim or not missing, f"also {missing}")
        for number in ("mean", "std"):
            is_number = isinstance(self.claim.get(number, 0), int | float)
            self.require("claim", is_number, f"a number for {number}")


@dataclass(frozen=True, kw_only=True)
class MetricSpec(Spec):
    """One number for a whole split, or several that are computed from the same sums.

    `target` names a factory `(num_classes) -> metric`. `metric.update(logits, targets)` adds a
    batch to the tensor `metric.sums`, and `metric.compute()` returns a float, or floats by name.
    Checkpoints within an epoch save and restore the sums; several processes add theirs up. An
    `eval_only` metric is computed in evaluation and not every epoch; `data` are the datasets that
    it applies to, all where empty.
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
    """One figure of a run.

    `render` names a function that returns a matplotlib `Figure`. It gets a keyword argument for
    each of its `needs`: "run" (`cnn_core.training.Run`), "weights"
    (`cnn_core.weights.native.Weights`, with classes and preprocessing), "model" (the trained
    `nn.Module`, in eval mode), "batch" (`cnn_core.data.Batch`, some images of the test split, of
    every class), "predictions" (`cnn_core.training.Predictions`, the whole split), "validation"
    (the same for the images that training held out, None without any), "segmented"
    (`cnn_core.training.SegmentationOutput` of each image, computed again in each iteration) and
    "embedded" (`cnn_viz.results.embeddings.Embedding`, features of images and their positions in
    2-D). A `costly` view is drawn only by name, not in reports.
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
        self.require_names("needs", some=True)
        known = set(self.needs) <= set(INGREDIENTS)
        self.require("needs", known, f"some of {', '.join(INGREDIENTS)}")
        known = bool(self.tasks) and set(self.tasks) <= set(TASKS)
        self.require("tasks", known, f"some of {', '.join(TASKS)}")


@dataclass(frozen=True, kw_only=True)
class WeightsSpec(Spec):
    """Pretrained weights of one model: their source and claimed accuracy.

    `sha256` is the hash of the file at `url`; `accuracy` maps metrics to fractions.
    """

    kind: ClassVar[str] = "weights"

    model: str
    url: str
    sha256: str
    summary: str
    licence: str
    accuracy: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("url", self.url.startswith("https://"), "an https:// address")
        digest = re.fullmatch(r"[0-9a-f]{64}", self.sha256)
        self.require("sha256", digest, "64 hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class CommandSpec(Spec):
    """One command of `cnnzoo`: `target` names a `click.Command`, which is imported to run it."""

    kind: ClassVar[str] = "command"

    target: str
    summary: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_target("target")


@dataclass(frozen=True, kw_only=True)
class Check(Spec):
    """A plugin's own health check: `check` returns "", or what is wrong and how to fix it."""

    kind: ClassVar[str] = "check"

    check: Callable[[], str]
    summary: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("check", callable(self.check), "a function without arguments")
