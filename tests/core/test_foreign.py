"""Weights of other libraries: recognised, renamed, adapted; and hostile files refused."""

from __future__ import annotations

import argparse
import os
import pickle
import struct
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from cnn_arch_resnet.weights import key_maps
from cnn_core import create_model
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.errors import CorruptError, UntrustedWeightsError, UsageError
from cnn_core.training.sources import open_source
from cnn_core.weights.foreign import ForeignFile, read_foreign
from cnn_core.weights.keymap import KeyMap
from cnn_core.weights.loading import load_foreign
from cnn_core.weights.native import Weights, write_weights
from cnn_core.weights.torch_file import LEGACY

# lenet5_modern under the names that a tutorial might give it.
PAIRS = (("c1", "conv1"), ("c3", "conv2"), ("c5", "conv3"), ("f6", "fc1"), ("output", "fc2"))
MAP = KeyMap(*PAIRS)


def holding(tensors: dict[str, torch.Tensor]) -> ForeignFile:
    return ForeignFile(path=Path("w.pt"), tensors=tensors)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model("lenet5_modern").eval()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_file_is_recognised_whatever_it_is_wrapped_in(tmp_path, model, prefix, wrapper, suffix):
    state = {prefix + key: value for key, value in MAP.to_theirs(model.state_dict()).items()}
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    other = create_model("lenet5_modern").eval()
    assert load_foreign(other, read_foreign(path), {"tutorial": MAP})[0] == "tutorial"
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(other(x), model(x))


def test_our_own_names_need_no_map(tmp_path, model):
    path = tmp_path / "own.pt"
    torch.save(model.state_dict(), path)
    assert torch.equal(create_model("lenet5_modern", weights=path).f6.weight, model.f6.weight)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_first_convolution_for_rgb_is_adapted(tmp_path, channels):
    source = create_model("lenet5_modern", in_channels=3).eval()
    path = tmp_path / "rgb.pt"
    torch.save(source.state_dict(), path)
    model = create_model("lenet5_modern", in_channels=channels, weights=path).eval()
    grey = torch.rand(2, 1, 32, 32)
    expected = source(grey.expand(-1, 3, -1, -1))
    assert torch.allclose(model(grey.expand(-1, channels, -1, -1)), expected, atol=1e-5)


def test_a_mismatch_is_refused_by_name_and_shape(tmp_path, model):
    path = tmp_path / "w.pt"
    torch.save(create_model("lenet5_modern", num_classes=7).state_dict(), path)
    with pytest.raises(
        UsageError, match=r"output.weight has shape \(7, 84\), the model has \(10, 84\)"
    ):
        create_model("lenet5_modern", weights=path)
    state = dict(model.state_dict())
    del state["c3.bias"]
    torch.save(state, path)
    with pytest.raises(
        UsageError,
        match=r"9 of 10 .* cnnzoo naming: c3.bias is missing \(1 in all\)",
    ):
        create_model("lenet5_modern", weights=path)
    state = {**model.state_dict(), "c7.weight": torch.zeros(2)}
    torch.save(state, path)
    with pytest.raises(
        UsageError, match=r"c7.weight is not a parameter of this model \(1 in all\)"
    ):
        create_model("lenet5_modern", weights=path)
    with pytest.raises(UsageError, match="no such file"):
        create_model("lenet5_modern", weights=tmp_path / "none.pt")


def test_spare_keys_of_a_naming_are_left_out(model):
    state = {**MAP.to_theirs(model.state_dict()), "aux.weight": torch.zeros(2)}
    spare = KeyMap(*PAIRS, ignored_prefixes=("aux.",))
    with pytest.raises(UsageError, match=r"aux.weight is not a parameter of this model"):
        load_foreign(model, holding(state), {"tutorial": MAP})
    assert load_foreign(model, holding(state), {"tutorial": spare}) == ("tutorial", (), ())


def test_a_naming_that_misleads_has_to_be_named(model):
    state = MAP.to_theirs(model.state_dict())
    maps = {"tutorial": KeyMap(*PAIRS, warning="tutorials flip the kernels")}
    with pytest.raises(UsageError, match=r"tutorials flip .*\n?.*naming='tutorial'"):
        load_foreign(model, holding(state), maps)
    assert load_foreign(model, holding(state), maps, "tutorial")[0] == "tutorial"
    with pytest.raises(UsageError, match=r"naming = 'tutoral', did you mean 'tutorial'"):
        load_foreign(model, holding(state), maps, "tutoral")


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnet152"])
def test_v1_5_weights_do_not_slip_into_a_v1_network(name):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(weights=None)
        model = create_model(f"{name}_v1")
    model.to_empty(device="cpu")
    state = {key: torch.zeros(value.shape) for key, value in theirs.state_dict().items()}
    maps = key_maps(f"{name}_v1")
    with pytest.raises(UsageError, match=rf"\(v1.5\): its files are for '{name}'"):
        load_foreign(model, holding(state), maps)
    assert load_foreign(model, holding(state), maps, "torchvision")[0] == "torchvision"


def test_weights_of_a_run_are_for_its_own_model_only(tmp_path):
    path = tmp_path / "weights.safetensors"
    preprocessing = Preprocessing(
        size=(32, 32), image_size=(32, 32), fit="pad", mean=(0.0,) * 3, std=(1.0,) * 3
    )
    source = create_model("resnet20_cifar", num_classes=2)
    ours = Weights(
        tensors=source.state_dict(),
        model="resnet20_cifar",
        num_classes=2,
        in_channels=3,
        options={},
        classes=("a", "b"),
        preprocessing=preprocessing,
        epoch=1,
    )
    write_weights(path, ours)
    loaded = create_model("resnet20_cifar", num_classes=2, weights=path)
    assert torch.equal(loaded.fc.weight, source.fc.weight)
    with pytest.raises(UsageError, match=r"weights of 'resnet20_cifar', not of 'resnet32_cifar'"):
        create_model("resnet32_cifar", num_classes=2, weights=path)


# --- Files of any training


def behind(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def load(path: Path, file: object, caplog, name: str = "lenet5_modern", **options):
    """Save a file and load it into a new model; return the model and what the log says."""
    torch.save(file, path)
    caplog.clear()
    model = create_model(name, weights=path, **options).eval()
    return model, [record.getMessage().removeprefix(f"{path}: ") for record in caplog.records]


@pytest.fixture
def other():
    """Another network of the same kind, to be told apart."""
    torch.manual_seed(1)
    return create_model("lenet5_modern").eval()


@pytest.mark.parametrize(
    "prefix",
    [
        "model.",
        "net.",
        "backbone.",
        "encoder.",
        "module.densenet121.",
        "_orig_mod.module.",
        "a.b.c.",
    ],
)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "anything"])
def test_a_prefix_of_all_keys_is_dropped_whatever_it_is(tmp_path, caplog, model, prefix, wrapper):
    state = behind(prefix, model.state_dict())
    file = {wrapper: state} if wrapper else state
    loaded, log = load(tmp_path / "w.pth", file, caplog)
    assert torch.equal(loaded.f6.weight, model.f6.weight)
    assert log == []


WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "params", "weights"),
    *("model_ema", "ema", "ema_state_dict", "state_dict_ema", "params_ema", "teacher", "student"),
)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("nested", [False, True])
def test_weights_are_found_in_any_dictionary(tmp_path, caplog, model, wrapper, nested):
    inner = {"module": model.state_dict(), "decay": 0.9} if nested else model.state_dict()
    file = {"epoch": 3, wrapper: inner, "best_acc1": torch.tensor(69.7), "model2": {"x": 1}}
    loaded, log = load(tmp_path / "w.pth", file, caplog)
    assert torch.equal(loaded.f6.weight, model.f6.weight)
    assert log == ["left out: best_acc1, epoch, model2"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("state_dict_ema", "state_dict"),
        ("model_ema", "model"),
        ("ema", "model"),
        ("ema_state_dict", "net"),
        ("params_ema", "params"),
        ("state_dict", "model"),
        ("model", "teacher"),
        ("teacher", "student"),
        ("weights", "optimizer"),
        ("anything", "momentum"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_of_several_the_order_decides_and_the_choice_is_said(
    tmp_path, caplog, model, other, first, second, turned
):
    file = {first: model.state_dict(), second: behind("module.", other.state_dict())}
    file = dict(reversed(file.items())) if turned else file
    loaded, log = load(tmp_path / "w.pth", file, caplog)
    assert torch.equal(loaded.f6.weight, model.f6.weight)
    assert len(log) == 1
    assert f"took the weights in '{first}'; there are also '{second}.module'" in log[0]
    naming = log[0].partition("naming '")[2].partition("'")[0]
    loaded, log = load(tmp_path / "w.pth", file, caplog, naming=naming)
    assert torch.equal(loaded.f6.weight, other.f6.weight)
    assert f"took the weights in '{second}.module'" in log[0]


def test_of_several_the_one_of_the_models_shape_is_taken(tmp_path, caplog, model):
    teacher = create_model("lenet5_modern", num_classes=3)
    file = {"model_ema": teacher.state_dict(), "model": model.state_dict()}
    loaded, _ = load(tmp_path / "w.pth", file, caplog)
    assert torch.equal(loaded.f6.weight, model.f6.weight)
    # ResNet-34 has all parameters of ResNet-18, and more.
    states = [create_model(name).state_dict() for name in ("resnet32_cifar", "resnet20_cifar")]
    file = {"student": states[1], "teacher": states[0]}
    loaded, _ = load(tmp_path / "w.pth", file, caplog, "resnet20_cifar")
    assert torch.equal(loaded.fc.weight, states[1]["fc.weight"])


def test_things_beside_the_network_are_left_out_and_named(tmp_path, caplog, model):
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 1, 32, 32)).sum().backward()
    optimizer.step()
    beside = {
        "criterion.weight": torch.ones(10),
        "loss_fn.class_weights": torch.ones(10),
        "focal_loss.gamma": torch.ones(1),
        "val_acc.tp": torch.ones(1),
        "n_averaged": torch.tensor(3),
        "total_ops": torch.zeros(1),
    }
    counts = {"f6.total_ops": torch.zeros(1), "f6.total_params": torch.zeros(1)}
    lightning = {
        "state_dict": {**behind("model.", model.state_dict()), **beside},
        "optimizer_states": [optimizer.state_dict()],
        "epoch": 1,
    }
    loaded, log = load(tmp_path / "w.ckpt", lightning, caplog)
    assert torch.equal(loaded.f6.weight, model.f6.weight)
    assert "state_dict.criterion.weight, state_dict.loss_fn.class_weights" in log[0]
    assert log[0].endswith("and 3 more")
    loaded, log = load(tmp_path / "w.pth", {**model.state_dict(), **beside, **counts}, caplog)
    assert log == [
        "left out: criterion.weight, loss_fn.class_weights, focal_loss.gamma, val_acc.tp, "
        "n_averaged and 2 more"
    ]
    whole = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    assert load(tmp_path / "w.pth", whole, caplog)[1] == ["left out: optimizer, epoch"]


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize(
    "key", ["f6b.weight", "f6.scale", "conv9.weight", "extra", "head.weight", "f6.loss.weight"]
)
def test_what_could_be_a_parameter_is_never_left_out(tmp_path, caplog, model, prefix, key):
    state = behind(prefix, {**model.state_dict(), key: torch.zeros(2)})
    with pytest.raises(UsageError, match=rf"{key} is not a parameter of this model \(1 in all\)"):
        load(tmp_path / "w.pth", {"state_dict": state}, caplog)


@pytest.mark.parametrize("prefix", ["", "state_dict.module."])
def test_another_head_is_explained(tmp_path, caplog, model, prefix):
    state = behind(prefix, create_model("lenet5_modern", num_classes=7).state_dict())
    with pytest.raises(UsageError, match=r"has shape \(7, 84\)") as caught:
        load(tmp_path / "w.pth", state, caplog)
    assert "the file has 7 classes: num_classes=7 loads them; new_head=True" in caught.value.hint
    loaded, log = load(tmp_path / "w.pth", state, caplog, num_classes=7)
    assert torch.equal(loaded.output.weight, state[f"{prefix}output.weight"])
    assert log == []
    loaded, log = load(tmp_path / "w.pth", state, caplog, new_head=True)
    assert torch.equal(loaded.f6.weight, state[f"{prefix}f6.weight"])
    assert loaded.output.weight.shape == (10, 84)
    assert log == [
        "lenet5_modern: initialised anew, because the weights have another head: "
        "output.weight, output.bias"
    ]
    opened = open_source(tmp_path / "w.pth", model="lenet5_modern")
    assert (opened.weights.num_classes, opened.weights.in_channels) == (7, 1)


def test_a_head_of_other_layers_is_explained(tmp_path, caplog, model):
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("output.")}
    heads = ({}, {"output.0.weight": torch.zeros(3, 84), "output.2.weight": torch.zeros(2, 3)})
    for head in heads:
        with pytest.raises(UsageError, match=r"8 of 10 names .*output.bias is missing") as caught:
            load(tmp_path / "w.pth", {**state, **head}, caplog)
        assert caught.value.hint.startswith("the file has another head: new_head=True")
        loaded, log = load(tmp_path / "w.pth", {**state, **head}, caplog, new_head=True)
        assert torch.equal(loaded.f6.weight, model.f6.weight)
        assert log[0] == "left out: output (2 tensors)" if head else len(log) == 1


def test_an_error_names_the_nearest_naming_and_both_first_differences(tmp_path, model):
    state = MAP.to_theirs(model.state_dict())
    state["fc3.weight"] = state.pop("fc2.weight")
    maps = {"other": KeyMap(*((ours, f"{ours}x") for ours, _ in PAIRS)), "tutorial": MAP}
    with pytest.raises(UsageError) as caught:
        load_foreign(model, holding(behind("net.", state)), maps)
    assert caught.value.message == (
        "w.pt: 9 of 10 names match under tutorial naming in 'net': fc2.weight is missing "
        "(1 in all), and fc3.weight is not a parameter of this model (1 in all)"
    )


@pytest.mark.parametrize(
    ("name", "theirs", "prefix"),
    [
        ("resnet18", "resnet34", "model."),
        ("resnet34", "resnet18", ""),
        ("resnet18", "vgg11", "module.features_and_head."),
    ],
)
def test_an_error_names_the_model_that_a_file_fits(tmp_path, caplog, name, theirs, prefix):
    state = behind(prefix, getattr(torchvision.models, theirs)(num_classes=3).state_dict())
    with pytest.raises(UsageError, match="naming") as caught:
        load(tmp_path / "w.pth", state, caplog, name)
    assert f"the file fits '{theirs}', all " in caught.value.hint
    assert "parameters under torchvision naming" in caught.value.hint
    assert f"--model {theirs}" in caught.value.hint


def test_a_file_of_no_known_network_is_said_to_be_one(tmp_path, caplog):
    with pytest.raises(UsageError, match="0 of 10 names match under any known naming") as caught:
        load(tmp_path / "w.pth", {"something": torch.zeros(3)}, caplog)
    assert caught.value.hint == "the file is for another network or variant"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path, caplog, model, value):
    state = model.state_dict()
    state["f6.weight"][3, 2] = value
    state["c1.bias"][0] = value
    _, log = load(tmp_path / "w.pth", state, caplog)
    assert log == ["contains NaN or infinity in c1.bias, f6.weight: outputs will not be numbers"]


def test_adapted_channels_are_said(tmp_path, caplog):
    state = create_model("lenet5_modern", in_channels=3).state_dict()
    _, log = load(tmp_path / "w.pth", state, caplog)
    assert log == ["c1.weight is adapted from 3 to 1 input channels"]


def test_notes_reach_those_who_open_a_file(tmp_path, model, other):
    path = tmp_path / "w.pth"
    torch.save({"model": other.state_dict(), "ema": model.state_dict(), "epoch": 3}, path)
    opened = open_source(path, model="lenet5_modern")
    assert torch.equal(opened.weights.tensors["f6.weight"], model.f6.weight)
    took, left, assumed = opened.notes
    assert took.startswith(f"{path}: took the weights in 'ema'; there are also 'model'")
    assert left == f"{path}: left out: epoch"
    assert assumed == f"{path}: classes and preprocessing as for lenet5_modern:mnist"


def test_odd_dictionaries_are_read(tmp_path, caplog, model):
    loop: dict[str, object] = {"weights": model.state_dict()}
    loop["self"] = loop
    loaded, _ = load(tmp_path / "w.pth", loop, caplog)
    assert torch.equal(loaded.f6.weight, model.f6.weight)
    for file, cause in (
        ({"a.b": torch.zeros(1), "a": {"b": torch.zeros(1)}}, "contains a name twice"),
        ({"x" * 400: {"y" * 400: torch.zeros(1)}}, "a name of more than 512 characters"),
        ({"epoch": 3, 4: torch.zeros(2)}, "contains no tensors"),
    ):
        with pytest.raises(UntrustedWeightsError, match=cause):
            load(tmp_path / "w.pth", file, caplog)


# --- Readers


def states() -> dict[str, dict[str, Any]]:
    """Return state dicts as people save them."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    numbers = torch.arange(24).reshape(2, 3, 4)
    kinds = "float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128"
    parts = {"state_dict": model.state_dict(), "epoch": 3, "optimizer": optimizer.state_dict()}
    last = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    return {
        "a module's": dict(model.state_dict()),
        "a module's parameters": dict(model.named_parameters()),
        "a checkpoint's": parts | {"classes": ["a"], "size": torch.Size([5, 5]), "note": None},
        "other types": {kind: numbers.to(getattr(torch, kind)) for kind in kinds.split()},
        "views": {"turned": numbers.permute(2, 0, 1), "part": numbers[1:, ::2], "last": last}
        | {"scalar": numbers[1, 1, 1], "empty": torch.zeros(0, 3)},
        "tied": {"encoder": numbers, "decoder": numbers, "half": numbers[0]},
    }


@pytest.mark.parametrize("name", states())
@pytest.mark.parametrize("is_zip", [True, False])
def test_what_people_save_is_read_as_torch_reads_it(tmp_path, name, is_zip):
    state, path = states()[name], tmp_path / "weights of mine.v2.pth"
    torch.save(state, path, _use_new_zipfile_serialization=is_zip)
    expected = torch.load(path, weights_only=True)
    found = read_foreign(path).tensors
    if "state_dict" in expected:
        assert {key.partition(".")[0] for key in found} == {"state_dict"}
        found = {key.removeprefix("state_dict."): value for key, value in found.items()}
        expected = expected["state_dict"]
    path.unlink()
    assert list(found) == list(expected)
    for key, value in found.items():
        assert value.dtype == expected[key].dtype
        assert value.stride() == expected[key].stride()
        assert torch.equal(value, expected[key])
        assert value.requires_grad is False
    if name == "tied":
        assert found["encoder"].data_ptr() == found["decoder"].data_ptr()


def test_sound_safetensors_are_read(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.arange(4), "x": torch.zeros(0)}, path, {"format": "pt"})
    found = read_foreign(path).tensors
    assert torch.equal(found["w"], torch.arange(4))
    assert found["x"].shape == (0,)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_checkpoints_as_others_publish_them_are_read(tmp_path, prefix, wrapper, model):
    state = {prefix + key: value for key, value in model.state_dict().items()}
    beside = {
        "epoch": np.int64(90),
        "acc1": np.float64(76.1),
        "lr": np.float32(0.1),
        "args": argparse.Namespace(lr=0.1, data="imagenet", milestones=(30, 60), seed=np.int64(0)),
        "drops": Counter({30: 1, 60: 1}),
    }
    for is_zip in (True, False):
        path = tmp_path / f"{is_zip}.pth"
        file = {wrapper: state, **beside} if wrapper else {**state, "args": beside["args"]}
        torch.save(file, path, _use_new_zipfile_serialization=is_zip)
        assert torch.equal(create_model("lenet5_modern", weights=path).f6.weight, model.f6.weight)
        data = path.read_bytes()  # as NumPy 1 names it
        if not is_zip:
            path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
            assert len(read_foreign(path).tensors) == len(state)


def test_a_namespace_is_not_built(tmp_path):
    path = tmp_path / "w.pt"
    before = set(torch.serialization.get_safe_globals())
    args = argparse.Namespace()
    vars(args).update(__class__=1, __dict__=2, lr=3)  # with which no Namespace could be built
    torch.save({"w": torch.zeros(2), "args": args}, path)
    assert list(read_foreign(path).tensors) == ["w"]
    assert read_foreign(path).others == ("args",)
    assert set(torch.serialization.get_safe_globals()) == before


def python2(state):
    """Pickle as Python 2 and torch 0.3 did: short strings, pairs in a list, parameters."""
    opcodes, data = [b"\x80\x02ccollections\nOrderedDict\n]("], b""
    for number, (key, value) in enumerate(state.items()):
        text = b"U" + bytes([len(key)]) + key.encode()
        size, stride = (pickle.dumps(tuple(n), 2)[2:-1] for n in (value.shape, value.stride()))
        count = pickle.dumps(value.numel(), 2)[2:-1]
        storage = b"(U\x07storagectorch\nFloatStorage\nU\x02%02dU\x03cpu" % number + count + b"NtQ"
        tensor = b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"K\0" + size + stride + b"tR"
        parameter = b"ctorch.nn.parameter\nParameter\n" + tensor + b"\x85R(\x88\x89"
        opcodes.append(b"](" + text + parameter + b"ccollections\nOrderedDict\n)Rtbe")
        data += struct.pack("<q", value.numel()) + value.contiguous().numpy().tobytes()
    keys = [f"{number:02d}" for number in range(len(state))]
    return (
        LEGACY
        + pickle.dumps({}, 2)
        + b"".join(opcodes)
        + b"e\x85R."
        + pickle.dumps(keys, 2)
        + data
    )


def test_a_file_of_python_2_is_read(tmp_path, model):
    path = tmp_path / "w.pth"
    path.write_bytes(python2(model.state_dict()))
    assert torch.equal(create_model("lenet5_modern", weights=path).f6.weight, model.f6.weight)


def test_the_way_around_makes_a_clean_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"w": torch.arange(3)}, "folder": Path("x")}, "old.pt")
    with pytest.raises(UntrustedWeightsError, match=r"names pathlib\.PosixPath\n") as caught:
        read_foreign(Path("old.pt"))
    exec(caught.value.hint.partition("(adjust the key): ")[2])  # a line of Python
    assert torch.equal(read_foreign(Path("clean-old.pt")).tensors["w"], torch.arange(3))


def test_a_hostile_name_is_no_message():
    model = torch.nn.Linear(2, 2)
    name = "\x1b[2J\n" + "x" * 10_000
    for state in ({name: torch.zeros(1)}, {**model.state_dict(), name: torch.zeros(1)}):
        with pytest.raises(UsageError) as caught:
            load_foreign(model, holding(state), {})
        assert "\x1b" not in str(caught.value)
        assert len(str(caught.value)) < 400


class Bomb:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (os.system, (f"touch {self.canary}",))


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy", "deflated", "empty", "text", "list"])
def test_a_hostile_file_runs_nothing_and_is_one_error(tmp_path, kind):
    path, canary = tmp_path / "w.pt", tmp_path / "canary"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"a": Bomb(canary)}))
    elif kind in ("zip", "legacy"):
        torch.save({"a": Bomb(canary)}, path, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "deflated":
        torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "plain.pt")
        with (
            zipfile.ZipFile(tmp_path / "plain.pt") as plain,
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
        ):
            for name in plain.namelist():
                packed.writestr(name, plain.read(name))
        assert path.stat().st_size < 100_000
    elif kind == "list":
        torch.save([torch.zeros(1)], path)
    else:
        path.write_bytes(b"" if kind == "empty" else b"<html>404</html>")
    with pytest.raises(CorruptError, match=r"w\.pt: "):
        read_foreign(path)
    assert not canary.exists()
