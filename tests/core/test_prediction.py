"""Predicting images of any kind: in batches, streamed, written to files, and after a kill."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, ImageSequence

import cnn_core
from cnn_core.cli.prediction_files import CsvRows, JsonRows, PredictionFile, continue_files
from cnn_core.create import build_untrained
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.errors import CorruptError, UnknownNameError, UsageError, WeightsMissingError
from cnn_core.training import Prediction, Predictor, Trained, export, predict, segment
from cnn_core.training.image_stream import Loader, read_ahead
from cnn_core.training.inference import OptimizedNetwork
from cnn_core.weights.native import read_weights, write_weights


@pytest.fixture(scope="module")
def run(digits_run):
    return digits_run.path


@pytest.fixture(scope="module")
def pixels():
    return cnn_core.load_dataset("digits").split("test").images[:10]


@pytest.fixture(scope="module")
def folder(pixels, tmp_path_factory):
    """Ten digits, two of them in a sub-folder."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "sub").mkdir()
    for number, image in enumerate(pixels):
        name = f"{number}.png" if number < 8 else f"sub/{number}.png"
        Image.fromarray(image[0].numpy()).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def other(run, tmp_path_factory):
    """Random weights of the same model, with the classes in reverse order."""
    return variant(run, tmp_path_factory.mktemp("other"), classes=tuple("9876543210"))


def variant(run: Path, folder: Path, *, seed: int = 1, **changes: object) -> Path:
    """Write random weights like those of a run, with some fields replaced; return the path."""
    weights = dataclasses.replace(read_weights(run), **changes)
    torch.manual_seed(seed)
    tensors = build_untrained(weights).state_dict()
    path = folder / "weights.safetensors"
    write_weights(path, dataclasses.replace(weights, tensors=tensors))
    return path


@pytest.fixture
def zoo(in_process):
    return in_process


def answers(predictions: list[Prediction]) -> list[tuple]:
    return [(p.classes, p.probabilities) for p in predictions]


# --- images of any kind --------------------------------------------------------------------


def test_all_kinds_of_images_give_the_same_bits(run, pixels, folder):
    files = sorted(folder.rglob("*.png"))
    expected = answers(predict(run, files, top_k=3))
    assert len(expected) == 10
    predictor = Predictor(run)
    arrays = [image[0].numpy() for image in pixels]
    kinds = {
        "folder": folder,
        "strings": [str(path) for path in files],
        "PIL": (Image.open(path) for path in files),
        "arrays": arrays,
        "an array": np.stack(arrays)[..., None],
        "colour arrays": [np.repeat(array[..., None], 3, 2) for array in arrays],
        "mirrored views": [array[:, ::-1].copy()[:, ::-1] for array in arrays],
        "a tensor": pixels,
        "tensors": list(pixels),
        "floats": pixels / 255,
        "doubles": pixels.double().numpy()[:, 0] / 255,
        "mixed": [files[0], arrays[1], [pixels[2], Image.open(files[3])], pixels[4:]],
    }
    kinds["doubles"] = list(kinds["doubles"])
    for kind, images in kinds.items():
        assert answers(predictor(images, top_k=3)) == expected, kind
    assert answers(predictor(files[3], top_k=3)) == answers(predictor(pixels[3], top_k=3))


def test_results_carry_paths_and_positions(run, pixels, folder):
    found = Predictor(run)([pixels[:2], folder / "3.png", pixels[4]])
    assert [p.index for p in found] == [0, 1, 2, 3]
    assert [p.path for p in found] == [None, None, str(folder / "3.png"), None]


def test_memory_that_the_caller_reuses_is_copied(run, pixels, tmp_path):
    buffer = np.zeros((8, 8), np.uint8)

    def frames():
        for image in pixels:
            buffer[:] = image[0]
            yield buffer

    expected = answers(Predictor(run)(pixels))
    assert answers(Predictor(run)(frames())) == expected
    first, *rest = (Image.fromarray(image[0].numpy()) for image in pixels)
    first.save(tmp_path / "all.tif", save_all=True, append_images=rest)
    with Image.open(tmp_path / "all.tif") as stack:
        assert answers(Predictor(run)(ImageSequence.Iterator(stack))) == expected


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (3, "an image of type int\nexpected paths"),
        ([b"a.png"], "an image of type bytes"),
        ([None], "an image of type NoneType"),
        (torch.zeros(8, 8, dtype=torch.uint8), r"shape \[8, 8\]: expected C H W or N C H W"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), "image 0 has 2 channels, the network takes 1"),
        (torch.zeros(1, 0, 8, dtype=torch.uint8), "has no pixels"),
        (torch.zeros(1, 8, 8, dtype=torch.int64), r"torch\.int64: expected uint8, or floats"),
        (torch.full((1, 8, 8), 1.5), r"floats from 1\.5 to 1\.5: expected \[0, 1\]\npass uint8"),
        (torch.full((1, 8, 8), float("nan")), r"expected \[0, 1\]"),
        (np.zeros((5, 8, 8), np.uint8), r"shape \[5, 8, 8\]: .*\npass several grey images"),
        ("nowhere.png", r"nowhere\.png: no such image file or folder"),
    ],
)
def test_other_inputs_are_refused(run, images, message):
    with pytest.raises(UsageError, match=message):
        Predictor(run)(images)


def test_broken_images_are_named(run, folder, tmp_path):
    (tmp_path / "bad.png").write_bytes((folder / "0.png").read_bytes()[:60])
    with Image.open(tmp_path / "bad.png") as opened:
        for images in (tmp_path / "bad.png", opened):
            with pytest.raises(CorruptError, match=r"bad\.png: not a readable image"):
                Predictor(run)(images)
    deep = Image.fromarray(np.zeros((8, 8), np.float32))
    with pytest.raises(CorruptError, match=r"image 0: 32-bit floats \(F\) from 0 to 0"):
        Predictor(run)(deep)


def test_a_strip_is_not_blown_up_before_it_is_cropped():
    crop = Preprocessing(
        size=(224, 224), image_size=(0, 0), fit="crop", mean=(0.5,), std=(0.2,), resize=256
    )
    strip = torch.zeros(1, 1, 100_000, dtype=torch.uint8)
    error = Loader(((1, crop),))((4, strip))
    assert isinstance(error, CorruptError)
    assert error.message.startswith("image 4: 100000 x 1 pixels: too narrow")


# --- batches and threads -------------------------------------------------------------------


def test_neighbours_do_not_change_probabilities(run, pixels):
    alone = [Predictor(run)(image, top_k=10)[0] for image in pixels]
    for size in (1, 3, 10, None):
        for one, found in zip(
            alone, Predictor(run, batch_size=size)(pixels, top_k=10), strict=True
        ):
            assert found.classes[0] == one.classes[0]
            both = [dict(zip(p.classes, p.probabilities, strict=True)) for p in (one, found)]
            assert all(both[0][k] == pytest.approx(both[1][k], abs=1e-6) for k in both[0])


def test_the_batch_size_is_bounded_and_positive(run):
    assert Predictor(run).batch_size == 256
    assert Predictor(run, batch_size=7).batch_size == 7
    with pytest.raises(UsageError, match="batch_size = 0: expected a positive integer"):
        Predictor(run, batch_size=0)


def test_images_of_different_sizes_share_a_batch(run, pixels):
    sizes = [(8, 8), (20, 30), (9, 7), (100, 41)]
    images = [
        torch.nn.functional.interpolate(image[None].float(), size)[0].to(torch.uint8)
        for image, size in zip(pixels[:4], sizes, strict=True)
    ]
    predictor = Predictor(run)
    together, alone = predictor(images, top_k=10), [predictor(i, top_k=10)[0] for i in images]
    for a, b in zip(together, alone, strict=True):
        assert a.classes == b.classes
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-6)


@pytest.mark.parametrize("threads", [1, 4])
def test_work_runs_ahead_in_order_and_is_bounded(threads):
    lock, started, most = threading.Lock(), 0, 0
    taken = 0

    def work(number):
        nonlocal started, most
        with lock:
            started += 1
            most = max(most, started - taken)
        time.sleep(0.001 * (number % 3))
        return number

    for number in read_ahead(range(200), work, limit=7, threads=threads):
        assert number == taken
        with lock:
            taken += 1
    assert taken == 200
    assert 1 < most <= 8  # seven, and the one that the caller has


def test_threads_stop_when_the_caller_does():
    before = threading.active_count()
    seen = []
    stream = read_ahead(range(1000), seen.append, limit=5, threads=2)
    next(stream)
    stream.close()
    assert threading.active_count() == before
    assert len(seen) <= 6


def test_memory_is_flat_images_in_flight_are_bounded(run, pixels):
    pulled, most, done = 0, 0, 0

    def images():
        nonlocal pulled, most
        for number in range(500):
            pulled += 1
            most = max(most, pulled - done)
            yield pixels[number % 10]

    for found in Predictor(run, batch_size=10).stream(images()):
        assert found.index == done
        done += 1
    assert done == 500
    assert most <= 21  # a batch that is computed, the next one, and the image after it


def test_photographs_are_dropped_as_soon_as_they_are_small(pixels):
    small = Preprocessing(size=(8, 8), image_size=(8, 8), fit="resize", mean=(0.5,), std=(0.5,))
    loaded = Loader(((1, small),))((0, torch.zeros(1, 900, 900, dtype=torch.uint8)))
    assert loaded.image is None
    assert loaded.inputs[0].shape == (1, 8, 8)


def test_unreadable_files_leave_no_gap(run, pixels, folder, tmp_path, monkeypatch):
    """Batches are full whatever is unreadable, so a resumed file has the same batches."""
    files = sorted(folder.rglob("*.png"))
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("not an image")
    images = [
        files[0],
        tmp_path / "a.png",
        *files[1:5],
        tmp_path / "b.png",
        tmp_path / "c",
        *files[5:],
    ]
    predictor, failed = Predictor(run, batch_size=4), []
    sizes = []
    network = predictor._networks[0]
    compute = network.logits
    monkeypatch.setattr(network, "logits", lambda x: (sizes.append(len(x)), compute(x))[1])
    found = list(predictor.stream(images, on_error=failed.append))
    assert sizes == [4, 4, 2]
    assert [p.path for p in found] == [str(path) for path in files]
    assert [p.index for p in found] == [0, 2, 3, 4, 5, 8, 9, 10, 11, 12]
    assert [error.message.split(":")[0] for error in failed] == [
        str(tmp_path / name) for name in ["a.png", "b.png", "c"]
    ]
    with pytest.raises(CorruptError, match=r"a\.png: not a readable image"):
        list(predictor.stream(images))


def test_errors_come_with_the_call_not_with_the_first_image(run, scenes_run):
    with pytest.raises(UsageError, match="top_k = 11: expected 1 to 10"):
        Predictor(run).stream([], top_k=11)
    with pytest.raises(UsageError, match=r"is a classification model; use .*predict"):
        segment(run, [])
    with pytest.raises(UsageError, match=r"is a segmentation model; use .*segment"):
        predict(scenes_run, [])
    with pytest.raises(UsageError, match="top_k = 2: it is for classification"):
        Predictor(scenes_run).stream([], top_k=2)
    assert Predictor(run)([]) == []


# --- logits, features, flips, ensembles ----------------------------------------------------


def test_a_predictor_names_its_network_and_fails_at_once(run, other, pixels):
    found = Predictor(run, ensemble=[other])
    assert repr(found).startswith(f"<Predictor lenet5_modern, weights {run} (epoch ")
    assert "images resized to 32x32, grey, mean 0.3" in repr(found)
    assert f"; lenet5_modern, weights {other}: images " in repr(found)
    assert repr(found).endswith("; 10 classes: '0', '1', '2', …>")
    for missing in ("hf:nobody/nothing", "resnet152", "runs/none"):
        with pytest.raises((UsageError, WeightsMissingError)):
            Predictor(missing)


def test_logits_and_features(run, pixels):
    predictor, model = Predictor(run), Trained(run, device="cpu").model
    logits = predictor.logits(pixels)
    assert logits.shape == (10, 10)
    probabilities = [predictor(image, top_k=10)[0].probabilities for image in pixels]
    assert torch.allclose(
        logits.softmax(1).sort(descending=True).values, torch.tensor(probabilities), atol=1e-6
    )
    features = predictor.embed(pixels)  # the inputs of the last stage
    assert features.shape == (10, 84)
    assert torch.allclose(model.output(features), logits, atol=1e-5)
    inputs = read_weights(run).preprocessing(pixels)
    maps = model.c1(inputs)
    assert torch.allclose(predictor.embed(pixels, "c1"), maps.mean((2, 3)), atol=1e-6)
    assert Predictor(run, batch_size=3).embed(pixels, "f6").shape == (10, 84)
    assert predictor.logits([]).shape == (0, 10)
    with pytest.raises(UnknownNameError, match="unknown stage 'outptu', did you mean 'output'"):
        predictor.embed(pixels, "outptu")
    with pytest.raises(UsageError, match="embed: no images"):
        predictor.embed([])


def test_segmentation_has_no_logits_or_features_of_images(scenes_run):
    for method in (Predictor(scenes_run).logits, Predictor(scenes_run).embed):
        with pytest.raises(UsageError, match=r"is a segmentation model; .* is for classification"):
            method([])


def test_flips_average_over_the_mirror_image(run, pixels):
    predictor = Predictor(run)
    plain, mirrored = (predictor.logits(x).softmax(1) for x in (pixels, pixels.flip(-1)))
    expected = (plain + mirrored) / 2
    for row, found in zip(expected, predictor(pixels, top_k=10, flips=True), strict=True):
        order = [int(name) for name in found.classes]
        assert torch.allclose(row[order], torch.tensor(found.probabilities), atol=1e-6)


def test_an_ensemble_averages_probabilities_by_class_name(run, other, pixels):
    ours, theirs = (Predictor(source).logits(pixels).softmax(1) for source in (run, other))
    expected = (ours + theirs.flip(1)) / 2
    found = Predictor(run, ensemble=[other])(pixels, top_k=10)
    for row, prediction in zip(expected, found, strict=True):
        order = [int(name) for name in prediction.classes]
        assert torch.allclose(row[order], torch.tensor(prediction.probabilities), atol=1e-6)
    same = Predictor(run, ensemble=[run])(pixels, top_k=10)
    assert answers(same) == answers(Predictor(run)(pixels, top_k=10))
    with pytest.raises(UsageError, match="logits: an ensemble of 2 networks has none"):
        Predictor(run, ensemble=[other]).logits(pixels)


def test_networks_of_an_ensemble_have_their_own_preprocessing(run, pixels, tmp_path):
    colour = Preprocessing(
        size=(40, 40), image_size=(8, 8), fit="resize", mean=(0.5,) * 3, std=(0.3,) * 3
    )
    path = variant(run, tmp_path, in_channels=3, preprocessing=colour, model="resnet20_cifar")
    ours, theirs = (Predictor(source).logits(pixels).softmax(1) for source in (run, path))
    (found,) = Predictor(run, ensemble=[path])(pixels[0])
    assert found.probabilities[0] == pytest.approx(float((ours + theirs)[0].max() / 2), abs=1e-6)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("0", "1", "2", "3", "4", "5", "6", "7", "8", "ten"), "lacks classes of .*: '9'$"),
        (tuple(f"d{n}" for n in range(10)), "lacks classes of .*: '0', '1', '2' and 7 more"),
        ((*"0123456789", "x"), "has classes that .* lacks: 'x'"),
    ],
)
def test_ensembles_of_other_classes_are_refused(run, tmp_path, classes, message):
    path = variant(run, tmp_path, classes=classes, num_classes=len(classes))
    with pytest.raises(UsageError, match=message):
        Predictor(run, ensemble=[path])([])


def test_ensembles_with_ambiguous_classes_or_other_tasks_are_refused(run, scenes_run, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = variant(run, tmp_path / "a", classes=("crane", "crane", *"23456789"))
    two = variant(run, tmp_path / "b", classes=(*"23456789", "crane", "crane"))
    with pytest.raises(UsageError, match=r"several classes of one name .*: 'crane'$"):
        Predictor(one, ensemble=[two])([])
    assert Predictor(one, ensemble=[one])([]) == []
    with pytest.raises(UsageError, match=r"does classification, but .* does segmentation"):
        Predictor(run, ensemble=[scenes_run])([])


@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_exported_files_take_any_number_of_images(run, pixels, tmp_path, batch_size):
    file = export(run, tmp_path / "net.pt2", batch_size=batch_size).path
    assert torch.allclose(
        Predictor(file).logits(pixels), Predictor(run).logits(pixels), rtol=0, atol=1e-4
    )
    with pytest.raises(UsageError, match="an exported file has no stages"):
        Predictor(file).embed(pixels)


def test_segmentations_come_in_order_and_ensembles_average_them(scenes_run, tmp_path):
    path = variant(scenes_run.path, tmp_path)
    images = [torch.randint(256, (1, 40, 30 + k), dtype=torch.uint8) for k in range(3)]
    one, two = ([*Predictor(source)(images)] for source in (scenes_run.path, path))
    both = Predictor(scenes_run, ensemble=[path])(images)
    for a, b, c in zip(one, two, both, strict=True):
        assert a.probabilities.shape[1:] == a.mask.shape == a.image.shape[1:]
        assert torch.allclose((a.probabilities + b.probabilities) / 2, c.probabilities, atol=1e-6)
    assert [found.index for found in both] == [0, 1, 2]
    assert [found.image.shape[2] for found in both] == [30, 31, 32]
    assert torch.equal(next(segment(scenes_run, images)).probabilities, one[0].probabilities)


# --- files of predictions ------------------------------------------------------------------

NAMES = ["a.png", "b, c.png", 'd"e.png', "f\ng.png", "h\ri.png", "=1+1.png", "ä.png", "\udcff.png"]


def prediction(name: str, number: int = 0) -> Prediction:
    return Prediction(name, ("cat, big", 'do"g'), (0.9 - number / 100, 0.1))


def written(path: Path, rows, names: list[str], resume: bool = False, batch: int = 3) -> int:
    """Write predictions of these images, like the command; return how many were predicted."""
    file = PredictionFile(path, rows, batch)
    todo = continue_files([file], names, resume=resume)
    with file:
        for index in todo:
            file.add(prediction(names[index], index))
    return len(todo)


def test_csv_readers_get_names_back(tmp_path):
    path = tmp_path / "out.csv"
    written(path, CsvRows(2), NAMES)
    header, *rows = csv.reader(io.StringIO(path.read_bytes().decode(), newline=""))
    assert header == ["image", "class_1", "probability_1", "class_2", "probability_2"]
    assert [row[0] for row in rows] == [*NAMES[:-1], r"\udcff.png"]
    assert rows[1] == ["b, c.png", "cat, big", "0.89", 'do"g', "0.1"]


def test_json_lines_are_objects(tmp_path):
    path = tmp_path / "out.jsonl"
    written(path, JsonRows(), NAMES)
    found = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    assert [row["path"] for row in found] == NAMES
    assert found[0] == {
        "path": "a.png",
        "classes": ["cat, big", 'do"g'],
        "probabilities": [0.9, 0.1],
    }


@pytest.mark.parametrize("rows", [CsvRows(2), JsonRows()])
def test_a_file_cut_off_at_any_byte_is_continued_to_the_same_bytes(tmp_path, rows):
    whole, path = tmp_path / "whole", tmp_path / "cut"
    written(whole, rows, NAMES)
    content = whole.read_bytes()
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        predicted = written(path, rows, NAMES, resume=True)
        assert path.read_bytes() == content, length
    assert predicted == 5  # of 8 in batches of 3: at least a batch is compared


def test_rows_of_other_images_are_refused_and_repeated_images_stay(tmp_path):
    path = tmp_path / "out.csv"
    written(path, CsvRows(2), ["x.png", "y.png"])
    before = path.read_bytes()
    message = "1 of its 2 rows is of an image that is not among those given now, such as x.png"
    with pytest.raises(UsageError, match=message):
        written(path, CsvRows(2), ["a.png", "a.png", "y.png"], resume=True)
    assert path.read_bytes() == before
    names = ["x.png", "y.png", "a.png", "a.png"]
    assert written(path, CsvRows(2), names, resume=True) == 4
    assert path.read_bytes().startswith(before)
    assert [line.split(b",")[0] for line in path.read_bytes().splitlines()[3:]] == [b"a.png"] * 2


def test_rows_are_compared_before_new_images_are_written(tmp_path):
    path = tmp_path / "out.csv"
    written(path, CsvRows(2), ["b.png", "c.png", "d.png", "e.png"], batch=2)
    before, file = path.read_bytes(), PredictionFile(path, CsvRows(2), 2)
    names = ["a.png", "b.png", "c.png", "d.png", "e.png"]
    todo = continue_files([file], names, resume=True)
    assert [names[index] for index in todo] == ["d.png", "e.png", "a.png"]
    with pytest.raises(UsageError, match=r"d\.png is .* there, and now"), file:
        file.add(prediction("d.png", 3))
    assert path.read_bytes() == before


@pytest.mark.parametrize("rows", [CsvRows, lambda count: JsonRows()])
@pytest.mark.parametrize(
    "values", [(0.9, 0.0995), (0.8998, 0.1), (0.9,)], ids=["second", "first", "fewer"]
)
def test_the_last_rows_prove_the_options(tmp_path, rows, values):
    path = tmp_path / "out"
    written(path, rows(2), NAMES)
    before, file = path.read_bytes(), PredictionFile(path, rows(2), 3)
    index, *_ = continue_files([file], NAMES, resume=True)
    classes = prediction(NAMES[index]).classes[: len(values)]
    changed = (values[0] - index / 100, *values[1:])
    if len(values) == 1 and rows is CsvRows:
        return  # the columns of a CSV file say it
    with pytest.raises(UsageError, match="written by another network or with other options"), file:
        file.add(Prediction(NAMES[index], classes, changed))
    assert path.read_bytes() == before


def test_two_files_are_continued_together(tmp_path):
    paths = (tmp_path / "out.csv", tmp_path / "out.jsonl")
    for path, rows in zip(paths, (CsvRows(2), JsonRows()), strict=True):
        written(path, rows, NAMES)
    whole = [path.read_bytes() for path in paths]
    paths[0].write_bytes(b"".join(whole[0].splitlines(keepends=True)[:3]))

    def files():
        rows = (CsvRows(2), JsonRows())
        return [PredictionFile(p, r, 3) for p, r in zip(paths, rows, strict=True)]

    with pytest.raises(UsageError, match=r"its images are not those of .*out\.csv\ncontinue each"):
        continue_files(files(), NAMES, resume=True)
    paths[1].write_bytes(b"".join(whole[1].splitlines(keepends=True)[:6]))
    one, two = files()
    todo = continue_files([one, two], NAMES, resume=True)
    assert todo == list(range(len(NAMES)))  # the only batch in both is predicted again
    with one, two:
        for index in todo:
            one.add(prediction(NAMES[index], index))
            two.add(prediction(NAMES[index], index))
    assert [path.read_bytes() for path in paths] == whole


def test_foreign_files_are_not_touched(tmp_path):
    path = tmp_path / "out.csv"
    for content, error, message in (
        (b"name,label\n", UsageError, "its first line is not image,class_1"),
        (CsvRows(1).header, UsageError, "another --top-k"),
        (CsvRows(2).header + b"a.png,cat\n", CorruptError, "line 2 is not a prediction"),
        (CsvRows(2).header + b"a.png,cat,x,dog,y\n", CorruptError, "line 2 is not a prediction"),
    ):
        path.write_bytes(content)
        with pytest.raises(error, match=message):
            written(path, CsvRows(2), NAMES, resume=True)
        assert path.read_bytes() == content
    with pytest.raises(UsageError, match="already exists\n--resume continues it"):
        written(path, CsvRows(2), NAMES)
    path.write_text('{"a": 1}\n')
    with pytest.raises(CorruptError, match="line 1 is not a prediction"):
        written(path, JsonRows(), NAMES, resume=True)


def test_a_failed_write_leaves_whole_lines(tmp_path):
    path = tmp_path / "out.csv"
    file = PredictionFile(path, CsvRows(2), 2)

    class Full:
        """A disk that has room for five more bytes."""

        def __init__(self, real):
            self.real = real

        def __getattr__(self, name):
            return getattr(self.real, name)

        def write(self, content):
            if len(content) < 5:
                raise KeyboardInterrupt
            return self.real.write(content[:5])

    with file:
        for number in range(2):
            file.add(prediction("a.png", number))
        file._file = Full(file._file)
        file.add(prediction("b.png"))
        with pytest.raises(KeyboardInterrupt):
            file.add(prediction("c.png"))
    lines = path.read_bytes().split(b"\n")
    assert [line.split(b",")[0] for line in lines] == [b"image", b"a.png", b"a.png", b""]


# --- the command ---------------------------------------------------------------------------


def test_the_table_has_fixed_columns(zoo, run, folder):
    code, out, err = zoo("predict", run, folder, "--top-k", 2)
    assert (code, err) == (0, f"{Predictor(run).networks[0]}\n")
    head, *rows = out.splitlines()
    assert head.split() == ["image", "rank", "class", "probability"]
    assert len(rows) == 20
    assert {len(row) for row in rows} == {len(head)}
    assert all(row.endswith(" %") for row in rows)
    assert [row.split()[:2] for row in rows[18:]] == [
        [str(folder / "sub" / "9.png"), r] for r in "12"
    ]


def test_files_of_predictions_and_json_agree(zoo, run, folder, tmp_path):
    files = ("--csv", tmp_path / "new" / "a.csv", "--jsonl", tmp_path / "a.jsonl")
    code, out, err = zoo("predict", run, folder, "--top-k", 3, *files)
    assert (code, err) == (0, f"{Predictor(run).networks[0]}\n")
    assert out == f"{files[1]}\n{files[3]}\n"
    expected = json.loads(zoo("predict", run, folder, "--top-k", 3, "--json")[1])["predictions"]
    assert [json.loads(line) for line in files[3].read_text().splitlines()] == expected
    rows = list(csv.DictReader(io.StringIO(files[1].read_text())))
    for row, one in zip(rows, expected, strict=True):
        assert row["image"] == one["path"]
        for rank in range(3):
            assert row[f"class_{rank + 1}"] == one["classes"][rank]
            probability = float(row[f"probability_{rank + 1}"])
            assert probability == pytest.approx(one["probabilities"][rank], rel=1e-5)
    for option, path in (("--csv", files[1]), ("--jsonl", files[3])):
        assert zoo("predict", run, folder, "--top-k", 3, option, "-")[1] == path.read_text()
    code, _, err = zoo("predict", run, folder, *files)
    assert code == 2
    assert "a.csv: already exists\n--resume continues it" in err


def test_unreadable_files_are_named_and_counted(zoo, run, folder, tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "bad\x1b.png").write_text("not an image")
    code, _, err = zoo("predict", run, tmp_path, folder, "--csv", tmp_path / "o.csv")
    assert code == 3
    lines = err.splitlines()[1:]
    assert len(lines) == 3
    code, out, _ = zoo("predict", run, tmp_path / "empty.png")
    assert (code, out) == (3, "")  # no table without rows
    assert r"bad\x1b.png: not a readable image" in lines[0]
    assert "empty.png: an empty file" in lines[1]
    assert lines[2] == "error: 2 of 12 images could not be read"
    assert (tmp_path / "o.csv").read_bytes().count(b"\n") == 11
    code, out, _ = zoo("predict", run, tmp_path, folder, "--json")
    assert code == 3
    found = json.loads(out)
    assert len(found["predictions"]) == 10
    assert ["bad\x1b.png: not" in found["unreadable"][0], len(found["unreadable"])] == [True, 2]


def test_stdin_is_a_list_of_paths(run, folder, tmp_path):
    def ended(listed: bytes, *options: str) -> tuple[int, list[str], str]:
        command = [sys.executable, "-m", "cnn_core", "predict", str(run), "-", *options]
        done = subprocess.run(command, input=listed, capture_output=True, cwd=folder, check=False)
        rows = csv.reader(io.StringIO(done.stdout.decode()))
        return done.returncode, [row[0] for row in rows][1:], done.stderr.decode()

    code, images, err = ended(b"1.png\r\nsub\n\ngone.png\n", "--csv", "-")
    assert (code, images) == (3, ["1.png", "sub/8.png", "sub/9.png"])
    assert err == (
        f"{Predictor(run).networks[0]}\n"
        "gone.png: no such image file or folder\nerror: 1 of 4 images could not be read\n"
    )
    assert ended(b"1.png\0sub/8.png\0", "--null", "--csv", "-")[:2] == (0, ["1.png", "sub/8.png"])
    assert ended(b"")[2] == "error: stdin is empty: expected paths of images\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("RUN IMAGE --out masks", "--out does not apply: this network does classification"),
        ("SCENES IMAGE --out IMAGE", "Invalid value for '--out'"),
        ("SCENES IMAGE --top-k 1", "--top-k does not apply: this network does segmentation"),
        ("SCENES IMAGE --csv a.csv", "--csv does not apply: this network does segmentation"),
        ("SCENES IMAGE --jsonl a", "--jsonl does not apply: this network does segmentation"),
        ("RUN IMAGE --top-k 0", "top_k = 0: expected 1 to 10"),
        ("RUN IMAGE --resume", "--resume: there is no file to continue\nname it: --csv FILE"),
        ("RUN IMAGE --resume --csv -", "--resume: stdout cannot be continued"),
        ("RUN IMAGE --resume --json --csv a.csv", "--resume with --json would print only"),
        ("RUN IMAGE --json --csv -", "--json and a file on stdout exclude each other"),
        ("RUN IMAGE --csv - --jsonl -", "--csv and --jsonl are the same file: -"),
        ("RUN IMAGE --null", "--null is for a list of paths on stdin\ngive - as IMAGES"),
        ("RUN IMAGE gone.png", "gone.png: no such image file or folder"),
        ("RUN IMAGE --with SCENES", "does classification, but"),
        ("RUN IMAGE --with RUN --model lenet5", "leave out --model"),
        ("RUN IMAGE --with RUN --download", "there is nothing to download"),
    ],
)
def test_options_that_do_not_apply_are_errors(
    zoo, run, scenes_run, folder, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    places = {"RUN": run, "SCENES": scenes_run.path, "IMAGE": folder / "0.png"}
    code, out, err = zoo("predict", *(places.get(word, word) for word in arguments.split()))
    assert (code, out) == (2, "")
    assert message in err
    assert not list(tmp_path.iterdir())


def test_ensembles_and_flips_by_command(zoo, run, other, folder, pixels):
    options = ("--with", other, "--flips", "--json")
    found = json.loads(zoo("predict", run, folder, *options)[1])["predictions"]
    expected = Predictor(run, ensemble=[other])(pixels, flips=True)
    assert [tuple(one["probabilities"]) for one in found] == [p.probabilities for p in expected]


def test_optimised_networks_give_the_same_probabilities(
    zoo, run, other, scenes_run, pixels, folder
):
    plain, fast = (Predictor(run, ensemble=[other], optimize=on) for on in (False, True))
    for found, expected in zip(fast(pixels, top_k=10), plain(pixels, top_k=10), strict=True):
        ours, theirs = (
            dict(zip(p.classes, p.probabilities, strict=True)) for p in (found, expected)
        )
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert {type(network.model) for network in fast._networks} == {OptimizedNetwork}
    alone = Predictor(run, optimize=True)
    assert torch.equal(alone.embed(pixels), Predictor(run).embed(pixels))
    assert torch.allclose(alone.logits(pixels), Predictor(run).logits(pixels), atol=1e-4)
    masks = [Predictor(scenes_run, optimize=on)(pixels[:1]) for on in (False, True)]
    (expected,), (found,) = masks
    assert (found.probabilities - expected.probabilities).abs().max() < 1e-4
    expected, found = (
        json.loads(zoo("predict", run, folder, "--json", *options)[1])["predictions"]
        for options in ((), ("--optimize",))
    )
    assert [p["classes"] for p in found] == [p["classes"] for p in expected]
    with pytest.raises(UsageError, match="compile applies to optimised networks"):
        Predictor(run, compile=True)


def test_an_exported_file_cannot_be_optimised(run, pixels, tmp_path):
    file = export(run, tmp_path / "net.pt2").path
    with pytest.raises(UsageError, match="an exported file cannot be optimised further"):
        Predictor(file, optimize=True)(pixels)


def test_the_options_of_weights_files_go_to_the_sources_that_take_them(zoo, run, folder, tmp_path):
    foreign = tmp_path / "theirs.pt"
    torch.save(Trained(run).model.state_dict(), foreign)
    options = ("--with", foreign, "--model", "lenet5_modern", "--json")
    code, out, _ = zoo("predict", run, folder / "0.png", *options)
    assert code == 0
    both = [Trained(run), Trained(foreign, model="lenet5_modern")]
    (expected,) = Predictor(both[0], ensemble=both[1:])(folder / "0.png")
    (found,) = json.loads(out)["predictions"]
    assert tuple(found["probabilities"]) == expected.probabilities


def test_resuming_with_another_network_is_noticed(zoo, run, other, folder, tmp_path):
    path = tmp_path / "out.csv"
    zoo("predict", run, folder, "--csv", path)
    content = b"".join(path.read_bytes().splitlines(keepends=True)[:6])
    path.write_bytes(content)
    code, _, err = zoo("predict", other, folder, "--csv", path, "--resume")
    assert code == 2
    assert "was written by another network or with other options: " in err
    assert path.read_bytes() == content


@pytest.mark.parametrize("kind", ["--csv", "--jsonl"])
@pytest.mark.parametrize("lines", [6, None], ids=["begun", "whole"])
def test_resuming_with_other_options_is_noticed(zoo, run, folder, tmp_path, kind, lines):
    path = tmp_path / "out"
    zoo("predict", run, folder, kind, path)
    content = b"".join(path.read_bytes().splitlines(keepends=True)[:lines])
    path.write_bytes(content)
    more = [("--flips",), ("--top-k", 2)]
    for options in more:
        code, _, err = zoo("predict", run, folder, kind, path, "--resume", *options)
        assert code == 2
        assert "with other options" in err or "its first line is not" in err
        assert path.read_bytes() == content
    assert zoo("predict", run, folder, kind, path, "--resume")[0] == 0


@pytest.fixture(scope="module")
def many(pixels, tmp_path_factory):
    """1,500 images, 20 of them unreadable: the network's batch is 256."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(1500):
        name = folder / f"{number:04}.png"
        if number % 75 == 3:
            name.write_text("not an image")
        else:
            noise = np.random.default_rng(number).integers(256, size=(8, 8), dtype=np.uint8)
            Image.fromarray(noise).save(name)
    return folder


@pytest.fixture(scope="module")
def whole(run, many, tmp_path_factory):
    """The CSV file of these images, written without an interruption."""
    path = tmp_path_factory.mktemp("whole") / "whole.csv"
    with PredictionFile(path, CsvRows(1), 256) as file:
        for found in Predictor(run).stream(many, on_error=lambda error: None):
            file.add(found)
    return path.read_bytes()


def interrupted(arguments: list[object], path: Path, lines: int, signum: int) -> int:
    """Start the command, send a signal when the file has so many lines; return the exit code."""
    command = [sys.executable, "-m", "cnn_core", *map(str, arguments)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None:
        if path.is_file() and path.read_bytes().count(b"\n") >= lines:
            child.send_signal(signum)
            break
        time.sleep(0.001)
    return child.wait(timeout=60)


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_stopped_command_and_a_second_start_give_the_same_file(
    zoo, run, many, whole, tmp_path, signum, code
):
    path = tmp_path / "stopped.csv"
    arguments = ["predict", run, many, "--csv", path]
    # The command may finish before the signal arrives, on a machine that is busy.
    ended = interrupted(arguments, path, 1 + 256, signum)
    assert ended in (code, 3)
    assert whole.startswith(path.read_bytes())
    assert path.read_bytes().endswith(b"\n")
    with path.open("ab") as file:
        file.write(b'"half a li')
    assert zoo(*arguments, "--resume")[0] == 3
    assert path.read_bytes() == whole
    _, _, err = zoo(*arguments, "--resume")
    assert "error: 20 of " in err
    assert path.read_bytes() == whole


def test_the_commands_and_the_snippet_of_the_docs_run(
    zoo, run, other, scenes_run, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    for name, path in (("digits", run), ("other", other.parent), ("cells", scenes_run.path)):
        Path("runs", name).symlink_to(path)
    for name in ("photos", "slices"):
        Path(name).symlink_to(folder)
    page = (Path(__file__).parents[2] / "docs" / "prediction.md").read_text(encoding="utf-8")
    (commands,) = re.findall(r"```bash\n(.*?)```", page, re.S)
    for line in commands.splitlines():
        words = shlex.split(line)
        if "|" in words:  # stdin is tested above
            words = [*words[words.index("|") + 1 :]]
            words[words.index("-")] = "photos"
            words.remove("--null")
        assert words[0] == "cnnzoo"
        code, _, err = zoo(*words[1:])
        assert code == 0
        assert all(", weights " in line for line in err.splitlines())
    assert len(Path("photos.csv").read_text().splitlines()) == 11
    assert Path("masks/sub/8.mask.png").is_file()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.S)
    found: dict[str, torch.Tensor] = {}
    exec(snippet, found)
    assert (found["features"].shape, found["logits"].shape) == ((10, 84), (10, 10))


def test_masks_keep_sub_folders_and_are_resumed(zoo, scenes_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/x.png", "in/b/x.png", "in/b/c/x.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(name)
    Path("in/bad.png").write_text("not an image")
    code, out, err = zoo("predict", scenes_run.path, "in", "--out", "out")
    assert code == 3
    assert "1 of 4 images could not be read" in err
    names = {
        f"out/{n}.{s}"
        for n in ("x", "b/x", "b/c/x")
        for s in ("mask.png", "overlay.png", "probabilities.npy")
    }
    assert set(out.splitlines()) == names
    assert all(Path(name).is_file() for name in names)
    Path("in/bad.png").unlink()
    assert zoo("predict", scenes_run.path, "in", "--out", "out", "--resume")[:2] == (0, "")
    before = Path("out/b/x.mask.png").stat().st_mtime_ns
    Path("out/x.overlay.png").unlink()
    code, out, _ = zoo("predict", scenes_run.path, "in", "--out", "out", "--resume")
    assert set(out.splitlines()) == {name for name in names if name.startswith("out/x.")}
    assert Path("out/b/x.mask.png").stat().st_mtime_ns == before
    noise = np.random.default_rng(0).integers(256, size=(32, 32), dtype=np.uint8)
    Image.fromarray(noise).save("in/noise.png")
    assert zoo("predict", scenes_run.path, "in", "--out", "out", "--resume")[0] == 0
    code, _, err = zoo("predict", scenes_run.path, "in", "--out", "out", "--resume", "--flips")
    assert code == 2
    assert "out: its masks were written by another network or with other options: those of " in err
    code, _, err = zoo("predict", scenes_run.path, "in/x.png", "in/b/x.png", "--out", "out")
    assert code == 2
    assert "have the same name, so their output files would collide" in err


def test_masks_of_photos_that_exif_turns_are_upright_and_said(zoo, scenes_run, tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(32, 48), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "turned.png", exif=exif)
    Image.fromarray(np.rot90(pixels, -1)).save(folder / "upright.png")
    code, _, err = zoo("predict", scenes_run.path, folder, "--out", tmp_path)
    assert code == 0
    line = "1 image is turned upright, as its EXIF data say, and so are the files written"
    assert err.splitlines()[-1] == line
    for suffix in ("mask.png", "overlay.png"):
        turned, upright = (Image.open(tmp_path / f"{n}.{suffix}") for n in ("turned", "upright"))
        assert turned.size == (32, 48)
        assert np.array_equal(turned, upright)
    with Image.open(folder / "turned.png") as photo:
        assert ImageOps.exif_transpose(photo).size == turned.size
