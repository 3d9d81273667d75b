"""Render views to figures and files; a view that fails does not stop the others."""

from __future__ import annotations

import functools
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from cnn_core import registry
from cnn_core.errors import PluginError, UsageError, ZooError
from cnn_core.files import write_bytes
from cnn_core.plugins import isolated
from cnn_core.plugins.discovery import describe, log
from cnn_core.registry import Entry
from cnn_core.runs.destinations import make_folder
from cnn_core.specs import ViewSpec
from cnn_core.training.trained import Source
from cnn_viz import style
from cnn_viz.plugin import VIEWS
from cnn_viz.results.inputs import ViewInputs

__all__ = ["Drawing", "draw", "draw_one", "draw_or_report", "encode_figure", "views_for", "write"]

# Inputs that exist even if the outputs of the network are not finite.
WITHOUT_OUTPUTS = frozenset({"run", "trained", "weights", "model"})
DPI = 150


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One view of one network: the contents of its files, or the reason for their absence.

    PNG is for documents and chats, which often do not accept SVG; SVG stays sharp at any size.
    `pdf` and `page` are empty unless requested. `page` is the SVG for the report: its text is not
    converted to paths, so it is smaller and searchable. `error` is the message of a view that
    failed; `skipped` is the reason for skipping a view that does not apply to this network.
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
    run: ViewInputs | Source,
    *,
    data: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> Figure:
    """Return one view of a trained network as a matplotlib `Figure`.

    `run` is a run or another source of a trained network, as in `Trained`. `data` replaces the
    dataset that it was trained on.

    Raises:
        UnknownNameError: the view is unknown; suggests names.
        UsageError: the view is for another task, or the source lacks something that it needs.
        PluginError: the view's code failed; names its plugin.
    """
    view_inputs = (
        run
        if isinstance(run, ViewInputs)
        else ViewInputs(run, data=data, data_dir=data_dir, device=device)
    )
    name, entry = _find_view(view, view_inputs)
    with style.applied():
        return _render(name, entry, view_inputs.select(entry.spec.needs))


def draw_one(view: str, view_inputs: ViewInputs, *, pdf: bool = False) -> Drawing:
    """Draw one view and encode its files; raise the same errors as `draw`."""
    name, entry = _find_view(view, view_inputs)
    return _render_files(name, entry, view_inputs.select(entry.spec.needs), pdf=pdf)


def draw_or_report(
    name: str,
    entry: Entry[ViewSpec],
    view_inputs: ViewInputs,
    *,
    pdf: bool = False,
    page: bool = False,
) -> Drawing:
    """Draw one of several views; if it fails, log the error and return it in the drawing.

    Once outputs were not finite, views that need more than weights are skipped. A view that does
    not apply (UsageError) is skipped with a warning, and so is one that needs a
    run or layers where there are none. Errors while preparing the inputs, such as missing weights
    or data, are raised, because every view would fail. The exception is features that cannot be
    embedded: only one view needs them.
    """
    try:
        view_inputs.require(entry.spec.needs)
    except UsageError as error:
        return _skipped(name, entry, error.message)
    if view_inputs.fault and not WITHOUT_OUTPUTS.issuperset(entry.spec.needs):
        return Drawing(name=name, entry=entry, skipped=view_inputs.fault)  # logged before
    try:
        arguments = view_inputs.select(entry.spec.needs)
    except Exception as error:  # the network's own code may raise anything
        if isinstance(error, ZooError) and "embedded" not in entry.spec.needs:
            raise
        cause = error.message if isinstance(error, ZooError) else describe(error)
        return _skipped(name, entry, cause)
    try:
        return _render_files(name, entry, arguments, pdf=pdf, page=page)
    except UsageError as error:
        return _skipped(name, entry, error.message)
    except ZooError as error:
        # Plugin developers want the traceback.
        if os.environ.get("CNNZOO_STRICT") == "1":
            raise
        message = (
            error.message if isinstance(error, PluginError) else _error_message(name, entry, error)
        )
        log.warning("%s", message)
        return Drawing(name=name, entry=entry, error=message)


def _skipped(name: str, entry: Entry[ViewSpec], reason: str) -> Drawing:
    log.warning("skipped view %s: %s", name, reason)
    return Drawing(name=name, entry=entry, skipped=reason)


def views_for(task: str) -> list[tuple[str, Entry[ViewSpec]]]:
    """Return the views for a task except costly ones: our own first, then others by name."""
    own_names = [spec.name for spec in VIEWS]
    wanted = [p for p in registry.views() if task in p[1].spec.tasks and not p[1].spec.costly]
    return sorted(
        wanted,
        key=lambda pair: own_names.index(pair[0]) if pair[0] in own_names else len(own_names),
    )


def write(drawing: Drawing, folder: Path) -> list[Path]:
    """Write a drawing's PNG, SVG and PDF into a directory, each atomically; return the paths."""
    make_folder(folder)
    # A name that two plugins use is "distribution/name".
    stem = drawing.name.replace("/", "--")
    files = {"png": drawing.png, "svg": drawing.svg, "pdf": drawing.pdf}
    contents = {
        folder / f"{stem}.{suffix}": content for suffix, content in files.items() if content
    }
    for path, content in contents.items():
        write_bytes(path, content)
    return list(contents)


def _find_view(view: str, view_inputs: ViewInputs) -> tuple[str, Entry[ViewSpec]]:
    """Return a view's name and entry; raise UsageError if it does not apply to the network."""
    entry, spec = registry.views().entry(view), view_inputs.spec
    if view_inputs.task not in entry.spec.tasks:
        raise UsageError(
            f"view '{view}' is for {' and '.join(entry.spec.tasks)}, "
            f"but {spec.name} does {view_inputs.task}",
            "cnnzoo list-views",
        )
    view_inputs.require(entry.spec.needs)
    return registry.views().shown_name(entry), entry


def _render_files(
    name: str,
    entry: Entry[ViewSpec],
    arguments: dict[str, Any],
    *,
    pdf: bool = False,
    page: bool = False,
) -> Drawing:
    """Render a view and encode its figure.

    Matplotlib lays out text and paths only while encoding, so a view can fail in either step.
    """
    with style.applied():
        figure = _render(name, entry, arguments)
        on_failure = functools.partial(_fail, name, entry)
        with isolated(entry.plugin, f"drawing of {name}", failed=on_failure):
            _fix_layout(figure)
            png, svg = encode_figure(figure, "png", dpi=DPI), encode_figure(figure, "svg")
            pdf_bytes = encode_figure(figure, "pdf") if pdf else b""
            # Keep text as text and simplify paths: the report holds some twenty figures.
            with matplotlib.rc_context({"svg.fonttype": "none", "path.simplify_threshold": 0.5}):
                page_bytes = encode_figure(figure, "svg") if page else b""
    return Drawing(name=name, entry=entry, png=png, svg=svg, pdf=pdf_bytes, page=page_bytes)


def _render(name: str, entry: Entry[ViewSpec], arguments: dict[str, Any]) -> Figure:
    """Call a view, catch its errors, and return its figure."""
    render = registry.resolve(entry, "render")
    on_failure = functools.partial(_fail, name, entry)
    with isolated(entry.plugin, f"drawing of {name}", failed=on_failure):
        figure = render(**arguments)
    if not isinstance(figure, Figure):
        found = type(figure).__name__
        _fail(name, entry, TypeError(f"returned {found}, expected a matplotlib Figure"))
    return figure


def _fix_layout(figure: Figure) -> None:
    """Wrap a figure's text and lay it out once, for all its files.

    Otherwise matplotlib would do both again for each file, and wrap text several times for each
    layout, which takes longer than the drawing itself.
    """
    figure.set_dpi(DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    for text in figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_wrap()):
        assert isinstance(text, Text)
        text.get_window_extent(renderer)  # sets the renderer that the line below measures with
        text.set_text(text._get_wrapped_text())  # type: ignore[attr-defined]
        text.set_wrap(False)
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    # Not "none": with that placeholder, matplotlib draws the figure twice for each file.
    figure.set_layout_engine(None)


def encode_figure(figure: Figure, format: str, **options: Any) -> bytes:
    """Encode a figure without the date, so that equal figures give equal bytes."""
    file = io.BytesIO()
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(file, format=format, metadata=dates.get(format), **options)
    return file.getvalue()


def _fail(name: str, entry: Entry[ViewSpec], error: BaseException) -> NoReturn:
    """Raise a PluginError for a view that failed; raise a ZooError unchanged."""
    if isinstance(error, ZooError):
        raise error
    raise entry.plugin.failure(_error_message(name, entry, error)) from error


def _error_message(name: str, entry: Entry[ViewSpec], error: BaseException) -> str:
    """Return one line that names the view, its plugin and distribution, and the cause."""
    cause = error.message if isinstance(error, ZooError) else describe(error)
    return f"view '{name}' of {entry.plugin.label}: {cause}"
