"""What the page needs to be explored: thumbnails on one sheet, and numbers of each image.

Arrays are little-endian and base64; images are WebP. All in one dictionary for JSON.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core import registry
from cnn_core.errors import ZooError
from cnn_core.plugins.discovery import describe, log
from cnn_core.specs import ModelSpec
from cnn_core.training import Predictions
from cnn_viz.attribution.cam import cams_by_method
from cnn_viz.attribution.cam_scale import box
from cnn_viz.network.graph import strides
from cnn_viz.results.embeddings import MIN_IMAGES, Embedding, evenly_spaced, neighbours_of
from cnn_viz.results.inputs import ViewInputs, round_robin_by_class
from cnn_viz.results.metrics import clustered, confusion_counts
from cnn_viz.views.cam_methods import NAMES
from cnn_viz.views.confusion import ORDERED
from cnn_viz.views.embedding import COLOURS, ON_DARK, words
from cnn_viz.views.features import stage_outputs
from cnn_viz.views.gradcam import require_spatial_maps

__all__ = ["INTERACTIVE_VIEWS", "NOTHING", "cam_stages", "explorer_data"]

MOST = 10_000  # images on the page: of more, so many, chosen evenly
SIDE, SMALLER, FEW = 32, 28, 1_000  # pixels of a thumbnail, at most: of few images, of more
CAM_SIDE = 112  # and of an image under a map
QUALITY = 50  # of WebP
WIDEST = 60  # classes of a confusion matrix that is a table
AROUND = 5  # neighbours of an image, where there are as many
LARGEST = 16  # positions along a map's side
EXPLAINED = 12  # images under maps, of which at most the half are mistakes
OFFERED = 10  # classes with maps on every image; of more, those that these images are or seem
INTERACTIVE_VIEWS = {  # views that the page has itself, to be explored
    "classification": ("curves", "confusion", "gradcam", "cam_methods", "embedding"),
    "segmentation": ("curves",),
}
NOTHING: dict[str, Any] = dict.fromkeys(("matrix", "order", "cams", "embedding", "explorer"))


def explorer_data(view_inputs: ViewInputs) -> dict[str, Any]:
    """Return what the templates and the script need to explore a run that classifies."""
    predictions = view_inputs.predictions
    counts = confusion_counts(predictions)
    order = clustered(counts) if len(counts) > ORDERED else list(range(len(counts)))
    maps = _spared("class activation maps", lambda: _cams(view_inputs))
    embedding = _spared("embedding", lambda: _embedding(view_inputs.embedded))
    data = {**_images(predictions), "cams": maps, "embedding": embedding}
    return {
        "matrix": _cells(counts, order) if len(order) <= WIDEST else [],
        "order": order,
        "cams": maps,
        "embedding": embedding,
        "explorer": data,
    }


def _spared(what: str, make: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return a part of the page, or None where the network's own code keeps it from being made."""
    try:
        return make()
    except Exception as error:
        cause = error.message if isinstance(error, ZooError) else describe(error)
        log.warning("the page has no %s: %s", what, cause)
        return None


def _images(predictions: Predictions) -> dict[str, Any]:
    """Return each image's thumbnail, classes and confidence: of up to `MOST` of the split."""
    count = len(predictions.targets)
    chosen = evenly_spaced(count, MOST)
    pictures, columns, tile = _sheet(predictions.images[chosen], SIDE if count <= FEW else SMALLER)
    confidence = predictions.probabilities[chosen].amax(1)
    return {
        "classes": list(predictions.classes),
        "indices": chosen.tolist() if count > MOST else [],  # none: as they come
        "sheet": pictures,
        "columns": columns,
        "tile": tile,
        "targets": _as_bytes(predictions.targets[chosen], "<u2"),
        "predicted": _as_bytes(predictions.predicted[chosen], "<u2"),
        "confidence": _as_bytes((confidence * 255).floor(), "u1"),
    }


def _sheet(images: Tensor, side: int, columns: int = 0) -> tuple[str, int, list[int]]:
    """Return images, uint8, N C h w, on one WebP sheet, how many in a row, and a tile's (h, w).

    Their longer side is at most `side` pixels. A square sheet, unless `columns` are given.
    """
    count, channels, height, width = images.shape
    scale = min(side / max(height, width), 1.0)
    size = [max(round(height * scale), 1), max(round(width * scale), 1)]
    if size != [height, width]:
        images = torch.cat(
            [
                F.interpolate(part.float(), size, mode="bilinear", antialias=True)
                for part in images.split(256)
            ]
        )
    if channels not in (1, 3):
        images = images.float().mean(1, keepdim=True)
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    whole = images.new_zeros(rows * columns, *images.shape[1:], dtype=torch.uint8)
    whole[:count] = images.round().clamp(0, 255).to(torch.uint8)
    tiled = whole.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2)  # rows h columns w C
    pixels = tiled.reshape(rows * size[0], columns * size[1], -1).numpy()
    return _webp(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels), columns, size


def _webp(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=QUALITY, method=4)
    return base64.b64encode(file.getvalue()).decode()


def _as_bytes(values: Any, kind: str) -> str:
    """Return numbers as base64 of little-endian `kind`: "<u2", "u1"."""
    return base64.b64encode(np.asarray(values).astype(kind).tobytes()).decode()


def _cells(counts: NDArray[Any], order: Sequence[int]) -> list[list[dict[str, Any]]]:
    """Return the rows of a confusion matrix, classes in this order, for the page's table."""
    sums = counts.sum(1)
    return [
        [
            {
                "true": t,
                "predicted": p,
                "images": int(counts[t, p]),
                "share": counts[t, p] / sums[t] if sums[t] else 0.0,
            }
            for p in order
        ]
        for t in order
    ]


def _cams(view_inputs: ViewInputs) -> dict[str, Any]:
    """Return maps of the most confident mistakes and of images that are right, by every class."""
    predictions, preprocessing = view_inputs.predictions, view_inputs.weights.preprocessing
    spec = registry.get_spec(view_inputs.run.recipe.model)
    chosen = _explained(predictions)
    images = preprocessing(predictions.images[chosen].to(view_inputs.device))
    pictures = (preprocessing.denormalise(images).cpu() * 255).round().to(torch.uint8)
    sheet, _, size = _sheet(pictures, CAM_SIDE, columns=len(chosen))
    scale = math.ceil(CAM_SIDE / max(size))
    columns = {"predicted": predictions.predicted[chosen], "target": predictions.targets[chosen]}
    offered = _offered(len(predictions.classes), *columns.values())
    stages = cam_stages(view_inputs.model, spec, images[:1])
    pixels, (height, width) = strides(view_inputs.weights), images.shape[-2:]
    maps: dict[str, dict[str, list[Tensor]]] = {
        name: {stage: [] for stage in stages} for name in NAMES.values()
    }
    for k in offered:
        found = cams_by_method(view_inputs.model, images, stages, [k] * len(chosen), tuple(NAMES))
        require_spatial_maps(found["grad-cam"][spec.cam_stage], spec.cam_stage)
        for method, name in NAMES.items():
            for stage in stages:
                maps[name][stage].append(found[method][stage].raw.cpu())
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    sure = predictions.probabilities[chosen].amax(1).tolist()
    return {
        "sheet": sheet,
        "size": size,
        "drawn": [scale * side for side in size],
        "items": [
            {"index": index, "confidence": share, **dict(zip(columns, row, strict=True))}
            for index, share, row in zip(chosen, sure, rows, strict=True)
        ],
        "offered": offered,
        "maps": {
            name: {stage: _sixteenths(torch.cat(raw)) for stage, raw in by_stage.items()}
            for name, by_stage in maps.items()
        },
        "shapes": {stage: list(raw[0].shape[1:]) for stage, raw in maps[name].items()},
        "boxes": {
            stage: _box(raw[0], (height, width), pixels.get(stage, 0), scale * size[1] / width)
            for stage, raw in maps[name].items()
        },
    }


def _box(raw: Tensor, size: tuple[int, int], stride: int, scale: float) -> list[float]:
    """Return left, top, width and height of where a map lies, on a canvas larger by `scale`."""
    top, left, height, width = box((raw.shape[1], raw.shape[2]), size, stride)
    return [scale * value for value in (left, top, width, height)]


def _offered(count: int, *found: Tensor) -> list[int]:
    """Return the classes whose maps the page has: all of few, otherwise those that occur."""
    return list(range(count)) if count <= OFFERED else torch.cat(found).unique().tolist()


def cam_stages(model: nn.Module, spec: ModelSpec, images: Tensor) -> list[str]:
    """Return the CAM's stage, and up to two before it whose maps are no larger than 16 x 16."""
    outputs, _ = stage_outputs(model, images, spec.stages)
    before = spec.stages[: spec.stages.index(spec.cam_stage)] if spec.cam_stage in outputs else ()
    fits = [
        stage
        for stage in before
        if stage in outputs
        and outputs[stage].ndim == 3
        and 1 < outputs[stage].shape[1] <= LARGEST
        and 1 < outputs[stage].shape[2] <= LARGEST
    ]
    return [spec.cam_stage, *fits[:-3:-1]]


def _embedding(embedded: Embedding) -> dict[str, Any] | None:
    """Return where each method places images, and each one's nearest in the features.

    Places are 16-bit shares of a square. None of a split that is too small.
    """
    if len(embedded.features) < MIN_IMAGES:
        return None
    methods = {}
    for method in embedded.methods_to_draw():
        found = embedded.placement(method)
        low, high = found.xy.min(0), found.xy.max(0)
        middle, span = (low + high) / 2, max(float((high - low).max()), 1e-9)
        shares = (0.94 * (found.xy - middle) / span + 0.5).clip(0, 1)  # with a margin
        methods[method] = {
            "placed": _as_bytes(found.indices, "<u2"),
            "xy": _as_bytes((shares * 65535).round(), "<u2"),
            "note": f"{len(found.xy):,} images: {words(found.quality)}",
        }
    near = min(AROUND, len(embedded.features) - 1)
    around = neighbours_of(np.asarray(embedded.features), near)
    return {
        "about": embedded.about,
        "methods": methods,
        "neighbours": _as_bytes(around, "<u2"),
        "around": near,
        "colours": [(colour, ON_DARK.get(colour, colour)) for colour in COLOURS],
    }


def _explained(predictions: Predictions) -> list[int]:
    """Return the images under maps: the most confident mistakes, then right ones."""
    hit = predictions.predicted == predictions.targets
    wrong, right = (~hit).nonzero().flatten(), hit.nonzero().flatten()
    confidence = predictions.probabilities.amax(1)[wrong]
    worst = wrong[confidence.argsort(descending=True, stable=True)][: EXPLAINED // 2].tolist()
    others = round_robin_by_class(predictions.targets[right].tolist(), EXPLAINED - len(worst))
    return worst + right[others].tolist()


def _sixteenths(raw: Tensor) -> str:
    """Return maps, N h w, in sixteenths of each one's own maximum: base64, two in a byte.

    The first is the lower half; every map begins with a byte of its own. Without evidence: 0.
    """
    maps = raw.relu().flatten(1)
    highest = maps.amax(1, keepdim=True)
    shares = (torch.where(highest > 0, maps / highest, 0.0) * 15).round().to(torch.uint8)
    pairs = F.pad(shares, (0, shares.shape[1] % 2)).unflatten(1, (-1, 2))
    return _as_bytes(pairs[..., 0] | pairs[..., 1] << 4, "u1")
