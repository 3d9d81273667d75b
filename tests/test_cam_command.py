"""`cnnzoo cam`: pictures of image files, and what they will cost said first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import cnn_core
from cnn_core.data import load_dataset
from cnn_core.errors import UnknownNameError, UsageError
from cnn_core.training import Run
from cnn_viz.commands import cam

TWO = "2 forward passes of an image"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("cam") / "run"
    options = {"epochs": 1, "progress": False, "device": "cpu"}
    return cnn_core.train("lenet5_modern", "digits", out=out, **options)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"digit{number}.png" for number in range(2)]
    for path, image in zip(paths, load_dataset("digits").split("test").images, strict=False):
        Image.fromarray(image[0].numpy()).save(path)
    return paths


def invoke(*words: object) -> Result:
    return CliRunner().invoke(cam, [str(word) for word in words], catch_exceptions=True)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (
            "grad-cam",
            "grad-cam at c3: 2 forward passes of an image, and as many back to the stage",
        ),
        ("score-cam", "score-cam at c3: 34 forward passes of an image"),
        ("ablation-cam", "ablation-cam at c3: 36 forward passes of an image"),
    ],
)
def test_each_file_becomes_a_picture_and_the_cost_is_said_first(
    run, pictures, tmp_path, method, said
):
    done = invoke(run.path, *pictures, "--method", method, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert done.stderr == f"{said}\n"
    paths = [tmp_path / "out" / f"digit{number}.{method}.png" for number in range(2)]
    assert done.stdout == "".join(f"{path}\n" for path in paths)
    for path in paths:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=int)
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
        colourful = np.abs(pixels - pixels.mean(2, keepdims=True)).max(2) > 40
        left, right = np.array_split(colourful, 2, axis=1)
        assert right.sum() > 100 > left.sum()  # the picture is grey, the overlay is not


def test_stage_and_class_can_be_chosen(run, pictures, tmp_path):
    images = []
    for number, options in enumerate((["--class", "1"], ["--class", "2"], ["--stage", "c1"])):
        out = tmp_path / str(number)
        assert invoke(run.path, pictures[0], "--out", out, *options).exit_code == 0
        images.append((out / "digit0.grad-cam.png").read_bytes())
    assert len(set(images)) == 3
    assert not (run.path / "cam").exists()
    assert invoke(run.path, pictures[0]).exit_code == 0
    assert [path.name for path in (run.path / "cam").iterdir()] == ["digit0.grad-cam.png"]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (["--method", "gradcam"], UnknownNameError, "unknown method 'gradcam', did you mean"),
        (["--stage", "c33"], UnknownNameError, "unknown stage 'c33', did you mean 'c3'"),
        (["--class", "77"], UnknownNameError, "unknown class '77', did you mean '7'"),
        (["--method", "cam"], UsageError, "CAM needs global average pooling"),
    ],
)
def test_names_that_are_not_known_are_errors_and_write_nothing(
    run, pictures, tmp_path, options, kind, message
):
    done = invoke(run.path, pictures[0], "--out", tmp_path / "out", *options)
    assert isinstance(done.exception, kind)
    assert str(done.exception).startswith(message)
    assert not (tmp_path / "out").exists()


def test_help_has_an_example_and_every_method():
    from cnn_viz.cam import METHODS

    text = invoke("--help").output
    assert "cnnzoo cam runs/" in text
    assert all(method in " ".join(text.split()).replace("- ", "-") for method in METHODS)
