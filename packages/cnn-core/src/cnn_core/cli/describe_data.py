"""cnnzoo describe-data."""

from __future__ import annotations

from pathlib import Path

import click

from cnn_core import registry
from cnn_core.cli.output import say_path
from cnn_core.cli.params import DATASET
from cnn_core.errors import UsageError
from cnn_core.text import printable

__all__ = ["command"]


@click.command("describe-data")
@click.argument("data", type=DATASET)
@click.option(
    "--classes",
    type=click.Path(path_type=Path),
    help="A file with a class in each line: NAME, in the order of values; VALUE,NAME; R G B NAME.",
)
@click.option("--ignore", multiple=True, metavar="VALUE", help="A value of ignored pixels.")
@click.option(
    "--threshold", type=int, default=0, help="Make two classes: values below this, and the rest."
)
@click.option(
    "--turn-masks/--no-turn-masks",
    default=None,
    help="Masks were drawn on pixels as stored, or on upright images (EXIF).",
)
@click.option("--colours", is_flag=True, help="Read masks with a palette by colour.")
@click.option("--out", type=click.Path(path_type=Path), help="Write to this file instead.")
def command(
    data: str,
    classes: Path | None,
    ignore: tuple[str, ...],
    threshold: int,
    turn_masks: bool | None,
    colours: bool,
    out: Path | None,
) -> None:
    """Write a draft of dataset.toml for your own data: classes, values of masks, counts.

    The file is written beside the data, where every command finds it. It gives what cannot be seen
    from the files: names of classes, ignored values, colours, licence. Edit it as you like. What
    was left out of the data is said on stderr.

    \b
    Examples:
      cnnzoo describe-data maskfolder:CamVid --classes names.txt --ignore 11
      cnnzoo describe-data imagefolder:flowers
    """
    spec = registry.datasets().entry(data.partition(":")[0]).spec
    root = Path(data.partition(":")[2])
    if not spec.folder or not data.partition(":")[2]:
        raise UsageError(
            f"'{data}': only your own data is described", "imagefolder:PATH or maskfolder:PATH"
        )
    from cnn_core.data import load_dataset
    from cnn_core.data.readers.description import FILE
    from cnn_core.data.readers.draft import draft_of_classes, draft_of_masks
    from cnn_core.files import write_bytes

    path = out or root / FILE
    if path.exists():
        raise UsageError(f"{path}: already exists", "edit it, or write another with --out FILE")
    if spec.task == "segmentation":
        text, faults = draft_of_masks(
            root,
            names=classes,
            ignore=ignore,
            threshold=threshold,
            turn_masks=turn_masks,
            colours=colours,
        )
    elif classes or ignore or threshold or turn_masks is not None or colours:
        raise UsageError("these options are for masks", f"cnnzoo describe-data {data}")
    else:
        dataset = load_dataset(data)
        text, faults = draft_of_classes(root, dataset), dataset.faults
    write_bytes(path, text.encode())
    for line in faults:
        click.echo(printable(line), err=True)
    say_path(path)
