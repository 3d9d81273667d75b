"""Read dataset.toml, the description of your own data that lies beside them.

The file gives what cannot be seen from the files: names of classes, ignored values, colours,
splits, ranges of values, normalisation, licence. Every key is optional, and a key that is not
known, or is for other data, is an error.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnn_core.data.dataset import Dataset
from cnn_core.data.pixels import Reading
from cnn_core.errors import UsageError
from cnn_core.specs import DatasetSpec
from cnn_core.text import counted, did_you_mean, printable

__all__ = [
    "Description",
    "FILE",
    "MaskValue",
    "as_value",
    "described",
    "read_description",
    "with_description",
]

FILE = "dataset.toml"
COLOUR = re.compile(r"#[0-9a-f]{6}")
MAX_VALUE = 65_535

# A grey level or palette index, or a colour as "#rrggbb".
MaskValue = int | str


@dataclass(frozen=True, kw_only=True)
class Description:
    """What dataset.toml says; an empty one if there is no such file.

    For masks, `labels` maps values to names of classes, `ignore` are the values that count in no
    loss and no metric, `background` is the name of a class, and `colours` maps names to "#rrggbb".
    Grey levels of `threshold` or more are class 1, lower ones class 0. `turn_masks` says whether
    masks were drawn on pixels as stored, before an EXIF orientation turns them. `images` and
    `masks` are folders, `splits` maps train, val and test to folders or to lists of names. For
    folders of classes, `labels` maps folders to names.

    `value_range` and `alpha_background` are those of `Reading`, for images.
    """

    path: Path = field(default_factory=Path)
    labels: Mapping[MaskValue, str] = field(default_factory=dict)
    ignore: tuple[MaskValue, ...] | None = None
    background: str = ""
    colours: Mapping[str, str] = field(default_factory=dict)
    threshold: int = 0
    turn_masks: bool | None = None
    images: str = ""
    masks: str = ""
    splits: Mapping[str, str] = field(default_factory=dict)
    value_range: tuple[float, ...] = ()
    alpha_background: str = "white"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    licence: str = ""
    citation: str = ""
    homepage: str = ""

    @property
    def in_colour(self) -> bool:
        """Whether values of masks are given as colours."""
        return any(isinstance(value, str) for value in (*self.labels, *(self.ignore or ())))

    @property
    def reading(self) -> Reading:
        """How images become 8 bits."""
        return Reading(self.value_range, self.alpha_background)


KEYS = tuple(f.name for f in dataclasses.fields(Description) if f.name != "path")
FOR_ALL = (
    *("labels", "value_range", "alpha_background", "mean", "std"),
    *("licence", "citation", "homepage"),
)
SPLITS = ("train", "val", "test")


def read_description(root: Path, task: str) -> Description:
    """Read dataset.toml in a folder; return an empty description if there is none.

    Raises:
        UsageError: the file is not TOML, or a key or a value is not as documented.
    """
    path = root / FILE
    if not path.is_file():
        return Description(path=path)
    try:
        content = tomllib.loads(path.read_bytes().decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from error
    values = {}
    for key, value in content.items():
        if key not in KEYS:
            known = f"keys: {', '.join(KEYS)}"
            nearest = did_you_mean(key, KEYS)
            raise UsageError(f"{path}: unknown key '{printable(key)}'{nearest}", known)
        if task != "segmentation" and key not in FOR_ALL:
            raise UsageError(f"{path}: '{key}' is for masks", f"keys: {', '.join(FOR_ALL)}")
        try:
            values[key] = _READERS[key](value, task)
        except ValueError as error:
            raise UsageError(f"{path}: {key}: {error}") from error
    found = Description(path=path, **values)
    _require_consistent(found)
    return found


def with_description(dataset: Dataset, found: Description) -> Dataset:
    """Return a dataset of folders of classes with the names and facts of its dataset.toml.

    Raises:
        UsageError: a label is for a folder that is no class, or two folders get one name.
    """
    classes = dataset.spec.classes
    if unknown := [str(label) for label in found.labels if label not in classes]:
        nearest = did_you_mean(unknown[0], classes)
        raise UsageError(f"{found.path}: labels: no folder '{printable(unknown[0])}'{nearest}")
    names = tuple(found.labels.get(folder, folder) for folder in classes)
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(
            f"{found.path}: labels: '{printable(twice[0])}' is the name of two folders",
            "move their images into one folder",
        )
    spec = dataclasses.replace(dataset.spec, classes=names)
    return dataclasses.replace(dataset, spec=described(spec, found))


def described(spec: DatasetSpec, found: Description) -> DatasetSpec:
    """Return a spec with the normalisation and the origin that a description gives.

    Raises:
        UsageError: there is not one mean or one std for each channel.
    """
    given = {
        key: getattr(found, key)
        for key in ("mean", "std", "licence", "citation", "homepage")
        if getattr(found, key)
    }
    for key in ("mean", "std"):
        if len(given.get(key, ())) not in (0, spec.image[0]):
            channels = counted(spec.image[0], "channel")
            numbers = f"{counted(len(given[key]), 'number')}, but images have {channels}"
            raise UsageError(f"{found.path}: {key}: {numbers}")
    return dataclasses.replace(spec, **given)


def as_value(text: str) -> MaskValue:
    """Return a value of masks, such as 7 or "#ff0000", from text.

    Raises:
        ValueError: it is neither a number from 0 to 65,535 nor a colour.
    """
    text = text.strip().lower()
    if COLOUR.fullmatch(text):
        return text
    if text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= MAX_VALUE:
        return int(text)
    raise ValueError(
        f"'{printable(text)}': expected a number from 0 to {MAX_VALUE:,}, or a colour '#rrggbb'"
    )


def _require_consistent(found: Description) -> None:
    """Raise UsageError for keys that contradict each other."""
    names = set(found.labels.values())
    for key, used in (("background", {found.background} - {""}), ("colours", set(found.colours))):
        if unknown := sorted(used - names) if names else []:
            nearest = did_you_mean(unknown[0], names)
            raise UsageError(
                f"{found.path}: {key}: no label is called '{printable(unknown[0])}'{nearest}"
            )
    if both := [value for value in found.ignore or () if value in found.labels]:
        raise UsageError(f"{found.path}: {both[0]} is in labels and in ignore")
    kinds = {type(value) for value in (*found.labels, *(found.ignore or ()))}
    if len(kinds) > 1:
        raise UsageError(f"{found.path}: some values are numbers and some are colours")
    if found.threshold and (found.in_colour or found.ignore):
        raise UsageError(
            f"{found.path}: threshold makes two classes: leave out ignore and colours"
        )
    if bool(found.mean) != bool(found.std):
        raise UsageError(f"{found.path}: mean and std go together")
    try:
        _ = found.reading
    except UsageError as error:
        raise UsageError(f"{found.path}: {error.message}", error.hint) from error


def _labels(value: object, task: str) -> dict[MaskValue, str]:
    """Return a table of names by value of masks, or by folder."""
    found: dict[MaskValue, str] = {}
    for key, name in _texts(value, task).items():
        label = as_value(key) if task == "segmentation" else key
        if label in found:
            raise ValueError(f"'{printable(key)}' is given twice")
        found[label] = name
    if not found:
        raise ValueError("expected at least one value with its name")
    if all(isinstance(label, int) for label in found):
        return dict(sorted(found.items(), key=lambda pair: int(pair[0])))
    return found


def _values(value: object, task: str) -> tuple[MaskValue, ...]:
    if not isinstance(value, list) or any(type(item) not in (int, str) for item in value):
        raise ValueError("expected a list of values, such as [255]")
    return tuple(as_value(str(item)) for item in value)


def _texts(value: Any, task: str) -> dict[str, str]:
    is_table = isinstance(value, dict)
    if not is_table or any(not isinstance(v, str) or not v.strip() for v in value.values()):
        raise ValueError("expected a table of texts")
    return {key: text.strip() for key, text in value.items()}


def _colours(value: object, task: str) -> dict[str, str]:
    found = {name: text.lower() for name, text in _texts(value, task).items()}
    if wrong := [text for text in found.values() if not COLOUR.fullmatch(text)]:
        raise ValueError(f"'{printable(wrong[0])}': expected '#rrggbb'")
    return found


def _splits(value: object, task: str) -> dict[str, str]:
    found = _texts(value, task)
    if unknown := [name for name in found if name not in SPLITS]:
        nearest = did_you_mean(unknown[0], SPLITS)
        raise ValueError(f"'{printable(unknown[0])}': one of {', '.join(SPLITS)}{nearest}")
    if "train" not in found:
        raise ValueError("no 'train'")
    return found


def _text(value: object, task: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r}: expected text")
    return value.strip()


def _numbers(value: Any, task: str) -> tuple[float, ...]:
    is_list = isinstance(value, list) and bool(value)
    if not is_list or any(type(v) not in (int, float) or not 0 <= v < 100 for v in value):
        raise ValueError(f"{value!r}: expected a list of numbers, one for each channel")
    return tuple(map(float, value))


def _bounds(value: object, task: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r}: expected two numbers, low and high")
    return tuple(value)  # `Reading` checks them


def _threshold(value: object, task: str) -> int:
    if type(value) is not int or not 1 <= value <= MAX_VALUE:
        raise ValueError(f"{value!r}: expected a grey level, such as 128")
    return value


def _switch(value: object, task: str) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{value!r}: expected true or false")
    return value


_READERS: dict[str, Any] = {
    "labels": _labels,
    "ignore": _values,
    "background": _text,
    "colours": _colours,
    "threshold": _threshold,
    "turn_masks": _switch,
    "images": _text,
    "masks": _text,
    "splits": _splits,
    "value_range": _bounds,
    "alpha_background": _text,
    "mean": _numbers,
    "std": _numbers,
    "licence": _text,
    "citation": _text,
    "homepage": _text,
}
