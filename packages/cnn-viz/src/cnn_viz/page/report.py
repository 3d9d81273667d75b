"""The report of a trained network: one self-contained HTML file with figures and metrics."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from cnn_core.files import expanded, write_text
from cnn_core.plugins import plugins
from cnn_core.registry.names import base_name
from cnn_core.runs.destinations import make_folder, require_writable
from cnn_core.tasks.intervals import wilson
from cnn_core.tasks.regions import Overlap
from cnn_core.text import printable
from cnn_core.training import Predictions, Run
from cnn_core.training.epoch_metrics import EpochMetrics
from cnn_core.training.trained import Source
from cnn_viz import style
from cnn_viz.drawing.render import Drawing, draw_or_report, views_for, write
from cnn_viz.page.charts import LEFT, RIGHT, charts
from cnn_viz.page.explorer import EMPTY_EXPLORER, INTERACTIVE_VIEWS, explorer_data
from cnn_viz.page.origin import (
    NO_TRAINING,
    claims,
    environment_rows,
    hardware,
    origin_of,
    origin_rows,
    training_data,
)
from cnn_viz.page.svg import inline_svg
from cnn_viz.results.inputs import ViewInputs
from cnn_viz.results.labels import label_scores
from cnn_viz.results.metrics import (
    bootstrap,
    class_scores,
    confusion_counts,
    pixel_scores,
    top_k_accuracy,
)
from cnn_viz.version import __version__

__all__ = ["load_template", "read_script", "script_hash", "write_report"]

log: logging.Logger = logging.getLogger("cnn_core")
# Copies of other data in a form for display; the JSON in the page leaves them out.
DERIVED_KEYS = ("test_metrics", "environment_rows", "hardware", "weights_rows")
MAX_ROWS = 200  # classes in the page's table
MIN_CLASSES_TOP5 = 100  # with fewer classes, top-5 accuracy says little
MAX_CELLS = 10_000  # of the confusion matrix in the page's JSON


def write_report(
    run: ViewInputs | Source,
    *,
    data: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
    out: str | os.PathLike[str] | None = None,
    form: str = "html",
    progress: Callable[[str], object] = lambda line: None,
) -> Path:
    """Write the report of a trained network; return its path.

    `run` is a run or another source of a trained network, as in `Trained`; `data` replaces the
    dataset that it was trained on. `out` is the folder to write into; by default it is the run,
    or `ViewInputs.output`. `form` is the format: "html", a self-contained page; "md", Markdown
    with links to the figures; or "json", the metrics without figures. For html and md, all views
    except costly ones are also drawn into the folder's figures/. The network is evaluated once. If
    a view fails, the report shows its error. If outputs are not finite, the report has no results.
    If a plugin's section fails, the error is logged and the section omitted.

    Raises:
        ZooError: there are no weights, or the dataset cannot be loaded.
    """
    view_inputs = (
        run
        if isinstance(run, ViewInputs)
        else ViewInputs(run, data=data, data_dir=data_dir, device=device)
    )
    if out is not None:
        view_inputs.out = expanded(out)
    folder = view_inputs.out or view_inputs.output
    require_writable(folder)
    model, dataset = view_inputs.recipe.model, view_inputs.recipe.data
    progress(f"evaluating {model} on the test split of {dataset}")
    content = _report_data(view_inputs)
    path = make_folder(folder) / f"report.{form}"
    if form == "json":
        write_text(path, json.dumps(_json_safe(content), indent=1) + "\n")
        return path
    drawings = []
    for drawing in _drawings(view_inputs, progress, page=form == "html"):
        drawings.append(drawing)
        if drawing.png:
            write(drawing, folder / "figures")
    template_data = {
        **content,
        "test_metrics": _recorded_metrics(view_inputs),
        "scale_note": view_inputs.weights.preprocessing.scale_note,
        "environment_rows": environment_rows(content["environment"]),
        "hardware": hardware(content["environment"]),
        "weights_rows": origin_rows(content["weights"]),
    }
    if form == "md":
        text = load_template("report.md").render(template_data, drawings=drawings)
    else:
        text = _page(view_inputs, template_data, drawings)
    # Names are untrusted: remove control characters and bidirectional overrides.
    write_text(path, "\n".join(map(printable, text.split("\n"))))
    return path


def _drawings(
    view_inputs: ViewInputs, progress: Callable[[str], object], *, page: bool
) -> Iterator[Drawing]:
    """Yield the views of the task, drawn."""
    for name, entry in views_for(view_inputs.task):
        if "run" in entry.spec.needs and not view_inputs.is_run:
            # Only the page says this: weights without a run are no reason for a warning.
            reason = "weights without a run, so there is no log of the training"
            yield Drawing(name=name, entry=entry, skipped=reason)
        else:
            progress(f"drawing {name}")
            yield draw_or_report(name, entry, view_inputs, page=page)


def _page(view_inputs: ViewInputs, template_data: dict[str, Any], drawings: list[Drawing]) -> str:
    """Return the report as one HTML page."""
    script, task = read_script("report.js"), view_inputs.task
    training = template_data["training"]
    explored = task == "classification" and not view_inputs.fault
    return load_template(f"{task}.html").render(
        template_data,
        rows=_rows_to_show(template_data["classes"]),
        max_rows=MAX_ROWS,
        charts=charts(template_data["epochs"], training["best_epoch"]) if training else [],
        left=LEFT,
        right=RIGHT,
        **(explorer_data(view_inputs) if explored else EMPTY_EXPLORER),
        # Skip static figures that have an interactive version, unless there is no drawing but an
        # error to show.
        figures=[
            _figure(d) for d in drawings if d.name not in INTERACTIVE_VIEWS[task] or not d.png
        ],
        sections=_sections(view_inputs.run) if view_inputs.is_run else [],
        numbers=_json_safe(_page_numbers(template_data)),
        script=script,
        script_hash=script_hash(script),
    )


def _report_data(view_inputs: ViewInputs) -> dict[str, Any]:
    """Return all data of the report, as in report.json."""
    recipe, spec = view_inputs.recipe, view_inputs.spec
    headline: dict[str, Any] = {}
    tables: dict[str, Any] = {"classes": [], "confusion": []}
    with view_inputs.finding_faults():
        headline, tables = RESULTS[view_inputs.task](view_inputs)
    if view_inputs.fault:
        headline = {"fault": view_inputs.fault}
        log.warning("%s; the report has no results", view_inputs.fault)
    origin = origin_of(view_inputs)
    return {
        "schema": 1,
        "made_by": f"cnn-viz {__version__}",
        "run": view_inputs.run.path.absolute().name if view_inputs.is_run else None,
        "weights": {**origin, "claims": claims(view_inputs, headline)},
        "model": {
            "name": recipe.model,
            "variant": spec.variant,
            "summary": spec.summary,
            "paper": asdict(spec.paper),
            "departures": spec.departures,
            "reported": spec.reported.get(base_name(recipe.data), ""),
            # An exported file has no parameters of its own.
            "params": sum(p.numel() for p in view_inputs.model.parameters() if p.requires_grad)
            or None,
        },
        "data": recipe.data,
        "measured": view_inputs.measured,
        "test": {**headline, **_recorded_metrics(view_inputs)},
        **tables,
        **(training_data(view_inputs.run) if view_inputs.is_run else NO_TRAINING),
    }


def _recorded_metrics(view_inputs: ViewInputs) -> dict[str, float]:
    """Return the test metrics that a run recorded, unless the report is on other data."""
    own = view_inputs.is_run and view_inputs.data in (None, view_inputs.run.recipe.data)
    return view_inputs.run.test_metrics() if own else {}


def _rows_to_show(classes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the page's table; if there are too many, those with the lowest F1."""
    if len(classes) <= MAX_ROWS or "f1" not in classes[0]:
        return classes
    with_images = [row for row in classes if row["support"]]
    return sorted(with_images, key=lambda row: row["f1"])[:MAX_ROWS]


def _page_numbers(template_data: dict[str, Any]) -> dict[str, Any]:
    """Return the data of the page's JSON: no derived data, only the largest cells of confusion."""
    numbers = {key: template_data[key] for key in template_data if key not in DERIVED_KEYS}
    cells = numbers["confusion"]
    if len(cells) > MAX_CELLS:
        numbers["confusion"] = sorted(cells, key=lambda cell: -cell["images"])[:MAX_CELLS]
        numbers["confusion_cells"] = len(cells)
    return numbers


def _classification_results(view_inputs: ViewInputs) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the headline metrics and the tables of a classifier's report."""
    predictions = view_inputs.predictions
    classes = [asdict(score) for score in class_scores(predictions)]
    return _headline(predictions), {"classes": classes, "confusion": _confusion_cells(predictions)}


def _segmentation_results(view_inputs: ViewInputs) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the headline metrics and the tables of a segmentation report."""
    segmented = view_inputs.segmented
    pixels, scores = segmented.metrics.pixels, segmented.scores
    overlap = Overlap.of(pixels)
    mious = [line["miou"] for line in scores]
    headline = {
        "n": len(segmented),
        "miou": overlap.mean(overlap.iou),
        "image_miou": sum(mious) / len(mious) if mious else math.nan,
        "interval": bootstrap(mious),
    }
    classes = [asdict(row) for row in pixel_scores(segmented.classes, pixels)]
    return headline, {"classes": classes, "confusion": pixels.tolist(), "images": scores}


def _multilabel_results(view_inputs: ViewInputs) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the headline metrics and the tables of a multilabel report."""
    found = view_inputs.labelled
    measured = EpochMetrics(
        "multilabel", len(found.classes), 0, classes=found.classes, thresholds=found.thresholds
    )
    measured.add(0.0, found.logits, found.targets)
    values = measured.compute()
    names = ("map", "macro_f1", "micro_f1", "exact_match")
    headline = {name: values.get(name, math.nan) for name in names}
    classes = [asdict(score) for score in label_scores(found)]
    return {"n": len(found.targets), **headline}, {"classes": classes, "confusion": []}


RESULTS = {
    "classification": _classification_results,
    "segmentation": _segmentation_results,
    "multilabel": _multilabel_results,
}


def _headline(predictions: Predictions) -> dict[str, Any]:
    """Return the top-1 accuracy on the test split with its 95 % interval."""
    n = len(predictions.targets)
    hits = int((predictions.predicted == predictions.targets).sum())
    low, high = wilson(hits, n)
    found = {"n": n, "correct": hits, "top1": hits / n, "interval": [low, high]}
    if len(predictions.classes) >= MIN_CLASSES_TOP5:
        found["top5"] = top_k_accuracy(predictions, 5)
    return found


def _confusion_cells(predictions: Predictions) -> list[dict[str, int]]:
    """Return the non-zero cells of the confusion matrix."""
    counts = confusion_counts(predictions)
    return [
        {"true": row, "predicted": column, "images": int(counts[row, column])}
        for row, column in zip(*(axis.tolist() for axis in counts.nonzero()), strict=True)
    ]


def read_script(name: str) -> Markup:
    """Return one of our own scripts, marked as safe to inline without escaping."""
    path = resources.files("cnn_viz.page").joinpath("templates", name)
    return Markup(path.read_text("utf-8"))


def script_hash(script: str) -> str:
    """Return the hash of a script for the page's Content-Security-Policy.

    The policy allows only this script. Names of classes, runs and plugins are untrusted: if one
    ever got past the escaping, the browser would still not run it.
    """
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _figure(drawing: Drawing) -> dict[str, Any]:
    """Return the data of one view's section for the template."""
    plugin, spec = drawing.entry.plugin, drawing.entry.spec
    return {
        "name": drawing.name,
        "summary": spec.summary,
        "origin": "" if plugin.name == "viz" else f"{plugin.distribution} {plugin.version}",
        "error": drawing.error,
        "skipped": drawing.skipped,
        "markup": ""
        if not drawing.png
        else inline_svg(
            drawing.name, f"{drawing.name}: {spec.summary}", drawing.page, drawing.png
        ),
    }


def _sections(run: Run) -> list[Markup]:
    """Return the sections of plugins, unescaped: plugins are trusted code anyway."""
    sections = []
    for plugin, section in plugins().call("cnnzoo_report_section", run=run):
        if isinstance(section, str):
            sections.append(Markup(section))
        elif section is not None:
            plugin.add_fault(
                "hook cnnzoo_report_section", f"returned {type(section).__name__}, expected str"
            )
    return sections


def load_template(name: str) -> jinja2.Template:
    """Return one of our templates.

    HTML templates escape values automatically; Markdown templates use the filter `cell`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cnn_viz.page"),
        autoescape=not name.endswith(".md"),
        # A misspelt name in a template raises instead of rendering as an empty string.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "confidence": style.confidence,
        "percent": _percent,
        "duration": _duration,
        "number": _number,
        "cell": _cell,
        "short": style.short,
    }
    return environment.get_template(name)


def _cell(text: Any) -> str:
    """Escape text for a Markdown table: Markdown, HTML and the cell separator."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>&~])", r"\\\1", printable(str(text)))


def _percent(fraction: float, digits: int = 1) -> str:
    return "\N{EN DASH}" if math.isnan(fraction) else style.percent(fraction, digits)


def _duration(seconds: float) -> str:
    """Format seconds: 3723.4 as "1 h 2 min", 75 as "1 min 15 s", 8.25 as "8.2 s"."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{seconds:.1f} s"


def _number(value: Any, key: str = "") -> str:
    """Format a value from metrics.jsonl.

    Top-k accuracies become percentages, other floats get 4 significant digits.
    """
    if "/top" in key and isinstance(value, float):
        return _percent(value, 2)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _json_safe(value: Any) -> Any:
    """Return a value that is valid JSON: NaN and infinity become null."""
    text = json.dumps(value, default=str)
    return json.loads(text, parse_constant=lambda _: None)
