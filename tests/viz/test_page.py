"""The report in a browser: its interactive parts, its size, its cost, and script injection."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page, sync_playwright

from cnn_core.training import Predictions, Run
from cnn_viz import write_report
from cnn_viz.page import explorer
from cnn_viz.results import inputs
from cnn_viz.results.embeddings import Embedding
from cnn_viz.results.inputs import ViewInputs
from cnn_viz.views.embedding import COLOURS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
    pytest.mark.xdist_group("report"),  # one report and one browser serve most tests
]


@pytest.fixture(scope="module")
def run(reported: Run) -> Run:
    return reported


@pytest.fixture(scope="module")
def path(run: Run) -> Path:
    return run.path / "report.html"


@pytest.fixture(scope="module")
def browser() -> Any:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox"]
        )
        yield found
        found.close()


SMALLEST = """Math.min(...[...document.querySelectorAll("section > figure > svg")].map(svg => {
    const sizes = [...svg.querySelectorAll("text")].map(text => getComputedStyle(text).fontSize);
    return Math.min(...sizes.map(parseFloat)) * svg.getScreenCTM().a;
}))"""  # the smallest font size of the figures, in pixels
HEADS = ("thead", "tbody")
MAPS_DRAWN = (
    "[...document.querySelectorAll('#cams canvas')].every(c => c.toDataURL().length > 900)"
)


class Visit:
    """An open page, with everything that it logged, raised or requested."""

    def __init__(self, browser: Browser, path: Path, width: int = 1440, scheme: Any = "light"):
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", self._asked)
        self.page.goto(path.as_uri())
        self.page.wait_for_function(MAPS_DRAWN)  # the images are decoded asynchronously

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.complaints.append(request.url)

    def text(self, selector: str) -> str:
        return self.page.text_content(selector) or ""


@pytest.fixture
def visit(browser: Browser, path: Path) -> Any:
    opened = Visit(browser, path)
    yield opened
    assert opened.complaints == []
    opened.page.close()


def test_the_script_is_short():
    script = Path(explorer.__file__).parent / "templates" / "report.js"
    assert script.stat().st_size < 15_000


@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_is_quiet(browser, path, width, scheme):
    opened = Visit(browser, path, width, scheme)
    assert opened.complaints == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") == width
    paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 200) == (scheme == "dark")
    assert 9 <= opened.page.evaluate(SMALLEST) < 14
    opened.page.close()


@pytest.mark.parametrize("width", [375, 1440])
def test_long_names_leave_the_matrix_its_cells(browser, path, width):
    opened = Visit(browser, path, width)
    opened.page.evaluate("""document.querySelectorAll("#confusion thead span, #confusion tbody th")
        .forEach(head => head.textContent = "american_staffordshire_bull_terrier")""")
    column, row = (opened.page.locator(f"#confusion {part} th").nth(1) for part in HEADS)
    box, words = column.bounding_box(), column.locator("span").bounding_box()
    assert words["y"] + words["height"] <= box["y"] + box["height"] <= box["y"] + 180
    assert row.bounding_box()["width"] <= min(0.4 * width, 12 * 16) + 1
    assert column.locator("span").get_attribute("title") == "1"
    assert row.get_attribute("title") == "1"
    opened.page.close()


def test_curves_show_the_epoch_under_the_pointer(visit, run):
    chart = visit.page.locator("svg.chart").nth(1)
    box = chart.bounding_box()
    assert box is not None
    chart.hover(position={"x": 0.96 * box["width"], "y": 60})
    last = run.history()[-1]
    said = visit.page.locator(".curve output").nth(1).text_content()
    assert said == f"epoch 2: train {100 * last['train/top1']:.2f} %, val " + (
        f"{100 * last['val/top1']:.2f} %"
    )
    visit.page.mouse.move(2, 2)
    assert visit.page.locator(".curve output").nth(1).text_content() == "trainingvalidation"


def test_a_cell_of_the_confusion_matrix_shows_its_images(visit):
    cell = visit.page.locator("#confusion td:not(.right) button").first
    count = int(cell.text_content() or "")
    cell.click()
    assert visit.page.locator("#cell canvas").count() == count
    assert f"{count} image" in visit.text("#cell .note")
    true, said = (cell.get_attribute("data-cell") or "").split()
    assert f"{true} predicted as {said}" in visit.text("#cell .note")
    assert all(
        text.startswith(f"{said} ") and text.endswith(f"true: {true}")
        for text in visit.page.locator("#cell figcaption").all_text_contents()
    )
    visit.page.check("#shares")
    row = visit.page.locator("#confusion tbody tr").first
    shares = [int(text) for text in row.locator("button").all_text_contents()]
    assert sum(shares) == pytest.approx(100, abs=3)


def test_tables_sort_by_a_column_and_back(visit):
    head = visit.page.locator("#classes thead button").nth(3)

    def column() -> list[float]:
        cells = visit.page.locator("#classes tbody tr td:nth-child(4)").all_text_contents()
        return [float(cell.strip(" %>\u2013") or 0) for cell in cells]

    head.click()
    assert column() == sorted(column(), reverse=True)
    assert visit.page.locator("#classes th").nth(3).get_attribute("aria-sort") == "descending"
    head.click()
    assert column() == sorted(column())
    visit.page.locator("#classes thead button").first.click()
    visit.page.locator("#classes thead button").first.click()
    names = visit.page.locator("#classes tbody th").all_text_contents()
    assert names == sorted(names)


def shots(visit: Visit, selector: str, **chosen: str) -> list[str]:
    """Return the contents of canvases after choosing options by the names of their lists."""
    for name, value in chosen.items():
        visit.page.select_option(f"[name={name}]", value)
    script = "all => all.map(canvas => canvas.toDataURL())"
    found: list[str] = visit.page.eval_on_selector_all(f"#cams {selector} canvas", script)
    return found


def test_maps_follow_class_stage_method_and_opacity(visit):
    contents = [*shots(visit, ".gallery")[:1]]
    for name in ("method", "stage", "class"):
        option = visit.page.locator(f"[name={name}] option").last
        value = option.get_attribute("value") or option.text_content() or ""
        contents += shots(visit, ".gallery", **{name: value})[:1]
    for opacity in ("50", "0"):
        visit.page.fill("[name=opacity]", opacity)
        contents += shots(visit, ".gallery")[:1]
    assert len(set(contents)) >= 4
    plain = shots(visit, ".gallery", method="Grad-CAM")
    assert shots(visit, ".gallery", method="Layer-CAM") == plain  # at opacity 0 no map is visible


@pytest.mark.parametrize("method", ["Grad-CAM", "Eigen-CAM"])
def test_a_class_that_is_chosen_has_the_map_of_that_class(visit, run, method):
    found = ViewInputs(run, device="cpu").predictions
    items = explorer._images_to_explain(found)
    predicted, targets = found.predicted[items].tolist(), found.targets[items].tolist()
    said = shots(visit, ".gallery", method=method, **{"class": "predicted"})
    true = shots(visit, ".gallery", **{"class": "target"})
    by_class = [shots(visit, ".gallery", **{"class": str(k)}) for k in range(10)]
    assert [by_class[k][n] for n, k in enumerate(predicted)] == said
    assert [by_class[k][n] for n, k in enumerate(targets)] == true
    differ = [len({maps[n] for maps in by_class}) for n in range(len(items))]
    assert set(differ) == {1} if method == "Eigen-CAM" else min(differ) > 3
    pairs = shots(visit, ".mistakes")
    wrong = [n for n in range(len(items)) if predicted[n] != targets[n]]
    assert len(wrong) == 6
    assert pairs == [maps[n] for n in wrong for maps in (said, true)]


def test_maps_are_packed_in_sixteenths_of_their_maximum():
    torch.manual_seed(0)
    maps = torch.randn(3, 3, 5)
    maps[1] = -1.0
    packed = np.frombuffer(base64.b64decode(explorer._pack_sixteenths(maps)), "u1").reshape(3, 8)
    values = np.stack([packed & 15, packed >> 4], -1).reshape(3, 16)[:, :15]
    assert not values[1].any()
    for n in (0, 2):
        share = maps[n].relu().flatten() / maps[n].max()
        np.testing.assert_allclose(values[n] / 15, share, atol=0.5 / 15 + 1e-6)


def test_a_map_lies_on_its_canvas_at_its_receptive_fields():
    assert explorer._box((10, 8), (32, 32), 2, 4.0) == [32, 24, 64, 80]
    assert explorer._box((10, 8), (32, 30), 0, 4.0) == [0, 0, 120, 128]


def test_of_many_classes_those_that_occur_have_maps():
    assert explorer._offered_classes(10, torch.tensor([3]), torch.tensor([4])) == list(range(10))
    found = explorer._offered_classes(11, torch.tensor([3, 9, 3]), torch.tensor([3, 10, 4]))
    assert found == [3, 4, 9, 10]


def point(visit: Visit) -> tuple[float, float]:
    """Move the pointer over the embedding until it hits a point; return its position."""
    visit.page.locator("#embedding .stage").scroll_into_view_if_needed()
    box = visit.page.locator("canvas.map").nth(1).bounding_box()
    assert box is not None
    for y in np.linspace(0.2, 0.8, 13):
        for x in np.linspace(0.1, 0.9, 25):
            where = (box["x"] + x * box["width"], box["y"] + y * box["height"])
            visit.page.mouse.move(*where)
            if visit.page.is_visible(".tip"):
                return where
    raise AssertionError("no point")


def test_the_embedding_shows_points_neighbours_and_lassos(visit):
    visit.page.select_option("[name=embedding]", "t-SNE")
    assert "trustworthiness 0." in visit.text(".measured")
    x, y = point(visit)
    said = visit.text(".tip span")
    assert said.startswith("image ")
    visit.page.mouse.click(x, y)
    assert visit.text("#picked .note").endswith(
        "and its nearest neighbours in the features: 6 images"
    )
    visit.page.check("[name=lasso]")
    box = visit.page.locator("canvas.map").nth(1).bounding_box()
    corners = [(2, 2), (box["width"] - 2, 2), (box["width"] - 2, box["height"] - 2)]
    corners.append((2, box["height"] - 2))
    visit.page.mouse.move(box["x"] + 2, box["y"] + 2)
    visit.page.mouse.down()
    for right, down in corners:
        visit.page.mouse.move(box["x"] + right, box["y"] + down)
    visit.page.mouse.up()
    assert visit.text("#picked .note") == "Inside the lasso: 359 images, 120 of them shown"


def test_the_embedding_zooms_filters_and_changes_colours(visit):
    layer = "document.querySelectorAll('canvas.map')[0].toDataURL()"
    seen = [visit.page.evaluate(layer)]
    visit.page.click("[name=closer]")
    visit.page.click("[name=closer]")
    seen.append(visit.page.evaluate(layer))
    visit.page.click("[name=whole]")
    assert visit.page.evaluate(layer) == seen[0]
    for colour, groups in (("prediction", 10), ("correctness", 2), ("confidence", 5)):
        visit.page.select_option("[name=colour]", colour)
        assert visit.page.locator(".legend button").count() == groups
        seen.append(visit.page.evaluate(layer))
    visit.page.select_option("[name=colour]", "class")  # every class has images
    seen.append(visit.page.evaluate(layer))
    visit.page.locator(".legend button").last.click()
    seen.append(visit.page.evaluate(layer))
    assert seen[-1] != seen[-2]
    visit.page.select_option("[name=embedding]", "t-SNE")
    visit.page.select_option("[name=embedding]", "PCA")
    assert visit.page.locator(".legend button").last.get_attribute("aria-pressed") == "false"
    assert visit.page.evaluate(layer) == seen[-1]
    for button in visit.page.locator(".legend button").all()[:-1]:
        button.click()
    empty = (
        "(() => { const map = document.querySelectorAll('canvas.map')[0];"
        " const blank = document.createElement('canvas');"
        " [blank.width, blank.height] = [map.width, map.height]; return blank.toDataURL(); })()"
    )
    assert visit.page.evaluate(layer) == visit.page.evaluate(empty)
    for button in visit.page.locator(".legend button").all():
        button.click()
    assert visit.page.evaluate(layer) == seen[-2]
    visit.page.locator("canvas.map").nth(1).focus()
    visit.page.keyboard.press("+")
    visit.page.keyboard.press("ArrowLeft")
    seen.append(visit.page.evaluate(layer))
    assert len(set(seen)) >= 6


def luminance(colour: str) -> float:
    """Return the relative luminance of "rgb(0, 114, 178)", as WCAG 2 defines it."""
    shares = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_classes_have_the_figures_colours_and_show_in_the_dark(visit):
    # One call in the page: handles taken from outside may be of swatches that are redrawn.
    shown = (
        "() => [...document.querySelectorAll('.legend i')]"
        ".map(swatch => getComputedStyle(swatch).backgroundColor)"
    )
    light = visit.page.evaluate(shown)
    assert light == [f"rgb{tuple(bytes.fromhex(colour[1:]))}" for colour in COLOURS[:10]]
    visit.page.emulate_media(color_scheme="dark")
    visit.page.wait_for_function(f"before => String(({shown})()) != before", arg=",".join(light))
    dark = visit.page.evaluate(shown)
    assert len(set(dark)) == 10
    card = visit.page.eval_on_selector(
        "#embedding", "section => getComputedStyle(section).backgroundColor"
    )
    assert all(luminance(colour) + 0.05 > 3 * (luminance(card) + 0.05) for colour in dark)


def natural(count: int, side: int = 32) -> torch.Tensor:
    """Return noise that compresses like images of CIFAR-10: uint8, N 3 side side."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequency[0, 0] = 1 / side
    grey = np.fft.fft2(rng.standard_normal((count, 1, side, side))) / frequency**1.65
    colour = np.fft.fft2(rng.standard_normal((count, 3, side, side))) / frequency**2
    waves = [np.fft.ifft2(noise).real for noise in (grey, colour)]
    grey, colour = (x / x.std((1, 2, 3), keepdims=True) for x in waves)
    return torch.from_numpy((127 + 50 * grey + 10 * colour).clip(0, 255).astype(np.uint8))


def large(
    count: int,
    run: Run,
    monkeypatch: Any,
    tmp_path: Path,
    classes: Any = (),
    name: str = "run",
) -> Path:
    """Write a report of `count` made-up images, with an embedding of all of them."""
    names = tuple(classes) or tuple(f"class {k}" for k in range(10))
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(count) % len(names)
    logits = torch.randn(count, len(names), generator=generator)
    logits += 3 * torch.nn.functional.one_hot(targets, len(names))
    said = Predictions(natural(count), logits, targets, names)
    cams = explorer._cams(ViewInputs(run, device="cpu"))
    features = torch.randn(count, 16, generator=generator) + targets[:, None].float()
    embedded = Embedding(
        features=features,
        indices=torch.arange(count),
        labels=targets,
        description="Made up.",
        folder=tmp_path / "embeddings",
        key=str(count),
    )
    monkeypatch.setattr(inputs, "predictions", lambda *args, **options: said)
    monkeypatch.setattr(explorer, "_cams", lambda _: cams)
    monkeypatch.setattr(ViewInputs, "embedded", embedded)
    copy = shutil.copytree(run.path, tmp_path / name, ignore=shutil.ignore_patterns("state"))
    return write_report(copy, device="cpu")


HOVERS = 200
MOST_ELEMENTS = 3_000  # mostly of the figures in SVG: not one more per image
COUNT_HOVER_DRAWS = """(() => {
    const drawn = {}, context = CanvasRenderingContext2D.prototype;
    for (const name of ["clearRect", "fillRect", "stroke", "strokeRect"]) {
        const original = context[name];
        drawn[name] = 0;
        context[name] = function (...args) { drawn[name]++; return original.apply(this, args); };
    }
    const canvas = document.querySelectorAll("canvas.map")[1];
    const box = canvas.getBoundingClientRect();
    for (let k = 0; k < HOVERS; k++) {
        const clientX = box.left + box.width * (0.1 + 0.8 * (k * 0.618 % 1));
        const clientY = box.top + box.height * (0.1 + 0.8 * (k * 0.382 % 1));
        canvas.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY }));
    }
    return drawn;
})()""".replace("HOVERS", str(HOVERS))


@pytest.mark.parametrize(
    ("count", "most"),
    [(2_000, 900_000), pytest.param(10_000, 2_800_000, marks=pytest.mark.slow)],
)
def test_large_reports_are_small_and_cheap_to_open_and_hover(
    count, most, browser, run, draw_only, monkeypatch, tmp_path
):
    # Those that are computed from all images.
    draw_only("predictions", "confused", "class_scores", "rankings", "calibration", "coverage")
    path = large(count, run, monkeypatch, tmp_path)
    assert path.stat().st_size <= most
    opened = Visit(browser, path)
    # Opening is quick because the page builds no element per image: points are painted on canvas.
    assert opened.page.evaluate("document.querySelectorAll('*').length") < MOST_ELEMENTS
    opened.page.locator("#embedding .stage").scroll_into_view_if_needed()
    opened.page.wait_for_timeout(300)
    drawn = opened.page.evaluate(COUNT_HOVER_DRAWS)
    # Hovering is quick because it paints neighbours on a layer of their own, never the points.
    assert drawn["clearRect"] == HOVERS
    assert 0 < drawn["strokeRect"] <= HOVERS
    assert drawn["stroke"] <= 5 * drawn["strokeRect"]
    assert drawn["fillRect"] == 0
    assert opened.complaints == []
    opened.page.close()


FIRE = "window.fired = 1"
PAYLOADS = [
    made.replace("FIRE", FIRE)
    for made in (
        "<script>FIRE</script>",
        "</script><script>FIRE</script>",
        '"><script>FIRE</script>',
        "'><script>FIRE</script>",
        "<img src=x onerror='FIRE'>",
        '"><img src=x onerror="FIRE">',
        "' onmouseover='FIRE",
        '" onfocus="FIRE" autofocus="',
        "<svg onload='FIRE'>",
        "<svg><script>FIRE</script></svg>",
        "--><svg onload=FIRE>",
        "]]><script>FIRE</script>",
        "<!--<script>FIRE//-->",
        "<iframe src='javascript:FIRE'>",
        "<iframe srcdoc='<script>parent.FIRE</script>'>",
        "<a href='javascript:FIRE'>x</a>",
        "javascript:FIRE",
        "<math><mtext><script>FIRE</script>",
        "<details open ontoggle='FIRE'>",
        "<body onload='FIRE'>",
        "<input autofocus onfocus='FIRE'>",
        "<video><source onerror='FIRE'>",
        "<audio src=x onerror='FIRE'>",
        "<object data='javascript:FIRE'>",
        "<embed src='javascript:FIRE'>",
        "<style>*{background:url(javascript:FIRE)}</style>",
        "<link rel=stylesheet href='javascript:FIRE'>",
        "<meta http-equiv=refresh content='0;javascript:FIRE'>",
        "<base href='javascript:FIRE//'>",
        "<form action='javascript:FIRE'><button>",
        "{{ 7 * 7 }}<script>FIRE</script>",
        "{% raw %}<script>FIRE</script>",
        "${FIRE}",
        "`;FIRE;`",
        "\\u003cscript\\u003eFIRE",
        "&lt;script&gt;FIRE&lt;/script&gt;",
        "&#60;script&#62;FIRE",
        "%3Cscript%3EFIRE",
        "\u2028;FIRE//",
        "\u2029;FIRE//",
        "\ufeff<script>FIRE</script>",
        "\u202e<script>FIRE</script>",
        "<\x00script>FIRE</script>",
        "<scr<script>ipt>FIRE</script>",
        "<ScRiPt>FIRE</sCrIpT>",
        "<script\x20type='text/javascript'>FIRE</script>",
        "<script/src='data:,FIRE'></script>",
        "<svg/onload=FIRE>",
        "<svg><animate onbegin='FIRE' attributeName=x>",
        "<svg><set onbegin='FIRE' attributeName=x>",
        "<svg><use href='data:image/svg+xml,<svg onload=FIRE>'>",
        "<svg><foreignObject><script>FIRE</script>",
        "<xmp><script>FIRE</script></xmp>",
        "<noscript><p title='</noscript><img src=x onerror=FIRE>'>",
        "<textarea><script>FIRE</script>",
        "<title><script>FIRE</script>",
        "<table background='javascript:FIRE'>",
        "<div style='width:expression(FIRE)'>",
        "<div onpointerenter='FIRE' style='position:fixed;inset:0'>",
        "<marquee onstart='FIRE'>",
        "<select autofocus onfocus='FIRE'>",
        "<keygen autofocus onfocus='FIRE'>",
        "';FIRE;//",
        '";FIRE;//',
    )
]


@pytest.mark.usefixtures("draw_views_with_names")
@pytest.mark.parametrize("half", [0, 1])
def test_names_that_are_scripts_stay_names(half, browser, run, monkeypatch, tmp_path):
    assert len(set(PAYLOADS)) == 64
    names = PAYLOADS[32 * half : 32 * half + 32]
    as_folder = ['"><img src=x onerror="FIRE">', "<svg onload='FIRE'>"][half]
    path = large(320, run, monkeypatch, tmp_path, names, as_folder.replace("FIRE", FIRE))
    opened = Visit(browser, path)
    page = opened.page
    names = page.locator("#classes tbody th").all_text_contents()
    assert len(names) == 32
    heads = page.locator("#confusion tbody th")
    assert sorted(heads.evaluate_all("all => all.map(head => head.title)")) == sorted(names)
    assert (
        max(map(len, heads.all_text_contents())) <= 18
    )  # including marks around right-to-left text
    for button in page.locator("#confusion td:not(.right) button").all()[:12]:
        button.click()
    for colour in ("class", "prediction"):
        page.select_option("[name=colour]", colour)
        page.locator(".legend button").first.click()
    point(opened)
    page.locator("#classes thead button").first.click()
    page.wait_for_timeout(200)
    assert page.evaluate("window.fired") is None
    assert as_folder.replace("FIRE", FIRE) == page.text_content(".kicker")
    assert opened.complaints == []
    page.close()
