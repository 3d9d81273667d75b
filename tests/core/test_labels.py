"""Labels beside the images, in a text file or a table: every layout, and every fault named."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cnn_core.builtin.datasets import CSV
from cnn_core.cli.app import app
from cnn_core.data import Dataset, Split, load_dataset
from cnn_core.data.splits import read_pixels
from cnn_core.errors import DatasetCorruptError, DatasetMissingError, RunError, UsageError
from cnn_core.training import Run, evaluate, train
from cnn_core.training.trained import load_data

NAMES = [f"{n}.png" for n in range(12)]


@pytest.fixture
def folder(tmp_path):
    """A folder images/ with 12 images, the first half dark."""
    (tmp_path / "images").mkdir()
    for number, name in enumerate(NAMES):
        pixels = np.full((8, 8), 10 * number + (100 if number >= 6 else 0), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    return tmp_path


@pytest.fixture
def loaded(folder):
    """Return a function that writes a labels file and loads it."""

    def load(text, choice="", encoding="utf-8"):
        (folder / "labels.csv").write_bytes(text.encode(encoding))
        return load_dataset(f"csv:{folder / 'labels.csv'}{choice}")

    return load


def label(number):
    return "bright" if number >= 6 else "dark"


def rows(line, header=""):
    """Return the text with a line for each image; `line` is a function of number and name."""
    return header + "".join(f"{line(n, name)}\n" for n, name in enumerate(NAMES))


def labels_of(dataset):
    """Return the label of each image of a dataset by file name."""
    found = {}
    for split in dataset.splits.values():
        for path, target in zip(split.images, split.targets.tolist(), strict=True):
            names = dataset.spec.classes
            found[path.name] = (
                names[target]
                if isinstance(target, int)
                else {names[n] for n, has in enumerate(target) if has}
            )
    return found


EXPECTED = {name: label(n) for n, name in enumerate(NAMES)}
LAYOUTS = {
    "comma": rows(lambda n, f: f"images/{f},{label(n)}", "path,label\n"),
    "semicolon": rows(lambda n, f: f"images/{f};{label(n)}", "image;class\n"),
    "tab": rows(lambda n, f: f"images/{f}\t{label(n)}", "filename\ttarget\n"),
    "spaces": rows(lambda n, f: f"images/{f}   {label(n)}"),
    "no header": rows(lambda n, f: f"images/{f},{label(n)}"),
    "quotes": rows(lambda n, f: f'"images/{f}","{label(n)}"', '"File Name","Class Name"\n'),
    "other columns": rows(lambda n, f: f"{n},images/{f},{label(n)}", "id,File_Path,Species\n"),
    "blank lines": "\n" + rows(lambda n, f: f"images/{f},{label(n)}\n", "path,label\n\n"),
    "Windows": rows(lambda n, f: f"images\\{f},{label(n)}\r", "path,label\r\n"),
    "names only": rows(lambda n, f: f"{f},{label(n)}", "file,label\n"),
    "ids": rows(lambda n, f: f"{f[:-4]},{label(n)}", "image_id,label\n"),
    "one hot": rows(lambda n, f: f"images/{f},{int(n >= 6)},{int(n < 6)}", "path,bright,dark\n"),
    "label first": rows(lambda n, f: f"{label(n)},images/{f}", "label,image\n"),
}


@pytest.mark.parametrize("text", LAYOUTS.values(), ids=LAYOUTS)
def test_each_layout_gives_the_same_labels(loaded, text):
    dataset = loaded(text)
    assert labels_of(dataset) == EXPECTED
    assert set(dataset.spec.classes) == {"bright", "dark"}
    assert dataset.spec.task == "classification"
    assert dataset.spec.image == (1, 8, 8)
    assert any(line.startswith("no splits: ") for line in dataset.notes)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_a_name(loaded, encoding):
    assert labels_of(loaded(LAYOUTS["comma"], encoding=encoding)) == EXPECTED


def test_files_found_by_their_names_are_counted(loaded):
    notes = loaded(LAYOUTS["ids"]).notes
    assert "12 images were found by their names in images" in notes


def test_images_that_are_not_listed_and_columns_that_are_not_used_are_counted(loaded):
    text = "".join(LAYOUTS["other columns"].splitlines(keepends=True)[:-2])
    dataset = loaded(text)
    assert "columns that are not used: id" in dataset.notes
    assert "2 images beside them are not in labels.csv" in dataset.notes
    assert sum(map(len, dataset.splits.values())) == 10


def test_splits_and_weights_come_from_their_columns(loaded):
    names = ["Training", "valid", "test"]
    text = rows(
        lambda n, f: f"images/{f},{label(n)},{names[n % 3]},{n / 2}", "path,label,split,weight\n"
    )
    dataset = loaded(text)
    found = {name: [path.name for path in s.images] for name, s in dataset.splits.items()}
    assert found == {
        "train": ["0.png", "3.png", "6.png", "9.png"],
        "val": ["1.png", "4.png", "7.png", "10.png"],
        "test": ["2.png", "5.png", "8.png", "11.png"],
    }
    assert dataset.splits["train"].weights.tolist() == [0, 1.5, 3, 4.5]


def test_numbers_are_classes_in_their_order_and_one_class_in_two_spellings(loaded):
    dataset = loaded(rows(lambda n, f: f"images/{f},{['2', '10', '2.0'][n % 3]}", "path,label\n"))
    assert dataset.spec.classes == ("2", "10")


# Several labels


def several(number):
    names = [["cat"], ["cat", "dog"], [], ["dog"]][number % 4]
    return {*names, *(["bird"] if number % 6 == 0 else [])}


SEVERAL = (
    {
        "list": rows(lambda n, f: f"images/{f},{'|'.join(sorted(several(n)))}", "path,labels\n"),
        "columns": rows(
            lambda n, f: ",".join([f"images/{f}", *(str(int(c in several(n))) for c in CLASSES)]),
            "path,bird,cat,dog\n",
        ),
        "signs": rows(
            lambda n, f: " ".join(
                [f"images/{f}", *(str(2 * (c in several(n)) - 1) for c in CLASSES)]
            ),
            "path bird cat dog\n",
        ),
    }
    if (CLASSES := ("bird", "cat", "dog"))
    else {}
)


@pytest.mark.parametrize("text", SEVERAL.values(), ids=SEVERAL)
def test_several_labels_of_an_image_are_a_task_of_their_own(loaded, text):
    dataset = loaded(text)
    assert dataset.spec.task == "multilabel"
    assert dataset.spec.classes == CLASSES
    assert labels_of(dataset) == {name: several(n) for n, name in enumerate(NAMES)}
    assert any("images have no label" in line for line in dataset.notes)


def test_each_class_is_in_both_parts_of_a_split():
    generator = torch.Generator().manual_seed(0)
    often = torch.tensor([0.9, 0.5, 0.05])
    targets = (torch.rand(200, 3, generator=generator) < often).to(torch.uint8)
    split = Split(torch.zeros(200, 1, 1, 1, dtype=torch.uint8), targets)
    for seed in range(5):
        kept, held = Dataset(replace(CSV, classes=("a", "b", "c")), {"train": split}).hold_out(
            0.2, seed
        )
        assert len(kept) + len(held) == 200
        for number in range(3):
            share = held.targets[:, number].sum() / targets[:, number].sum()
            assert 0.1 < share < 0.3


def test_the_task_can_be_chosen(loaded):
    dataset = loaded(LAYOUTS["one hot"], "#task=multilabel")
    assert dataset.spec.task == "multilabel"
    with pytest.raises(DatasetCorruptError, match=r"csv:2, 3, 4: not exactly one 1"):
        loaded(SEVERAL["columns"], "#task=classification")


# Numbers


def grades(number):
    return [0, 1 / 3, 2 / 3, 1][number % 4]


def test_few_fractions_are_classes_and_a_threshold_makes_two(loaded):
    text = rows(lambda n, f: f"images/{f} {grades(n)} mono")
    dataset = loaded(text)
    assert len(dataset.spec.classes) == 4
    assert any("for two classes: csv:FILE#threshold=0.5" in line for line in dataset.notes)
    assert any("no header: column 1 is the path, column 2" in line for line in dataset.notes)
    dataset = loaded(text, "#threshold=0.5")
    assert dataset.spec.classes == ("below 0.5", "0.5 or more")
    found = labels_of(dataset)
    assert all((found[f] == "0.5 or more") == (grades(n) >= 0.5) for n, f in enumerate(NAMES))


def test_a_description_beside_the_file_names_its_classes(folder, loaded):
    text = rows(lambda n, f: f"images/{f},{'cb'[n % 2]}", "path,label\n")
    description = folder / "dataset.toml"
    description.write_text('licence = "MIT"\n[labels]\nc = "crack"\n')
    found = loaded(text)
    assert (found.spec.classes, found.spec.licence) == (("b", "crack"), "MIT")
    description.write_text('[labels]\nd = "dent"\n')
    with pytest.raises(UsageError, match="labels: no folder 'd'"):
        loaded(text)


def test_columns_are_chosen_by_name_or_number(loaded):
    text = rows(lambda n, f: f"images/{f} {grades(n)} {label(n)}")
    assert labels_of(loaded(text, "#label=3")) == EXPECTED
    text = rows(lambda n, f: f"images/{f},x{n % 2},{label(n)}", "path,label,kind\n")
    assert labels_of(loaded(text, "#label=kind")) == EXPECTED


# Faults


def after(line, header="path,label\n"):
    return rows(lambda n, f: f"images/{f},{label(n)}", header) + line


FAULTS = {
    "missing": (after("images/99.png,dark\n"), "csv:14: images/99.png: no such file"),
    "contradiction": (
        after("images/0.png,bright\n"),
        "csv:2, 14: 0.png, 0.png: one image with different labels or splits",
    ),
    "no label": (after("images/0.png,\n"), "csv:14: no label in 'label'"),
    "ragged": (after("images/0.png,a,b\n"), "csv:14: 3 fields, but line 1 has 2"),
    "split": (
        rows(
            lambda n, f: f"images/{f},{label(n)},{'trian' if n == 3 else 'train'}", "path,y,set\n"
        ),
        r"csv:5: unknown splits in 'set': 'trian' \(1 row\)",
    ),
    "no train": (
        rows(lambda n, f: f"images/{f},{label(n)},test", "path,y,set\n"),
        "has test, but no row of 'train'",
    ),
    "weight": (
        rows(lambda n, f: f"images/{f},{label(n)},{'x' if n == 3 else 1}", "path,y,weight\n"),
        "csv:5: 'weight' is not a number of 0 or more",
    ),
    "one class": (rows(lambda n, f: f"images/{f},dark", "path,label\n"), "1 class, expected"),
    "only in test": (
        rows(
            lambda n, f: (
                f"images/{f},{'new' if n == 5 else label(n)},{'test' if n == 5 else 'train'}"
            ),
            "path,label,split\n",
        ),
        "no image of the training split has the label 'new'",
    ),
    "which label": (
        rows(lambda n, f: f"images/{f},{label(n)},{n}", "path,kind,length\n"),
        "which column is the label",
    ),
    "which path": (
        rows(lambda n, f: f"x{n},{label(n)}", "what,label\n"),
        "which column is the path",
    ),
    "many numbers": (
        rows(lambda n, f: f"images/{f},{n / 7}", "path,label\n"),
        "12 different numbers, such as 0.14.*: they are not classes",
    ),
    "twice": (
        rows(lambda n, f: f"images/{f},a,b", "path,label,label\n"),
        "two columns are called",
    ),
    "empty": ("", "no rows"),
    "binary": ("path,label\n\0", "contains NUL"),
}


@pytest.mark.parametrize(("text", "message"), FAULTS.values(), ids=FAULTS)
def test_each_fault_is_named_with_its_line(loaded, text, message):
    with pytest.raises(DatasetCorruptError, match=message) as caught:
        loaded(text)
    assert len(str(caught.value).splitlines()) <= 3


def test_what_is_not_a_file_of_labels_is_named(folder, loaded):
    with pytest.raises(DatasetMissingError, match="no such file"):
        load_dataset(f"csv:{folder / 'none.csv'}")
    loaded(LAYOUTS["comma"])
    with pytest.raises(DatasetMissingError, match=r"it is a folder, with labels.csv"):
        load_dataset(f"csv:{folder}")
    with pytest.raises(UsageError, match="needs a file"):
        load_dataset("csv:")
    with pytest.raises(DatasetCorruptError, match="not UTF-8 at byte 0"):
        loaded("ä,b\n", encoding="latin-1")
    with pytest.raises(UsageError, match="'#lable=x': no such choice, did you mean 'label'"):
        loaded(LAYOUTS["comma"], "#lable=x")
    with pytest.raises(UsageError, match="no column 'labels', did you mean 'label'"):
        loaded(LAYOUTS["comma"], "#label=labels")


def test_repeated_rows_count_once_and_are_said(loaded):
    dataset = loaded(after("images/0.png,dark\n./images/1.png,dark\n"))
    assert "2 rows repeat an image with the same label: they count once" in dataset.notes
    assert sum(map(len, dataset.splits.values())) == 12


def test_classes_that_differ_in_spelling_only_are_said(loaded):
    dataset = loaded(rows(lambda n, f: f"images/{f},{['Cat', 'cat', 'dog'][n % 3]}", "path,y\n"))
    assert dataset.faults == ("'y': classes whose names differ only in case: ['Cat', 'cat']",)


# Training


def test_weights_reach_the_loss_and_changed_labels_are_noticed(loaded, folder, tmp_path):
    text = rows(lambda n, f: f"images/{f},{label(n)},{n % 2}", "path,label,weight\n")
    data = f"csv:{folder / 'labels.csv'}"
    loaded(text)
    settings = {"epochs": 1, "batch_size": 4, "progress": False, "device": "cpu"}
    runs = {}
    for pipeline in ("memory", "streaming"):
        out = tmp_path / pipeline
        run = train("lenet5_modern", data, out=out, pipeline=pipeline, **settings)
        runs[pipeline] = run.history()[0]["train/loss"]
    assert runs["memory"] == pytest.approx(runs["streaming"], abs=1e-6)
    plain = rows(lambda n, f: f"images/{f},{label(n)},1", "path,label,weight\n")
    loaded(plain)
    with pytest.raises(RunError, match="have changed since the run began"):
        load_data(Run.open(tmp_path / "memory"))
    run = train("lenet5_modern", data, out=tmp_path / "plain", **settings)
    assert run.history()[0]["train/loss"] > 1.2 * runs["memory"]


def test_solar_cells_go_from_their_folder_to_a_report_in_three_commands(tmp_path, monkeypatch):
    """As in ELPV: paths, probabilities of a defect and kinds of cells, separated by spaces."""
    pytest.importorskip("cnn_viz")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    generator, lines = np.random.default_rng(0), []
    for number in range(48):
        p = [0.0, 0.0, 0.3333333333333333, 0.6666666666666666, 1.0][number % 5]
        pixels = generator.integers(100, 140, (20, 20), dtype=np.uint8)
        pixels[:, : int(p * 15)] //= 3
        Image.fromarray(pixels).save(f"images/cell{number:04}.png")
        lines.append(f"images/cell{number:04}.png  {p}   {'mono' if number % 3 else 'poly'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    data = "csv:labels.csv#threshold=0.5"
    commands = [
        ["show-data", data],
        [
            "train",
            "lenet5_modern",
            "--data",
            data,
            *["--epochs", "4", "--batch-size", "8", "--out", "run"],
        ],
        ["report", "run", "--format", "json"],  # the page of figures would take 15 s more
    ]
    for command in commands:
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in report["classes"]] == ["below 0.5", "0.5 or more"]
    assert report["test"]["test/balanced_accuracy"] > 0.8
    assert report["test"]["test/auc"] > 0.8


# Python objects

IMAGES = [Image.fromarray(np.full((8, 8), 20 * n, np.uint8)) for n in range(12)]
NUMBERS = [int(n >= 6) for n in range(12)]


class Pairs:
    """A dataset like those of torchvision: an index gives an image and a label."""

    classes = ("dark", "bright")

    def __init__(self, images=IMAGES, labels=NUMBERS):
        self.images, self.labels_ = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels_[index]


def typed(name, **fields):
    return type(name, (), fields)()


class HubRows:
    """A dataset like those of Hugging Face: features, rows and columns."""

    def __init__(self, labels=NUMBERS, label=None, images=IMAGES):
        label = label or typed("ClassLabel", names=["dark", "bright"])
        self.features = {"image": typed("Image"), "label": label, "note": typed("Value")}
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, key):
        if key == "label":
            return self.labels
        return {"image": self.images[key], "label": self.labels[key]}


class Frame:
    """A table like those of pandas."""

    def __init__(self, columns):
        self.columns, self._values = list(columns), columns

    def __getitem__(self, name):
        return self._values[name]

    def to_dict(self):
        raise NotImplementedError


def by_pixel(dataset):
    """Return the class of each image of a dataset in memory by its brightness."""
    return {
        int(image[0, 0, 0]) // 20: dataset.spec.classes[target]
        for split in dataset.splits.values()
        for image, target in zip(split.images, split.targets, strict=True)
    }


OBJECTS = {
    "pairs": Pairs(),
    "tensors": Pairs([torch.full((1, 8, 8), 20 * n / 255) for n in range(12)]),
    "arrays": Pairs([np.full((8, 8, 1), 20 * n, np.uint8) for n in range(12)]),
    "numpy labels": Pairs(labels=np.array(NUMBERS)),
    "rows": HubRows(),
    "names": HubRows([label(n) for n in range(12)], typed("Value")),
}


@pytest.mark.parametrize("source", OBJECTS.values(), ids=OBJECTS)
def test_objects_are_datasets(source):
    dataset = load_dataset(source)
    assert by_pixel(dataset) == {n: label(n) for n in range(12)}
    assert dataset.spec.image == (1, 8, 8)
    assert sum(map(len, dataset.splits.values())) == 12


def test_an_objects_splits_are_kept_and_images_of_many_sizes_stay_in_the_object():
    sizes = [Image.new("RGB", (8 + n, 9), (20 * n, 0, 0)) for n in range(12)]
    dataset = load_dataset({"train": HubRows(images=sizes), "validation": HubRows(images=sizes)})
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 12,
        "test": 12,
    }
    assert dataset.spec.image == (3, 0, 0)
    assert read_pixels(dataset.splits["train"].images[3], 3).shape == (3, 9, 11)


def test_lists_of_labels_and_attributes_are_multilabel():
    rows_of_labels = [sorted(CLASSES.index(c) for c in several(n)) for n in range(12)]
    label_type = typed("Sequence", feature=typed("ClassLabel", names=list(CLASSES)))
    hub = load_dataset(HubRows(rows_of_labels, label_type))
    flags = torch.tensor([[int(c in several(n)) for c in CLASSES] for n in range(12)])
    pairs = Pairs(labels=flags)
    pairs.classes = CLASSES
    attributes = load_dataset(pairs)
    for dataset in (hub, attributes):
        assert dataset.spec.task == "multilabel"
        assert dataset.spec.classes == CLASSES
        for split in dataset.splits.values():
            for image, target in zip(split.images, split.targets, strict=True):
                assert target.tolist() == flags[int(image[0, 0, 0]) // 20].tolist()


@pytest.mark.parametrize("kind", ["frame", "arrow", "mapping"])
def test_tables_are_read_as_labels_files_are(folder, kind):
    columns = {"path": [f"images/{f}" for f in NAMES], "label": [label(n) for n in range(12)]}
    table = {
        "frame": Frame(columns),
        "arrow": typed("Table", to_pydict=lambda self: columns),
        "mapping": columns,
    }[kind]
    assert labels_of(load_dataset(table, data_dir=folder)) == EXPECTED
    columns["label"][3] = float("nan")
    with pytest.raises(DatasetCorruptError, match="the table:4: no label in 'label'"):
        load_dataset(table, data_dir=folder)


def test_real_datasets_of_torchvision_are_read(folder, tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    for n, name in enumerate(NAMES):
        (folder / "sorted" / label(n)).mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).rename(folder / "sorted" / label(n) / name)
    dataset = load_dataset(datasets.ImageFolder(folder / "sorted"))
    assert labels_of(dataset) == EXPECTED
    fake = load_dataset(datasets.FakeData(size=20, image_size=(3, 9, 8), num_classes=2))
    assert fake.spec.image == (3, 9, 8)


def test_a_run_on_an_object_is_evaluated_with_it(tmp_path):
    settings = {"epochs": 2, "batch_size": 4, "progress": False, "device": "cpu"}
    run = train("lenet5_modern", Pairs(), out=tmp_path / "run", **settings)
    assert run.recipe.data == "object:Pairs"
    found = {f"test/{name}": value for name, value in evaluate(run, data=Pairs()).items()}
    assert found == pytest.approx(run.test_metrics())
    with pytest.raises(UsageError, match="'Pairs' was given as a Python object"):
        evaluate(run.path)
    assert train(resume=run.path, data=Pairs(), progress=False).metrics() == run.metrics()
    other = Pairs(labels=NUMBERS[::-1])
    with pytest.raises(RunError, match="have changed since the run began"):
        train(resume=run.path, data=other, progress=False)


WRONG = {
    "unlabelled": (lambda: Pairs(labels=[*NUMBERS[:-1], -1]), "label -1 is none of 2 classes"),
    "stream": (lambda: iter([]), "needs a length and an index"),
    "no train": (lambda: {"test": Pairs()}, "with test, but without train"),
    "normalised": (lambda: Pairs([torch.randn(1, 8, 8)] * 12), "expected uint8, or floats"),
    "boxes": (lambda: Pairs(labels=[{"boxes": 1}] * 12), "labels are dict, expected a class"),
    "empty": (lambda: Pairs([], []), "no images"),
    "triples": (lambda: [(1, 2, 3)] * 12, "samples are tuple, expected"),
    "columns": (lambda: {"path": ["a.png"], "label": []}, "columns of the table differ in length"),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_dataset_is_refused(make, message):
    with pytest.raises((UsageError, DatasetCorruptError), match=message):
        load_dataset(make())


# As folders of images are read


def test_the_way_to_read_pixels_is_that_of_folders(folder, loaded):
    for number, name in enumerate(NAMES):
        pixels = np.full((8, 8), 40 * number, np.float32)
        Image.fromarray(pixels).save(folder / "images" / name.replace("png", "tif"))
    text = rows(lambda n, f: f"images/{n}.tif,{label(n)}", "path,label\n")
    (train_split, *_) = loaded(text).splits.values()
    with pytest.raises(DatasetCorruptError, match="of an undeclared range"):
        read_pixels(train_split.images[0], 1, train_split.reading)
    (folder / "dataset.toml").write_text("value_range = [0, 510]")
    dataset = loaded(text)
    assert any(line.startswith("12 of 12 images have more than 8 bits") for line in dataset.notes)
    for split in dataset.splits.values():
        for path in split.images:
            pixels = read_pixels(path, split.channels, split.reading)
            assert pixels.unique().tolist() == [20 * int(path.stem)]


def test_images_of_an_object_are_read_as_the_recipe_says(tmp_path):
    deep = [Image.fromarray(np.full((8, 8), n / 12, np.float32)) for n in range(12)]
    source = HubRows(images=deep)
    settings = {"epochs": 1, "batch_size": 4, "progress": False, "device": "cpu"}
    with pytest.raises(DatasetCorruptError, match="of an undeclared range"):
        train("lenet5_modern", source, out=tmp_path / "a", **settings)
    run = train("lenet5_modern", source, out=tmp_path / "b", value_range=(0, 1), **settings)
    assert run.recipe.value_range == (0, 1)
    assert {f"test/{k}": v for k, v in evaluate(run, data=source).items()} == pytest.approx(
        run.test_metrics()
    )


def test_names_of_splits_are_those_of_folders(loaded):
    parts = ("Training", "dev", "testing")
    text = rows(lambda n, f: f"images/{f},{label(n)},{parts[n % 3]}", "path,label,split\n")
    assert {n: len(s) for n, s in loaded(text).splits.items()} == {"train": 4, "val": 4, "test": 4}
    with pytest.raises(UsageError, match="splits train and training both mean train"):
        load_dataset({"train": Pairs(), "training": Pairs()})


def test_another_order_of_classes_keeps_the_labels_of_an_image(loaded):
    text = rows(lambda n, f: f"images/{f},{'|'.join(several(n))}", "path,labels\n")
    dataset = loaded(text)
    turned = dataset.with_class_order(dataset.spec.classes[1:] + dataset.spec.classes[:1])
    assert turned.spec.classes != dataset.spec.classes
    assert labels_of(turned) == labels_of(dataset)


def test_a_run_on_a_table_finds_its_images_again(folder, tmp_path):
    table = {"path": [f"images/{f}" for f in NAMES], "label": [label(n) for n in range(12)]}
    settings = {"epochs": 1, "batch_size": 4, "progress": False, "device": "cpu"}
    run = train("lenet5_modern", table, data_dir=folder, out=tmp_path / "run", **settings)
    assert labels_of(load_data(run, given=table)) == EXPECTED


# The page that shows the layouts


PAGE = (Path(__file__).parents[2] / "docs" / "labels.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```text\n([^`]*)```\n\n(Classes|Labels): ([^\n]*)\.\n", PAGE)


@pytest.mark.parametrize(("text", "kind", "classes"), SHOWN, ids=range(len(SHOWN)))
def test_every_layout_of_the_page_is_read_as_it_says(tmp_path, text, kind, classes):
    """Each row of the page stands for ten images."""
    (tmp_path / "images").mkdir()
    lines = []
    for line in text.splitlines():
        found = re.search(r"cell(\d)", line)
        copies = (
            [re.sub(r"cell\d", f"cell{found[1]}x{n}", line) for n in range(10)] if found else []
        )
        for copy in copies:
            name = re.search(r"cell\dx\d", copy)[0]
            Image.new("L", (8, 8), len(lines)).save(tmp_path / "images" / f"{name}.png")
        lines += copies or [line]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    dataset = load_dataset(f"csv:{tmp_path / 'labels.csv'}")
    assert ", ".join(dataset.spec.classes) == classes
    assert dataset.spec.task == ("multilabel" if kind == "Labels" else "classification")
    assert sum(map(len, dataset.splits.values())) == len(re.findall(r"cell\d", text)) * 10


def test_the_page_shows_all_layouts_and_its_snippet_runs(tmp_path, monkeypatch, capsys):
    assert len(SHOWN) == PAGE.count("```text") == 7
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(snippet, {})
    assert "balanced_accuracy" in capsys.readouterr().out
