"""Sweeps over ranges: the same trials however often killed, at random and by optuna's TPE."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from cnn_core.errors import CorruptError, NumericalError, UsageError
from cnn_core.runs.ranges import Range, draw_cells, parse_range
from cnn_core.training import experiments, sweep
from cnn_core.training.tuning import FILE

TINY = ["--epochs", "1", "--batch-size", "512", "--device", "cpu", "--set", "save_steps=1"]


# Ranges


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=0.001..0.1:log", ("lr", Range(0.001, 0.1, log=True))),
        ("lr=1..2", ("lr", Range(1.0, 2.0))),
        ("weight_decay=1e-5..1e-2:log", ("weight_decay", Range(1e-5, 1e-2, log=True))),
        ("batch_size=16..128", ("batch_size", Range(16, 128))),
        ("options.width=0.5..1", ("options.width", Range(0.5, 1.0))),
        ("options.depth=2..5", ("options.depth", Range(2, 5))),
        ("rotate = -0..30", ("rotate", Range(0.0, 30.0))),
        ("lr=0.1", None),
        ("lr=0.1,0.2", None),
        ("weights=../other", None),
        ("weights=a..b", None),
    ],
)
def test_ranges_are_told_from_values(text, expected):
    found = parse_range(text)
    assert found == expected
    if found:
        assert found[1].whole == (found[0] in ("batch_size", "options.depth"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr=0.1..0.01", r"0\.1\.\.0\.01: expected a lower and a higher number"),
        ("lr=1..1", "expected a lower and a higher"),
        ("lr=0..1:log", "a logarithmic range is above 0"),
        ("lr=0..inf", "expected a lower and a higher"),
        ("lr=0.1..1:ln", "':ln' is no scale"),
        ("batch_size=1.5..3", "batch_size = .*: expected integers"),
        ("flip=0..1", "flip: a range is of numbers"),
        ("loss=0..1", "loss: a range is of numbers"),
        ("lx=0..1", "unknown recipe key 'lx'"),
    ],
)
def test_odd_ranges_are_refused(text, message):
    with pytest.raises(UsageError, match=message):
        parse_range(text)


def test_draws_are_even_in_the_range_or_in_its_logarithm():
    rng, count = random.Random(0), 4000
    for span in (
        Range(2.0, 4.0),
        Range(0.001, 1.0, log=True),
        Range(1, 4),
        Range(1, 99, log=True),
    ):
        draws = [span.draw(rng) for _ in range(count)]
        assert all(span.low <= value <= span.high for value in draws)
        assert all(isinstance(value, int) == span.whole for value in draws)
        assert all(float(f"{value:.4g}") == value for value in draws)
        if span == Range(1, 4):
            assert all(abs(n - count / 4) < 150 for n in Counter(draws).values())
        high = span.high + span.whole
        middle = math.sqrt(span.low * high) if span.log else (span.low + high) / 2
        assert abs(sum(value < middle for value in draws) / count - 0.5) < 0.05


def test_the_same_combinations_are_drawn_again_and_more_begin_with_them():
    grid = {"lr": Range(0.001, 0.1, log=True), "optimizer": ["sgd", "adamw"]}
    few, many = draw_cells(grid, 3, seed=7), draw_cells(grid, 9, seed=7)
    assert many[:3] == few
    assert draw_cells(grid, 3, seed=8) != few
    assert {cell["optimizer"] for cell in many} == {"sgd", "adamw"}
    whole = draw_cells({"epochs": Range(1, 3), "flip": [True, False]}, 6, seed=0)
    assert len({str(cell) for cell in whole}) == 6
    with pytest.raises(UsageError, match=r"samples = 7: there are only 6 combinations"):
        draw_cells({"epochs": Range(1, 3), "flip": [True, False]}, 7, seed=0)


# Sweeps


@pytest.fixture
def trained(monkeypatch):
    """Replace training: the score of a run is best at lr = 0.01; return the folders trained."""
    folders = []

    def train(*, recipe, out, **arguments):
        if out.exists():
            return experiments.Run.open(out)
        folders.append(out.name)
        if arguments.get("workers") == len(folders):
            raise KeyboardInterrupt  # a kill
        if recipe.lr > 0.5:
            raise NumericalError("loss is nan")
        run = experiments.Run.create(recipe, {}, out)
        score = -abs(math.log10(recipe.lr / 0.01)) - (recipe.optimizer == "sgd")
        run.write_metrics([{"epoch": 1, "val/loss": -score, "val/top1": score}])
        return run

    monkeypatch.setattr(experiments, "train", train)
    return folders


GRID = {"lr": Range(0.0001, 1.0, log=True), "optimizer": ["sgd", "adamw"]}


def searched(out, samples, search="tpe", **options):
    how = {"samples": samples, "search": search, "monitor": "val/loss", "seed": 3, **options}
    return sweep("lenet5_modern", "digits", GRID, out=out, **how)


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_a_search_that_was_killed_has_the_trials_of_one_that_was_not(tmp_path, trained, search):
    if search == "tpe":
        pytest.importorskip("optuna")
    whole = searched(tmp_path / "whole", 15, search, seeds=2)
    assert len(whole.cells) == 15
    names = list(trained)
    for kill in (1, 4, 5, 17):  # of the runs that are trained
        trained.clear()
        with pytest.raises(KeyboardInterrupt):
            searched(tmp_path / "b", 15, search, seeds=2, workers=kill)
    trained.clear()
    found = searched(tmp_path / "b", 15, search, seeds=2)
    assert [cell.settings for cell in found.cells] == [cell.settings for cell in whole.cells]
    assert found.chosen.settings == whole.chosen.settings
    finished = [name for name in names if (tmp_path / "b" / name).exists()]
    assert not {name for name in trained if trained.count(name) > 1}
    assert len(finished) == sum(len(cell.runs) for cell in whole.cells)
    trained.clear()
    more = searched(tmp_path / "b", 20, search, seeds=2)
    assert [cell.settings for cell in more.cells[:15]] == [cell.settings for cell in whole.cells]
    diverged = {name for name in names if not (tmp_path / "b" / name).exists()}
    assert not set(trained) & (set(names) - diverged)  # only what diverged is tried again


def test_tpe_learns_and_random_draws_do_not(tmp_path, trained):
    pytest.importorskip("optuna")
    found = {s: searched(tmp_path / s, 40, s) for s in ("random", "tpe")}
    late = {s: [c for c in f.cells[20:] if c.runs] for s, f in found.items()}
    means = {s: sum(c.metrics["val/loss"].mean for c in cs) / len(cs) for s, cs in late.items()}
    assert means["tpe"] < means["random"] - 0.3
    assert found["tpe"].score == "val/loss"
    best = min(c.metrics["val/loss"].mean for c in found["tpe"].cells if c.runs)
    assert found["tpe"].chosen.metrics["val/loss"].mean == best


def test_a_study_belongs_to_its_ranges_and_a_damaged_one_is_named(tmp_path, trained):
    pytest.importorskip("optuna")
    searched(tmp_path / "a", 2)
    for changed in ({"seeds": 2}, {"seed": 4}):
        with pytest.raises(UsageError, match="has a study of other values, ranges or seeds"):
            searched(tmp_path / "a", 2, **changed)
    file = tmp_path / "a" / FILE
    content = file.read_bytes()
    trained.clear()
    file.write_bytes(content + content[:40])  # cut off while it was written
    searched(tmp_path / "a", 3)
    assert len(trained) == 1
    file.write_bytes(b"nonsense\n" + content)
    with pytest.raises(CorruptError, match=r"\.study\.journal: not a readable study"):
        searched(tmp_path / "a", 3)
    file.unlink()
    trained.clear()
    searched(tmp_path / "a", 3)  # the runs are still there
    assert trained == []


def test_without_optuna_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError) as caught:
        searched(tmp_path / "a", 2)
    assert str(caught.value) == (
        "search = 'tpe': optuna is not installed\npip install \"cnn-core[tune]\""
    )
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--set lr=0.1..1", "lr is a range: how many samples of it?\n--samples 20"),
        ("--set lr=0.1..1 --random 2", "lr is a range: how many samples of it?"),
        ("--set lr=0.1..1 --random 2 --samples 2", "2 random combinations and 2 samples"),
        ("--set lr=0.1,1 --samples 2", "there is no range to draw from"),
        ("--set lr=0.1,1 --samples 2 --search random", "there is no range to draw from"),
        ("--samples 2 --search tpe", "there is no range to draw from"),
        ("--set lr=0.1,1 --search tpe", "search = 'tpe': how many samples?"),
        ("--set lr=0.1..1 --samples 0", "--samples"),
        ("--set lr=0.1..1 --samples 2 --search bayes", "--search"),
        ("--set seed=1..3 --samples 2", "seed has several values"),
        ("--set lr=0.1..1 --lr 0.1 --samples 2", "lr is set twice"),
        ("--set label_smoothing=0.1..7 --samples 2 --search tpe", "label_smoothing = 7"),
        ("--set epochs=1..3 --samples 9", "there are only 3 combinations"),
    ],
)
def test_what_does_not_apply_is_an_error_before_anything_is_trained(
    in_process, tmp_path, arguments, message
):
    out = tmp_path / "out"
    words = ["sweep", "lenet5", *arguments.split(), "--data", "digits", "--out", out]
    code, _, err = in_process(*words)
    assert code == 2
    assert message in err
    assert not out.exists()


@pytest.mark.usefixtures("one_thread")
def test_a_killed_command_goes_on_with_the_same_study(in_process, tmp_path):
    pytest.importorskip("optuna")
    command = ["sweep", "lenet5_modern", "--data", "digits", *TINY, "--json", "--search", "tpe"]
    command += ["--samples", "3", "--set", "lr=0.0001..0.1:log", "--out"]
    code, whole, err = in_process(*command, tmp_path / "whole")
    assert code == 0, err
    out = tmp_path / "killed"
    child = subprocess.Popen(
        [sys.executable, "-m", "cnn_core", *map(str, (*command, out))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while len(list(out.glob("*/recipe.toml"))) < 2:
        assert child.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    code, text, err = in_process(*command, out)
    assert code == 0, err
    assert json.loads(text.replace(str(out), "D")) == json.loads(
        whole.replace(str(tmp_path / "whole"), "D")
    )
    assert len(json.loads(text)["cells"]) == 3
