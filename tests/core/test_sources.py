"""Trained networks from any source: weights by name, anybody's files, exported files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_image

from cnn_core import (
    WeightsSpec,
    create_model,
    evaluate,
    export,
    load_dataset,
    predict,
    registry,
    train,
)
from cnn_core.data.dataset import Dataset
from cnn_core.data.imagenet import CLASSES
from cnn_core.data.images import read_image
from cnn_core.errors import CorruptError, UnknownNameError, UsageError, WeightsMissingError
from cnn_core.tasks.intervals import wilson
from cnn_core.training import Trained
from cnn_core.training.matching import matched
from cnn_core.training.sources import open_source, preprocessing_of
from cnn_core.weights.published import find_weights, is_here, locate, weights_of

TORCHVISION = {  # our names for torchvision's
    **{name: name for name in ("densenet121", "densenet161", "densenet169", "densenet201")},
    **{name: name for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")},
    **{f"vgg{n}{bn}": f"vgg{n}{bn}" for n in (11, 13, 16, 19) for bn in ("", "_bn")},
    "alexnet": "alexnet_owt",
    "googlenet": "googlenet_bn",
    "mobilenet_v2": "mobilenet_v2",
}
QUICK = ("googlenet", "resnet18")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    """Two photographs, one of them upright, and one whose shorter side is that of the resizing."""
    folder = tmp_path_factory.mktemp("photos")
    china, flower = (Image.fromarray(load_sample_image(f"{n}.jpg")) for n in ("china", "flower"))
    images = {"china": china, "upright": flower.rotate(90, expand=True), "small": china}
    images["small"] = china.resize((301, 256))
    for name, image in images.items():
        image.save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in images]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and no other place where weights could be."""
    monkeypatch.setenv("CNNZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("CNNZOO_WEIGHTS_MIRROR", raising=False)
    return tmp_path / "cache" / "weights"


# torchvision's weights


def theirs(name: str, spec: WeightsSpec):
    version = spec.name.rpartition("-v")[2]
    return torchvision.models.get_model_weights(name)[f"IMAGENET1K_V{version}"]


def pairs() -> list[tuple[str, WeightsSpec]]:
    return [
        (name, entry.spec)
        for name, ours in TORCHVISION.items()
        for entry in weights_of(ours).values()
    ]


def test_all_of_torchvisions_weights_are_there():
    found = {(name, f"IMAGENET1K_V{spec.name[-1]}") for name, spec in pairs()}
    assert len({name for name, _ in found}) == 20
    assert found == {
        (name, weights.name)
        for name in TORCHVISION
        for weights in torchvision.models.get_model_weights(name)
        if weights.name != "IMAGENET1K_FEATURES"  # features without a classifier
    }


@pytest.mark.parametrize(("name", "spec"), pairs(), ids=lambda value: getattr(value, "name", ""))
def test_a_spec_is_torchvisions_metadata(name, spec):
    weights = theirs(name, spec)
    meta, transforms = weights.meta, weights.transforms()
    assert spec.url == weights.url
    assert spec.bytes == round(meta["_file_size"] * 2**20)
    assert 100 * spec.accuracy["top1"] == pytest.approx(meta["_metrics"]["ImageNet-1K"]["acc@1"])
    assert 100 * spec.accuracy["top5"] == pytest.approx(meta["_metrics"]["ImageNet-1K"]["acc@5"])
    assert ([spec.resize], [*spec.input_size]) == (
        transforms.resize_size,
        transforms.crop_size * 2,
    )
    assert spec.interpolation == transforms.interpolation.value
    assert [*CLASSES] == meta["categories"]
    is_default = weights == torchvision.models.get_model_weights(name)["DEFAULT"]
    assert spec.default == is_default


@pytest.mark.parametrize(("name", "spec"), pairs(), ids=lambda value: getattr(value, "name", ""))
def test_preprocessing_has_torchvisions_pixels(name, spec, photos):
    transforms = theirs(name, spec).transforms()
    for path in photos:
        expected = transforms(Image.open(path).convert("RGB"))
        if name == "googlenet":  # torchvision's network undoes this normalisation
            mean, std = (torch.tensor(v)[:, None, None] for v in (transforms.mean, transforms.std))
            expected = (expected * std + mean - 0.5) / 0.5
        found = preprocessing_of(spec)(read_image(path, 3)[None])[0]
        assert (found - expected).abs().max() < 2e-6  # rounding of one multiplication


def networks():
    return [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in TORCHVISION
    ]


@pytest.mark.parametrize("name", networks())
def test_the_command_predicts_as_torchvision_does(name, photos, tmp_path, cnnzoo):
    weights = torchvision.models.get_model_weights(name)["DEFAULT"]
    torch.manual_seed(len(name))
    options = {"transform_input": True, "init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, **options)
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    with torch.inference_mode():
        batch = torch.stack([weights.transforms()(Image.open(path)) for path in photos])
        expected = model.eval()(batch).softmax(1).topk(5)
    args = ("--model", TORCHVISION[name], "--top-k", 5, "--json", "--device", "cpu")
    done = cnnzoo("predict", "theirs.pth", *photos, *args, cwd=tmp_path)
    assert done.code == 0, done.err
    like = find_weights(TORCHVISION[name]).spec.name
    said = f"theirs.pth: classes and preprocessing as for {like}"
    assert f"warning: {said}\n" in done.err
    found = json.loads(done.out)["predictions"]
    for n, prediction in enumerate(found):
        names = [weights.meta["categories"][k] for k in expected.indices[n].tolist()]
        assert prediction["classes"] == names
        assert prediction["probabilities"] == pytest.approx(expected.values[n].tolist(), abs=1e-5)


# Sources


@pytest.fixture
def add_weights(monkeypatch):
    """Return a function that publishes weights; its arguments are changes to ResNet-18's spec."""

    def add(**changes) -> registry.Entry[WeightsSpec]:
        like = find_weights("resnet18")
        entry = dataclasses.replace(like, spec=dataclasses.replace(like.spec, **changes))
        entries = [entry if e == like else e for e in registry.weights().entries]
        monkeypatch.setattr(registry.weights(), "entries", entries)
        # What plugins change in their specs is undone, unless it was so from the beginning.
        originals = [dict(vars(e.spec)) for e in entries]
        monkeypatch.setattr(registry.weights(), "_originals", originals)
        return entry

    return add


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A file as torchvision publishes it, of a small network."""
    path = tmp_path_factory.mktemp("file") / "resnet18-00000000.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def put(file: Path, folder: Path, name: str = "resnet18-f37072fd.pth") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(file.read_bytes())
    return folder / name


def test_a_published_file_is_known_by_its_hash(file, add_weights):
    entry = add_weights(sha256=digest(file)[:8])
    trained = Trained(file, device="cpu")
    assert trained.weights.classes == CLASSES
    assert (trained.opened.entry, trained.opened.notes) == (entry, ())


@pytest.mark.parametrize("name", ["resnet18", "resnet18:default", "resnet18:imagenet-v1"])
def test_weights_by_name_are_those_of_the_file(name, file, cache, add_weights, photos):
    add_weights(sha256=digest(file)[:8])
    put(file, cache)
    expected = predict(Trained(file, device="cpu"), photos, top_k=3)
    assert predict(name, photos, top_k=3, device="cpu") == expected


def test_create_model_takes_weights_by_name(file, cache, add_weights):
    add_weights(sha256=digest(file)[:8])
    put(file, cache)
    expected = create_model("resnet18", weights=file).state_dict()
    for name in ("default", "imagenet-v1"):
        found = create_model("resnet18", weights=name).state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    head = create_model("resnet18", weights="default", num_classes=3, new_head=True)
    assert head.state_dict()["fc.weight"].shape == (3, 512)
    with pytest.raises(UnknownNameError, match="did you mean 'resnet18:imagenet-v1'"):
        create_model("resnet18", weights="imagenet-v11")


def test_a_file_is_found_where_people_have_it(file, cache, add_weights, tmp_path, monkeypatch):
    entry = add_weights(sha256=digest(file)[:8], bytes=file.stat().st_size)
    assert not is_here(entry.spec)
    hub = put(file, tmp_path / "torch" / "hub" / "checkpoints")
    assert (is_here(entry.spec), locate(entry)) == (True, hub)
    assert not is_here(dataclasses.replace(entry.spec, bytes=entry.spec.bytes + 1))
    mirror = put(file, tmp_path / "mirror")
    monkeypatch.setenv("CNNZOO_WEIGHTS_MIRROR", str(mirror.parent))
    assert locate(entry) == mirror
    assert locate(entry) != put(file, cache) == locate(entry)


def test_a_missing_file_says_how_to_get_it_and_nothing_is_fetched(cache, cnnzoo, photos):
    done = cnnzoo("predict", "resnet18", photos[0], CNNZOO_CACHE=cache.parent, TORCH_HOME=cache)
    assert done.code == 1
    assert done.err == (
        "error: resnet18:imagenet-v1: not on this machine: 46.8 MB, BSD-3-Clause, "
        "https://download.pytorch.org/models/resnet18-f37072fd.pth\n"
        f"--download (in Python: download=True) fetches it once; or put it into {cache} by hand\n"
    )
    assert not cache.exists()


def test_another_file_of_that_name_is_refused(file, cache, add_weights):
    entry = add_weights()
    path = put(file, cache)
    with pytest.raises(CorruptError) as caught:
        locate(entry)
    assert str(caught.value) == (
        f"{path}: SHA-256 {digest(file)[:16]}…, but resnet18:imagenet-v1 has f37072fd…\n"
        "delete it; --download (in Python: download=True) replaces it"
    )


def test_weights_of_a_package_that_is_missing_name_it(add_weights):
    place = {"url": "", "file": "no_such_package:a/b.pth", "requires": "cnn-arch-x[weights]"}
    with pytest.raises(WeightsMissingError, match=r'pip install "cnn-arch-x\[weights\]"'):
        locate(add_weights(**place))


WRONG = {
    "resnet5o": "'resnet5o' is neither a run, a file nor a model, did you mean 'resnet50'",
    "nothing.pth": "nothing.pth: no such file or run",
    "runs/nothing": "runs/nothing: no such file or run",
    "unet": "there are no published weights of 'unet'",
    "resnet50:imagenet-v3": "unknown weights 'resnet50:imagenet-v3', did you mean",
}


@pytest.mark.parametrize("source", WRONG)
def test_a_source_that_is_none_is_explained(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        open_source(source)
    assert WRONG[source] in str(caught.value)


def test_options_that_do_not_apply_are_errors(digits_run, file):
    for options in ({"model": "lenet5"}, {"naming": "timm"}):
        with pytest.raises(UsageError, match="is for weights files of other libraries"):
            open_source(digits_run.path, **options)
    with pytest.raises(UsageError, match=r"nothing\.pth: no such file or run"):
        open_source("nothing.pth", model="resnet18")
    with pytest.raises(UsageError, match="nothing to download"):
        open_source(file, model="resnet18", download=True)
    with pytest.raises(UsageError, match="which network are these weights for"):
        open_source(file)


@pytest.mark.parametrize(("classes", "channels"), [(3, 3), (7, 1)])
def test_numbers_of_classes_and_channels_are_those_of_the_file(classes, channels, tmp_path):
    model = create_model("resnet18", num_classes=classes, in_channels=channels)
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    opened = open_source(tmp_path / "mine.pth", model="resnet18")
    assert (opened.weights.num_classes, opened.weights.in_channels) == (classes, channels)
    assert opened.weights.classes == tuple(f"class {n}" for n in range(classes))
    scaling = "preprocessing as for" if channels == 3 else "images resized to 224x224, with values"
    assert opened.notes[0].startswith(f"{tmp_path / 'mine.pth'}: class names unknown, {scaling}")


# Exported files


@pytest.mark.parametrize("pictures", [False, True])
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_an_exported_file_predicts_like_its_run(suffix, pictures, digits_run, photos, tmp_path):
    path = tmp_path / f"digits{suffix}"
    export(digits_run, path, pictures=pictures)
    expected = predict(digits_run, photos, top_k=3, device="cpu")
    found = predict(path, photos, top_k=3, device="cpu")
    assert [p.classes for p in found] == [p.classes for p in expected]
    # The photographs are resized: their pixels are whole grey levels with and without pictures.
    np.testing.assert_allclose(
        [p.probabilities for p in found], [p.probabilities for p in expected], atol=1e-5
    )
    measured = evaluate(path, data="digits", device="cpu")
    assert measured["top1"] == evaluate(digits_run, device="cpu")["top1"]


def test_a_file_that_cnnzoo_did_not_export_is_refused(tmp_path):
    for name in ("a.onnx", "a.pt2"):
        (tmp_path / name).write_bytes(b"PK not what it says")
        with pytest.raises(CorruptError, match=f"{name}: not a readable exported file"):
            open_source(tmp_path / name)
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(1),))
    torch.export.save(program, tmp_path / "theirs.pt2")
    with pytest.raises(CorruptError, match="has no metadata of cnnzoo"):
        open_source(tmp_path / "theirs.pt2")


# Other data


def folder_of(root: Path, names: list[str]) -> Path:
    """Write a few digits into folders with these names, for the classes 0, 1, 2 and so on."""
    digits = load_dataset("digits").split("test")
    for number, name in enumerate(names):
        (root / "test" / name).mkdir(parents=True)
        (root / "train" / name).mkdir(parents=True)
        chosen = (digits.targets == number).nonzero().flatten()[:6].tolist()
        for index in chosen:
            image = Image.fromarray(digits.images[index, 0].numpy())
            for part in ("train", "test"):
                image.save(root / part / name / f"{index}.png")
    return root


def test_a_run_is_evaluated_on_other_data_with_classes_matched_by_name(
    digits_run, tmp_path, caplog
):
    names = [*Trained(digits_run).weights.classes[:4]]
    data = f"imagefolder:{folder_of(tmp_path / 'new', names)}"
    measured = evaluate(digits_run, data=data, device="cpu")
    assert measured["top1"] > 0.8
    assert f"{data}: classes matched by name: 4 of the network's 10" in caplog.text
    # The same images under permuted names: nothing is right any more.
    moved = f"imagefolder:{folder_of(tmp_path / 'moved', names[1:] + names[:1])}"
    assert evaluate(digits_run, data=moved, device="cpu")["top1"] < 0.2


def test_missing_data_names_weights_whose_data_is_here(in_process, tmp_path, monkeypatch):
    monkeypatch.setenv("CNNZOO_CACHE", str(tmp_path))
    code, _, err = in_process("evaluate", "lenet5_modern")
    assert code == 1
    assert err.startswith("error: dataset 'mnist': no train-images-idx3-ubyte")
    assert err.endswith("\nweights whose data is here: lenet5_modern:digits\n")
    assert (
        "weights whose data" not in in_process("evaluate", "lenet5_modern", "--data", "mnist")[2]
    )


def test_misspelt_paths_and_folders_get_suggestions(in_process, digits_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    shutil.copytree(digits_run.path, "runs/mine")
    Path("runs/mienen").mkdir()  # not a run
    Path("new").mkdir()
    shutil.copy("runs/mine/weights.safetensors", "mine.safetensors")
    for given, meant in (("runs/mien", "runs/mine"), ("min.safetensors", "mine.safetensors")):
        _, _, err = in_process("predict", given, "new")
        assert err.startswith(f"error: {given}: no such file or run, did you mean '{meant}'?\n")
    for command in (("evaluate", "runs/mine"), ("train", "lenet5_modern")):
        _, _, err = in_process(*command, "--data", "new")
        assert "unknown dataset 'new'\nfor the images in this folder: imagefolder:new; " in err


@pytest.fixture
def digit_folder(tmp_path):
    """Forty digits of the test split, four of each class, in folders of classes only."""
    digits = load_dataset("digits").split("test")
    for number in range(10):
        folder = tmp_path / "new" / str(number)
        folder.mkdir(parents=True)
        for index in (digits.targets == number).nonzero().flatten()[:4].tolist():
            Image.fromarray(digits.images[index, 0].numpy()).save(folder / f"{index}.png")
    return tmp_path / "new"


def test_all_images_of_a_new_folder_are_measured(in_process, digits_run, digit_folder, caplog):
    data = f"imagefolder:{digit_folder}"
    found = predict(digits_run, digit_folder)
    right = sum(Path(str(p.path)).parent.name == p.classes[0] for p in found)
    code, out, err = in_process("evaluate", digits_run.path, "--data", data, "--json")
    told = json.loads(out)
    assert (code, told["split"], told["images"]) == (0, "all", 40)
    assert told["metrics"]["all/top1"] == right / 40
    assert tuple(told["intervals"]["all/top1"]) == pytest.approx(wilson(right, 40))
    _, out, err = in_process("evaluate", digits_run.path, "--data", data)
    assert f"on {data}, split all: 40 images (no split folders)" in err
    assert f"{100 * right / 40:.2f} %" in out
    assert evaluate(digits_run, data=data) == pytest.approx(
        {name.partition("/")[2]: value for name, value in told["metrics"].items()}
    )
    _, _, err = in_process("evaluate", digits_run.path, "--data", data, "--split", "test")
    assert "split test: 10 images" in err
    assert "split 'test': 10 of the 40 images of" in caplog.text + err


def test_the_folder_of_the_training_is_not_new(digit_folder, tmp_path, caplog):
    data = f"imagefolder:{digit_folder}"
    run = train("lenet5_modern", data, epochs=1, out=tmp_path / "run")
    digit_folder.rename(tmp_path / "moved")
    for given in (f"imagefolder:{tmp_path / 'moved'}", data):
        if given == data:
            (tmp_path / "moved").rename(digit_folder)
            shutil.copy(next(digit_folder.rglob("*.png")), digit_folder / "0" / "more.png")
        trained = Trained(run, data=given)
        assert trained.default_split == "test"
        assert len(trained.split("all")) == sum(map(len, trained.dataset.splits.values()))
    assert "split 'test'" not in caplog.text


def test_evaluations_say_what_they_measured_beside_the_claim(in_process):
    _, out, err = in_process("evaluate", "lenet5_modern:digits")
    head, _, top1, *_ = out.splitlines()
    assert err == "lenet5_modern:digits on digits, split test: 359 images\n"
    assert head.split("  ")[-1] == "claimed"
    low, high = (100 * limit for limit in wilson(355, 359))
    expected = ["test/top1", "98.89 %", f"{low:.2f} to {high:.2f} %", "98.89 %"]
    assert re.split(r"  +", top1) == expected
    _, out, err = in_process("evaluate", "lenet5_modern:digits", "--split", "all", "--json")
    told = json.loads(out)
    assert (told["images"], told["claimed"]) == (1797, {})


def test_classes_that_the_network_does_not_know_are_named(digits_run, tmp_path):
    data = f"imagefolder:{folder_of(tmp_path / 'new', ['1', 'cat', 'dog'])}"
    with pytest.raises(UsageError) as caught:
        evaluate(digits_run, data=data, device="cpu")
    assert "the network has no class, or several, called 'cat', 'dog'" in str(caught.value)


def test_grey_images_for_a_colour_network_are_converted_with_a_line(file, caplog):
    trained = Trained(file, model="resnet18", data="digits", device="cpu")
    names = load_dataset("digits").spec.classes + CLASSES[10:]
    trained.opened = dataclasses.replace(
        trained.opened, weights=dataclasses.replace(trained.weights, classes=names)
    )
    assert trained.dataset.split("test").images.shape[1] == 3
    assert "digits: images converted to RGB" in caplog.text


def test_two_folders_never_become_one_class(digits_run):
    weights = dataclasses.replace(Trained(digits_run).weights, classes=("a b", "A-B", *"23456789"))
    digits = load_dataset("digits")

    def named(*classes: str) -> Dataset:
        return Dataset(dataclasses.replace(digits.spec, classes=classes), {})

    # The same spelling comes first; without one, the name could be either.
    assert matched(named("A-B", "2", "a b"), weights, "mine").spec.classes == weights.classes
    with pytest.raises(UsageError, match="or several, called 'a_b'"):
        matched(named("a_b", "2"), weights, "mine")
    weights = dataclasses.replace(weights, classes=("a b", *"123456789"))
    with pytest.raises(UsageError, match="'a_b' and 'A b' are the same class of the"):
        matched(named("a_b", "2", "A b"), weights, "mine")


def test_weights_without_a_run_ask_for_data_in_words(file):
    trained = Trained(file, model="resnet18", device="cpu")
    with pytest.raises(UsageError, match="say which images to use: --data"):
        evaluate(trained)
    with pytest.raises(UsageError, match="weights without a run"):
        assert trained.run


# Listing


def test_the_list_says_what_is_here_and_imports_nothing_heavy(cache, cnnzoo, site):
    done = cnnzoo("list-weights", "resnet*imagenet*", "--json", CNNZOO_CACHE=cache.parent)
    rows = json.loads(done.out)["weights"]
    assert [row["name"] for row in rows][:3] == [
        "resnet18:imagenet-v1",
        "resnet34:imagenet-v1",
        "resnet50:imagenet-v1",
    ]
    assert not any(row["here"] for row in rows)
    done = cnnzoo("list-weights", "lenet*", CNNZOO_CACHE=cache.parent)
    assert "lenet5:mnist *" in done.out
    assert done.err == "* the default weights of a model: used if only the model is named\n"
    code = (
        "import sys; from click.testing import CliRunner; from cnn_core.cli.app import main\n"
        "import cnn_core.cli.list_weights as module\n"
        "done = CliRunner().invoke(module.command, []); assert done.exit_code == 0, done\n"
        "print([name for name in ('torch', 'numpy', 'PIL') if name in sys.modules])"
    )
    assert site.run(code).stdout.strip() == "[]"
