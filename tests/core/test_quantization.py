"""int8 exports: calibrated on training images, measured, and used like every exported file."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from cnn_core import evaluate, export, load_dataset, predict
from cnn_core.cli import main
from cnn_core.errors import NumericalError, UsageError, ZooError
from cnn_core.training import Trained, quantization
from cnn_core.training.sources import open_source

ROOT = Path(__file__).parents[2]
LINES = """\
int8, calibrated on 256 training images of digits, where it differs by {difference:.1e} of the \
largest output; on its 359 test images:
  loss: float32 {before[loss]:.4f}, int8 {after[loss]:.4f}
  top1: float32 {before[top1]:.4f}, int8 {after[top1]:.4f}
  top5: float32 {before[top5]:.4f}, int8 {after[top5]:.4f}
"""


@pytest.fixture(scope="module")
def done(digits_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("int8") / "digits.onnx"
    return export(Trained(digits_run, device="cpu"), out, int8=True)


def test_the_cost_is_what_evaluation_measures(done, digits_run):
    cost = done.int8
    assert cost.float32 == evaluate(digits_run, device="cpu")
    found = evaluate(done.path, data="digits", device="cpu")
    assert {k: found[k] for k in ("top1", "top5")} == {k: cost.int8[k] for k in ("top1", "top5")}
    assert abs(cost.int8["top1"] - cost.float32["top1"]) < 0.02
    assert (cost.data, cost.calibration_images, cost.test_images) == ("digits", 256, 359)
    assert cost.int8_bytes == done.path.stat().st_size < 0.4 * cost.float32_bytes
    props = {prop.key: prop.value for prop in onnx.load(done.path).metadata_props}
    written = json.loads(props["int8"])
    assert written["int8"] == cost.int8
    assert written["float32"] == cost.float32
    trained = Trained(digits_run, device="cpu")
    inputs, _ = quantization._calibration_inputs(done.path, trained, None, False)
    images = torch.cat([torch.from_numpy(part) for part in inputs])
    with torch.inference_mode():
        expected = trained.model(images)
        found = Trained(done.path, device="cpu").model(images)
    difference = (found - expected).abs().max() / expected.abs().max()
    assert cost.difference == pytest.approx(difference.item(), rel=1e-3)
    assert cost.difference > 100 * done.difference


def test_it_is_calibrated_on_training_images_from_the_whole_split(done, digits_run):
    trained = Trained(digits_run, device="cpu")
    inputs, count = quantization._calibration_inputs(done.path, trained, None, False)
    train = load_dataset("digits").split("train").images
    rows = torch.linspace(0, len(train) - 1, 256).round().long()
    expected = trained.weights.preprocessing(train[rows])
    assert count == 256
    assert torch.equal(torch.cat([torch.from_numpy(part) for part in inputs]), expected)


def test_it_computes_with_8_bits(done):
    model = onnx.load(done.path)
    onnx.checker.check_model(model, full_check=True)
    weights = [t for t in model.graph.initializer if len(t.dims) in (2, 4)]
    assert len(weights) == 5  # three convolutions and two linear layers
    assert {t.data_type for t in weights} == {TensorProto.INT8}
    # Seven bits: with eight, sums overflow on processors without VNNI.
    assert max(abs(numpy_helper.to_array(t).astype(int)).max() for t in weights) <= 64
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)


def test_the_range_of_its_input_is_that_of_training_images(done, digits_run):
    model = onnx.load(done.path)
    (node,) = (n for n in model.graph.node if n.input[0] == "images")
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    scale, zero = float(values[node.input[1]]), int(values[node.input[2]])
    inputs = Trained(digits_run).weights.preprocessing(
        load_dataset("digits").split("train").images
    )
    assert node.op_type == "QuantizeLinear"
    assert scale * (0 - zero) == pytest.approx(inputs.min().item(), abs=scale)
    assert scale * (255 - zero) == pytest.approx(inputs.max().item(), abs=scale)


@pytest.mark.parametrize("options", [{"pictures": True}, {"batch_size": 50}])
def test_it_predicts_like_its_run(options, digits_run, tmp_path):
    path = export(digits_run, tmp_path / "net.onnx", int8=True, **options).path
    images = load_dataset("digits").split("test").images[:60]
    ours, theirs = (
        torch.tensor([p.probabilities[0] for p in predict(source, images, device="cpu")])
        for source in (digits_run, path)
    )
    assert (ours - theirs).abs().max() < 0.1
    assert (ours - theirs).abs().max() > 0  # or it would not be another network


def test_masks_are_as_good(scenes_run, tmp_path):
    done = export(scenes_run, tmp_path / "net.onnx", int8=True)
    found = evaluate(done.path, data="digit_scenes", device="cpu")
    assert done.int8.int8["miou"] == found["miou"]
    assert found["miou"] == pytest.approx(done.int8.float32["miou"], abs=0.02)


def test_nothing_in_the_file_names_a_folder_of_this_machine(done):
    content = done.path.read_bytes()
    for folder in (ROOT, Path(torch.__file__).parent, done.path.parent):
        assert str(folder).encode() not in content
    assert open_source(done.path).weights.model == "lenet5_modern"


def test_the_command_prints_the_cost(digits_run, capsys):
    assert main(["export", str(digits_run.path), "--int8"]) == 0
    said = capsys.readouterr()
    path = digits_run.path / "lenet5_modern-int8.onnx"
    assert said.out == f"{path}\n"
    before, after = (
        evaluate(source, data="digits", device="cpu") for source in (digits_run.path, path)
    )
    props = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    before["loss"], after["loss"] = (
        json.loads(props["int8"])[kind]["loss"] for kind in ("float32", "int8")
    )
    told = json.loads(props["int8"])["difference"]
    assert LINES.format(before=before, after=after, difference=told) in said.err
    assert said.err.splitlines()[1].startswith("in float32, before int8, the file differed from ")
    assert "  size: float32 0.26 MB, int8 0.08 MB\n" in said.err
    assert main(["export", str(digits_run.path), "--int8", "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["export"]["int8"]["test_images"] == 359


WRONG = [
    (["--int8", "--format", "torch-export"], "int8 is for ONNX files\n--format onnx"),
    (["--int8", "--out", "net.pt2"], "int8 is for ONNX files\n--format onnx"),
    (["--data", "digits"], "--data and --data-dir are for calibration\nadd --int8"),
    (["--data-dir", "."], "--data and --data-dir are for calibration\nadd --int8"),
    (["--int8", "--batch-size", "300"], "calibration needs a full batch, and there are only 256"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_where_it_does_not_apply_there_is_one_error(options, message, digits_run, capsys):
    before = sorted(digits_run.path.iterdir())
    assert main(["export", str(digits_run.path), "--force", *options]) == 2
    assert message in capsys.readouterr().err
    assert sorted(digits_run.path.iterdir()) == before


def test_without_images_there_is_nothing_to_calibrate_on(tmp_path):
    with pytest.raises(UsageError, match="trained on imagenet\nsay which images to use: --data"):
        export("efficientnet_lite0", tmp_path / "net.onnx", int8=True)
    assert [*tmp_path.iterdir()] == []


def test_a_network_that_fails_is_not_written(done, digits_run, monkeypatch, tmp_path):
    out = tmp_path / "net.onnx"
    out.write_bytes(b"mine")

    def never(*args, **options):
        raise RuntimeError("no such operator")

    with monkeypatch.context() as patch:
        patch.setattr("onnxruntime.quantization.quantize_static", never)
        with pytest.raises(ZooError, match=r"onnxruntime cannot quantise .*no such operator"):
            export(digits_run, out, int8=True, force=True)
    measure = quantization.evaluate_split
    monkeypatch.setattr(
        quantization, "evaluate_split", lambda *a: {**measure(*a), "loss": float("nan")}
    )
    with pytest.raises(NumericalError, match="int8 network of 'lenet5_modern': loss nan"):
        export(digits_run, out, int8=True, force=True)
    assert out.read_bytes() == b"mine"
    assert [*tmp_path.iterdir()] == [out]
