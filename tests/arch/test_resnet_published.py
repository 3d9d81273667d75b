"""Published CIFAR networks: their specs against the publishers' networks and transforms."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_arch_resnet import plugin
from cnn_core import create_model, registry
from cnn_core.errors import CorruptError
from cnn_core.training.sources import open_source, preprocessing_of
from cnn_core.weights.published import class_names

SPECS = {spec.name: spec for spec in plugin.cnnzoo_weights() if spec.data.startswith("cifar")}

# mean and std in akamaster's trainer.py, and in the logs of chenyaofo's trainings
NORMALISATION = {
    ("akamaster", "cifar10"): ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ("chenyaofo", "cifar10"): ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201)),
    ("chenyaofo", "cifar100"): ((0.507, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
}


class Block(nn.Module):
    """A basic block with the publishers' names, and a shortcut of option A or B."""

    def __init__(self, cin: int, cout: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.stride, self.padding = stride, (cout - cin) // 2
        if option == "B" and cin != cout:
            self.downsample = nn.Sequential(
                nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        elif self.padding:
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0) * 2 + (self.padding, self.padding)
            )
        return F.relu(x + y)


class Published(nn.Module):
    """ResNet for CIFAR with the names of akamaster (option A) or chenyaofo (option B)."""

    def __init__(self, layers: int, classes: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        n, cin = (layers - 2) // 6, 16
        for stage, cout in enumerate((16, 32, 64), start=1):
            first = Block(cin, cout, 1 if stage == 1 else 2, option)
            rest = (Block(cout, cout, 1, option) for _ in range(n - 1))
            self.add_module(f"layer{stage}", nn.Sequential(first, *rest))
            cin = cout
        self.last = "linear" if option == "A" else "fc"
        self.add_module(self.last, nn.Linear(64, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return getattr(self, self.last)(x.mean((2, 3)))


def randomised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def test_all_published_sizes_have_specs():
    assert sorted(SPECS) == sorted(
        [f"resnet{n}_cifar:cifar10" for n in (20, 32, 44, 56, 110)]
        + [f"resnet{n}_cifar_b:cifar{c}" for n in (20, 32, 44, 56) for c in (10, 100)]
    )


@pytest.mark.parametrize("name", SPECS)
def test_a_publishers_file_gives_the_publishers_logits(tmp_path, name):
    spec = SPECS[name]
    torch.manual_seed(0)
    layers = int(spec.model.split("_")[0].removeprefix("resnet"))
    option = "B" if spec.model.endswith("_b") else "A"
    theirs = randomised(Published(layers, spec.num_classes, option))
    path = tmp_path / spec.url.rpartition("/")[2]
    if option == "A":  # as akamaster's trainer.py saved it, with the torch of 2018
        state = {f"module.{key}": value for key, value in theirs.state_dict().items()}
        file = {"state_dict": state, "best_prec1": 91.73}
        torch.save(file, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(theirs.state_dict(), path)
    opened = open_source(path, model=name, naming=spec.naming)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    mean, std = (
        torch.tensor(values)[:, None, None] for values in NORMALISATION[spec.naming, spec.data]
    )
    with torch.no_grad():
        expected = theirs((images / 255 - mean) / std)
        found = opened.model(opened.weights.preprocessing(images))
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert opened.weights.num_classes == len(opened.weights.classes) == spec.num_classes
    # The size is the publisher's, and so it is about that of the file.
    assert abs(spec.bytes - path.stat().st_size) < 0.03 * spec.bytes


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_says_what_its_address_says(name):
    spec = SPECS[name]
    digits = spec.url.rpartition("-")[2].partition(".")[0]
    assert spec.sha256 == digits
    assert f"resnet{spec.model.removeprefix('resnet').split('_')[0]}-" in spec.url
    assert spec.data in spec.url or spec.naming == "akamaster"
    data = registry.datasets().get(spec.data)
    assert class_names(registry.weights().entry(name)) == data.classes
    assert len(data.classes) == spec.num_classes


def test_classes_are_torchvisions_in_order():
    # torchvision reads the names from the dataset's own file, in the order of the labels.
    names = class_names(registry.weights().entry("resnet20_cifar:cifar10"))
    assert (names[0], names[1], names[2], names[9]) == ("airplane", "automobile", "bird", "truck")
    hundred = class_names(registry.weights().entry("resnet20_cifar_b:cifar100"))
    assert list(hundred) == sorted(hundred)


@pytest.mark.parametrize("name", SPECS)
def test_a_retrained_file_is_preprocessed_as_its_publisher_does(tmp_path, name):
    spec = SPECS[name]
    option = "B" if spec.model.endswith("_b") else "A"
    layers = int(spec.model.split("_")[0].removeprefix("resnet"))
    torch.save(Published(layers, spec.num_classes, option).state_dict(), tmp_path / "w.pth")
    opened = open_source(tmp_path / "w.pth", model=spec.model)
    assert opened.weights.preprocessing == preprocessing_of(spec)
    assert opened.weights.classes == registry.datasets().get(spec.data).classes


@pytest.mark.parametrize("model", ["resnet20_cifar_b", "resnet18_cifar", "vgg11_cifar"])
def test_the_preprocessing_goes_with_the_naming_not_with_the_model(tmp_path, model):
    naming = "akamaster" if model == "resnet20_cifar_b" else "kuangliu"
    entry = registry.models().entry(model)
    keymap = registry.resolve(entry, "key_maps")(model)[naming]
    state = keymap.to_theirs(create_model(model, num_classes=7).state_dict())
    torch.save({"net": state, "acc": 95.0}, tmp_path / "w.pth")
    opened = open_source(tmp_path / "w.pth", model=model)
    mean = (0.485, 0.456, 0.406) if naming == "akamaster" else (0.4914, 0.4822, 0.4465)
    assert opened.weights.preprocessing.mean == mean
    assert "class names unknown, preprocessing as in its library" in opened.notes[-1]


def test_another_file_of_that_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNZOO_CACHE", str(tmp_path))
    path = tmp_path / "weights" / "resnet20-12fca82f.th"
    path.parent.mkdir()
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CorruptError, match="resnet20_cifar:cifar10 has 12fca82f"):
        open_source("resnet20_cifar")


def test_the_specs_are_light():
    code = (
        "import sys; from cnn_arch_resnet import plugin; plugin.cnnzoo_weights(); "
        "print(sorted({'torch', 'numpy', 'torchvision'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
