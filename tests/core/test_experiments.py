"""Cross-validation and sweeps: the right images, the right choice, however often killed."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time

import pytest
import torch

from cnn_core import load_dataset
from cnn_core.errors import NumericalError, UsageError
from cnn_core.runs.recipe import parse_choices
from cnn_core.training import cross_validate, resumption, sweep
from cnn_core.training.summary import Summary

TINY = ["--epochs", "1", "--batch-size", "512", "--set", "save_steps=1", "--device", "cpu"]
QUICK = {"epochs": 1, "batch_size": 512, "device": "cpu", "progress": False}


@pytest.fixture
def crash(monkeypatch):
    """Return a function: let the process fail after so many checkpoints."""
    save = resumption.save

    def after(count):
        left = iter(range(count))

        def saved(*arguments):
            save(*arguments)
            if next(left, None) is None:
                raise RuntimeError("crash")

        monkeypatch.setattr(resumption, "save", saved)

    yield after
    monkeypatch.undo()


def killed(*command, when):
    """Run a command in a process of its own, and kill it as soon as a file is there."""
    child = subprocess.Popen(
        [sys.executable, "-m", "cnn_core", *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not when.exists():
        assert child.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


def facts(text, folder):
    """Return the JSON of a command without the folder."""
    return json.loads(text.replace(str(folder), "DIR"))


@pytest.mark.usefixtures("one_thread")
def test_five_folds_killed_twice_have_the_table_of_five_folds(in_process, tmp_path, crash):
    command = ["cross-validate", "lenet5_modern", "--data", "digits", *TINY, "--json", "--out"]
    _, whole, _ = in_process(*command, tmp_path / "whole")
    out = tmp_path / "killed"
    killed(*command, out, when=out / "fold-2" / "recipe.toml")
    crash(4)
    code, text, _ = in_process(*command, out)
    assert (code, text) == (1, "")
    crash(1000)
    code, text, _ = in_process(*command, out)
    assert code == 0
    assert facts(text, out) == facts(whole, tmp_path / "whole")

    found = json.loads(whole)
    scores = [fold["metrics"]["val/top1"] for fold in found["folds"]]
    assert found["metrics"]["val/top1"] == {
        "mean": pytest.approx(statistics.fmean(scores)),
        "std": pytest.approx(statistics.stdev(scores)),
        "n": 5,
    }
    assert sum(fold["images"] for fold in found["folds"]) == 1438
    assert not any("test/" in line for line in whole.splitlines())
    code, table, _ = in_process(*[c for c in command if c != "--json"], out)
    assert table.splitlines()[1].split() == [
        "mean",
        "±",
        "std",
        *(f"fold-{n}" for n in range(1, 6)),
    ]


@pytest.mark.usefixtures("one_thread")
def test_a_sweep_that_failed_twice_chooses_as_one_that_did_not(in_process, tmp_path, crash):
    command = ["sweep", "lenet5_modern", "--data", "digits", "--set", "lr=0.003,1e-9"]
    command += ["--seeds", "3", *TINY, "--json", "--out"]
    _, whole, _ = in_process(*command, tmp_path / "whole")
    out = tmp_path / "killed"
    for count in (2, 5):
        crash(count)
        assert in_process(*command, out)[0] == 1
    crash(1000)
    code, text, _ = in_process(*command, out, "--test")
    assert code == 0
    found, reference = facts(text, out), facts(whole, tmp_path / "whole")
    test = found.pop("test")
    assert reference.pop("test") == {}
    assert found == reference
    assert test["top1"]["n"] == 3
    assert found["score"] == "val/top1"
    assert [cell["settings"]["lr"] for cell in found["cells"]] == [0.003, 1e-9]
    assert found["chosen"] == 0  # the rate at which something is learned
    metrics = [cell["metrics"]["val/top1"] for cell in found["cells"]]
    assert metrics[0]["mean"] > metrics[1]["mean"]
    # The same runs side by side, by the other command.
    runs = sorted(path for path in out.iterdir() if path.is_dir())
    grouped = json.loads(in_process("compare", *runs, "--group", "--json")[1])
    assert grouped["differ"] == ["lr"]
    by_rate = {group["recipe"]["lr"]: group["metrics"]["val/top1"] for group in grouped["groups"]}
    assert [by_rate[lr]["mean"] for lr in (0.003, 1e-9)] == pytest.approx(
        [each["mean"] for each in metrics]
    )


def test_folds_cover_every_image_once_and_the_test_split_never(tmp_path):
    found = cross_validate("lenet5_modern", "digits", folds=2, out=tmp_path / "cv", **QUICK)
    data = load_dataset("digits")
    held = [data.held_out(*run.recipe.part()) for run in found.runs]
    assert torch.equal(held[0], ~held[1])
    assert found.metrics["val/top1"].n == 2
    assert all(run.test_metrics() == {} for run in found.runs)


def test_the_choice_follows_the_direction_of_the_score_and_leaves_out_what_diverged(
    tmp_path, monkeypatch
):
    from cnn_core.training import experiments

    def train(*, recipe, out, **arguments):
        """A run without training: the loss is the rate; the second seed of 0.2 diverges."""
        if (recipe.lr, recipe.seed) == (0.2, 8):
            raise NumericalError("loss is nan")
        run = experiments.Run.create(recipe, {}, out)
        run.write_metrics([{"epoch": 1, "val/loss": recipe.lr, "val/top1": recipe.lr}])
        return run

    monkeypatch.setattr(experiments, "train", train)
    grid = {"lr": [0.2, 0.4, 0.3], "options.width": [0.5, 1.0]}
    found = sweep(
        "lenet5_modern", "digits", grid, seeds=2, seed=7, monitor="val/loss", out=tmp_path / "a"
    )
    assert found.score == "val/loss"
    assert found.chosen.settings == {"lr": 0.3, "options.width": 0.5}  # first of equal ones
    assert [len(cell.runs) for cell in found.cells] == [1, 1, 2, 2, 2, 2]
    assert found.cells[0].diverged == ("loss is nan",)
    assert found.chosen.runs[0].path.name == "lr=0.3,options.width=0.5,seed=7"
    assert found.chosen.runs[0].recipe.options == {"width": 0.5}
    some = [
        sweep("lenet5_modern", "digits", grid, random_cells=3, out=tmp_path / n).cells
        for n in ("b", "c")
    ]
    assert [cell.settings for cell in some[0]] == [cell.settings for cell in some[1]]
    assert len(some[0]) == 3
    with pytest.raises(NumericalError, match="every run diverged: loss is nan"):
        sweep("lenet5_modern", "digits", {"lr": [0.2]}, seed=8, out=tmp_path / "d")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=0.01,0.1", ("lr", [0.01, 0.1])),
        ("optimizer=sgd,adamw", ("optimizer", ["sgd", "adamw"])),
        ("crop=[0.5, 1],[0.8, 1]", ("crop", [[0.5, 1], [0.8, 1]])),
        ("options.width=0.5,1", ("options.width", [0.5, 1])),
        ("flip=true,false", ("flip", [True, False])),
        ("weights=default", ("weights", ["default"])),
    ],
)
def test_values_between_commas(text, expected):
    assert parse_choices(text) == expected


@pytest.mark.parametrize("text", ["lr", "lr=1,1", "lx=1,2", "=1"])
def test_odd_values_are_refused(text):
    with pytest.raises(UsageError):
        parse_choices(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cross-validate", "lenet5", "--set", "fold=1/2"], "the folds set it already"),
        (["cross-validate", "lenet5", "--set", "validation=0.3"], "the folds set it already"),
        (["cross-validate", "lenet5", "--folds", "1"], "--folds"),
        (["sweep", "lenet5", "--set", "lr=1,2", "--lr", "3"], "lr is set twice"),
        (["sweep", "lenet5", "--set", "lr=1", "--set", "lr=3"], "a key is set twice"),
        (["sweep", "lenet5", "--set", "seed=1,2"], "seed"),
        (["sweep", "lenet5", "--set", "lr=1,2", "--random", "3"], "there are 2"),
        (["sweep", "lenet5", "--set", "lr=1,x"], "lr = 'x'"),
    ],
)
def test_misuse_is_an_error_before_anything_is_trained(in_process, tmp_path, arguments, message):
    out = tmp_path / "out"
    code, _, err = in_process(*arguments, "--data", "digits", "--out", out)
    assert code == 2
    assert message in err
    assert not out.exists()


def test_a_single_value_has_no_deviation():
    assert str(Summary.of([0.5])) == "0.5000"
    assert str(Summary.of([0.4, 0.6])) == "0.5000 ± 0.1414"
