"""Recipes: every hyper-parameter of a training run, checked, and as TOML. No torch here."""

from __future__ import annotations

import dataclasses
import math
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

__all__ = ["Recipe", "parse_setting", "parse_settings", "read_recipe", "recipes_in"]

CHOICES = {
    "optimizer": ("sgd", "adamw", "rmsprop"),
    "weight_decay_on": ("all", "weights"),
    "schedule": ("constant", "step", "multi_step", "cosine", "one_cycle", "polynomial"),
    "loss": ("cross_entropy", "map", "bce", "dice", "dice_ce", "focal", "tversky"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "memory_format": ("auto", "contiguous", "channels_last"),
    "policy": ("", "randaugment", "trivialaugment"),
    "pipeline": ("auto", "memory", "streaming"),
}
RESERVED = {"name", "num_classes", "in_channels", "weights", "naming"}  # of create_model
LIMITS = {  # field: (lowest, highest), both allowed
    "epochs": (1, 100_000),
    "batch_size": (1, 1_000_000),
    "seed": (0, 2**63 - 1),
    "topk": (0, 1_000_000),
    "lr": (0.0, 1e6),
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
    "tile": (0, 10_000),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every hyper-parameter of a run, defaults included.

    Raises:
        UsageError: a value of the wrong type, or out of its range; names key and value.
    """

    model: str
    data: str
    epochs: int = 10
    batch_size: int = 128
    seed: int = 0
    optimizer: str = "sgd"
    lr: float = 0.05  # the peak
    momentum: float = 0.9  # SGD's and RMSprop's; AdamW's beta1
    nesterov: bool = True  # SGD: look ahead (Sutskever et al. 2013); papers before it do not
    beta2: float = 0.999  # of squared gradients: AdamW's; RMSprop's alpha
    eps: float = 1e-8  # AdamW, RMSprop
    weight_decay: float = 0.0005
    weight_decay_on: str = "all"  # "weights": not on biases and normalisation
    schedule: str = "cosine"
    warmup_epochs: float = 0.0  # linear, from 0
    step_every: float = 0.0  # schedule = "step": the rate changes every so many epochs
    step_epochs: tuple[int, ...] = ()  # schedule = "multi_step": where the rate changes
    step_factors: tuple[float, ...] = (0.1,)  # factors of the rate: one for all, or one each
    rise: float = 0.3  # schedule = "one_cycle": the part of the training in which the rate rises
    power: float = 1.0  # schedule = "polynomial"
    final_lr: float = 0.0  # where cosine and polynomial end
    loss: str = "cross_entropy"
    label_smoothing: float = 0.0
    map_margin: float = 1.0  # loss = "map": the j of Eq. 9
    balance: bool = False  # segmentation: classes count in the loss by 1 / their pixels
    border_weight: float = 0.0  # extra weight of pixels between two objects: 10 in the paper
    border_sigma: float = 5.0  # pixels: how fast that weight falls with the distance to them
    focal_gamma: float = 2.0  # loss = "focal"
    tversky: tuple[float, ...] = (0.3, 0.7)  # loss = "tversky": costs of false and missed pixels
    aux_weight: float = 0.3  # weight of the losses of auxiliary heads, where there are any
    clip_norm: float = 0.0  # largest gradient norm; 0: not clipped
    accumulate: int = 1  # micro-batches per batch: less memory, the same step
    ema: float = 0.0  # decay of a moving average of the weights, which is then kept
    patience: int = 0  # epochs without a better score after which training stops; 0: never
    monitor: str = ""  # the number that chooses the weights to keep; "": val/top1, val/miou
    weights: str = ""  # a run or a file of weights to begin with
    freeze: tuple[str, ...] = ()  # stages that are not trained
    stage_lr: Mapping[str, float] = field(default_factory=dict)  # factors of the rate by stage
    shift: int = 0  # augmentation (cnn_core.data.augment): pixels, each direction
    flip: bool = False  # mirror left and right
    policy: str = ""  # randaugment, trivialaugment
    crop: tuple[float, ...] = ()  # smallest and largest fraction of the area
    rotate: float = 0.0  # degrees, both ways
    zoom: float = 1.0  # factor, both ways
    elastic: float = 0.0  # pixels: the deviation of a 3x3 grid's displacements
    jitter: tuple[float, ...] = ()  # brightness, contrast, saturation, hue
    erase: float = 0.0  # probability
    cutout: int = 0  # pixels
    mixup: float = 0.0  # alpha
    cutmix: float = 0.0  # alpha
    pipeline: str = "auto"  # memory, streaming; auto: by size
    on_bad_sample: str = "fail"  # or skip:N: up to N broken files may be left out
    validation: float = 0.1  # fraction of the training split that chooses the weights to keep
    topk: int = 0  # 0: 5, or the number of classes if that is smaller
    precision: str = "auto"  # auto: bf16 on GPUs that have it, else fp16; fp32 on the CPU
    memory_format: str = "auto"  # auto: channels_last where networks are faster with it
    compile: bool = False  # torch.compile: minutes before the first step, faster ones after it
    sync_batchnorm: bool = False  # several processes: statistics over the whole batch
    save_steps: int = 0  # a checkpoint every so many steps; 0: only at the end of an epoch
    keep: int = 2  # checkpoints to keep, besides the best epoch's
    image_size: int = 0  # pixels; 0: the size that the architecture was published for
    tile: int = 0  # segmentation: images keep their size and are cut into tiles of so many pixels
    mean: tuple[float, ...] = ()  # empty: the dataset's own
    std: tuple[float, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # of the architecture

    def __post_init__(self) -> None:
        for key, kind in get_type_hints(type(self)).items():
            object.__setattr__(self, key, _converted(key, getattr(self, key), kind))
        for key, choices in CHOICES.items():
            if (value := getattr(self, key)) not in choices:
                nearest = did_you_mean(value, choices)
                raise UsageError(
                    f"{key} = '{printable(value)}'{nearest}", f"one of {', '.join(choices)}"
                )
        for key, (low, high) in LIMITS.items():
            value = getattr(self, key)
            if not low <= value <= high:  # also NaN
                raise UsageError(f"{key} = {value}: expected {low:g} to {high:g}")
        for option in RESERVED & set(self.options):
            raise UsageError(f"options.{option}: not an option of an architecture")
        self._check_augmentation()
        self._check_schedule()
        self.bad_samples()
        for stage, factor in self.stage_lr.items():
            if type(factor) not in (int, float) or not 0 <= factor <= 1e6:
                raise UsageError(f"stage_lr.{printable(stage)} = {factor!r}: expected a factor")
        if self.accumulate > self.batch_size:
            raise UsageError(
                f"accumulate = {self.accumulate}: a batch of {self.batch_size} has no more images"
            )

    def _check_schedule(self) -> None:
        if self.schedule == "step" and not (self.step_every and len(self.step_factors) == 1):
            raise UsageError(
                "schedule = 'step' needs step_every, and one factor",
                'for given epochs: schedule = "multi_step", step_epochs = [30, 60]',
            )
        if len(self.step_factors) not in (1, len(self.step_epochs)):
            raise UsageError(
                f"step_factors has {len(self.step_factors)} numbers, "
                f"step_epochs {len(self.step_epochs)}",
                "give one factor, or one for each epoch",
            )

    def _check_augmentation(self) -> None:
        crop, jitter = self.crop, self.jitter
        if crop and not (len(crop) == 2 and 0 < crop[0] <= crop[1] <= 1):
            raise UsageError(f"crop = {list(crop)}: expected two parts of the area, as [0.08, 1]")
        if len(jitter) > 4 or not all(0 <= amount <= 1 for amount in jitter):
            raise UsageError(f"jitter = {list(jitter)}: expected up to four numbers from 0 to 1")
        if self.mixup and self.cutmix:
            raise UsageError(f"mixup = {self.mixup} and cutmix = {self.cutmix}: expected only one")
        if len(self.tversky) != 2 or not all(0 <= cost <= 1000 for cost in self.tversky):
            raise UsageError(f"tversky = {list(self.tversky)}: expected two costs, as [0.3, 0.7]")
        if self.tile and self.image_size:
            raise UsageError(
                f"tile = {self.tile} and image_size = {self.image_size}: expected only one",
                "with tiles images keep their own size",
            )
        if (self.mixup or self.cutmix) and self.loss != "cross_entropy":
            raise UsageError(f"loss = '{self.loss}' cannot take mixed images")

    def bad_samples(self) -> int:
        """Return how many unreadable files may be left out."""
        what, colon, count = self.on_bad_sample.partition(":")
        if self.on_bad_sample == "fail":
            return 0
        if (what, colon) == ("skip", ":") and count.isascii() and count.isdigit():
            return int(count[:9])
        shown = printable(self.on_bad_sample)
        raise UsageError(f"on_bad_sample = '{shown}'", "fail, or skip:N for up to N files")

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], source: str = "") -> Recipe:
        """Make a recipe from keys and values; `source` is named in errors.

        Raises:
            UsageError: an unknown or missing key, or a bad value.
        """
        prefix = f"{source}: " if source else ""
        for key in settings:
            require_key(key, source)
        for key in ("model", "data"):
            if key not in settings:
                raise UsageError(f"{prefix}the key '{key}' is missing")
        return cls(**settings)

    def to_toml(self) -> str:
        """Return every key and value as the table [recipe]."""
        import tomli_w

        return tomli_w.dumps({"recipe": dataclasses.asdict(self)})


def _converted(key: str, value: Any, kind: Any) -> Any:
    """Return the value as the field's type: ints pass for floats, lists for tuples."""
    name = str(kind)
    if kind is float and type(value) is int:
        return float(value)
    if "tuple" in name and isinstance(value, list | tuple):
        item = int if "int" in name else str if "str" in name else float
        return tuple(_converted(key, v, item) for v in value)
    if "Mapping" in name and isinstance(value, Mapping):
        return dict(value)
    if type(value) is kind and (kind is not float or math.isfinite(value)):
        if kind is str and not value.isascii() and re.search("[\ud800-\udfff]", value):
            raise UsageError(f"{key} = {value!r}: expected text that UTF-8 can hold")
        return value
    expected = {"int": "a whole number", "float": "a number", "bool": "true or false"}
    wanted = expected.get(getattr(kind, "__name__", ""), "text" if kind is str else "a list")
    raise UsageError(f"{key} = {value!r}: expected {wanted}")


def parse_setting(text: str) -> tuple[str, Any]:
    """Parse "key=value", the value as TOML if it is valid TOML, else as text.

    "options.width=0.5" gives {"width": 0.5} for the key "options".
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


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Parse several "key=value" into one table; values of the same inner table are merged.

    Raises:
        UsageError: an unknown key, or a table and a value for the same key.
    """
    chosen: dict[str, Any] = {}
    for key, value in map(parse_setting, texts):
        require_key(key)
        if isinstance(value, dict) and isinstance(chosen.get(key, {}), dict):
            chosen[key] = {**chosen.get(key, {}), **value}
        elif isinstance(chosen.get(key), dict):
            raise UsageError(f"{key} is set as a table and as {value!r}")
        else:
            chosen[key] = value
    return chosen


def require_key(key: str, source: str = "") -> None:
    """Raise UsageError unless a recipe has that key; suggests one."""
    known = [f.name for f in dataclasses.fields(Recipe)]
    if key in known:
        return
    nearest = did_you_mean(key, known)
    prefix = f"{source}: " if source else ""
    raise UsageError(
        f"{prefix}unknown recipe key '{printable(key)}'{nearest}",
        "" if nearest else f"keys: {', '.join(known)}",
    )


def read_recipe(path: Path) -> RecipeSpec:
    """Read a recipe file: the table [recipe], besides `summary`, `origin` and [claim].

    Raises:
        UsageError: not TOML, or not a recipe; names the file.
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
    """Return the recipes that a package ships in its folder recipes/, sorted by name."""
    folder = resources.files(package) / "recipes"
    if not folder.is_dir():
        return []
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return [
        _parse_recipe(f.name.removesuffix(".toml"), f.read_bytes(), f"{package}/recipes/{f.name}")
        for f in files
    ]
