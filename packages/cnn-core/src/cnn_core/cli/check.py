"""cnnzoo check."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import click

from cnn_core.cli.output import emit_json, json_option, table
from cnn_core.cli.params import PATH
from cnn_core.errors import PluginError

__all__ = ["command"]


@click.command("check")
@click.argument("distribution")
@click.option("--slow", is_flag=True, help="Also export, compile and overfit (takes minutes).")
@click.option("--data-dir", type=PATH, help="Directory with the dataset's files.")
@json_option
def command(distribution: str, slow: bool, data_dir: Path | None, as_json: bool) -> None:
    """Run the conformance checks on an installed DISTRIBUTION.

    Checks its models, datasets, views, commands, published weights and training observers, and
    that its plugins load and no hook fails. Prints the checks that fail or cannot run here; exits
    with code 6 if any check fails.

    \b
    Examples:
      cnnzoo check cnn-arch-lenet
      cnnzoo check cnn-arch-lenet --slow --json
      cnnzoo check cnn-data-kmnist --data-dir kmnist
    """
    from cnn_core.data.progress_bar import progress_bar
    from cnn_core.testing import run_checks

    with progress_bar("checking", show=True) as progress:
        results = list(run_checks(distribution, slow=slow, data_dir=data_dir, progress=progress))
    not_passed = [result for result in results if result.outcome != "passed"]
    if as_json:
        emit_json("checks", [dataclasses.asdict(result) for result in results])
    else:
        if not_passed:
            columns = ("kind", "name", "check", "outcome", "reason")
            table(columns, [(r.kind, r.name, r.check, r.outcome, r.reason) for r in not_passed])
        objects = Counter(kind for kind, _ in {(result.kind, result.name) for result in results})
        counts = ", ".join(
            f"{n} {kind}{'s' * (n > 1 and kind[-1] != 's')}" for kind, n in sorted(objects.items())
        )
        click.echo(f"{len(results) - len(not_passed)} of {len(results)} checks of {counts} passed")
    failed = sum(result.outcome == "failed" for result in results)
    if failed:
        raise PluginError(f"{distribution}: {failed} check{'s fail' * (failed > 1) or ' fails'}")
