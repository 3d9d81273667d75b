"""Several processes: the same training as one, and one that survives the death of any of them."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from cnn_core.errors import UsageError
from cnn_core.training import Run, train
from cnn_core.training.checkpoint import Checkpoints
from cnn_core.training.distributed import (
    SyncBatchNorm2d,
    is_restart,
    join_processes,
    with_sync_batchnorm,
)
from cnn_core.weights.native import read_weights

pytestmark = pytest.mark.xdist_group("torchrun")

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def torchrun(*args, ranks=2, restarts=0, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    options = [f"--nproc-per-node={ranks}", f"--max-restarts={restarts}", "--rdzv-backend=c10d"]
    options += ["--rdzv-endpoint=localhost:0", "--monitor-interval=0.1"]
    return subprocess.run(
        [*TORCHRUN, *options, *map(str, args)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=140,
        check=False,
    )


# Trains as `cnnzoo train` does, and notes each step's loss, mean over all processes, and the
# gradient's norm; with float64 networks, where rounding hides nothing.
STEPS = textwrap.dedent("""
    import json, os, sys, torch
    torch.set_num_threads(1)
    from cnn_core.training import loop, setup, train

    seen, agreed, build = [], loop._agree_to_stop, setup.create_model

    def noted(job, stop, step):
        world = job.setup.world
        total = torch.tensor([step.loss / world.size], dtype=torch.float64)
        world.sum([total])
        seen.append((total.item(), step.norm))
        return agreed(job, stop, step)

    def doubled(*args, **options):
        model = build(*args, **options).double()
        model.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
        return model

    loop._agree_to_stop = noted
    found = {}
    for name, out, precise, settings in json.loads(sys.argv[1]):
        seen.clear()
        setup.create_model = doubled if precise else build
        run = train(name, "digits", out=out, progress=False, **settings)
        found[out] = {"steps": list(seen), "metrics": run.metrics()}
    if os.environ.get("RANK", "0") == "0":
        with open(sys.argv[2], "w") as file:
            json.dump(found, file)
""")

QUICK = {"epochs": 1, "optimizer": "sgd", "lr": 0.02, "batch_size": 64, "save_steps": 9}
CASES = {
    "plain": ("lenet5_modern", False, {**QUICK, "shift": 1}),
    "unequal": (
        "lenet5_modern",
        False,
        {**QUICK, "shift": 1, "sampler": "balanced", "class_weights": {"3": 2}},
    ),
    "pieces": ("lenet5_modern", False, {**QUICK, "accumulate": 4, "ema": 0.9}),
    "norm": ("resnet20_cifar", True, {**QUICK, "sync_batchnorm": True, "image_size": 16}),
}


SLOW = (pytest.param(name, marks=pytest.mark.slow) for name in ("pieces", "norm"))
SHORT = ["plain", "unequal", *SLOW]


@pytest.fixture(scope="module")
def both(tmp_path_factory, script, two_ranks):
    """What one process and two processes say of the same training, by its name; and the runs."""

    @functools.cache
    def trained(name):
        folder, (model, precise, settings) = tmp_path_factory.mktemp(name), CASES[name]
        arguments = []
        for size in (1, 2):
            out = str(folder / f"run-{size}")
            case = json.dumps([(model, out, precise, settings)])
            arguments.append((case, folder / f"{size}.json"))
        alone = script(STEPS, folder, *arguments[0])
        assert alone.code == 0, alone.err
        two_ranks("a_script", *arguments[1], cwd=folder)
        found = [json.loads(report.read_text()) for _, report in arguments]
        return (*(next(iter(each.values())) for each in found), folder)

    return trained


@pytest.mark.parametrize("name", SHORT)
def test_two_processes_take_the_steps_of_one(both, name):
    alone, together, folder = both(name)
    one, two = alone["steps"], together["steps"]
    assert len(one) == len(two) == 21
    tolerance = 1e-10 if name == "norm" else 1e-6
    for (loss, norm), (other, norm_of_other) in zip(one, two, strict=True):
        assert other == pytest.approx(loss, abs=tolerance)
        assert norm_of_other == pytest.approx(norm, rel=10 * tolerance)
    weights = [read_weights(folder / f"run-{ranks}").tensors for ranks in (1, 2)]
    for key, value in weights[0].items():
        assert torch.allclose(weights[1][key], value, atol=10 * tolerance), key


@pytest.mark.parametrize("name", SHORT)
def test_metrics_are_those_of_the_whole_split(both, name):
    for one, two in zip(*(found["metrics"] for found in both(name)[:2]), strict=True):
        for key in one:
            if key not in ("seconds", "images_per_second"):
                assert two[key] == pytest.approx(one[key], abs=2e-5), key


def test_one_process_writes_and_the_run_says_how_many_there_were(both):
    run = Run.open(both("plain")[2] / "run-2")
    assert run.environment()["processes"] == 2
    assert not list(run.path.rglob("*.tmp"))
    assert Checkpoints(run.state).newest().numerical_environment["processes"] == 2


# Trains twice, and at its very end says which threads there are besides Python's.
ENDING = textwrap.dedent("""
    import atexit, sys
    from pathlib import Path

    def threads():
        return sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))

    # One write per line: torchrun's processes share a pipe, and print() writes word by word.
    def say(when):
        sys.stdout.write(" ".join([when, *threads()]) + "\\n")

    atexit.register(say, "last")
    from cnn_core.training import train
    from cnn_core.training.distributed import World

    wrap = World.wrap

    def in_a_cycle(*args):
        model = wrap(*args)
        model.cycle = [model]
        return model

    World.wrap = in_a_cycle
    for out in sys.argv[1:]:
        train("lenet5_modern", "digits", epochs=1, batch_size=512, out=out, progress=False)
    say("after")
""")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for threads in /proc")
def test_no_thread_of_a_process_outlives_its_group(tmp_path):
    """One that lets go of a tensor while the interpreter ends aborts it, now and then."""
    script = tmp_path / "ending.py"
    script.write_text(ENDING)
    done = torchrun(script, tmp_path / "one", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    after, last = ([names for when, *names in lines if when == w] for w in ("after", "last"))
    assert len(after) == len(last) == 2
    assert all("pt_gloo_runloop" in names for names in after)
    assert not any("gloo" in name for names in last for name in names)


# Measures 31 scenes, some pixels of which count in nothing, with every metric that there is.
SCENES = textwrap.dedent("""
    import dataclasses, json, sys, torch
    torch.set_num_threads(1)
    from cnn_core import create_model, load_dataset
    from cnn_core.data import Preprocessing, Split
    from cnn_core.training import Recipe
    from cnn_core.training.distributed import join_processes
    from cnn_core.tasks import loss_of
    from cnn_core.training.epoch_metrics import EpochMetrics
    from cnn_core.training.evaluation import EvalSetup, evaluate_split

    world, _ = join_processes("cpu")
    torch.manual_seed(0)
    model = create_model("unet_same", num_classes=2, in_channels=1, width=4, depth=2).double()
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    split = load_dataset("digit_scenes").split("test")
    targets = split.targets[:31].clone()
    targets[:, :5] = 255
    targets[7] = 255
    size = (64, 64)
    preprocessing = Preprocessing(
        size=size, image_size=size, fit="resize", mean=(0.5,), std=(0.2,)
    )
    recipe = Recipe(model="unet_same", data="isbi_em")
    setup = EvalSetup(
        recipe=recipe,
        preprocessing=preprocessing,
        criterion=loss_of("segmentation", recipe),
        metrics=EpochMetrics("segmentation", 2, 0, evaluated="isbi_em"),
        device=torch.device("cpu"),
        world=world,
    )
    found = evaluate_split(model, Split(split.images[:31], targets), setup)
    if world.is_first:
        print(json.dumps(found))
""")


def test_every_metric_of_segmentation_is_that_of_the_whole_split(script, two_ranks, tmp_path):
    alone = json.loads(script(SCENES, tmp_path).out)
    first, second = two_ranks("a_script", cwd=tmp_path)
    assert not second.out
    together = json.loads(first.out)
    assert {"miou", "image_dice", "hd95", "ap", "auc", "ece", "warping_error"} <= alone.keys()
    assert together.pop("loss") == pytest.approx(alone.pop("loss"), rel=1e-6)  # in float32
    assert together == pytest.approx(alone, rel=1e-12, abs=1e-12)


KILLER = textwrap.dedent("""
    import os, signal, sys, torch
    torch.set_num_threads(1)
    from pathlib import Path
    from cnn_core.cli import main
    from cnn_core.training import loop

    attempt, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
    kills, agreed, steps = int(sys.argv[1]), loop._agree_to_stop, 0

    def fatal(*args):
        global steps
        steps += 1
        if attempt < kills and rank == attempt % 2 and steps == 5 + attempt % 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return agreed(*args)

    loop._agree_to_stop = fatal
    sys.exit(main(sys.argv[2:]))
""")


def check_killed_ranks(tmp_path, kills):
    script = tmp_path / "killer.py"
    script.write_text(KILLER)
    epochs = 2 + kills // 5  # each attempt gets some steps further: enough for all of them
    command = ["train", "lenet5_modern", "--data", "digits", "--epochs", epochs]
    command += ["--batch-size", 64, "--set", "save_steps=2", "--set", "ema=0.9", "--lr", 0.02]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = torchrun(script, 0, *command, "--out", whole)
    assert done.returncode == 0, done.stderr[-3000:]
    done = torchrun(script, kills, *command, "--out", killed, restarts=kills)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("lenet5_modern on digits") == kills + 1
    assert (killed / "weights.safetensors").read_bytes() == (
        whole / "weights.safetensors"
    ).read_bytes()
    one, other = (Checkpoints(Run.open(path).state).newest() for path in (killed, whole))
    assert all(torch.equal(one.optimizer[name], other.optimizer[name]) for name in one.optimizer)


@pytest.mark.slow
def test_a_killed_process_costs_nothing_but_time(tmp_path):
    check_killed_ranks(tmp_path, 2)


@pytest.mark.slow
def test_ten_killed_processes_cost_nothing_but_time(tmp_path):
    check_killed_ranks(tmp_path, 10)


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_the_training_goes_on_later(tmp_path):
    out = tmp_path / "run"
    command = ["train", "lenet5_modern", "--data", "digits", "--epochs", "60"]
    command += ["--batch-size", "64", "--set", "validation=0.0", "--out", str(out)]
    options = ["--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    process = subprocess.Popen(
        [*TORCHRUN, *options, "-m", "cnnzoo", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith("epoch 2/60"):
            break
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "terminated" in rest
    assert f"resume with: cnnzoo train --resume {out}" in rest
    state = Checkpoints(out / "state").newest()
    assert 2 <= state.epoch < 60
    assert len(Run.open(out).history()) == state.epoch


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_normalisation_over_processes_is_torchs_for_one(momentum):
    """In a world of one: outputs, gradients and running statistics, in float64."""
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=momentum)).double()
    nn.init.uniform_(theirs[1].weight)
    nn.init.uniform_(theirs[1].bias)
    import copy

    mine = with_sync_batchnorm(copy.deepcopy(theirs), torch.device("cpu"))
    assert isinstance(mine[1], SyncBatchNorm2d)
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        for _ in range(2):
            x = torch.randn(4, 2, 6, 6, dtype=torch.float64)
            inputs = [x.clone().requires_grad_() for _ in range(2)]
            outputs = [model(i) for model, i in zip((mine, theirs), inputs, strict=True)]
            assert torch.allclose(*outputs, atol=1e-12)
            for output in outputs:
                output.pow(3).sum().backward()
            assert torch.allclose(inputs[0].grad, inputs[1].grad, atol=1e-10)
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(one.grad, other.grad, atol=1e-9)
        for key, value in theirs.state_dict().items():
            assert torch.allclose(mine.state_dict()[key], value, atol=1e-12), key
    finally:
        torch.distributed.destroy_process_group()
    assert torch.allclose(mine.eval()(x), theirs.eval()(x))


def test_a_training_that_may_be_started_again_needs_a_folder(monkeypatch):
    from cnn_core.training.distributed import World
    from cnn_core.training.setup import find_recipe
    from cnn_core.training.trainer import Session

    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    session = Session(world=World(0, 2), device=torch.device("cpu"))
    recipe = find_recipe("lenet5", "digits", None, {})
    with pytest.raises(UsageError, match="needs an explicit run directory"):
        session.start(recipe)


def test_a_requeued_job_goes_on_by_itself(tmp_path, monkeypatch):
    """SLURM starts the same command again, and says so."""
    settings = {"progress": False, "epochs": 1, "out": tmp_path / "r"}
    train("lenet5_modern", "digits", **settings)
    with pytest.raises(UsageError, match="is not empty"):
        train("lenet5_modern", "digits", **settings)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert is_restart()
    assert train("lenet5_modern", "digits", **settings).path == Path(tmp_path / "r")


def test_a_process_of_several_takes_no_device_of_its_own(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="device 'cuda:1'"):
        join_processes("cuda:1")
