"""The recipe keys with their meaning, range, default and source. Does not import torch.

The meaning is the comment beside the field of `Recipe`, so that it exists once.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import MISSING, dataclass
from typing import Any

from cnn_core.runs.recipe import CHOICES, LIMITS, Recipe, as_number

__all__ = ["Key", "recipe_keys"]

# Publications that define what a key does.
SOURCES = {
    "nesterov": "Sutskever et al. 2013",
    "beta2": "Kingma and Ba 2015, arXiv:1412.6980",
    "weight_decay": "Krogh and Hertz 1992; AdamW: Loshchilov and Hutter 2019, arXiv:1711.05101",
    "schedule": "cosine: Loshchilov and Hutter 2017, arXiv:1608.03983; one_cycle: Smith and Topin "
    "2018, arXiv:1708.07120",
    "warmup_epochs": "Goyal et al. 2017, arXiv:1706.02677",
    "loss": "dice: Milletari et al. 2016; focal: Lin et al. 2017; tversky: Salehi et al. 2017",
    "label_smoothing": "Szegedy et al. 2016, arXiv:1512.00567",
    "map_margin": "LeCun et al. 1998, Eq. 9",
    "border_weight": "Ronneberger et al. 2015, arXiv:1505.04597, Eq. 2",
    "border_sigma": "Ronneberger et al. 2015, arXiv:1505.04597, Eq. 2",
    "focal_gamma": "Lin et al. 2017, arXiv:1708.02002, Eq. 4",
    "tversky": "Salehi et al. 2017, arXiv:1706.05721, Eq. 3",
    "aux_weight": "Szegedy et al. 2015, arXiv:1409.4842, section 5",
    "clip_norm": "Pascanu et al. 2013, arXiv:1211.5063",
    "ema": "Polyak and Juditsky 1992",
    "head_epochs": "Howard and Gugger 2020, arXiv:2002.04688",
    "layer_decay": "Howard and Ruder 2018, arXiv:1801.06146",
    "policy": "Cubuk et al. 2020, arXiv:1909.13719; Mueller and Hutter 2021, arXiv:2103.10158",
    "crop": "Szegedy et al. 2015, arXiv:1409.4842, section 6",
    "elastic": "Simard et al. 2003; Ronneberger et al. 2015, section 3.1",
    "erase": "Zhong et al. 2020, arXiv:1708.04896",
    "cutout": "DeVries and Taylor 2017, arXiv:1708.04552",
    "mixup": "Zhang et al. 2018, arXiv:1710.09412",
    "cutmix": "Yun et al. 2019, arXiv:1905.04899",
    "precise_batchnorm": "Wu and Johnson 2021, arXiv:2105.07576, section 3",
    "tile": "Ronneberger et al. 2015, arXiv:1505.04597, Fig. 2",
}
KINDS = {"int": "integer", "float": "number", "bool": "true or false", "str": "text"}
_FIELD = re.compile(r"^    (\w+): [^#\n]*(?:# (.*))?$", re.M)


@dataclass(frozen=True)
class Key:
    """One recipe key; `default` is None for the two that have none, model and data."""

    key: str
    kind: str
    values: str
    default: Any
    meaning: str
    source: str


def recipe_keys() -> list[Key]:
    """Return all recipe keys, in the order of `Recipe`."""
    meanings = dict(_FIELD.findall(inspect.getsource(Recipe)))
    return [
        Key(
            key=field.name,
            kind=_kind(str(field.type)),
            values=_values(field.name),
            default=_default(field),
            meaning=meanings[field.name],
            source=SOURCES.get(field.name, ""),
        )
        for field in dataclasses.fields(Recipe)
    ]


def _kind(annotation: str) -> str:
    if annotation.startswith("tuple["):
        item = annotation.removeprefix("tuple[").partition(",")[0]
        return {"str": "list of texts"}.get(item, f"list of {KINDS[item]}s")
    return KINDS.get(annotation, "table")


def _values(key: str) -> str:
    """Return the choices or the range of a key, or ""."""
    if key in CHOICES:
        return ", ".join(choice or '""' for choice in CHOICES[key])
    if key not in LIMITS:
        return ""
    low, high = LIMITS[key]
    return f"{as_number(low)} to {as_number(high)}"


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return None if field.default_factory is MISSING else field.default_factory()
