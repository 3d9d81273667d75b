"""Figures, reports and pages of any source of a trained network, also without a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from starlette.testclient import TestClient
from torch.nn import functional as F

from cnn_core import create_model, export
from cnn_core.data import Preprocessing
from cnn_core.data.dataset import Dataset
from cnn_core.data.images import read_image
from cnn_core.data.splits import Files, Split
from cnn_core.errors import UnknownNameError, UsageError
from cnn_core.training import Predictions, Run, evaluate, train
from cnn_core.weights.native import Weights, write_weights
from cnn_viz import draw, plugin, style, write_report
from cnn_viz.commands.cam_files import _class_index, explain_files
from cnn_viz.drawing.render import draw_or_report, views_for
from cnn_viz.page import explorer
from cnn_viz.page import server as serve
from cnn_viz.results.inputs import ViewInputs
from cnn_viz.results.metrics import confusion_counts, confusion_table, top_k_accuracy
from cnn_viz.views.class_scores import class_scores
from cnn_viz.views.confusion import confusion
from cnn_viz.views.embedding import embedding

CROP = Preprocessing(
    size=(32, 32),
    image_size=(0, 0),
    fit="crop",
    resize=40,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)
NEED_A_RUN = ["curves"]
NEED_LAYERS = [
    spec.name
    for spec in plugin.VIEWS
    if "classification" in spec.tasks
    and ({"model", "embedded"} & set(spec.needs) or spec.name == "architecture")
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of photographs, 60 x 40 and 40 x 60, in three classes."""
    root = tmp_path_factory.mktemp("data") / "photos"
    china = Image.fromarray(load_sample_image("china.jpg"))
    for split, count in (("train", 1), ("test", 6)):
        for number, name in enumerate(("lake", "roof", "sky")):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                left, top = 30 * k, 100 * number
                size = (60, 40) if k % 2 else (40, 60)
                part = china.crop((left, top, left + 4 * size[0], top + 4 * size[1]))
                part.resize(size).save(root / split / name / f"{k}.png")
    return root


@pytest.fixture(scope="module")
def cropping(tmp_path_factory) -> Path:
    """A weights file of resnet20_cifar whose preprocessing cuts out the centre."""
    torch.manual_seed(0)
    model = create_model("resnet20_cifar", num_classes=3)
    path = tmp_path_factory.mktemp("weights") / "cropping.safetensors"
    write_weights(
        path,
        Weights(
            tensors=model.state_dict(),
            model="resnet20_cifar",
            num_classes=3,
            in_channels=3,
            options={},
            classes=("lake", "roof", "sky"),
            preprocessing=CROP,
            epoch=1,
        ),
    )
    return path


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Path:
    """A state dict of lenet5_modern with random weights, as torch.save writes it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("foreign") / "theirs.pth"
    torch.save(create_model("lenet5_modern", num_classes=10).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def exported(digits_run: Run) -> Path:
    """An .onnx file in the folder of its run."""
    pytest.importorskip("onnxruntime")
    return export(digits_run, format="onnx").path


def many_classes(count: int, classes: int, present: int) -> Predictions:
    """Outputs for `count` images of the first classes, predicted as any of them all."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(count) % present
    logits = torch.randn(count, classes, generator=generator)
    logits += 3 * F.one_hot(targets, classes)
    names = tuple(f"class number {k}" for k in range(classes))
    return Predictions(torch.zeros(count, 3, 8, 8, dtype=torch.uint8), logits, targets, names)


# Sources


def test_a_foreign_file_has_every_view_but_the_curves(foreign, caplog):
    inputs = ViewInputs(foreign, model="lenet5_modern:digits", data="digits", device="cpu")
    skipped = {}
    for name, entry in views_for("classification"):
        if name in ("faithfulness", "cam_methods", "embedding"):  # slow, and not special here
            continue
        drawing = draw_or_report(name, entry, inputs)
        assert not drawing.error
        if drawing.skipped:
            skipped[name] = drawing.skipped
    assert list(skipped) == NEED_A_RUN
    assert "no log of the training" in skipped["curves"]
    lines = [record.message for record in caplog.records if "skipped view" in record.message]
    assert len(lines) == 1


def test_a_view_asks_for_the_part_that_is_missing(foreign):
    source = ViewInputs(foreign, model="lenet5_modern:digits", device="cpu")
    with pytest.raises(UsageError, match="weights without a run, so there is no log") as caught:
        draw("curves", source)
    assert "give the directory of a run" in caught.value.hint
    with pytest.raises(UsageError, match="weights without a run") as caught:
        draw("confusion", source)
    assert "--data DATASET" in caught.value.hint
    # The network alone needs no images.
    assert draw("architecture", source).get_suptitle() == "lenet5_modern, stage by stage"
    filters = draw("filters", source)
    assert filters.get_suptitle() == "Filters of c1: lenet5_modern"
    assert "the initial kernels are not known" in filters.get_supxlabel()


def test_an_exported_file_has_views_of_its_predictions(exported):
    inputs = ViewInputs(exported, data="digits", device="cpu")
    drawings = [draw_or_report(*pair, inputs) for pair in views_for("classification")]
    assert [d.name for d in drawings if d.error] == []
    costly = {spec.name for spec in plugin.VIEWS if spec.costly}
    expected = [*NEED_A_RUN, *(name for name in NEED_LAYERS if name not in costly)]
    assert [d.name for d in drawings if d.skipped] == expected
    for drawing in drawings:
        assert drawing.name == "curves" or not drawing.skipped or "no layers" in drawing.skipped
    assert {"confusion", "calibration", "predictions"} <= {d.name for d in drawings if d.png}


def test_exported_predictions_are_those_of_the_run(exported, digits_run):
    theirs = ViewInputs(exported, data="digits", device="cpu").predictions
    own = ViewInputs(digits_run, device="cpu").predictions
    torch.testing.assert_close(theirs.logits, own.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(theirs.images, own.images)


def test_weights_without_a_run_have_no_validation_images_of_their_own(foreign, digits_run):
    options = {"model": "lenet5_modern:digits", "data": "digits", "device": "cpu"}
    assert ViewInputs(foreign, **options).validation is None
    assert ViewInputs(digits_run, device="cpu").validation is not None


# Where outputs go


def test_outputs_go_where_they_replace_nothing(digits_run, foreign, exported, tmp_path):
    run, data = digits_run.path, "imagefolder:a/b c"
    assert ViewInputs(digits_run).output == run
    assert ViewInputs(digits_run, data=data).output == run / "on-imagefolder-a-b-c"
    assert ViewInputs(foreign, model="lenet5_modern").output == foreign.parent / "theirs"
    # Not the run's own report.
    assert ViewInputs(exported).output == run / exported.stem
    assert ViewInputs("lenet5:digits").output == Path("lenet5-digits")
    assert ViewInputs("lenet5:digits", data="digits").output == Path("lenet5-digits/on-digits")
    bare = tmp_path / "weights"
    bare.write_bytes(foreign.read_bytes())
    assert ViewInputs(bare, model="lenet5_modern").output == tmp_path / "weights-results"


def test_a_folder_named_like_the_model_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lenet5").mkdir()
    inputs = ViewInputs("lenet5", device="cpu")
    assert inputs.output == Path("lenet5-mnist")
    with pytest.raises(UsageError, match="weights without a run"):
        _ = inputs.run


# Cropped images


def crop_of(path: Path) -> torch.Tensor:
    """The centre of an image file as the network gets it, by torchvision's transforms."""
    from torchvision.transforms import v2

    with Image.open(path) as image:
        chain = v2.Compose([v2.Resize(40), v2.CenterCrop(32)])
        return torch.from_numpy(np.array(chain(image.convert("RGB")))).permute(2, 0, 1)


def test_predictions_and_inputs_of_files_are_cropped_once(cropping, photos):
    inputs = ViewInputs(cropping, data=f"imagefolder:{photos}", device="cpu")
    split, found = inputs.dataset.split("test"), inputs.predictions
    assert isinstance(split, Files)
    expected = torch.stack([crop_of(path) for path in split.images])
    assert torch.equal(found.images, expected)
    chosen = [7, 0, 12]
    pixels = CROP.denormalise(inputs.inputs(chosen)) * 255
    torch.testing.assert_close(pixels, expected[chosen].float(), atol=1e-3, rtol=0)
    with torch.no_grad():
        logits = inputs.model(inputs.inputs(chosen))
    torch.testing.assert_close(logits, found.logits[chosen], atol=1e-4, rtol=1e-4)


def test_images_in_memory_are_shown_as_far_as_the_network_sees_them(cropping, photos):
    inputs = ViewInputs(cropping, device="cpu")
    files = [read_image(path, 3) for path in sorted(photos.rglob("test/*/1.png"))]
    split = Split(torch.stack(files), torch.arange(3))
    inputs.dataset = Dataset(plugin_task(), {"test": split})
    found = inputs.predictions
    # 32 of 40 pixels of the shorter side, at the images' own resolution.
    assert found.images.shape == (3, 3, 32, 32)
    assert torch.equal(found.images, split.images[..., 4:36, 14:46])
    with torch.no_grad():
        logits = inputs.model(CROP(split.images))
    torch.testing.assert_close(found.logits, logits, atol=1e-4, rtol=1e-4)


def plugin_task() -> object:
    return type("Spec", (), {"task": "classification"})()


def test_the_maps_of_the_page_explain_the_cropped_images(cropping, photos, monkeypatch):
    inputs = ViewInputs(cropping, data=f"imagefolder:{photos}", device="cpu")
    sheets = []
    make = explorer._sprite_sheet
    monkeypatch.setattr(
        explorer,
        "_sprite_sheet",
        lambda images, *a, **k: sheets.append(images) or make(images, *a, **k),
    )
    cams = explorer._cams(inputs)
    chosen = [item["index"] for item in cams["items"]]
    difference = sheets[0].int() - inputs.predictions.images[chosen].int()
    assert difference.abs().max() <= 1


def test_cam_draws_the_crop_that_the_network_sees(cropping, photos, tmp_path):
    image = photos / "test" / "lake" / "1.png"
    (path,) = explain_files(cropping, (image,), tmp_path, device="cpu")
    with Image.open(path) as figure:
        pixels = np.asarray(figure.convert("RGB")).astype(int)
    expected = crop_of(image).permute(1, 2, 0).numpy().astype(int)
    left = pixels[:, : pixels.shape[1] // 2]
    # Each colour of the crop's corners is somewhere in the left panel.
    for corner in (expected[0, 0], expected[0, -1], expected[-1, 0], expected[-1, -1]):
        assert (abs(left - corner).max(-1) <= 2).any()


# The command


def test_the_commands_take_every_source(cnnzoo, foreign, exported, photos, tmp_path):
    image = str(photos / "test" / "lake" / "1.png")
    options = ("--model", "lenet5_modern:digits", "--device", "cpu")
    done = cnnzoo("cam", str(foreign), image, *options, "--out", "maps", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.split() == [str(Path("maps") / "1.grad-cam.png")]
    done = cnnzoo("cam", "lenet5:digits", image, "--class", "3", cwd=tmp_path)
    assert done.out.split() == [str(Path("lenet5-digits/cam/1.grad-cam.png"))], done.err
    done = cnnzoo("cam", str(exported), image, cwd=tmp_path)
    assert done.code == 2
    assert "an exported file, so there are no layers to look into" in done.err
    done = cnnzoo("viz", "coverage", str(exported), "--data", "digits", cwd=tmp_path)
    assert done.code == 0, done.err
    assert all(Path(line).is_file() for line in done.out.split())
    done = cnnzoo("explore", str(exported), "--port", "0", cwd=tmp_path)
    assert done.code == 2
    assert "no layers" in done.err


def test_a_class_is_given_by_name_or_number(cropping, photos, tmp_path):
    image = (photos / "test" / "lake" / "1.png",)
    by_name, by_number = (
        next(explain_files(cropping, image, tmp_path / text, class_name=text, device="cpu"))
        for text in ("sky", "2")
    )
    assert by_name.read_bytes() == by_number.read_bytes()
    for unknown in ("3", "skye", "-1"):
        with pytest.raises(UnknownNameError, match="unknown class"):
            next(explain_files(cropping, image, tmp_path, class_name=unknown, device="cpu"))


def test_a_name_of_two_classes_asks_for_the_number():
    with pytest.raises(UsageError, match="classes 1 and 2 are both called 'crane'") as caught:
        _class_index(("jay", "crane", "crane"), "crane")
    assert caught.value.hint == "give the number: --class 1"


# The report


@pytest.fixture(scope="module")
def quick() -> Callable[[pytest.MonkeyPatch], None]:
    """Draw two views only."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        import cnn_viz.page.report

        few = [pair for pair in views_for("classification") if pair[0] in ("curves", "coverage")]
        monkeypatch.setattr(cnn_viz.page.report, "views_for", lambda task: few)

    return patch


def test_the_report_of_published_weights_says_where_they_come_from(
    quick, tmp_path, monkeypatch, caplog
):
    quick(monkeypatch)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = write_report("lenet5:digits", out=tmp_path, device="cpu")
    assert "skipped view" not in caplog.text
    assert path == tmp_path / "report.html"
    assert list((tmp_path / "embeddings").iterdir())
    assert not list((tmp_path / "here").iterdir())  # nothing beside the given folder
    text = path.read_text("utf-8")
    content = json.loads(
        write_report("lenet5:digits", out=tmp_path, form="json", device="cpu").read_text()
    )
    origin = content["weights"]
    assert content["run"] is None
    assert content["training"] is None
    (claim,) = [claim for claim in origin["claims"] if claim["metric"] == "top1"]
    assert claim["comparable"]
    assert claim["measured"] == content["test"]["top1"]
    assert claim["measured"] == pytest.approx(claim["claimed"], abs=1e-3)
    for part in (origin["sha256"], origin["licence"], "lenet5:digits", "no log of the training"):
        assert part in text
    for section in ("epochs", "recipe", "environment", "reproduce", "curves"):
        assert f'<section id="{section}"' not in text
    assert '<section id="weights"' in text
    markdown = write_report("lenet5:digits", out=tmp_path, form="md", device="cpu").read_text()
    assert "## Claimed and measured" in markdown
    assert "## Recipe" not in markdown


def test_a_report_on_other_data_keeps_the_training_but_not_its_test(
    quick, digits_run, monkeypatch, tmp_path
):
    quick(monkeypatch)
    china = Image.fromarray(load_sample_image("china.jpg"))
    for split, count in (("train", 1), ("test", 2)):
        for name in "0123":
            (tmp_path / "other" / split / name).mkdir(parents=True)
            for k in range(count):
                part = china.crop((8 * k, 8 * int(name), 8 * k + 8, 8 * int(name) + 8))
                part.save(tmp_path / "other" / split / name / f"{k}.png")
    data = f"imagefolder:{tmp_path / 'other'}"
    path = write_report(digits_run, data=data, form="json", device="cpu")
    assert path.parent.parent == digits_run.path
    content = json.loads(path.read_text())
    assert content["data"] == data
    assert content["training"]["data"] == "digits"
    assert not [key for key in content["test"] if key.startswith("test/")]
    assert content["test"]["n"] == 8
    page = write_report(digits_run, data=data, device="cpu").read_text("utf-8")
    assert "<dt>Trained on</dt><dd>digits</dd>" in page


@pytest.fixture
def others(tmp_path):
    """A folder of images of four of the digits' classes, five of each, without splits."""
    china = Image.fromarray(load_sample_image("china.jpg"))
    for name in "0123":
        (tmp_path / "other" / name).mkdir(parents=True)
        for k in range(5):
            part = china.crop((8 * k, 8 * int(name), 8 * k + 8, 8 * int(name) + 8))
            part.save(tmp_path / "other" / name / f"{k}.png")
    return tmp_path / "other"


def test_views_on_other_images_without_splits_take_all_as_evaluate_does(
    quick, digits_run, monkeypatch, others, caplog
):
    quick(monkeypatch)
    data = f"imagefolder:{others}"
    inputs = ViewInputs(digits_run, data=data, device="cpu")
    right = inputs.predictions.predicted == inputs.predictions.targets
    assert len(right) == len(inputs.dataset.split("test")) == 20
    line = f"{data}: all 20 images, since there are no split folders and none was trained on"
    said = [record.getMessage() for record in caplog.records]
    assert [one for one in said if "split" in one] == [f"split 'test': {line}"]
    measured = evaluate(digits_run, data=data, device="cpu")
    assert float(right.double().mean()) == pytest.approx(measured["top1"])
    assert len(inputs.batch.images) == 20
    assert inputs.validation is None
    for form in ("json", "html", "md"):
        page = write_report(digits_run, data=data, form=form, device="cpu").read_text("utf-8")
        assert "all 20 images, since there are no split folders" in page


def test_views_of_the_own_images_and_of_folders_of_splits_take_the_test_split(
    digits_run, others, tmp_path, caplog
):
    data, settings = f"imagefolder:{others}", {"epochs": 1, "batch_size": 8, "progress": False}
    run = train("lenet5_modern", data, out=tmp_path / "run", device="cpu", **settings)
    for given in (None, data):  # the fifth that it left out
        own = ViewInputs(run, data=given, device="cpu")
        assert (len(own.predictions.targets), own.measured) == (4, "")
    for split, last in (("train", 2), ("test", 4)):
        for path in others.glob("*/*.png"):
            copy = tmp_path / "divided" / split / path.relative_to(others)
            if last - 2 <= int(path.stem) <= last:
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
    caplog.clear()
    inputs = ViewInputs(digits_run, data=f"imagefolder:{tmp_path / 'divided'}", device="cpu")
    assert (len(inputs.predictions.targets), inputs.measured) == (12, "")
    assert not [record for record in caplog.records if "split" in record.getMessage()]


# Very many classes


def test_top_k_accuracy_is_the_share_of_images_with_their_class_among_the_first():
    outputs = many_classes(400, 50, 50)
    for k in (1, 5, 60):
        ranks = (outputs.logits > outputs.logits.gather(1, outputs.targets[:, None])).sum(1)
        assert top_k_accuracy(outputs, k) == pytest.approx(float((ranks < k).double().mean()))


def test_a_part_of_a_large_confusion_matrix_counts_every_image_of_its_rows():
    outputs = many_classes(3000, 300, 100)
    counts = confusion_counts(outputs)
    table = confusion_table(counts, 150)
    assert len(table.rows) == 40
    assert table.columns[:40] == table.rows
    assert table.others
    np.testing.assert_array_equal(table.counts.sum(1), counts[table.rows].sum(1))
    np.testing.assert_array_equal(table.counts.diagonal(), counts.diagonal()[table.rows])
    mistakes = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
    left_out = [k for k in range(100) if k not in table.rows]
    assert mistakes[table.rows].min() >= mistakes[left_out].max()
    assert table.selection == "the 40 of 100 classes with the most mistakes"


def test_classes_without_images_are_columns_only(digits_run):
    outputs = many_classes(600, 1000, 10)
    table = confusion_table(confusion_counts(outputs), 150)
    assert sorted(table.rows) == list(range(10))
    assert len(table.columns) == 40
    with style.applied():
        figure = confusion(digits_run, outputs)
        figure.draw_without_rendering()
        scores = class_scores(digits_run, outputs)
    assert figure.get_size_inches().max() < 16
    assert "the 10 of 1,000 classes with images" in figure.get_supxlabel()
    assert "(not the 990 without images)" in scores.get_supxlabel()
    assert len(scores.axes[0].get_yticklabels()) == 10


def test_the_page_of_a_thousand_classes_is_small(cropping, photos, monkeypatch, tmp_path, quick):
    quick(monkeypatch)
    outputs = many_classes(3000, 1000, 1000)
    inputs = ViewInputs(cropping, data=f"imagefolder:{photos}", device="cpu")
    inputs.predictions = outputs
    monkeypatch.setattr(explorer, "_cams", lambda _: None)
    monkeypatch.setattr(explorer, "_embedding", lambda _: None)
    page = write_report(inputs, out=tmp_path)
    text = page.read_text("utf-8")
    assert page.stat().st_size < 1_500_000
    assert text.count('<th scope="row">class number') == 200
    assert "The 200 of 1,000 classes with the lowest F1 are shown" in text
    assert text.count('<th scope="col"><span') == 41
    assert "other classes" in text


def test_a_small_probability_is_not_rounded_to_nothing():
    shown = [style.confidence(p) for p in (0.0004, 0.0006, 1e-9, 0.0)]
    assert shown == ["<0.1 %", "0.1 %", "<0.1 %", "0.0 %"]
    assert style.confidence(0.004, 0) == "<1 %"


def test_maps_of_very_many_classes_are_for_the_predicted_and_the_true_one():
    assert explorer._offered_classes(101, torch.tensor([3]), torch.tensor([4])) == []
    assert explorer._offered_classes(100, torch.tensor([3]), torch.tensor([4])) == [3, 4]
    assert explorer._lists([], [7], [9]) == [{"predicted": 0, "target": 1}]
    assert explorer._lists([3, 9], [9], [3]) == [{"predicted": 1, "target": 0}]


def test_classes_with_images_have_colours_of_their_own_in_an_embedding(digits_run):
    inputs = ViewInputs(digits_run, device="cpu")
    names = tuple(f"class {k}" for k in range(1000))
    weights = type("W", (), {"classes": names})()
    with style.applied():
        figure = embedding(inputs, weights, inputs.embedded)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(names[:10])
    assert "each colour is shared" not in figure.get_supxlabel()


# The local page


def test_the_page_for_own_images_works_without_a_dataset(cropping, photos):
    inputs = ViewInputs(cropping, device="cpu")
    client = TestClient(serve.application(inputs, 1), base_url="http://127.0.0.1:1")
    home = client.get("/").text
    assert "cropping.safetensors" in home
    assert "Trained on unknown data; 3 classes." in home
    assert 'href="report"' not in home
    assert client.get("/report").status_code == 404
    content = (photos / "test" / "lake" / "1.png").read_bytes()
    query = f"method=grad-cam&stage={inputs.spec.cam_stage}&class=2"
    answer = client.post(f"/explain?{query}", content=content, headers={"X-Cnnzoo": "1"}).json()
    assert answer["explained"] == "sky"


def test_very_many_classes_are_chosen_by_typing(cropping, monkeypatch):
    monkeypatch.setattr(serve, "MAX_LISTED", 2)
    inputs = ViewInputs(cropping, device="cpu")
    client = TestClient(serve.application(inputs, 1), base_url="http://127.0.0.1:1")
    assert '<datalist id="classes"><option value="0">lake</option>' in client.get("/").text
