"""The commands of cnn-viz: viz, embed, cam, overlay, report and explore."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnn_core import registry
from cnn_core.cli.features import left_out
from cnn_core.cli.output import say_path
from cnn_core.cli.params import (
    PATH,
    SOURCE,
    Choice,
    PathType,
    RegistryName,
    data_dir_option,
    data_option,
    device_option,
    source_options,
)
from cnn_core.text import printable

if TYPE_CHECKING:
    from cnn_viz.results.inputs import ViewInputs

__all__ = ["cam", "embed", "explore", "overlay", "report", "viz"]


# A copy of cnn_viz.attribution.cam.METHODS: importing it would import torch, even for --help.
METHODS = (
    "cam",
    "grad-cam",
    "grad-cam++",
    "hires-cam",
    "xgrad-cam",
    "layer-cam",
    "eigen-cam",
    "score-cam",
    "ablation-cam",
)


def _views() -> Iterable[str]:
    return [*registry.views().names(), "all"]


def _inputs(source: str, options: dict[str, Any]) -> ViewInputs:
    """Return the inputs of views for a source, with the options of a command."""
    # Import here, as in all commands: with torch, --help would take seconds.
    from cnn_viz.results.inputs import ViewInputs

    return ViewInputs(source, **options)


@click.command("viz")
@click.argument("view", type=RegistryName("view", _views))
@click.argument("source", type=SOURCE)
@data_option
@data_dir_option
@source_options
@device_option
@click.option(
    "--out",
    type=PathType(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Output directory. [default: figures, in the run or in a folder named after the weights]",
)
@click.option("--pdf", is_flag=True, help="Also write a PDF.")
def viz(view: str, source: str, out: Path | None, pdf: bool, **options: Any) -> None:
    """Draw VIEW of a trained network as PNG and SVG; print the paths.

    SOURCE is a run, published weights (MODEL, MODEL:NAME or hf:OWNER/NAME), a weights file
    (with --model), or an exported .pt2 or .onnx file. With "all" as VIEW, draw every view for
    the network's task except costly ones. `cnnzoo list-views` lists the views. A view is
    skipped if SOURCE lacks something that it needs, such as a training log.

    \b
    Examples:
      cnnzoo viz gradcam runs/lenet5-digits-20260101-120000
      cnnzoo viz all runs/lenet5-digits-20260101-120000 --out figures --pdf
      cnnzoo viz gradcam resnet50.pth --model resnet50 --data imagefolder:photos
      cnnzoo viz confusion mine.onnx --data digits
    """
    if view != "all":
        registry.views().entry(view)  # raises for an unknown name, before torch is imported

    from cnn_viz.drawing.render import draw_one, draw_or_report, views_for, write

    view_inputs = _inputs(source, options)
    view_inputs.out = out
    folder = out if out is not None else view_inputs.output / "figures"
    if view != "all":
        drawings = iter([draw_one(view, view_inputs, pdf=pdf)])
    else:
        pairs = views_for(view_inputs.task)
        drawings = (draw_or_report(*pair, view_inputs, pdf=pdf) for pair in pairs)
    for drawing in drawings:
        if drawing.png:
            for path in write(drawing, folder):
                say_path(path)


@click.command("embed")
@click.argument("source", type=SOURCE)
@click.option(
    "--method",
    type=click.Choice(["PCA", "t-SNE", "UMAP"], case_sensitive=False),
    default="UMAP",
    show_default=True,
    help="Embedding method.",
)
@data_option
@data_dir_option
@source_options
@device_option
def embed(source: str, method: str, **options: Any) -> None:
    """Embed a network's features of the test images in two dimensions; print quality scores.

    SOURCE is a run, published weights (MODEL, MODEL:NAME or hf:OWNER/NAME), or a weights file
    (with --model). The result is cached in the directory embeddings, in the run or in a folder
    named after the weights; `cnnzoo viz embedding` and the report use it. UMAP needs umap-learn:
    pip install 'cnn-viz[umap]'.

    \b
    Examples:
      cnnzoo embed runs/lenet5-digits-20260101-120000 --method umap
      cnnzoo embed resnet18:imagenet-v1 --data imagefolder:photos --method t-sne
    """
    from cnn_viz.views.embedding import quality_text

    embedded = _inputs(source, options).embedded
    click.echo(f"{method}: {quality_text(embedded.placement(method).quality)}")


@click.command("cam")
@click.argument("source", type=SOURCE)
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option(
    "--method", type=Choice(METHODS), default="grad-cam", show_default=True, help="CAM method."
)
@click.option(
    "--stage",
    default="",
    metavar="STAGE",
    help="Stage of the maps. [default: the architecture's CAM stage]",
)
@click.option(
    "--class",
    "class_name",
    default="",
    metavar="NAME",
    help="Class to explain, by name or number. [default: the predicted one]",
)
@click.option(
    "--out",
    type=PathType(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Output directory. [default: cam, in the run or in a folder named after the weights]",
)
@source_options
@device_option
def cam(
    source: str,
    images: tuple[Path, ...],
    method: str,
    stage: str,
    class_name: str,
    out: Path | None,
    **options: Any,
) -> None:
    """Draw class activation maps of image files as PNG; print the paths.

    SOURCE is a run, published weights (MODEL, MODEL:NAME or hf:OWNER/NAME), or a weights file
    (with --model). A map shows which parts of an image are evidence for a class. IMAGES are files
    or directories. Directories are searched recursively, and maps of images in sub-directories are
    written to sub-directories. score-cam and ablation-cam run the network once for every feature
    map of the stage. The number of passes is printed first, and with each path, on stderr, the
    predicted class and its probability. Unreadable files are listed and skipped, and the exit code
    is then 3.

    \b
    Examples:
      cnnzoo cam runs/lenet5-digits-20260101-120000 seven.png
      cnnzoo cam runs/lenet5-digits-20260101-120000 *.png --method score-cam --class 7
      cnnzoo cam resnet18:imagenet-v1 cat.jpg --download
      cnnzoo cam resnet50.pth --model resnet50 cat.jpg --class 'tiger cat'
    """
    from cnn_viz.commands.cam_files import explain_files

    view_inputs = _inputs(source, options)
    with left_out() as on_error:
        paths = explain_files(
            view_inputs,
            images,
            out if out is not None else view_inputs.output / "cam",
            method=method,
            stage=stage,
            class_name=class_name,
            progress=lambda line: click.echo(printable(line), err=True),
            on_error=on_error,
        )
        for path in paths:
            say_path(path)


@click.command("overlay")
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option(
    "--out",
    type=PATH,
    metavar="FILE",
    required=True,
    help="Output file: PNG, SVG or PDF.",
)
def overlay(runs: tuple[Path, ...], out: Path) -> None:
    """Draw the learning curves of two to eight RUNS in one figure; print its path.

    \b
    Example:
      cnnzoo overlay runs/lenet5-digits-20260101-120000 runs/second --out runs.png
    """
    from cnn_core.cli.compare import open_runs
    from cnn_viz.commands.compare_curves import write_overlay

    write_overlay(open_runs(runs), out)
    say_path(out)


@click.command("report")
@click.argument("source", type=SOURCE)
@click.option(
    "--format",
    "report_format",
    type=click.Choice(["html", "md", "json"]),
    default="html",
    show_default=True,
    help="Format of the report: HTML page, Markdown or JSON.",
)
@click.option(
    "--out",
    type=PathType(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Output directory. [default: the run, or a folder named after the weights]",
)
@data_option
@data_dir_option
@source_options
@device_option
def report(source: str, report_format: str, out: Path | None, **options: Any) -> None:
    """Draw the views of a trained network and write report.html, a self-contained page.

    SOURCE is a run, published weights (MODEL, MODEL:NAME or hf:OWNER/NAME), a weights file
    (with --model), or an exported .pt2 or .onnx file. Costly views are left out. The page
    loads no other files. --format md writes report.md, with links to the figures; --format
    json writes report.json, with the metrics and without figures. The path is printed;
    progress goes to stderr.

    The report of a run describes its training; that of other weights names their source.

    \b
    Examples:
      cnnzoo report runs/lenet5-digits-20260101-120000
      cnnzoo report runs/lenet5-digits-20260101-120000 --format json
      cnnzoo report resnet50.pth --model resnet50 --data imagefolder:photos --out results
    """
    from cnn_viz.page.report import write_report

    path = write_report(
        _inputs(source, options),
        out=out,
        form=report_format,
        progress=lambda line: click.echo(printable(line), err=True),
    )
    say_path(path)


@click.command("explore")
@click.argument("source", type=SOURCE)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Port to listen on; 0 picks a free one.",
)
@data_option
@data_dir_option
@source_options
@device_option
def explore(source: str, port: int, **options: Any) -> None:
    """Serve a local page that explains a network's predictions for your own images.

    SOURCE is a run, published weights (MODEL, MODEL:NAME or hf:OWNER/NAME), or a weights file
    (with --model). Drop images on the page. Only this machine can open it, at
    http://127.0.0.1:PORT. It links to the report, if there is a dataset to report on. Stop it
    with Ctrl-C.

    The command needs starlette and uvicorn: pip install 'cnn-viz[serve]'.

    \b
    Examples:
      cnnzoo explore runs/lenet5-digits-20260101-120000
      cnnzoo explore resnet18:imagenet-v1
    """
    import socket

    from cnn_core.errors import UsageError

    try:
        import uvicorn

        from cnn_viz.page.server import application
    except ImportError as error:
        raise UsageError(f"cnnzoo explore: {error}", "pip install 'cnn-viz[serve]'") from error

    view_inputs = _inputs(source, options)
    # Bind here and not in uvicorn: with --port 0, the handlers must know which port was picked.
    with socket.socket() as listener:
        # Otherwise the port stays blocked for a minute after the server stops.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise UsageError(
                f"port {port}: {error.strerror}", "--port 0 picks a free port"
            ) from error
        port = listener.getsockname()[1]
        app = application(view_inputs, port)
        click.echo(f"http://127.0.0.1:{port}")
        config = uvicorn.Config(app, log_level="warning", lifespan="off")
        uvicorn.Server(config).run(sockets=[listener])
