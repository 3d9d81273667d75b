"""The tracer, against numbers worked out by hand and gradients that reach the input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnn_core.layers import trace


def measured_field(model: nn.Module, size: int) -> int:
    """Side of the input square that the central output depends on, by its gradient."""
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.01)
    x = torch.ones(1, 1, size, size, requires_grad=True)
    out = model(x)
    middle = out.shape[-1] // 2
    (gradient,) = torch.autograd.grad(out[0, :, middle, middle].sum(), x)
    touched = (gradient[0, 0].abs().sum(0) > 0).nonzero()
    return int(touched.max() - touched.min()) + 1


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, x):
        return torch.relu(self.body(x) + x)


def strided() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 7, stride=2, padding=3), nn.Conv2d(4, 4, 3, padding=1))


def dilated() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, dilation=2), nn.AvgPool2d(3, stride=2))


def residual() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), Residual())


@pytest.mark.parametrize("build", [strided, dilated, residual])
def test_receptive_fields_are_what_gradients_touch(build):
    traced = trace(build, ("1",), (1, 64, 64))
    assert traced.stages[0].receptive_field == measured_field(build(), 64)


def test_a_transposed_convolution_divides_the_stride():
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 2, 2, stride=2), nn.ConvTranspose2d(2, 2, 2, stride=2))

    first, second = trace(build, ("0", "1"), (1, 16, 16)).stages
    assert (first.stride, second.stride) == (2, 1)
    assert second.output == (2, 16, 16)


def test_a_global_pool_sees_everything():
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    conv, pool, _ = trace(build, ("0", "1", "2"), (1, 20, 20)).stages
    assert (conv.receptive_field, pool.receptive_field) == (3, 20)


def test_macs_and_parameters_by_hand():
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 5))

    traced = trace(build, ("0", "2"), (3, 4, 4))
    conv, linear = traced.stages
    assert conv.macs == 16 * 8 * 27
    assert conv.params == 8 * 27 + 8
    assert conv.connections == 16 * 8 * 28
    assert linear.macs == 8 * 16 * 5
    assert traced.macs == conv.macs + linear.macs


@pytest.mark.parametrize(
    ("name", "macs", "params"),
    [("resnet18", 1_814_073_344, 11_689_512), ("mobilenet_v2", 300_774_272, 3_504_872)],
)
def test_torchvisions_networks_have_their_published_macs(name, macs, params):
    models = pytest.importorskip("torchvision.models")
    traced = trace(getattr(models, name), (), (3, 224, 224))
    assert (traced.macs, traced.params) == (macs, params)


def test_resnet18_sees_435_pixels_before_pooling():
    models = pytest.importorskip("torchvision.models")
    stages = trace(models.resnet18, ("layer4",), (3, 512, 512)).stages
    assert (stages[0].receptive_field, stages[0].stride) == (435, 32)


def test_nothing_is_allocated_and_the_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    trace(lambda: nn.Linear(200_000, 200_000), (), (1, 1, 200_000))
    assert torch.equal(before, torch.random.get_rng_state())
