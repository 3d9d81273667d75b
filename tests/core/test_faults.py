"""Plugins whose own code fails, exits or lies: each is named, and harms no other."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import sys
import types

import pytest
import torch

from cnn_core import create_model, list_models, load_dataset, registry
from cnn_core.cli import main
from cnn_core.errors import DatasetCorruptError, DatasetMissingError, PluginError
from cnn_core.plugins.discovery import Plugin
from cnn_core.plugins.isolation import INTERRUPTS
from cnn_core.tasks import score_of
from cnn_core.training.epoch_metrics import EpochMetrics

ADVICE = "fix it, or disable it: cnnzoo --no-plugin bad …"


@pytest.fixture
def module(monkeypatch):
    """Return a function that makes a module of a source, importable in this test."""

    def make(name, source):
        made = types.ModuleType(name)
        exec(source, vars(made))
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return make


# Datasets

DATA = """
from cnn_core import DatasetSpec
@hookimpl
def cnnzoo_datasets():
    return [DatasetSpec(
        name="theirs", target="their_data:load", summary="s", classes=("a", "b", "c"),
        image=(1, 4, 4), splits={"train": 6, "test": 6}, mean=(), std=(), licence="x",
        citation="c", homepage="",
    )]
"""
LOAD = """
import torch
from cnn_core.data import Dataset, Files, Split
from cnn_core.errors import DatasetMissingError

def made(images=None, targets=None):
    images = torch.zeros(6, 1, 4, 4, dtype=torch.uint8) if images is None else images
    return Split(images, torch.arange(6) % 3 if targets is None else targets)

def load(spec, root, download):
    test = made()
    BODY
    return Dataset(spec, {"train": train, "test": test})
"""


@pytest.fixture
def loaded(zoo, plugin, module):
    """Return a function that loads the dataset whose loader has this body."""

    def load(body):
        zoo(plugin("bad", DATA))
        module("their_data", LOAD.replace("BODY", body))
        return load_dataset("theirs")

    return load


WRONG_DATA = {
    "raise ValueError('my bug')": "cannot be loaded: ValueError: my bug",
    "raise SystemExit(0)": "cannot be loaded: SystemExit: 0",
    "raise GeneratorExit": "cannot be loaded: GeneratorExit",
    "return 3": ": their_data:load returned int, expected Dataset",
    "return Dataset(spec, [test])": ": their_data:load returned a list of splits, expected a dict",
    "return Dataset(spec, {'train': test})": ": .* no split 'test', which its spec has",
    "train = [test.images, test.targets]": ": .* 'train' as a list, expected Split or Files",
    "train = made(images=test.images.numpy())": ": .* 'train' as a Split with a ndarray of images",
    "train = made(targets=[0, 1] * 3)": ": .* a Split with a list of targets, expected a Tensor",
    "train = Files((), [0, 1])": ": .* Files with a list of targets, expected a Tensor or a tuple",
}


@pytest.mark.parametrize("body", WRONG_DATA)
def test_a_loader_that_fails_is_named(loaded, body):
    found = rf"dataset 'theirs' \(cnn-arch-bad/bad\) ?{WRONG_DATA[body]}.*\n{ADVICE}$"
    with pytest.raises(PluginError, match=found):
        loaded(body)


WRONG_LABELS = {
    "train = made(targets=test.targets.float())": r"float32 \(6,\)",
    "train = made(targets=test.targets.int())": r"int32 \(6,\)",
    "train = made(targets=test.targets[:, None])": r"int64 \(6, 1\)",
}


@pytest.mark.parametrize("body", WRONG_LABELS)
def test_labels_are_numbers_one_an_image(loaded, body):
    found = f"'theirs', split 'train': labels are {WRONG_LABELS[body]}, expected int64, N"
    with pytest.raises(DatasetCorruptError, match=found):
        loaded(body)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("raise DatasetMissingError('not here')", DatasetMissingError),
        ("open('/nowhere/at/all')", FileNotFoundError),
        ("raise RuntimeError('CUDA out of memory')", RuntimeError),
        ("raise KeyboardInterrupt", INTERRUPTS),
    ],
)
def test_what_is_no_fault_of_a_loader_goes_through(loaded, body, kind):
    with pytest.raises(kind) as caught:
        loaded(body)
    assert not isinstance(caught.value, PluginError)


def test_a_loader_that_prints_and_changes_torch_is_isolated(loaded, capsys, caplog):
    body = "print('loading'); torch.set_default_dtype(torch.float64); train = made()"
    assert len(loaded(body).split("train")) == 6
    assert torch.get_default_dtype() is torch.float32
    assert capsys.readouterr().out == ""
    [line] = caplog.messages
    where = "plugin 'bad' (cnn-arch-bad 1.2.3): loading of theirs"
    assert f"{where}: changed torch's default dtype (undone)" in line


# Metrics

METRIC = """
from cnn_core import MetricSpec
@hookimpl
def cnnzoo_metrics():
    return [MetricSpec(
        name="mine", target="their_metric:Mine", task="classification", summary="s"
    )]
"""
MINE = """
import torch
class Mine:
    def __init__(self, num_classes):
        self.sums = torch.zeros(1)
    def update(self, logits, targets):
        self.sums += len(targets)
    def compute(self):
        return self.sums.item()
"""
KEPT = {"loss", "top1", "top2", "mine"}
WRONG_METRICS = {
    "broken = = import": "",
    MINE.replace("self.sums = torch", "1 / 0; torch"): "ZeroDivisionError: division by zero",
    MINE.replace("self.sums = torch", "raise SystemExit(0); torch"): "SystemExit: 0",
    MINE.replace("self.sums = ", "self.total = "): "metric 'mine' .* has no tensor `sums`",
    MINE.replace("self.sums += ", "self.missing += "): "AttributeError: .* 'missing'",
    MINE.replace("self.sums.item()", "'many'"): "ValueError: could not convert string to float",
}


@pytest.fixture
def measured(zoo, plugin, module):
    """Return a function that measures two epochs, with a metric of this source."""

    def measure(source):
        zoo(plugin("bad", METRIC))
        with contextlib.suppress(SyntaxError):
            module("their_metric", source)
        found = []
        for _ in range(2):
            running = EpochMetrics("classification", 3, 2)
            for _ in range(2):
                running.add(1.0, torch.eye(3), torch.arange(3))
            values = running.compute()
            found.append({name: values[name] for name in values.keys() & KEPT})
        assert found[0] == found[1]
        return found[0]

    return measure


def test_a_metric_of_a_plugin_is_taken(measured):
    assert measured(MINE) == {"loss": 1, "top1": 1, "top2": 1, "mine": 6}
    assert score_of("classification", "val/mine", "top5") == ("val/mine", True)


@pytest.mark.parametrize("source", WRONG_METRICS, ids=range(len(WRONG_METRICS)))
def test_a_metric_that_fails_is_named_once_and_the_others_go_on(measured, caplog, source):
    assert measured(source) == {"loss": 1, "top1": 1, "top2": 1}
    [line] = caplog.messages
    found = r"plugin 'bad' \(cnn-arch-bad 1.2.3\): metric mine, left out: "
    assert re.match(found + WRONG_METRICS[source], line)
    assert score_of("classification", "", "top5") == ("val/top1", True)
    with pytest.raises(PluginError, match=r"monitor = 'val/mine': plugin 'bad'.*left out"):
        score_of("classification", "val/mine", "top5")


# Models

WRONG_MODELS = {
    "def tiny(**sizes): return 3": ": tiny_net:tiny returned int, expected an nn.Module",
    "def tiny(**sizes): 1 / 0": " cannot be built: ZeroDivisionError: division by zero",
    "def tiny(**sizes): raise SystemExit(0)": " cannot be built: SystemExit: 0",
    "def tiny(**sizes): raise GeneratorExit": " cannot be built: GeneratorExit",
    "def tiny(): return torch.nn.Identity()": " cannot be built: TypeError: .*'num_classes'",
    "tiny = 3": ": tiny_net:tiny is of type int, not a function",
}


@pytest.mark.parametrize("source", WRONG_MODELS)
def test_a_constructor_that_fails_is_named(zoo, plugin, module, source):
    zoo(plugin("bad"))
    module("tiny_net", f"import torch\n{source}")
    found = rf"model 'tiny' \(cnn-arch-bad/bad\){WRONG_MODELS[source]}.*\n{ADVICE}$"
    with pytest.raises(PluginError, match=found):
        create_model("tiny")


# Commands, and what else fails in the midst of ours

COMMAND = """
from cnn_core import CommandSpec
@hookimpl
def cnnzoo_commands():
    return [CommandSpec(name="theirs", target="their_command:command", summary="s")]
"""
CLICK = """
import click
print("imported")
class Odd(BaseException): pass
@click.command()
def command():
    BODY
"""
ENDS = {
    "raise ValueError('my bug')": (6, f"error: {{}}: ValueError: my bug\n{ADVICE}\n"),
    "raise Odd('my bug')": (6, f"error: {{}}: Odd: my bug\n{ADVICE}\n"),
    "int('x', base=torch)": (
        6,
        f"error: {{}}: NameError: name 'torch' is not defined\n{ADVICE}\n",
    ),
    "open('/nowhere/at/all')": (1, "error: /nowhere/at/all: No such file or directory\n"),
    "raise KeyboardInterrupt": (130, "interrupted\n"),
    "raise click.Abort": (130, "interrupted\n"),
    "click.echo('done')": (0, ""),
}


@pytest.fixture
def ended(zoo, plugin, module, tmp_path, monkeypatch, capsys, command_leaves_no_trace):
    """Return a function that runs a command line beside a command of this source."""
    monkeypatch.syspath_prepend(tmp_path)

    def end(source, *args):
        zoo(plugin("bad", COMMAND))
        (tmp_path / "their_command.py").write_text(source)
        monkeypatch.delitem(sys.modules, "their_command", raising=False)
        importlib.invalidate_caches()
        code = main(args)
        monkeypatch.delitem(sys.modules, "their_command", raising=False)
        return code, *capsys.readouterr()

    return end


@pytest.mark.parametrize("body", ENDS)
def test_a_command_that_fails_is_its_plugins(ended, body):
    code, lines = ENDS[body]
    found = ended(CLICK.replace("BODY", body), "theirs")
    expected = "imported\n" + lines.format("plugin 'bad' (cnn-arch-bad 1.2.3)")
    assert found == (code, "done\n" if not code else "", expected)


def test_a_group_without_a_command_shows_its_help(ended):
    source = "import click\n@click.group()\ndef command(): 'Mine.'\n"
    code, out, err = ended(source, "theirs")
    assert (code, out) == (2, "")
    assert re.match(r"Usage: cnnzoo theirs \[OPTIONS\] COMMAND .*\n\n  Mine\.\n", err)


def test_a_network_that_fails_in_its_forward_is_named(ended, module, tmp_path, capsys):
    source = "class tiny(torch.nn.Linear):\n    def forward(self, x): return x.no_such\n"
    source += (
        "    def __init__(self, num_classes, in_channels): super().__init__(4, num_classes)\n"
    )
    module("tiny_net", "__name__ = 'tiny_net'\nimport torch\n" + source)
    out = str(tmp_path / "run")
    code, _, err = ended("", "train", "tiny", "--data", "digits", "--epochs", "1", "--out", out)
    assert code == 6
    cause = "AttributeError: 'Tensor' object has no attribute 'no_such'"
    assert f"error: plugin 'bad' (cnn-arch-bad 1.2.3): {cause}\n{ADVICE}\n" in err


def test_our_own_defects_are_no_plugins(ended, monkeypatch):
    monkeypatch.setattr(registry.Catalogue, "match", lambda *_: 1 / 0)
    code, _, err = ended("", "list-models")
    assert code == 1
    assert "this is a bug" in err


# Errors that are no Exceptions

ODD = (
    "asyncio.CancelledError",
    "GeneratorExit",
    "SystemExit(0)",
    "type('Odd', (BaseException,), {})",
)


@pytest.mark.parametrize("error", ODD)
def test_no_error_of_a_plugin_keeps_the_others_from_their_work(
    zoo, plugin, tmp_path, monkeypatch, caplog, error
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "early_plugin.py").write_text(f"import asyncio\nraise {error}\n")
    early = Plugin("early", "cnn-arch-early", "1", "early_plugin")
    late = f"import asyncio\n@hookimpl\ndef cnnzoo_models(): raise {error}\n"
    found = zoo(early, plugin("late", late), plugin("good"))
    assert list_models() == ["tiny"]
    assert [p.status for p in found.all] == ["ok", "broken", "faulty", "ok"]
    assert ["import" in line for line in caplog.messages] == [True, False]


@pytest.mark.parametrize("error", INTERRUPTS)
def test_what_ends_a_command_ends_it_in_a_plugin_too(zoo, plugin, error):
    late = f"@hookimpl\ndef cnnzoo_models():\n    from cnn_core.errors import {error.__name__}\n"
    if error is KeyboardInterrupt:
        late = "@hookimpl\ndef cnnzoo_models():\n"
    zoo(plugin("late", f"{late}    raise {error.__name__}\n"))
    with pytest.raises(error):
        list_models()


# Settings of the process and of torch

SETTINGS = {
    "os.chdir('/')": ("the working directory", os.getcwd),
    "logging.disable()": ("logging.disable", lambda: logging.root.manager.disable),
    "torch.set_default_dtype(torch.float64)": ("torch's default dtype", torch.get_default_dtype),
    "torch.set_default_device('meta')": ("torch's default device", lambda: torch.ones(1).device),
    "torch.set_grad_enabled(False)": ("torch's grad mode", torch.is_grad_enabled),
    "torch.set_num_threads(3)": ("torch's number of threads", torch.get_num_threads),
    "torch.use_deterministic_algorithms(True)": (
        "torch's deterministic mode",
        torch.are_deterministic_algorithms_enabled,
    ),
    "torch.backends.mkldnn.enabled = False": (
        "torch.backends.mkldnn.enabled",
        lambda: torch.backends.mkldnn.enabled,
    ),
}


@pytest.mark.parametrize("change", SETTINGS)
def test_a_setting_that_a_plugin_changes_is_restored_and_reported(zoo, plugin, caplog, change):
    name, read = SETTINGS[change]
    before = read()
    hook = "@hookimpl\ndef cnnzoo_models():\n    import logging, os, torch\n    return [model()]\n"
    zoo(plugin("bad", hook.replace("    return", f"    {change}\n    return")))
    assert list_models() == ["tiny"]
    assert read() == before
    [line] = caplog.messages
    assert f"hook cnnzoo_models: changed {name} (undone)" in line


def test_settings_are_restored_where_a_plugin_is_the_first_to_import_torch(site):
    site.add("import torch\ntorch.set_default_dtype(torch.float64)\ntorch.set_num_threads(3)\n")
    code = (
        "from cnn_core import list_models; list_models(); import torch; print(torch.ones(1).dtype)"
    )
    done = site.run(code)
    assert done.stdout == "torch.float32\n", done.stderr
    assert "changed torch's default dtype, torch's number of threads (undone)" in done.stderr


# Faults of a plugin that works


def test_an_import_that_takes_long_is_reported(zoo, plugin, monkeypatch, caplog):
    monkeypatch.setattr("cnn_core.plugins.loader.SLOW_IMPORT", 0.0)
    zoo(plugin("bad"))
    (line,) = [line for line in caplog.messages if "plugin 'bad'" in line]
    assert re.search(r"import: takes 0\.0 s, which slows down startup", line)
    assert list_models() == ["tiny"]


@pytest.mark.parametrize("metadata", [None, "Metadata-Version: 2.1\nName: cnn-arch-bad\n"])
def test_a_distribution_without_a_version_is_reported(
    site, good_source, metadata, monkeypatch, forget, caplog
):
    site.add(good_source)
    path = site.path / "cnn_arch_bad-1.2.3.dist-info" / "METADATA"
    path.unlink()
    if metadata:
        path.write_text(metadata)
    monkeypatch.syspath_prepend(site.path)
    monkeypatch.setenv("CNNZOO_PLUGINS", "bad")
    forget()
    assert list_models() == ["tiny"]
    [line] = caplog.messages
    assert re.search(
        r"unknown\): METADATA: Name or Version is missing: reinstall the distribution", line
    )
    monkeypatch.undo()
    forget()
