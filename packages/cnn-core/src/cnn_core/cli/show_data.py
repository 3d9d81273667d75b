"""cnnzoo show-data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cnn_core import registry
from cnn_core.cli.output import emit_json, heading, json_option, say_path
from cnn_core.cli.params import DATASET, PATH
from cnn_core.errors import DatasetMissingError, UsageError
from cnn_core.runs.destinations import folder_of
from cnn_core.specs import DatasetSpec
from cnn_core.text import printable

if TYPE_CHECKING:
    from cnn_core.data import Dataset

__all__ = ["command"]


@click.command("show-data")
@click.argument("data", type=DATASET)
@click.option("--data-dir", type=PATH, help="Directory that contains the dataset.")
@click.option("--split", default="train", show_default=True, help="The split to sample from.")
@click.option("--out", type=PATH, help="Write samples to this PNG file.")
@json_option
def command(data: str, data_dir: Path | None, split: str, out: Path | None, as_json: bool) -> None:
    """Show a dataset: classes, image size, number of images and source; draw samples.

    \b
    Examples:
      cnnzoo show-data digits --out digits.png
      cnnzoo show-data imagefolder:flowers --out flowers.png
    """
    entry = registry.datasets().entry(data.partition(":")[0])
    from cnn_core.data import load_dataset

    dataset, missing = None, ""
    try:
        dataset = load_dataset(data, data_dir=data_dir)
    except DatasetMissingError as error:
        if entry.spec.folder:
            raise  # without the files, nothing is known about your own data
        missing = str(error)
    if dataset is not None:
        dataset.split(split)  # raises if there is no such split, also without --out
    spec = entry.spec if dataset is None else dataset.spec
    counts = {} if dataset is None else {n: len(s) for n, s in dataset.splits.items()}
    if as_json:
        emit_json("dataset", {**entry.as_dict(data), **_from_files(spec), "on_disk": counts})
    else:
        _facts(data, spec, counts)
    for line in () if dataset is None else (*dataset.faults, *dataset.notes):
        click.echo(printable(line), err=True)
    if dataset is None:
        click.echo("\n".join(map(printable, missing.split("\n"))), err=True)
    if out is not None:
        _draw(dataset, missing, split, out)
        say_path(out, err=as_json)


def _from_files(spec: DatasetSpec) -> dict[str, object]:
    """Return the fields of a spec that can come from the dataset's files."""
    names = ("classes", "image", "splits", "mask_values", "colours", "background", "licence")
    found = {name: getattr(spec, name) for name in names}
    return {**found, "splits": dict(spec.splits)}


def _facts(name: str, spec: DatasetSpec, counts: dict[str, int]) -> None:
    """Print a dataset's facts; `counts` maps splits to the number of samples on disk."""
    heading(f"{name}: {spec.summary}")
    channels = {1: "grey", 3: "RGB"}.get(spec.image[0], f"{spec.image[0]} channels")
    size = "x".join(map(str, spec.image[1:])) if spec.image[1] else "various sizes"
    click.echo(f"task      {spec.task}, {len(spec.classes)} classes")
    click.echo(f"images    {channels}, {size}")
    for split, count in (counts or dict(spec.splits)).items():
        click.echo(f"{split:<9} {count:,}{'' if counts else ' (not on disk)'}")
    # Quoted if a name has the comma that separates names.
    shown = [f'"{printable(c)}"' if "," in c else printable(c) for c in spec.classes[:40]]
    more = f", … {len(spec.classes) - 40} more" if len(spec.classes) > 40 else ""
    click.echo(f"classes   {', '.join(shown)}{more}")
    if spec.mask_values:
        values = ", ".join(map(str, spec.mask_values[:40]))
        click.echo(f"values    {values}{', …' if len(spec.mask_values) > 40 else ''} in the masks")
    if spec.task == "segmentation":
        from cnn_core.data.palette import background_class

        number = background_class(spec.classes, spec.background)
        background = "none" if number is None else printable(spec.classes[number])
        click.echo(f"background {background}")
    if spec.mean:
        click.echo(f"mean      {', '.join(f'{v:.4f}' for v in spec.mean)}")
        click.echo(f"std       {', '.join(f'{v:.4f}' for v in spec.std)}")
    for field in ("licence", "citation", "homepage"):
        if text := getattr(spec, field):
            click.echo(f"{field:<9} {printable(text)}")


def _draw(dataset: Dataset | None, missing: str, split: str, out: Path) -> None:
    """Write a contact sheet of samples to a PNG file."""
    if dataset is None:
        raise DatasetMissingError(f"{out} was not written: {missing.splitlines()[0]}")
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: expected a name that ends in .png")
    from cnn_core.data.contact_sheet import draw_sheet

    folder_of(out)
    picture = draw_sheet(dataset, split)
    picture.save(out)
