"""Checks of everything but models: plugins, datasets, views, commands, observers of training.

Each check takes an `Extension` and raises AssertionError if what its name states does not hold. It
raises `unittest.SkipTest` where it cannot run, for example because a dataset's files are missing.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, ClassVar
from unittest import SkipTest

import torch
from safetensors.torch import load_file

from cnn_core import registry
from cnn_core.data import Split, load_dataset
from cnn_core.data.verify import verify
from cnn_core.errors import DatasetMissingError, PluginError, UsageError
from cnn_core.plugins import Observers, plugins
from cnn_core.plugins.discovery import Plugin
from cnn_core.registry.names import canonical_name, default_recipe
from cnn_core.specs import Spec
from cnn_core.testing.assertions import require
from cnn_core.testing.case import Offer, offered
from cnn_core.testing.spec_checks import (
    check_import_prints_and_writes_nothing,
    check_plugin_module_is_light,
    check_requirement_of_core_is_pinned,
)
from cnn_core.training import train

__all__ = [
    "EXTENSION_CHECKS",
    "Extension",
    "check_plugin_has_no_fault",
    "extensions_of",
    "plugins_of",
]

DATA = {"classification": "cnn-core/digits", "segmentation": "cnn-core/digit_scenes"}


@dataclass(frozen=True)
class PluginAsSpec(Spec):
    """Stands for a whole plugin, which has no spec of its own."""

    kind: ClassVar[str] = "plugin"

    def __post_init__(self) -> None:
        """Accept any name: plugins are named more freely than models."""


@dataclass(frozen=True)
class ObserverAsSpec(PluginAsSpec):
    """Stands for the training hooks of a plugin, which have no spec either."""

    kind: ClassVar[str] = "observer"


@dataclass(frozen=True)
class Extension(Offer[Any]):
    """A dataset, a view, a command or an observer of an installed plugin, or the plugin itself."""

    data_dir: str | os.PathLike[str] | None = None


def extensions_of(
    distribution: str, data_dir: str | os.PathLike[str] | None = None
) -> Iterator[Extension]:
    """Yield all that a distribution offers except models; it may be given by a plugin's name."""
    catalogues: tuple[registry.Catalogue[Any], ...] = (
        registry.datasets(),
        registry.views(),
        registry.commands(),
    )
    found = [entry for catalogue in catalogues for entry in offered(catalogue, distribution)]
    for plugin in plugins_of(distribution):
        hooks = {f"cnnzoo_{hook}" for hook in Observers.HOOKS} & {*plugins().hooks(plugin)}
        if hooks and plugin in plugins().loaded:
            found.append(registry.Entry(ObserverAsSpec(name=plugin.name), plugin))
    for entry in found:
        yield Extension(entry, data_dir)
    offering = {id(entry.plugin) for entry in (*found, *offered(registry.models(), distribution))}
    # Plugins come last: by then the checks above may have recorded further faults.
    for plugin in plugins_of(distribution):
        if id(plugin) in offering or plugin.status != "ok":
            yield Extension(registry.Entry(PluginAsSpec(name=plugin.name), plugin))


def plugins_of(distribution: str) -> list[Plugin]:
    """Return the plugins of a distribution, or the plugin of that name, broken ones included."""
    return [p for p in plugins().all if distribution in (p.distribution, p.name)]


# Plugins


def check_plugin_has_no_fault(extension: Extension) -> None:
    """The plugin loads, its hooks work, and it changes no global state."""
    plugin = extension.entry.plugin
    if plugin.blocked:
        raise SkipTest(f"is blocked: {plugin.blocked}")
    faults = "; ".join(f"{fault.stage}: {fault.cause}" for fault in plugin.faults)
    require(plugin.status != "broken", f"is broken: {faults}")
    require(not faults, faults)


# Datasets


def check_dataset_is_sound(extension: Extension) -> None:
    """Every sample can be read and matches the spec, as `cnnzoo verify-data` checks."""
    faults = _read(extension, lambda name: verify(name, data_dir=extension.data_dir))
    require(not faults, "; ".join(faults[:3]))


def check_a_spawned_process_reads_the_same(extension: Extension) -> None:
    """A newly started process reads the same samples.

    Workers of a DataLoader and of torchrun start like that: they share the installed packages with
    this process, but no state.
    """
    here = _read(extension, lambda name: digest(name, extension.data_dir))
    where = None if extension.data_dir is None else str(extension.data_dir)
    code = f"from {__name__} import digest; print(digest({_name(extension)!r}, {where!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # The last word only: the dataset may print while it loads.
    require(done.stdout.split()[-1:] == [here], "another process reads other samples")


def digest(name: str, data_dir: str | os.PathLike[str] | None) -> str:
    """Return a hash of a dataset: its classes, counts and files, and the images in memory."""
    dataset = load_dataset(name, data_dir=data_dir)
    found = hashlib.sha256(dataset.fingerprint().encode())
    for split in dataset.splits.values():
        if isinstance(split, Split):
            found.update(split.images.numpy().tobytes())
    return found.hexdigest()


def _read(extension: Extension, read: Callable[[str], Any]) -> Any:
    """Return `read(name)` for a dataset; skip the check if its files are missing."""
    if extension.spec.folder:
        raise SkipTest(f"{extension.spec.name}:PATH reads the user's own files")
    try:
        return read(_name(extension))
    except DatasetMissingError as error:
        raise SkipTest(error.message) from error


def _name(extension: Extension) -> str:
    return extension.entry.qualified


# Views


def check_view_draws_the_same_figure_twice(extension: Extension) -> None:
    """The view draws a run of a small network, and draws it the same way again."""
    first, second, _ = _draw_twice(_name(extension), extension.spec.tasks[0])
    require(first == second, "the second drawing differs from the first")


def check_view_changes_nothing(extension: Extension) -> None:
    """The view changes no weight, mode, hook or file, and not the random state."""
    changed = _draw_twice(_name(extension), extension.spec.tasks[0])[2]
    require(not changed, f"changes {', '.join(changed)}")


@functools.cache
def _draw_twice(name: str, task: str) -> tuple[bytes, bytes, list[str]]:
    """Return two drawings as SVG, and the names of what changed meanwhile.

    The model is compared with its state before the first drawing, files and random state with
    theirs after it: the first drawing may run the model and cache its predictions.
    """
    render, inputs = _viz("drawing.render"), _view_inputs(task)
    try:
        before = _model_state(inputs)
        first = render.draw_one(name, inputs)
        before |= _surrounding_state(inputs)
        second = render.draw_one(name, inputs)
    except UsageError as error:  # the view does not apply to a run of this network
        raise SkipTest(error.message) from error
    after = _model_state(inputs) | _surrounding_state(inputs)
    return first.svg, second.svg, [key for key in before if before[key] != after[key]]


def _model_state(inputs: Any) -> dict[str, Any]:
    """Return the state of the model that a view may not change, by name."""
    model, modules = inputs.model, [*inputs.model.modules()]
    return {
        "weights": [value.tolist() for value in model.state_dict().values()],
        "gradients": [parameter.grad is None for parameter in model.parameters()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "modes": [module.training for module in modules],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules],
    }


def _surrounding_state(inputs: Any) -> dict[str, Any]:
    """Return the files of the run and the random state, by name."""
    files = sorted(path for path in inputs.run.path.rglob("*") if path.is_file())
    return {
        "files of the run": [(str(path), path.read_bytes()) for path in files],
        "the random state": torch.get_rng_state().tolist(),
    }


def _viz(name: str) -> Any:
    """Return a module of cnn-viz, which draws views; skip the check if it is not installed.

    Imported by name: cnn-core must work, and be checked, without cnn-viz.
    """
    if util.find_spec("cnn_viz") is None:
        raise SkipTest("cnn-viz, which draws views, is not installed")
    return importlib.import_module(f"cnn_viz.{name}")


@functools.cache
def _view_inputs(task: str) -> Any:
    """Train the smallest installed network for an epoch; the run serves all views."""
    inputs = _viz("results.inputs").ViewInputs
    run = train(
        _smallest(task),
        DATA[task],
        out=Path(mkdtemp(dir=_scratch().name), task),  # a new folder, should an earlier try fail
        epochs=1,
        progress=False,
        device="cpu",
    )
    return inputs(run, device="cpu")


@functools.cache
def _scratch() -> TemporaryDirectory[str]:
    """Return a folder that is deleted when the process ends."""
    return TemporaryDirectory(prefix="cnnzoo-check-")


def _smallest(task: str, *, but: str = "") -> str:
    """Return the installed model of a task with the fewest parameters, not of the plugin `but`.

    A model with a default recipe for the data is preferred, since its settings are known to train.
    """
    data = canonical_name(registry.datasets(), DATA[task])
    candidates = [
        (not _has_default(name, data), entry.spec.params, name)
        for name, entry in registry.models()
        if entry.spec.task == task and entry.plugin.name != but
    ]
    if not candidates:
        raise SkipTest(f"no model for {task} is installed: pip install cnn-arch-lenet")
    return min(candidates)[-1]


def _has_default(model: str, data: str) -> bool:
    try:
        return default_recipe(model, data) is not None
    except PluginError:  # several recipes claim to be the default
        return False


# Commands


def check_command_explains_itself(extension: Extension) -> None:
    """The command has a help text, and rejects an unknown option with exit code 2."""
    import click
    from click.testing import CliRunner

    command = registry.resolve(extension.entry)
    require(isinstance(command, click.Command), f"{extension.spec.target} is not a click.Command")
    helped = CliRunner().invoke(command, ["--help"])
    require(helped.exit_code == 0, f"--help ends with {helped.exit_code}")
    require(command.help, "has no help text: write a docstring for its function")
    refused = CliRunner().invoke(command, ["--no-such-option"])
    require(refused.exit_code == 2, f"an unknown option ends with {refused.exit_code}, expected 2")


# Observers of training


def check_training_is_the_same_without_it(extension: Extension) -> None:
    """A short training reports no fault of the plugin, and ends with the same weights without it.

    Both trainings run in processes of their own: a plugin cannot be unloaded from this one.
    """
    name = extension.entry.plugin.name
    model = _smallest("classification", but=name)
    with TemporaryDirectory(prefix="cnnzoo-check-") as folder:
        with_it = _trained_weights(model, name, Path(folder, "with"))
        without = _trained_weights(model, name, Path(folder, "without"), "--no-plugin", name)
        same = all(torch.equal(value, without[key]) for key, value in with_it.items())
        require(same, "the weights differ from those of a training without it")


def _trained_weights(model: str, plugin: str, out: Path, *options: str) -> dict[str, torch.Tensor]:
    """Train for an epoch with `cnnzoo OPTIONS train`; return the weights.

    Raises:
        AssertionError: the training fails, or its output mentions the plugin.
    """
    command = [sys.executable, "-m", "cnn_core", *options, "train", model]
    command += ["--data", DATA["classification"], "--epochs", "1", "--device", "cpu"]
    command += ["--out", out.name]
    done = subprocess.run(command, cwd=out.parent, capture_output=True, text=True, check=False)
    warnings = [line for line in done.stderr.splitlines() if f"plugin '{plugin}'" in line]
    require(not warnings, "\n".join(warnings))
    require(done.returncode == 0, done.stderr.strip().rpartition("\n")[2])
    return load_file(out / "weights.safetensors")


EXTENSION_CHECKS: dict[str, tuple[Callable[[Extension], None], ...]] = {
    "plugin": (
        check_plugin_has_no_fault,
        check_plugin_module_is_light,
        check_import_prints_and_writes_nothing,
        check_requirement_of_core_is_pinned,
    ),
    "dataset": (check_dataset_is_sound, check_a_spawned_process_reads_the_same),
    "view": (check_view_draws_the_same_figure_twice, check_view_changes_nothing),
    "command": (check_command_explains_itself,),
    "observer": (check_training_is_the_same_without_it,),
}
