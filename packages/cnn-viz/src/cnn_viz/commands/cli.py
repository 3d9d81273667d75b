"""The commands of cnn-viz: viz, embed, cam, overlay, report and explore."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from cnn_core import registry
from cnn_core.cli.output import say_path
from cnn_core.cli.params import Choice, RegistryName, data_dir_option, device_option
from cnn_core.text import printable

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


@click.command("viz")
@click.argument("view", type=RegistryName("view", _views))
@click.argument("run", type=click.Path(path_type=Path))
@data_dir_option
@device_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Output directory. [default: RUN/figures]",
)
@click.option("--pdf", is_flag=True, help="Also write a PDF.")
def viz(
    view: str, run: Path, data_dir: Path | None, device: str, out: Path | None, pdf: bool
) -> None:
    """Draw VIEW of RUN as PNG and SVG; print the paths.

    With "all" as VIEW, draw every view for the task of RUN except costly ones. `cnnzoo list-views`
    lists the views.

    \b
    Examples:
      cnnzoo viz gradcam runs/lenet5-digits-20260101-120000
      cnnzoo viz all runs/lenet5-digits-20260101-120000 --out figures --pdf
    """
    if view != "all":
        registry.views().entry(view)  # raises for an unknown name, before torch is imported

    # Import here, as in all commands: with torch, --help would take seconds.
    from cnn_viz.drawing.render import draw_one, draw_or_report, views_for, write
    from cnn_viz.results.inputs import ViewInputs

    view_inputs = ViewInputs(run, data_dir=data_dir, device=device)
    folder = out if out is not None else view_inputs.run.figures
    if view != "all":
        drawings = iter([draw_one(view, view_inputs, pdf=pdf)])
    else:
        drawings = (
            draw_or_report(*pair, view_inputs, pdf=pdf) for pair in views_for(view_inputs.run)
        )
    for drawing in drawings:
        if drawing.png:
            for path in write(drawing, folder):
                say_path(path)


@click.command("embed")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--method",
    type=click.Choice(["PCA", "t-SNE", "UMAP"], case_sensitive=False),
    default="UMAP",
    show_default=True,
    help="Embedding method.",
)
@data_dir_option
@device_option
def embed(run: Path, method: str, data_dir: Path | None, device: str) -> None:
    """Embed the features of RUN's test images in two dimensions; print quality scores.

    The result is cached in RUN/embeddings for `cnnzoo viz embedding` and the report. UMAP needs
    umap-learn: pip install 'cnn-viz[umap]'.

    \b
    Example:
      cnnzoo embed runs/lenet5-digits-20260101-120000 --method umap
    """
    from cnn_viz.results.inputs import ViewInputs
    from cnn_viz.views.embedding import quality_text

    embedded = ViewInputs(run, data_dir=data_dir, device=device).embedded
    click.echo(f"{method}: {quality_text(embedded.placement(method).quality)}")


@click.command("cam")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
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
    help="Class to explain. [default: the predicted one]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Output directory. [default: RUN/cam]",
)
@device_option
def cam(
    run: Path,
    images: tuple[Path, ...],
    method: str,
    stage: str,
    class_name: str,
    out: Path | None,
    device: str,
) -> None:
    """Draw class activation maps of image files as PNG; print the paths.

    A map shows which parts of an image are evidence for a class. score-cam and ablation-cam run
    the network once for every feature map of the stage. The number of passes is printed first.

    \b
    Examples:
      cnnzoo cam runs/lenet5-digits-20260101-120000 seven.png
      cnnzoo cam runs/lenet5-digits-20260101-120000 *.png --method score-cam --class 7
    """
    from cnn_viz.commands.cam_files import explain_files

    paths = explain_files(
        run,
        images,
        out if out is not None else run / "cam",
        method=method,
        stage=stage,
        class_name=class_name,
        device=device,
        progress=lambda line: click.echo(line, err=True),
    )
    for path in paths:
        say_path(path)


@click.command("overlay")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
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
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "report_format",
    type=click.Choice(["html", "md", "json"]),
    default="html",
    show_default=True,
    help="Format of the report: HTML page, Markdown or JSON.",
)
@data_dir_option
@device_option
def report(run: Path, report_format: str, data_dir: Path | None, device: str) -> None:
    """Draw the views of RUN, except costly ones, and write RUN/report.html, a self-contained page.

    The page loads no other files. --format md writes RUN/report.md, with links to the figures;
    --format json writes RUN/report.json, with the metrics and without figures. The path is
    printed; progress goes to stderr.

    \b
    Examples:
      cnnzoo report runs/lenet5-digits-20260101-120000
      cnnzoo report runs/lenet5-digits-20260101-120000 --format json
    """
    from cnn_viz.page.report import write_report

    path = write_report(
        run,
        data_dir=data_dir,
        device=device,
        form=report_format,
        progress=lambda line: click.echo(printable(line), err=True),
    )
    say_path(path)


@click.command("explore")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Port to listen on; 0 picks a free one.",
)
@data_dir_option
@device_option
def explore(run: Path, port: int, data_dir: Path | None, device: str) -> None:
    """Serve a local page that explains the predictions of RUN for your own images.

    Drop images on the page. Only this machine can open it, at http://127.0.0.1:PORT. It links to
    the report. Stop it with Ctrl-C.

    The command needs starlette and uvicorn: pip install 'cnn-viz[serve]'.

    \b
    Example:
      cnnzoo explore runs/lenet5-digits-20260101-120000
    """
    import socket

    from cnn_core.errors import UsageError

    try:
        import uvicorn

        from cnn_viz.page.server import application
    except ImportError as error:
        raise UsageError(f"cnnzoo explore: {error}", "pip install 'cnn-viz[serve]'") from error
    from cnn_viz.results.inputs import ViewInputs

    view_inputs = ViewInputs(run, data_dir=data_dir, device=device)
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
