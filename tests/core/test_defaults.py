"""Without a recipe, what is chosen trains every family on images of any size."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import pytest
import torch

from cnn_core import registry, train
from cnn_core.data.dataset import load_dataset
from cnn_core.training import finders
from cnn_core.training.defaults import FREE
from cnn_core.training.schedule import learning_rate
from cnn_core.training.setup import find_recipe, free_keys, set_up
from easy_images import image_folder, mask_folder

CPU = torch.device("cpu")
STEPS = 200
NARROW = {"unet": {"width": 8}, "unet_same": {"width": 8}}
FAMILIES = {  # of each family the smallest network, with and without normalisation
    *("lenet5", "lenet5_modern", "alexnet", "alexnet_owt", "alexnet_small", "vgg11", "vgg11_bn"),
    *("vgg11_cifar", "googlenet", "googlenet_bn", "resnet18", "resnet50", "resnet18_cifar"),
    *("resnet20_cifar", "densenet121", "densenet40_cifar", "mobilenet_v1", "mobilenet_v2"),
    *("efficientnet_lite0", "unet", "unet_same"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Datasets by task and side: small squares, and large images that are not square."""
    root = tmp_path_factory.mktemp("data")
    return {
        ("classification", 32): image_folder(root / "c32", classes=4, each=40, size=(32, 32)),
        ("classification", 200): image_folder(root / "c200", classes=4, each=24, size=(200, 150)),
        ("segmentation", 32): mask_folder(root / "m32", classes=11, count=24, size=(32, 32)),
        ("segmentation", 200): mask_folder(root / "m200", classes=2, count=16, size=(200, 160)),
    }


def setup_of(model, data, **settings):
    free = free_keys(model, data, None, settings)
    recipe = find_recipe(model, data, None, settings)
    return set_up(recipe, load_dataset(data), CPU, free=free, show_progress=False)


def halves(model, data, **settings):
    """Return whether the mean loss of five steps halves within 200, and the losses."""
    steps = setup_of(model, data, **settings).steps
    setup = setup_of(model, data, **settings, epochs=math.ceil(STEPS / steps))
    # Outputs that are too large at first lose half of their loss without learning.
    target = min(math.log(len(setup.dataset.spec.classes)), math.inf) / 2
    losses = []
    with finders._trial_state(setup) as train_state:
        torch.manual_seed(0)
        for number, batch in enumerate(itertools.islice(finders._endless_batches(setup), STEPS)):
            rate = learning_rate(setup.recipe, number / setup.steps)
            losses.append(finders._one_step(train_state, setup, batch, rate, number))
            mean = sum(losses[-5:]) / 5
            if not math.isfinite(losses[-1]):
                return False, losses
            if number > 5 and mean < min(target, losses[0] / 2):
                return True, losses
    return False, losses


@pytest.mark.slow
@pytest.mark.parametrize("side", [32, 200])
@pytest.mark.parametrize("model", sorted(FAMILIES))
def test_every_family_trains_without_options(folders, model, side):
    data = folders[registry.get_spec(model).task, side]
    halved, losses = halves(model, data, options=NARROW.get(model, {}))
    assert halved, losses


def test_every_family_is_among_them():
    of = {entry.spec.family for name, entry in registry.models() if name in FAMILIES}
    assert of == {entry.spec.family for _, entry in registry.models()}


@pytest.mark.parametrize(
    ("model", "side", "options"),
    [
        ("lenet5_modern", 200, {}),
        ("resnet20_cifar", 32, {}),
        ("unet_same", 32, {"width": 8, "depth": 2}),
    ],
)
def test_small_networks_train_without_options(folders, one_thread, model, side, options):
    data = folders[registry.get_spec(model).task, side]
    halved, losses = halves(model, data, options=options)
    assert halved, losses


def test_a_large_first_loss_is_survived(folders, one_thread):
    # With this seed and width, the first logits are large.
    data, narrow = folders["segmentation", 32], {"options": {"width": 12}}
    halved, losses = halves("unet_same", data, **narrow)
    assert losses[0] > 2 * math.log(11)
    assert halved, losses
    # With the defaults of `Recipe`, the network ends up with the same outputs for every pixel.
    fixed = find_recipe("unet_same", data, None, {"batch_size": 2, "image_size": 32})
    plain = {key: getattr(fixed, key) for key in FREE}
    assert not halves("unet_same", data, **narrow, **plain)[0]


# What is chosen


@pytest.mark.parametrize(
    ("model", "task", "side", "size", "batch"),
    [
        ("resnet20_cifar", "classification", 200, 32, 16),
        ("resnet18", "classification", 32, 128, 16),
        ("resnet18", "classification", 200, 224, 16),
        ("alexnet", "classification", 32, 131, 16),  # 227 less 3 x 32
        ("googlenet", "classification", 32, 224, 16),  # its auxiliary heads need it
        ("unet_same", "segmentation", 32, 32, 2),
        ("unet_same", "segmentation", 200, 224, 2),
        ("unet", "segmentation", 32, 188, 2),  # the smallest that it takes
    ],
)
def test_size_and_batch_follow_the_images(folders, model, task, side, size, batch):
    recipe = setup_of(model, folders[task, side], options=NARROW.get(model, {})).recipe
    assert (recipe.image_size, recipe.batch_size) == (size, batch)


def test_wide_networks_without_normalisation_get_lower_rates(folders):
    small, wide = (
        setup_of("unet_same", folders["segmentation", 32], options={"width": width, "depth": 2})
        for width in (4, 64)
    )
    assert (small.recipe.lr, wide.recipe.lr) == (1e-3, 7e-4)  # (1024 / (256 x 9)) ** 0.5
    assert setup_of("resnet18_cifar", folders["classification", 32]).recipe.lr == 1e-3


def test_what_is_given_is_kept_and_recipes_are_not_changed(folders):
    data = folders["classification", 32]
    given = {"optimizer": "sgd", "batch_size": 7, "image_size": 64, "epochs": 3}
    recipe = setup_of("resnet20_cifar", data, **given).recipe
    assert {key: getattr(recipe, key) for key in given} == given
    assert (recipe.lr, recipe.weight_decay, recipe.clip_norm) == (0.05, 0.0005, 1.0)
    assert free_keys("resnet20_cifar", data, None, given) == FREE - given.keys()
    assert not free_keys("lenet5", "digits", None, {})  # has a default recipe
    assert not free_keys("resnet20_cifar", data, "lenet5-mnist", {})


def test_the_choice_is_printed_recorded_and_resumed(folders, tmp_path, capsys):
    data = folders["classification", 200]
    run = train("lenet5_modern", data, out=tmp_path / "r", epochs=2, device="cpu")
    said = capsys.readouterr().err
    assert "chosen: adamw, lr 0.001, clip_norm 1, batch_size 16, image_size 32" in said
    assert "images are squashed from 200x150 to a square; --set fit=crop keeps their shape" in said
    assert "steps in all are few for training from scratch" in said
    assert (run.recipe.optimizer, run.recipe.batch_size) == ("adamw", 16)
    again = train("lenet5_modern", data, out=tmp_path / "r", epochs=2, auto_resume=True)
    assert again.recipe == run.recipe


# Outputs that are not finite


@pytest.fixture(scope="module")
def broken(folders, tmp_path_factory):
    """A run whose last batch normalisation has a variance of NaN."""
    from cnn_core.weights.native import read_weights, write_weights

    out = tmp_path_factory.mktemp("broken") / "run"
    data = folders["classification", 32]
    run = train("resnet20_cifar", data, out=out, epochs=1, progress=False, device="cpu")
    weights = read_weights(run.path)
    name = "conv4_x.2.residual.1.bn.running_var"
    tensors = {**weights.tensors, name: weights.tensors[name] * math.nan}
    write_weights(run.weights, dataclasses.replace(weights, tensors=tensors))
    return run


MODULE = "first in the output of conv4_x.2.residual.1.bn"


def test_evaluate_has_no_metrics(broken, in_process):
    code, out, err = in_process("evaluate", broken.path, "--json")
    assert code == 4
    assert json.loads(out)["metrics"] == {"test/not_finite": 32}
    assert MODULE in err


def test_predict_has_no_prediction(broken, in_process, folders):
    image = f"{folders['classification', 32].partition(':')[2]}/class0/0.png"
    code, out, err = in_process("predict", broken.path, image, "--json")
    assert (code, json.loads(out)["predictions"]) == (4, [])
    assert MODULE in err
    code, out, _ = in_process("predict", broken.path, image, "--csv", "-")
    assert (code, out) == (4, "image,class_1,probability_1\n")


def test_the_report_is_complete_without_results(broken, in_process):
    code, _, err = in_process("report", broken.path)
    assert code == 0
    assert MODULE in err
    assert "this is a" not in err
    page = (broken.path / "report.html").read_text()
    assert "There are no results." in page
    assert 'id="recipe"' in page


def test_an_epoch_without_finite_outputs_is_never_the_best(folders, tmp_path, monkeypatch):
    from cnn_core.errors import NumericalError
    from cnn_core.training import loop

    def spoiled(model, split, setup, on_batch):
        return {"not_finite": 3}

    monkeypatch.setattr(loop, "evaluate_split", spoiled)
    out, data = tmp_path / "r", folders["classification", 32]
    with pytest.raises(NumericalError, match="val/top1 was NaN in every epoch"):
        train("lenet5_modern", data, out=out, epochs=2, progress=False, device="cpu")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["val/not_finite"] for line in lines] == [3, 3]
    assert not any("val/top1" in line for line in lines)
    assert not (out / "weights.safetensors").exists()


# Running statistics


def test_lagging_statistics_are_said_and_an_estimate_is_exact(folders, tmp_path, caplog):
    data, few = folders["classification", 32], {"epochs": 4, "batch_size": 144, "lr": 0.005}
    train("resnet20_cifar", data, out=tmp_path / "a", progress=False, device="cpu", **few)
    assert "running statistics of batch normalisation lag" in caplog.text
    caplog.clear()
    precise = {**few, "precise_batchnorm": True}
    train("resnet20_cifar", data, out=tmp_path / "b", progress=False, device="cpu", **precise)
    assert not caplog.text


def test_estimated_statistics_are_those_of_the_training_images(folders, one_thread):
    from cnn_core.training.batchnorm import estimate_statistics

    setup = setup_of("resnet20_cifar", folders["classification", 32], batch_size=1000)
    weights = {n: p.clone() for n, p in setup.model.named_parameters()}
    setup.model.train()
    [batch] = itertools.islice(finders._endless_batches(setup), 1)
    estimate_statistics(setup, [batch])
    first = dict(setup.model.named_modules())["conv1.bn"]
    seen = dict(setup.model.named_modules())["conv1.conv"](batch.images)
    torch.testing.assert_close(first.running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.running_var, seen.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert first.momentum == 0.1
    assert all(torch.equal(p, weights[n]) for n, p in setup.model.named_parameters())
