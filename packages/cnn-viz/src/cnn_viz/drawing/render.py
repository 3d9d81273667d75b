"""From the name of a view to a figure and its files; a view that raises harms no other."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from cnn_core import registry
from cnn_core.errors import PluginError, UsageError, ZooError
from cnn_core.files import write_bytes
from cnn_core.plugins import ENDINGS, unchanged
from cnn_core.plugins.discovery import describe, log
from cnn_core.registry import Entry
from cnn_core.specs import ViewSpec
from cnn_core.text import printable
from cnn_core.training import Run
from cnn_viz import style
from cnn_viz.plugin import VIEWS
from cnn_viz.results.inputs import ViewInputs

__all__ = ["Drawing", "draw", "draw_or_report", "draw_one", "encode_figure", "views_for", "write"]

DPI = 150


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One view of one run: the figure's files, or the error that stopped it.

    `pdf` is empty unless it was asked for. `page` is SVG whose text is text: smaller, and found
    by a reader's search. `unfit` says why there is no figure of this run, where that is nobody's
    fault.
    """

    name: str
    entry: Entry[ViewSpec]
    png: bytes = b""
    svg: bytes = b""
    pdf: bytes = b""
    page: bytes = b""
    error: str = ""
    skipped: str = ""


def draw(
    view: str,
    run: Run | str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> Figure:
    """Return one view of a run as a matplotlib `Figure`.

    Raises:
        UnknownNameError: there is no such view; suggests names.
        UsageError: the view is for another task.
        PluginError: the view's own code fails; names its plugin.
    """
    view_inputs = ViewInputs(run, data_dir=data_dir, device=device)
    name, entry = _entry(view, view_inputs.run)
    with style.applied():
        return _render(name, entry, view_inputs.select(entry.spec.needs))


def draw_one(view: str, view_inputs: ViewInputs, *, pdf: bool = False) -> Drawing:
    """Draw one view; raises as `draw` does."""
    name, entry = _entry(view, view_inputs.run)
    return _drawing(name, entry, view_inputs.select(entry.spec.needs), pdf)


def draw_or_report(
    name: str, entry: Entry[ViewSpec], view_inputs: ViewInputs, *, pdf: bool = False
) -> Drawing:
    """Draw one view among several: one that raises is reported, and holds its error.

    One that does not fit the run, which is a UsageError, is left out with a line that says why.

    What keeps the ingredients from being made (no weights, no data) is raised; that a network
    cannot be embedded concerns that view only.
    """
    try:
        arguments = view_inputs.select(entry.spec.needs)
    except Exception as error:  # of the network's own code
        if isinstance(error, ZooError) and "embedded" not in entry.spec.needs:
            raise
        cause = error.message if isinstance(error, ZooError) else describe(error)
        return _unfit(name, entry, cause)
    try:
        return _drawing(name, entry, arguments, pdf)
    except UsageError as error:
        return _unfit(name, entry, error.message)
    except ZooError as error:
        if os.environ.get("CNNZOO_STRICT") == "1":
            raise
        message = error.message if isinstance(error, PluginError) else _blame(name, entry, error)
        log.warning("%s", message)
        return Drawing(name=name, entry=entry, error=message)


def _unfit(name: str, entry: Entry[ViewSpec], why: str) -> Drawing:
    log.warning("%s is not drawn: %s", name, why)
    return Drawing(name=name, entry=entry, skipped=why)


def views_for(run: Run) -> list[tuple[str, Entry[ViewSpec]]]:
    """Return the views for the run's task: ours in reading order, then others by name.

    Those that are costly are left out.
    """
    task = registry.get_spec(run.recipe.model).task
    ours = [spec.name for spec in VIEWS]
    wanted = [p for p in registry.views() if task in p[1].spec.tasks and not p[1].spec.costly]
    return sorted(wanted, key=lambda pair: ours.index(pair[0]) if pair[0] in ours else len(ours))


def write(drawing: Drawing, folder: Path) -> list[Path]:
    """Write a drawing's PNG, SVG and PDF into a folder, atomically; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = drawing.name.replace("/", "--")  # a contested name is "distribution/name"
    files = {"png": drawing.png, "svg": drawing.svg, "pdf": drawing.pdf}
    contents = {folder / f"{stem}.{kind}": content for kind, content in files.items() if content}
    for path, content in contents.items():
        write_bytes(path, content)
    return list(contents)


def _entry(view: str, run: Run) -> tuple[str, Entry[ViewSpec]]:
    """Look a view up, and hold it to the run's task."""
    entry = registry.views().entry(view)
    task = registry.get_spec(run.recipe.model).task
    if task not in entry.spec.tasks:
        raise UsageError(
            f"view '{view}' is for {' and '.join(entry.spec.tasks)}, "
            f"{run.recipe.model} does {task}",
            "cnnzoo list-views",
        )
    return registry.views().shown_name(entry), entry


def _drawing(name: str, entry: Entry[ViewSpec], arguments: dict[str, Any], pdf: bool) -> Drawing:
    """Render a view and encode its figure: all that its code can make fail."""
    with style.applied():
        figure = _render(name, entry, arguments)
        try:
            png, svg = encode_figure(figure, "png", dpi=DPI), encode_figure(figure, "svg")
            printed = encode_figure(figure, "pdf") if pdf else b""
            with matplotlib.rc_context({"svg.fonttype": "none", "path.simplify_threshold": 0.5}):
                page = encode_figure(figure, "svg")
        except ENDINGS:
            raise
        except BaseException as error:
            raise _fault(name, entry, error) from error
    return Drawing(name=name, entry=entry, png=png, svg=svg, pdf=printed, page=page)


def _render(name: str, entry: Entry[ViewSpec], arguments: dict[str, Any]) -> Figure:
    """Call a view, with what it prints kept off our standard output."""
    render = registry.resolve(entry, "render")
    try:
        where = f"drawing of {name}"
        with contextlib.redirect_stdout(sys.stderr), unchanged(entry.plugin, where):
            figure = render(**arguments)
    except (ZooError, *ENDINGS):
        raise
    except BaseException as error:
        raise _fault(name, entry, error) from error
    if not isinstance(figure, Figure):
        wrong = TypeError(f"returned {type(figure).__name__}, expected a matplotlib Figure")
        raise _fault(name, entry, wrong)
    return figure


def encode_figure(figure: Figure, format: str, **options: Any) -> bytes:
    """Return a figure as a file's contents: the same for the same figure, without a date."""
    file = io.BytesIO()
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(file, format=format, metadata=dates.get(format), **options)
    return file.getvalue()


def _fault(name: str, entry: Entry[ViewSpec], error: BaseException) -> PluginError:
    hint = f"fix it, or leave it out: cnnzoo --no-plugin {printable(entry.plugin.name)} …"
    return PluginError(_blame(name, entry, error), hint)


def _blame(name: str, entry: Entry[ViewSpec], error: BaseException) -> str:
    """One line that names view, plugin, distribution and cause."""
    plugin = entry.plugin
    who = printable(f"plugin '{plugin.name}' ({plugin.distribution} {plugin.version})")
    cause = error.message if isinstance(error, ZooError) else describe(error)
    return f"view '{name}' of {who}: {cause}"
