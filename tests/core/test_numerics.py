"""NaN and infinity, put in at seeded steps: noticed before the step, named, and never kept."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_core import create_model
from cnn_core.data.batching import Batch
from cnn_core.errors import NumericalError
from cnn_core.training import Run, loop, resumption, setup, train
from cnn_core.training.checkpoint import Checkpoint, Checkpoints
from cnn_core.training.numerics import Step, gradient_norm, non_finite_error
from cnn_core.weights.native import read_weights

pytestmark = pytest.mark.usefixtures("one_thread")

LENET = {
    "model": "lenet5_modern",
    "batch_size": 96,
    "epochs": 2,
    "save_steps": 4,
    "optimizer": "adamw",
    "weight_decay": 0.0,
    "lr": 0.002,
    "shift": 1,
}
RESNET = {  # running statistics of batch normalisation
    "model": "resnet20_cifar",
    "batch_size": 256,
    "epochs": 2,
    "validation": 0.4,
    "save_steps": 2,
    "image_size": 16,
    "lr": 0.05,
}
STEPS = {"lenet5_modern": 14, "resnet20_cifar": 4}  # of an epoch
VALUES = (math.nan, math.inf)


def contents(run):
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


class Poison:
    """Puts a number that is not finite into one step of a training, and watches.

    `place` is images, target, loss, gradient or weight; `nth` the step, from 0 over all epochs;
    `choice` chooses the sample or the parameter.
    """

    def __init__(self, place, nth, value, choice=0):
        self.place, self.nth, self.value, self.choice = place, nth, value, choice
        self.step = -1
        self.disk = self.weights = None

    def apply(self, monkeypatch):
        training_batches, loss_of = loop._batches, setup.loss_of

        def taken(*arguments):
            for batch in training_batches(*arguments):
                self.step += 1
                yield self._batch(batch) if self.step == self.nth else batch

        def losses(*arguments):
            loss = loss_of(*arguments)

            def spoilt(*outputs):
                now = self.place == "loss" and self.step == self.nth
                return loss(*outputs) * self.value if now else loss(*outputs)

            return spoilt

        monkeypatch.setattr(loop, "_batches", taken)
        monkeypatch.setattr(setup, "loss_of", losses)

    def cnnzoo_fit_start(self, run, model):
        self.run, self.model = run, model
        self.name, self.parameter = self._chosen(list(model.named_parameters()))
        self.parameter.register_hook(self._gradient)

    def _chosen(self, items):
        return items[self.choice % len(items)]

    def _gradient(self, gradient):
        if self.place == "gradient" and self.step == self.nth:
            gradient = gradient.clone()
            gradient.view(-1)[-1] = self.value
        return gradient

    def _batch(self, batch):
        """All was as it should be until this batch; remember it, and spoil what is to be."""
        self.batch, self.sample = batch, int(self._chosen(batch.indices.tolist()))
        place = batch.indices.tolist().index(self.sample)
        if self.place == "images":
            batch.images[place, 0, 3, 5] = self.value
        elif self.place == "target":
            batch.mix.lam[place] = self.value
        elif self.place == "weight":
            self.parameter.data.view(-1)[0] = self.value
        self.disk = contents(self.run)
        self.weights = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        return batch

    @property
    def expected(self):
        """What the message says the first such number is in."""
        return {
            "images": f"the images (sample {self.sample})",
            "target": "the loss",
            "loss": "the loss",
            "gradient": f"the gradient of {self.name}",
            "weight": f"the parameter {self.name}",
        }[self.place]


def poisoned(run, poison, monkeypatch, recipe):
    """Train with a poison, and hold what happens to what should."""
    mixup = 0.2 if poison.place == "target" else 0.0
    arguments = {"out": run, "progress": False, "device": "cpu", "mixup": mixup, **recipe}
    with monkeypatch.context() as patch:
        poison.apply(patch)
        with pytest.raises(NumericalError) as caught:
            train(data="digits", observers=[poison], **arguments)
    assert caught.value.exit_code == 4
    assert poison.step == poison.nth  # nothing came after it
    epoch, step = divmod(poison.nth, STEPS[recipe["model"]])
    message = caught.value.message
    assert f" in epoch {epoch + 1}, step {step + 1} (samples " in message
    samples = poison.batch.indices.tolist()
    assert f"(samples {', '.join(map(str, samples[:8]))}, …)" in message
    assert message.endswith(f"; first in {poison.expected}"), (poison.expected, message)
    what = re.match("the (loss|gradient norm) is (nan|inf)", message)
    assert what, message
    assert (what[1] == "loss") == (poison.place != "gradient")
    now = dict(poison.model.named_parameters())  # the step was not taken
    assert all(torch.equal(now[n].nan_to_num(), p.nan_to_num()) for n, p in poison.weights.items())
    require_sound(poison, recipe)


def require_sound(poison, recipe):
    """What is on disk is what was there before the step, and finite."""
    assert contents(poison.run) == poison.disk
    state = Checkpoints(poison.run.state).newest()
    epoch, step = divmod(poison.nth, STEPS[recipe["model"]])
    if (epoch, step) < (0, recipe["save_steps"]):
        assert state is None
        return
    assert (state.epoch, state.step) == (epoch, step - step % recipe["save_steps"])
    assert all(tensor.isfinite().all() for tensor in (*state.model.values(),))
    assert all(tensor.isfinite().all() for tensor in state.optimizer.values())
    if poison.run.weights.is_file():
        tensors = read_weights(poison.run.path).tensors.values()
        assert all(tensor.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", ["images", "target", "loss", "gradient", "weight"])
def test_it_is_noticed_before_the_step(tmp_path, monkeypatch, place, count):
    draw = random.Random(f"{place} {count}")
    steps = 2 * STEPS["lenet5_modern"]
    for number in range(count):
        nth = (steps * number + draw.randrange(steps)) // count  # evenly, over both epochs
        poison = Poison(place, nth, VALUES[number % 2], draw.randrange(1000))
        poisoned(tmp_path / str(number), poison, monkeypatch, LENET)


@pytest.mark.parametrize("place", ["images", "gradient", "weight"])
def test_running_statistics_are_unharmed_on_disk_and_going_on_is_exact(
    tmp_path, monkeypatch, place
):
    poison = Poison(place, 5, math.nan, choice=40)
    poisoned(tmp_path / "a", poison, monkeypatch, RESNET)
    buffers = [b for n, b in poison.model.named_buffers() if "running" in n]
    lost = not all(buffer.isfinite().all() for buffer in buffers)
    assert lost == (place != "gradient")  # in memory they are lost, before anything could notice
    if place != "images":
        return
    train(resume=tmp_path / "a", progress=False, device="cpu")
    train(data="digits", out=tmp_path / "b", progress=False, device="cpu", **RESNET)
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_a_weight_that_no_loss_shows_is_not_saved(tmp_path):
    """Behind a ReLU minus infinity is 0: loss and gradient stay finite."""

    class Hidden:
        def cnnzoo_fit_start(self, run, model):
            self.run, self.model = run, model

        def cnnzoo_step_end(self, epoch, step):
            if step == 5:
                self.model.c1.bias.data[2] = -math.inf
                self.disk = contents(self.run)

    hidden = Hidden()
    with pytest.raises(NumericalError, match=r"c1\.bias is not finite after 0 epochs, 8 steps"):
        train(data="digits", out=tmp_path / "r", progress=False, observers=[hidden], **LENET)
    assert contents(hidden.run) == hidden.disk


def test_the_command_ends_with_4_and_no_traceback(tmp_path, cnnzoo):
    run = tmp_path / "run"
    settings = ("--set", "lr=1e5", "--set", "schedule=constant", "--epochs", "3")
    done = cnnzoo("train", "lenet5_modern", "--data", "digits", "--out", run, *settings)
    assert (done.code, done.out) == (4, "")
    lines = done.err.splitlines()
    what = r"error: the (loss|gradient norm) is (nan|inf) in epoch \d, step \d+"
    assert re.match(rf"{what} \(samples [\d, …]+\); first in the ", lines[-2]), lines
    assert lines[-1] == "the last checkpoint is intact: try a lower --lr, or --set clip_norm=1"
    assert "Traceback" not in done.err


# --- scaled losses -------------------------------------------------------------------------

# Half precision is slow on a CPU: a few small batches.
HALF = {**LENET, "precision": "fp16", "batch_size": 9, "save_steps": 1, "keep": 100}


class EnoughError(KeyboardInterrupt):
    """As Ctrl-C: after any other, an observer is heard no more."""


class Enough:
    """Ends a training after some steps."""

    def __init__(self, steps):
        self.steps = steps

    def cnnzoo_step_end(self):
        self.steps -= 1
        if self.steps < 0:
            raise EnoughError


def test_a_gradient_that_overflows_leaves_a_step_out_and_training_goes_on(tmp_path, monkeypatch):
    poison = Poison("gradient", 3, math.inf, choice=2)
    arguments = {"out": tmp_path / "r", "progress": False, "device": "cpu", **HALF}
    with monkeypatch.context() as patch:
        poison.apply(patch)
        with pytest.raises(EnoughError):
            train(data="digits", observers=[poison, Enough(8)], **arguments)
    checkpoints = Checkpoints(tmp_path / "r" / "state")
    states = [checkpoints.read(name) for name in checkpoints.names()]
    assert [state.step for state in states] == [*range(1, 9)]
    for number, (one, other) in enumerate(itertools.pairwise(states), start=1):
        left_out = number == 3
        for part in ("model", "optimizer"):
            mine, theirs = getattr(one, part), getattr(other, part)
            assert all(torch.equal(mine[name], theirs[name]) for name in mine) == left_out
        assert other.scaler["scale"] == (0.5 if left_out else 1.0) * one.scaler["scale"]
        assert all(tensor.isfinite().all() for tensor in other.model.values())
        assert other.epoch_metrics["loss"].isfinite().all()


@pytest.mark.parametrize("place", ["images", "loss", "weight"])
def test_a_scaled_loss_that_is_not_finite_stops_all_the_same(tmp_path, monkeypatch, place):
    poisoned(tmp_path / "r", Poison(place, 6, math.nan, choice=3), monkeypatch, HALF)


def test_a_scaled_loss_does_not_hide_gradients_that_never_recover(tmp_path):
    """Each step is left out, each scale is half of the one before: that ends, and says where."""

    class Broken:
        def cnnzoo_fit_start(self, model):
            model.c3.weight.register_hook(lambda gradient: gradient * math.nan)

    arguments = {"out": tmp_path / "r", "progress": False, "device": "cpu", **HALF}
    with pytest.raises(NumericalError, match=r"first in the gradient of c3\.weight"):
        train(data="digits", observers=[Broken(), Enough(60)], **arguments)


class Louder:
    """Makes a module's output larger than half precision can say, in the sixth step."""

    def cnnzoo_fit_start(self, model):
        self.model = model

    def cnnzoo_step_end(self, epoch, step):
        if step == 4:
            self.model.c3.weight.data.mul_(1e7)


def test_an_overflow_of_half_precision_is_found_where_it_is(tmp_path):
    arguments = {"out": tmp_path / "r", "progress": False, "device": "cpu", **HALF}
    with pytest.raises(NumericalError, match=r"step 6 .*; first in the output of c3\n"):
        train(data="digits", observers=[Louder()], **arguments)


# --- the diagnosis -------------------------------------------------------------------------


def batch_for(model):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 1, 32, 32, generator=generator)
    return Batch(images, torch.arange(4), torch.tensor([10, 20, 30, 40]))


def diagnosis(model, batch, loss=math.nan, norm=math.nan):
    step = Step(epoch=2, step=6, batch=batch, loss=loss, norm=norm)
    return non_finite_error(model, step).message


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("part", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("name", ["lenet5_modern", "resnet20_cifar", "vgg11_cifar"])
def test_the_first_module_is_named(name, part, value):
    torch.manual_seed(0)
    model = create_model(name, in_channels=1)
    leaves = [n for n, m in model.named_modules() if n and not any(m.children())]
    module = leaves[round(part * (len(leaves) - 1))]

    def spoil(module, inputs, output):
        output = output.clone()
        output.view(-1)[3] = value
        return output

    model.get_submodule(module).register_forward_hook(spoil)
    told = diagnosis(model, batch_for(model))
    assert told.endswith(f"; first in the output of {module}")
    assert "the loss is nan in epoch 3, step 7 (samples 10, 20, 30, 40)" in told


@pytest.mark.parametrize("name", ["lenet5_modern", "resnet20_cifar"])
def test_the_first_parameter_is_named_and_the_last_gradient(name):
    torch.manual_seed(0)
    model = create_model(name, in_channels=1)
    batch = batch_for(model)
    parameters = dict(model.named_parameters())
    model(batch.images).sum().backward()
    assert math.isfinite(gradient_norm(list(parameters.values())))
    names = [*parameters][:: max(len(parameters) // 6, 1)]
    for first in names:  # backward reaches the nearest to the loss first
        parameters[first].grad.view(-1)[0] = math.nan
        assert math.isnan(gradient_norm(list(parameters.values())))
        told = diagnosis(model, batch, loss=1.0)
        assert told.startswith("the gradient norm is nan in epoch 3, step 7")
        assert told.endswith(f"; first in the gradient of {first}")
    for first in reversed(names):
        parameters[first].data.view(-1)[0] = math.inf
        assert diagnosis(model, batch).endswith(f"; first in the parameter {first}")
    batch.images[2, 0, 1, 1] = -math.inf
    assert diagnosis(model, batch).endswith("; first in the images (sample 30)")


def test_gradients_that_are_finite_one_by_one_are_not_called_the_loss():
    model = create_model("lenet5_modern")
    batch = batch_for(model)
    model(batch.images).sum().backward()
    for parameter in model.parameters():
        parameter.grad.fill_(1e30)
    norm = float(gradient_norm(list(model.parameters())))
    assert norm == math.inf
    told = diagnosis(model, batch, loss=1.0, norm=norm)
    assert told.startswith("the gradient norm is inf in epoch 3, step 7")
    assert not told.endswith("first in the loss")


def test_a_batch_in_pieces_is_diagnosed_in_pieces(tmp_path, monkeypatch):
    """The whole of it may not fit into memory."""
    sizes = []

    class Watcher:
        def cnnzoo_fit_start(self, model):
            model.register_forward_pre_hook(lambda model, inputs: sizes.append(len(inputs[0])))

    poison = Poison("loss", 2, math.nan)
    arguments = {"out": tmp_path / "r", "progress": False, **LENET, "accumulate": 4}
    with monkeypatch.context() as patch:
        poison.apply(patch)
        with pytest.raises(NumericalError, match="first in the loss"):
            train(data="digits", observers=[poison, Watcher()], **arguments)
    assert max(sizes) == LENET["batch_size"] // 4
    assert len(sizes) > 3 * 4  # the diagnosis is among them


# --- a score that is not a number ----------------------------------------------------------


class Still:
    """Stands for a network that is being trained."""

    def state(self, before, **where):
        return dataclasses.replace(before, **where)


def best_of(scores, more):
    """Return the epoch to keep, written out: the last of the best numbers; none is 0."""
    numbers = [(score, epoch) for epoch, score in enumerate(scores, 1) if not math.isnan(score)]
    if not numbers:
        return 0
    top = (max if more else min)(score for score, _ in numbers)
    return max(epoch for score, epoch in numbers if score == top)


SCORES = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 0.5, 1.0]),
    st.floats(allow_nan=True, allow_infinity=True, width=16),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(SCORES, max_size=12), st.booleans(), st.integers(0, 4))
def test_a_nan_is_never_the_best_and_never_in_the_way(scores, more, patience):
    state, recipe = Checkpoint(), loop.Recipe(model="m", data="d", patience=patience)
    for epoch, score in enumerate(scores, 1):
        line = {"epoch": epoch, "val/top1": score}
        state = loop._after_epoch(Still(), state, line, ("val/top1", more))
        kept = best_of(scores[:epoch], more)
        assert state.best_epoch == kept
        assert (state.best is None) == (kept == 0)
        assert kept == 0 or state.best == scores[kept - 1]
        assert (state.epoch, state.step, state.metrics[-1]) == (epoch, 0, line)
        waited = epoch - kept
        assert resumption.out_of_patience(recipe, state) == (patience > 0 and waited >= patience)


def test_a_score_that_was_never_a_number_is_no_success(tmp_path, monkeypatch):
    evaluate = loop.evaluate_split
    monkeypatch.setattr(
        loop, "evaluate_split", lambda *arguments: dict.fromkeys(evaluate(*arguments), math.nan)
    )
    with pytest.raises(
        NumericalError, match="val/top1 was NaN in every epoch; no weights were saved"
    ):
        train(data="digits", out=tmp_path / "r", progress=False, **LENET)
    assert not Run.open(tmp_path / "r").weights.exists()
    assert len(Run.open(tmp_path / "r").history()) == LENET["epochs"]
