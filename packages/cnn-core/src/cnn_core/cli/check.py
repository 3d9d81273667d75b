"""cnnzoo check."""

from __future__ import annotations

import dataclasses

import click

from cnn_core.cli.output import emit_json, json_option, table
from cnn_core.errors import PluginError

__all__ = ["command"]


@click.command("check")
@click.argument("distribution")
@click.option("--slow", is_flag=True, help="Also export, compile and overfit: minutes.")
@json_option
def command(distribution: str, slow: bool, as_json: bool) -> None:
    """Hold the models of an installed DISTRIBUTION to the conformance checks.

    Prints what does not hold; exit 6 if something does not.

    \b
    Examples:
      cnnzoo check cnn-arch-lenet
      cnnzoo check cnn-arch-lenet --slow --json
    """
    from cnn_core.testing import run_checks

    results = list(run_checks(distribution, slow=slow))
    odd = [result for result in results if result.outcome != "passed"]
    if as_json:
        emit_json("checks", [dataclasses.asdict(result) for result in results])
    else:
        if odd:
            columns = ("model", "check", "outcome", "reason")
            table(columns, [(r.model, r.check, r.outcome, r.reason) for r in odd])
        models = len({result.model for result in results})
        of = f"{models} model{'s' * (models > 1)}"
        click.echo(f"{len(results) - len(odd)} of {len(results)} checks of {of} hold")
    failed = sum(result.outcome == "failed" for result in results)
    if failed:
        raise PluginError(f"{distribution}: {failed} checks fail")
