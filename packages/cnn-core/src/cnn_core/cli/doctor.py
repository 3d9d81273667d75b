"""cnnzoo doctor: load each plugin in a process of its own, with a time limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass

import click

from cnn_core.cli.environment import environment_faults
from cnn_core.cli.output import emit_json, json_option, table
from cnn_core.cli.probe import REPORT
from cnn_core.errors import PluginError
from cnn_core.plugins.discovery import Plugin, discover
from cnn_core.text import printable

__all__ = ["command"]

LIMIT = 10.0  # seconds: a plugin may import torch
RESOLVE_LIMIT = 30.0  # seconds: importing torch, matplotlib and all networks on a slow machine


@dataclass
class Finding:
    """The state of one plugin: "ok", "faulty", "broken" or "blocked", with the reason."""

    plugin: str
    distribution: str
    version: str
    status: str
    reason: str = ""
    traceback: str = ""


@click.command("doctor")
@click.option("-v", "--verbose", is_flag=True, help="Show the tracebacks of broken plugins.")
@click.option("--timeout", default=LIMIT, show_default=True, help="Seconds for each plugin.")
@json_option
def command(verbose: bool, timeout: float, as_json: bool) -> None:
    """Find faults of plugins and of the environment; exit 6 if a plugin is at fault.

    Each plugin is loaded in a process of its own, so one that hangs or exits is found and does
    no harm. A plugin that replaces functions of torch is at fault: all networks use them.
    Versions, editable installs, extras, the device and the dataset folder are checked, too;
    advice on them is no failure.

    \b
    Examples:
      cnnzoo doctor
      cnnzoo doctor -v --timeout 30
    """
    findings = [probe(plugin, timeout) for plugin in discover()]
    clashes = _examine_together([f for f in findings if f.status == "ok"], timeout)
    # Advice does not change the exit code: it is about the machine, not about a plugin.
    advice = environment_faults(discover(), timeout)
    if as_json:
        rows = [asdict(finding) for finding in findings]
        emit_json("plugins", rows, clashes=clashes, advice=advice, environment=_environment())
    else:
        _print(findings, clashes, verbose)
        for line in advice:
            click.echo(printable(line))
    bad = [f.plugin for f in findings if f.status not in ("ok", "blocked")]
    if bad or clashes:
        count = len(bad) + len(clashes)
        raise PluginError(
            f"{count} finding{'s' if count > 1 else ''}: {', '.join([*bad, *clashes])}",
            "leave a plugin out with --no-plugin NAME, or pip uninstall its distribution",
        )


def probe(plugin: Plugin, timeout: float) -> Finding:
    """Load one plugin and call all its providers, in a process of its own."""
    finding = Finding(plugin.origin, plugin.distribution, plugin.version, "ok")
    if plugin.blocked:
        finding.status, finding.reason = "blocked", plugin.blocked
        return finding
    answer = _ask([plugin.origin], timeout)
    if isinstance(answer, str):
        finding.status, finding.reason = "broken", answer
    else:
        _add_faults(finding, answer["faults"])
    return finding


def _add_faults(finding: Finding, faults: list[dict[str, str]]) -> None:
    for fault in faults:
        if finding.status != "broken":
            finding.status = "broken" if fault["fatal"] else "faulty"
        finding.reason = "; ".join(filter(None, (finding.reason, fault["reason"])))
        finding.traceback += fault["traceback"]


def _examine_together(sound: list[Finding], timeout: float) -> list[str]:
    """Return the names that several of the sound plugins, and core, claim.

    Adds the faults of plugins that show only when the code that their specs name is imported:
    in one process for all, because importing torch in each would take minutes.
    """
    origins = [finding.plugin for finding in sound]
    answer = _ask(origins, timeout + len(origins))
    if isinstance(answer, str):
        return [f"all of them together: {answer}"]
    clashes = [str(line) for line in answer["conflicts"]]
    if not origins:
        return clashes
    resolved = _ask(origins, max(timeout, RESOLVE_LIMIT) + len(origins), "resolve")
    if isinstance(resolved, str):
        return [*clashes, f"the code of all of them together: {resolved}"]
    for finding in sound:
        _add_faults(finding, [f for f in resolved["faults"] if f["plugin"] == finding.plugin])
    return clashes


def _ask(
    origins: list[str], timeout: float, *arguments: str
) -> dict[str, list[dict[str, str]]] | str:
    """Return the probe's report on some plugins, or how its process died."""
    # The probe gets exactly these plugins, and reports all faults instead of ending at the first.
    environment = {**os.environ, "CNNZOO_PLUGINS": ",".join(origins), "CNNZOO_STRICT": ""}
    environment.pop("CNNZOO_PLUGINS_DISABLE", None)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cnn_core.cli.probe", *arguments],
            env=environment,
            # A plugin that asks a question gets no answer instead of waiting for one.
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"does not load within {timeout:g} s"
    lines = [line for line in done.stdout.decode(errors="replace").splitlines() if line]
    # A plugin may print lines of its own: the report is marked, and the last one counts.
    reports = [line for line in lines if line.startswith(REPORT)]
    if done.returncode != 0 or not reports:
        return f"ends the process when loaded (exit {done.returncode})"
    answer: dict[str, list[dict[str, str]]] = json.loads(reports[-1].removeprefix(REPORT))
    for line in lines:
        if line not in reports:
            cause = f"prints {printable(line[:40])!r} when loaded"
            fault = {"plugin": "", "reason": cause, "traceback": "", "fatal": ""}
            answer["faults"].append(fault)
            break
    return answer


def _environment() -> dict[str, str | int | None]:
    """Return the versions of Python and of the main packages, without importing torch."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | int | None] = {
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
    }
    for name in ("cnn-core", "cnn-viz", "torch", "torchvision", "umap-learn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _print(findings: list[Finding], clashes: list[str], verbose: bool) -> None:
    table(
        ("plugin", "version", "status", "reason"),
        [(f.plugin, f.version, f.status, f.reason) for f in findings],
    )
    for line in clashes:
        click.echo(line)
    if verbose:
        for finding in findings:
            for text in finding.traceback.splitlines():
                click.echo(printable(text))
    shown = [f"{name} {value or 'not installed'}" for name, value in _environment().items()]
    click.echo("\n" + ", ".join(shown))
