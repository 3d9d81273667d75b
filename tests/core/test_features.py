"""Features of images, and what k nearest neighbours and a linear probe make of them."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cnn_core import load_dataset
from cnn_core.cli import main
from cnn_core.data import Batch
from cnn_core.data.images import read_image
from cnn_core.errors import DatasetCorruptError, UnknownNameError, UsageError
from cnn_core.tasks.intervals import wilson
from cnn_core.training import Trained, export, features, probe
from cnn_core.training import feature_extraction as extraction
from cnn_core.training.stage_features import features_of
from cnn_core.weights.native import read_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of two classes of digits as files of different sizes, one of them broken."""
    root, split = tmp_path_factory.mktemp("files") / "images", load_dataset("digits").split("test")
    for number in (0, 1):
        (root / f"class{number}").mkdir(parents=True)
        for index, row in enumerate((split.targets == number).nonzero().flatten()[:12].tolist()):
            image = Image.fromarray(split.images[row, 0].numpy())
            image.resize((8 + index, 9)).save(root / f"class{number}" / f"{index:02}.png")
    return root


@pytest.fixture
def broken(folder):
    path = folder / "class1" / "broken.png"
    path.write_bytes(b"not an image")
    yield path
    path.unlink()


def loaded(path):
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


# --- stages --------------------------------------------------------------------------------


def test_features_are_the_inputs_or_the_outputs_of_a_stage():
    torch.manual_seed(0)
    conv, pool = nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1)
    model = nn.Sequential(conv, pool, nn.Flatten(), nn.Linear(3, 2)).eval()
    images = torch.rand(5, 1, 8, 8)
    parts = [Batch(x, torch.zeros(len(x)), torch.arange(len(x))) for x in images.split(2)]
    expected = conv(images).mean((2, 3)).detach()
    for stage, inside in (("3", False), ("0", True), ("1", False)):
        assert torch.allclose(
            features_of(model, stage, parts, use_outputs=inside), expected, atol=1e-6
        )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(UnknownNameError, match="unknown stage 'fc'"):
        features_of(model, "fc", parts)


def test_hooks_are_removed_even_after_an_error():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Linear(9, 9))
    with pytest.raises(RuntimeError):
        features_of(model, "0", [Batch(torch.rand(1, 1, 8, 8), torch.zeros(1), torch.zeros(1))])
    assert not model[0]._forward_pre_hooks


@pytest.mark.parametrize(
    ("stage", "message"),
    [("1", "called 2 times"), ("3", "called 0 times"), ("2", "has tuple instead of a tensor")],
)
def test_a_stage_is_called_once_and_gives_a_tensor(stage, message):
    class Net(nn.Sequential):
        def forward(self, x):
            return self[2](self[1](self[1](self[0](x))))

    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    model = Net(nn.Flatten(), nn.ReLU(), Pair(), nn.ReLU())
    batch = Batch(torch.rand(2, 1, 2, 2), torch.zeros(2), torch.arange(2))
    with pytest.raises(UsageError, match=message):
        features_of(model, stage, [batch], use_outputs=True)


def test_the_default_is_the_input_of_the_classifier(digits_run):
    found = features(digits_run, "digits", split="test")
    trained = Trained(digits_run)
    split = load_dataset("digits").split("test")
    with torch.no_grad():
        logits = trained.model(trained.weights.preprocessing(split.images))
        again = trained.model.output(found.features)
    assert found.features.dtype == torch.float32
    assert torch.allclose(again, logits, atol=1e-4)
    assert torch.equal(found.targets, split.targets)
    assert found.indices.tolist() == list(range(len(split)))
    assert set(found.splits) == {"test"}
    assert found.paths == ()
    maps = features(digits_run, "digits", split="test", stage="c3").features
    assert maps.shape == (len(split), 16)  # averaged over positions


def test_all_splits_of_a_dataset_in_its_order(digits_run):
    found, dataset = features(digits_run, "digits"), load_dataset("digits")
    names = [name for name, split in dataset.splits.items() for _ in range(len(split))]
    assert list(found.splits) == names
    targets = torch.cat([split.targets for split in dataset.splits.values()])
    assert torch.equal(found.targets, targets)
    assert found.classes == dataset.spec.classes


# --- files ---------------------------------------------------------------------------------


def test_files_are_preprocessed_as_in_prediction(digits_run, folder, monkeypatch):
    monkeypatch.setattr(extraction, "eval_batch_size", lambda preprocessing: 5)
    found = features(digits_run, [folder / "class1", folder / "class0" / "03.png"])
    assert len(found.features) == 13
    assert set(found.targets.tolist()) == {-1}
    trained = Trained(digits_run)
    for path, row in zip(found.paths, found.features, strict=True):
        image = trained.weights.preprocessing(read_image(Path(path), 1)[None])
        batch = Batch(image, torch.zeros(1), torch.zeros(1))
        assert torch.allclose(features_of(trained.model, "output", [batch])[0], row, atol=1e-4)


def test_classes_of_a_dataset_need_not_be_those_of_the_network(digits_run, folder):
    found = features(digits_run, f"imagefolder:{folder}")
    assert found.classes == ("class0", "class1")
    pairs = zip(found.targets.tolist(), found.paths, strict=True)
    assert all(f"class{target}/" in path for target, path in pairs)
    assert len(found.paths) == 24


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_a_broken_file_is_named_and_left_out(
    digits_run, folder, broken, tmp_path, capsys, monkeypatch, command_leaves_no_trace, size
):
    monkeypatch.setattr(extraction, "eval_batch_size", lambda preprocessing: size)
    with pytest.raises(DatasetCorruptError, match=r"broken\.png"):
        features(digits_run, [folder])
    out = tmp_path / "new" / "f.npz"
    assert main(["features", str(digits_run.path), str(folder), "--out", str(out)]) == 3
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "broken.png" in printed.err
    assert "1 unreadable file left out" in printed.err
    found = loaded(out)
    assert found["features"].shape == (24, 84)
    assert found["indices"].tolist() == [*range(24)]  # the broken file is the last
    assert not [path for path in found["paths"] if "broken" in path]
    # No temporary files.
    assert [path.name for path in out.parent.iterdir()] == ["f.npz"]


def test_the_file_is_what_python_returns(digits_run, folder, tmp_path, command_leaves_no_trace):
    out = tmp_path / "f.npz"
    data = f"imagefolder:{folder}"
    assert main(["features", str(digits_run.path), data, "--out", str(out)]) == 0
    found, expected = loaded(out), features(digits_run, data)
    assert found["features"].dtype == np.float32
    assert np.array_equal(found["features"], expected.features.numpy())
    for name in ("targets", "indices"):
        assert np.array_equal(found[name], getattr(expected, name).numpy())
    for name in ("splits", "paths", "classes"):
        assert tuple(found[name]) == getattr(expected, name)
    assert (str(found["stage"]), str(found["side"])) == ("output", "inputs")
    assert str(found["weights_sha256"]) == read_weights(digits_run.path).digest
    assert str(found["source"]) == str(digits_run.path)


def test_a_file_is_replaced_only_when_the_new_one_is_whole(digits_run, folder, tmp_path):
    out = tmp_path / "f.npz"
    out.write_bytes(b"before")
    chosen = extraction.Extraction(Trained(digits_run))
    parts = chosen.parts([folder])

    def fail(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chosen.write(out, parts, extraction._raise, fail)
    assert out.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]


@pytest.mark.parametrize(
    ("images", "changes", "message"),
    [
        ("digit", {}, "'digit' is neither .* nor a dataset, did you mean 'digits'"),
        (["nowhere.png"], {}, "nowhere.png: no such image file"),
        ("digits", {"split": "tests"}, "no split 'tests', did you mean 'test'"),
        ("digits", {"stage": "c4"}, r"unknown stage 'c4'\nits stages: c1, s2, c3, "),
        (["."], {"split": "test"}, "split = 'test' is for datasets"),
    ],
)
def test_what_is_not_there_is_explained(digits_run, images, changes, message):
    with pytest.raises(UsageError, match=message):
        features(digits_run, images, **changes)


def test_a_folder_with_the_name_of_a_dataset_is_a_path_with_a_slash(
    digits_run, folder, tmp_path, monkeypatch
):
    (tmp_path / "digits").symlink_to(folder / "class0")
    monkeypatch.chdir(tmp_path)
    assert len(features(digits_run, "./digits").features) == 12
    assert len(features(digits_run, "digits", split="test").features) > 300


def test_an_exported_file_has_no_stages(digits_run, tmp_path):
    exported = export(digits_run, out=tmp_path / "net.pt2")
    with pytest.raises(UsageError, match="an exported file has no stages"):
        features(exported.path, "digits")


# --- probes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probed(digits_run):
    return probe(digits_run, "digits")


def test_a_probe_of_a_trained_network_is_about_as_good_as_the_network(digits_run, probed):
    top1 = digits_run.test_metrics()["test/top1"]
    n = len(load_dataset("digits").split("test"))
    assert [score.method for score in probed.scores] == ["k-NN", "linear probe"]
    for score in probed.scores:
        assert score.accuracy > top1 - 0.05
        assert score.validation > top1 - 0.05
        assert score.interval == wilson(round(score.accuracy * n), n)
    assert probed.counts["test"]["3"] == 37
    assert sum(probed.counts["train"].values()) == 1438
    assert sum(probed.counts["validation"].values()) == pytest.approx(1438 / 5, abs=5)
    assert (probed.stage, probed.side) == ("output", "inputs")


def test_both_classifiers_are_scikit_learns(digits_run, probed):
    """Fitted to the whole training split, with the chosen k and C."""
    from sklearn.linear_model import LogisticRegression

    found = features(digits_run, "digits")
    training = np.array(found.splits) == "train"
    x, y = found.features.numpy(), found.targets.numpy()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    k = int(probed.scores[0].setting.removeprefix("k = "))
    nearest = np.argsort(-(unit[~training] @ unit[training].T), axis=1, kind="stable")[:, :k]
    votes = [np.bincount(row).argmax() for row in y[training][nearest]]
    assert probed.scores[0].accuracy == pytest.approx(np.mean(votes == y[~training]), abs=0.006)
    scaled = (x - x[training].mean(0)) / np.maximum(x[training].std(0), 1e-6)
    c = float(probed.scores[1].setting.removeprefix("C = "))
    model = LogisticRegression(C=c, max_iter=2000).fit(scaled[training], y[training])
    accuracy = model.score(scaled[~training], y[~training])
    assert probed.scores[1].accuracy == pytest.approx(accuracy, abs=0.006)


def test_a_few_shots_are_so_many_of_each_class(digits_run):
    five = probe(digits_run, "digits", shots=5, seed=1)
    assert set(five.counts["train"].values()) == {5}
    assert set(five.counts["validation"].values()) == {1}
    assert five == probe(digits_run, "digits", shots=5, seed=1)
    one = probe(digits_run, "digits", shots=1)
    assert [score.setting for score in one.scores] == ["k = 1", "C = 1"]
    assert all(np.isnan(score.validation) for score in one.scores)
    with pytest.raises(UsageError, match=r"shots = 500: class '0' has 142 training images"):
        probe(digits_run, "digits", shots=500)


def test_the_command_prints_tables_or_json(
    digits_run, folder, broken, capsys, command_leaves_no_trace
):
    command = ["probe", str(digits_run.path), f"imagefolder:{folder}"]
    assert main(command) == 3
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split("  ")[0] == "method"
    assert lines[1].startswith("k-NN")
    assert " to " in lines[2]
    assert any(line.startswith("class1") for line in lines)
    assert "1 unreadable file left out" in printed.err
    assert main([*command, "--shots", "3", "--json"]) == 3
    content = json.loads(capsys.readouterr().out)
    counts = content["probe"]["counts"]["train"]
    assert counts["class0"] == 3
    assert counts["class1"] in (2, 3)  # the broken file may be among the three
    assert content["source"] == str(digits_run.path)


def test_masks_and_a_missing_scikit_learn_are_explained(digits_run, monkeypatch):
    with pytest.raises(UsageError, match="is for segmentation: probes need classes"):
        probe(digits_run, "digit_scenes")
    own = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return own(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r'not installed\npip install "cnn-core\[probe\]"'):
        probe(digits_run, "digits")


def test_the_interval_is_wilsons():
    low, high = wilson(9, 10)
    assert (low, high) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert wilson(0, 5)[0] == 0
