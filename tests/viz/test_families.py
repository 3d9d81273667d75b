"""Every view draws a network of every family, or is skipped with a reason."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor, nn

import cnn_core
from cnn_core import registry
from cnn_core.errors import UsageError
from cnn_viz import style
from cnn_viz.attribution.faithfulness import randomisation
from cnn_viz.results.inputs import ViewInputs

CLASSES = ("disc", "square", "猫", "مرحبا")
COARSE = "has maps of 1 x 1"  # of networks for 224 pixels, at 32
# The views that are skipped, with a part of the reason.
TABLE = {
    "lenet5_modern": {},
    "alexnet_small": {},
    "vgg11_cifar": {},
    "googlenet_bn": dict.fromkeys(("gradcam", "cam_methods", "faithfulness"), COARSE),
    "resnet20_cifar": {},
    "densenet40_cifar": {},
    "mobilenet_v1": dict.fromkeys(("gradcam", "cam_methods", "faithfulness"), COARSE),
    "efficientnet_lite0": dict.fromkeys(("gradcam", "cam_methods", "faithfulness"), COARSE),
    "unet": {},
    "unet_same": {},
}
OPTIONS = {
    "googlenet_bn": {"aux": False},
    "mobilenet_v1": {"width": 0.25},
    "unet": {"width": 2},
    "unet_same": {"width": 4, "depth": 2},
}
SLOWER = ("alexnet_small", "vgg11_cifar", "densenet40_cifar")
EACH = [
    pytest.param(model, marks=[pytest.mark.slow] * (model in SLOWER), id=model) for model in TABLE
]
SIZES = {"alexnet_small": 16, "resnet20_cifar": 16, "densenet40_cifar": 16, "unet": 204}


def shapes(size: int, kinds: list[int], seed: int) -> tuple[Image.Image, Image.Image]:
    """Return a colour image of shapes on noise, 1.5 times as high as wide, and its mask."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 90, (3 * size // 2, size, 3), dtype=np.uint8)
    picture, mask = Image.fromarray(noise), Image.new("L", (size, 3 * size // 2))
    for kind in kinds:
        x, y = (int(n) for n in rng.integers(0, size // 2, 2))
        box = (x, y, x + size // 2, y + size // 2)
        colour = tuple(int(n) for n in rng.integers(120, 256, 3))
        for canvas, fill in ((picture, colour), (mask, kind + 1)):
            pen = ImageDraw.Draw(canvas)
            (pen.ellipse if kind % 2 == 0 else pen.rectangle)(box, fill=fill)
    return picture, mask


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    for number, name in enumerate(CLASSES):
        (root / "pictures" / name).mkdir(parents=True)
        for n in range(12):
            shapes(32, [number], 100 * number + n)[0].save(root / "pictures" / name / f"{n}.png")
    for part in ("images", "masks"):
        (root / "scenes" / part).mkdir(parents=True)
    for n in range(20):
        for part, image in zip(("images", "masks"), shapes(64, [0, 1], n), strict=True):
            image.save(root / "scenes" / part / f"{n}.png")
    return {
        "classification": root / "pictures",
        "segmentation": root / "scenes",
    }


def of_two_stages(
    model: nn.Module, stages: Sequence[str], *rest: Any, **options: Any
) -> dict[str, Tensor]:
    """Shuffle only two stages: shuffling millions of weights many times would be slow."""
    return randomisation(model, stages[-2:], *rest, **options)


def test_the_table_has_every_family_there_is():
    families = {entry.spec.family for _, entry in registry.models()}
    assert {cnn_core.get_spec(name).family for name in TABLE} == families


@pytest.mark.parametrize("model", EACH)
def test_every_view_is_drawn_or_says_why_not(model, folders, tmp_path, monkeypatch):
    monkeypatch.setattr("cnn_viz.views.activation_maximisation.MAX_STEPS", 2)  # steps
    monkeypatch.setattr("cnn_viz.views.faithfulness.randomisation", of_two_stages)
    task = cnn_core.get_spec(model).task
    data = f"{'image' if task == 'classification' else 'mask'}folder:{folders[task]}"
    settings = {"epochs": 1, "batch_size": 16, "image_size": SIZES.get(model, 32), "lr": 0.01}
    run = cnn_core.train(
        model,
        data,
        out=tmp_path / "run",
        progress=False,
        device="cpu",
        options=OPTIONS.get(model, {}),
        **settings,
    )
    view_inputs, missing = ViewInputs(run, device="cpu"), {}
    for name, entry in registry.views():
        if task not in entry.spec.tasks:
            continue
        try:
            with style.applied(), warnings.catch_warnings():
                render = registry.resolve(entry, "render")
                assert isinstance(render(**view_inputs.select(entry.spec.needs)), Figure)
        except UsageError as error:
            missing[name] = error.message
    assert missing.keys() == TABLE[model].keys()
    for name, reason in TABLE[model].items():
        assert reason in missing[name]
        assert "\n" not in missing[name]
