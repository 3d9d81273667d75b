"""`cnnzoo cam`: maps of image files, with the cost announced first."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cnn_core.create import build
from cnn_core.data import load_dataset
from cnn_core.data.images import read_image
from cnn_core.errors import CorruptError, UnknownNameError, UsageError
from cnn_core.training import predict
from cnn_core.weights.native import read_weights
from cnn_viz import grad_cam
from cnn_viz.commands import cli as commands
from cnn_viz.commands.cam_files import _class_hint, _side_by_side
from cnn_viz.commands.cli import cam

TWO = "2 single-image forward passes"


@pytest.fixture(scope="module")
def image_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
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
            f"grad-cam at c3: {TWO}, and as many backward passes to the stage",
        ),
        ("score-cam", "score-cam at c3: 34 single-image forward passes"),
        ("ablation-cam", "ablation-cam at c3: 36 single-image forward passes"),
    ],
)
def test_each_file_becomes_an_image_and_the_cost_is_printed_first(
    run, image_files, tmp_path, method, said
):
    done = invoke(run.path, *image_files, "--method", method, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    paths = [tmp_path / "out" / f"digit{number}.{method}.png" for number in range(2)]
    found = predict(run, image_files)
    lines = [
        f"{path}: {p.classes[0]}, {100 * p.probabilities[0]:.2f} %"
        for path, p in zip(paths, found, strict=True)
    ]
    assert done.stderr.splitlines() == [said, *lines]
    assert done.stdout == "".join(f"{path}\n" for path in paths)
    for path in paths:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=int)
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
        colourful = np.abs(pixels - pixels.mean(2, keepdims=True)).max(2) > 40
        left, right = np.array_split(colourful, 2, axis=1)
        assert right.sum() > 100 > left.sum()  # the image is grey, the overlay is not


def test_sub_folders_are_kept_and_no_map_replaces_another(run, image_files, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    places = ["a/x.png", "b/x.png", "b/x.1.png", "x.png"]
    for place in places:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image_files[0], folder / place)
    done = invoke(run.path, folder, "--out", out)
    assert done.exit_code == 0, done.output
    expected = [out / place.replace(".png", ".grad-cam.png") for place in places]
    assert sorted(done.stdout.splitlines()) == sorted(map(str, expected))
    assert all(path.is_file() for path in expected)
    shutil.copy(folder / "x.png", folder / "x.bmp")
    for clash in ([folder], [folder / "a/x.png", folder / "b/x.png"]):
        done = invoke(run.path, *clash, "--out", tmp_path / "none")
        assert isinstance(done.exception, UsageError)
        assert "have the same name, so their output files would collide" in str(done.exception)
    assert not (tmp_path / "none").exists()


def test_unreadable_files_are_named_and_left_out(run, image_files, tmp_path):
    for name, content in (("0.png", b""), ("2.png", b"no image")):
        (tmp_path / name).write_bytes(content)
    shutil.copy(image_files[0], tmp_path / "1.png")
    done = invoke(run.path, tmp_path, "--out", tmp_path / "out")
    assert isinstance(done.exception, CorruptError)
    assert str(done.exception) == "2 unreadable files left out"
    assert done.stdout == f"{tmp_path / 'out' / '1.grad-cam.png'}\n"
    assert sum(line.startswith("warning: ") for line in done.stderr.splitlines()) == 2


def test_stage_and_class_can_be_chosen(run, image_files, tmp_path):
    images = []
    for number, options in enumerate((["--class", "1"], ["--class", "2"], ["--stage", "c1"])):
        out = tmp_path / str(number)
        assert invoke(run.path, image_files[0], "--out", out, *options).exit_code == 0
        images.append((out / "digit0.grad-cam.png").read_bytes())
    assert len(set(images)) == 3
    (found,) = predict(run, image_files[0], top_k=10)
    for name, probability in [*zip(found.classes, found.probabilities, strict=True)][:3]:
        said = invoke(run.path, image_files[0], "--out", tmp_path / "x", "--class", name).stderr
        explained = f"; the map is for {name}, {100 * probability:.2f} %"
        assert said.rstrip().endswith("%" if name == found.classes[0] else explained)
        assert f": {found.classes[0]}, {100 * found.probabilities[0]:.2f} %" in said
    assert not (run.path / "cam").exists()
    assert invoke(run.path, image_files[0]).exit_code == 0
    assert [path.name for path in (run.path / "cam").iterdir()] == ["digit0.grad-cam.png"]


@pytest.mark.parametrize(
    ("options", "kind", "message", "helps"),
    [
        (
            ["--stage", "c33"],
            UnknownNameError,
            "unknown stage 'c33', did you mean 'c3'",
            "stages: cnnzoo show lenet5_modern",
        ),
        (
            ["--class", "77"],
            UnknownNameError,
            "unknown class '77', did you mean '7'",
            "classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
        ),
        (
            ["--method", "cam"],
            UsageError,
            "CAM needs global average pooling",
            "grad-cam, which needs neither",
        ),
        (
            ["--stage", "c5", "--method", "score-cam"],
            UsageError,
            "stage c5 has maps of 1 x 1 for images of 32 x 32",
            "stages: cnnzoo show lenet5_modern",
        ),
    ],
)
def test_names_that_are_not_known_are_errors_and_write_nothing(
    run, image_files, tmp_path, options, kind, message, helps
):
    done = invoke(run.path, image_files[0], "--out", tmp_path / "out", *options)
    assert isinstance(done.exception, kind)
    assert str(done.exception).startswith(message)
    assert done.exception.hint.endswith(helps)
    assert not (tmp_path / "out").exists()
    assert ("forward pass" in done.stderr) == (options == ["--method", "cam"])


def test_a_method_is_one_of_those_there_are(run, image_files):
    from cnn_viz.attribution.cam import METHODS

    assert commands.METHODS == METHODS
    done = invoke(run.path, image_files[0], "--method", "gradcam")
    assert done.exit_code == 2
    assert "'ablation-cam', did you mean 'grad-cam'" in " ".join(done.stderr.split())


def test_of_many_classes_an_error_names_some():
    names = tuple(f"c{number}" for number in range(1020))
    assert _class_hint(names).endswith(", c18, c19 and 1,000 more")


def test_the_image_has_a_scale_and_explains_brightness(run, image_files):
    weights = read_weights(run.path)
    inputs = weights.preprocessing(read_image(image_files[0], 1)[None])
    found = grad_cam(build(weights), inputs, "c3")
    figure = _side_by_side("", image_files[0], inputs, weights=weights, cam=found, stride=2)
    assert figure.axes[-1].get_ylabel() == "evidence for the class"
    assert "brightness is relative to its own maximum." in figure.get_supxlabel()


def test_help_has_an_example_and_every_method():
    from cnn_viz.attribution.cam import METHODS

    text = invoke("--help").output
    assert "cnnzoo cam runs/" in text
    assert all(method in " ".join(text.split()).replace("- ", "-") for method in METHODS)
