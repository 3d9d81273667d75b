"""cnnzoo doctor: load each plugin in a separate process, with a time limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass

import click

from cnn_core.cli.environment import environment_faults
from cnn_core.cli.output import emit_json, json_option, table
from cnn_core.cli.plugin_report import REPORT
from cnn_core.errors import PluginError
from cnn_core.plugins.discovery import Plugin, discover
from cnn_core.text import counted, printable

__all__ = ["command"]

LIMIT = 10.0  # seconds; enough for a plugin that imports torch
RESOLVE_LIMIT = 30.0  # seconds; enough to import torch, matplotlib and all networks


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
@click.option(
    "--timeout", default=LIMIT, show_default=True, help="Time limit for each plugin, in seconds."
)
@json_option
def command(verbose: bool, timeout: float, as_json: bool) -> None:
    """Find faults in plugins and in the environment; exit with code 6 if a plugin is at fault.

    Each plugin is loaded in a separate process, so a plugin that hangs or exits is detected and
    does no harm. Replacing functions of torch is a fault, because all networks use them. Versions,
    editable installs, extras, the device and the dataset directory are checked as well; these
    findings are advice and do not change the exit code.

    \b
    Examples:
      cnnzoo doctor
      cnnzoo doctor -v --timeout 30
    """
    findings = [probe(plugin, timeout) for plugin in discover()]
    clashes = _load_together([f for f in findings if f.status == "ok"], timeout)
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
            f"{counted(count, 'finding')}: {', '.join([*bad, *clashes])}",
            "disable a plugin with --no-plugin NAME, or pip uninstall its distribution",
        )


def probe(plugin: Plugin, timeout: float) -> Finding:
    """Load one plugin and call all its provider hooks in a separate process."""
    finding = Finding(plugin.origin, plugin.distribution, plugin.version, "ok")
    if plugin.blocked:
        finding.status, finding.reason = "blocked", plugin.blocked
        return finding
    report = _run_probe([plugin.origin], timeout)
    if isinstance(report, str):
        finding.status, finding.reason = "broken", report
    else:
        _add_faults(finding, report["faults"])
    return finding


def _add_faults(finding: Finding, faults: list[dict[str, str]]) -> None:
    for fault in faults:
        if finding.status != "broken":
            finding.status = "broken" if fault["fatal"] else "faulty"
        finding.reason = "; ".join(filter(None, (finding.reason, fault["reason"])))
        finding.traceback += fault["traceback"]


def _load_together(healthy: list[Finding], timeout: float) -> list[str]:
    """Return messages about names that several plugins claim, core's own included.

    Also imports the code that the plugins' specs name, and adds the faults that this reveals to
    the findings. All plugins share one process, because importing torch in each would take
    minutes.
    """
    origins = [finding.plugin for finding in healthy]
    report = _run_probe(origins, timeout + len(origins))
    if isinstance(report, str):
        return [f"loading all plugins together: {report}"]
    clashes = [str(line) for line in report["conflicts"]]
    if not origins:
        return clashes
    resolved = _run_probe(origins, max(timeout, RESOLVE_LIMIT) + len(origins), "resolve")
    if isinstance(resolved, str):
        return [*clashes, f"importing the code of all plugins together: {resolved}"]
    for finding in healthy:
        _add_faults(finding, [f for f in resolved["faults"] if f["plugin"] == finding.plugin])
    return clashes


def _run_probe(
    origins: list[str], timeout: float, *arguments: str
) -> dict[str, list[dict[str, str]]] | str:
    """Return the probe's report on some plugins, or a message if its process failed."""
    # Select exactly these plugins; without strict mode the probe does not stop at the first fault.
    environment = {**os.environ, "CNNZOO_PLUGINS": ",".join(origins), "CNNZOO_STRICT": ""}
    environment.pop("CNNZOO_PLUGINS_DISABLE", None)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cnn_core.cli.plugin_report", *arguments],
            env=environment,
            # A plugin that asks a question gets no answer instead of waiting for one.
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"did not load within {timeout:g} s"
    lines = [line for line in done.stdout.decode(errors="replace").splitlines() if line]
    # A plugin may print lines, too: the report has a prefix, and the last such line counts.
    reports = [line for line in lines if line.startswith(REPORT)]
    if done.returncode != 0 or not reports:
        return f"ended the process while loading (exit code {done.returncode})"
    report: dict[str, list[dict[str, str]]] = json.loads(reports[-1].removeprefix(REPORT))
    for line in lines:
        if line not in reports:
            cause = f"printed {printable(line[:40])!r} while loading"
            fault = {"plugin": "", "reason": cause, "traceback": "", "fatal": ""}
            report["faults"].append(fault)
            break
    return report


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
    versions = [f"{name} {value or 'not installed'}" for name, value in _environment().items()]
    click.echo("\n" + ", ".join(versions))
