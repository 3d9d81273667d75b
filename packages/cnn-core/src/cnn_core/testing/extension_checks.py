"""Checks of everything except models: plugins, datasets, views, commands, weights, observers.

Each check takes an `Extension` and raises AssertionError if it fails. It raises
`unittest.SkipTest` if it cannot run, for example because a dataset's files are missing.
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
from cnn_core.testing.weights_checks import WEIGHTS_CHECKS
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
    """A placeholder spec for a whole plugin, which has none of its own."""

    kind: ClassVar[str] = "plugin"

    def __post_init__(self) -> None:
        """Skip the validation of names: plugins may have names that models may not."""


@dataclass(frozen=True)
class ObserverAsSpec(PluginAsSpec):
    """A placeholder spec for a plugin's training hooks, which have none of their own."""

    kind: ClassVar[str] = "observer"


@dataclass(frozen=True)
class Extension(Offer[Any]):
    """A dataset, view, command, observer or weights of an installed plugin, or the plugin."""

    data_dir: str | os.PathLike[str] | None = None


def extensions_of(
    distribution: str, data_dir: str | os.PathLike[str] | None = None
) -> Iterator[Extension]:
    """Yield everything except models that a distribution, or the plugin of that name, offers."""
    catalogues: tuple[registry.Catalogue[Any], ...] = (
        registry.datasets(),
        registry.views(),
        registry.commands(),
        registry.weights(),
    )
    found = [entry for catalogue in catalogues for entry in offered(catalogue, distribution)]
    for plugin in plugins_of(distribution):
        hooks = {f"cnnzoo_{hook}" for hook in Observers.HOOKS} & {*plugins().hooks(plugin)}
        if hooks and plugin in plugins().loaded:
            found.append(registry.Entry(ObserverAsSpec(name=plugin.name), plugin))
    for entry in found:
        yield Extension(entry, data_dir)
    offering = {id(entry.plugin) for entry in (*found, *offered(registry.models(), distribution))}
    # Plugins come last, because the checks before them may record further faults.
    for plugin in plugins_of(distribution):
        if id(plugin) in offering or plugin.status != "ok":
            yield Extension(registry.Entry(PluginAsSpec(name=plugin.name), plugin))


def plugins_of(distribution: str) -> list[Plugin]:
    """Return the plugins of a distribution, or the plugin of that name, broken ones included."""
    return [p for p in plugins().all if distribution in (p.distribution, p.name)]


# Plugins


def check_plugin_has_no_fault(extension: Extension) -> None:
    """The plugin has no recorded fault: it loads, and its hooks work."""
    plugin = extension.entry.plugin
    if plugin.blocked:
        raise SkipTest(f"is blocked: {plugin.blocked}")
    faults = "; ".join(f"{fault.stage}: {fault.cause}" for fault in plugin.faults)
    require(plugin.status != "broken", f"is broken: {faults}")
    require(not faults, faults)


# Datasets


def check_dataset_is_sound(extension: Extension) -> None:
    """`cnnzoo verify-data` finds no fault: every sample can be read and matches the spec."""
    faults = _read(extension, lambda name: verify(name, data_dir=extension.data_dir))
    require(not faults, "; ".join(faults[:3]))


def check_new_process_reads_the_same_samples(extension: Extension) -> None:
    """A newly started process reads the same samples.

    Processes of torchrun, and spawned DataLoader workers, share the installed packages with this
    process, but no state.
    """
    expected = _read(extension, lambda name: digest(name, extension.data_dir))
    data_dir = None if extension.data_dir is None else str(extension.data_dir)
    code = f"from {__name__} import digest; print(digest({_name(extension)!r}, {data_dir!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Compare only the last word: the dataset may print while it loads.
    require(done.stdout.split()[-1:] == [expected], "another process reads other samples")


def digest(name: str, data_dir: str | os.PathLike[str] | None) -> str:
    """Return a hash of a dataset: its classes, counts and file names, and images in memory."""
    dataset = load_dataset(name, data_dir=data_dir)
    result = hashlib.sha256(dataset.fingerprint().encode())
    for split in dataset.splits.values():
        if isinstance(split, Split):
            result.update(split.images.numpy().tobytes())
    return result.hexdigest()


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
    """Drawing the view of a small network's run twice gives the same figure."""
    first, second, _ = _draw_twice(_name(extension), extension.spec.tasks[0])
    require(first == second, "the second drawing differs from the first")


def check_view_changes_nothing(extension: Extension) -> None:
    """The view changes neither the model, nor the run's files, nor the random state."""
    changed = _draw_twice(_name(extension), extension.spec.tasks[0])[2]
    require(not changed, f"changes {', '.join(changed)}")


@functools.cache
def _draw_twice(name: str, task: str) -> tuple[bytes, bytes, list[str]]:
    """Return two drawings as SVG, and the names of the states that they changed.

    The model must not change during either drawing. The files and the random state must not change
    during the second one: the first may run the model and cache its predictions.
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
    """Return, by name, the parts of the model's state that a view must not change."""
    model, modules = inputs.model, [*inputs.model.modules()]
    return {
        "weights": [value.tolist() for value in model.state_dict().values()],
        "gradients": [parameter.grad is None for parameter in model.parameters()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "modes": [module.training for module in modules],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules],
    }


def _surrounding_state(inputs: Any) -> dict[str, Any]:
    """Return the contents of the run's files and the random state, by name."""
    files = sorted(path for path in inputs.run.path.rglob("*") if path.is_file())
    return {
        "files of the run": [(str(path), path.read_bytes()) for path in files],
        "the random state": torch.get_rng_state().tolist(),
    }


def _viz(name: str) -> Any:
    """Return a module of cnn-viz, which draws views; skip the check if it is not installed.

    The module is imported by name, because cnn-core and its checks must work without cnn-viz.
    """
    if util.find_spec("cnn_viz") is None:
        raise SkipTest("cnn-viz, which draws views, is not installed")
    return importlib.import_module(f"cnn_viz.{name}")


@functools.cache
def _view_inputs(task: str) -> Any:
    """Train the smallest installed network for an epoch; return the inputs of all views."""
    if task not in DATA:
        raise SkipTest(f"no embedded dataset is for {task}")
    inputs = _viz("results.inputs").ViewInputs
    run = train(
        _smallest(task),
        DATA[task],
        out=Path(
            mkdtemp(dir=_scratch().name), task
        ),  # a new folder, in case an earlier attempt failed
        epochs=1,
        progress=False,
        device="cpu",
    )
    return inputs(run, device="cpu")


@functools.cache
def _scratch() -> TemporaryDirectory[str]:
    """Return a temporary folder that is deleted when the process ends."""
    return TemporaryDirectory(prefix="cnnzoo-check-")


def _smallest(task: str, *, exclude: str = "") -> str:
    """Return the smallest installed model for a task, except those of the plugin `exclude`.

    Models with a default recipe for the data are preferred, since they are known to train well.
    """
    data = canonical_name(registry.datasets(), DATA[task])
    candidates = [
        (not _has_default(name, data), entry.spec.params, name)
        for name, entry in registry.models()
        if entry.spec.task == task and entry.plugin.name != exclude
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


def check_command_has_help(extension: Extension) -> None:
    """The command has a help text, and rejects an unknown option with exit code 2."""
    import click
    from click.testing import CliRunner

    command = registry.resolve(extension.entry)
    require(isinstance(command, click.Command), f"{extension.spec.target} is not a click.Command")
    help_result = CliRunner().invoke(command, ["--help"])
    require(help_result.exit_code == 0, f"--help exits with {help_result.exit_code}")
    require(command.help, "has no help text: write a docstring for its function")
    bad_option_result = CliRunner().invoke(command, ["--no-such-option"])
    require(
        bad_option_result.exit_code == 2,
        f"an unknown option exits with {bad_option_result.exit_code}, expected 2",
    )


# Observers of training


def check_training_is_the_same_without_observer(extension: Extension) -> None:
    """A short run reports no fault of the plugin, and gives the same weights as without it.

    Both runs have their own processes, since a plugin cannot be unloaded from this one.
    """
    name = extension.entry.plugin.name
    model = _smallest("classification", exclude=name)
    with TemporaryDirectory(prefix="cnnzoo-check-") as folder:
        with_it = _trained_weights(model, name, Path(folder, "with"))
        without = _trained_weights(model, name, Path(folder, "without"), "--no-plugin", name)
        same = all(torch.equal(value, without[key]) for key, value in with_it.items())
        require(same, "the weights differ from those of a run without it")


def _trained_weights(model: str, plugin: str, out: Path, *options: str) -> dict[str, torch.Tensor]:
    """Train for an epoch with `cnnzoo OPTIONS train`; return the weights.

    Raises:
        AssertionError: the run fails, or reports a fault of the plugin.
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
    "dataset": (check_dataset_is_sound, check_new_process_reads_the_same_samples),
    "view": (check_view_draws_the_same_figure_twice, check_view_changes_nothing),
    "command": (check_command_has_help,),
    "observer": (check_training_is_the_same_without_observer,),
    "weights": WEIGHTS_CHECKS,
}
