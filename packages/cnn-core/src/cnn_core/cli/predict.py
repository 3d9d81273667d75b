"""cnnzoo predict."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnn_core.cli.output import emit_json, json_option, line_writer, say_path
from cnn_core.cli.params import (
    PATH,
    SOURCE,
    PathType,
    device_option,
    optimize_options,
    source_options,
)
from cnn_core.cli.prediction_files import (
    STDOUT,
    CsvRows,
    JsonRows,
    LabelRows,
    PredictionFile,
    continue_files,
)
from cnn_core.errors import CorruptError, NumericalError, Terminated, UsageError, ZooError
from cnn_core.runs.destinations import require_writable
from cnn_core.text import counted, printable

if TYPE_CHECKING:
    from cnn_core.training.prediction import Prediction, Predictor, Segmentation

__all__ = ["command"]

STDIN = Path("-")
MAX_COLUMN = 60  # characters; a longer name moves the rest of its line to the right

_FILE = PathType(path_type=Path, dir_okay=False, allow_dash=True)


@click.command("predict")
@click.argument("source", type=SOURCE)
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option(
    "--top-k",
    type=int,
    help="Classification: how many of the most likely classes to print. [default: 1]",
)
@click.option(
    "--csv",
    "csv_path",
    type=_FILE,
    metavar="FILE",
    help="Classification: write a CSV file with one row per image; - is stdout.",
)
@click.option(
    "--jsonl",
    "jsonl_path",
    type=_FILE,
    metavar="FILE",
    help="Classification: write a file with one JSON object per line and image; - is stdout.",
)
@click.option(
    "--out",
    type=PathType(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Segmentation: output directory. [default: masks in the run]",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue existing files of --csv and --jsonl, or skip images that have all their masks.",
)
@click.option(
    "--threshold",
    type=float,
    metavar="T",
    help="Two classes: predict the second one, of an image or a pixel, if its probability is at "
    "least T, from 0 to 1; multilabel: each class. [default: as kept with the weights, else the "
    "most likely class, for multilabel 0.5]",
)
@click.option(
    "--flips",
    is_flag=True,
    help="Average probabilities over the image and its mirror image; for segmentation, over four "
    "flips (test-time augmentation).",
)
@click.option(
    "--with",
    "others",
    type=SOURCE,
    metavar="SOURCE",
    multiple=True,
    help="Average probabilities with those of another network with the same classes. May be "
    "repeated.",
)
@click.option(
    "-0", "--null", is_flag=True, help="The paths on stdin end in NUL characters, not newlines."
)
@source_options
@device_option
@optimize_options
@json_option
def command(
    source: str,
    images: tuple[Path, ...],
    others: tuple[str, ...],
    null: bool,
    threshold: float | None,
    device: str,
    as_json: bool,
    model: str,
    naming: str | None,
    download: bool,
    optimize: bool,
    precision: str,
    compile: bool,
    **options: Any,
) -> None:
    """Predict image files, or all images in directories, with a trained network.

    SOURCE is a run, published weights (MODEL, MODEL:NAME or hf:OWNER/NAME), a weights file
    (with --model), or an exported .pt2 or .onnx file. IMAGES are files, directories (searched
    recursively), or - for a list of paths on stdin. For classification, print the
    predicted classes; for multilabel, all classes whose probability reaches their threshold.
    For segmentation, write a mask (PNG, with the values of the training masks), an overlay and
    probabilities (float16, classes x H x W) for each image, at its original size, and print
    the paths. Masks of images in sub-directories are written to sub-directories. Images are
    converted to greyscale or RGB to match training. MNIST-like models expect light digits on
    a dark background.

    Results are printed and written as they come. A file that cannot be read is named on stderr and
    skipped, and the exit code is then 3. So is an image whose output is not finite; the exit code
    is then 4.

    \b
    Examples:
      cnnzoo predict runs/lenet5-digits-20260101-120000 seven.png
      cnnzoo predict runs/lenet5-digits-20260101-120000 *.png --top-k 3 --json
      cnnzoo predict resnet50:imagenet-v2 holiday/ --download --csv holiday.csv
      cnnzoo predict resnet50 holiday/ --csv holiday.csv --resume
      find photos -name '*.jpg' -print0 | cnnzoo predict resnet50 - -0 --jsonl photos.jsonl
      cnnzoo predict resnet50 photos/ --with densenet121 --flips --optimize
      cnnzoo predict runs/unet_same-isbi_em-20260101-120000 slices/ --out masks
    """
    from cnn_core.training.prediction import Predictor

    trained = _open_all((source, *others), model, naming, download, device)
    predictor = Predictor(
        trained[0],
        ensemble=trained[1:],
        threshold=threshold,
        optimize=optimize,
        precision=precision,
        compile=compile,
    )
    chosen = Options(as_json=as_json, **options)
    task = predictor.task
    files = list(_named_files(images, null))
    if task == "segmentation":
        chosen.require_unused("top_k", "csv_path", "jsonl_path", task=task)
        _write_masks(predictor, dict(files), chosen)
    else:
        unused = ("out", "top_k") if task == "multilabel" else ("out",)
        chosen.require_unused(*unused, task=task)
        _classify(predictor, [path for path, _ in files], chosen)


@dataclass(frozen=True)
class Options:
    """The options of the command that say what to compute and where to write it."""

    top_k: int | None
    csv_path: Path | None
    jsonl_path: Path | None
    out: Path | None
    resume: bool
    flips: bool
    as_json: bool

    def require_unused(self, *names: str, task: str) -> None:
        """Raise UsageError if one of these options is given."""
        for name in names:
            if getattr(self, name) is not None:
                option = f"--{name.removesuffix('_path').replace('_', '-')}"
                raise UsageError(f"{option} does not apply: this network does {task}")


def _open_all(
    sources: tuple[str, ...], model: str, naming: str | None, download: bool, device: str
) -> list[Any]:
    """Open all sources; if there are several, each gets only the options that apply to it."""
    from cnn_core.training.sources import is_foreign
    from cnn_core.training.trained import Trained

    # If an option applies to no source, it is passed to all: opening one then explains the error.
    files = [source for source in sources if is_foreign(source)] or sources
    names = [source for source in sources if not Path(source).exists()] or sources
    return [
        Trained(
            source,
            model=model if source in files else "",
            naming=naming if source in files else None,
            download=download and source in names,
            device=device,
        )
        for source in sources
    ]


def _named_files(images: tuple[Path, ...], null: bool) -> Iterator[tuple[Path, Path]]:
    """Yield the image files with the names of their outputs; "-" is a list of paths on stdin."""
    from cnn_core.training.image_stream import named_files

    if null and STDIN not in images:
        raise UsageError("--null is for a list of paths on stdin", "give - as IMAGES")
    for path in images:
        if path != STDIN:
            yield from named_files([path])
            continue
        content = sys.stdin.buffer.read()
        names = content.split(b"\0") if null else content.replace(b"\r\n", b"\n").split(b"\n")
        listed = [Path(os.fsdecode(name)) for name in names if name]
        if not listed:
            raise UsageError("stdin is empty: expected paths of images")
        for file in listed:
            if file.is_dir():
                yield from named_files([file])
            else:
                # Missing files are reported later, like unreadable ones.
                yield file, _output_name(file)


def _output_name(listed: Path) -> Path:
    """Return the output name of a listed file: with its folder, if that cannot leave DIR."""
    inside = not listed.is_absolute() and ".." not in listed.parts
    return listed.with_suffix("") if inside and listed.name else Path(listed.stem)


@dataclass
class Tally:
    """Count images on a progress bar, and name those that cannot be read."""

    total: int
    bar: Callable[[int, int], None] | None = None
    done: int = 0
    unreadable: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)

    def counted(self, results: Iterable[Any]) -> Iterator[Any]:
        """Yield the results and count them."""
        for result in results:
            self._step()
            yield result

    def failed(self, error: ZooError) -> None:
        """Count an image without a prediction and name it on stderr."""
        numerical = isinstance(error, NumericalError)
        (self.not_finite if numerical else self.unreadable).append(error.message)
        self._step()
        print(printable(error.message), file=sys.stderr, flush=True)

    def _step(self) -> None:
        self.done += 1
        if self.bar is not None:
            self.bar(self.done, self.total)

    def raise_if_incomplete(self) -> None:
        """Raise an error, for the exit code, if there were images without a prediction."""
        if self.unreadable:
            count = len(self.unreadable)
            raise CorruptError(f"{count:,} of {self.total:,} images could not be read")
        if self.not_finite:
            count, of = len(self.not_finite), f"of {self.total:,} images"
            raise NumericalError(f"{counted(count, f'{of} has', f'{of} have')} no finite output")


@contextlib.contextmanager
def _tally(total: int, *, bar: bool) -> Iterator[Tally]:
    """Yield a tally; with `bar`, show a progress bar on a terminal."""
    from cnn_core.data.progress_bar import progress_bar

    with progress_bar("images", bar) as update:
        yield Tally(total, update)


def _say_networks(predictor: Predictor) -> None:
    for line in predictor.networks:
        click.echo(printable(line), err=True)
    if predictor.thresholds and predictor.task != "multilabel":
        name = printable(predictor.classes[1])
        click.echo(f"'{name}' from a probability of {predictor.thresholds[0]:.4g} on", err=True)


def _classify(predictor: Predictor, files: list[Path], options: Options) -> None:
    """Write predictions to files, or print them as a table or as JSON."""
    top_k = 1 if options.top_k is None else options.top_k
    predictor.decide([], top_k=top_k)  # raises for invalid options, before files are touched
    outputs = _prediction_files(predictor, options, top_k)
    names = [str(path) for path in files]
    todo = [files[index] for index in continue_files(outputs, names, resume=options.resume)]
    _say_networks(predictor)
    as_table = not outputs and not options.as_json
    write_row = None
    # A table on the terminal shows the progress itself.
    bar = not (sys.stdout.isatty() and (as_table or _uses_stdout(options)))
    found = []
    with contextlib.ExitStack() as stack:
        tally = stack.enter_context(_tally(len(todo), bar=bar))
        stack.enter_context(_resume_hint(outputs))
        for output in outputs:
            stack.enter_context(output)
        results = predictor.decide(todo, top_k=top_k, flips=options.flips, on_error=tally.failed)
        for prediction in tally.counted(results):
            for output in outputs:
                output.add(prediction)
            if options.as_json:
                found.append(_as_json(prediction))
            if as_table:
                # Only now, so that no heading is printed if all files are unreadable.
                write_row = write_row or _table(predictor, files)
                _write_rows(write_row, prediction)
    if options.as_json:
        _emit_json(predictor, found, tally)
    elif not _uses_stdout(options):
        for output in outputs:
            say_path(output.path)
    tally.raise_if_incomplete()


def _emit_json(predictor: Predictor, found: list[dict[str, Any]], tally: Tally) -> None:
    run = str(predictor.trained.path)
    emit_json(
        "predictions",
        found,
        run=run,
        unreadable=tally.unreadable,
        not_finite=tally.not_finite,
        weights=predictor.trained.name,
        networks=predictor.networks,
    )


@contextlib.contextmanager
def _resume_hint(outputs: list[PredictionFile]) -> Iterator[None]:
    """Add a note to an interruption that says how to continue."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stop:
        if any(output.path != STDOUT for output in outputs):
            stop.add_note("the same command with --resume continues")
        raise


def _prediction_files(predictor: Predictor, options: Options, top_k: int) -> list[PredictionFile]:
    """Return the files to write; raise UsageError for options that exclude each other."""
    csv_rows = LabelRows() if predictor.task == "multilabel" else CsvRows(top_k)
    kinds = ((options.csv_path, csv_rows), (options.jsonl_path, JsonRows()))
    outputs = [
        PredictionFile(path, rows, predictor.batch_size)
        for path, rows in kinds
        if path is not None
    ]
    if _uses_stdout(options) and options.as_json:
        raise UsageError("--json and a file on stdout exclude each other")
    if len(outputs) == 2 and outputs[0].path.resolve() == outputs[1].path.resolve():
        raise UsageError(f"--csv and --jsonl are the same file: {outputs[0].path}")
    if options.resume and not outputs:
        raise UsageError("--resume: there is no file to continue", "name it: --csv FILE")
    _require_no_json(options)
    return outputs


def _require_no_json(options: Options) -> None:
    if options.resume and options.as_json:
        raise UsageError("--resume with --json would print only the remaining images")


def _uses_stdout(options: Options) -> bool:
    return STDOUT in (options.csv_path, options.jsonl_path)


def _as_json(prediction: Prediction) -> dict[str, Any]:
    return {
        "path": prediction.path,
        "classes": prediction.classes,
        "probabilities": prediction.probabilities,
    }


def _table(predictor: Predictor, files: list[Path]) -> Callable[[tuple[object, ...]], None]:
    """Print the head of the table; return a function that prints a row of it."""
    image, class_name = (
        min(max(5, *(len(printable(str(name))) for name in names)), MAX_COLUMN)
        for names in (files, predictor.classes)
    )
    columns = ("image", "rank", "class", "probability")
    return line_writer(columns, (image, 4, class_name, 11), right=("rank", "probability"))


def _write_rows(write: Callable[[tuple[object, ...]], None], prediction: Prediction) -> None:
    if not prediction.classes:  # multilabel: the image is of none of the classes
        write((prediction.path, "-", "-", "-"))
    pairs = zip(prediction.classes, prediction.probabilities, strict=True)
    for rank, (name, probability) in enumerate(pairs, start=1):
        write((prediction.path, rank, name, f"{100 * probability:.2f} %"))


def _write_masks(predictor: Predictor, files: dict[Path, Path], options: Options) -> None:
    """Write the masks of all files, and print their paths, or a summary as JSON."""
    from cnn_core.data.mask_image import exif_orientation
    from cnn_core.training.image_stream import require_distinct_names
    from cnn_core.training.mask_files import has_masks, write_masks

    _require_no_json(options)
    out = options.out or predictor.trained.folder / "masks"
    todo = require_distinct_names(files, files)
    if options.resume:
        # Each file is written atomically, so files that exist are complete.
        done = [path for path in todo if has_masks(out, files[path])]
        _require_same_masks(predictor, {path: files[path] for path in done}, options)
        todo = [path for path in todo if path not in done]
    written, turned = [], 0
    require_writable(out)
    _say_networks(predictor)
    with _tally(len(todo), bar=options.as_json or not sys.stdout.isatty()) as tally:
        results = predictor.segment(todo, flips=options.flips, on_error=tally.failed)
        for found in tally.counted(results):
            turned += exif_orientation(found.path) != 1
            paths = [str(path) for path in write_masks(found, out, files[found.path])]
            if options.as_json:
                written.append(_mask_summary(found, paths))
                continue
            for path in paths:
                say_path(path)
    if turned:
        one, many = "image is turned upright, as its", "images are turned upright, as their"
        note = f"{counted(turned, one, many)} EXIF data say, and so are the files written"
        click.echo(note, err=True)
    if options.as_json:
        _emit_json(predictor, written, tally)
    tally.raise_if_incomplete()


def _require_same_masks(predictor: Predictor, done: dict[Path, Path], options: Options) -> None:
    """Raise UsageError if masks are not those of this network with these options."""
    from cnn_core.training.mask_files import mask_paths, same_masks

    out = options.out or predictor.trained.folder / "masks"
    if not done:
        return
    # One image is enough. Take the most detailed one: of a blank image, even the results with and
    # without --flips are equal.
    path = max(done, key=lambda path: mask_paths(out, done[path])[1].stat().st_size)
    (found,) = predictor.segment([path], flips=options.flips)
    if not same_masks(found, out, done[path]):
        raise UsageError(
            f"{out}: its masks were written by another network or with other options: those of "
            f"{path} differ",
            "give another folder, or use the source, options and device of the first start",
        )


def _mask_summary(found: Segmentation, paths: list[str]) -> dict[str, Any]:
    counts = found.mask.flatten().bincount(minlength=len(found.classes))
    fractions = dict(zip(found.classes, (counts / counts.sum()).tolist(), strict=True))
    return {"image": str(found.path), "files": paths, "class_fractions": fractions}
