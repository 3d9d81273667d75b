"""cnnzoo bench: what is measured, and how; a fake clock decides how long the calls take."""

from __future__ import annotations

import csv
import itertools
import json
import sys
import types

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from cnn_core import create_model, get_spec
from cnn_core.builtin.plugin import COMMANDS
from cnn_core.cli import app
from cnn_core.errors import UsageError, ZooError
from cnn_core.training import benchmark as module
from cnn_core.training.benchmark import Setting, benchmark, percentile, threads

SHORT = ("--seconds", "0.001")


class Clock:
    """A clock that advances by the next of `seconds` between the two readings of a call."""

    def __init__(self, *seconds: float) -> None:
        self.now, self.reading = 0.0, itertools.cycle((False, True))
        self.seconds = itertools.cycle(seconds)

    def __call__(self) -> float:
        self.now += next(self.seconds) if next(self.reading) else 0.0
        return self.now


def run(*arguments: str):
    return CliRunner().invoke(app, ["bench", *arguments])


def rows_of(*arguments: str) -> list[dict]:
    done = run(*arguments, *SHORT, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["benchmark"]


@pytest.mark.parametrize(
    ("seconds", "per_call", "calls"), [(1.0, 0.1, 10), (1.0, 0.3, 4), (1.0, 7.0, 3)]
)
def test_a_measurement_lasts_long_enough_and_the_warm_up_does_not_count(seconds, per_call, calls):
    counted = []
    clock = Clock(per_call * (1 + 1e-9))
    setting = Setting(seconds=seconds)
    (found,) = module._timed([lambda: counted.append(1)], setting, clock)
    assert found == pytest.approx([per_call] * calls)
    assert len(counted) == calls + 1


def test_two_sides_take_turns_and_the_ratio_is_that_of_neighbours():
    order = []
    sides = [lambda: order.append("ours"), lambda: order.append("theirs")]
    # The machine slows down twofold in every round; theirs always takes three times as long.
    clock = Clock(1, 3, 2, 6, 4, 12)
    found = module._timed(sides, Setting(seconds=1.0), clock)
    assert order == ["ours", "theirs"] * 4
    assert found == [[1, 2, 4], [3, 6, 12]]
    assert module._ratio(found) == 3


def test_the_numbers_of_a_network_come_from_the_clock_and_the_spec():
    steps = []
    setting = Setting(batch_sizes=(2, 4), seconds=2.0)
    rows = benchmark("lenet5", setting, clock=Clock(0.5), on_step=lambda: steps.append(1))
    spec = get_spec("lenet5")
    assert len(steps) == 3
    assert [(row.batch_size, row.images_per_second) for row in rows] == [(2, 4.0), (4, 8.0)]
    for row in rows:
        assert (row.p50, row.p90, row.p99) == (500, 500, 500)
        assert (row.params, row.macs, row.input) == (spec.params, spec.macs, spec.input)
        assert row.ratio is None
    assert 1.5 < rows[1].memory / rows[0].memory < 2.5


def test_percentiles_interpolate():
    assert percentile([3, 1, 2], 50) == 2
    assert percentile([0, 10], 90) == pytest.approx(9)
    assert percentile([7], 99) == 7
    values = list(range(101))
    assert [percentile(values, p) for p in (50, 90, 99)] == [50, 90, 99]


def test_memory_is_the_peak_of_the_tensors_that_live_at_the_same_time():
    def call():
        x = torch.zeros(1000)
        y = x + 1
        del x
        z = y.view(10, 100) + 1
        return z.add_(1)

    assert module._peak_memory(call, Setting()) == 2 * 4000


def test_threads_are_set_and_restored():
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with threads(None):
        assert torch.get_num_threads() == before


def test_the_command_prints_a_table_and_writes_csv_and_a_figure(tmp_path):
    table, figure = tmp_path / "a.csv", tmp_path / "a.svg"
    sizes = ("--batch-size", "1", "--batch-size", "3")
    files = ("--csv", str(table), "--plot", str(figure))
    done = run("lenet5", "resnet20_cifar", *sizes, *SHORT, *files, "--threads", "1")
    assert done.exit_code == 0, done.output
    assert "269,722" in done.stdout
    with table.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(line["model"], line["batch_size"]) for line in lines] == [
        *(("lenet5", "1"), ("lenet5", "3"), ("resnet20_cifar", "1"), ("resnet20_cifar", "3"))
    ]
    assert lines[0]["input"] == "1x32x32"
    assert "images per second" in figure.read_text("utf-8")


@pytest.mark.parametrize(
    "options",
    [
        ("--optimize",),
        ("--image-size", "64"),
        ("--format", "torch-export"),
        ("--format", "onnx"),
    ],
)
def test_every_way_to_run_a_network_is_measured(options):
    if "onnx" in options:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    (row,) = rows_of("resnet20_cifar", "--batch-size", "2", *options)
    assert row["images_per_second"] > 0
    assert (row["memory"] is None) == ("onnx" in options)
    side = 64 if "--image-size" in options else 32
    assert row["input"] == [3, side, side]


def test_optimised_networks_are_measured_as_such(monkeypatch):
    made = []

    def optimized(model, *arguments, **options):
        made.append((arguments, options))
        return model

    monkeypatch.setattr(module, "optimized", optimized)
    rows_of("lenet5", "--optimize")
    assert made == [(((1, 32, 32),), {"precision": "fp32", "compile": False})]


def test_a_peer_takes_turns_with_ours():
    pytest.importorskip("torchvision")
    options = ("--image-size", "32", "--batch-size", "1", "--peer", "torchvision")
    (row,) = rows_of("resnet18", *options)
    assert row["ratio"] > 0
    assert row["peer_images_per_second"] > 0


@pytest.fixture
def timm(monkeypatch):
    """Pretend that timm is installed, with one network called lenet5."""
    fake = types.ModuleType("timm")
    fake.list_models = lambda: ["lenet5"]
    fake.create_model = lambda name: nn.Linear(2, 2)
    monkeypatch.setitem(sys.modules, "timm", fake)
    return fake


def test_a_peer_that_lacks_the_network_or_has_another_one_is_refused(timm):
    with pytest.raises(UsageError, match="timm has no network called 'resnet18'"):
        benchmark("resnet18", Setting(peer="timm"))
    with pytest.raises(UsageError, match="another network: it has 6 parameters, 'lenet5' has 60"):
        benchmark("lenet5", Setting(peer="timm"))
    timm.create_model = create_model
    (row,) = benchmark("lenet5", Setting(peer="timm", seconds=1.0), clock=Clock(0.25))
    assert (row.images_per_second, row.peer_images_per_second, row.ratio) == (64, 64, 1)


def test_a_peer_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="timm is not installed") as raised:
        benchmark("lenet5", Setting(peer="timm"))
    assert "pip install timm" in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lenet5", "lenet6"), "lenet5"),
        (("densenet121", "--image-size", "8"), "'densenet121' needs at least 29"),
        (("lenet5", "--format", "onnx", "--optimize"), "--optimize does not apply to --format"),
        (("lenet5", "--format", "torch-export", "--compile"), "--compile does not apply"),
        (("lenet5", "--format", "onnx", "--precision", "bf16"), "--precision bf16 does not"),
        (("lenet5", "--seconds", "0"), "seconds = 0.0: expected a positive number"),
        (("lenet5", "--plot", "a.txt"), "ends in .png, .svg or .pdf"),
        (("lenet5", "--batch-size", "0"), "--batch-size"),
    ],
)
def test_mistakes_are_errors_before_anything_is_measured(arguments, message, monkeypatch):
    monkeypatch.setattr(module, "_timed", lambda *_: pytest.fail("measured"))
    done = run(*arguments)
    error = done.exception
    text = done.output + (str(error) if isinstance(error, ZooError) else "")
    assert done.exit_code != 0
    assert message in text


def test_a_figure_without_matplotlib_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run("lenet5", "--plot", "a.png")
    assert "matplotlib is not installed" in str(done.exception)


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    done = run("lenet5", *SHORT, "--csv", str(tmp_path / "missing" / "a.csv"))
    assert "cannot be written" in str(done.exception)


def test_bench_is_listed():
    assert "bench" in COMMANDS


def test_the_table_says_how_the_latency_was_measured():
    done = run("lenet5", *SHORT, "--batch-size", "2", "--threads", "1")
    assert done.exit_code == 0, done.output
    said = "p50, p90 and p99: latency at batch size 1; 1 thread of the processor\n"
    assert done.stderr.endswith(said)
