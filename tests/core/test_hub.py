"""Sharing on the Hugging Face Hub: what is pushed comes back, and one error for every fault."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import ModelCard, constants

from cnn_core import create_model, evaluate, export, predict, registry
from cnn_core.cli import main
from cnn_core.create import build
from cnn_core.data import Preprocessing
from cnn_core.errors import (
    CorruptError,
    ResourceError,
    UntrustedWeightsError,
    UsageError,
    WeightsMissingError,
    ZooError,
)
from cnn_core.runs.recipe import Recipe
from cnn_core.training import Run, Trained, model_card, push, sharing
from cnn_core.training.sources import open_source
from cnn_core.weights.blueprint import key_maps
from cnn_core.weights.native import Weights, read_weights, write_weights
from servers import Hub

NAME = "hf:me/net"
NOBODY = "http://127.0.0.1:1"  # nobody listens there
IMAGES = torch.randint(0, 256, (3, 3, 70, 90), dtype=torch.uint8, generator=torch.Generator())


def point_to(address: str, monkeypatch) -> None:
    """Do what HF_ENDPOINT does when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture(autouse=True)
def never_the_real_hub(monkeypatch):
    """No test of this file may reach another machine, whatever it does wrong."""
    point_to(NOBODY, monkeypatch)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of its own, an empty cache, and a token."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
    with Hub() as running:
        point_to(running.address, monkeypatch)
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def offline(hub, monkeypatch):
    """Return a function after which no address answers."""
    return lambda: point_to(NOBODY, monkeypatch)


def written(folder: Path, model: str, *, options=None, channels: int = 3) -> Path:
    """Write the weights of a new network, with statistics that are not those of a new one."""
    torch.manual_seed(0)
    network = create_model(model, num_classes=3, in_channels=channels, **(options or {}))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
    preprocessing = Preprocessing(
        size=(64, 64),
        image_size=(0, 0),
        fit="crop",
        mean=(0.4, 0.5, 0.6)[:channels],
        std=(0.2, 0.3, 0.25)[:channels],
        resize=73,  # 64 / 73 is no decimal fraction
        interpolation="bicubic",
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(
        folder / "weights.safetensors",
        Weights(
            tensors=network.state_dict(),
            model=model,
            num_classes=3,
            in_channels=channels,
            options=options or {},
            classes=("cat", "dog", "größer"),
            preprocessing=preprocessing,
            epoch=1,
        ),
    )
    return folder / "weights.safetensors"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The weights of a network that timm has, too."""
    return written(tmp_path_factory.mktemp("small"), "mobilenet_v2")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """The weights of a network that timm lacks."""
    return written(tmp_path_factory.mktemp("tiny"), "lenet5_modern", channels=1)


@pytest.fixture(scope="module")
def timms(tmp_path_factory) -> Path:
    """A folder that timm wrote, of a network with weights of its own."""
    folder = tmp_path_factory.mktemp("timms")
    torch.manual_seed(1)
    model = timm.create_model("mobilenetv2_100", num_classes=3)
    timm.models.save_for_hf(
        model,
        folder,
        model_config={"label_names": ["cat", "dog", "owl"]},
        safe_serialization=True,
    )
    return folder


def on_hub(hub, folder: Path, **changes: bytes | None) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    changes = {name.replace("_", "."): data for name, data in changes.items()}
    files = {name: data for name, data in {**files, **changes}.items() if data is not None}
    hub.add("me/net", files, licence="apache-2.0")


# Push


def test_a_run_comes_back_from_the_hub(hub, digits_run, offline, capsys):
    done = push(digits_run, NAME, licence="mit")
    assert done.place == f"{hub.address}/me/net"
    assert sorted(hub.repositories["me/net"]["files"]) == [
        *(".gitattributes", "README.md", "model.safetensors"),
    ]
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    expected = predict(digits_run, images, device="cpu")
    assert predict(Trained(NAME, download=True, device="cpu"), images) == expected
    # The hub of these tests does not read cards.
    said = f"downloading hf:me/net (0.2 MB, licence: not given) from {hub.address}/me/net\n"
    assert capsys.readouterr().err == said
    offline()
    asked = len(hub.asked)
    assert predict(NAME, images, device="cpu") == expected
    # Not the loss, in which a run smooths its labels.
    found, wanted = (
        evaluate(source, data="digits", device="cpu") for source in (NAME, digits_run)
    )
    assert (found["top1"], found["top5"]) == (wanted["top1"], wanted["top5"])
    assert len(hub.asked) == asked


def test_the_card_has_the_facts_of_the_run(hub, digits_run):
    done = push(digits_run, NAME, licence="cc-by-4.0")
    card = ModelCard(hub.repositories["me/net"]["files"]["README.md"].decode())
    data = card.data
    assert (data.license, data.library_name, data.datasets) == ("cc-by-4.0", "cnnzoo", ["digits"])
    assert data.pipeline_tag == "image-classification"
    (result,) = data.eval_results
    measured = evaluate(digits_run, device="cpu")
    assert result.metric_value == pytest.approx(measured["top1"], abs=1e-6)
    assert done.metrics == measured
    recalls = [line.split(" | ") for line in card.text.splitlines() if line.startswith("| ")]
    recalls = [row for row in recalls if len(row) == 3 and row[0].strip("| ").isdigit()]
    assert [row[0] for row in recalls] == [f"| {digit}" for digit in range(10)]
    hits = sum(int(row[1]) * float(row[2].rstrip(" |")) for row in recalls)
    assert hits / 359 == pytest.approx(measured["top1"], abs=1e-4)
    for fact in ("seed 0", "lr = 0.003", "LeCun and L. Bottou", "[0.305]", "CC BY 4.0"):
        assert fact in card.text
    assert f'cnn_core.Predictor("{NAME}", download=True)' in card.text


def test_a_segmentation_has_its_results_by_class(hub, scenes_run):
    push(scenes_run, NAME, licence="mit")
    card = ModelCard(hub.repositories["me/net"]["files"]["README.md"].decode())
    measured = evaluate(scenes_run, device="cpu")
    assert {r.metric_type for r in card.data.eval_results} == {"mean_iou", "accuracy"}
    assert f"| background |  | {measured['iou/background']:.4f} |" in card.text
    assert "iou/background" not in card.text
    opened = open_source(NAME, download=True)
    assert opened.weights.model == "unet_same"
    assert opened.weights.options == {"width": 4, "depth": 2}


def test_no_folder_of_this_machine_is_in_the_card(digits_run, monkeypatch, tmp_path):
    recipe = Recipe(
        **{"model": "lenet5_modern", "data": "imagefolder:/data/me/patients"},
        weights="/data/me/runs/first",
    )
    shown = model_card._without_paths(recipe).to_toml()
    assert 'data = "imagefolder:PATH"' in shown
    assert 'weights = "first"' in shown
    assert "/data" not in shown
    digits_run = Run(digits_run.path, recipe)
    assert model_card._data_of(Trained(digits_run)) == "imagefolder"


def test_names_of_classes_cannot_break_the_card():
    assert model_card._cell("a|b\n# <script> [x](y)") == r"a\|b \# \<script\> \[x\](y)"


def test_a_folder_can_be_looked_at_first(hub, small, tmp_path, capsys):
    out = tmp_path / "look"
    args = ["push", str(small), NAME, "--licence", "mit", "--out", str(out)]
    assert main(args) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert said.err == (
        "for cnnzoo and timm, nothing measured (--data DATASET measures)\n"
        f"to upload it as it is: hf upload me/net {out}\n"
    )
    assert hub.asked == []
    assert sorted(path.name for path in out.iterdir()) == [
        *("README.md", "config.json", "model.safetensors"),
    ]
    with pytest.raises(UsageError, match="is here already: there is nothing to download"):
        open_source(out, download=True)
    ours = predict(small, IMAGES, top_k=3, device="cpu")
    assert predict(out, IMAGES, top_k=3, device="cpu") == ours
    assert main(args) == 2
    assert capsys.readouterr().err == f"error: {out}: already exists\n--force replaces it\n"
    assert main([*args, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shared"]["timm"] is True


def test_what_cannot_be_pushed_is_refused(hub, tiny, digits_run, tmp_path):
    exported = export(digits_run, tmp_path / "net.pt2").path
    wrong = [
        ((exported, NAME), {}, "an exported file, which cannot be pushed"),
        ((tiny, "me/net"), {}, "'me/net': expected hf:OWNER/NAME"),
        ((tiny, f"{NAME}@v1"), {}, "uploads go to the main branch"),
        ((tiny, NAME), {"licence": "MIT License"}, "licence = 'MIT License': expected an ident"),
        ((tiny, NAME), {"licence": "foo"}, "licence = 'foo': expected an identifier of the hub"),
        ((tiny, NAME), {"licence": "apache2.0"}, "hub, did you mean 'apache-2.0'"),
        ((tiny, NAME), {"licence": "licenseref-mine"}, "expected an identifier"),
        ((tiny, NAME), {"out": tmp_path / "x", "private": True}, "--private is for uploads"),
    ]
    for arguments, options, message in wrong:
        with pytest.raises(UsageError, match=message):
            push(*arguments, **{"licence": "mit", **options})
    assert (hub.asked, hub.repositories) == ([], {})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("licence", ["mit", "cc-by-nc-sa-4.0", "openrail", "other", "0bsd"])
def test_licences_of_spdx_and_of_the_hub_are_known(licence):
    assert sharing._is_identifier(licence)


def test_published_weights_keep_their_licence(hub, tmp_path, capsys):
    args = ["push", "lenet5:mnist", NAME, "--out", str(tmp_path / "out"), "--licence"]
    assert main([*args, "apache-2.0"]) == 2
    assert capsys.readouterr().err == (
        "error: lenet5:mnist: its publisher gives it under the licence MIT, not apache-2.0\n"
        "--licence mit\n"
    )
    assert not (tmp_path / "out").exists()
    assert main([*args, "mit"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "numbers in the file, parameters\n" in card
    assert "published with the package cnn-arch-lenet (README of cnn-arch-lenet) under MIT" in card
    assert "`cnnzoo train lenet5 --data mnist --recipe lenet5-mnist`" in card
    args[1:2] = ["lenet5_modern:digits"]
    capsys.readouterr()
    assert main([*args, "mit", "--force"]) == 0
    assert "measured: top1 0.9889" in capsys.readouterr().err


def test_a_licence_must_be_given(tiny, capsys):
    assert main(["push", str(tiny), NAME]) == 2
    assert "--licence" in capsys.readouterr().err


def test_a_repository_with_files_is_kept(hub, tiny):
    hub.add("me/net", {".gitattributes": b"", "model.safetensors": b"mine"})
    before = dict(hub.repositories["me/net"]["files"])
    with pytest.raises(UsageError, match=r"hf:me/net: has files already: http.*\n--force adds"):
        push(tiny, NAME, licence="mit")
    with pytest.raises(UsageError, match="is public, and --private does not change that"):
        push(tiny, NAME, licence="mit", private=True, force=True)
    assert hub.repositories["me/net"]["files"] == before
    push(tiny, NAME, licence="mit", force=True)
    assert hub.repositories["me/net"]["files"]["model.safetensors"] != b"mine"
    push(tiny, "hf:me/hidden", licence="mit", private=True)
    assert hub.repositories["me/hidden"]["private"]


UPLOAD_FAULTS = {
    "repos/create": ((401, ""), "hf:me/net: refused: http.*\n.*hf auth login"),
    "preupload": ((403, ""), "hf:me/net: refused: http.*\n.*hf auth login"),
    "/commit/": ((500, ""), "hf:me/net: cannot be uploaded: HfHubHTTPError"),
    "yaml": (['"license" must be one of'], "cannot be uploaded: ValueError: .*must be one of"),
}


@pytest.mark.parametrize("fault", UPLOAD_FAULTS)
def test_an_upload_that_fails_is_one_error_and_leaves_no_files(fault, hub, tiny):
    hub.faults[fault], message = UPLOAD_FAULTS[fault]
    with pytest.raises(ZooError, match=message) as caught:
        push(tiny, NAME, licence="mit")
    assert len(str(caught.value).splitlines()) <= 3
    left = hub.repositories.get("me/net", {"files": {".gitattributes": b""}})
    assert [*left["files"]] == [".gitattributes"]
    if fault in ("repos/create", "yaml"):
        assert hub.repositories == {}
    hub.faults.clear()
    assert push(tiny, NAME, licence="mit").place == f"{hub.address}/me/net"


def test_a_hub_that_is_not_there_is_one_error(hub, tiny, offline):
    offline()
    with pytest.raises(ZooError, match=r"hf:me/net: cannot be uploaded: ConnectError"):
        push(tiny, NAME, licence="mit")


# Download


def test_without_permission_nothing_is_asked_for(hub, timms, capsys):
    on_hub(hub, timms)
    with pytest.raises(WeightsMissingError) as caught:
        open_source(NAME)
    assert str(caught.value) == (
        f"hf:me/net: not on this machine: {hub.address}/me/net\n"
        "--download (in Python: download=True) fetches it, after a line with its size and licence"
    )
    assert hub.asked == []
    open_source(NAME, download=True)
    said = f"downloading hf:me/net (9.1 MB, licence: apache-2.0) from {hub.address}/me/net\n"
    assert said == capsys.readouterr().err


def test_download_fetches_the_newest_version(hub, timms, digits_run, capsys):
    on_hub(hub, timms)
    first = open_source(NAME, download=True).weights
    assert first.classes == ("cat", "dog", "owl")
    capsys.readouterr()
    open_source(NAME, download=True)  # it is here already
    assert capsys.readouterr().err == ""
    push(digits_run, NAME, licence="mit", force=True)
    assert open_source(NAME).weights.classes == first.classes
    assert open_source(NAME, download=True).weights.classes == tuple("0123456789")
    # timm's description of the weights before is not left beside the new ones.
    assert "config.json" not in hub.repositories["me/net"]["files"]
    sha = "0123456789abcdef0123456789abcdef00000001"
    assert open_source(f"{NAME}@{sha}").weights.classes == first.classes


DOWNLOAD_FAULTS = {
    "absent": ((404, "RepoNotFound"), "does not exist, or it is private: http.*\n.*hf auth login"),
    "private": ((401, ""), "does not exist, or it is private: http.*\n.*hf auth login"),
    "gated": ((403, "GatedRepo"), "its owner asks for your agreement first\ngive it at http"),
    "revision": ((404, "RevisionNotFound"), "has no revision 'None'"),
    "broken": ((500, ""), "cannot be downloaded: HfHubHTTPError: Server error '500"),
}


@pytest.mark.parametrize("fault", DOWNLOAD_FAULTS)
def test_whatever_a_hub_does_there_is_one_error(fault, hub, timms):
    on_hub(hub, timms)
    hub.faults["/api/models"], message = DOWNLOAD_FAULTS[fault]
    with pytest.raises(WeightsMissingError, match=message) as caught:
        open_source(NAME, download=True)
    assert len(str(caught.value).splitlines()) <= 3
    with pytest.raises(WeightsMissingError, match="not on this machine"):
        open_source(NAME)


def test_a_download_that_is_cut_off_is_not_used_and_goes_on(hub, timms):
    on_hub(hub, timms)
    hub.faults["cut"] = 1_000_000
    with pytest.raises(WeightsMissingError, match="cannot be downloaded"):
        open_source(NAME, download=True)
    with pytest.raises(WeightsMissingError, match="not on this machine"):
        open_source(NAME)
    hub.faults.clear()
    assert open_source(NAME, download=True).weights.model == "mobilenet_v2"


def test_no_network_and_no_space_are_named(hub, timms, offline, monkeypatch):
    on_hub(hub, timms)

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.file_download, "http_get", full)
        with pytest.raises(ResourceError, match="no space left on the disk of"):
            open_source(NAME, download=True)
    offline()
    with pytest.raises(WeightsMissingError, match="cannot be downloaded: ConnectError"):
        open_source(NAME, download=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsMissingError, match="HF_HUB_OFFLINE is set"):
        open_source(NAME, download=True)


def test_without_huggingface_hub_it_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for act in (lambda: open_source(NAME), lambda: push(tiny, NAME, licence="mit")):
        with pytest.raises(UsageError) as caught:
            act()
        assert str(caught.value) == (
            'huggingface_hub is not installed\npip install "cnn-core[hub]"'
        )


@pytest.mark.parametrize("name", ["hf:me", "hf:me/net/more", "hf:/net", "hf:me/net@", "hf:../x"])
def test_names_are_checked_before_anything_is_asked(hub, name):
    with pytest.raises(ZooError):
        open_source(name, download=True)
    assert hub.asked == []


CONFIG = {"architecture": "mobilenetv2_100", "num_classes": 3}
WRONG_FILES = {
    "no weights": ({"model_safetensors": None}, WeightsMissingError, "has no model.safetensors"),
    "no config": ({"config_json": None}, CorruptError, "no description of the network"),
    "no json": ({"config_json": b"{"}, CorruptError, "not a description of a network by timm"),
    "a list": ({"config_json": b"[]"}, CorruptError, "not a description of a network by timm"),
    "broken": ({"model_safetensors": b"\xff" * 99}, UntrustedWeightsError, "loaded safely"),
    "unknown": ({"architecture": "vit_tiny"}, UsageError, "'vit_tiny' of timm: cnnzoo has no"),
    "another": ({"architecture": "resnet18"}, UsageError, "fits|missing|matches"),
    "channels": ({"pretrained_cfg": {"mean": [0.5]}}, CorruptError, r"mean = \(0.5,\) and std"),
    "labels": ({"label_names": ["a"]}, CorruptError, "label_names: expected 3 names"),
    "way": (
        {"pretrained_cfg": {"crop_mode": "border"}},
        UsageError,
        "crop_mode 'border' .* cnnzoo cannot prepare images like this",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_wrong_files_are_one_error(wrong, hub, timms):
    changes, kind, message = WRONG_FILES[wrong]
    if not any(name.endswith(("_json", "_safetensors")) for name in changes):
        changes = {"config_json": json.dumps({**CONFIG, **changes}).encode()}
    on_hub(hub, timms, **changes)
    with pytest.raises(kind, match=message) as caught:
        open_source(NAME, download=True)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 10**9}, "its tensors are not those of 'mobilenet_v2' with 1,000,000,000"),
        ({"options": {"width": 1000.0}}, "its tensors are not those of 'mobilenet_v2' with 3 cl"),
        ({"options": {"weights": "hf:x/y", "download": True}}, "option 'download' is not one of"),
    ],
)
def test_what_a_stranger_wrote_is_neither_larger_than_its_file_nor_fetches_more(
    changes, message, hub, small, tmp_path
):
    path = tmp_path / "model.safetensors"
    write_weights(path, replace(read_weights(small), **changes))
    hub.add("me/net", {path.name: path.read_bytes()})
    for load in (open_source, lambda name, **o: create_model("mobilenet_v2", weights=name, **o)):
        with pytest.raises(CorruptError, match=message):
            load(NAME, download=True)
    assert not any("x/y" in path for path in hub.asked)


# timm


FAMILIES = {
    "resnet18": {},
    "densenet121": {},
    "mobilenet_v1": {"activation": "relu6"},
    "efficientnet_lite0": {},
}


@pytest.mark.parametrize("model", FAMILIES)
def test_timm_reads_what_is_pushed(model, tmp_path):
    file = written(tmp_path / "file", model, options=FAMILIES[model])
    assert push(file, NAME, licence="mit", out=tmp_path / "out").timm
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    weights = read_weights(file)
    inputs = weights.preprocessing(IMAGES)
    with torch.inference_mode():
        assert torch.equal(theirs(inputs), build(weights)(inputs))
        again = build(read_weights(tmp_path / "out" / "model.safetensors"))
        assert torch.equal(again(inputs), theirs(inputs))


@pytest.mark.parametrize("channels", [1, 3])
def test_timm_prepares_images_like_us(channels, tmp_path):
    from PIL import Image

    file = written(tmp_path / "file", "mobilenet_v2", channels=channels)
    push(file, NAME, licence="mit", out=tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert model.pretrained_cfg["label_names"] == ["cat", "dog", "größer"]
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    pixels = IMAGES[0].permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
    ours = read_weights(file).preprocessing(IMAGES[:1, :channels])[0]
    assert (transform(image) - ours).abs().max() < 1e-6


def test_we_read_what_timm_wrote(hub, timms):
    on_hub(hub, timms)
    theirs = timm.create_model(f"local-dir:{timms}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(theirs)
    opened = open_source(NAME, download=True)
    found = opened.weights.preprocessing
    assert (opened.weights.model, opened.weights.classes) == (
        *("mobilenet_v2", ("cat", "dog", "owl")),
    )
    assert ([*found.mean], [*found.std]) == (config["mean"], config["std"])
    assert (found.resize, found.interpolation) == (256, config["interpolation"])
    inputs = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = theirs(inputs)
        for model in (opened.model, create_model("mobilenet_v2", weights=NAME).eval()):
            assert torch.equal(model(inputs), expected)
    with pytest.raises(UsageError, match="weights of 'mobilenet_v2', not of 'resnet18'"):
        create_model("resnet18", weights=NAME)


def named_by_timm() -> list[tuple[str, str]]:
    return [
        (entry.spec.name, naming)
        for _, entry in registry.models()
        for naming, keymap in key_maps(entry).items()
        if keymap.timm
    ]


@pytest.mark.slow
def test_networks_with_a_name_of_timm_have_its_parameters():
    found = named_by_timm()
    assert len(found) == 14
    for name, naming in found:
        keymap = key_maps(registry.models().entry(name))[naming]
        with torch.device("meta"):
            theirs = timm.create_model(keymap.timm).state_dict()
            ours = keymap.to_theirs(create_model(name, **keymap.options).state_dict())
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_options_that_timm_lacks_keep_our_names(tmp_path):
    file = written(tmp_path / "file", "mobilenet_v1", options={"activation": "relu"})
    assert not push(file, NAME, licence="mit", out=tmp_path / "out").timm
    assert not (tmp_path / "out" / "config.json").exists()


# Training


def test_training_starts_from_a_repository(hub, digits_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    push(digits_run, NAME, licence="mit")
    args = ["finetune", NAME, "--data", "digits", "--epochs", "1"]
    assert main([*args, "--download", "--out", "run"]) == 0
    recipe = Run.open("run").recipe
    assert (recipe.model, recipe.weights) == ("lenet5_modern", NAME)
    assert recipe.weights_digest == open_source(NAME).weights.digest
    shutil.rmtree(constants.HF_HUB_CACHE)
    assert main([*args, "--out", "other"]) == 1
    assert not Path("other").exists()
