"""The report: it is self-contained, matches the run, and treats names as untrusted."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, precision_score

import cnn_core
import cnn_viz.page.report
from cnn_core.errors import UsageError
from cnn_core.tasks.intervals import wilson
from cnn_core.training import Run, evaluate
from cnn_core.weights.native import read_weights, write_weights
from cnn_viz import plugin, write_report
from cnn_viz.commands.cli import viz
from cnn_viz.page.charts import charts
from cnn_viz.page.explorer import INTERACTIVE_VIEWS
from cnn_viz.page.svg import inline_svg
from cnn_viz.results.inputs import ViewInputs

pytestmark = pytest.mark.xdist_group("report")  # one report serves most tests, and test_page
VIEWS = [spec.name for spec in plugin.VIEWS if "classification" in spec.tasks and not spec.costly]
SHOWN = [name for name in VIEWS if name not in INTERACTIVE_VIEWS["classification"]]  # as figures
VOID = {"meta", "img", "link", "br", "hr", "input"}
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    '"><img src=x onerror=alert(3)>',
    "--><svg onload=alert(4)>",
    "{{ 7 * 191 }}",
    "]]><x>",
    "&lt;b&gt;",
    "日本",
    "$x",
    "nine",
)


class Page(HTMLParser):
    """Parse a page into elements and texts; fail if it is not well nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.script = re.findall(r"<script>(.*?)</script>", text, re.S)[-1]
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def numbers(text: str) -> dict[str, Any]:
    """Return the JSON embedded in the page."""
    found = re.findall(r'<script type="application/json" id="numbers">(.*?)</script>', text, re.S)
    assert len(found) == 1
    content: dict[str, Any] = json.loads(found[0])
    return content


def assert_loads_nothing(page: Page) -> None:
    """Check that every address refers to the page itself or to embedded data."""
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            address = attributes.get(name)
            if address is None or address.startswith(("#", "data:image/webp;base64,")):
                continue
            assert (tag, name) == ("a", "href")  # a link that the reader may click
    assert not page.all("link")
    *content, script = page.all("script")
    assert {element["type"] for element in content} == {"application/json"}
    assert script == {}  # the page's own script, whose hash is in the policy
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    own = page.texts["script"][-1]
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert "fetch(" not in own
    assert "XMLHttpRequest" not in own
    for style in page.texts["style"]:
        assert "@import" not in style
        assert "url(" not in style


@pytest.fixture(scope="module")
def run(reported: Run) -> Run:
    return reported


@pytest.fixture(scope="module")
def text(run: Run) -> str:
    return (run.path / "report.html").read_text("utf-8")


def test_the_page_holds_everything_and_loads_nothing(text):
    page = Page(text)
    assert not page.open  # every element is closed
    assert_loads_nothing(page)
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'")
    assert len(text) < 700_000
    assert [a["href"] for a in page.all("a") if a["href"].startswith("http")] == [
        "https://doi.org/10.1109/5.726791"
    ]


def test_every_id_is_there_once_and_every_reference_has_its_aim(text):
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    aims = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert aims
    assert {a or b for a, b in aims} <= set(ids)


def test_every_view_is_shown_and_its_files_are_there(text, run):
    page = Page(text)
    titles = [name.replace("_", " ") for name in SHOWN]
    assert page.texts["h2"][: 4 + len(SHOWN)] == [
        "curves",
        "confusion",
        "class activation maps",
        "embedding",
        *titles,
    ]
    labels = [svg["aria-label"] for svg in page.all("svg") if svg.get("class") != "chart"]
    labels += [img["alt"] for img in page.all("img")]
    assert {label.partition(":")[0] for label in labels} == set(SHOWN)
    assert sorted(p.name for p in run.figures.iterdir()) == sorted(
        f"{view}.{kind}" for view in VIEWS for kind in ("png", "svg")
    )


def test_inlined_figures_say_what_the_figure_says():
    figure = Figure(figsize=(3, 2))
    words = "0.98765 < 12.3456 & 1.2345"
    ax = figure.subplots()
    ax.set_title(words)
    ax.plot([0.123456, 0.654321], [0.1, 0.98765], alpha=0.35)
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(file, format="svg")
    markup = inline_svg("made", "a figure", file.getvalue(), b"")
    assert html.escape(words, quote=False) in markup
    assert "stroke-opacity: 0.35" in markup
    assert len(markup) < 0.75 * len(file.getvalue())
    assert not re.findall(r' d="[^"]*\.\d\d', markup)


def images(text: str) -> list[np.ndarray[Any, Any]]:
    """Return the images inside an SVG or a page, as RGB."""
    found = re.findall(r"data:image/(?:png|webp);base64,([^\"]*)", text)
    opened = (Image.open(io.BytesIO(base64.b64decode(content))) for content in found)
    return [np.asarray(image.convert("RGB"), dtype=int) for image in opened]


def test_images_drawn_by_a_colour_map_are_lossless(text, run):
    for name in ("filters", "arithmetic", "receptive_field", "features"):
        (inside,) = re.findall(rf"<h2>{name.replace('_', ' ')}</h2>.*?</section>", text, re.S)
        drawn, shown = images((run.figures / f"{name}.svg").read_text("utf-8")), images(inside)
        pairs = [pair for pair in zip(drawn, shown, strict=True) if max(pair[0].shape) <= 32]
        assert len(pairs) > 3  # without colour bars, which move with the width of the text
        coloured = [np.ptp(image, axis=-1).any() for image, _ in pairs]
        for (image, other), exact in zip(pairs, coloured, strict=True):
            assert abs(image - other).max() <= (0 if exact else 40)  # a grey photograph


def test_kernels_in_rgb_are_exact_and_photographs_are_small():
    rng = np.random.default_rng(0)
    kernels, photograph = rng.random((3, 11, 11, 3)), rng.random((64, 64, 3))
    figure = Figure(figsize=(3, 2))
    for ax, image in zip(figure.subplots(1, 4), [*kernels, photograph], strict=True):
        ax.imshow(image, interpolation="none")
    file = io.BytesIO()
    with matplotlib.rc_context({"image.composite_image": False}):
        figure.savefig(file, format="svg")
    drawn = images(file.getvalue().decode())
    *shown, last = images(inline_svg("made", "a figure", file.getvalue(), b""))
    assert [abs(a - b).max() for a, b in zip(drawn, shown, strict=False)] == [0, 0, 0]
    assert abs(drawn[-1] - last).max() > 0


def test_inlined_figures_follow_the_readers_theme(text):
    inside = "".join(re.findall(r"<figure.*?</figure>", text, re.S))
    for colour in ("#1f2329", "#5f6773", "#d9dde3", "#fefefe"):
        assert colour not in inside
    for variable in ("ink", "muted", "card"):
        assert f"var(--{variable})" in inside
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_the_numbers_are_those_of_the_run(text, run):
    content = numbers(text)
    measured = evaluate(run, device="cpu")
    said = ViewInputs(run, device="cpu").predictions
    hits = int((said.predicted == said.targets).sum())
    assert content["test"]["top1"] == pytest.approx(measured["top1"])
    assert content["test"]["top1"] == pytest.approx(run.test_metrics()["test/top1"])
    assert content["test"]["n"] == len(said.targets)
    assert content["test"]["interval"] == list(wilson(hits, len(said.targets)))
    assert content["epochs"] == run.history()
    assert content["recipe"] == run.recipe.to_toml()
    assert content["environment"] == run.environment()
    assert content["training"]["seed"] == run.recipe.seed
    assert content["model"]["params"] == 61_706
    assert sum(cell["images"] for cell in content["confusion"]) == content["test"]["n"]
    right = sum(c["images"] for c in content["confusion"] if c["true"] == c["predicted"])
    assert right == hits


def test_the_page_shows_these_numbers(text, run):
    content, page = numbers(text), Page(text)
    assert f"{100 * content['test']['top1']:.2f} %" in page.texts["strong"]
    said = ViewInputs(run, device="cpu").predictions
    precision = precision_score(said.targets, said.predicted, average=None, zero_division=0)
    f1 = f1_score(said.targets, said.predicted, average=None)
    shares = said.logits.double().softmax(1)
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", text.partition('id="classes"')[2])
    for row, (p, f) in enumerate(zip(precision, f1, strict=True)):
        shown = cells[6 * row : 6 * row + 6]
        ap = average_precision_score(said.targets == row, shares[:, row])
        assert shown[0] in (f"{100 * p:.1f} %", "\u2013")  # a class that is never predicted
        assert shown[2] == f"{100 * f:.1f} %" or f == 0
        assert shown[3] == f"{100 * ap:.1f} %"
        assert float(shown[4].removesuffix(" %")) == round(100 * content["classes"][row]["ece"], 2)
        assert int(shown[5]) == int((said.targets == row).sum())
    assert f"{run.history()[0]['train/loss']:.4g}" in cells
    assert [e["class"] for e in page.all("tr") if "class" in e] == ["kept"]
    shown = re.findall(r'data-cell="(\d+) (\d+)"[^>]*>(\d+)</button>', text)
    assert [[*map(int, cell)] for cell in shown] == [
        [cell["true"], cell["predicted"], cell["images"]] for cell in content["confusion"]
    ]


def test_the_reader_learns_how_to_train_it_again(text, run, tmp_path):
    shown = [html.unescape(pre) for pre in re.findall(r"<pre>(.*?)</pre>", text, re.S)]
    assert shown[0] == run.recipe.to_toml()
    assert "cnn-arch-lenet==" in shown[1]
    assert shown[1].splitlines()[1] == "cnnzoo train --recipe recipe.toml"
    # The recipe in the page can be trained.
    (tmp_path / "recipe.toml").write_text(shown[0])
    again = cnn_core.train(
        recipe=str(tmp_path / "recipe.toml"), out=tmp_path / "again", progress=False, device="cpu"
    )
    assert again.recipe == run.recipe
    assert again.test_metrics() == run.test_metrics()


def test_no_path_of_this_machine_beyond_what_the_environment_records(text, run):
    content = numbers(text)
    rest = {key: value for key, value in content.items() if key != "environment"}
    assert str(run.path.parent) not in json.dumps(rest)
    assert content["run"] == run.path.name


@pytest.mark.usefixtures("draw_views_with_names")
def test_hostile_names_stay_text(run, tmp_path, monkeypatch):
    copy = shutil.copytree(run.path, tmp_path / "<b>run & co")
    write_weights(copy / "weights.safetensors", replace(read_weights(copy), classes=HOSTILE))
    environment = json.loads((copy / "environment.json").read_text())
    environment["device_name"] = "<img src=http://example.org/x.png>"
    environment["plugins"] = ["</table>", {"distribution": "<i>", "version": "1; rm -rf"}]
    environment["</script><b>"] = "</td><script>alert(5)</script>"
    (copy / "environment.json").write_text(json.dumps(environment))
    spec = cnn_core.get_spec("lenet5_modern")
    paper = replace(spec.paper, url="javascript:alert(6)", title="<u>")
    spec = replace(spec, paper=paper, departures=("<s>",))
    monkeypatch.setattr("cnn_core.registry.get_spec", lambda name: spec)

    text = write_report(copy, device="cpu").read_text("utf-8")
    page = Page(text)
    assert not page.open
    assert_loads_nothing(page)
    tags = [tag for tag, _ in page.elements]
    assert (tags.count("b"), tags.count("i")) == (1, 1)  # the page's own
    assert not {"x", "u", "s"} & set(tags)
    assert len(page.all("script")) == 3
    assert all(a["href"].startswith("#") for a in page.all("a"))
    assert "<u>." in page.texts["cite"]
    headings = page.texts["th"]
    for name in HOSTILE:
        assert name in headings
    assert "1337" not in headings
    content = numbers(text)
    assert [row["name"] for row in content["classes"]] == list(HOSTILE)
    assert content["environment"] == environment


def test_a_network_that_cannot_be_explained_costs_maps_only(
    run, draw_only, tmp_path, monkeypatch, caplog
):
    draw_only("confusion", "gradcam", "embedding")

    def broken(*args, **options):
        raise RuntimeError("a stage that gives no maps")

    monkeypatch.setattr("cnn_viz.page.explorer.cams_by_method", broken)
    monkeypatch.setattr("cnn_viz.views.gradcam.grad_cam", broken)
    monkeypatch.setattr("cnn_viz.results.inputs.features_of", broken)
    copy = shutil.copytree(run.path, tmp_path / "run")
    text = write_report(copy, device="cpu").read_text("utf-8")
    said = [record.getMessage() for record in caplog.records]
    cause = "RuntimeError: a stage that gives no maps"
    assert f"the page has no class activation maps: {cause}" in said
    assert f"the page has no embedding: {cause}" in said
    assert 'id="cams"' not in text
    assert 'id="embedding"' not in text
    assert 'id="confusion"' in text
    assert "gradcam" in Page(text).texts["h2"]  # with its error


def test_markdown_and_json_have_the_same_numbers(run, draw_only, tmp_path):
    draw_only("curves", "confusion", "weights")
    copy = shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("figures"))
    names = ("a|b", "`c`", "<i>", "*d*", "[e](f)", "5", "6", "7", "8", "9")
    write_weights(copy / "weights.safetensors", replace(read_weights(copy), classes=names))
    path = write_report(copy, device="cpu", form="json")
    assert path == copy / "report.json"
    assert not (copy / "figures").exists()
    content = json.loads(path.read_text("utf-8"))
    assert content["test"]["test/top1"] == run.test_metrics()["test/top1"]
    assert [row["name"] for row in content["classes"]] == list(names)
    text = write_report(copy, device="cpu", form="md").read_text("utf-8")
    assert f"**{100 * content['test']['top1']:.2f} %**" in text
    for shown in (r"a\|b", r"\`c\`", r"\<i\>", r"\*d\*", r"\[e\]\(f\)"):
        assert f"| {shown} |" in text
    for link in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text):
        assert (copy / link).is_file()
    assert text.count("![") == 3
    assert run.recipe.to_toml().strip() in text


def test_markdown_of_a_run_that_was_interrupted_has_no_empty_table(run, tmp_path, monkeypatch):
    copy = shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("figures"))
    lines = (copy / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(x for x in lines if "test/" not in x), "utf-8")
    monkeypatch.setattr(cnn_viz.page.report, "views_for", lambda run: [])
    text = write_report(copy, device="cpu", form="md").read_text("utf-8")
    assert "## Test\n\nNot available yet: training has not finished.\n\n## Classes" in text


def test_a_run_that_lacks_files_is_refused_and_no_page_is_written(run, tmp_path):
    copy = shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("report*"))
    (copy / "weights.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no weights\.safetensors"):
        write_report(copy)
    assert not (copy / "report.html").exists()


PLUGIN = """
    from cnn_core import ViewSpec, hookimpl

    def view(name, needs=("run",)):
        return ViewSpec(name=name, render=f"their_views:{name}", summary="a <view>", needs=needs)

    @hookimpl
    def cnnzoo_views():
        return [view("broken"), view("exits"), view("sound", ("run", "model", "batch"))]

    @hookimpl
    def cnnzoo_report_section(run):
        return f"<section><h2>theirs</h2><p>{run.recipe.model}</p></section>"
"""

RENDER = """
from matplotlib.figure import Figure
from PIL import Image

def broken(run):
    raise ValueError("<b>out of ink</b>")

def exits(run):
    raise SystemExit(3)

def sound(run, model, batch):
    print("hello from a view")
    figure = Figure()
    figure.subplots().plot(batch.targets)
    return figure
"""

WORSE = """
    from cnn_core import hookimpl

    @hookimpl
    def cnnzoo_report_section(run):
        raise KeyError("section")
"""


def test_the_command_contains_plugins_that_fail(run, site, cnnzoo, tmp_path):
    site.add(PLUGIN, distribution="cnn-their", name="their")
    site.add(WORSE, distribution="cnn-worse", name="worse")
    (site.path / "their_views.py").write_text(RENDER)
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))

    done = cnnzoo("report", copy, site=site.path, warm=True)
    assert done.code == 0
    assert done.out == f"{copy / 'report.html'}\n"
    reported = [line for line in done.err.splitlines() if line.startswith("warning:")]
    assert sorted(reported) == [
        "warning: plugin 'worse' (cnn-worse 1.2.3): hook cnnzoo_report_section: KeyError: "
        "'section' (for details: cnnzoo doctor -v)",
        "warning: view 'broken' of plugin 'their' (cnn-their 1.2.3): ValueError: "
        "<b>out of ink</b>",
        "warning: view 'exits' of plugin 'their' (cnn-their 1.2.3): SystemExit: 3",
    ]
    assert "hello from a view" in done.err
    assert "Traceback" not in done.err
    text = (copy / "report.html").read_text("utf-8")
    page = Page(text)
    after = page.texts["h2"].index(SHOWN[-1].replace("_", " "))
    assert page.texts["h2"][after + 1 : after + 5] == ["broken", "exits", "sound", "theirs"]
    missing = [e for e in page.all("p") if e.get("class") == "missing"]
    assert len(missing) == 2
    assert "view &#39;broken&#39; of plugin &#39;their&#39; (cnn-their 1.2.3)" in text
    assert "&lt;b&gt;out of ink" in text
    assert (copy / "figures" / "sound.svg").is_file()
    assert not (copy / "figures" / "broken.svg").exists()

    done = cnnzoo("viz", "broken", copy, site=site.path, warm=True)
    assert done.code == 6
    assert done.out == ""
    assert done.err.startswith(
        "error: view 'broken' of plugin 'their' (cnn-their 1.2.3): ValueError: <b>out of ink</b>\n"
    )
    assert len(done.err.splitlines()) == 2


def test_the_viz_command_prints_the_paths_it_wrote(run, draw_only, tmp_path):
    views = ("curves", "confusion", "weights")
    draw_only(*views)
    arguments = ["all", str(run.path), "--out", str(tmp_path / "pictures"), "--device", "cpu"]
    done = CliRunner().invoke(viz, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert [path.name for path in paths] == [f"{v}.{k}" for v in views for k in ("png", "svg")]
    assert all(path.parent == tmp_path / "pictures" and path.stat().st_size for path in paths)
    assert done.stderr == ""


def test_an_unknown_view_or_run_is_misuse(run, cnnzoo, tmp_path):
    done = cnnzoo("viz", "gradcm", run.path)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: unknown view 'gradcm', did you mean 'gradcam'")
    with pytest.raises(UsageError, match="no such file or run"):
        write_report(tmp_path / "nowhere")


def test_names_of_views_complete_in_the_shell(cnnzoo):
    done = cnnzoo(_CNNZOO_COMPLETE="bash_complete", COMP_WORDS="cnnzoo viz ", COMP_CWORD="2")
    found = {line.partition(",")[2] for line in done.out.splitlines()}
    assert {*VIEWS, "all"} <= found


@pytest.mark.parametrize("rate", [0.0, 0.001, 3e-5, 1.0])
def test_a_constant_learning_rate_has_ticks_that_differ(rate):
    chart = charts([{"lr": rate, "train/loss": loss} for loss in (2.0, 1.0)], 2)[-1]
    labels = [label for _, label in chart["y"]]
    assert len(set(labels)) == len(labels) > 2
    assert f"{rate:g}" in labels
