"""cnnzoo viz, cnnzoo cam, cnnzoo overlay and cnnzoo report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from cnn_core import registry
from cnn_core.cli.output import say_path
from cnn_core.cli.params import Choice, RegistryName
from cnn_core.text import printable

__all__ = ["cam", "embed", "explore", "overlay", "report", "viz"]


METHODS = (  # cnn_viz.attribution.cam.METHODS, without torch
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
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the dataset is.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Not RUN/figures but here."
)
@click.option("--pdf", is_flag=True, help="As PDF, too.")
def viz(
    view: str, run: Path, data_dir: Path | None, device: str, out: Path | None, pdf: bool
) -> None:
    """Draw VIEW of RUN, or all views but costly ones, as PNG and SVG; prints the files' paths.

    The views: cnnzoo list-views.

    \b
    Examples:
      cnnzoo viz gradcam runs/lenet5-digits-20260101-120000
      cnnzoo viz all runs/lenet5-digits-20260101-120000 --out images --pdf
    """
    if view != "all":
        registry.views().entry(view)  # an unknown name fails before torch is imported

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
    help="How.",
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the dataset is.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
def embed(run: Path, method: str, data_dir: Path | None, device: str) -> None:
    """Place the test images of RUN in two dimensions, by what the network makes of them.

    What is found stays in RUN/embeddings, and is drawn by `cnnzoo viz embedding` and the report.
    UMAP needs umap-learn: pip install 'cnn-viz[umap]'.

    \b
    Example:
      cnnzoo embed runs/lenet5-digits-20260101-120000 --method umap
    """
    from cnn_viz.results.inputs import ViewInputs
    from cnn_viz.views.embedding import words

    embedded = ViewInputs(run, data_dir=data_dir, device=device).embedded
    click.echo(f"{method}: {words(embedded.placement(method).quality)}")


@click.command("cam")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--method", type=Choice(METHODS), default="grad-cam", show_default=True, help="How.")
@click.option("--stage", default="", metavar="STAGE", help="Not the architecture's own.")
@click.option("--class", "of", default="", metavar="NAME", help="Not the predicted class.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Not RUN/cam but here."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
def cam(
    run: Path,
    images: tuple[Path, ...],
    method: str,
    stage: str,
    of: str,
    out: Path | None,
    device: str,
) -> None:
    """Draw what in image files speaks for a class, as PNG; prints the files' paths.

    score-cam and ablation-cam run the network once for every map of the stage. How often it
    will run is said first.

    \b
    Examples:
      cnnzoo cam runs/lenet5-digits-20260101-120000 seven.png
      cnnzoo cam runs/lenet5-digits-20260101-120000 *.png --method score-cam --class 7
    """
    from cnn_viz.commands.cam_files import explain_files

    found = explain_files(
        run,
        images,
        out if out is not None else run / "cam",
        method=method,
        stage=stage,
        of=of,
        device=device,
        progress=lambda line: click.echo(line, err=True),
    )
    for path in found:
        say_path(path)


@click.command("overlay")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    required=True,
    help="A PNG, SVG or PDF file.",
)
def overlay(runs: tuple[Path, ...], out: Path) -> None:
    """Draw the learning curves of two to eight RUNS on one figure; prints the file's path.

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
    "form",
    type=click.Choice(["html", "md", "json"]),
    default="html",
    show_default=True,
    help="A page, Markdown, or numbers.",
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the dataset is.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
def report(run: Path, form: str, data_dir: Path | None, device: str) -> None:
    """Draw all views of RUN and write RUN/report.html: one page, to open or to send.

    The page holds everything and loads nothing. As Markdown it names the figures' files; as JSON
    it has the numbers and no figures. Prints its path; progress goes to stderr.

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
        form=form,
        progress=lambda line: click.echo(printable(line), err=True),
    )
    say_path(path)


@click.command("explore")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0: any."
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the dataset is.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
def explore(run: Path, port: int, data_dir: Path | None, device: str) -> None:
    """Serve a page that says where the network of RUN looks in images dropped on it.

    For this machine only: http://127.0.0.1:PORT, until Ctrl-C. The report is there too. Needs
    starlette and uvicorn: pip install 'cnn-viz[serve]'.

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
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
        except OSError as error:
            raise UsageError(f"port {port}: {error.strerror}", "--port 0 takes any") from error
        port = listening.getsockname()[1]
        served = application(view_inputs, port)
        click.echo(f"http://127.0.0.1:{port}")
        config = uvicorn.Config(served, log_level="warning", lifespan="off")
        uvicorn.Server(config).run(sockets=[listening])
