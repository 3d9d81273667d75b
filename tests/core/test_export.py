"""Files of networks that run without their Python: they compute the same, or are not there."""

from __future__ import annotations

import copy
import json
import re
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch

from cnn_core import create_model, export, registry
from cnn_core.create import build
from cnn_core.data import Preprocessing
from cnn_core.errors import NumericalError, UnknownNameError, UsageError, ZooError
from cnn_core.training import exporting
from cnn_core.weights.native import Weights, read_weights, write_weights

ROOT = Path(__file__).parents[2]
FORMATS = ("torch-export", "onnx")


def written(folder, name="lenet5_modern", *, size=None, **changes) -> Path:
    """A folder with the weights of a new network, as a training leaves them."""
    spec = registry.get_spec(name)
    options = changes.pop("options", {})
    size = (size or spec.min_size,) * 2
    channels = spec.input[0]
    like = {"size": size, "image_size": size, "fit": "resize"}
    like |= {"mean": (0.3, 0.4, 0.5)[:channels], "std": (0.2, 0.3, 0.25)[:channels], **changes}
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, in_channels=channels, **options)
    for module in model.modules():  # running statistics that are not those of a new network
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
    folder.mkdir(exist_ok=True)
    write_weights(
        folder / "weights.safetensors",
        Weights(
            tensors=model.state_dict(),
            model=name,
            num_classes=3,
            in_channels=channels,
            options=options,
            classes=("cat", "dog", "größer"),
            preprocessing=Preprocessing(**like),
            epoch=1,
        ),
    )
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    return written(tmp_path / "run")


def opened(path, format):
    """What the file computes, read by the library that it is for."""
    if format == "torch-export":
        return torch.export.load(path).module()
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path)
    (name,) = (i.name for i in session.get_inputs())
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def needs(format):
    if format == "onnx":
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("pictures", [False, True])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lenet5", {}),
        ("lenet5_modern", {"image_size": (28, 28), "fit": "pad"}),
        ("resnet20_cifar", {}),
        (
            "unet_same",
            {"options": {"width": 4, "depth": 2}, "image_size": (50, 70), "fit": "tile"},
        ),
    ],
)
def test_the_file_computes_what_the_network_does(tmp_path, name, changes, pictures, format):
    needs(format)
    run = written(tmp_path / "run", name, size=32, **changes)
    done = export(run, format=format, pictures=pictures)
    assert done.path == run / f"{name}{exporting.FORMATS[format]}"
    assert done.dtype == ("uint8" if pictures else "float32")
    assert done.input[1:] == ((28, 28) if pictures and changes.get("fit") == "pad" else (32, 32))
    assert done.difference < 1e-5
    compute, weights = opened(done.path, format), read_weights(run)
    for count in (1, 2, 7):
        images = torch.randint(0, 256, (count, *done.input), dtype=torch.uint8)
        inputs = weights.preprocessing(images)
        with torch.no_grad():
            expected = build(weights)(inputs)
        found = compute(images if pictures else inputs)
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max())


FACTS = {
    "model": "lenet5_modern",
    "task": "classification",
    "classes": ["cat", "dog", "größer"],
    "mean": [0.3],
    "std": [0.2],
    "size": [32, 32],
    "image_size": [28, 28],
    "fit": "pad",
    "takes": "normalised float32",
}


def test_a_pt2_says_what_it_holds(tmp_path):
    run = written(tmp_path / "run", image_size=(28, 28), fit="pad")
    extra = {"cnnzoo.json": ""}
    torch.export.load(export(run).path, extra_files=extra)
    assert FACTS.items() <= json.loads(extra["cnnzoo.json"]).items()


def test_an_onnx_file_says_what_it_holds_and_is_sound(tmp_path):
    onnx = pytest.importorskip("onnx")
    needs("onnx")
    run = written(tmp_path / "run", image_size=(28, 28), fit="pad")
    model = onnx.load(export(run, format="onnx").path)
    onnx.checker.check_model(model, full_check=True)
    facts = {prop.key: prop.value for prop in model.metadata_props}
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in FACTS.items()}
    assert texts.items() <= facts.items()
    assert facts["resize_filter"].startswith("torch interpolate, bilinear, antialias=True")
    (images,), (logits,) = model.graph.input, model.graph.output
    shapes = [
        [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (images, logits)
    ]
    assert (images.name, logits.name) == ("images", "logits")
    assert shapes == [["batch", 1, 32, 32], ["batch", 3]]


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_in_the_file_names_a_folder_of_this_machine(run, format):
    needs(format)
    path = export(run, format=format).path
    parts = [path.read_bytes()]
    if format == "torch-export":
        with zipfile.ZipFile(path) as packed:
            parts = [packed.read(name) for name in packed.namelist()]
    for folder in (ROOT, Path(torch.__file__).parent, run):
        assert not any(str(folder).encode() in part for part in parts)


@pytest.mark.parametrize("format", FORMATS)
def test_a_batch_may_be_fixed(run, format):
    needs(format)
    done = export(run, format=format, batch_size=4)
    assert done.batches == (4,)
    compute = opened(done.path, format)
    assert compute(torch.zeros(4, 1, 32, 32)).shape == (4, 3)
    with pytest.raises(Exception, match=r"4"):
        compute(torch.zeros(3, 1, 32, 32))


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_computes_something_else_gets_no_name(run, monkeypatch, format):
    needs(format)
    sound, program = export(run, format=format).path, exporting._program
    before = sound.read_bytes()

    def spoilt(weights, model, *args, **options):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.output.bias[0] += 0.01
        return program(weights, other, *args, **options)

    monkeypatch.setattr(exporting, "_program", spoilt)
    for out in (sound, run / f"new{sound.suffix}"):
        with pytest.raises(
            NumericalError, match=r"not written: .* by \d\.\de-0[123] of the largest"
        ):
            export(run, out, force=True)
    assert sound.read_bytes() == before
    assert sorted(p.name for p in run.iterdir()) == [sound.name, "weights.safetensors"]


def test_a_network_that_says_nan_is_not_exported(run):
    weights = read_weights(run)
    weights.tensors["f6.weight"][0, 0] = torch.nan
    write_weights(run / "weights.safetensors", weights)
    with pytest.raises(NumericalError, match="differ from the network's by nan"):
        export(run)
    assert [path.name for path in run.iterdir()] == ["weights.safetensors"]


def test_a_file_is_replaced_only_if_told_so(run, tmp_path):
    path = tmp_path / "mine" / "net.pt2"
    assert export(run, path).path == path
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"net\.pt2: already exists\n--force"):
        export(run, path)
    assert path.read_bytes() == b"mine"
    export(run, path, force=True)
    assert zipfile.is_zipfile(path)


@pytest.mark.parametrize("module", ["onnx", "onnxruntime", "onnxscript"])
def test_without_onnx_it_says_what_to_install(run, monkeypatch, module):
    monkeypatch.setitem(sys.modules, "onnx", ModuleType("onnx"))
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError) as raised:
        export(run, format="onnx")
    assert str(raised.value) == f'{module} is not installed\npip install "cnn-core[onnx]"'


@pytest.mark.parametrize(
    ("out", "format", "error", "message"),
    [
        (
            "net.onnx",
            "torch-export",
            UsageError,
            r"net\.onnx: a torch-export file name must end in \.pt2",
        ),
        ("net", None, UsageError, r"net: a torch-export file name must end in \.pt2"),
        (None, "onxx", UnknownNameError, "unknown format 'onxx', did you mean 'onnx'"),
    ],
)
def test_names_and_formats_that_do_not_fit_are_refused(run, out, format, error, message):
    with pytest.raises(error, match=message):
        export(run, out, format=format)


@pytest.mark.parametrize(
    ("forward", "hint"),
    [
        (lambda self, x: x if x.sum() > 0 else -x, True),
        (lambda self, x: x.reshape(2, -1), True),
    ],
)
def test_a_network_that_torch_cannot_export_is_named(run, monkeypatch, forward, hint):
    from cnn_arch_lenet.lenet5_modern import LeNet5Modern

    monkeypatch.setattr(LeNet5Modern, "forward", forward)
    with pytest.raises(ZooError) as raised:
        export(run)
    first, second = str(raised.value).split("\n")
    assert first.startswith("torch cannot export 'lenet5_modern': ")
    assert "--batch-size N" in second
    assert [path.name for path in run.iterdir()] == ["weights.safetensors"]


def test_a_network_for_one_batch_size_only_is_exported_for_that(run, monkeypatch):
    from cnn_arch_lenet.lenet5_modern import LeNet5Modern

    monkeypatch.setattr(LeNet5Modern, "forward", lambda self, x: x.reshape(2, -1))
    assert export(run, batch_size=2).difference == 0


def test_the_command_prints_the_path_and_says_how_far_it_is(cnnzoo, run):
    done = cnnzoo("export", run)
    assert (done.code, done.out) == (0, f"{run / 'lenet5_modern.pt2'}\n")
    said = done.err.splitlines()
    assert said[0] == "takes any number of images, float32 1x32x32"
    assert re.fullmatch(
        r"differs from the network by \S+ of the largest output, .* 2, 1, 3", said[1]
    )
    forced = cnnzoo("export", run, "--force", "--batch-size", 2, "--pictures", "--json")
    content = json.loads(forced.out)["export"]
    assert (content["dtype"], content["batches"]) == ("uint8", [2])
    assert content["format"] == "torch-export"


SMALL = sorted(name for name, entry in registry.models() if entry.spec.params < 30e6)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", SMALL)
def test_every_network_is_exported(tmp_path, name, format):
    needs(format)
    assert export(written(tmp_path, name), format=format).difference <= exporting.TOLERANCE
