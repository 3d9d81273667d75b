"""Draw class activation maps of image files: `cnnzoo cam`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnn_core import registry
from cnn_core.data.images import read_image
from cnn_core.errors import CorruptError, UnknownNameError, UsageError, ZooError
from cnn_core.files import write_bytes
from cnn_core.runs.destinations import require_writable
from cnn_core.text import printable
from cnn_core.training.exported import require_layers
from cnn_core.training.image_stream import named_files, require_distinct_names
from cnn_core.training.prediction import task_of
from cnn_core.training.trained import Source, Trained
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.attribution.cam import Cam, cams, cost, grad_cam
from cnn_viz.attribution.cam_perturbation import PERTURBATION_METHODS
from cnn_viz.drawing.image_grid import as_rgb
from cnn_viz.drawing.render import encode_figure
from cnn_viz.network.graph import strides
from cnn_viz.views.cam_methods import NAMES
from cnn_viz.views.gradcam import evidence_colorbar, overlay, require_spatial_maps

__all__ = ["explain_files"]

CLASSES_IN_ERROR = 20  # at most this many classes are listed in an error
TITLES = {"cam": "CAM", **NAMES, "score-cam": "Score-CAM", "ablation-cam": "Ablation-CAM"}


def explain_files(
    run: Trained | Source,
    images: tuple[Path, ...],
    out: Path,
    *,
    method: str = "grad-cam",
    stage: str = "",
    class_name: str = "",
    device: str = "auto",
    progress: Callable[[str], object] = lambda line: None,
    on_error: Callable[[ZooError], object] | None = None,
) -> Iterator[Path]:
    """Write a PNG of each image file with the evidence for a class; yield the paths.

    `images` are files and folders. Images in sub-folders get their PNGs in sub-folders of `out`.
    The default stage is the architecture's `cam_stage`, and the default class the predicted one.
    `progress` is called with a line for the user: before the first map with the number of passes,
    and for each map with the predicted class and its probability. `on_error` is
    called with the error of each unreadable file, which is then skipped.

    Raises:
        UnknownNameError: the class, the stage or the method is unknown; suggests names.
        UsageError: several classes have the given name, the network is not a classifier or is an
            exported file, a file is missing, two files would have the same PNG, or the maps of the
            stage have only one value.
        CorruptError: a file is not a supported image, and there is no `on_error`.
    """
    trained = Trained.of(run, device=device)
    weights = trained.weights
    _require_classifier(trained)
    chosen = _class_index(weights.classes, class_name) if class_name else None
    stage = stage or registry.get_spec(weights.model).cam_stage
    model, stride = trained.model, strides(weights).get(stage, 0)
    require_writable(out)
    names = dict(named_files(images))
    files = require_distinct_names(names, names)
    readable = _readable(files, weights, trained.device, on_error)
    for index, (path, inputs) in enumerate(readable):
        # The size of the maps depends on the input, so check the stage on the first image.
        if not index:
            _require_stage(model, inputs, stage, weights.model)
            pass_count = cost(model, inputs, stage, method) * len(files)
            progress(f"{method} at {stage}: {_passes_text(pass_count, method)}")
        classes = None if chosen is None else [chosen]
        cam = cams(model, inputs, stage, classes, method)[stage]
        with style.applied():
            title = f"{TITLES[method]} at stage {stage}: {weights.model}"
            figure = _side_by_side(title, path, inputs, weights=weights, cam=cam, stride=stride)
            content = encode_figure(figure, "png", dpi=150)
        # A "+" would need quoting in URLs.
        # Not `with_suffix`, which would replace a part of a name with dots, such as "a.b".
        destination = out / f"{names[path]}.{method.replace('+', 'p')}.png"
        destination.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(destination, content)
        progress(f"{destination}: {_in_words(cam, weights.classes)}")
        yield destination


def _in_words(cam: Cam, classes: tuple[str, ...]) -> str:
    """Return the predicted class with its probability, and the explained class if it differs."""
    probabilities = cam.logits.softmax(1)[0]
    explained, predicted = int(cam.classes[0]), int(probabilities.argmax())
    words = f"{classes[predicted]}, {100 * float(probabilities[predicted]):.2f} %"
    if explained == predicted:
        return words
    return (
        f"{words}; the map is for {classes[explained]}, "
        f"{100 * float(probabilities[explained]):.2f} %"
    )


def _readable(
    files: Iterable[Path],
    weights: Weights,
    device: torch.device,
    on_error: Callable[[ZooError], object] | None,
) -> Iterator[tuple[Path, Tensor]]:
    """Yield the readable files with the network's input, 1 C H W."""
    for path in files:
        try:
            pixels = read_image(path, weights.in_channels, weights.preprocessing.reading)
        except CorruptError as error:
            if on_error is None:
                raise
            on_error(error)
        else:
            yield path, weights.preprocessing(pixels[None].to(device))


def _require_classifier(trained: Trained) -> None:
    """Raise UsageError unless the network is a classifier with layers to look into."""
    weights = trained.weights
    require_layers(weights)
    if (task := task_of(weights)) == "segmentation":
        raise UsageError(
            f"{trained.path}: '{weights.model}' does {task}",
            f"cnnzoo viz seg_gradcam {trained.path}",
        )


def _class_index(classes: tuple[str, ...], name: str) -> int:
    """Return the number of a class that is given by name or, if no class has that name, by number.

    Raises:
        UnknownNameError: there is no such class; suggests names.
        UsageError: several classes have this name, as two of ImageNet's are called "crane".
    """
    numbers = [number for number, own in enumerate(classes) if own == name]
    if len(numbers) > 1:
        listed = " and ".join(map(str, numbers))
        raise UsageError(
            f"classes {listed} are both called '{printable(name)}'",
            f"give the number: --class {numbers[0]}",
        )
    if numbers:
        return numbers[0]
    # Check the length before int(), which raises an error for thousands of digits.
    if name.isascii() and name.isdecimal() and len(name) < 7 and int(name) < len(classes):
        return int(name)
    raise UnknownNameError("class", name, classes, _class_hint(classes))


def _passes_text(pass_count: int, method: str) -> str:
    """Describe the number of passes; only gradient methods need backward passes."""
    backward = (
        "" if method in PERTURBATION_METHODS else ", and as many backward passes to the stage"
    )
    forward = (
        "1 forward pass" if pass_count == 1 else f"{pass_count:,} single-image forward passes"
    )
    return f"{forward}{backward}"


def _class_hint(classes: tuple[str, ...]) -> str:
    """List the classes for an error message; only the first ones if there are many."""
    names = ", ".join(printable(name) for name in classes[:CLASSES_IN_ERROR])
    more = len(classes) - CLASSES_IN_ERROR
    return f"classes: {names}{f' and {more:,} more' if more > 0 else ''}"


def _require_stage(model: nn.Module, images: Tensor, stage: str, name: str) -> None:
    """Raise UsageError unless the stage exists and its maps have more than one position."""
    hint = f"stages: cnnzoo show {name}"
    module_names = [module for module, _ in model.named_modules() if module]
    if stage not in module_names:
        raise UnknownNameError("stage", stage, module_names, hint)
    require_spatial_maps(grad_cam(model, images, stage), stage, hint)


def _side_by_side(
    title: str, path: Path, inputs: Tensor, *, weights: Weights, cam: Cam, stride: int
) -> Figure:
    """Draw an image beside its overlay; the caption has the class and its probability."""
    rgb = as_rgb(weights.preprocessing.denormalise(inputs)[0])
    class_index = int(cam.classes[0])
    probability = style.confidence(float(cam.logits.softmax(1)[0, class_index]))
    height, width = cam.raw.shape[1:]
    empty = "; the map is empty: no evidence for the class" if bool(cam.empty[0]) else ""
    figure = style.figure(
        6.5,
        4.0,
        title,
        f"{style.short(path.name, 40)}, as the network sees it: "
        f"{style.short(weights.classes[class_index], 30)}, "
        f"{probability}.\nThe map has {height} x {width} values; brightness is relative to its "
        f"own maximum{empty}.",
    )
    heat = cam.heat(stride=stride)[0].cpu().numpy()
    axes = figure.subplots(1, 2)
    for ax, panel in zip(axes, (rgb, overlay(rgb, heat)), strict=True):
        ax.imshow(panel)
        ax.set_axis_off()
    evidence_colorbar(figure, axes, 0.8)
    return figure
