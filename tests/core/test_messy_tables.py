"""Tables as programs and people leave them: labels stay texts, and every guess has a line."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cnn_core import load_dataset
from cnn_core.data.readers.label_cells import list_in
from cnn_core.data.readers.spelling import alike, differ_in_marks, exact_number, number_of
from cnn_core.data.verify import verify
from cnn_core.errors import DatasetCorruptError, UsageError

COUNT = 12


@pytest.fixture
def table(tmp_path):
    """Return a function that loads a table, a row for each of 0.png, 1.png, …, by its text."""
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")

    def load(text, choice=""):
        (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
        return load_dataset(f"csv:{tmp_path / 'labels.csv'}{choice}")

    return load


@pytest.fixture
def labelled(table):
    """Return a function that loads a table whose rows have these labels in turn."""

    def load(labels, choice=""):
        quoted = ['"' + labels[n % len(labels)].replace('"', '""') + '"' for n in range(COUNT)]
        return table(
            "path,label\n" + "".join(f"{n}.png,{cell}\n" for n, cell in enumerate(quoted)), choice
        )

    return load


def label_of(dataset):
    """Return the class of each image by its number."""
    return {
        int(path.stem): dataset.spec.classes[target]
        for split in dataset.splits.values()
        for path, target in zip(split.images, split.targets.tolist(), strict=True)
    }


# --- numbers as labels --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        ("1234567890123456770", "1234567890123456789"),  # one float
        ("9007199254740992", "9007199254740993", "42"),
        ("00123456789012345678", "00123456789012345679"),
        ("0.1", "0.10000000000000000001"),
        ("1e400", "1e401"),
    ],
)
def test_long_numbers_stay_apart_without_a_fault(labelled, labels):
    dataset = labelled(labels)
    assert label_of(dataset) == {n: labels[n % len(labels)] for n in range(COUNT)}
    assert dataset.faults == ()


@pytest.mark.parametrize(
    ("labels", "how"),
    [
        (("1", "01"), "in how a number is written"),
        (("100", "1e2", "7"), "in how a number is written"),
        (("3", "\u0663"), "in how a number is written"),
        (("1", "+1", "2"), "in how a number is written"),
        (("0.5", "0.50"), "in how a number is written"),
        (("7", "007", "agent"), "in how a number is written"),
        (("7", "\uff17"), "in case or Unicode form"),
        (("a b", "a\u00a0b"), "in case or Unicode form"),
        (("Cat", "cat"), "in case:"),
        (("cat", "cat\u200b"), "in characters that are not seen"),
    ],
)
def test_one_name_or_number_in_two_spellings_is_two_classes_and_a_fault(labelled, labels, how):
    dataset = labelled(labels)
    assert label_of(dataset) == {n: labels[n % len(labels)] for n in range(COUNT)}
    (fault,) = (line for line in dataset.faults if "whose names differ only" in line)
    assert fault.startswith(f"'label': classes whose names differ only {how}")


@pytest.mark.parametrize("labels", [("1_0", "10"), ("ice-cream", "ice cream"), ("A1", "A-1")])
def test_names_that_differ_in_marks_are_two_classes_and_a_note(labelled, labels):
    dataset = labelled(labels)
    assert set(dataset.spec.classes) == set(labels)
    assert dataset.faults == ()
    assert any(line.startswith("different classes: ") for line in dataset.notes)


@pytest.mark.parametrize(
    "labels",
    [
        ("-1", "1"),
        ("01", "02", "10"),
        ("0", "1", "2", "3"),
        ("0.0", "1.0"),
        ("1.1", "1.10"),  # versions? At least no class of another name
    ],
)
def test_plain_numbers_cost_no_line(labelled, labels):
    dataset = labelled(labels)
    assert set(dataset.spec.classes) == set(labels)
    assert not any("different classes" in line for line in dataset.notes)
    assert bool(dataset.faults) == (labels[0] == "1.1")


def test_a_point_and_zeros_are_merged_with_a_line(labelled):
    dataset = labelled(("1", "1.0", "2.0", "3"))
    assert dataset.spec.classes == ("1", "2.0", "3")
    assert "'label': taken as one class: '1.0' as '1' (3 times)" in dataset.notes
    assert labelled(("1|2", "1.0|3", "3|4")).spec.classes == ("1", "2", "3", "4")


def test_numbers_are_read_exactly_and_only_in_plain_digits():
    assert number_of("-1.5e2") == -150
    for text in ("1_0", "\uff17", "nan", "inf", "1e999", "", "0x10", "1,5"):
        assert number_of(text) is None
    assert exact_number("1234567890123456789") != exact_number("1234567890123456770")
    assert exact_number("1.0") == exact_number("1")
    assert alike(["1", "-1", "b"]) == []
    assert differ_in_marks(["-1", "1", "a-1", "a1"]) == [["a-1", "a1"]]


def test_class_folders_that_are_one_number_are_a_fault(tmp_path):
    for name in ("1", "01", "2"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("L", (8, 6), number).save(tmp_path / name / f"{number}.png")
    (fault,) = load_dataset(f"imagefolder:{tmp_path}").faults
    assert fault.endswith("differ only in how a number is written: ['01', '1']")


# --- lists in cells -----------------------------------------------------------------------------

LISTS = {
    "Python": ("['cracked', 'dirty']", "['dirty']", "[]", "['it\\'s wet']"),
    "JSON": ('["cracked", "dirty"]', '["dirty"]', "[]", '["it\'s wet"]'),
    "tuples": ("('cracked', 'dirty')", "('dirty',)", "()", '("it\'s wet",)'),
    "sets": ("{'dirty', 'cracked'}", "{'dirty'}", "set()", '{"it\'s wet"}'),
    "numpy": ("['cracked' 'dirty']", "['dirty']", "[]", '["it\'s wet"]'),
    "scalars of numpy": (
        "[np.str_('cracked'), np.str_('dirty')]",
        "[np.str_('dirty')]",
        "[]",
        '[np.str_("it\'s wet")]',
    ),
    "no quotes": ("[cracked, dirty]", "[dirty]", "[]", "[it is wet]"),
    "R": ('c("cracked", "dirty")', 'c("dirty")', "", 'c("it\'s wet")'),
}


@pytest.mark.parametrize("cells", LISTS.values(), ids=LISTS)
def test_lists_as_programs_write_them_are_several_labels(labelled, cells):
    dataset = labelled(cells)
    assert dataset.spec.task == "multilabel"
    wet = "it is wet" if "it is wet" in cells[3] else "it's wet"
    assert dataset.spec.classes == ("cracked", "dirty", wet)
    rows = {
        int(path.stem): target
        for split in dataset.splits.values()
        for path, target in zip(split.images, split.targets.tolist(), strict=True)
    }
    assert [rows[n] for n in range(4)] == [[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert any("are read as lists of labels" in line for line in dataset.notes)
    assert labelled(cells, "#separator=comma").spec.classes == dataset.spec.classes


def test_lists_of_one_label_are_a_class_unless_several_are_expected(labelled):
    dataset = labelled(("['cat']", "['black dog']"))
    assert (dataset.spec.task, dataset.spec.classes) == ("classification", ("black dog", "cat"))
    assert any("lists of one label" in line for line in dataset.notes)
    assert labelled(("['cat']", "['dog']"), "#task=multilabel").spec.task == "multilabel"
    kept = labelled(("['cat']", "['dog']"), "#task=classification")
    assert kept.spec.classes == ("['cat']", "['dog']")


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (("['cat', 'dog']", "cat"), "holds lists, but not in every row"),
        (('{"choices": ["a", "b"]}', '{"choices": ["a"]}'), "lists that are not flat"),
        (("[['a'], ['b']]", "[['a']]"), "lists that are not flat"),
        (("[0, 1, 1]", "[1, 0, 0]"), "holds 0 and 1 for each of 3 classes"),
        (("[0 1]", "[1 0]"), "holds 0 and 1 for each of 2 classes"),
        (("0|1|1", "1|0|0"), "holds 0 and 1 for each of 3 classes"),
    ],
)
def test_cells_that_are_neither_names_nor_lists_are_refused(labelled, cells, words):
    with pytest.raises(DatasetCorruptError, match=words) as caught:
        labelled(cells)
    assert "labels.csv:2" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    "names", [("[other]", "cat"), ("(left)", "(right)"), ("a [b]", "c"), ("it's", "don't")]
)
def test_names_with_brackets_are_names(labelled, names):
    dataset = labelled(names)
    assert set(dataset.spec.classes) == set(names)
    assert dataset.faults == ()


def test_what_a_list_is():
    assert list_in("['a', None, 'b']") == ["a", "b"]
    assert list_in('["K\\u00e4fer"]') == ["Käfer"]
    assert list_in("[1 2 3]") == ["1", "2", "3"]
    assert list_in("[black cat]") == ["black cat"]
    assert list_in("(a)") is list_in("cat") is list_in("") is None
    for text in ("['a' 'b' ... 'z']", "['a', b]", "{'a': 1}"):
        with pytest.raises(ValueError, match="a"):
            list_in(text)


def test_objects_do_not_take_lists_for_names():
    images = [Image.fromarray(np.full((6, 8), 9 * n, np.uint8)) for n in range(COUNT)]
    as_text = [(image, ["['a', 'b']", "['a']"][n % 2]) for n, image in enumerate(images)]
    with pytest.raises(DatasetCorruptError, match="is a list, but as text"):
        load_dataset(as_text)
    columns = {"path": ["a.png"], "label": [["a|b", "c"]]}
    with pytest.raises(UsageError, match=r"'a\|b': '\|' separates labels"):
        load_dataset(columns)
    spelled = load_dataset([(image, ["Cat", "cat"][n % 2]) for n, image in enumerate(images)])
    assert spelled.faults == ("labels: classes whose names differ only in case: ['Cat', 'cat']",)


# --- columns, weights, the first line, paths ----------------------------------------------------


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        (",path,label", "{n},{n}.png,{c}", ["columns that are not used: column 1"]),
        ("path,label,", "{n}.png,{c},7", ["columns that are not used: column 3"]),
        (",path,,label", "{n},{n}.png,x,{c}", ["columns that are not used: column 1, column 3"]),
    ],
)
def test_columns_without_a_name_are_named_by_their_number(table, header, row, expected):
    rows = "".join(row.format(n=n, c="ab"[n % 2]) + "\n" for n in range(COUNT))
    dataset = table(f"{header}\n{rows}")
    assert [line for line in dataset.notes if "not used" in line] == expected
    assert label_of(dataset) == {n: "ab"[n % 2] for n in range(COUNT)}


@pytest.mark.parametrize("value", ["0,5", "1,0", "12,25"])
def test_a_decimal_comma_is_shown_and_named(table, value):
    rows = "".join(f"{n}.png;{'ab'[n % 2]};{value}\n" for n in range(COUNT))
    with pytest.raises(DatasetCorruptError) as caught:
        table(f"image;label;weight\n{rows}")
    assert f"'weight' is not a number of 0 or more: '{value}' (12 rows)" in str(caught.value)
    assert f"write {value.replace(',', '.')}, with a point" in str(caught.value)
    with pytest.raises(DatasetCorruptError, match=f"not a number: '{value}'.*\n.*point"):
        table(f"image;label;p\n{rows}", "#label=p,threshold=1")
    scores = "".join(f"{n}.png;{n},5\n" for n in range(COUNT))
    with pytest.raises(DatasetCorruptError, match=r"12 different numbers(.|\n)*with a point"):
        table(f"image;label\n{scores}")


@pytest.mark.parametrize("weight", ["1_0", "\uff17", "nan", "-1"])
def test_what_only_python_takes_for_a_weight_is_refused(table, weight):
    rows = "".join(f"{n}.png,{'ab'[n % 2]},{weight}\n" for n in range(COUNT))
    with pytest.raises(DatasetCorruptError, match=f"'weight' is not a number.*: '{weight}'"):
        table(f"path,label,weight\n{rows}")


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"'])
@pytest.mark.parametrize("mark", [";", ",", "\t", "|"])
def test_the_separator_that_excel_writes_is_understood(table, first, mark):
    rows = "".join(f"{n}.png{mark}{'ab'[n % 2]}\n" for n in range(COUNT))
    dataset = table(f"{first.replace(';', mark)}\nimage{mark}label\n{rows}")
    assert label_of(dataset) == {n: "ab"[n % 2] for n in range(COUNT)}
    with pytest.raises(DatasetCorruptError, match=r"labels\.csv:3: 99"):
        table(f"{first.replace(';', mark)}\nimage{mark}label\n{'99' + rows[1:]}")


def test_a_first_line_that_is_no_header_is_named(table):
    rows = "".join(f"{n}.png,{'ab'[n % 2]}\n" for n in range(COUNT))
    with pytest.raises(DatasetCorruptError, match=r"csv:2: 2 fields, .* 1(.|\n)*no title"):
        table(f"My labels\nimage,label\n{rows}")
    with pytest.raises(DatasetCorruptError, match=r"It has 'what', 'label'(.|\n)*first line"):
        table("what,label\n" + "".join(f"x{n},a\n" for n in range(COUNT)))


@pytest.mark.parametrize(
    ("path", "folders"),
    [
        ("/data/upload/1/{n}.png", "data/upload/1"),
        ("C:\\Users\\me\\cells\\{n}.png", "C:/Users/me/cells"),
        ("cells/{n}", "cells"),
    ],
)
def test_an_image_in_another_folder_is_shown_with_the_way_to_have_it(table, path, folders):
    rows = "".join(f"{path.format(n=n)},{'ab'[n % 2]}\n" for n in range(COUNT))
    with pytest.raises(DatasetCorruptError, match="no such file") as caught:
        table(f"path,label\n{rows}")
    assert f"0.png, but not in a folder {folders}: if it is meant, write only" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


def test_a_table_of_digits_costs_no_line(labelled, tmp_path):
    dataset = labelled([str(n) for n in range(4)])
    assert dataset.faults == ()
    assert dataset.notes == ("no splits: 4 of 12 images are the test split",)
    notes = []
    assert verify(f"csv:{tmp_path / 'labels.csv'}", notes=notes) == []
    assert notes == [*dataset.notes]
