"""What TensorBoard reads back is what the run says, once, whatever happened in between."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import cnn_core
from cnn_core.errors import UsageError
from cnn_core.training import Run
from cnn_core.training.tensorboard import TensorBoard

SETTINGS = {"progress": False, "epochs": 3, "batch_size": 128, "device": "cpu"}


class Stop:
    """Ends a training after an epoch, as Ctrl-C does."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def cnnzoo_checkpoint(self, epoch: int) -> None:
        if epoch == self.epoch:
            raise KeyboardInterrupt


def read(folder: Path):
    """Return all that TensorBoard itself finds in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(
        str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}
    )
    return found.Reload()


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """Return value by (name, epoch); no pair is there twice."""
    found = read(folder)
    points = [
        ((name, event.step), event.value)
        for name in found.Tags()["scalars"]
        for event in found.Scalars(name)
    ]
    assert len(dict(points)) == len(points)
    return dict(points)


def expected(run: Run) -> dict[tuple[str, int], float]:
    return {
        (name, int(line["epoch"])): value
        for line in run.metrics()
        for name, value in line.items()
        if name != "epoch"
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Run:
    """A run that nobody watched."""
    out = tmp_path_factory.mktemp("plain") / "run"
    return cnn_core.train("lenet5_modern", "digits", out=out, **SETTINGS)


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> Run:
    out = tmp_path_factory.mktemp("logged") / "run"
    observers = [TensorBoard()]
    return cnn_core.train("lenet5_modern", "digits", out=out, observers=observers, **SETTINGS)


@pytest.fixture
def stopped(tmp_path) -> Run:
    """A run that was watched, and stopped after its first epoch."""
    with pytest.raises(KeyboardInterrupt):
        cnn_core.train(
            "lenet5_modern",
            "digits",
            out=tmp_path / "run",
            observers=[TensorBoard(), Stop(1)],
            **SETTINGS,
        )
    time.sleep(1.1)  # TensorBoard reads files in the order of their names, which have seconds
    return Run.open(tmp_path / "run")


def test_scalars_are_the_lines_of_metrics(logged):
    found, wanted = scalars(logged.path), expected(logged)
    assert found == pytest.approx(wanted, rel=1e-6)  # float32 there
    names = {name for name, _ in found}
    assert {"train/loss", "val/top1", "test/top1", "lr", "seconds"} <= names
    assert [epoch for name, epoch in found if name == "val/loss"] == [1, 2, 3]


def test_the_graph_is_the_network(logged):
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    graph = GraphDef.FromString(read(logged.path).Graph().SerializeToString())
    names = {part for node in graph.node for part in node.name.split("/")}
    stages = cnn_core.get_spec("lenet5_modern").stages
    assert {f"Conv2d[{stage}]" for stage in stages if stage.startswith("c")} <= names
    (image,) = [node for node in graph.node if node.name.startswith("input/")]
    shape = image.attr["_output_shapes"].list.shape[0]
    assert [d.size for d in shape.dim] == [1, 1, 32, 32]


def test_watching_changes_no_bit(plain, logged):
    assert logged.weights.read_bytes() == plain.weights.read_bytes()


def test_a_resumed_run_has_each_epoch_once(stopped):
    assert [epoch for name, epoch in scalars(stopped.path) if name == "lr"] == [1]
    run = cnn_core.train(resume=stopped.path, progress=False, observers=[TensorBoard()])
    assert run.finished
    assert scalars(run.path) == pytest.approx(expected(run), rel=1e-6)


def test_epochs_from_before_it_was_asked_for_are_there(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        cnn_core.train("lenet5_modern", "digits", out=out, observers=[Stop(2)], **SETTINGS)
    assert not (out / "tensorboard").exists()
    run = cnn_core.train(resume=out, progress=False, observers=[TensorBoard()])
    assert scalars(out) == pytest.approx(expected(run), rel=1e-6)
    times = [event.wall_time for event in read(out).Scalars("lr")]
    seconds = [line["seconds"] for line in run.history()]
    assert times[1] - times[0] == pytest.approx(seconds[1], abs=0.01)


def test_a_tensorboard_that_is_open_forgets_what_was_written_again(stopped):
    """Its steps are purged: the epochs of before come once, with their new places in time."""
    watching = read(stopped.path)
    assert [event.step for event in watching.Scalars("lr")] == [1]
    cnn_core.train(resume=stopped.path, progress=False, observers=[TensorBoard()])
    watching.Reload()
    assert [event.step for event in watching.Scalars("lr")] == [1, 2, 3]


def test_figures_of_the_run_are_there_at_the_end(stopped):
    stopped.figures.mkdir()
    picture = np.zeros((5, 7, 3), dtype=np.uint8)
    picture[1, 2] = (255, 0, 0)
    Image.fromarray(picture).save(stopped.figures / "curves.png")
    run = cnn_core.train(resume=stopped.path, progress=False, observers=[TensorBoard()])
    found = read(run.path)
    assert found.Tags()["images"] == ["figures/curves"]
    (event,) = found.Images("figures/curves")
    assert (event.width, event.height) == (7, 5)
    assert event.step == run.metrics()[-1]["epoch"]


def test_a_broken_figure_costs_one_line_and_no_scalar(stopped, caplog):
    stopped.figures.mkdir()
    (stopped.figures / "curves.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        run = cnn_core.train(resume=stopped.path, progress=False, observers=[TensorBoard()])
    (line,) = caplog.messages
    assert "'TensorBoard'" in line
    assert "curves.png" in line
    assert scalars(run.path) == pytest.approx(expected(run), rel=1e-6)


class Branching(nn.Module):
    """Cannot be traced: it fails without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 1, 3)
        self.drop = nn.Dropout()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if len(x) < 2:
            raise RuntimeError("one\nis not enough")
        return self.c1(x)


def test_a_network_that_cannot_be_traced_costs_one_line(plain, tmp_path, caplog, capfd):
    run = Run.open(shutil.copytree(plain.path, tmp_path / "run"))
    model, watching = Branching(), TensorBoard()
    before, parameters = (
        torch.get_rng_state(),
        {k: v.clone() for k, v in model.state_dict().items()},
    )
    with caplog.at_level(logging.WARNING):
        watching.cnnzoo_fit_start(run, model, run.recipe)
    (line,) = caplog.messages
    assert line.startswith(
        f"{run.path}: cannot write the graph for TensorBoard: RuntimeError: one is not enough"
    )
    assert capfd.readouterr() == ("", "")
    assert model.training
    assert model.drop.training
    assert model.calls == 0  # it was a copy of it that was tried
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, parameters[k]) for k, v in model.state_dict().items())
    watching.cnnzoo_fit_end(run, run.metrics()[-1])
    found = read(run.path)
    assert not found.Tags()["graph"]
    assert scalars(run.path) == pytest.approx(expected(run), rel=1e-6)


@pytest.mark.parametrize("size", [0, 64])
def test_the_graph_has_the_size_that_the_network_is_given(plain, tmp_path, size):
    from dataclasses import replace

    run = Run.open(shutil.copytree(plain.path, tmp_path / "run"))
    sizes = []
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
    model.register_forward_pre_hook(_Noted(sizes))
    recipe = replace(run.recipe, model="mobilenet_v1", image_size=size)
    watching = TensorBoard()
    watching.cnnzoo_fit_start(run, model, recipe)
    watching.writer.close()
    assert set(sizes) == {(1, 3, size or 224, size or 224)}


class _Noted:
    """A hook that a copy of the network takes along, and its list as it is."""

    def __init__(self, sizes: list) -> None:
        self.sizes = sizes

    def __call__(self, module, inputs) -> None:
        self.sizes.append(tuple(map(int, inputs[0].shape)))

    def __deepcopy__(self, memo):
        return self


def test_without_the_package_it_is_one_clear_error_before_anything(monkeypatch, tmp_path):
    for name in [n for n in sys.modules if n.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError) as caught:
        TensorBoard()
    assert str(caught.value) == (
        'tensorboard is not installed\npip install "cnn-core[tensorboard]"'
    )


def test_the_module_itself_needs_no_tensorboard(cnnzoo):
    import subprocess

    code = (
        "import sys; import cnn_core.training.tensorboard\n"
        "print([n for n in sys.modules if n.split('.')[0] == 'tensorboard'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
