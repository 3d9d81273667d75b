"""Finding a learning rate and how much of a batch fits in memory, without leaving a trace."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch

from cnn_core import load_dataset
from cnn_core.errors import ResourceError, UsageError
from cnn_core.training import finders, train
from cnn_core.training.finders import LrTrial, fitting_micro_batches, lr_curve, suggested_lr
from cnn_core.training.setup import find_recipe, set_up
from easy_images import mask_folder

CPU = torch.device("cpu")


def ready(model="lenet5_modern", **settings):
    return set_up(find_recipe(model, "digits", None, settings), load_dataset("digits"), CPU)


def untouched(one):
    """All that a search might change."""
    return (
        {name: tensor.clone() for name, tensor in one.model.state_dict().items()},
        [p.grad is None for p in one.model.parameters()],
        one.model.training,
        torch.get_rng_state(),
    )


def assert_untouched(one, before):
    tensors, gradients, training, rng = before
    assert all(torch.equal(t, tensors[name]) for name, t in one.model.state_dict().items())
    assert [p.grad is None for p in one.model.parameters()] == gradients
    assert one.model.training is training
    assert torch.equal(torch.get_rng_state(), rng)


def test_rates_grow_evenly_until_the_loss_diverges_and_nothing_is_changed():
    one = ready(optimizer="sgd", batch_size=64)
    before = untouched(one)
    curve = list(lr_curve(one, low=1e-4, high=100.0, steps=60))
    assert_untouched(one, before)
    rates = [trial.lr for trial in curve]
    ratios = [b / a for a, b in itertools.pairwise(rates)]
    assert ratios == pytest.approx([(1e6) ** (1 / 59)] * len(ratios))
    assert 20 < len(curve) < 60, "it ends where there is nothing more to see"
    assert all(math.isfinite(trial.loss) for trial in curve)
    again = list(lr_curve(one, low=1e-4, high=100.0, steps=60))
    assert again == curve


def test_an_initial_fall_does_not_decide_the_rate():
    rates = [10 ** (-5 + n / 20) for n in range(100)]

    # Outputs that are too large shrink at 1e-4. Learning begins at 1e-2 and ends at 0.3.
    def loss(rate):
        place = math.log10(rate)
        fall = 15 / (1 + math.exp(9 * (place + 4))) + 2 / (1 + math.exp(6 * (place + 1.5)))
        return fall + math.exp(9 * (place + 0.2))

    curve = [LrTrial(rate, loss(rate), loss(rate)) for rate in rates]
    lowest = min(rates, key=loss)
    assert 0.05 < lowest < 0.6
    assert suggested_lr(curve) == pytest.approx(lowest / 10)
    with pytest.raises(UsageError, match="the loss never falls at these learning rates"):
        suggested_lr([LrTrial(rate, rate, rate) for rate in rates])


def test_the_rate_for_a_segmentation_is_not_that_at_which_outputs_shrink(tmp_path):
    masks = mask_folder(tmp_path, classes=3, count=24, size=(32, 32))
    settings = {"options": {"width": 12, "depth": 2}, "batch_size": 2, "image_size": 32}
    one = set_up(find_recipe("unet_same", masks, None, settings), load_dataset(masks), CPU)
    curve = list(lr_curve(one, low=1e-5, high=10.0, steps=60))
    assert suggested_lr(curve) > 1e-3


def test_the_rate_that_is_found_trains():
    one = ready(optimizer="sgd", batch_size=64)
    assert 1e-3 < suggested_lr(list(lr_curve(one, low=1e-5, high=10.0, steps=80))) < 1


@pytest.mark.parametrize(("low", "high", "steps"), [(0.0, 1.0, 50), (1.0, 0.1, 50), (0.1, 1.0, 3)])
def test_a_range_that_is_none_is_refused(low, high, steps):
    with pytest.raises(UsageError, match="rates from"):
        list(lr_curve(ready(), low=low, high=high, steps=steps))


@pytest.fixture
def memory(monkeypatch):
    """Pretend that no more than so many images fit, and only in training steps."""
    step, seen = finders._one_step, []

    def limited(to, message="DefaultCPUAllocator: can't allocate memory: you tried to"):
        def one(train_state, setup, batch, lr, steps):
            seen.append(len(batch.indices))
            if len(batch.indices) > to:
                raise RuntimeError(message)
            return step(train_state, setup, batch, lr, steps)

        monkeypatch.setattr(finders, "_one_step", one)
        return seen

    return limited


@pytest.mark.parametrize(
    ("room", "batch_size", "micro_batches"),
    [
        (1000, 128, 1),
        (127, 128, 2),
        (40, 128, 4),
        (8, 128, 16),
        (5, 100, 25),
        (64, 100, 2),
        (1, 9, 9),
    ],
)
def test_the_largest_power_of_two_that_fits_is_found(memory, room, batch_size, micro_batches):
    seen = memory(room)
    one, told = ready(batch_size=batch_size), []
    before = untouched(one)
    found = fitting_micro_batches(one, lambda size, fits: told.append((size, fits)))
    assert_untouched(one, before)
    assert found == micro_batches
    assert math.ceil(batch_size / found) <= max(room, 1)
    assert len(told) <= 2 * math.log2(batch_size) + 2
    assert [fits for _, fits in told] == [False] * (len(told) - 1) + [True]
    assert seen.count(told[-1][0]) >= 2, "the second step has the optimizer's state"


@pytest.mark.parametrize(
    "message", ["CUDA out of memory. Tried to allocate", "could not create a primitive"]
)
def test_when_nothing_fits_that_is_said(memory, message):
    memory(0, message)
    with pytest.raises(ResourceError, match="not even the smallest micro-batch fits") as caught:
        fitting_micro_batches(ready(batch_size=8))
    assert caught.value.exit_code == 5


def test_another_error_is_not_taken_for_a_lack_of_memory(memory):
    memory(0, "expected scalar type Float but found Byte")
    with pytest.raises(RuntimeError, match="expected scalar type"):
        fitting_micro_batches(ready(batch_size=8))


def test_of_one_image_there_is_no_variance(memory):
    """Batch normalisation needs two; they are not tried one by one."""
    seen = memory(1)
    with pytest.raises(ResourceError):
        fitting_micro_batches(ready("resnet20_cifar", batch_size=8, image_size=16))
    assert min(seen) == 2


def test_training_that_is_made_to_fit_is_the_same_training(memory, tmp_path):
    settings = {"progress": False, "epochs": 1, "batch_size": 64, "optimizer": "sgd", "lr": 0.02}
    whole = train("lenet5_modern", "digits", out=tmp_path / "whole", **settings)
    memory(16)
    fitted = train("lenet5_modern", "digits", out=tmp_path / "fit", fit_memory=True, **settings)
    assert fitted.recipe.accumulate == 4
    assert fitted.recipe.batch_size == 64
    one, other = (run.history()[0]["train/loss"] for run in (whole, fitted))
    assert other == pytest.approx(one, abs=1e-5)


def test_a_run_made_to_fit_is_resumed_by_the_same_call(memory, tmp_path):
    memory(16)
    settings = {"progress": False, "epochs": 1, "batch_size": 64, "fit_memory": True}
    runs = [
        train("lenet5_modern", "digits", out=tmp_path / "run", auto_resume=True, **settings)
        for _ in range(2)
    ]
    assert [run.recipe.accumulate for run in runs] == [4, 4]


def test_the_commands_print_what_to_type(cnnzoo):
    done = cnnzoo("lr-find", "lenet5_modern", "--data", "digits", "--steps", 40)
    assert done.code == 0, done.err
    assert "<- suggested" in done.out
    assert "suggested, a tenth of it: --lr" in done.out
    done = cnnzoo("lr-find", "lenet5_modern", "--data", "digits", "--steps", 40, "--json")
    found = json.loads(done.out)
    assert found["schema"] == 1
    assert found["suggestion"] in [trial["lr"] for trial in found["curve"]]
    done = cnnzoo("batch-find", "lenet5_modern", "--data", "digits", "--set", "batch_size=64")
    assert done.out.strip() == "--set batch_size=64 --set accumulate=1"
