"""The networks pass the conformance checks, and compute the same as torchvision's."""

import pytest
import torch
from cnn_arch_squeezenet.weights import key_maps
from torchvision import models as theirs

from cnn_core import create_model, get_spec
from cnn_core.testing import parametrize_with_checks

NAMES = {"squeezenet1_0": 1_248_424, "squeezenet1_1": 1_235_496}


@parametrize_with_checks("cnn-arch-squeezenet")
def test_conformance(check, case):
    check(case)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_as_many_as_published(name):
    parameters = create_model(name).parameters()
    assert sum(p.numel() for p in parameters) == get_spec(name).params == NAMES[name]


@torch.no_grad()
@pytest.mark.parametrize("size", [64, 224, 227])
@pytest.mark.parametrize("name", NAMES)
def test_with_torchvisions_weights_it_gives_torchvisions_logits(name, size):
    ours, other = create_model(name).eval(), getattr(theirs, name)().eval()
    ours.load_state_dict(key_maps(name)["torchvision"].to_ours(other.state_dict()))
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(images), other(images))
