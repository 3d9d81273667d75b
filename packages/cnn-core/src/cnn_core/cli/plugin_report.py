"""Load the plugins that the environment selects, call their provider hooks, report as JSON.

`cnnzoo doctor` runs this in a separate process: `python -m cnn_core.cli.plugin_report`. With the
argument "resolve" it also imports the code that the specs name, which needs torch. One line of
stdout is `REPORT` followed by {"faults": [...], "conflicts": [...]}; plugins may print other
lines.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import sys
import traceback
from typing import Any

from cnn_core import registry
from cnn_core.errors import PluginError
from cnn_core.plugins import isolated, plugins
from cnn_core.plugins.discovery import Fault, Plugin, abbreviated
from cnn_core.plugins.guard import when_torch_is_imported
from cnn_core.registry.names import ambiguous_defaults

REPORT = "cnn_core.cli.plugin_report: "
TARGETS = ("target", "render", "key_maps")  # fields of specs that name code

Functions = dict[str, Any]


def main() -> None:
    """Print the report on stdout."""
    logging.disable()
    before: Functions = {}
    with when_torch_is_imported(lambda: before.update(torch_functions())):
        catalogues = registry.catalogues()
        _run_checks()
    if sys.argv[1:] == ["resolve"]:
        _resolve_all()
    elif before:
        for plugin in plugins().loaded[1:]:  # skip core's own; one plugin per process here
            _report_replaced(plugin, before)
    conflicts = [*plugins().conflicts]
    conflicts += [line for catalogue in catalogues for line in catalogue.conflicts]
    conflicts += ambiguous_defaults()
    faults = [_as_dict(plugin, fault) for plugin in plugins().all for fault in plugin.faults]
    print("\n" + REPORT + json.dumps({"faults": faults, "conflicts": conflicts}))


def _run_checks() -> None:
    for _, entry in registry.checks():
        with isolated(entry.plugin, f"check {entry.spec.name}", silent=True):
            if advice := entry.spec.check():
                entry.plugin.add_fault(f"check {entry.spec.name}", advice)


def _resolve_all() -> None:
    """Import the code that the specs name; report plugins that replace functions of torch."""
    try:
        import torch  # noqa: F401  # first, so that no plugin's import includes it
    except Exception:  # `environment_faults` reports it
        return
    for plugin in plugins().loaded[1:]:
        before = torch_functions()
        entries = [e for c in registry.catalogues() for e in c.entries if e.plugin is plugin]
        for entry, field in itertools.product(entries, TARGETS):
            if getattr(entry.spec, field, None):
                with contextlib.suppress(PluginError):  # the error appears when the code is used
                    registry.resolve(entry, field)
        _report_replaced(plugin, before)


def torch_functions() -> Functions:
    """Return the functions of torch that networks use, by their full names."""
    torch = sys.modules["torch"]
    if not hasattr(torch, "nn"):  # its import failed
        return {}
    namespaces = {"torch": torch, "torch.nn": torch.nn, "torch.nn.functional": torch.nn.functional}
    classes = {f"torch.nn.{k}": v for k, v in vars(torch.nn).items() if isinstance(v, type)}
    return {
        f"{name}.{key}": value
        for name, namespace in {**namespaces, "torch.Tensor": torch.Tensor, **classes}.items()
        # Include inherited functions: a replacement would be set on the class itself.
        for base in reversed(getattr(namespace, "__mro__", (namespace,)))
        for key, value in vars(base).items()
        if callable(value)
    }


def replaced(before: Functions) -> list[str]:
    """Return the full names of functions of torch that differ from `before`."""
    now = torch_functions()
    return [
        name
        for name, value in before.items()
        if now.get(name) is not value and not _is_torchs_own(name, now.get(name))
    ]


def _is_torchs_own(name: str, value: object) -> bool:
    """Return whether torch itself replaced a function, as torch.compile does."""
    code, folder = getattr(value, "__code__", None), sys.modules["torch"].__path__[0]
    same_name = getattr(value, "__name__", "") == name.rpartition(".")[2]
    return same_name and code is not None and code.co_filename.startswith(folder)


def _report_replaced(plugin: Plugin, before: Functions) -> None:
    if names := replaced(before):
        plugin.add_fault("torch", f"replaces {abbreviated(names)}, for all networks")


def _as_dict(plugin: Plugin, fault: Fault) -> dict[str, object]:
    text = "".join(traceback.format_exception(fault.exception)) if fault.exception else ""
    return {
        "plugin": plugin.origin,
        "reason": f"{fault.stage}: {fault.cause}",
        "traceback": text,
        "fatal": fault.fatal,
    }


if __name__ == "__main__":
    main()
