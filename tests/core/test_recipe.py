"""Recipes: every key checked, errors that name file and key, TOML there and back."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_core import registry
from cnn_core.errors import UsageError
from cnn_core.runs.recipe import LIMITS, Recipe, parse_setting, parse_settings, read_recipe
from cnn_core.training.setup import find_recipe

BASE = {"model": "lenet5", "data": "digits"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs = 0: expected 1 to 100,000$"),
        ({"epochs": "many"}, "epochs = 'many': expected an integer"),
        ({"epochs": 2.0}, "epochs = 2.0: expected an integer"),
        ({"epochs": True}, "epochs = True: expected an integer"),
        ({"lr": float("nan")}, "lr = nan: expected a number"),
        ({"lr": -0.1}, "lr = -0.1"),
        ({"flip": 1}, "flip = 1: expected true or false"),
        ({"optimizer": "adam"}, "optimizer = 'adam', did you mean 'adamw'?"),
        ({"schedule": ["cosine"]}, r"schedule = \['cosine'\]: expected text"),
        ({"mean": [0.1, "x"]}, "mean = 'x': expected a number"),
        ({"step_epochs": 3}, "step_epochs = 3: expected a list"),
        ({"options": 3}, r"options = 3: expected a table\n--set options\.NAME=VALUE"),
        ({"step_epochs": [1, 2], "step_factors": [0.1, 0.1, 0.1]}, "step_factors has 3"),
        (
            {"schedule": "step"},
            "schedule = 'step' needs step_every > 0 and exactly one value in step_factors",
        ),
        ({"schedule": "step", "step_every": 2, "step_factors": [0.1, 0.2]}, "needs step_every"),
        ({"accumulate": 0}, "accumulate = 0: expected 1 to"),
        ({"accumulate": 33, "batch_size": 32}, "accumulate = 33 exceeds batch_size = 32"),
        ({"stage_lr": {"c1": -1.0}}, "stage_lr.c1 = -1.0: expected a number from 0 to 1,000,000"),
        (
            {"stage_lr": {"c1": "fast"}},
            "stage_lr.c1 = 'fast': expected a number from 0 to 1,000,000",
        ),
        ({"freeze": ["c1", 2]}, "freeze = 2: expected text"),
        ({"lr": 1e7}, r"lr = 10000000\.0: expected 0 to 1,000,000$"),
        ({"layer_decay": 0.0}, r"layer_decay = 0\.0: expected 0\.001 to 1$"),
        ({"policy": "rand"}, 'one of "", randaugment, trivialaugment'),
        ({"keep": 0}, "keep = 0: expected 1 to"),
        ({"ema": 1.0}, "ema = 1.0: expected 0 to"),
        ({"memory_format": "channel_last"}, "did you mean 'channels_last'"),
        ({"learning_rate": 1.0}, "unknown recipe key 'learning_rate'"),
        (
            {"width": 2},
            r"'width'\nan option of the network is set with options\.width; all keys: cnnzoo",
        ),
        ({"epoch": 1}, "unknown recipe key 'epoch', did you mean 'epochs'"),
    ],
)
def test_a_bad_value_is_named(settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        Recipe.from_settings({**BASE, **settings})
    assert str(caught.value).count("\n") <= 2


@pytest.mark.parametrize("texts", [["options.a=1", "options=2"], ["options=2", "options.a=1"]])
def test_a_key_cannot_be_both_a_table_and_a_value(texts):
    with pytest.raises(UsageError, match="options is set both as a table and as 2"):
        parse_settings(texts)


def test_a_missing_key_is_named():
    with pytest.raises(UsageError, match="the key 'data' is missing"):
        Recipe.from_settings({"model": "lenet5"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochs = ", "r.toml: not TOML"),
        ("epochs = 3", r"r.toml: no table \[recipe\]"),
        ("[recipe]\nmodel = 'lenet5'\ndata = 'digits'\nlrr = 1", "r.toml: unknown recipe key"),
        ("a = " + "[" * 5000, "r.toml: not TOML"),
    ],
)
def test_a_bad_recipe_file_is_named(tmp_path, content, message):
    path = tmp_path / "r.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        read_recipe(path)


@settings(max_examples=60, deadline=None)
@given(
    epochs=st.integers(*LIMITS["epochs"]),
    lr=st.floats(*LIMITS["lr"]),
    flip=st.booleans(),
    mean=st.lists(st.floats(-1e6, 1e6), max_size=3),
    schedule=st.sampled_from(["constant", "multi_step", "cosine", "one_cycle", "polynomial"]),
    freeze=st.lists(st.text(max_size=9), max_size=3),
    stage_lr=st.dictionaries(st.text(min_size=1, max_size=9), st.floats(0, 1e6), max_size=3),
    options=st.dictionaries(st.text(min_size=1, max_size=9), st.integers(-9, 9), max_size=3),
)
def test_a_recipe_survives_toml(tmp_path_factory, **values):
    recipe = Recipe.from_settings({**BASE, **values})
    path = tmp_path_factory.mktemp("toml") / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.from_settings(read_recipe(path).settings) == recipe


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=0.1", ("lr", 0.1)),
        ("epochs = 3", ("epochs", 3)),
        ("stage_lr.features.conv0=0.1", ("stage_lr", {"features.conv0": 0.1})),
        ('freeze=["c1"]', ("freeze", ["c1"])),
        ("flip=true", ("flip", True)),
        ("schedule=step", ("schedule", "step")),
        ("step_epochs=[2, 4]", ("step_epochs", [2, 4])),
        ("options.width=0.5", ("options", {"width": 0.5})),
    ],
)
def test_settings_from_the_command_line(text, expected):
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["lr", "=3", ""])
def test_a_setting_needs_key_and_value(text):
    with pytest.raises(UsageError, match="expected key=value"):
        parse_setting(text)


def test_every_recipe_is_sound_and_names_what_exists():
    for name, entry in registry.recipes():
        recipe = Recipe.from_settings(entry.spec.settings, name)
        assert registry.models().get(recipe.model)
        assert registry.datasets().get(recipe.data.partition(":")[0])
        assert entry.spec.summary


def test_a_pair_has_at_most_one_default_recipe():
    pairs = [
        (entry.spec.model, entry.spec.dataset)
        for _, entry in registry.recipes()
        if entry.spec.default
    ]
    assert len(pairs) == len(set(pairs))


def test_the_default_recipe_of_a_pair_is_used_and_settings_override_it():
    default = find_recipe("lenet5", "digits", None, {})
    assert default.loss == "map"
    assert find_recipe("lenet5", "digits", None, {"epochs": 2}) == dataclasses.replace(
        default, epochs=2
    )


def test_a_recipe_can_be_used_for_another_pair_or_read_from_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(find_recipe("lenet5", "digits", None, {"epochs": 7}).to_toml())
    assert find_recipe(None, None, str(path), {}).epochs == 7
    moved = find_recipe("lenet5_modern", "mnist", str(path), {})
    assert (moved.model, moved.data, moved.epochs) == ("lenet5_modern", "mnist", 7)
    with pytest.raises(UsageError, match=r"none\.toml: no such recipe file"):
        find_recipe(None, None, "none.toml", {})
