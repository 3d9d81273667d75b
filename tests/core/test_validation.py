"""Which images validate: chosen by the data, not by the training seed; kept; in whole groups."""

from __future__ import annotations

import json
import tomllib

import pytest
import torch
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold

from cnn_core import load_dataset, train
from cnn_core.data.bad_samples import BadSamples
from cnn_core.data.dataset import Dataset
from cnn_core.data.splits import Files, Split
from cnn_core.data.splitting import fold_numbers, held_out
from cnn_core.data.streaming import decode_to_memory
from cnn_core.errors import UsageError
from cnn_core.runs.recipe import Recipe
from cnn_core.training import Run, Trained, evaluate
from cnn_core.training.setup import set_up

QUICK = {"progress": False, "epochs": 1, "batch_size": 512, "device": "cpu"}
LABELS = torch.randint(5, (1000,), generator=torch.Generator().manual_seed(0)) ** 2 % 5
GROUPS = torch.randint(60, (1000,), generator=torch.Generator().manual_seed(1))


def test_the_images_held_out_are_those_of_before_the_function_moved():
    """By class, in the order of the classes, from one generator."""
    generator, expected = torch.Generator().manual_seed(7), torch.zeros(1000, dtype=torch.bool)
    for number in range(9):  # also classes without images
        members = (number == LABELS).nonzero().squeeze(1)
        order = torch.randperm(len(members), generator=generator)
        expected[members[order[: round(0.1 * len(members))]]] = True
    assert torch.equal(held_out(LABELS, 0.1, 7), expected)


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_folds_differ_by_one_image_overall_and_in_each_class(folds):
    numbers = fold_numbers(LABELS, folds, seed=3)
    for some in (torch.ones(1000).bool(), *(label == LABELS for label in LABELS.unique())):
        counts = numbers[some].bincount(minlength=folds)
        assert counts.sum() == some.sum()
        assert counts.max() - counts.min() <= 1
    assert torch.equal(numbers, fold_numbers(LABELS, folds, seed=3))
    assert not torch.equal(numbers, fold_numbers(LABELS, folds, seed=4))


def unevenness(numbers: torch.Tensor, folds: int) -> float:
    """Return the largest difference of a fold's share of a class from 1 / folds."""
    table = torch.stack([LABELS[numbers == n].bincount(minlength=5) for n in range(folds)])
    present = LABELS.bincount(minlength=5) > 0
    shares = table[:, present] / table[:, present].sum(0)
    return float((shares - 1 / folds).abs().max())


def test_groups_are_never_torn_apart_and_as_even_as_those_of_scikit_learn():
    numbers = fold_numbers(LABELS, 5, seed=0, groups=GROUPS)
    for group in GROUPS.unique():
        assert len(numbers[group == GROUPS].unique()) == 1
    theirs = torch.empty(1000, dtype=torch.int64)
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    for number, (_, test) in enumerate(splitter.split(LABELS, LABELS, GROUPS)):
        theirs[test] = number
    assert unevenness(numbers, 5) <= unevenness(theirs, 5) + 0.01


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5])
def test_a_fraction_is_held_out_by_whole_groups(fraction):
    held = held_out(LABELS, fraction, 0, GROUPS)
    for group in GROUPS.unique():
        assert len(held[group == GROUPS].unique()) == 1
    assert float(held.float().mean()) == pytest.approx(fraction, abs=0.02)
    assert not held_out(LABELS, 0.0, 0, GROUPS).any()


def test_groups_of_a_dataset_are_kept_when_it_is_divided_and_decoded(tmp_path):
    images, groups = [], torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    for number in range(8):
        images.append(tmp_path / f"{number}.png")
        Image.new("L", (4, 4), number).save(images[-1])
    images[3].write_bytes(b"broken")
    files = Files(tuple(images), torch.tensor([0, 1] * 4), 1, groups=groups)
    split = decode_to_memory(files, None, bad=BadSamples(1))
    assert split.groups is not None
    assert split.groups.tolist() == [0, 0, 1, 2, 2, 3, 3]
    data = Dataset(load_dataset("digits").spec, {"train": split})
    kept, held = data.hold_out(0.3, 0)
    assert len(held)
    assert not set(kept.groups.tolist()) & set(held.groups.tolist())
    views = data.divide(0.0, 0, fold=(1, 2))
    assert not set(groups_of(views[0])) & set(groups_of(views[1]))


def groups_of(part):
    return part.groups[part.rows].tolist()


def test_with_folds_the_own_validation_images_are_divided_too():
    data = load_dataset("digits")
    val = Split(*(t[:100] for t in (data.split("test").images, data.split("test").targets)))
    pooled = Dataset(data.spec, {**data.splits, "val": val}).pooled()
    assert len(pooled.split("train")) == pooled.spec.splits["train"] == 1538
    assert torch.equal(pooled.split("train").images[-100:], val.images)
    parts = [pooled.divide(0.1, 0, (n, 5))[1].rows for n in range(1, 6)]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1538))


# Runs


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A run with a split seed of its own."""
    out = tmp_path_factory.mktemp("origin") / "run"
    return train("lenet5_modern", "digits", out=out, split_seed=3, validation=0.2, **QUICK)


def rows(run: Run) -> set[int]:
    data = load_dataset(run.recipe.data)
    return set(data.pooled().held_out(*run.recipe.part()).nonzero().squeeze(1).tolist())


def test_the_training_seed_does_not_choose_the_validation_images():
    data, parts = load_dataset("digits"), []
    for seed in (0, 1):
        recipe = Recipe(model="lenet5_modern", data="digits", seed=seed)
        setup = set_up(recipe, data, torch.device("cpu"), show_progress=False)
        assert setup.recipe.split_seed == 0
        parts.append(setup.validation.rows)
    assert torch.equal(*parts)


@pytest.mark.parametrize("source", ["", "weights.safetensors"])
def test_a_run_from_a_run_validates_on_images_that_neither_was_trained_on(
    origin, tmp_path, source
):
    weights = str(origin.path / source)
    run = train("lenet5_modern", "digits", out=tmp_path / "a", weights=weights, seed=9, **QUICK)
    assert (run.recipe.seed, run.recipe.split_seed) == (9, 3)
    assert rows(run) < rows(origin)  # half of them
    recorded = tomllib.loads((run.path / "recipe.toml").read_text())["recipe"]
    assert recorded["split_seed"] == 3
    part = run.environment()["validation"]
    assert part["images"] == len(rows(run))
    assert part["digest"] != origin.environment()["validation"]["digest"]


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"split_seed": 4}, "--set split_seed=3"),
        ({"validation": 0.4}, "--set validation=0.2"),
        ({"fold": "1/5"}, "--set fold="),
    ],
)
def test_images_that_the_weights_were_trained_on_are_refused(origin, tmp_path, settings, hint):
    given = {"weights": str(origin.path), "out": tmp_path / "a", **QUICK, **settings}
    with pytest.raises(UsageError, match=r"was trained on .* validation images") as caught:
        train("lenet5_modern", "digits", **given)
    assert hint in caught.value.hint
    assert not (tmp_path / "a").exists()


def test_a_run_without_validation_images_is_an_origin_with_a_warning(origin, tmp_path, capsys):
    copy = tmp_path / "whole"
    copy.mkdir()
    for name in ("environment.json", "metrics.jsonl", "weights.safetensors"):
        (copy / name).write_bytes((origin.path / name).read_bytes())
    text = (origin.path / "recipe.toml").read_text()
    (copy / "recipe.toml").write_text(text.replace("validation = 0.2", "validation = 0.0"))
    recipe = Recipe(model="lenet5_modern", data="digits", weights=str(copy))
    set_up(recipe, load_dataset("digits"), torch.device("cpu"))
    assert "was trained on 143 of 143 validation images" in capsys.readouterr().err


def test_val_of_a_run_is_what_it_held_out(origin, caplog):
    metrics = evaluate(origin, split="val", device="cpu")
    best = max(origin.history(), key=lambda line: line["val/top1"])
    assert metrics["top1"] == pytest.approx(best["val/top1"])
    assert "287 of 1,438 images of 'train', which were not trained on" in caplog.text
    with pytest.raises(UsageError, match="no split 'val'"):
        evaluate(origin, split="val", data="digits", device="cpu")


def test_an_old_run_was_validated_on_the_images_of_its_training_seed(origin, tmp_path):
    for name in ("environment.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((origin.path / name).read_bytes())
    lines = (origin.path / "recipe.toml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("split_seed")]
    text = "\n".join(kept).replace("seed = 0", "seed = 5")
    (tmp_path / "recipe.toml").write_text(text)
    assert Run.open(tmp_path).recipe.part() == (0.2, 5, (0, 0))


def test_the_saved_weights_can_be_evaluated_on_validation_images_only(tmp_path):
    run = train(
        "lenet5_modern", "digits", out=tmp_path / "a", evaluate_on="val", fold="2/3", **QUICK
    )
    assert run.finished
    assert run.test_metrics() == {}
    final, line = run.final_metrics(), run.history()[0]
    assert final["epoch"] == 1
    assert final["val/top1"] == pytest.approx(line["val/top1"])
    assert not any(key.startswith("test/") for each in run.metrics() for key in each)
    assert len(Trained(run, device="cpu").split("val")) == len(rows(run)) in (479, 480)


# No validation images


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patience": 2}, "patience = 2 needs"),
        ({"monitor": "val/loss"}, "monitor = 'val/loss' needs"),
        ({"evaluate_on": "val"}, "evaluate_on = 'val' needs"),
    ],
)
def test_what_needs_validation_images_is_refused_without_them(tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        train("lenet5_modern", "digits", out=tmp_path / "a", validation=0.0, **QUICK, **settings)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "2", "2/x", "-1/5", "٢/5"])
def test_a_fold_is_two_numbers(fold):
    with pytest.raises(UsageError, match="fold = "):
        Recipe(model="m", data="d", fold=fold)


def test_monitor_of_training_needs_no_validation(tmp_path):
    run = train(
        "lenet5_modern",
        "digits",
        out=tmp_path / "a",
        validation=0.0,
        patience=1,
        monitor="train/loss",
        **QUICK,
    )
    assert json.loads((run.path / "environment.json").read_text())["validation"]["images"] == 0
