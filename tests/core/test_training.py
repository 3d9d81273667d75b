"""Training: exact resumption, learning, numerical failure, optimizers and schedules."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections import Counter

import pytest
import torch
from torch import nn

from cnn_core import create_model, load_dataset
from cnn_core.create import build
from cnn_core.errors import (
    CheckpointCorruptError,
    CorruptError,
    NumericalError,
    RunError,
    UsageError,
)
from cnn_core.tasks.classification import map_losses
from cnn_core.training import (
    Recipe,
    Run,
    Trained,
    epoch_metrics,
    evaluate,
    initial_weights,
    predictions,
    setup,
    train,
    train_state,
    trained,
    trainer,
)
from cnn_core.training.checkpoint import Checkpoint, Checkpoints
from cnn_core.training.optim import make_optimizer
from cnn_core.training.schedule import learning_rate
from cnn_core.weights import native
from cnn_core.weights.native import read_weights

pytestmark = pytest.mark.usefixtures("one_thread")


def recipe(**settings):
    return Recipe(**{"model": "lenet5_modern", "data": "digits", **settings})


class StopError(Exception):
    """Stands for whatever ends a process."""


def interrupted_after(last, monkeypatch, **arguments):
    """Train, and stop as soon as the state after that many epochs is on disk."""
    from cnn_core.plugins import Observers

    notify = Observers.notify

    def stopping(self, hook, **facts):
        if hook == "checkpoint" and facts["epoch"] == last:
            raise StopError
        notify(self, hook, **facts)

    with monkeypatch.context() as patch:
        patch.setattr(Observers, "notify", stopping)
        with pytest.raises(StopError):
            train("lenet5_modern", "digits", progress=False, **arguments)


SETTINGS = {"epochs": 4, "batch_size": 64, "shift": 1, "flip": True, "topk": 3}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resuming_at_any_epoch_gives_the_same_bits(tmp_path, monkeypatch, optimizer):
    settings = {**SETTINGS, "optimizer": optimizer, "lr": 0.005}
    whole = train("lenet5_modern", "digits", out=tmp_path / "whole", progress=False, **settings)
    for epochs in (1, 2, 3):
        out = tmp_path / f"stopped-{epochs}"
        interrupted_after(epochs, monkeypatch, out=out, **settings)
        assert len(Run.open(out).history()) == epochs
        resumed = train(resume=out, progress=False)
        assert resumed.weights.read_bytes() == whole.weights.read_bytes()
        found, expected = (Checkpoints(run.state).newest() for run in (resumed, whole))
        for part in ("model", "optimizer"):
            mine, theirs = getattr(found, part), getattr(expected, part)
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert [line["epoch"] for line in resumed.history()] == [1, 2, 3, 4]
        assert resumed.test_metrics() == whole.test_metrics()
        drop = {"seconds", "images_per_second"}
        assert [
            {k: v for k, v in line.items() if k not in drop} for line in resumed.metrics()
        ] == [{k: v for k, v in line.items() if k not in drop} for line in whole.metrics()]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    def weights(name, seed):
        run = train("lenet5", "digits", out=tmp_path / name, progress=False, epochs=1, seed=seed)
        return read_weights(run.path).tensors["f6.weight"]

    assert torch.equal(weights("a", 1), weights("b", 1))
    assert not torch.equal(weights("a2", 1), weights("c", 2))


def test_a_finished_run_is_left_as_it_is(tmp_path):
    run = train("lenet5_modern", "digits", out=tmp_path / "r", progress=False, epochs=1)
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    train(resume=run.path, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_callers_random_state_is_left_alone(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train("lenet5_modern", "digits", out=tmp_path / "r", progress=False, epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_the_run_holds_all_that_it_should(tmp_path):
    run = train("lenet5_modern", "digits", out=tmp_path / "r", progress=False, epochs=2, topk=3)
    names = {str(path.relative_to(run.path)) for path in run.path.rglob("*")}
    assert {
        "recipe.toml",
        "environment.json",
        "metrics.jsonl",
        "metrics.csv",
        "weights.safetensors",
        "state",
        *(
            f"state/e00000{epoch}-s00000000{file}"
            for epoch in (1, 2)
            for file in (
                "",
                "/model.safetensors",
                "/training.safetensors",
                "/state.json",
                "/MANIFEST.json",
            )
        ),
    } == names
    assert Run.open(run.path).recipe == run.recipe
    first, second, last = run.metrics()
    keys = {"train/loss", "train/top1", "train/top3", "val/loss", "val/top1", "val/top3"}
    assert keys <= first.keys()
    assert second["epoch"] == 2
    assert last["test/top1"] <= last["test/top3"] <= 1
    environment = run.environment()
    assert environment["torch"] == torch.__version__
    assert {"lenet", "core"} <= {plugin["name"] for plugin in environment["plugins"]}
    rows = csv.DictReader((run.path / "metrics.csv").read_text().splitlines())
    assert [{k: float(v) for k, v in row.items() if v} for row in rows] == run.metrics()


def test_weights_alone_rebuild_the_model(tmp_path):
    run = train("lenet5", "digits", out=tmp_path / "r", progress=False, epochs=1)
    weights = read_weights(run.weights)
    model = build(weights)
    images = load_dataset("digits").split("test").images
    with torch.inference_mode():
        found = model(weights.preprocessing(images)).argmax(1)
    assert torch.equal(found, predictions(run).predicted)
    assert weights.classes == tuple("0123456789")
    built = create_model("lenet5", weights=run.path).eval()
    assert torch.equal(built.f6.weight, model.f6.weight)


def test_evaluation_agrees_with_the_log_and_with_scikit_learn(tmp_path):
    metrics = pytest.importorskip("sklearn.metrics")
    settings = {"epochs": 2, "topk": 3, "label_smoothing": 0.0, "progress": False}
    run = train("lenet5_modern", "digits", out=tmp_path / "r", **settings)
    measured = evaluate(run.path)
    assert {f"test/{name}": value for name, value in measured.items()} == run.test_metrics()
    said = predictions(run)
    expected = metrics.top_k_accuracy_score(said.targets, said.logits, k=3)
    assert measured["top3"] == pytest.approx(expected, abs=1e-12)
    expected = metrics.accuracy_score(said.targets, said.predicted)
    assert measured["top1"] == pytest.approx(expected, abs=1e-12)
    expected = metrics.log_loss(said.targets, said.logits.double().softmax(1))
    assert measured["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["lenet5", "lenet5_modern"])
def test_a_batch_can_be_learned_by_heart(name):
    torch.manual_seed(0)
    model = create_model(name)
    loss = {"lenet5": "map", "lenet5_modern": "cross_entropy"}[name]
    optimizer = make_optimizer(model, recipe(optimizer="adamw", lr=0.003, loss=loss))
    x, targets = torch.randn(16, 1, 32, 32), torch.randint(0, 10, (16,))
    for _ in range(150):
        logits = model(x)
        value = (
            map_losses(logits, targets, 1.0).mean()
            if loss == "map"
            else nn.functional.cross_entropy(logits, targets)
        )
        model.zero_grad()
        value.backward()
        optimizer.step(0.003)
    assert (model(x).argmax(1) == targets).all()


@pytest.mark.parametrize(
    ("optimizer", "ours"),
    [("sgd", {}), ("adamw", {}), ("sgd", {"momentum": 0.0}), ("rmsprop", {})],
)
def test_steps_are_torchs_own_to_the_last_bit(optimizer, ours):
    torch.manual_seed(0)
    mine, theirs = create_model("lenet5_modern"), create_model("lenet5_modern")
    theirs.load_state_dict(mine.state_dict())
    chosen = recipe(optimizer=optimizer, weight_decay=0.01, **ours)
    stepper = make_optimizer(mine, chosen)
    options = {"lr": 0.1, "weight_decay": 0.01}
    reference = {
        "adamw": lambda p: torch.optim.AdamW(p, betas=(0.9, 0.999), fused=True, **options),
        "sgd": lambda p: torch.optim.SGD(
            p, momentum=chosen.momentum, nesterov=chosen.momentum > 0, fused=True, **options
        ),
        "rmsprop": lambda p: torch.optim.RMSprop(
            p, momentum=0.9, alpha=0.999, foreach=True, **options
        ),
    }[optimizer](theirs.parameters())
    for step in range(5):
        x, targets = torch.randn(8, 1, 32, 32), torch.randint(0, 10, (8,))
        for model in (mine, theirs):
            model.zero_grad()
            nn.functional.cross_entropy(model(x), targets).backward()
        reference.param_groups[0]["lr"] = lr = 0.01 / (step + 1)
        reference.step()
        stepper.step(lr)
    pairs = zip(mine.parameters(), theirs.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("settings", "time", "expected"),
    [
        ({"schedule": "constant"}, 7.5, 1.0),
        ({"warmup_epochs": 2.0}, 0.0, 0.0),
        ({"warmup_epochs": 2.0}, 1.0, 0.5),
        ({"warmup_epochs": 2.0}, 2.0, 1.0),
        ({}, 0.0, 1.0),
        ({}, 5.0, 0.5),
        ({}, 10.0, 0.0),
        ({"final_lr": 0.2}, 10.0, 0.2),
        ({}, 2.5, (1 + math.cos(math.pi / 4)) / 2),
        ({"warmup_epochs": 2.0}, 6.0, 0.5),
        ({"schedule": "step", "step_every": 2, "step_factors": (0.5,)}, 1.99, 1.0),
        ({"schedule": "step", "step_every": 2, "step_factors": (0.5,)}, 7.0, 0.125),
        ({"schedule": "polynomial", "power": 0.5}, 7.5, 0.5),
        ({"schedule": "polynomial", "final_lr": 0.2}, 5.0, 0.6),
        ({"schedule": "multi_step", "step_epochs": (4, 8)}, 3.99, 1.0),
        ({"schedule": "multi_step", "step_epochs": (4, 8)}, 4.0, 0.1),
        ({"schedule": "multi_step", "step_epochs": (4, 8)}, 9.0, 0.01),
        ({"schedule": "multi_step", "step_epochs": (4, 8), "step_factors": (0.4, 0.5)}, 8.0, 0.2),
    ],
)
def test_learning_rates(settings, time, expected):
    chosen = recipe(epochs=10, lr=1.0, **settings)
    assert learning_rate(chosen, time) == pytest.approx(expected, abs=1e-12)


def test_one_cycle_is_torchs():
    chosen, steps = recipe(epochs=10, lr=0.4, schedule="one_cycle"), 70
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.4, total_steps=steps + 1, pct_start=0.3, cycle_momentum=False
    )
    for step in range(steps):
        # Theirs turns at whole steps: 0.3 * (steps + 1) - 1.
        at = (step / 20.3 * 0.3) if step < 20.3 else 0.3 + 0.7 * (step - 20.3) / (steps - 20.3)
        expected = theirs.get_last_lr()[0]
        assert learning_rate(chosen, 10 * at) == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        theirs.step()


# The first 20 losses of lenet5_modern on digits, seed 0, batch 64, one thread, torch 2.14.
GOLDEN = (
    2.2969,
    2.3053,
    2.2907,
    2.2932,
    2.2967,
    2.3014,
    2.2955,
    2.2856,
    2.2963,
    2.2908,
    2.2765,
    2.2847,
    2.288,
    2.2834,
    2.2457,
    2.2409,
    2.2177,
    2.2124,
    2.1719,
    2.1109,
)


class Losses(list):
    """Watches a training and keeps each step's loss."""

    def cnnzoo_step_end(self, loss):
        self.append(loss.item())


def test_the_first_twenty_losses_are_what_they_were(tmp_path):
    losses = Losses()
    train(
        "lenet5_modern",
        "digits",
        out=tmp_path / "r",
        progress=False,
        epochs=1,
        batch_size=64,
        optimizer="sgd",
        lr=0.05,
        momentum=0.9,
        label_smoothing=0.0,
        schedule="constant",
        observers=[losses],
    )
    assert losses[:20] == pytest.approx(GOLDEN, abs=2e-3)


def test_the_papers_loss_written_out():
    logits = -torch.tensor([[1.0, 4.0, 9.0], [3.0, 0.5, 2.0]])
    targets = torch.tensor([0, 2])
    expected = []
    for distances, target in zip((-logits).tolist(), targets.tolist(), strict=True):
        rest = math.exp(-0.7) + sum(math.exp(-distance) for distance in distances)
        expected.append(distances[target] + math.log(rest))
    found = map_losses(logits, targets, margin=0.7).mean()
    assert found.item() == pytest.approx(sum(expected) / 2, rel=1e-6)


def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(tmp_path):
    with pytest.raises(NumericalError, match=r"epoch \d+, step \d+") as caught:
        train(
            "lenet5_modern",
            "digits",
            out=tmp_path / "r",
            progress=False,
            lr=1e5,
            epochs=5,
            schedule="constant",
        )
    assert caught.value.exit_code == 4
    assert all(
        torch.isfinite(tensor).all()
        for path in (tmp_path / "r").glob("weights.safetensors")
        for tensor in read_weights(path).tensors.values()
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(tmp_path, precision):
    run = train(
        "lenet5_modern",
        "digits",
        out=tmp_path / "r",
        progress=False,
        epochs=1,
        precision=precision,
        clip_norm=1.0,
        validation=0.8,
    )
    assert math.isfinite(run.history()[0]["train/loss"])
    assert read_weights(run.path).tensors["c1.weight"].dtype == torch.float32


def test_gradients_are_clipped(tmp_path):
    run = train(
        "lenet5_modern", "digits", out=tmp_path / "r", progress=False, epochs=1, clip_norm=1e-9
    )
    assert run.history()[0]["train/loss"] == pytest.approx(math.log(10), abs=0.02)


def test_without_validation_the_last_epoch_is_kept(tmp_path):
    run = train(
        "lenet5_modern", "digits", out=tmp_path / "r", progress=False, epochs=2, validation=0.0
    )
    assert read_weights(run.path).epoch == 2
    assert not any(key.startswith("val/") for key in run.history()[0])


def test_the_best_epoch_by_validation_is_kept(tmp_path):
    run = train("lenet5_modern", "digits", out=tmp_path / "r", progress=False, epochs=4, lr=0.2)
    scores = [line["val/top1"] for line in run.history()]
    assert read_weights(run.path).epoch == max(
        epoch for epoch, score in enumerate(scores, start=1) if score == max(scores)
    )


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((0.5, 0.7, 0.6), 2),
        ((0.5, 0.7, 0.7), 3),
        ((math.nan, 0.5, math.nan), 2),
        ((0.5, math.nan, 0.4), 1),
        ((math.nan, math.nan), 0),
    ],
)
def test_a_nan_is_never_the_best_and_of_equals_the_later_is_kept(scores, kept):
    from cnn_core.training.loop import _after_epoch
    from cnn_core.training.train_state import TrainState

    train_state = TrainState(create_model("lenet5_modern"), recipe(), torch.device("cpu"))
    state = Checkpoint()
    for epoch, score in enumerate(scores, start=1):
        line = {"epoch": epoch, "val/top1": score}
        state = _after_epoch(train_state, state, line, ("val/top1", True))
    assert state.best_epoch == kept


def test_a_run_in_a_full_folder_is_refused_and_nothing_is_lost(tmp_path):
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        train("lenet5", "digits", out=tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


def test_an_unwritable_run_directory_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file/run: cannot be written: .*file is not a folder"):
        train("lenet5", "digits", out=tmp_path / "file" / "run", progress=False)


@pytest.fixture(scope="module")
def finished(digits_run):
    return digits_run


@pytest.fixture
def copy(finished, tmp_path):
    return Run.open(shutil.copytree(finished.path, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["recipe.toml", "environment.json", "metrics.jsonl"])
def test_a_run_with_a_missing_file_is_refused_by_name(copy, name):
    (copy.path / name).unlink()
    with pytest.raises(RunError, match=name.replace(".", r"\.")):
        Run.open(copy.path)


@pytest.mark.parametrize("name", ["recipe.toml", "environment.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000, b"[1]"])
def test_a_run_with_a_broken_file_is_refused_by_name(copy, name, content):
    (copy.path / name).write_bytes(content)
    with pytest.raises(RunError, match=name.replace(".", r"\.")):
        train(resume=copy.path, progress=False)


def contents(run):
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def test_a_run_that_lost_its_state_is_not_resumed_over(copy):
    copy.weights.unlink()
    shutil.rmtree(copy.state)
    before = contents(copy)
    with pytest.raises(RunError, match="state is missing"):
        train(resume=copy.path, progress=False)
    assert before == contents(copy)


@pytest.mark.parametrize("harm", ["lost", "flipped"])
def test_kept_weights_that_were_lost_come_back_from_the_best_checkpoint(copy, harm):
    expected = copy.weights.read_bytes()
    if harm == "lost":
        copy.weights.unlink()
    else:
        copy.weights.write_bytes(expected[:-1] + bytes([expected[-1] ^ 1]))
        with pytest.raises(CheckpointCorruptError, match="the contents have changed: SHA-256"):
            evaluate(copy)
    assert train(resume=copy.path, progress=False).weights.read_bytes() == expected


def test_a_run_without_weights_says_how_to_go_on(copy):
    copy.weights.unlink()
    with pytest.raises(UsageError, match=r"no weights\.safetensors") as caught:
        evaluate(copy)
    assert "--resume" in caught.value.hint


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_cut_weights_are_refused_by_name(copy, part):
    data = copy.weights.read_bytes()
    copy.weights.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(CorruptError, match=copy.weights.name):
        read_weights(copy.weights)


def test_weights_of_another_network_are_refused_with_both_shapes(finished):
    with pytest.raises(UsageError, match="the model has") as caught:
        create_model("lenet5_modern", num_classes=7, weights=finished.path)
    assert "lenet5_modern with 10 classes" in caught.value.hint
    with pytest.raises(UsageError, match="weights of 'lenet5_modern', not of 'lenet5'"):
        create_model("lenet5", weights=finished.path)


def test_weights_of_someone_else_are_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CorruptError, match="not written by cnnzoo"):
        read_weights(path)


def test_the_same_run_is_written_with_the_same_bytes(tmp_path):
    first, second = (
        train("lenet5", "digits", out=tmp_path / name, progress=False, epochs=1).weights
        for name in ("a", "b")
    )
    assert first.read_bytes() == second.read_bytes()


def test_metrics_jsonl_is_one_object_a_line(finished):
    for line in (finished.path / "metrics.jsonl").read_text().splitlines():
        assert isinstance(json.loads(line), dict)


# --- what is made once ---------------------------------------------------------------------


def counted(monkeypatch, *places):
    """Count the calls of functions, each given as (module, name); return the counts by name."""
    calls = Counter()

    def watched(name, function):
        def call(*arguments, **more):
            calls[name] += 1
            return function(*arguments, **more)

        return call

    for module, name in places:
        monkeypatch.setattr(module, name, watched(name, getattr(module, name)))
    return calls


def test_a_training_makes_each_of_its_parts_once(tmp_path, monkeypatch):
    begin_with = train("lenet5_modern", "digits", out=tmp_path / "a", progress=False, epochs=1)
    path = tmp_path / "mine.toml"
    path.write_text(begin_with.recipe.to_toml())
    places = [
        (trainer, "find_recipe"),
        (setup, "read_recipe"),
        (initial_weights, "load_model"),
        (setup, "loss_of"),
        (setup, "score_of"),
        (initial_weights, "read_weights"),
        (train_state, "make_optimizer"),
        (trainer, "load_dataset"),
    ]
    calls = counted(monkeypatch, *places)
    reads = counted(monkeypatch, (native, "_read"))
    metrics = counted(monkeypatch, (epoch_metrics, "metrics_of"))
    out = tmp_path / "b"
    arguments = {"recipe": str(path), "weights": str(begin_with.path), "epochs": 3}
    train(out=out, auto_resume=True, progress=False, **arguments)
    assert calls == dict.fromkeys((name for _, name in places), 1)
    # The weights to begin with, and those that were kept, for the test split.
    assert reads == {"_read": 2}
    # For all epochs, training and validation; and with those for evaluations, for the test split.
    assert metrics == {"metrics_of": 2}


def test_an_auto_resumed_training_reads_its_recipe_once(tmp_path, monkeypatch):
    settings = {"out": tmp_path / "r", "progress": False, "epochs": 1}
    train("lenet5_modern", "digits", **settings)
    calls = counted(monkeypatch, (trainer, "find_recipe"))
    train("lenet5_modern", "digits", auto_resume=True, **settings)
    assert calls == {"find_recipe": 1}


def test_functions_that_share_a_trained_network_read_its_files_once(tmp_path, monkeypatch):
    run = train("lenet5_modern", "digits", out=tmp_path / "r", progress=False, epochs=1)
    alone = evaluate(run), predictions(run).logits
    calls = counted(monkeypatch, (native, "_read"), (trained, "load_dataset"))
    shared = Trained(run.path, device="cpu")
    assert torch.equal(predictions(shared).logits, alone[1])
    assert evaluate(shared) == alone[0]
    assert torch.equal(predictions(shared).logits, alone[1])
    assert calls == {"_read": 1, "load_dataset": 1}
    with torch.inference_mode():
        inside = Trained(run.path, device="cpu").model
    assert not any(parameter.is_inference() for parameter in inside.parameters())
