"""cnnzoo push."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from cnn_core.cli.output import emit_json, json_option, say_path
from cnn_core.cli.params import (
    SOURCE,
    data_dir_option,
    data_option,
    device_option,
    source_options,
)
from cnn_core.errors import UsageError

__all__ = ["command"]


@click.command("push")
@click.argument("source", type=SOURCE)
@click.argument("repository", metavar="hf:OWNER/NAME")
@click.option(
    "--licence",
    help="Licence of the weights, an identifier of the hub: mit, apache-2.0, cc-by-4.0, other, …",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Only write the files into this new folder, to look at them; nothing is uploaded.",
)
@click.option("--private", is_flag=True, help="Create a private repository.")
@click.option(
    "--force", is_flag=True, help="Add to a repository that has files, or replace the folder."
)
@data_option
@data_dir_option
@source_options
@device_option
@json_option
def command(
    source: str,
    repository: str,
    licence: str | None,
    out: Path | None,
    private: bool,
    force: bool,
    data: str | None,
    data_dir: Path | None,
    model: str,
    naming: str | None,
    download: bool,
    device: str,
    as_json: bool,
) -> None:
    """Upload a trained network to the Hugging Face Hub, with a model card.

    SOURCE is a run, published weights (MODEL, MODEL:NAME or hf:OWNER/NAME), or a weights file
    (with --model). The repository gets the weights, under timm's names where timm has the
    network, and a model card with the recipe of a run and its results on the test split. Published
    weights are measured if their dataset is on this machine; for other sources, --data names a
    dataset to measure on. --licence must be given. Needs pip install "cnn-core[hub]" and
    hf auth login. Everybody can then use the network: cnnzoo predict hf:OWNER/NAME photo.jpg
    --download.

    \b
    Examples:
      cnnzoo push runs/lenet5-digits-20260101-120000 hf:me/lenet5-digits --licence mit --out look
      cnnzoo push runs/lenet5-digits-20260101-120000 hf:me/lenet5-digits --licence mit
    """
    from cnn_core.training.sharing import push
    from cnn_core.training.trained import Trained

    if licence is None:
        raise UsageError(
            "--licence is missing: on which terms may others use these weights?",
            "for example: --licence mit, apache-2.0 or cc-by-4.0; for published weights, the "
            "licence of their publisher",
        )
    trained = Trained(
        source,
        model=model,
        naming=naming,
        download=download,
        data=data,
        data_dir=data_dir,
        device=device,
    )
    done = push(trained, repository, licence=licence, out=out, private=private, force=force)
    if as_json:
        emit_json("shared", dataclasses.asdict(done), run=source)
        return
    read_by = "cnnzoo and timm" if done.timm else "cnnzoo"
    measured = (
        f", measured: {_first(done.metrics)}"
        if done.metrics
        else ", nothing measured (--data DATASET measures)"
    )
    click.echo(f"for {read_by}{measured}", err=True)
    if out is not None:
        click.echo(f"to upload it as it is: hf upload {repository[3:]} {out}", err=True)
    say_path(done.place)


def _first(metrics: dict[str, float]) -> str:
    """Return the main metrics as text."""
    shown = {name: metrics[name] for name in ("top1", "miou") if name in metrics}
    return ", ".join(f"{name} {value:.4f}" for name, value in (shown or metrics).items())
