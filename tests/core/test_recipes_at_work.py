"""What recipe keys do to a training: groups, averages, pieces, frozen stages, early ends."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from cnn_arch_resnet.weights import key_maps
from cnn_core import create_model, load_dataset
from cnn_core.data import batches
from cnn_core.data.augment import Augmentation
from cnn_core.data.batching import Batch
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.errors import UsageError
from cnn_core.training import Recipe, Run, train
from cnn_core.training.checkpoint import Checkpoint, Checkpoints
from cnn_core.training.ema import Average
from cnn_core.training.optim import make_optimizer
from cnn_core.training.train_state import TrainState
from cnn_core.weights.keymap import KeyMap
from cnn_core.weights.native import read_weights

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
QUICK = {"progress": False, "epochs": 2, "batch_size": 64}


def recipe(**changes):
    return Recipe(**{"model": "resnet20_cifar", "data": "digits", **changes})


def last(run):
    return Checkpoints(run.state).newest()


# --- optimizers ----------------------------------------------------------------------------


def test_biases_and_normalisation_can_be_left_out_of_weight_decay():
    model = create_model("resnet20_cifar")
    chosen = recipe(weight_decay_on="weights", weight_decay=0.1)
    decays = {
        name: group.weight_decay
        for group in make_optimizer(model, chosen).groups
        for name in group.parameters
    }
    assert decays.keys() == dict(model.named_parameters()).keys()
    norms = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for part in ("weight", "bias")
    }
    exempt = norms | {name for name in decays if name.endswith("bias")}
    assert {name for name, decay in decays.items() if decay == 0} == exempt
    assert {decay for name, decay in decays.items() if name not in exempt} == {0.1}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop"])
def test_groups_step_as_torchs_parameter_groups_do(optimizer):
    torch.manual_seed(0)
    mine = create_model("resnet20_cifar", in_channels=1)
    theirs = copy.deepcopy(mine)
    chosen = recipe(
        optimizer=optimizer,
        weight_decay_on="weights",
        weight_decay=0.05,
        eps=1e-6,
        stage_lr={"fc": 10.0, "conv2_x": 0.1},
        momentum=0.8,
        beta2=0.95,
    )
    stepper = make_optimizer(mine, chosen)
    groups = [
        {
            "params": [dict(theirs.named_parameters())[name] for name in group.parameters],
            "weight_decay": group.weight_decay,
            "factor": group.factor,
        }
        for group in stepper.groups
    ]
    reference = {
        "sgd": lambda: torch.optim.SGD(groups, lr=1.0, momentum=0.8, nesterov=True, fused=True),
        "adamw": lambda: torch.optim.AdamW(
            groups, lr=1.0, betas=(0.8, 0.95), eps=1e-6, fused=True
        ),
        "rmsprop": lambda: torch.optim.RMSprop(
            groups, lr=1.0, momentum=0.8, alpha=0.95, eps=1e-6, foreach=True
        ),
    }[optimizer]()
    assert {group["factor"] for group in groups} == {10.0, 0.1, 1.0}
    for step in range(3):
        x, targets = torch.randn(8, 1, 16, 16), torch.randint(0, 10, (8,))
        for model in (mine, theirs):
            model.zero_grad()
            nn.functional.cross_entropy(model(x), targets).backward()
        for group in reference.param_groups:
            group["lr"] = 0.01 / (step + 1) * group["factor"]
        reference.step()
        stepper.step(0.01 / (step + 1))
    pairs = zip(mine.parameters(), theirs.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@settings(max_examples=12, deadline=None)
@given(
    optimizer=st.sampled_from(["sgd", "adamw", "rmsprop"]),
    ema=st.sampled_from([0.0, 0.9]),
    precision=st.sampled_from(["fp32", "fp16"]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    steps=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_what_is_trained_goes_into_a_state_and_back(
    tmp_path_factory, optimizer, ema, precision, memory_format, steps, seed
):
    """Optimizer, average, scaler and buffers: the next steps are the same, bit for bit."""
    torch.manual_seed(seed)
    chosen = recipe(optimizer=optimizer, ema=ema, precision=precision, lr=0.01)
    model = create_model("resnet20_cifar", in_channels=1).to(memory_format=memory_format)
    train_state = TrainState(model, chosen, CPU)

    def step(one, number):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(4, 1, 16, 16, generator=generator)
        targets = torch.randint(0, 10, (4,), generator=generator)
        one.train()
        one.scaler.scale(nn.functional.cross_entropy(one.model(x), targets)).backward()
        one.clip(one.gradient_norm())
        one.step(0.01, number)

    for number in range(steps):
        step(train_state, number)
    checkpoints = Checkpoints(tmp_path_factory.mktemp("state") / "state")
    checkpoints.save(train_state.state(Checkpoint(), epoch=1, step=steps))
    other = TrainState(
        create_model("resnet20_cifar", in_channels=1).to(memory_format=memory_format), chosen, CPU
    )
    other.load(checkpoints.newest())
    for number in range(steps, steps + 2):
        step(train_state, number)
        step(other, number)
    for part in ("model", "optimizer", "average"):
        mine, theirs = (getattr(t.state(Checkpoint()), part) for t in (train_state, other))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert train_state.scaler.state_dict() == other.scaler.state_dict()


# --- averages ------------------------------------------------------------------------------


def test_the_average_is_its_formula_and_buffers_are_averaged_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    average = Average(model, 0.95)
    expected = {k: v.double().clone() for k, v in model.state_dict().items()}
    for step in range(30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(4, 1, 5, 5))
        average.update(step)
        decay = min(0.95, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                expected[key] = decay * expected[key] + (1 - decay) * value.double()
            else:
                expected[key] = value
    for key, value in average.model.state_dict().items():
        assert torch.allclose(value.double(), expected[key].double(), atol=1e-5)


def test_averaged_weights_are_what_is_measured_and_kept(tmp_path):
    run = train("lenet5_modern", "digits", out=tmp_path / "r", ema=0.9, validation=0.0, **QUICK)
    state, kept = last(run), read_weights(run.path).tensors
    assert all(torch.equal(kept[name], state.average[name]) for name in kept)
    assert not torch.equal(kept["c1.weight"], state.model["c1.weight"])


# --- pieces --------------------------------------------------------------------------------


def losses_of(tmp_path, name, **changes):
    seen = []

    class Watch:
        def cnnzoo_epoch_end(self, metrics):
            seen.append(metrics["train/loss"])

    run = train(
        "lenet5_modern",
        "digits",
        out=tmp_path / name,
        observers=[Watch()],
        **{**QUICK, "epochs": 1, "optimizer": "sgd", "lr": 0.002, **changes},
    )
    return seen, last(run).model


@pytest.mark.parametrize("changes", [{}, {"shift": 1}, {"mixup": 0.4}, {"cutmix": 1.0}])
def test_a_batch_in_four_pieces_is_the_batch(tmp_path, changes):
    whole, expected = losses_of(tmp_path, "whole", batch_size=32, **changes)
    micro_batches, found = losses_of(tmp_path, "pieces", batch_size=32, accumulate=4, **changes)
    assert micro_batches == pytest.approx(whole, abs=1e-6)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=2e-6), name


def test_gradients_of_four_times_eight_are_those_of_32():
    torch.manual_seed(0)
    model = create_model("lenet5_modern").double()
    x, targets = torch.randn(32, 1, 32, 32).double(), torch.randint(0, 10, (32,))
    batch = Batch(x, targets, torch.arange(32))
    nn.functional.cross_entropy(model(x), targets).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    sizes = []
    for piece in batch.micro_batches(8):
        loss = nn.functional.cross_entropy(model(piece.images), piece.targets)
        (loss * piece.loss_weight).backward()
        sizes.append(len(piece.indices))
    assert sizes == [8, 8, 8, 8]
    for p, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(p.grad, gradient, atol=1e-14)


@pytest.mark.parametrize(("length", "size"), [(32, 8), (33, 8), (7, 3), (9, 9), (5, 100), (1, 1)])
def test_pieces_are_the_batch_and_none_is_a_single_image(length, size):
    images, places = torch.randn(length, 1, 2, 2), torch.arange(length)
    batch = Batch(images, places, places, None, 0.5)
    micro_batches = list(batch.micro_batches(size))
    assert torch.equal(torch.cat([p.images for p in micro_batches]), batch.images)
    assert torch.equal(torch.cat([p.indices for p in micro_batches]), batch.indices)
    assert sum(p.loss_weight for p in micro_batches) == pytest.approx(0.5)
    assert length == 1 or min(len(p.indices) for p in micro_batches) > 1


def test_batches_can_begin_in_the_middle_of_an_epoch():
    split = load_dataset("digits").split("train")
    prepare = Preprocessing(size=(8, 8), image_size=(8, 8), fit="resize", mean=(0.5,), std=(0.5,))
    draws = Augmentation(shift=1, flip=True).draws(3, 5)
    whole = list(batches(split, prepare, 100, draws=draws))
    rest = list(batches(split, prepare, 100, draws=draws, first=9))
    assert len(rest) == len(whole) - 9
    for one, other in zip(rest, whole[9:], strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.indices, other.indices)


# --- exact resumption ----------------------------------------------------------------------


class After:
    """Ends a training right after a save within an epoch."""

    def __init__(self, count):
        self.count = count

    def cnnzoo_step_end(self):
        self.count -= 1
        if self.count < 0:
            raise KeyboardInterrupt


NARROW = {"image_size": 32, "options": {"width": 4, "depth": 2}}
DETAILS = {
    "everything": {"ema": 0.9, "optimizer": "adamw", "lr": 0.003, "shift": 1, "clip_norm": 1.0},
    "dropout": {"model": "unet_same", "data": "digit_scenes", "epochs": 1, **NARROW},
    "norm": {"model": "resnet20_cifar", "batch_size": 256, "image_size": 16},
    "pieces": {"accumulate": 3, "mixup": 0.3, "optimizer": "rmsprop", "lr": 0.0005},
    "half": {"precision": "bf16", "schedule": "one_cycle", "stage_lr": {"c1": 0.5}},
    "stop": {"patience": 1, "monitor": "val/loss", "epochs": 4, "lr": 0.1},
}


@pytest.mark.parametrize("name", DETAILS)
def test_going_on_after_any_step_gives_the_same_bits(tmp_path, name):
    chosen = {**QUICK, "save_steps": 1, "topk": 3, **DETAILS[name]}
    model, data = chosen.pop("model", "lenet5_modern"), chosen.pop("data", "digits")
    whole = train(model, data, out=tmp_path / "whole", **chosen)
    out, stops = tmp_path / "stopped", 0
    while True:  # each attempt takes a few steps more
        try:
            run = train(
                model, data, out=out, auto_resume=True, observers=[After(3 + stops)], **chosen
            )
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 1
    assert run.weights.read_bytes() == whole.weights.read_bytes()
    mine, theirs = last(run), last(whole)
    for part in ("model", "optimizer", "average"):
        found, expected = getattr(mine, part), getattr(theirs, part)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)
    assert (mine.scaler, mine.best, mine.best_epoch) == (
        theirs.scaler,
        theirs.best,
        theirs.best_epoch,
    )
    assert timeless(run) == timeless(whole)


def timeless(run):
    drop = {"seconds", "images_per_second"}
    return [{k: v for k, v in line.items() if k not in drop} for line in run.metrics()]


def test_every_single_step_is_a_place_to_go_on_from(tmp_path):
    """One run of 42 steps, saved after each, and resumed from every sixth of the saves."""
    chosen = {**QUICK, "save_steps": 1, "keep": 1000, "ema": 0.9, "shift": 1}
    whole = train("lenet5_modern", "digits", out=tmp_path / "whole", **chosen)
    names = Checkpoints(whole.state).names()
    assert len(names) == 42
    import shutil

    for number, name in enumerate(names[::6]):
        copied = Run.open(shutil.copytree(whole.path, tmp_path / f"from-{number}"))
        for later in names[6 * number + 1 :]:
            shutil.rmtree(copied.state / later)
        copied.write_metrics([])
        resumed = train(resume=copied.path, progress=False)
        assert resumed.weights.read_bytes() == whole.weights.read_bytes(), name
        assert timeless(resumed) == timeless(whole), name


@pytest.mark.parametrize("changes", [{"epochs": 3}, {"seed": 1}, {"lr": 0.5}, {"shift": 2}])
def test_a_run_of_another_recipe_is_not_gone_on_with(tmp_path, changes):
    train("lenet5_modern", "digits", out=tmp_path / "r", **QUICK)
    settings_ = {**QUICK, **changes, "auto_resume": True}
    with pytest.raises(UsageError, match=rf"a run with {next(iter(changes))} = "):
        train("lenet5_modern", "digits", out=tmp_path / "r", **settings_)


# --- what ends, and what is kept -----------------------------------------------------------


def test_training_ends_when_the_score_gets_no_better(tmp_path):
    settings_ = {**QUICK, "epochs": 12, "lr": 0.0, "patience": 2, "monitor": "val/loss"}
    # With a rate of 0 the loss stays what it is: of equals the later is the better.
    run = train("lenet5_modern", "digits", out=tmp_path / "same", **settings_)
    assert len(run.history()) == 12
    settings_ |= {"lr": 3.0, "optimizer": "sgd", "clip_norm": 0.01, "schedule": "constant"}
    run = train("lenet5_modern", "digits", out=tmp_path / "worse", **settings_)
    history = [line["val/loss"] for line in run.history()]
    kept = read_weights(run.path).epoch
    assert history[kept - 1] == min(history)
    assert len(history) == kept + 2 < 12


def test_the_score_can_be_any_number_of_the_epoch(tmp_path):
    run = train(
        "lenet5_modern",
        "digits",
        out=tmp_path / "r",
        monitor="val/loss",
        lr=0.2,
        **{**QUICK, "epochs": 4},
    )
    losses = [line["val/loss"] for line in run.history()]
    assert read_weights(run.path).epoch == 1 + losses.index(min(losses))
    for name in ("val/accuracy", "loss", "test/top1"):
        with pytest.raises(UsageError, match=f"monitor = '{name}'"):
            train("lenet5_modern", "digits", out=tmp_path / "no", monitor=name, **QUICK)


# --- fine-tuning ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    out = tmp_path_factory.mktemp("source") / "run"
    return train(
        "resnet20_cifar", "digits", out=out, image_size=16, mean=[0.25], std=[0.5], **QUICK
    )


def train_on(source, out, **changes):
    weights = str(source.path)
    changes = {"image_size": 16, **QUICK, **changes}
    return train("resnet20_cifar", "digits", out=out, weights=weights, **changes)


def test_training_begins_with_the_weights_of_a_run_and_its_normalisation(tmp_path, source):
    run = train_on(source, tmp_path / "r", lr=0.0, weight_decay=0.0)
    mine, theirs = read_weights(run.path), read_weights(source.path)
    for name, tensor in theirs.tensors.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(mine.tensors[name], tensor), name
    assert mine.preprocessing == theirs.preprocessing
    assert run.recipe.weights == str(source.path.absolute())


def test_a_mean_or_std_in_the_recipe_is_kept_when_weights_are_loaded(source):
    from cnn_core.training.setup import _build

    dataset = load_dataset("digits")
    for key, chosen in (("mean", (0.1,)), ("std", (0.2,))):
        recipe = Recipe(
            model="resnet20_cifar", data="digits", weights=str(source.path), **{key: chosen}
        )
        found, _, line = _build(recipe, dataset, resuming=False)
        assert f"{key} as set" in line
        assert f"{'std' if key == 'mean' else 'mean'} of the weights" in line
        assert {"mean": found.mean, "std": found.std} == {
            "mean": (0.25,),
            "std": (0.5,),
            key: chosen,
        }


def test_frozen_stages_stay_as_they_are_to_the_last_running_mean(tmp_path, source):
    run = train_on(source, tmp_path / "r", freeze=["conv1", "conv2_x"])
    mine, theirs = last(run).model, read_weights(source.path).tensors
    for name, tensor in theirs.items():
        frozen = name.startswith(("conv1.", "conv2_x."))
        assert torch.equal(mine[name], tensor) is frozen, name
    assert not [name for name in last(run).optimizer if name.startswith("momentum.conv1.")]


def test_a_rate_of_0_for_a_stage_keeps_its_weights(tmp_path, source):
    run = train_on(source, tmp_path / "r", stage_lr={"conv3_x": 0.0})
    mine, theirs = last(run).model, read_weights(source.path).tensors
    for name, _ in create_model("resnet20_cifar", in_channels=1).named_parameters():
        assert torch.equal(mine[name], theirs[name]) is name.startswith("conv3_x."), name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnet20_cifar", "run"),
        ("resnet20_cifar", "foreign"),
        *((name, "file") for name in ("googlenet", "densenet40_cifar", "lenet5", "unet_same")),
    ],
)
def test_another_number_of_classes_gets_a_new_head_and_keeps_the_rest(
    tmp_path, source, name, kind
):
    if kind == "run":
        path, reference = source.path, read_weights(source.path).tensors
        channels = 1
    else:
        model = create_model(name, num_classes=10)
        channels, reference = None, model.state_dict()
        path = tmp_path / "w.safetensors"
        maps = key_maps(name) if kind == "foreign" else {}
        keymap = next(iter(maps.values()), KeyMap())
        state = keymap.to_theirs(reference)
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    loaded = create_model(name, num_classes=3, in_channels=channels, weights=path, new_head=True)
    changed = [k for k, v in loaded.state_dict().items() if v.shape != reference[k].shape]
    assert changed
    assert all(v.shape[0] in (3,) for k, v in loaded.state_dict().items() if k in changed)
    for key, value in loaded.state_dict().items():
        if key not in changed:
            assert torch.equal(value, reference[key]), key
    with pytest.raises(UsageError, match=r"the model (has|expects)"):
        create_model(name, num_classes=3, in_channels=channels, weights=path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ["conv5_x"]}, r"no stage 'conv5_x', did you mean"),
        ({"stage_lr": {"stem": 0.1}}, r"no stage 'stem'"),
        ({"freeze": ["conv1", "conv2_x", "conv3_x", "conv4_x", "fc"]}, "nothing is left to train"),
        ({"weights": "nowhere.pth"}, "nowhere.pth: no such file"),
    ],
)
def test_what_cannot_be_tuned_is_said_before_anything_is_written(tmp_path, changes, message):
    settings_ = {**QUICK, **changes, "image_size": 16}
    with pytest.raises(UsageError, match=message):
        train("resnet20_cifar", "digits", out=tmp_path / "r", **settings_)
    assert not (tmp_path / "r").exists()


# --- hardware ------------------------------------------------------------------------------


def test_what_is_left_open_is_settled_and_recorded(tmp_path):
    run = train("resnet20_cifar", "digits", out=tmp_path / "r", image_size=16, **QUICK)
    assert (run.recipe.precision, run.recipe.memory_format) == ("fp32", "channels_last")
    assert Run.open(run.path).recipe == run.recipe
    run = train("lenet5_modern", "digits", out=tmp_path / "s", **QUICK)
    assert run.recipe.memory_format == "contiguous"
    assert run.environment()["allocator"]
    assert math.isfinite(run.history()[-1]["train/loss"])


def test_channels_last_computes_the_same(tmp_path):
    runs = [
        train(
            "resnet20_cifar",
            "digits",
            out=tmp_path / name,
            image_size=16,
            memory_format=name,
            lr=0.001,
            optimizer="sgd",
            **{**QUICK, "epochs": 1},
        )
        for name in ("contiguous", "channels_last")
    ]
    one, other = (run.history()[0]["train/loss"] for run in runs)
    assert one == pytest.approx(other, abs=0.02)


def test_an_observer_that_observes_nothing_is_refused():
    class Nothing:
        pass

    class Misspelt:
        def cnnzoo_epoch_ends(self):
            pass

    with pytest.raises(UsageError, match="Nothing has no method named after a hook"):
        train("lenet5_modern", "digits", observers=[Nothing()], **QUICK)
    with pytest.raises(UsageError, match="unknown hook, did you mean 'epoch_end'"):
        train("lenet5_modern", "digits", observers=[Misspelt()], **QUICK)
