"""The model card of a trained network: README.md with metadata for the Hugging Face Hub.

Metadata: https://huggingface.co/docs/hub/model-cards. All facts come from the weights, the spec
of the model and the run; paths of this machine are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cnn_core import registry
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.registry import Entry
from cnn_core.registry.names import base_name
from cnn_core.runs.recipe import Recipe
from cnn_core.specs import ModelSpec, Paper, WeightsSpec
from cnn_core.tasks.intervals import wilson
from cnn_core.text import counted
from cnn_core.training.trained import Trained
from cnn_core.version import __version__
from cnn_core.weights.hub import Repository, require_hub
from cnn_core.weights.native import Weights

__all__ = ["Measured", "model_card"]

LONG = 20  # rows; longer tables are folded
PIPELINE = {"classification": "image-classification", "segmentation": "image-segmentation"}
METRICS = {  # ours: the hub's identifier and a title
    "top1": ("accuracy", "top-1 accuracy"),
    "map": ("map", "mean average precision"),
    "miou": ("mean_iou", "mean IoU"),
    "pixel_accuracy": ("accuracy", "pixel accuracy"),
}
PAGE = """\
---
{metadata}
---

# {name}

{summary}

## Use it

```bash
pip install "cnn-core[hub]" {distribution}
cnnzoo predict {repository} photo.jpg --download
```

```python
import cnn_core

predictor = cnn_core.Predictor("{repository}", download=True)
print(predictor("photo.jpg"))
```
{timm}
## Results

{results}

## Network

{network}

## Data and classes

{data}

## Preprocessing

{preprocessing}

## Training

{training}

## Intended use and limits

{limits}

## Licence

The weights are under the licence `{licence}`.{publisher}

## Citation

```bibtex
{citation}
```
"""
TIMM = """
timm reads the same files:

```python
import timm

model = timm.create_model("hf-hub:{id}", pretrained=True).eval()
```
{note}"""
OTHER_FIT = """
timm's own transform stretches images, but this network was trained on padded ones: prepare images
as described below.
"""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Results on a split: all metrics, and one score of each class with its number of images.

    `score` is the name of the score; for pixels there is no number of images, and it is 0.
    """

    data: str
    split: str
    count: int
    metrics: Mapping[str, float]
    score: str
    by_class: Sequence[tuple[str, int, float]]


def model_card(
    trained: Trained,
    repository: Repository,
    *,
    licence: str,
    measured: Measured | None,
    timm: bool,
) -> str:
    """Return the text of README.md; `timm` says whether timm can read the files beside it."""
    weights = trained.weights
    entry = registry.models().entry(weights.model)
    data = _data_of(trained)
    published = trained.opened.entry
    return PAGE.format(
        metadata=_metadata(entry.spec, repository, licence, data, measured, timm),
        name=repository.id.partition("/")[2],
        summary=_summary(entry.spec, data),
        distribution=entry.plugin.distribution,
        repository=repository,
        timm=_timm(repository, weights.preprocessing) if timm else "",
        results=_results(trained, measured),
        network=_network(entry, weights),
        data=_data(data, weights),
        preprocessing=_preprocessing(weights.preprocessing),
        training=_training(trained),
        limits=_limits(weights, data, measured),
        licence=licence,
        publisher="" if published is None else _publisher(published),
        citation="\n\n".join(_citations(entry.spec.paper, data)),
    )


def _publisher(entry: Entry[WeightsSpec]) -> str:
    return f" They were published {_where(entry)} under {entry.spec.licence}."


def _where(entry: Entry[WeightsSpec]) -> str:
    """Return where the source of published weights is: an address, or a page of a package."""
    source = entry.spec.source
    if source.startswith("http"):
        return f"at {source}"
    return f"with the package {entry.plugin.distribution} ({source})"


def _data_of(trained: Trained) -> str:
    """Return the name of the dataset of the training, without a path, or ""."""
    if trained.is_run:
        return base_name(trained.run.recipe.data)
    entry = trained.opened.entry
    return "" if entry is None else entry.spec.data


def _metadata(
    spec: ModelSpec,
    repository: Repository,
    licence: str,
    data: str,
    measured: Measured | None,
    timm: bool,
) -> str:
    """Return the front matter, YAML."""
    hub = require_hub()
    found = [] if measured is None else [*_eval_results(hub, spec.task, measured)]
    own_images = registry.datasets().claims(data) and registry.datasets().get(data).folder
    card = hub.ModelCardData(
        license=licence,
        library_name="timm" if timm else "cnnzoo",
        pipeline_tag=PIPELINE[spec.task],
        tags=["cnnzoo", "cnn", spec.family, *(["timm"] if timm else [])],
        datasets=[data] if data and not own_images else None,
        metrics=sorted({result.metric_type for result in found}) or None,
        model_name=repository.id.partition("/")[2] if found else None,
        eval_results=found or None,
    )
    return str(card.to_yaml())


def _eval_results(hub: Any, task: str, measured: Measured) -> Iterator[Any]:
    for name, (identifier, title) in METRICS.items():
        if name in measured.metrics:
            yield hub.EvalResult(
                task_type=PIPELINE[task],
                dataset_type=measured.data,
                dataset_name=measured.data,
                dataset_split=measured.split,
                metric_type=identifier,
                metric_name=title,
                metric_value=round(measured.metrics[name], 6),
            )


def _summary(spec: ModelSpec, data: str) -> str:
    trained = f", trained on {data}" if data else ""
    by = f"with cnnzoo (cnn-core {__version__})"
    return f"`{spec.name}`{trained}, {by}. {spec.summary}. {spec.paper}"


def _timm(repository: Repository, preprocessing: Preprocessing) -> str:
    pads = preprocessing.fit == "pad" and preprocessing.size != preprocessing.image_size
    return TIMM.format(id=repository.id, note=OTHER_FIT if pads else "")


def _results(trained: Trained, measured: Measured | None) -> str:
    """Return the tables of results, overall and by class."""
    if measured is None:
        entry = trained.opened.entry
        if entry is None or not entry.spec.accuracy:
            return "Not measured."
        rows = [(name, f"{value:.4f}") for name, value in entry.spec.accuracy.items()]
        table = _table(("metric", "value"), rows)
        return f"As claimed by those who published them {_where(entry)}:\n\n{table}"
    overall = [
        (name, f"{value:.4f}")
        for name, value in measured.metrics.items()
        if not re.match(r"iou/|(recall|ap)_", name)  # of single classes
    ]
    by_class = [
        (_cell(name), f"{count:,}" if count else "", f"{value:.4f}")
        for name, count, value in measured.by_class
    ]
    return (
        f"On the split `{measured.split}` of {measured.data}, {counted(measured.count, 'image')}"
        f"{_interval(measured)}:\n\n{_table(('metric', 'value'), overall)}\n\n"
        f"{_table(('class', 'images', measured.score), by_class)}"
    )


def _interval(measured: Measured) -> str:
    """Return the 95 % interval of top-1 accuracy in words, or ""."""
    if "top1" not in measured.metrics:
        return ""
    low, high = wilson(round(measured.metrics["top1"] * measured.count), measured.count)
    return f" (95 % interval of top-1 accuracy, Wilson: {low:.4f} to {high:.4f})"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] + ["--:"] * (len(columns) - 1), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    folded = f"<details><summary>{len(rows):,} rows</summary>\n\n{text}\n\n</details>"
    return folded if len(rows) > LONG else text


def _cell(text: str) -> str:
    """Return a name as Markdown that cannot end the cell or become markup."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _network(entry: Entry[ModelSpec], weights: Weights) -> str:
    spec = entry.spec
    has_running = any(name.endswith("running_mean") for name in weights.tensors)
    running = " and running statistics" if has_running else ""
    params = sum(tensor.numel() for tensor in weights.tensors.values())
    options = ", ".join(f"{key} = {value!r}" for key, value in sorted(weights.options.items()))
    lines = [
        f"{spec.family}, variant {spec.variant}, from the package {entry.plugin.distribution}",
        f"{params:,} numbers in the file, parameters{running}",
        *([f"options: {options}"] if options else []),
        *(f"departs from the paper: {departure}" for departure in spec.departures),
    ]
    return "\n".join(f"- {_cell(line)}" for line in lines)


def _data(data: str, weights: Weights) -> str:
    known = registry.datasets().get(data) if registry.datasets().claims(data) else None
    words = "Images in a folder." if known is not None and known.folder else ""
    if known is not None and not known.folder:
        words = f"{known.summary}. Licence of the data: {known.licence}. {known.homepage}"
    listed = ", ".join(_cell(name) for name in weights.classes)
    classes = f"{weights.num_classes:,} classes"
    if weights.num_classes > LONG:
        return (
            f"{words or data or 'Unknown.'}\n\n"
            f"<details><summary>{classes}</summary>\n\n{listed}\n\n</details>"
        )
    return f"{words or data or 'Unknown.'}\n\n{classes}, in the order of the outputs: {listed}"


def _preprocessing(preprocessing: Preprocessing) -> str:
    height, width = preprocessing.size
    steps = {
        "resize": f"resize to {height}x{width}, bilinear with antialiasing",
        "pad": f"resize to {'x'.join(map(str, preprocessing.image_size))}, "
        f"pad with zeros to {height}x{width}",
        "tile": f"tiles of {height}x{width} at the image's own size",
        "crop": f"resize the shorter side to {preprocessing.resize} "
        f"({preprocessing.interpolation}), cut out the centre of {height}x{width}",
    }
    return (
        f"Values from 0 to 1; {steps[preprocessing.fit]}; subtract the mean "
        f"{list(preprocessing.mean)} and divide by the standard deviation "
        f"{list(preprocessing.std)}, one per channel."
    )


def _training(trained: Trained) -> str:
    """Return the recipe of a run, or what is known about published weights."""
    if not trained.is_run:
        entry = trained.opened.entry
        how = "" if entry is None else entry.spec.recipe
        if registry.recipes().claims(how):
            recipe = registry.recipes().get(how)
            return (
                f"By the recipe {how}: `cnnzoo train {recipe.model} --data {recipe.dataset} "
                f"--recipe {how}`"
            )
        return f"As its publisher describes: {how}" if how else "Not known."
    run = trained.run
    recorded = run.environment()
    facts = (f"torch {recorded.get('torch')}", str(recorded.get("device_name")))
    return (
        f"One run, seed {run.recipe.seed}, {', '.join(facts)}; the weights are those of epoch "
        f"{trained.weights.epoch}. The recipe, for `cnnzoo train --recipe`:\n\n"
        f"<details><summary>recipe.toml</summary>\n\n```toml\n{_without_paths(run.recipe).to_toml()}"
        "```\n\n</details>"
    )


def _without_paths(recipe: Recipe) -> Recipe:
    """Return a recipe without the folders of this machine."""
    name, colon, _ = recipe.data.partition(":")
    weights = recipe.weights
    if Path(weights).is_absolute():
        weights = Path(weights).name
    return replace(recipe, data=f"{name}:PATH" if colon else name, weights=weights)


def _limits(weights: Weights, data: str, measured: Measured | None) -> str:
    kind = f"images like those of {data}" if data else "images like those it was trained on"
    lines = [
        f"It is for {kind}; it was not measured on others.",
        f"It knows only its {weights.num_classes:,} classes, whatever an image shows; "
        "its probabilities were not calibrated.",
        "Do not use it for decisions about people or safety without an evaluation of your own.",
    ]
    if measured is None:
        lines.insert(1, "Nothing was measured when this card was written.")
    return "\n".join(f"- {line}" for line in lines)


def _citations(paper: Paper, data: str) -> Iterator[str]:
    """Yield BibTeX of the paper, and the dataset's citation as a comment."""
    key = re.sub(r"\W", "", paper.authors.split(",")[0].split(" ")[-1]).lower() or "paper"
    authors = paper.authors.replace(", ", " and ")
    yield (
        f"@misc{{{key}{paper.year},\n  title = {{{paper.title}}},\n"
        f"  author = {{{authors}}},\n  year = {{{paper.year}}},\n  url = {{{paper.url}}}\n}}"
    )
    if registry.datasets().claims(data) and (text := registry.datasets().get(data).citation):
        yield f"% data: {text}"
