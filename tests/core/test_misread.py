"""Labels and folders that can be misread: each is refused, or said in a line."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cnn_core import load_dataset
from cnn_core.cli.app import app
from cnn_core.data.verify import verify
from cnn_core.errors import DatasetCorruptError, UsageError


def put(path, seed=0, size=(6, 8), **options):
    """Write an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def tree(root, *folders, count=4):
    """Write different images 0.png, 1.png, … into each folder."""
    for number, folder in enumerate(folders):
        for n in range(count):
            put(root / folder / f"{n}.png", seed=100 * number + n)
    return root


@pytest.fixture
def table(tmp_path):
    """Return a function that loads a table of 0.png, 1.png, … with these labels."""

    def load(labels, choice="", header="path,label"):
        for number in range(len(labels)):
            put(tmp_path / f"{number}.png", seed=number)
        rows = "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))
        (tmp_path / "labels.csv").write_text(f"{header}\n{rows}")
        return load_dataset(f"csv:{tmp_path / 'labels.csv'}{choice}")

    return load


# --- several labels in a cell -----------------------------------------------------------------

LISTS = ["healthy", "scab", "scab{}frog{}rust", "rust", "rust{}frog", "scab{}frog"] * 3
MARKS = {"space": " ", "comma": ", ", "semicolon": ";"}


def cells(mark):
    return [f'"{cell.replace("{}", mark)}"' for cell in LISTS]


@pytest.mark.parametrize(("name", "mark"), MARKS.items())
def test_cells_that_look_like_lists_are_said_and_can_be_split(table, name, mark):
    dataset = table(cells(mark))
    assert (dataset.spec.task, len(dataset.spec.classes)) == ("classification", 6)
    assert f"csv:FILE#separator={name}" in dataset.faults[0]
    assert table(cells(mark), "#task=classification").faults == ()
    for choice in (f"#separator={name}", "#task=multilabel"):
        split = table(cells(mark), choice)
        assert split.spec.task == "multilabel"
        assert split.spec.classes == ("frog", "healthy", "rust", "scab")
        assert split.faults == ()
    assert any("#separator=pipe" in line for line in split.notes)


def test_names_with_spaces_are_names(table):
    names = ["black cat", "black dog", "white cat"] * 4
    assert table(names).faults == ()
    with pytest.raises(DatasetCorruptError, match=r"some hold ' '(.|\n)*#separator=space"):
        table(names, "#task=multilabel")
    assert len(table(names, "#separator=pipe").spec.classes) == 3
    assert table(["cat", "dog"] * 6, "#task=multilabel").spec.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("separator=tab", "separator = 'tab'"),
        ("separator=space,task=classification", "multilabel"),
        ("separator=space,threshold=1", "multilabel"),
    ],
)
def test_a_separator_that_does_not_apply_is_an_error(table, choice, message):
    with pytest.raises(UsageError, match=message):
        table(["a", "b"] * 4, f"#{choice}")


def test_a_name_with_a_comma_is_quoted(table, tmp_path):
    table(['"cat, domestic"', "dog"] * 4)
    result = CliRunner().invoke(app, ["show-data", f"csv:{tmp_path / 'labels.csv'}"])
    assert 'classes   "cat, domestic", dog\n' in result.output


def test_a_small_table_is_told_of_a_column(table):
    with pytest.raises(DatasetCorruptError, match="column 'split'"):
        table(["a", "b"])
