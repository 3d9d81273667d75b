"""cnnzoo doctor: each plugin is loaded in a process of its own, with a time limit."""

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

LIMIT = 10.0  # seconds, which importing torch fits into


@dataclass
class Finding:
    """What the doctor says of one plugin."""

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
    """Find what is wrong with plugins and surroundings; exit 6 if a plugin is at fault.

    Each plugin is probed in a process of its own: one that hangs, or ends the process, is
    found out and harms nobody. Versions, editable installs, extras, the device and the folder
    of datasets are looked at, too: what could be better is said, and is no failure.

    \b
    Examples:
      cnnzoo doctor
      cnnzoo doctor -v --timeout 30
    """
    findings = [probe(plugin, timeout) for plugin in discover()]
    sound = [f.plugin for f in findings if f.status == "ok"]
    clashes = _clashes([p for p in discover() if p.origin in sound], timeout)
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
        return finding
    for fault in answer["faults"]:
        if finding.status != "broken":
            finding.status = "broken" if fault["fatal"] else "faulty"
        finding.reason = "; ".join(filter(None, (finding.reason, fault["reason"])))
        finding.traceback += fault["traceback"]
    return finding


def _ask(origins: list[str], timeout: float) -> dict[str, list[dict[str, str]]] | str:
    """Return what the probe reports of some plugins, or how it died."""
    environment = {**os.environ, "CNNZOO_PLUGINS": ",".join(origins), "CNNZOO_STRICT": ""}
    environment.pop("CNNZOO_PLUGINS_DISABLE", None)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cnn_core.cli.probe"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"does not load within {timeout:g} s"
    lines = [line for line in done.stdout.decode(errors="replace").splitlines() if line]
    reports = [line for line in lines if line.startswith(REPORT)]
    if done.returncode != 0 or not reports:
        return f"ends the process when loaded (exit {done.returncode})"
    answer: dict[str, list[dict[str, str]]] = json.loads(reports[-1].removeprefix(REPORT))
    for line in lines:
        if line not in reports:
            cause = f"prints {printable(line[:40])!r} when loaded"
            answer["faults"].append({"reason": cause, "traceback": "", "fatal": ""})
            break
    return answer


def _clashes(plugins: list[Plugin], timeout: float) -> list[str]:
    """Return names that several of the sound plugins claim, core's among them."""
    answer = _ask([p.origin for p in plugins], timeout + len(plugins))
    if isinstance(answer, str):
        return [f"all of them together: {answer}"]
    return [str(line) for line in answer["conflicts"]]


def _environment() -> dict[str, str | int | None]:
    """Return what the surroundings are, without importing torch."""
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
