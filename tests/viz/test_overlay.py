"""Several runs in one figure: the lines are the runs' metrics, and every run is identifiable."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from cnn_core.errors import UsageError
from cnn_core.training import Run
from cnn_viz import style
from cnn_viz.commands.compare_curves import MAX_NAME_LENGTH, overlay, write_overlay


@pytest.fixture(scope="module")
def real(digits_run: Run) -> Run:
    return digits_run


Maker = Callable[..., Run]


@pytest.fixture
def make(real, tmp_path) -> Maker:
    """Return a function that writes a run of made-up metrics; `settings` change its recipe."""

    def made(
        name: str, scores: list[float], metric: str = "top1", kept: int = 0, **settings
    ) -> Run:
        path = shutil.copytree(real.path, tmp_path / name)
        lines = [
            {
                "epoch": n,
                "train/loss": 2.0 - score,
                f"train/{metric}": score - 0.1,
                "val/loss": 2.5 - score,
                f"val/{metric}": score,
                "lr": settings.get("lr", 0.1) / n,
                "seconds": 1.0,
            }
            for n, score in enumerate(scores, 1)
        ]
        if kept:
            lines.append({"epoch": kept, "test/loss": 1.0, f"test/{metric}": 0.125})
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return replace(Run.open(path), recipe=replace(real.recipe, **settings))

    return made


def drawn(*runs: Run) -> Figure:
    with style.applied(), warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = overlay({run.path.name: run for run in runs})
        figure.draw_without_rendering()
    return figure


def lines(ax, label: str) -> list:
    return [line for line in ax.lines if line.get_label() == label]


def cells(figure: Figure) -> list[list[str]]:
    """Return the rows of the table, in the order of the runs."""
    texts = [text.get_text() for text in figure.axes[3].texts]
    return [texts[start : start + 6] for start in range(0, len(texts), 6)]


def test_every_line_is_its_runs_numbers_in_its_colour(make):
    runs = [make("a", [0.5, 0.75, 0.7], kept=2), make("b", [0.25, 0.5], kept=2, seed=1)]
    loss, score, rate, _ = drawn(*runs).axes
    for split in ("train", "val"):
        for ax, metric, scale in ((loss, "loss", 1), (score, "top1", 100)):
            found = lines(ax, split)
            assert len(found) == 2
            for number, (line, run) in enumerate(zip(found, runs, strict=True)):
                history = run.history()
                np.testing.assert_array_equal(line.get_xdata(), range(1, len(history) + 1))
                expected = [scale * each[f"{split}/{metric}"] for each in history]
                np.testing.assert_allclose(line.get_ydata(), expected)
                assert line.get_color() == style.RUNS[number]
    for line, run in zip(rate.lines, runs, strict=True):
        np.testing.assert_allclose(line.get_ydata(), [each["lr"] for each in run.history()])
    for ax in (loss, score):
        for val, train in zip(lines(ax, "val"), lines(ax, "train"), strict=True):
            assert val.get_linestyle() == "-"
            assert train.get_linestyle() == "--"
            assert train.get_linewidth() < val.get_linewidth()


def test_titles_and_units(make):
    figure = drawn(make("a", [0.5, 0.6]), make("b", [0.6, 0.7]), make("c", [0.6, 0.8]))
    assert figure.get_suptitle() == "Learning curves of 3 runs: lenet5_modern on digits"
    titles = [(ax.get_title(loc="left"), ax.get_ylabel()) for ax in figure.axes[:3]]
    assert titles == [
        ("Loss", "cross-entropy, nats"),
        ("Accuracy", "% of images"),
        ("Learning rate", "at the start of the epoch"),
    ]
    assert [ax.get_xlabel() for ax in figure.axes[:3]] == ["epoch"] * 3
    assert figure.get_supxlabel().count("\n") == 1
    (legend,) = [ax.get_legend() for ax in figure.axes if ax.get_legend()]
    assert [text.get_text() for text in legend.get_texts()] == ["validation", "training"]


def test_runs_of_two_models_are_not_titled_by_one(make):
    figure = drawn(make("a", [0.5]), make("b", [0.6], model="lenet5"))
    assert figure.get_suptitle() == "Learning curves of 2 runs"
    assert [row[1] for row in cells(figure)] == [
        "distinct settings",
        "model lenet5_modern",
        "model lenet5",
    ]


def test_the_kept_epoch_is_marked_once_there_is_one(make):
    figure = drawn(make("a", [0.5, 0.75, 0.7], kept=2), make("b", [0.5, 0.6]))
    for ax, value in zip(figure.axes[:2], (2.5 - 0.75, 75), strict=True):
        (mark,) = lines(ax, "saved")
        assert (mark.get_xdata(), mark.get_ydata()) == ([2], [value])
        assert mark.get_color() == style.RUNS[0]
    swatches = lines(figure.axes[3], "saved")
    assert swatches[0].get_marker() == mark.get_marker() != swatches[1].get_marker()


def test_the_table_says_what_was_reached_and_what_differs(make):
    figure = drawn(
        make("a", [0.5, 0.75, 0.99999], kept=3, epochs=3),
        make("b", [0.5], epochs=3, seed=7, options={"width": 0.5}),
        make("c", [0.5, 0.75], kept=2, epochs=2, lr=0.01),
    )
    none = "\N{EN DASH}"
    assert cells(figure) == [
        ["run", "distinct settings", "epochs", "saved", "val. top-1", "test top-1"],
        ["a", none, "3", "3", ">99.99 %", "12.50 %"],
        ["b", "seed 7, options.width 0.5", "1 of 3", none, none, none],
        ["c", "lr 0.01", "2", "2", "75.00 %", "12.50 %"],
    ]


def test_segmentation_is_measured_by_the_mean_iou(make):
    figure = drawn(make("a", [0.5, 0.75], "miou", kept=2), make("b", [0.5, 0.6], "miou"))
    score = figure.axes[1]
    assert score.get_title(loc="left") == "Mean IoU"
    np.testing.assert_allclose(lines(score, "val")[0].get_ydata(), [50, 75])
    assert cells(figure)[0][4:] == ["val. mIoU", "test mIoU"]
    assert cells(figure)[1][4:] == ["75.00 %", "12.50 %"]


def test_runs_of_two_tasks_are_not_drawn_together(make):
    with pytest.raises(UsageError, match="share no metric: 'a' by top1, 'b' by miou"):
        drawn(make("a", [0.5]), make("b", [0.5], "miou"))


def test_losses_of_different_kinds_are_labelled_as_such(make):
    figure = drawn(make("a", [0.5]), make("b", [0.6], label_smoothing=0.25))
    assert figure.axes[0].get_ylabel() == "different criteria"
    assert "The runs differ in label_smoothing, so compare their scores" in figure.get_supxlabel()


def test_lines_that_are_the_same_are_striped_so_that_each_is_seen(make):
    runs = [make("a", [0.5, 0.7]), make("b", [0.5, 0.7]), make("c", [0.5, 0.7]), make("d", [0.1])]
    loss, score, rate, _ = drawn(*runs).axes
    for found in (lines(loss, "val"), lines(score, "val"), rate.lines):
        patterns = [line._unscaled_dash_pattern for line in found]
        assert patterns[3] == (0, None)
        covered: set[int] = set()
        for offset, (on, off) in patterns[:3]:
            seen = {place for place in range(9) if (place + offset) % (on + off) < on}
            assert not covered & seen
            covered |= seen
        assert covered == set(range(9))


def test_a_run_of_one_epoch_is_a_dot(make):
    figure = drawn(make("a", [0.5]), make("b", [0.5, 0.6]))
    for ax in figure.axes[:2]:
        for label in ("train", "val"):
            one, two = lines(ax, label)
            assert (one.get_marker(), two.get_marker()) == (".", "None")


def test_rates_far_apart_are_drawn_in_decades_and_near_ones_are_not(make):
    near = drawn(make("a", [0.5, 0.6], lr=0.1), make("b", [0.5, 0.6], lr=0.2)).axes[2]
    far = drawn(make("c", [0.5, 0.6], lr=0.1), make("d", [0.5, 0.6], lr=0.001)).axes[2]
    assert (near.get_yscale(), far.get_yscale()) == ("linear", "log")
    assert far.get_ylabel() == "at the start of the epoch, 0 not shown"
    low, high = far.get_ylim()
    assert low < 0.0005
    assert high > 0.1
    assert "0.01" in [label.get_text() for label in far.get_yticklabels()]


def test_a_run_without_validation_is_drawn_by_its_training(make):
    run = make("a", [0.5, 0.75], kept=2)
    plain = [{k: v for k, v in line.items() if not k.startswith("val/")} for line in run.metrics()]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in plain))
    figure = drawn(run, make("b", [0.5, 0.75]))
    assert len(lines(figure.axes[1], "val")) == 1
    assert len(lines(figure.axes[1], "train")) == 2
    assert lines(figure.axes[1], "saved")[0].get_ydata() == [pytest.approx(65)]


def test_eight_runs_fit_and_nine_are_too_many(make):
    names = [f"lenet5_modern-digits-2026010{number}-120000" for number in range(8)]
    runs = [
        make(name, [0.1 * n, 0.11 * n], kept=2, seed=n, lr=0.01 * n, weight_decay=0.001 * n)
        for n, name in enumerate(names, 1)
    ]
    figure = drawn(*runs)
    table = figure.axes[3]
    rows = [table.texts[start : start + 6] for start in range(0, len(table.texts), 6)]
    boxes = [[text.get_window_extent() for text in row] for row in rows]
    for row in boxes:
        for left, right in itertools.pairwise(row):
            assert left.x1 < right.x0
    for above, below in itertools.pairwise(boxes):
        assert above[0].y0 > below[0].y1
    assert boxes[-1][0].y0 > figure._supxlabel.get_window_extent().y1
    assert boxes[0][0].y1 < figure.axes[0].xaxis.label.get_window_extent().y0
    assert [row[0].get_text() for row in rows[1:]] == names
    with pytest.raises(UsageError, match="9 runs: at most 8 have distinct colours"):
        overlay({str(n): runs[0] for n in range(9)})


def test_long_names_keep_both_ends_and_odd_ones_do_no_harm(make):
    long = "x" * 50 + "-lenet5-digits-20260101-120000"
    first, second = make(long, [0.5]), make("$\\frac{1}$ \u202e\x1b[31m", [0.5])
    names = [row[0] for row in cells(drawn(first, second))[1:]]
    assert len(names[0]) <= MAX_NAME_LENGTH
    assert names[0].startswith("xxx")
    assert names[0].endswith("-20260101-120000")
    assert names[1] == r"$\frac{1}$ \u202e\x1b[31m"


def test_before_the_first_epoch_it_says_how_to_go_on(make):
    with pytest.raises(
        UsageError, match="no epoch has finished yet\nresume with: cnnzoo train --resume"
    ):
        drawn(make("a", [0.5]), make("b", []))


# G. M. Machado et al. (2009), A physiologically-based model for simulation of color vision
# deficiency, severity 1: on linear RGB.
VISION = {
    "full": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear(colour: str) -> np.ndarray:
    c = np.array(to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b* of linear sRGB, D65."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x = np.array(to_xyz) @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
def test_the_colours_of_runs_are_told_apart(vision):
    seen = [lab(np.array(VISION[vision]) @ linear(colour)) for colour in style.RUNS]
    assert len(seen) == 8
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15


def test_the_colours_of_runs_are_seen_on_paper():
    paper = linear(style.PAPER) @ [0.2126, 0.7152, 0.0722]
    for colour in style.RUNS:
        luminance = linear(colour) @ [0.2126, 0.7152, 0.0722]
        assert (paper + 0.05) / (luminance + 0.05) > 2.2, colour


# The command


@pytest.mark.parametrize(
    ("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".PDF", b"%PDF")]
)
def test_the_command_writes_the_file_and_prints_its_path(
    cnnzoo, real, make, tmp_path, suffix, begins
):
    second, out = make("b", [0.5, 0.6]), tmp_path / "new" / f"curves{suffix}"
    done = cnnzoo("overlay", real.path, second.path, "--out", out)
    assert (done.code, done.out, done.err) == (0, f"{out}\n", "")
    written = out.read_bytes()
    assert written.startswith(begins)
    assert list(out.parent.iterdir()) == [out]
    write_overlay({"run": real, "b": second}, out)
    assert out.read_bytes() == written  # the same every time


def test_the_image_is_large_enough_to_read(real, make, tmp_path):
    write_overlay({"a": real, "b": make("b", [0.5, 0.6])}, tmp_path / "o.png")
    with Image.open(tmp_path / "o.png") as image:
        assert image.size[0] == 1575
        assert round(image.info["dpi"][0]) == 150
        colours = {c for _, c in image.convert("RGB").getcolors(1_000_000)}
    for colour in style.RUNS[:2]:
        assert tuple(round(255 * part) for part in to_rgb(colour)) in colours


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run --out o.png", "only one run is given"),
        ("run b", "Missing option '--out'"),
        ("run b --out o.gif", "o.gif: expected a file name that ends in .png, .svg or .pdf"),
    ],
)
def test_misuse_is_one_error(cnnzoo, real, make, tmp_path, arguments, message):
    make("b", [0.5])
    shutil.copytree(real.path, tmp_path / "run")
    done = cnnzoo("overlay", *arguments.split(), cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not list(tmp_path.glob("o.*"))


def test_drawing_needs_no_torch(real, make, tmp_path):
    code = (
        "import sys; from cnn_core.cli import main\n"
        "code = main(['overlay', *sys.argv[1:]])\n"
        "sys.exit(code or int('torch' in sys.modules))"
    )
    paths = [real.path, make("b", [0.5]).path]
    command = [sys.executable, "-c", code, *map(str, paths), "--out", str(tmp_path / "o.png")]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_help_has_an_example(cnnzoo):
    assert "cnnzoo overlay runs/" in cnnzoo("overlay", "--help").out
    readme = Path(__file__).parents[2] / "packages" / "cnn-viz" / "README.md"
    assert "cnnzoo overlay" in readme.read_text("utf-8")
