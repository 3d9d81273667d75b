"""What is chosen for the hardware: the allocator, precision, memory format; and running out."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from cnn_core import create_model
from cnn_core.cli import main
from cnn_core.training import Run, loop, train
from cnn_core.training.checkpoint import Checkpoints
from cnn_core.training.device import choose_memory_format, choose_precision

CPU = torch.device("cpu")

# A step like that of a network: blocks made and dropped, larger than the 32 MiB up to which glibc
# may by itself come to keep them.
FAULTS = """
import resource, sys, torch
from cnn_core.training.allocator import keep_memory
torch.set_num_threads(1)
said = keep_memory()
def step():
    x = torch.zeros(10_000_000)
    for _ in range(4):
        x = x + 1
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, said)
"""


def faults(**variables):
    """Page faults of twenty steps, and what was done about them."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(
        command, env={**environment, **variables}, capture_output=True, text=True, check=True
    )
    count, _, said = done.stdout.strip().partition(" ")
    return int(count), said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is on Linux")
def test_memory_stays_with_the_process_and_that_can_be_switched_off():
    kept, said = faults()
    assert said == "glibc, freed memory is kept (CNNZOO_MALLOC=default turns this off)"
    given_back, said = faults(CNNZOO_MALLOC="default")
    assert said == "default (CNNZOO_MALLOC)"
    assert given_back > 2_000  # fewer where the kernel gives huge pages
    assert kept < given_back / 20


@pytest.mark.parametrize(
    "variables",
    [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}],
)
def test_a_users_own_settings_are_left_alone(variables):
    assert faults(**variables)[1] == "default (the user's settings)"


def test_on_a_cpu_auto_is_single_precision():
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_on_a_gpu_auto_is_what_the_hardware_has(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bf16)
    assert choose_precision("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet20_cifar", "channels_last"),
        ("alexnet_small", "contiguous"),
        ("lenet5", "contiguous"),
    ],
)
def test_networks_with_batch_normalisation_get_channels_last(name, expected):
    model = create_model(name)
    assert choose_memory_format("auto", model) == expected
    assert choose_memory_format("contiguous", model) == "contiguous"


def test_the_network_really_gets_its_tensors_that_way(tmp_path, monkeypatch):
    seen, forward = set(), nn.Conv2d.forward

    def noted(self, x):
        if self.training and self.in_channels > 1 and self.kernel_size == (3, 3):
            last = {"memory_format": torch.channels_last}
            seen.add((x.is_contiguous(**last), self.weight.is_contiguous(**last)))
        return forward(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", noted)
    settings = {"progress": False, "epochs": 1, "image_size": 16, "batch_size": 256}
    train("resnet20_cifar", "digits", out=tmp_path / "r", **settings)
    assert seen == {(True, True)}


@pytest.mark.slow
def test_a_compiled_network_trains_and_goes_on(tmp_path):
    settings = {"progress": False, "epochs": 2, "image_size": 16, "batch_size": 256}
    whole = train("resnet20_cifar", "digits", out=tmp_path / "c", compile=True, **settings)
    plain = train("resnet20_cifar", "digits", out=tmp_path / "p", **settings)
    one, other = (run.history()[-1]["train/loss"] for run in (whole, plain))
    assert one == pytest.approx(other, rel=0.1)
    assert all("_orig_mod" not in name for name in Checkpoints(whole.state).newest().model)


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "could not create a primitive",
    ],
)
def test_out_of_memory_ends_with_5_and_what_was_saved_is_sound(
    tmp_path, monkeypatch, capsys, message
):
    out, agreed, steps = tmp_path / "r", loop._agree_to_stop, 0

    def fails(*args):
        nonlocal steps
        steps += 1
        if steps == 13:
            raise RuntimeError(message)
        return agreed(*args)

    command = ["train", "lenet5_modern", "--data", "digits", "--epochs", "1", "--batch-size", "64"]
    command += ["--set", "save_steps=5", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_agree_to_stop", fails)
        assert main(command) == 5
    said = capsys.readouterr().err.splitlines()
    assert "error: out of memory" in said
    assert "try --fit-memory, or a smaller --batch-size" in said
    assert f"resume with: cnnzoo train --resume {out}" in said
    assert Checkpoints(out / "state").newest().step == 10
    assert main(["train", "--resume", str(out)]) == 0
    whole = train(
        "lenet5_modern",
        "digits",
        out=tmp_path / "w",
        progress=False,
        epochs=1,
        batch_size=64,
        save_steps=5,
    )
    assert Run.open(out).weights.read_bytes() == whole.weights.read_bytes()
