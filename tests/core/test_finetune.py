"""Fine-tuning: which parameters change when, which preprocessing is kept, and exact resumption."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from cnn_core import create_model, load_dataset, registry
from cnn_core.cli import main
from cnn_core.data import batches
from cnn_core.data.augment import Augmentation
from cnn_core.data.images import read_image
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.errors import CorruptError, UnknownNameError, UsageError
from cnn_core.plugins.discovery import discover
from cnn_core.training import (
    Recipe,
    Run,
    Trained,
    evaluate,
    finetune,
    initial_weights,
    predict,
    train,
)
from cnn_core.training.checkpoint import Checkpoints
from cnn_core.training.optim import make_optimizer
from cnn_core.training.schedule import learning_rate
from cnn_core.training.setup import set_up
from cnn_core.weights.blueprint import key_maps
from cnn_core.weights.native import Weights, read_weights, write_weights
from cnn_core.weights.published import file_digest, weights_of

CPU = torch.device("cpu")
QUICK = {"progress": False, "epochs": 2, "batch_size": 8, "validation": 0.25, "lr": 0.002}
CROP = Preprocessing(
    size=(16, 16),
    image_size=(0, 0),
    fit="crop",
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.3),
    resize=20,
    interpolation="bicubic",
)

WEIGHTS = Weights(
    tensors={},
    model="resnet20_cifar",
    num_classes=4,
    in_channels=3,
    options={},
    classes=(),
    preprocessing=CROP,
    epoch=1,
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """A folder of photographs of many sizes, of three classes by colour."""
    root, draw = tmp_path_factory.mktemp("images") / "flowers", np.random.default_rng(0)
    for number, name in enumerate(("aster", "iris", "rose")):
        folder = root / name
        folder.mkdir(parents=True)
        for index in range(10):
            height, width = draw.integers(18, 44, 2)
            pixels = draw.integers(0, 90, (height, width, 3), dtype=np.uint8)
            pixels[..., number] += 120
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def ancestor(tmp_path_factory):
    """Weights of a ResNet-20 for 3 x 16 x 16, with centre crops and four classes of their own."""
    torch.manual_seed(1)
    model = create_model("resnet20_cifar", num_classes=4, in_channels=3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    weights = dataclasses.replace(
        WEIGHTS, tensors=model.state_dict(), classes=("cat", "dog", "fox", "owl")
    )
    path = tmp_path_factory.mktemp("weights") / "ancestor.safetensors"
    write_weights(path, weights)
    return path


def checkpoint(run, name):
    return Checkpoints(run.state).read(name)


def changed(before, after):
    """Return the names of tensors that differ, in shape or values."""
    return {
        name
        for name, tensor in after.items()
        if tensor.shape != before[name].shape or not torch.equal(tensor, before[name])
    }


# --- recipe keys ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"epochs": 2, "head_epochs": 3}, "head_epochs = 3 exceeds epochs = 2"),
        ({"head_lr": 0.1}, "head_lr = 0.1 needs head_epochs"),
        ({"weights_digest": "abc"}, "weights_digest = 'abc' needs weights"),
        ({"fit": "resize", "resize": 20}, "resize needs fit = 'crop', found 'resize'"),
        ({"fit": "crops"}, "fit = 'crops', did you mean 'crop'"),
        ({"layer_decay": 0.0}, "layer_decay = 0.0: expected 0.001 to 1"),
        ({"layer_decay": 1.5}, "layer_decay = 1.5: expected 0.001 to 1"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(keys, message):
    with pytest.raises(UsageError, match=message):
        Recipe(model="lenet5", data="digits", **keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"freeze_batchnorm": True}, "lenet5_modern has no batch normalisation"),
        ({"head_epochs": 1, "freeze": ["output"]}, "the head is frozen or has no parameters"),
        ({"resize": 40}, "resize applies only to fit = 'crop'"),
        ({"fit": "crop", "resize": 30}, "resize = 30: expected at least 32"),
    ],
)
def test_keys_that_do_not_fit_the_network_are_refused(tmp_path, keys, message):
    with pytest.raises(UsageError, match=message):
        train("lenet5_modern", "digits", out=tmp_path / "r", **{**QUICK, **keys})
    assert not (tmp_path / "r").exists()


def test_masks_are_not_cropped(tmp_path):
    with pytest.raises(UsageError, match="fit = 'crop' is for classification"):
        train("unet_same", "digit_scenes", out=tmp_path / "r", fit="crop", progress=False)


def test_the_rate_is_constant_for_the_head_and_then_the_schedule_starts():
    chosen = Recipe(
        model="lenet5",
        data="digits",
        epochs=6,
        lr=0.1,
        head_epochs=2,
        head_lr=0.7,
        warmup_epochs=1.0,
        schedule="cosine",
    )
    without = dataclasses.replace(chosen, epochs=4, head_epochs=0, head_lr=0.0)
    assert [learning_rate(chosen, time) for time in (0, 0.5, 1.99)] == [0.7] * 3
    for time in (0.0, 0.5, 1.0, 2.5, 4.0):
        assert learning_rate(chosen, 2 + time) == pytest.approx(learning_rate(without, time))
    same = dataclasses.replace(chosen, head_lr=0.0)
    assert learning_rate(same, 1) == 0.1


def test_the_rate_falls_by_a_factor_for_each_stage_below_the_head():
    model = create_model("alexnet_small")
    chosen = Recipe(
        model="alexnet_small", data="digits", layer_decay=0.5, stage_lr={"conv5": 10.0}
    )
    factors = {
        name.partition(".")[0]: group.factor
        for group in make_optimizer(model, chosen).groups
        for name in group.parameters
    }
    # Pooling and response normalisation have no parameters, so they do not count.
    expected = {"fc8": 1, "fc7": 2, "fc6": 4, "conv5": 0.8, "conv4": 16, "conv3": 32}
    expected |= {"conv2": 64, "conv1": 128}
    assert factors == {stage: 1 / value for stage, value in expected.items()}


@pytest.mark.parametrize("name", registry.list_models("*"))
def test_every_parameter_of_every_model_has_a_factor(name):
    with torch.device("meta"):
        model = create_model(name)
    chosen = Recipe(model=name, data="digits", layer_decay=0.9)
    groups = make_optimizer(model, chosen).groups
    factors = {p: group.factor for group in groups for p in group.parameters}
    assert factors.keys() == {p for p, _ in model.named_parameters()}
    last = [
        s for s in registry.get_spec(name).stages if any(p.startswith(f"{s}.") for p in factors)
    ]
    assert {factors[p] for p in factors if p.startswith(f"{last[-1]}.")} == {1.0}
    assert min(factors.values()) == pytest.approx(0.9 ** (len(last) - 1))


# --- what is trained when ------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_phases(tmp_path_factory, flowers, ancestor):
    return train(
        "resnet20_cifar",
        f"imagefolder:{flowers}",
        out=tmp_path_factory.mktemp("two") / "run",
        weights=str(ancestor),
        head_epochs=1,
        keep=10,
        **QUICK,
    )


def test_at_first_only_the_head_changes_then_everything(two_phases, ancestor):
    source = read_weights(ancestor).tensors
    first = checkpoint(two_phases, "e000001-s00000000")
    assert changed(source, first.model) == {"fc.weight", "fc.bias"}
    assert {name.split(".", 1)[1] for name in first.optimizer} == {"fc.weight", "fc.bias"}
    second = checkpoint(two_phases, "e000002-s00000000")
    # Counters of batches too: batch normalisation was in eval mode before.
    assert changed(source, second.model) == source.keys()


def test_statistics_of_batch_norm_can_be_fixed_and_their_scales_are_still_trained(
    tmp_path, flowers, ancestor
):
    run = train(
        "resnet20_cifar",
        f"imagefolder:{flowers}",
        out=tmp_path / "r",
        weights=str(ancestor),
        freeze_batchnorm=True,
        **QUICK,
    )
    source, found = read_weights(ancestor).tensors, Checkpoints(run.state).newest().model
    same = source.keys() - changed(source, found)
    assert same == {name for name in source if "running_" in name or name.endswith("tracked")}


def test_a_head_for_other_classes_is_new_even_if_there_are_as_many(tmp_path, flowers, ancestor):
    three = dataclasses.replace(WEIGHTS, num_classes=3, classes=("cat", "dog", "fox"))
    tensors = create_model("resnet20_cifar", num_classes=3, in_channels=3).state_dict()
    for classes in (three.classes, ("aster", "iris", "rose")):
        path = tmp_path / f"{classes[0]}.safetensors"
        write_weights(path, dataclasses.replace(three, tensors=tensors, classes=classes))
        run = train(
            "resnet20_cifar",
            f"imagefolder:{flowers}",
            out=tmp_path / classes[0],
            weights=str(path),
            freeze=["conv1", "conv2_x", "conv3_x", "conv4_x"],
            **{**QUICK, "lr": 0.0},
        )
        found = read_weights(run.path).tensors
        # The bias is 0 in every new head.
        assert changed(tensors, found) == (set() if classes[0] == "aster" else {"fc.weight"})


# --- exact resumption ----------------------------------------------------------------------


class Interrupt:
    """Ends a training after some steps, right after a save."""

    def __init__(self, steps):
        self.steps = steps

    def cnnzoo_step_end(self):
        self.steps -= 1
        if self.steps == 0:
            raise KeyboardInterrupt


PHASES = {
    "adamw": {"optimizer": "adamw", "lr": 0.003, "head_lr": 0.01, "layer_decay": 0.7},
    "average": {"ema": 0.9, "freeze_batchnorm": True, "crop": [0.5, 1], "flip": True},
    "streaming": {"pipeline": "streaming", "crop": [0.5, 1], "optimizer": "rmsprop", "lr": 1e-3},
}


@pytest.mark.parametrize("name", PHASES)
def test_going_on_after_any_step_gives_the_same_bits(tmp_path, flowers, ancestor, name):
    """Interrupted after 1, 2, 3 … steps: in the head epochs, at their end, and after it."""
    chosen = {**QUICK, "epochs": 3, "head_epochs": 2, "save_steps": 1, **PHASES[name]}
    chosen |= {"weights": str(ancestor), "data": f"imagefolder:{flowers}"}
    whole = train("resnet20_cifar", out=tmp_path / "whole", **chosen)
    for steps in itertools.count(1):
        out = tmp_path / "stopped"
        try:
            train(
                "resnet20_cifar", out=out, auto_resume=True, observers=[Interrupt(steps)], **chosen
            )
            break
        except KeyboardInterrupt:
            pass
    assert steps >= 4
    assert_same(Run.open(out), whole)


def test_every_checkpoint_is_a_place_to_go_on_from(tmp_path, flowers, ancestor):
    chosen = {**QUICK, "head_epochs": 1, "save_steps": 1, "keep": 100, "optimizer": "adamw"}
    whole = train(
        "resnet20_cifar",
        f"imagefolder:{flowers}",
        out=tmp_path / "whole",
        weights=str(ancestor),
        **chosen,
    )
    names = Checkpoints(whole.state).names()
    assert "e000001-s00000000" in names  # the boundary
    for number in range(len(names)):
        copied = Run.open(shutil.copytree(whole.path, tmp_path / f"from-{number}"))
        for later in names[number + 1 :]:
            shutil.rmtree(copied.state / later)
        copied.write_metrics([])
        assert_same(train(resume=copied.path, progress=False), whole)


def assert_same(run, whole):
    assert run.weights.read_bytes() == whole.weights.read_bytes()
    mine, theirs = (Checkpoints(each.state).newest() for each in (run, whole))
    for part in ("model", "optimizer", "average"):
        found, expected = getattr(mine, part), getattr(theirs, part)
        assert found.keys() == expected.keys()
        assert not changed(expected, found)
    drop = {"seconds", "images_per_second"}
    lines = [
        [{k: v for k, v in line.items() if k not in drop} for line in each.metrics()]
        for each in (run, whole)
    ]
    assert lines[0] == lines[1]


@pytest.mark.xdist_group("torchrun")
def test_two_processes_train_the_head_and_then_everything_as_one_does(
    tmp_path, flowers, ancestor, two_ranks
):
    """After the head epochs, gradients of all parameters are averaged over the processes."""
    keys = {"head_epochs": 1, "freeze_batchnorm": True, "lr": 1e-4}
    data = f"imagefolder:{flowers}"
    chosen = {**QUICK, "weights": str(ancestor), **keys}
    alone = train("resnet20_cifar", data, out=tmp_path / "one", **chosen)
    command = ["cnn_core", "train", "resnet20_cifar", "--data", data]
    command += [f"--set={key}={str(value).lower()}" for key, value in keys.items()]
    command += ["--set=validation=0.25", "--epochs=2", "--batch-size=8"]
    command += ["--weights", str(ancestor), "--out", str(tmp_path / "two")]
    two_ranks(*command)
    assert Run.open(tmp_path / "two").environment()["processes"] == 2
    folders = (alone.state, tmp_path / "two" / "state")
    one, two = (Checkpoints(folder).newest().model for folder in folders)
    source = read_weights(ancestor).tensors
    assert not torch.equal(one["conv1.conv.weight"], source["conv1.conv.weight"])
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-5), name


# --- centre crops --------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(5, 70),
    width=st.integers(5, 70),
    rows=st.integers(8, 20),
    columns=st.integers(8, 20),
    more=st.integers(0, 9),
)
def test_a_square_has_exactly_the_centre_of_its_image(height, width, rows, columns, more):
    prepare = dataclasses.replace(CROP, size=(rows, columns), resize=max(rows, columns) + more)
    generator = torch.Generator().manual_seed(height * width)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    square = prepare.center_square(image)
    assert square.shape == (3, prepare.resize, prepare.resize)
    assert torch.equal(prepare.center_cropped(square), prepare.center_cropped(image))
    assert torch.equal(prepare(square[None]), prepare(image[None]))


@pytest.mark.parametrize("pipeline", ["memory", "streaming"])
@pytest.mark.parametrize("crop", [[], [0.4, 1.0]])
def test_validation_evaluation_and_prediction_see_the_same_pixels(
    tmp_path, flowers, ancestor, pipeline, crop
):
    chosen = {**QUICK, "pipeline": pipeline, "crop": crop, "weights": str(ancestor)}
    progress = chosen.pop("progress")
    data = f"imagefolder:{flowers}"
    dataset = load_dataset(data)
    recipe = Recipe(model="resnet20_cifar", data=data, **chosen)
    setup = set_up(recipe, dataset, CPU, show_progress=False)
    assert setup.preprocessing == dataclasses.replace(CROP)
    files = dataset.divide(*recipe.part())[1].images
    assert len(files) == len(setup.validation) == 6
    alone = [CROP(read_image(path, 3)[None]) for path in files]  # as predict does
    validated = torch.cat([b.images for b in batches(setup.validation, setup.preprocessing, 4)])
    assert torch.equal(validated, torch.cat(alone))

    run = train("resnet20_cifar", data, out=tmp_path / "r", progress=progress, **chosen)
    weights = read_weights(run.path)
    assert weights.preprocessing == CROP
    trained = Trained(run)
    test = trained.dataset.split("test")
    evaluated = torch.cat([b.images for b in batches(test, weights.preprocessing, 5)])
    alone = [weights.preprocessing(read_image(path, 3)[None]) for path in test.images]
    assert torch.equal(evaluated, torch.cat(alone))
    again = evaluate(run)
    assert {f"test/{name}": value for name, value in again.items()} == run.test_metrics()
    found = predict(run, test.images)
    hits = [
        prediction.classes[0] == weights.classes[target]
        for prediction, target in zip(found, test.targets.tolist(), strict=True)
    ]
    assert sum(hits) / len(hits) == again["top1"]


def test_images_of_one_size_are_kept_as_they_are_unless_they_are_large(tmp_path, ancestor):
    for side, kept in ((12, 12), (64, 20)):
        root = tmp_path / str(side)
        for name in ("a", "b"):
            (root / name).mkdir(parents=True)
            for number in range(5):
                pixels = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(root / name / f"{number}.png")
        data = f"imagefolder:{root}"
        run = train(
            "resnet20_cifar", data, out=tmp_path / f"r{side}", weights=str(ancestor), **QUICK
        )
        setup = set_up(run.recipe, load_dataset(data), CPU, resuming=True, show_progress=False)
        assert setup.train.images.shape[1:] == (3, kept, kept)
        again = evaluate(run)
        assert {f"test/{name}": value for name, value in again.items()} == run.test_metrics()
        other = evaluate(run, data=data)  # through matching, which decodes into memory
        assert other == again


def test_random_parts_of_an_image_keep_its_proportions():
    draws = Augmentation(crop=(0.2, 0.3)).draws(0, 0)
    boxes = draws.crop_boxes(np.arange(300), 1 / 2)  # an image twice as wide as high
    ratios = boxes[:, 3] * 2 / boxes[:, 2]
    assert ratios.min() == pytest.approx(3 / 4, abs=0.02)
    assert ratios.max() == pytest.approx(4 / 3, abs=0.02)
    areas = boxes[:, 2] * boxes[:, 3]
    assert 0.199 < areas.min() < areas.max() < 0.301


def test_a_random_part_is_cut_from_the_whole_image_and_then_resized():
    """A horizontal ramp: each crop is a part of it, and some reach beyond the centre crop."""
    ramp = torch.arange(40, dtype=torch.float32).expand(200, 1, 40, 40) / 39
    draws = Augmentation(crop=(0.3, 0.5)).draws(0, 0)
    indices = np.arange(200)
    found, _ = draws.resample(ramp, indices, (16, 16))
    assert found.shape == (200, 1, 16, 16)
    boxes = torch.from_numpy(draws.crop_boxes(indices)).float()
    centre = (boxes[:, 1] + boxes[:, 3] / 2) * 40 / 39 - 0.5 / 39
    assert torch.allclose(found.mean((1, 2, 3)), centre, atol=2e-3)


# --- weights by name -----------------------------------------------------------------------


PUBLISHER = """
from cnn_core import WeightsSpec, hookimpl

@hookimpl
def cnnzoo_weights():
    common = dict(
        model="resnet20_cifar", summary="s", data="animals", num_classes=4,
        classes=("cat", "dog", "fox", "owl"), licence="MIT", source="https://example.org",
        mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), input_size=(16, 16), resize=20,
        interpolation="bicubic",
    )
    return [
        WeightsSpec(name="resnet20_cifar:animals", file="published_animals:a.safetensors",
                    sha256={digest!r}, bytes=1, default=True, **common),
        WeightsSpec(name="resnet20_cifar:elsewhere", url="https://example.org/w-12345678.pth",
                    sha256="12345678", bytes=1_000_000, naming="torchvision", **common),
    ]
"""


@pytest.fixture
def published(tmp_path, monkeypatch, ancestor, zoo, plugin):
    """Publish the ancestor as resnet20_cifar:animals; return the path of its file."""
    package = tmp_path / "site" / "published_animals"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    path = shutil.copy(ancestor, package / "a.safetensors")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("CNNZOO_CACHE", str(tmp_path / "cache"))
    source = PUBLISHER.replace("{digest!r}", repr(file_digest(path)))
    found = discover()
    zoo(*found, plugin("animals", source=source))
    yield path
    sys.modules.pop("published_animals", None)


@pytest.mark.parametrize("name", ["default", "animals", "resnet20_cifar:animals"])
def test_training_starts_from_published_weights_by_name(tmp_path, flowers, published, name):
    run = train(
        "resnet20_cifar",
        f"imagefolder:{flowers}",
        out=tmp_path / "r",
        weights=name,
        **{**QUICK, "head_epochs": 2},
    )
    source = read_weights(published)
    assert run.recipe.weights == "resnet20_cifar:animals"
    assert run.recipe.weights_digest == source.digest
    assert changed(source.tensors, read_weights(run.path).tensors) == {"fc.weight", "fc.bias"}
    recorded = run.recipe
    assert (recorded.fit, recorded.resize, recorded.interpolation) == ("crop", 20, "bicubic")
    assert (recorded.image_size, recorded.mean, recorded.std) == (16, CROP.mean, CROP.std)
    same = train(
        "resnet20_cifar",
        f"imagefolder:{flowers}",
        out=tmp_path / "r",
        weights=name,
        auto_resume=True,
        **{**QUICK, "head_epochs": 2},
    )
    assert same.path == run.path


def test_another_size_takes_the_shorter_side_in_proportion(tmp_path, flowers, ancestor):
    run = train(
        "resnet20_cifar",
        f"imagefolder:{flowers}",
        out=tmp_path / "r",
        weights=str(ancestor),
        image_size=24,
        **QUICK,
    )
    found = read_weights(run.path).preprocessing
    assert (found.size, found.resize, found.fit) == ((24, 24), 30, "crop")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("animal", UnknownNameError, "'resnet20_cifar:animal', did you mean .*:animals'"),
        ("resnet32_cifar:animals", UsageError, "weights of 'resnet32_cifar', not of"),
        ("elsewhere", Exception, r"1\.0 MB, MIT, https://example.org/w-12345678.pth"),
        ("nowhere.pth", UsageError, "nowhere.pth: no such file"),
        ("some/run", UsageError, "some/run: no such file"),
        ("net.onnx", UsageError, "net.onnx: an exported file, which cannot be trained"),
    ],
)
def test_weights_that_are_not_there_are_explained(
    tmp_path, flowers, published, name, error, message
):
    with pytest.raises(error, match=message):
        train(
            "resnet20_cifar", f"imagefolder:{flowers}", out=tmp_path / "r", weights=name, **QUICK
        )
    assert not (tmp_path / "r").exists()


def test_resuming_checks_the_weights_that_the_run_started_from(
    tmp_path, flowers, ancestor, caplog
):
    path = str(shutil.copy(ancestor, tmp_path / "source.safetensors"))
    data, chosen = f"imagefolder:{flowers}", {**QUICK, "weights": path, "save_steps": 1}
    whole = train("resnet20_cifar", data, out=tmp_path / "whole", **chosen)
    with pytest.raises(KeyboardInterrupt):
        train("resnet20_cifar", data, out=tmp_path / "a", observers=[Interrupt(2)], **chosen)
    changed_weights = dataclasses.replace(read_weights(path), epoch=7)
    write_weights(tmp_path / "source.safetensors", changed_weights)
    untouched = shutil.copytree(tmp_path / "a", tmp_path / "b")
    for folder in Checkpoints(Run.open(untouched).state).names():
        shutil.rmtree(untouched / "state" / folder)
    # Before the first checkpoint the weights are needed; after it only the record is wrong.
    with pytest.raises(CorruptError, match="these weights have changed"):
        train(resume=untouched, progress=False)
    resumed = train(resume=tmp_path / "a", progress=False)
    assert "these weights have changed" in caplog.text
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()
    with pytest.raises(CorruptError, match="these weights have changed"):
        train("resnet20_cifar", data, weights_digest="0" * 64, **chosen)


# --- in one line ---------------------------------------------------------------------------


def test_a_run_weights_by_name_and_a_file_are_fine_tuned(tmp_path, flowers, published):
    data, chosen = f"imagefolder:{flowers}", {"epochs": 2, "progress": False}
    first = finetune("resnet20_cifar", data, out=tmp_path / "a", seed=3, **chosen)
    recipe = first.recipe
    assert (recipe.weights, recipe.head_epochs, recipe.seed) == ("resnet20_cifar:animals", 1, 3)
    assert (recipe.crop, recipe.flip) == ((0.35, 1.0), True)
    assert read_weights(first.path).preprocessing == CROP
    second = finetune(first.path, data, out=tmp_path / "b", crop=[], head_epochs=0, **chosen)
    assert (second.recipe.weights, second.recipe.crop) == (str(first.path), ())
    foreign = tmp_path / "anybody.safetensors"
    save_file(dict(read_weights(published).tensors), foreign)
    with pytest.raises(UsageError, match="which network are these weights for"):
        finetune(foreign, data, **chosen)
    third = finetune(
        foreign, data, model="resnet20_cifar", image_size=16, out=tmp_path / "c", **chosen
    )
    assert third.recipe.weights == str(foreign)
    assert third.recipe.fit == ""  # nothing is known of this file


def test_options_of_the_network_come_with_its_weights(tmp_path):
    options = {"width": 4, "depth": 2}
    sizes = {"num_classes": 2, "in_channels": 1}
    prepare = Preprocessing(
        size=(32, 32), image_size=(64, 64), fit="resize", mean=(0.5,), std=(0.5,)
    )
    unet = Weights(
        tensors=create_model("unet_same", **sizes, **options).state_dict(),
        model="unet_same",
        options=options,
        classes=("background", "digit"),
        preprocessing=prepare,
        epoch=1,
        **sizes,
    )
    path = tmp_path / "unet.safetensors"
    write_weights(path, unet)
    chosen = {"epochs": 1, "out": tmp_path / "r", "progress": False, "batch_size": 64}
    run = finetune(path, "digit_scenes", **chosen)
    assert run.recipe.options == options
    assert run.recipe.image_size == 32
    finetune(path, "digit_scenes", auto_resume=True, **chosen)


def test_digits_are_not_mirrored(tmp_path, digits_run):
    run = finetune(digits_run.path, "digits", epochs=1, out=tmp_path / "r", progress=False)
    assert (run.recipe.flip, run.recipe.crop) == (False, ())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "resnet20_cifr",
            "neither a run, a weights file nor a model, did you mean 'resnet20_cifar'",
        ),
        ("net.pt2", "net.pt2: an exported file, which cannot be trained"),
        ("vgg11_cifar", "there are no published weights of 'vgg11_cifar'"),
    ],
)
def test_a_source_that_is_not_there_is_explained(source, message):
    with pytest.raises(UsageError, match=message):
        finetune(source, "digits")


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"weights": "default"}, "weights = 'default': the source already determines"),
        ({"model": "vgg11"}, "model is for weights files of other libraries"),
        ({"recipe": "nothing.toml"}, "nothing.toml: no such recipe file"),
    ],
)
def test_what_a_source_determines_cannot_be_set(digits_run, settings_, message):
    with pytest.raises(UsageError, match=message):
        finetune(digits_run.path, "digits", **settings_)


def test_a_recipe_replaces_the_defaults(tmp_path, flowers, published):
    path = tmp_path / "mine.toml"
    path.write_text('[recipe]\nmodel = "resnet20_cifar"\ndata = "digits"\nepochs = 1\nlr = 0.01\n')
    run = finetune(
        "resnet20_cifar",
        f"imagefolder:{flowers}",
        recipe=str(path),
        out=tmp_path / "r",
        progress=False,
    )
    assert (run.recipe.lr, run.recipe.head_epochs, run.recipe.optimizer) == (0.01, 0, "sgd")
    assert run.recipe.weights == "resnet20_cifar:animals"


def test_the_command_and_its_hint(
    tmp_path, flowers, published, capsys, command_leaves_no_trace, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    data = ["--data", f"imagefolder:{flowers}"]
    common = ["--epochs", "1", "--batch-size", "8"]
    assert main(["finetune", "resnet20_cifar", *data, *common, "--out", "a"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "a\n"
    assert "hint" not in printed.err
    assert main(["train", "resnet20_cifar", *data, *common, "--out", "b"]) == 0
    hint = [line for line in capsys.readouterr().err.splitlines() if "hint" in line]
    assert hint == [
        "hint: only 24 training images: --weights default starts from resnet20_cifar:animals, "
        "trained on animals"
    ]
    assert main(["finetune", "resnet20_cifar", *data, "--set", "model=lenet5"]) == 2
    assert "--set model: SOURCE and --data determine the model" in capsys.readouterr().err


# --- files of other libraries --------------------------------------------------------------


@pytest.fixture
def foreign(tmp_path):
    """A file of an unknown training, with akamaster's names and four classes."""
    torch.manual_seed(2)
    state = create_model("resnet20_cifar", num_classes=4, in_channels=3).state_dict()
    keymap = key_maps(registry.models().entry("resnet20_cifar"))["akamaster"]
    torch.save({"net": keymap.to_theirs(state)}, tmp_path / "theirs.pth")
    return tmp_path / "theirs.pth"


def test_a_line_says_what_is_new_frozen_and_used(tmp_path, flowers, foreign, ancestor, in_process):
    common = ["--data", f"imagefolder:{flowers}", "--epochs", "1", "--batch-size", "8"]
    (published,) = (entry.spec for entry in weights_of("resnet20_cifar").values())
    like = published.name.partition(":")[2]

    def line(*arguments):
        code, out, err = in_process(*arguments, *common, "--out", tmp_path / str(len(seen)))
        assert code == 0, err
        seen.append(Run.open(out.strip()).recipe)
        assert "initialised anew" not in err
        return [text for text in err.splitlines() if text.startswith("from ")]

    seen: list[Recipe] = []
    train_ = ["train", "resnet20_cifar", "--weights"]
    head = f"from {foreign}; new head: fc.weight, fc.bias"
    unknown = f"those of the file are unknown (--set weights_like={like} sets them)"
    assert line(*train_, foreign) == [f"{head}; mean and std of the dataset, {unknown}"]
    chosen = ["--naming", "akamaster@net", "--weights-like", like, "--freeze", "conv1"]
    of_weights = "mean and std of the weights"
    assert line(*train_, foreign, *chosen) == [f"{head}; frozen: conv1; {of_weights}"]
    model = ["--model", f"resnet20_cifar:{like}", "--naming", "akamaster"]
    alone = (
        "only the head is trained, since head_epochs = epochs = 1; all else stays as it is "
        "(--set head_epochs=0 trains everything)"
    )
    assert line("finetune", foreign, *model) == [f"{head}; {alone}; {of_weights}"]
    assert [recipe.mean for recipe in seen] == [(), published.mean, published.mean]
    assert (seen[2].naming, seen[2].weights_like) == ("akamaster", like)
    assert line(*train_, ancestor, "--set", "mean=[0.5,0.5,0.5]") == [
        f"from {ancestor}; new head: fc.weight, fc.bias; mean as set, std of the weights"
    ]
    own = Path(tmp_path / "3")
    assert line("finetune", own) == [f"from {own}; head kept; {alone}; {of_weights}"]
    for head_epochs, words in ((1, "epoch 1 trains"), (2, "epochs 1 to 2 train")):
        recipe = dataclasses.replace(seen[-1], epochs=3, head_epochs=head_epochs)
        assert [*initial_weights._of_head_epochs(recipe)] == [f"{words} only the head"]


@pytest.mark.parametrize(
    ("weights", "arguments", "message"),
    [
        ("OURS", "naming=akamaster", "naming is for weights files of other libraries"),
        ("OURS", "weights_like=cifar10", "weights_like is for weights files of other libraries"),
        ("THEIRS", "naming=tov", "naming = 'tov'"),
        ("THEIRS", "weights_like=cifar11", "unknown weights 'resnet20_cifar:cifar11', did you"),
        (
            "THEIRS",
            "weights_like=lenet5:mnist",
            "weights_like = 'lenet5:mnist': weights of 'lenet",
        ),
    ],
)
def test_options_of_weights_files_that_do_not_apply_are_errors(
    tmp_path, flowers, foreign, ancestor, in_process, weights, arguments, message
):
    file = {"OURS": ancestor, "THEIRS": foreign}[weights]
    command = ["train", "resnet20_cifar", "--data", f"imagefolder:{flowers}", "--set", arguments]
    code, _, err = in_process(*command, "--weights", file, "--out", tmp_path / "r")
    assert code == 2
    assert message in err
    assert not (tmp_path / "r").exists()
    assert "needs weights" in in_process(*command)[2]
