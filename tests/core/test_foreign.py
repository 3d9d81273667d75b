"""Weights of other libraries: recognised, renamed, adapted; and hostile files refused."""

from __future__ import annotations

import os
import pickle
import zipfile

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from cnn_arch_resnet.weights import key_maps
from cnn_core import create_model
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.errors import CorruptError, UsageError
from cnn_core.weights.foreign import load_foreign, read_foreign
from cnn_core.weights.keymap import KeyMap
from cnn_core.weights.native import Weights, write_weights

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
    with pytest.raises(UsageError, match=r"output.weight is \(7, 84\), the model has \(10, 84\)"):
        create_model("lenet5_modern", weights=path)
    state = dict(model.state_dict())
    del state["c3.bias"]
    torch.save(state, path)
    with pytest.raises(UsageError, match=r"named as by cnnzoo, c3.bias is missing \(1 in all\)"):
        create_model("lenet5_modern", weights=path)
    state = {**model.state_dict(), "c7.weight": torch.zeros(2)}
    torch.save(state, path)
    with pytest.raises(UsageError, match=r"c7.weight is not of this network \(1 in all\)"):
        create_model("lenet5_modern", weights=path)
    with pytest.raises(UsageError, match="no such file"):
        create_model("lenet5_modern", weights=tmp_path / "none.pt")


def test_spare_keys_of_a_naming_are_left_out(tmp_path, model):
    state = {**MAP.to_theirs(model.state_dict()), "aux.weight": torch.zeros(2)}
    spare = KeyMap(*PAIRS, spare=("aux.",))
    with pytest.raises(UsageError, match=r"aux.weight is not of this network"):
        load_foreign(model, state, {"tutorial": MAP}, tmp_path)
    assert load_foreign(model, state, {"tutorial": spare}, tmp_path) == "tutorial"


def test_a_naming_that_misleads_has_to_be_named(tmp_path, model):
    state = MAP.to_theirs(model.state_dict())
    maps = {"tutorial": KeyMap(*PAIRS, beware="tutorials flip the kernels")}
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
