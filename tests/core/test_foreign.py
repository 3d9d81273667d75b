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
from cnn_core.weights.foreign import load_foreign, read_foreign
from cnn_core.weights.keymap import KeyMap
from cnn_core.weights.native import Weights, write_weights
from cnn_core.weights.torch_file import LEGACY

# lenet5_modern under the names that a tutorial might give it.
PAIRS = (("c1", "conv1"), ("c3", "conv2"), ("c5", "conv3"), ("f6", "fc1"), ("output", "fc2"))
MAP = KeyMap(*PAIRS)


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
    assert load_foreign(other, read_foreign(path), {"tutorial": MAP}, path) == "tutorial"
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
        UsageError, match=r"output.weight has shape \(7, 84\), the model expects \(10, 84\)"
    ):
        create_model("lenet5_modern", weights=path)
    state = dict(model.state_dict())
    del state["c3.bias"]
    torch.save(state, path)
    with pytest.raises(UsageError, match=r"under cnnzoo naming, c3.bias is missing \(1 in all\)"):
        create_model("lenet5_modern", weights=path)
    state = {**model.state_dict(), "c7.weight": torch.zeros(2)}
    torch.save(state, path)
    with pytest.raises(
        UsageError, match=r"c7.weight is not a parameter of this model \(1 in all\)"
    ):
        create_model("lenet5_modern", weights=path)
    with pytest.raises(UsageError, match="no such file"):
        create_model("lenet5_modern", weights=tmp_path / "none.pt")


def test_spare_keys_of_a_naming_are_left_out(tmp_path, model):
    state = {**MAP.to_theirs(model.state_dict()), "aux.weight": torch.zeros(2)}
    spare = KeyMap(*PAIRS, ignored_prefixes=("aux.",))
    with pytest.raises(UsageError, match=r"aux.weight is not a parameter of this model"):
        load_foreign(model, state, {"tutorial": MAP}, tmp_path)
    assert load_foreign(model, state, {"tutorial": spare}, tmp_path) == "tutorial"


def test_a_naming_that_misleads_has_to_be_named(tmp_path, model):
    state = MAP.to_theirs(model.state_dict())
    maps = {"tutorial": KeyMap(*PAIRS, warning="tutorials flip the kernels")}
    with pytest.raises(UsageError, match=r"tutorials flip .*\n?.*naming='tutorial'"):
        load_foreign(model, state, maps, tmp_path)
    assert load_foreign(model, state, maps, tmp_path, "tutorial") == "tutorial"
    with pytest.raises(UsageError, match=r"naming = 'tutoral', did you mean 'tutorial'"):
        load_foreign(model, state, maps, tmp_path, "tutoral")


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnet152"])
def test_v1_5_weights_do_not_slip_into_a_v1_network(tmp_path, name):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(weights=None)
        model = create_model(f"{name}_v1")
    model.to_empty(device="cpu")
    state = {key: torch.zeros(value.shape) for key, value in theirs.state_dict().items()}
    maps = key_maps(f"{name}_v1")
    with pytest.raises(UsageError, match=rf"\(v1.5\): its files are for '{name}'"):
        load_foreign(model, state, maps, tmp_path)
    assert load_foreign(model, state, maps, tmp_path, "torchvision") == "torchvision"


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
    expected = expected.get("state_dict", expected)
    found = read_foreign(path)
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
    assert torch.equal(read_foreign(path)["w"], torch.arange(4))
    assert read_foreign(path)["x"].shape == (0,)


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
            assert len(read_foreign(path)) == len(state)


def test_a_namespace_is_not_built(tmp_path):
    path = tmp_path / "w.pt"
    before = set(torch.serialization.get_safe_globals())
    args = argparse.Namespace()
    vars(args).update(__class__=1, __dict__=2, lr=3)  # with which no Namespace could be built
    torch.save({"w": torch.zeros(2), "args": args}, path)
    assert list(read_foreign(path)) == ["w"]
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
    assert torch.equal(read_foreign(Path("clean-old.pt"))["w"], torch.arange(3))


def test_a_hostile_name_is_no_message(tmp_path):
    model = torch.nn.Linear(2, 2)
    name = "\x1b[2J\n" + "x" * 10_000
    for state in ({name: torch.zeros(1)}, {**model.state_dict(), name: torch.zeros(1)}):
        with pytest.raises(UsageError) as caught:
            load_foreign(model, state, {}, tmp_path)
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
