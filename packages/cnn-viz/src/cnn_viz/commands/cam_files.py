"""Class activation maps of image files: `cnnzoo cam`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor, nn

from cnn_core import registry
from cnn_core.data.images import read_image
from cnn_core.errors import UnknownNameError, UsageError
from cnn_core.files import write_bytes
from cnn_core.text import printable
from cnn_core.training.prediction import image_files, task_of, unlike
from cnn_core.training.trained import Source, Trained
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.attribution.cam import Cam, cams, cost, grad_cam
from cnn_viz.attribution.cam_perturbation import PERTURBING
from cnn_viz.drawing.image_grid import as_rgb
from cnn_viz.drawing.render import encoded
from cnn_viz.network.graph import strides
from cnn_viz.views.cam_methods import NAMES
from cnn_viz.views.gradcam import evidence_bar, overlay, require_places

__all__ = ["explain_files"]

NAMED = 20  # classes, in an error
TITLES = {"cam": "CAM", **NAMES, "score-cam": "Score-CAM", "ablation-cam": "Ablation-CAM"}


def explain_files(
    run: Trained | Source,
    images: tuple[Path, ...],
    out: Path,
    *,
    method: str = "grad-cam",
    stage: str = "",
    of: str = "",
    device: str = "auto",
    progress: Callable[[str], object] = lambda line: None,
) -> Iterator[Path]:
    """Write, for each image file, an image of what speaks for a class; yield their paths.

    By default at the stage that the architecture names, for the class that is predicted. Says
    through `progress` how often the network will run.

    Raises:
        UsageError: the run segments, or a file is not there; a name that is not known; a stage
            with maps of one value.
        CorruptError: a file is not an image that is let in.
    """
    trained = Trained.of(run, device=device)
    weights = trained.weights
    if task_of(weights) != "classification":
        raise UsageError(
            f"{trained.path}: '{weights.model}' does {task_of(weights)}",
            f"cnnzoo viz seg_gradcam {trained.path}",
        )
    if of and of not in weights.classes:
        raise UnknownNameError("class", of, weights.classes, _some(weights.classes))
    stage = stage or registry.get_spec(weights.model).cam_stage
    model, stride = trained.model, strides(weights).get(stage, 0)
    files = unlike(image_files(images))
    for number, path in enumerate(files):
        inputs = weights.preprocessing(
            read_image(path, weights.in_channels)[None].to(trained.device)
        )
        if not number:
            _require_stage(model, inputs, stage, weights.model)
            passes = cost(model, inputs, stage, method) * len(files)
            back = "" if method in PERTURBING else ", and as many back to the stage"
            times = "1 forward pass" if passes == 1 else f"{passes:,} forward passes of an image"
            progress(f"{method} at {stage}: {times}{back}")
        classes = [weights.classes.index(of)] if of else None
        cam = cams(model, inputs, stage, classes, method)[stage]
        out.mkdir(parents=True, exist_ok=True)
        target = out / f"{path.stem}.{method.replace('+', 'p')}.png"
        title = f"{TITLES[method]} at stage {stage}"
        with style.applied():
            picture = weights.preprocessing.denormalise(inputs)[0]
            figure = _beside(title, path, weights, picture, cam, stride)
            write_bytes(target, encoded(figure, "png", dpi=150))
        yield target


def _some(classes: tuple[str, ...]) -> str:
    """Return the names of classes, of many the first."""
    names = ", ".join(printable(name) for name in classes[:NAMED])
    more = len(classes) - NAMED
    return f"classes: {names}{f' and {more:,} more' if more > 0 else ''}"


def _require_stage(model: nn.Module, images: Tensor, stage: str, name: str) -> None:
    """Raise UsageError unless a stage is there and its maps have more than one value."""
    hint = f"stages: cnnzoo show {name}"
    known = [module for module, _ in model.named_modules() if module]
    if stage not in known:
        raise UnknownNameError("stage", stage, known, hint)
    require_places(grad_cam(model, images, stage), stage, hint)


def _beside(
    title: str, path: Path, weights: Weights, picture: Tensor, cam: Cam, stride: int
) -> Figure:
    """Draw an image beside the overlay, with the class and its probability."""
    plain = as_rgb(picture)
    said = int(cam.classes[0])
    share = style.confidence(float(cam.logits.softmax(1)[0, said]))
    height, width = cam.raw.shape[1:]
    empty = "; the map is empty: nothing speaks for the class" if bool(cam.empty[0]) else ""
    figure = style.figure(
        6.5,
        4.0,
        title,
        f"{style.short(path.name, 40)}, as the network sees it: "
        f"{style.short(weights.classes[said], 30)}, "
        f"{share}.\nThe map has {height} x {width} values; brightness is the share of its own "
        f"maximum{empty}.",
    )
    heat = cam.heat(stride=stride)[0].cpu().numpy()
    axes = figure.subplots(1, 2)
    for ax, image in zip(axes, (plain, overlay(plain, heat)), strict=True):
        ax.imshow(image)
        ax.set_axis_off()
    evidence_bar(figure, axes, 0.8)
    return figure
