"""cnnzoo plugins."""

from __future__ import annotations

from typing import Any

import click

from cnn_core import registry
from cnn_core.cli.environment import editable_directory
from cnn_core.cli.output import emit_json, json_option, table
from cnn_core.plugins import Plugins, plugins
from cnn_core.plugins.discovery import Plugin, abbreviated

__all__ = ["command"]


@click.command("plugins")
@click.option(
    "-v", "--verbose", is_flag=True, help="Also show models, hooks, files and load times."
)
@json_option
def command(verbose: bool, as_json: bool) -> None:
    """List the installed plugins: distribution, version and status.

    \b
    Examples:
      cnnzoo plugins -v
      CNNZOO_PLUGINS=lenet cnnzoo plugins --json
    """
    loaded = plugins()
    registry.catalogues()  # calls all provider hooks, so that their faults are listed
    rows = [_facts(loaded, plugin) for plugin in loaded.all]
    if as_json:
        emit_json("plugins", rows)
        return
    columns = ["name", "distribution", "version", "status", "reason"]
    if verbose:
        columns += ["models", "hooks", "editable", "file", "ms"]
    shown = [[_cell(row[column]) for column in columns] for row in rows]
    table(columns, shown, right=("ms",))


def _facts(loaded: Plugins, plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "status": plugin.status,
        "reason": plugin.blocked or "; ".join(f"{f.stage}: {f.cause}" for f in plugin.faults),
        "target": plugin.target,
        "models": [name for name, entry in registry.models() if entry.plugin is plugin],
        "hooks": loaded.hooks(plugin),
        "editable": editable_directory(plugin.entry.dist if plugin.entry else None) is not None,
        "file": getattr(plugin.module, "__file__", None),
        "ms": round(1000 * plugin.seconds, 1),
    }


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return abbreviated([name.removeprefix("cnnzoo_") for name in value])
    return "" if value is None else value
