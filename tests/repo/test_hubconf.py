"""torch.hub finds every network in the repository, whether or not its packages are installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

from cnn_core import create_model, list_models

ROOT = Path(__file__).parents[2]
CODE = """
import importlib.util, sys, torch
assert importlib.util.find_spec("cnn_core") is None
repository, weights = sys.argv[1:]
load = lambda name, **o: torch.hub.load(repository, name, source="local", **o)
torch.manual_seed(0)
print(load("resnet18", num_classes=3)(torch.ones(2, 3, 32, 32)).shape[1])
print(sum(p.numel() for p in load("lenet5_modern", weights=weights).parameters()))
import cnn_core
print(len(cnn_core.list_models()), cnn_core.__file__.startswith(repository))
"""


def test_every_model_is_an_entry_point_and_nothing_else():
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # As in torch.hub.list, which reads repositories of GitHub only.
    found = [name for name in dir(module) if callable(getattr(module, name))]
    assert {name for name in found if not name.startswith("_")} == set(list_models())
    assert "Deep residual learning" in module.resnet18.__doc__


def test_a_model_is_built_with_the_arguments_of_create_model():
    torch.manual_seed(0)
    found = torch.hub.load(str(ROOT), "resnet20_cifar", source="local", num_classes=3)
    torch.manual_seed(0)
    expected = create_model("resnet20_cifar", num_classes=3).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.state_dict().items())


def test_nothing_has_to_be_installed(tmp_path, digits_run):
    # Everything that is installed here but the packages of this repository.
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(("cnn_", "cnnzoo")):
            (tmp_path / path.name).symlink_to(path)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CNNZOO")}
    environment |= {"PYTHONPATH": str(tmp_path), "TORCH_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-S", "-c", CODE, str(ROOT), str(digits_run.path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == f"3\n61706\n{len(list_models())} True\n"
