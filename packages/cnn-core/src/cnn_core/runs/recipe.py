"""Recipes: the validated hyperparameters of a run, read from and written to TOML.

This module does not import torch.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

from cnn_core.errors import UsageError
from cnn_core.specs import RecipeSpec
from cnn_core.text import did_you_mean, printable

__all__ = [
    "RESERVED",
    "Recipe",
    "parse_choices",
    "parse_setting",
    "parse_settings",
    "read_recipe",
    "recipes_in",
]

CHOICES = {
    "optimizer": ("sgd", "adamw", "rmsprop"),
    "weight_decay_on": ("all", "weights"),
    "schedule": ("constant", "step", "multi_step", "cosine", "one_cycle", "polynomial"),
    "loss": ("cross_entropy", "map", "bce", "dice", "dice_ce", "focal", "tversky"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "memory_format": ("auto", "contiguous", "channels_last"),
    "policy": ("", "randaugment", "trivialaugment"),
    "pipeline": ("auto", "memory", "streaming", "packed"),
    "fit": ("", "resize", "pad", "crop"),
    "interpolation": ("", "bilinear", "bicubic"),
    "sampler": ("", "balanced"),
    "threshold": ("", "none", "f1", "balanced_accuracy"),
    "alpha_background": ("", "white", "black", "drop"),
    "evaluate_on": ("test", "val"),
}
RESERVED = {  # arguments of create_model
    *("name", "num_classes", "in_channels", "weights", "naming", "new_head", "download"),
}
LIMITS = {  # field: (minimum, maximum), both inclusive
    "epochs": (1, 100_000),
    "batch_size": (1, 1_000_000),
    "seed": (0, 2**63 - 1),
    "split_seed": (-1, 2**63 - 1),
    "topk": (0, 1_000_000),
    "lr": (0.0, 1e6),
    "head_lr": (0.0, 1e6),
    "head_epochs": (0, 100_000),
    "layer_decay": (1e-3, 1.0),
    "momentum": (0.0, 0.9999),
    "beta2": (0.0, 0.999999),
    "eps": (0.0, 10.0),
    "weight_decay": (0.0, 10.0),
    "warmup_epochs": (0.0, 100_000.0),
    "step_every": (0.0, 100_000.0),
    "rise": (0.0, 1.0),
    "power": (0.0, 100.0),
    "final_lr": (0.0, 1e6),
    "ema": (0.0, 0.999999),
    "accumulate": (1, 1_000_000),
    "patience": (0, 100_000),
    "save_steps": (0, 2**62),
    "keep": (1, 1_000_000),
    "label_smoothing": (0.0, 0.999),
    "map_margin": (0.0, 1e6),
    "aux_weight": (0.0, 1e6),
    "focal_gamma": (0.0, 100.0),
    "border_weight": (0.0, 1e6),
    "border_sigma": (1e-3, 1e4),
    "clip_norm": (0.0, 1e9),
    "shift": (0, 1000),
    "rotate": (0.0, 180.0),
    "zoom": (1.0, 10.0),
    "elastic": (0.0, 1000.0),
    "erase": (0.0, 1.0),
    "cutout": (0, 10_000),
    "mixup": (0.0, 100.0),
    "cutmix": (0.0, 100.0),
    "validation": (0.0, 0.9),
    "image_size": (0, 10_000),
    "resize": (0, 10_000),
    "tile": (0, 10_000),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All hyperparameters of a run, including defaults.

    Raises:
        UsageError: a value has the wrong type or is out of range; the message names key and value.
    """

    model: str  # the network, one of cnnzoo list-models
    data: str  # a dataset of cnnzoo list-datasets, imagefolder:PATH, maskfolder:PATH or csv:FILE
    epochs: int = 10  # passes over the training images
    batch_size: int = 128  # images per optimizer step, over all processes
    seed: int = 0  # of the initial weights, the order of the images, and augmentation
    optimizer: str = "sgd"  # the update rule
    lr: float = 0.05  # peak learning rate
    momentum: float = 0.9  # of SGD and RMSprop; beta1 of AdamW
    nesterov: bool = True  # SGD: Nesterov momentum (Sutskever et al. 2013)
    beta2: float = 0.999  # decay of the squared-gradient average: beta2 of AdamW, alpha of RMSprop
    eps: float = 1e-8  # AdamW, RMSprop: added to the denominator
    weight_decay: float = 0.0005  # L2 penalty of SGD and RMSprop; decoupled for AdamW
    weight_decay_on: str = "all"  # "weights": exclude biases and normalisation parameters
    schedule: str = "cosine"  # learning rate over time, from lr to final_lr
    warmup_epochs: float = 0.0  # linear warm-up from 0
    step_every: float = 0.0  # schedule = "step": decay interval in epochs
    step_epochs: tuple[int, ...] = ()  # schedule = "multi_step": epochs at which to apply a factor
    step_factors: tuple[float, ...] = (0.1,)  # learning-rate multipliers: one, or one per epoch
    rise: float = 0.3  # schedule = "one_cycle": fraction of training with a rising learning rate
    power: float = 1.0  # schedule = "polynomial": the exponent
    final_lr: float = 0.0  # learning rate at the end of "cosine" and "polynomial"
    loss: str = "cross_entropy"  # map: classification only; dice*, tversky: segmentation only
    label_smoothing: float = 0.0  # share of the target spread over all classes
    map_margin: float = 1.0  # loss = "map": j in LeCun et al. (1998), Eq. 9
    balance: bool = False  # segmentation: weight classes by inverse pixel frequency
    class_weights: str | Mapping[str, float] = ""  # of images: "balanced", or by class name
    sampler: str = ""  # classification: "balanced" draws the same number from each class
    threshold: str = ""  # two classes or multilabel: chosen on validation; "": f1 if multilabel
    border_weight: float = 0.0  # extra weight of background between two objects; 10 in the paper
    border_sigma: float = 5.0  # decay length of the border weight, in pixels
    focal_gamma: float = 2.0  # loss = "focal": the exponent
    tversky: tuple[float, ...] = (0.3, 0.7)  # weights of false positives and false negatives
    aux_weight: float = 0.3  # loss weight of each auxiliary head
    clip_norm: float = 0.0  # maximum gradient norm; 0: no clipping
    accumulate: int = 1  # micro-batches per batch; equivalent except for batch-norm statistics
    ema: float = 0.0  # decay of the weight EMA; if > 0, the averaged weights are used and saved
    patience: int = 0  # stop after this many epochs without improvement; 0: never stop early
    monitor: str = ""  # metric that selects the best epoch; "": the task's, such as val/top1
    weights: str = ""  # initial weights: a run, a weights file, or a name such as "default"
    naming: str = ""  # library whose parameter names a weights file has; "": the best match
    weights_like: str = ""  # published weights whose preprocessing and classes a weights file has
    weights_digest: str = ""  # SHA-256 of the initial weights, recorded at the start; "": any
    freeze: tuple[str, ...] = ()  # stages to keep fixed
    freeze_batchnorm: bool = False  # keep running statistics; scales and shifts are still trained
    head_epochs: int = 0  # first train only the head: the tensors that depend on the classes
    head_lr: float = 0.0  # constant learning rate of the head epochs; 0: lr
    stage_lr: Mapping[str, float] = field(default_factory=dict)  # learning-rate factors by stage
    layer_decay: float = 1.0  # learning-rate factor, applied once per stage below the last
    # Augmentation, see cnn_core.data.augment.
    shift: int = 0  # maximum translation in pixels, in each direction
    flip: bool = False  # random horizontal flip
    policy: str = ""  # randaugment or trivialaugment
    crop: tuple[float, ...] = ()  # minimum and maximum fraction of the image area
    rotate: float = 0.0  # maximum angle in degrees, in both directions
    zoom: float = 1.0  # maximum factor, for enlarging and shrinking
    elastic: float = 0.0  # standard deviation of a 3x3 grid's displacements, in pixels
    jitter: tuple[float, ...] = ()  # strengths for brightness, contrast, saturation, hue
    erase: float = 0.0  # probability of random erasing
    cutout: int = 0  # side of the square in pixels; 0: no cutout
    mixup: float = 0.0  # alpha; 0: no mixup
    cutmix: float = 0.0  # alpha; 0: no CutMix
    pipeline: str = "auto"  # where images come from; auto: memory, or streaming if above 2 GiB
    on_bad_sample: str = "fail"  # "skip:N": skip up to N unreadable files
    validation: float = 0.1  # fraction of the training split held out for validation
    split_seed: int = -1  # chooses the validation images; -1: as the run in `weights` did, else 0
    fold: str = ""  # "2/5": validate on the second of 5 folds of train and val instead
    evaluate_on: str = "test"  # val: evaluate the saved weights on the validation images instead
    topk: int = 0  # k of top-k accuracy; 0: 5, or the number of classes if that is smaller
    precision: str = "auto"  # auto: bf16 or fp16 on CUDA, fp32 elsewhere
    memory_format: str = "auto"  # auto: channels_last for networks with batch norm
    compile: bool = False  # torch.compile: takes minutes at startup, makes steps faster
    sync_batchnorm: bool = False  # synchronise batch-norm statistics across processes
    precise_batchnorm: bool = False  # estimate batch-norm statistics anew after each epoch
    save_steps: int = 0  # checkpoint interval in steps; 0: only at the end of each epoch
    keep: int = 2  # number of checkpoints to keep, besides the best epoch's
    image_size: int = 0  # side in pixels; 0: of the initial weights, else the model's default
    fit: str = ""  # resize, pad or crop; "": crop if the initial weights do, else the dataset's
    resize: int = 0  # fit = "crop": shorter side; 0: of the initial weights, else 8/7 of the size
    interpolation: str = ""  # fit = "crop"; "": of the initial weights, else bilinear
    tile: int = 0  # segmentation: side of the tiles in pixels; 0: resize whole images instead
    mean: tuple[float, ...] = ()  # empty: from the initial weights, the dataset, or computed
    std: tuple[float, ...] = ()  # as for `mean`
    value_range: tuple[float, ...] = ()  # values that are black and white, for more than 8 bits
    alpha_background: str = ""  # behind transparent parts; "": white; "drop": keep hidden colours
    options: Mapping[str, Any] = field(default_factory=dict)  # of the model's constructor

    def __post_init__(self) -> None:
        for key, kind in get_type_hints(type(self)).items():
            object.__setattr__(self, key, _convert(key, getattr(self, key), kind))
        name, colon, path = self.data.partition(":")
        object.__setattr__(self, "data", f"{name}{colon}{os.path.expanduser(path)}")
        object.__setattr__(self, "weights", os.path.expanduser(self.weights))
        for key, choices in CHOICES.items():
            if (value := getattr(self, key)) not in choices:
                suggestion = did_you_mean(value, choices)
                listed = ", ".join(choice or '""' for choice in choices)
                raise UsageError(f"{key} = '{printable(value)}'{suggestion}", f"one of {listed}")
        for key, (low, high) in LIMITS.items():
            value = getattr(self, key)
            if not low <= value <= high:  # true for NaN
                raise UsageError(
                    f"{key} = {value}: expected {as_number(low)} to {as_number(high)}"
                )
        for option in RESERVED & set(self.options):
            raise UsageError(f"options.{option} is reserved: cnnzoo sets it itself")
        self._check_augmentation()
        self._check_class_weights()
        self._check_schedule()
        self._check_fine_tuning()
        self.bad_samples()
        self.part()
        for stage, factor in self.stage_lr.items():
            if type(factor) not in (int, float) or not 0 <= factor <= 1e6:
                raise UsageError(
                    f"stage_lr.{printable(stage)} = {factor!r}: "
                    "expected a number from 0 to 1,000,000"
                )
        if self.accumulate > self.batch_size:
            raise UsageError(
                f"accumulate = {self.accumulate} exceeds batch_size = {self.batch_size}"
            )

    def _check_class_weights(self) -> None:
        if isinstance(self.class_weights, str):
            if self.class_weights not in ("", "balanced"):
                raise UsageError(
                    f"class_weights = '{printable(self.class_weights)}'",
                    "balanced, or a weight for each class: --set class_weights.CLASS=5",
                )
            return
        for name, weight in self.class_weights.items():
            if type(weight) not in (int, float) or not 0 <= weight <= 1e6:
                raise UsageError(
                    f"class_weights.{printable(name)} = {weight!r}: expected a number from 0 to "
                    "1e6"
                )

    def _check_schedule(self) -> None:
        if self.schedule == "step" and not (self.step_every and len(self.step_factors) == 1):
            raise UsageError(
                "schedule = 'step' needs step_every > 0 and exactly one value in step_factors",
                'to change at given epochs: schedule = "multi_step", step_epochs = [30, 60]',
            )
        if len(self.step_factors) not in (1, len(self.step_epochs)):
            raise UsageError(
                f"step_factors has {len(self.step_factors)} values, but step_epochs has "
                f"{len(self.step_epochs)}",
                "give one factor, or one per epoch in step_epochs",
            )

    def _check_fine_tuning(self) -> None:
        if self.head_epochs > self.epochs:
            raise UsageError(f"head_epochs = {self.head_epochs} exceeds epochs = {self.epochs}")
        if self.head_lr and not self.head_epochs:
            raise UsageError(f"head_lr = {self.head_lr} needs head_epochs", "--set head_epochs=1")
        for key in ("naming", "weights_like", "weights_digest"):
            if (value := getattr(self, key)) and not self.weights:
                raise UsageError(f"{key} = '{printable(value)}' needs weights")
        if self.fit not in ("", "crop") and (self.resize or self.interpolation):
            key = "resize" if self.resize else "interpolation"
            raise UsageError(f"{key} needs fit = 'crop', found '{self.fit}'")

    def _check_augmentation(self) -> None:
        crop, jitter = self.crop, self.jitter
        if crop and not (len(crop) == 2 and 0 < crop[0] <= crop[1] <= 1):
            raise UsageError(
                f"crop = {list(crop)}: expected two fractions of the image area, such as [0.08, 1]"
            )
        if len(jitter) > 4 or not all(0 <= amount <= 1 for amount in jitter):
            raise UsageError(f"jitter = {list(jitter)}: expected up to four numbers from 0 to 1")
        bounds = self.value_range
        if bounds and not (len(bounds) == 2 and bounds[0] < bounds[1]):
            raise UsageError(f"value_range = {list(bounds)}: expected two numbers, low and high")
        if self.mixup and self.cutmix:
            raise UsageError(
                f"mixup = {self.mixup} and cutmix = {self.cutmix}: only one can be used"
            )
        if len(self.tversky) != 2 or not all(0 <= cost <= 1000 for cost in self.tversky):
            raise UsageError(
                f"tversky = {list(self.tversky)}: expected two weights, such as [0.3, 0.7]"
            )
        if self.tile and self.image_size:
            raise UsageError(
                f"tile = {self.tile} and image_size = {self.image_size}: only one can be used",
                "with tiles, images keep their original size",
            )
        if (self.mixup or self.cutmix) and self.loss != "cross_entropy":
            raise UsageError(f"loss = '{self.loss}' does not support mixup or CutMix")

    def bad_samples(self) -> int:
        """Return the number of unreadable files that may be skipped."""
        action, colon, count = self.on_bad_sample.partition(":")
        if self.on_bad_sample == "fail":
            return 0
        if (action, colon) == ("skip", ":") and count.isascii() and count.isdigit():
            return int(count[:9])
        text = printable(self.on_bad_sample)
        raise UsageError(f"on_bad_sample = '{text}'", "use fail, or skip:N for up to N files")

    def part(self) -> tuple[float, int, tuple[int, int]]:
        """Return what chooses the validation images: fraction, seed, (fold, folds) or (0, 0)."""
        seed = max(self.split_seed, 0)
        if not self.fold:
            return self.validation, seed, (0, 0)
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", self.fold)
        number, folds = map(int, match.groups()) if match else (0, 0)
        if not 1 <= number <= folds or folds < 2:
            raise UsageError(
                f"fold = '{printable(self.fold)}'", "such as 2/5, the second of five folds"
            )
        return self.validation, seed, (number, folds)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], source: str = "") -> Recipe:
        """Create a recipe from settings by key; `source` is named in error messages.

        Raises:
            UsageError: a key is unknown or missing, or a value is invalid.
        """
        prefix = f"{source}: " if source else ""
        for key in settings:
            require_key(key, source)
        for key in ("model", "data"):
            if key not in settings:
                raise UsageError(f"{prefix}the key '{key}' is missing")
        return cls(**settings)

    def to_toml(self) -> str:
        """Return all settings as TOML, in the table [recipe]."""
        import tomli_w

        return tomli_w.dumps({"recipe": dataclasses.asdict(self)})


def as_number(value: float) -> str:
    """Return a number as people write it: 1,000,000, 0.9999, 1e-05."""
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _convert(key: str, value: Any, kind: Any) -> Any:
    """Convert int to float and list to tuple; raise UsageError for any other mismatch."""
    name = str(kind)
    if kind is float and type(value) is int:
        return float(value)
    if "tuple" in name and isinstance(value, list | tuple):
        item = int if "int" in name else str if "str" in name else float
        return tuple(_convert(key, v, item) for v in value)
    if "Mapping" in name and isinstance(value, Mapping):
        return dict(value)
    if name.startswith("str |") and isinstance(value, str):
        return _convert(key, value, str)
    if type(value) is kind and (kind is not float or math.isfinite(value)):
        if kind is str and not value.isascii() and re.search("[\ud800-\udfff]", value):
            raise UsageError(f"{key} = {value!r}: expected text that can be encoded as UTF-8")
        return value
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    if "Mapping" in name:
        raise UsageError(f"{key} = {value!r}: expected a table", f"--set {key}.NAME=VALUE")
    raise UsageError(f"{key} = {value!r}: expected {names.get(kind, 'a list')}")


def parse_setting(text: str) -> tuple[str, Any]:
    """Parse "key=value", where the value is TOML or else plain text.

    "options.width=0.5" returns ("options", {"width": 0.5}).

    Raises:
        UsageError: there is no "=", or the key is empty.
    """
    key, separator, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not separator or not key:
        raise UsageError(f"'{printable(text)}': expected key=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        parsed = value
    table, dot, inner = key.partition(".")
    return (table, {inner: parsed}) if dot else (key, parsed)


def parse_choices(text: str) -> tuple[str, list[Any]]:
    """Parse "key=value,value"; "options.width=0.5,1" returns ("options.width", [0.5, 1]).

    A list among several is written in brackets: "crop=[0.5, 1],[0.8, 1]".

    Raises:
        UsageError: there is no "=", the key is empty or unknown, or a value occurs twice.
    """
    key, _, values = text.partition("=")
    require_key(parse_setting(text)[0])
    try:
        found = tomllib.loads(f"values = [{values}]")["values"]
    except (tomllib.TOMLDecodeError, RecursionError):
        found = [parse_setting(f"value={value}")[1] for value in values.split(",")]
    if any(value in found[:number] for number, value in enumerate(found)):
        raise UsageError(f"'{printable(text)}': a value is given twice")
    return key.strip(), found


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Parse several "key=value" settings into one dictionary, merging values of the same table.

    Raises:
        UsageError: a key is unknown, or is set both as a table and as a plain value.
    """
    settings: dict[str, Any] = {}
    for key, value in map(parse_setting, texts):
        require_key(key)
        previous = settings.get(key, value)
        if isinstance(value, dict) and isinstance(previous, dict):
            settings[key] = {**previous, **value}
        elif isinstance(value, dict) or isinstance(previous, dict):
            plain = previous if isinstance(value, dict) else value
            raise UsageError(f"{key} is set both as a table and as {plain!r}")
        else:
            settings[key] = value
    return settings


def require_key(key: str, source: str = "") -> None:
    """Raise UsageError, with a suggestion, if `key` is not a recipe key."""
    known = [f.name for f in dataclasses.fields(Recipe)]
    if key in known:
        return
    if key == "ignore":
        raise UsageError(
            "'ignore' is no recipe key: ignored values of masks belong to the data",
            "cnnzoo describe-data DATA --ignore VALUE writes it to dataset.toml",
        )
    suggestion, own = did_you_mean(key, known), printable(key)
    prefix = f"{source}: " if source else ""
    # Only the network knows its options, and importing it takes seconds.
    hint = f"an option of the network is set with options.{own}"
    raise UsageError(
        f"{prefix}unknown recipe key '{own}'{suggestion}",
        hint if suggestion else f"{hint}; all keys: cnnzoo list-keys",
    )


def read_recipe(path: Path) -> RecipeSpec:
    """Read a recipe file: a [recipe] table, and optional `summary`, `origin`, `default`, [claim].

    Raises:
        UsageError: the file is not TOML or not a valid recipe. The message names the file.
    """
    return _parse_recipe(path.name.removesuffix(".toml"), path.read_bytes(), str(path))


def _parse_recipe(name: str, data: bytes, source: str) -> RecipeSpec:
    try:
        content = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{source}: not TOML: {error}") from error
    settings = content.get("recipe")
    if not isinstance(settings, dict):
        raise UsageError(f"{source}: no table [recipe]")
    recipe = Recipe.from_settings(settings, source)
    return RecipeSpec(
        name=name,
        model=recipe.model,
        dataset=recipe.data,
        summary=str(content.get("summary", "")),
        origin=str(content.get("origin", "ours")),
        settings=settings,
        claim=content.get("claim", {}),
        default=bool(content.get("default", False)),
    )


def recipes_in(package: str) -> list[RecipeSpec]:
    """Return the recipes in a package's recipes/ folder, sorted by name."""
    folder = resources.files(package) / "recipes"
    if not folder.is_dir():
        return []
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return [
        _parse_recipe(f.name.removesuffix(".toml"), f.read_bytes(), f"{package}/recipes/{f.name}")
        for f in files
    ]
