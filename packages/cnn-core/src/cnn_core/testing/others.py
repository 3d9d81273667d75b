"""The checks of what is no network: datasets, views, commands, and observers of training.

Each takes an `Other`, and raises if what its name says does not hold; `unittest.SkipTest` where it
cannot be tried here, as a dataset whose files are not there.
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
from cnn_core.testing.case import Offer, offered
from cnn_core.testing.checks import (
    check_import_prints_and_writes_nothing,
    check_plugin_module_is_light,
    check_requirement_of_core_is_pinned,
    require,
)
from cnn_core.training import train

__all__ = ["OTHERS", "Other", "check_plugin_has_no_fault", "others_of", "plugins_of"]

DATA = {"classification": "cnn-core/digits", "segmentation": "cnn-core/digit_scenes"}


@dataclass(frozen=True)
class Whole(Spec):
    """What stands for a plugin as a whole."""

    kind: ClassVar[str] = "plugin"

    def __post_init__(self) -> None:
        """Take any name that a plugin may have."""


@dataclass(frozen=True)
class Watching(Whole):
    """What stands for a plugin that observes training."""

    kind: ClassVar[str] = "observer"


@dataclass(frozen=True)
class Other(Offer[Any]):
    """A dataset, a view, a command or an observer of an installed plugin, or the plugin."""

    data_dir: str | os.PathLike[str] | None = None


def others_of(
    distribution: str, data_dir: str | os.PathLike[str] | None = None
) -> Iterator[Other]:
    """Yield what a distribution, or the plugin of that short name, offers beside networks."""
    catalogues: tuple[registry.Catalogue[Any], ...] = (
        registry.datasets(),
        registry.views(),
        registry.commands(),
    )
    found = [entry for catalogue in catalogues for entry in offered(catalogue, distribution)]
    for plugin in plugins_of(distribution):
        hooks = {f"cnnzoo_{hook}" for hook in Observers.HOOKS} & {*plugins().hooks(plugin)}
        if hooks and plugin in plugins().loaded:
            found.append(registry.Entry(Watching(name=plugin.name), plugin))
    for entry in found:
        yield Other(entry, data_dir)
    offering = {id(entry.plugin) for entry in (*found, *offered(registry.models(), distribution))}
    for plugin in plugins_of(distribution):  # last: what was found out by then is said, too
        if id(plugin) in offering or plugin.status != "ok":
            yield Other(registry.Entry(Whole(name=plugin.name), plugin))


def plugins_of(distribution: str) -> list[Plugin]:
    """Return the plugins of a distribution, or of that short name, also those that do not work."""
    return [p for p in plugins().all if distribution in (p.distribution, p.name)]


# Plugins


def check_plugin_has_no_fault(other: Other) -> None:
    """The plugin is loaded, its hooks work, and it changes nothing of what is everyone's."""
    plugin = other.entry.plugin
    if plugin.blocked:
        raise SkipTest(f"is blocked: {plugin.blocked}")
    faults = "; ".join(f"{fault.where}: {fault.cause}" for fault in plugin.faults)
    require(plugin.status != "broken", f"is broken: {faults}")
    require(not faults, faults)


# Datasets


def check_data_set_is_sound(other: Other) -> None:
    """Every sample can be read and is what the spec says: `cnnzoo verify-data`."""
    found = _there(other, lambda name: verify(name, data_dir=other.data_dir))
    require(not found, "; ".join(found[:3]))


def check_a_spawned_process_reads_the_same(other: Other) -> None:
    """A process that is started anew, as those that load data, finds the same samples."""
    here = _there(other, lambda name: digest(name, other.data_dir))
    where = None if other.data_dir is None else str(other.data_dir)
    code = (
        f"from cnn_core.testing.others import digest; print(digest({_name(other)!r}, {where!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    require(done.stdout.split()[-1:] == [here], "another process reads other samples")


def digest(name: str, data_dir: str | os.PathLike[str] | None) -> str:
    """Return a hash of what a dataset is: classes, counts, files, and images in memory."""
    dataset = load_dataset(name, data_dir=data_dir)
    found = hashlib.sha256(dataset.fingerprint().encode())
    for split in dataset.splits.values():
        if isinstance(split, Split):
            found.update(split.images.numpy().tobytes())
    return found.hexdigest()


def _there(other: Other, read: Callable[[str], Any]) -> Any:
    """Return what is read of a dataset; skip where its files are not there."""
    if other.spec.folder:
        raise SkipTest(f"{other.spec.name}:PATH is of one's own files")
    try:
        return read(_name(other))
    except DatasetMissingError as error:
        raise SkipTest(error.message) from error


def _name(other: Other) -> str:
    return other.entry.qualified


# Views


def check_view_draws_the_same_figure_twice(other: Other) -> None:
    """The view draws a run of a small network, and the same run in the same way."""
    first, second, _ = _drawn_twice(_name(other), other.spec.tasks[0])
    require(first == second, "the figure is another one each time")


def check_view_leaves_what_it_is_given_as_it_was(other: Other) -> None:
    """The view changes no weight, mode, hook or file, and not the random state."""
    changed = _drawn_twice(_name(other), other.spec.tasks[0])[2]
    require(not changed, f"changes {', '.join(changed)}")


@functools.cache
def _drawn_twice(name: str, task: str) -> tuple[bytes, bytes, list[str]]:
    """Return two drawings as SVG, and what they changed; the first may keep what it makes."""
    figures, made = _viz("figures"), _ingredients(task)
    try:
        before = _traces(made)
        first = figures.draw_one(name, made)
        before |= _settled(made)
        second = figures.draw_one(name, made)
    except UsageError as error:  # it does not fit a run of this network
        raise SkipTest(error.message) from error
    after = _traces(made) | _settled(made)
    return first.svg, second.svg, [key for key in before if before[key] != after[key]]


def _traces(made: Any) -> dict[str, Any]:
    """Return, by what it is, how a network is."""
    model, modules = made.model, [*made.model.modules()]
    return {
        "weights": [value.tolist() for value in model.state_dict().values()],
        "gradients": [parameter.grad is None for parameter in model.parameters()],
        "what is trained": [parameter.requires_grad for parameter in model.parameters()],
        "modes": [module.training for module in modules],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules],
    }


def _settled(made: Any) -> dict[str, Any]:
    """Return, by what it is, what making the network and what is kept of it may change."""
    files = sorted(path for path in made.run.path.rglob("*") if path.is_file())
    return {
        "files of the run": [(str(path), path.read_bytes()) for path in files],
        "the random state": torch.get_rng_state().tolist(),
    }


def _viz(name: str) -> Any:
    """Return a module of cnn-viz, which draws views: cnn-core does not need it."""
    try:
        return importlib.import_module(f"cnn_viz.{name}")
    except ImportError as error:
        raise SkipTest("cnn-viz, which draws views, is not installed") from error


@functools.cache
def _ingredients(task: str) -> Any:
    """Train the smallest network that is installed for an epoch, and keep it for all views."""
    made = _viz("ingredients").ViewInputs
    run = train(
        _smallest(task),
        DATA[task],
        out=Path(mkdtemp(dir=_scratch().name), task),  # a new one, if it failed before
        epochs=1,
        progress=False,
        device="cpu",
    )
    return made(run, device="cpu")


@functools.cache
def _scratch() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="cnnzoo-check-")  # which goes when the process ends


def _smallest(task: str, *, but: str = "") -> str:
    """Return the installed network of a task with the fewest parameters, not of plugin `but`.

    One that has a recipe for the data is preferred: its settings train.
    """
    data = canonical_name(registry.datasets(), DATA[task])
    fits = [
        (not _has_default(name, data), entry.spec.params, name)
        for name, entry in registry.models()
        if entry.spec.task == task and entry.plugin.name != but
    ]
    if not fits:
        raise SkipTest(f"no network is installed that does {task}: pip install cnn-arch-lenet")
    return min(fits)[-1]


def _has_default(model: str, data: str) -> bool:
    try:
        return default_recipe(model, data) is not None
    except PluginError:  # more than one
        return False


# Commands


def check_command_explains_itself(other: Other) -> None:
    """The command has a help text, and refuses an option that it does not have."""
    import click
    from click.testing import CliRunner

    command = registry.resolve(other.entry)
    require(isinstance(command, click.Command), f"{other.spec.target} is no click command")
    helped = CliRunner().invoke(command, ["--help"])
    require(helped.exit_code == 0, f"--help ends with {helped.exit_code}")
    require(command.help, "has no help text: its function's docstring")
    refused = CliRunner().invoke(command, ["--no-such-option"])
    require(refused.exit_code == 2, f"an unknown option ends with {refused.exit_code}, expected 2")


# Observers of training


def check_training_is_the_same_without_it(other: Other) -> None:
    """A short training ends without a word on the plugin, and with the weights it has without."""
    name = other.entry.plugin.name
    model = _smallest("classification", but=name)
    with TemporaryDirectory(prefix="cnnzoo-check-") as folder:
        found = []
        for label, options in (("with", ()), ("without", ("--no-plugin", name))):
            command = [sys.executable, "-m", "cnn_core", *options, "train", model]
            command += ["--data", DATA["classification"], "--epochs", "1", "--device", "cpu"]
            command += ["--out", label]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            said = [line for line in done.stderr.splitlines() if f"plugin '{name}'" in line]
            require(not said, "\n".join(said))
            require(done.returncode == 0, done.stderr.strip().rpartition("\n")[2])
            found.append(load_file(Path(folder, label, "weights.safetensors")))
        same = all(torch.equal(value, found[1][key]) for key, value in found[0].items())
        require(same, "the weights are others with it than without it")


OTHERS: dict[str, tuple[Callable[[Other], None], ...]] = {
    "plugin": (
        check_plugin_has_no_fault,
        check_plugin_module_is_light,
        check_import_prints_and_writes_nothing,
        check_requirement_of_core_is_pinned,
    ),
    "dataset": (check_data_set_is_sound, check_a_spawned_process_reads_the_same),
    "view": (
        check_view_draws_the_same_figure_twice,
        check_view_leaves_what_it_is_given_as_it_was,
    ),
    "command": (check_command_explains_itself,),
    "observer": (check_training_is_the_same_without_it,),
}
