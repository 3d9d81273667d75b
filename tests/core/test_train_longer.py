"""More epochs for a run that exists: the same bits as from the start, or the way to get them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from cnn_core import train
from cnn_core.errors import UsageError
from cnn_core.runs.recipe import Recipe
from cnn_core.training import Run
from cnn_core.training.checkpoint import Checkpoint
from cnn_core.training.resumption import with_epochs

QUICK = {"progress": False, "batch_size": 512, "device": "cpu"}
NOISE = {"seconds", "images_per_second"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs of one epoch, by schedule, and one of two epochs."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {
        "constant": {"schedule": "constant", "ema": 0.9},
        "two": {"schedule": "constant", "ema": 0.9, "epochs": 2},
        "cosine": {"schedule": "cosine"},
    }
    return {
        name: train("lenet5_modern", "digits", out=folder / name, **{"epochs": 1, **QUICK, **each})
        for name, each in settings.items()
    }


@pytest.fixture
def copy(runs, tmp_path):
    """Return a function that copies a run."""
    return lambda name: Run.open(shutil.copytree(runs[name].path, tmp_path / name))


def edit(run, old, new):
    text = (run.path / "recipe.toml").read_text()
    assert len(re.findall(f"^{re.escape(old)}$", text, re.MULTILINE)) == 1
    (run.path / "recipe.toml").write_text(text.replace(f"\n{old}\n", f"\n{new}\n"))


def log(run):
    return [{k: v for k, v in line.items() if k not in NOISE} for line in run.metrics()]


@pytest.mark.usefixtures("one_thread")
def test_a_constant_schedule_goes_on_to_the_bits_of_a_longer_run(runs, copy):
    longer = train(resume=copy("constant").path, epochs=2, progress=False, device="cpu")
    assert longer.recipe == Run.open(longer.path).recipe == runs["two"].recipe
    ours, theirs = (load_file(run.weights) for run in (longer, runs["two"]))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert log(longer) == log(runs["two"])
    assert longer.finished


def test_an_interrupted_extension_needs_no_epochs_again(copy):
    run = copy("constant")
    edit(run, "epochs = 1", "epochs = 2")  # what the first of its writes leaves
    assert len(train(resume=run.path, progress=False, device="cpu").history()) == 2


def test_another_schedule_is_refused_with_the_way_out(in_process, copy):
    run = copy("cosine")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    code, out, err = in_process("train", "--resume", run.path, "--epochs", 5)
    assert (code, out) == (2, "")
    assert "schedule = 'cosine' ends with epoch 1" in err
    way_out = f"cnnzoo train lenet5_modern --data digits --weights {run.path} --epochs N"
    assert way_out in err
    assert before == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def test_a_run_that_stopped_early_is_not_extended(tmp_path):
    recipe = Recipe(model="m", data="d", epochs=9, schedule="constant", patience=2)
    run = Run(tmp_path, recipe)
    state = Checkpoint(epoch=3, best_epoch=1)
    with pytest.raises(UsageError, match="stopped after 2 epochs without improvement"):
        with_epochs(run, state, 20)
    assert with_epochs(run, replace(state, best_epoch=2), 20).recipe.epochs == 20


def test_fewer_epochs_than_trained_are_refused(runs):
    with pytest.raises(UsageError, match="has trained 2 epochs already, not 1"):
        train(resume=runs["two"].path, epochs=1, progress=False)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("constant", "cnnzoo train --resume {path} --epochs N"),
        ("cosine", "cnnzoo train lenet5_modern --data digits --weights {path} --epochs N"),
    ],
)
def test_a_finished_run_says_so_in_a_line_and_what_to_type(in_process, runs, name, command):
    path = runs[name].path
    code, out, err = in_process("train", "--resume", path)
    line, test = err.splitlines()
    assert (code, out) == (0, f"{path}\n")
    longer = command.format(path=path)
    assert line == f"{path}: is finished, 1 of 1 epochs; to train longer: {longer}"
    assert test.startswith("test: loss ")


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_an_edited_recipe_is_refused_and_the_keys_are_named(copy, name):
    run = copy(name)
    edit(run, "lr = 0.003", "lr = 0.01")
    edit(run, "momentum = 0.9", "momentum = 0.8")
    with pytest.raises(UsageError) as caught:
        train(resume=run.path, progress=False)
    assert caught.value.message.endswith(
        "was edited after training began: lr = 0.01, was 0.003; momentum = 0.8, was 0.9"
    )
    assert f"--weights {run.path}" in caught.value.hint


def test_edited_epochs_are_refused_where_the_learning_rate_depends_on_them(copy):
    run = copy("cosine")
    edit(run, "epochs = 1", "epochs = 10")
    with pytest.raises(UsageError, match="epochs = 10, was 1"):
        train(resume=run.path, progress=False)


def test_a_run_of_before_recipes_were_kept_twice_resumes(copy):
    run = copy("constant")
    environment = run.environment()
    del environment["recipe"]
    (run.path / "environment.json").write_text(json.dumps(environment))
    assert train(resume=run.path, progress=False).finished


def test_other_settings_than_epochs_do_not_apply(runs, tmp_path):
    path = runs["constant"].path
    for given in ({"lr": 0.1}, {"out": tmp_path / "a"}, {"model": "lenet5"}):
        with pytest.raises(UsageError, match="only epochs apply"):
            train(resume=path, progress=False, **given)
    with pytest.raises(UsageError) as caught:
        train(
            "lenet5_modern",
            "digits",
            epochs=2,
            schedule="constant",
            ema=0.9,
            out=path,
            auto_resume=True,
            **QUICK,
        )
    assert f"cnnzoo train --resume {path} --epochs 2" in caught.value.hint
