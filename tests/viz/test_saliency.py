"""Guided backprop, SmoothGrad, integrated gradients and occlusion, beside captum."""

from __future__ import annotations

import copy

import pytest
import torch
from captum.attr import (
    GuidedBackprop,
    IntegratedGradients,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core.errors import UsageError
from cnn_viz.attribution.saliency import (
    guided_backprop,
    integrated_gradients,
    occlusion,
    smooth_grad,
)

METHODS = {
    "guided_backprop": guided_backprop,
    "smooth_grad": lambda *args: smooth_grad(*args, samples=3),
    "integrated_gradients": lambda *args: integrated_gradients(*args, steps=3),
    "occlusion": lambda *args: occlusion(*args, window=16, stride=8),
}
CLASSES = [3, 5, 5, 0]


class Net(nn.Module):
    """Two convolutions whose ReLUs are modules, or functions, or in place."""

    def __init__(self, relu: str = "module") -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, 8, 3)
        self.relu1, self.relu2 = nn.ReLU(inplace=relu == "inplace"), nn.ReLU()
        self.head, self.relu = nn.Linear(8, 7), relu

    def forward(self, x: Tensor) -> Tensor:
        if self.relu == "function":
            x = self.conv2(self.conv1(x).relu_())
            return self.head(F.relu(x).mean((2, 3)))
        return self.head(self.relu2(self.conv2(self.relu1(self.conv1(x)))).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 20, 26, generator=torch.Generator().manual_seed(1))


def leaf(images: Tensor) -> Tensor:
    """Images as captum wants them; it would change those that it is given."""
    return images.clone().requires_grad_()


def plain_gradient(net: nn.Module, images: Tensor) -> Tensor:
    return Saliency(net).attribute(leaf(images), CLASSES, abs=False)


def close(found: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 0
    torch.testing.assert_close(found / expected.abs().max(), expected / expected.abs().max())


@pytest.mark.parametrize("relu", ["module", "inplace", "function"])
def test_guided_backprop_is_captums_however_relus_are_written(net, images, relu):
    with pytest.warns(UserWarning, match="backward hooks"):
        expected = GuidedBackprop(copy.deepcopy(net)).attribute(leaf(images), CLASSES)
    other = Net(relu)
    other.load_state_dict(net.state_dict())
    close(guided_backprop(other, images, CLASSES), expected)
    plain = plain_gradient(net, images)
    assert (expected - plain).abs().max() > 0.1 * plain.abs().max()  # there was something to cut


def test_guided_backprop_cuts_at_relu6_too(net, images):
    other = copy.deepcopy(net)
    other.relu1, other.relu2 = nn.ReLU6(), nn.ReLU6(inplace=True)
    assert torch.equal(net(images), other(images))  # no value reaches 6
    assert torch.equal(
        guided_backprop(other, images, CLASSES), guided_backprop(net, images, CLASSES)
    )


@pytest.mark.parametrize("steps", [7, 50])
def test_integrated_gradients_are_captums_midpoint_rule(net, images, steps):
    baseline = torch.full_like(images, 0.3)
    expected = IntegratedGradients(net).attribute(
        images, baseline, CLASSES, n_steps=steps, method="riemann_middle"
    )
    found = integrated_gradients(net, images, CLASSES, baseline=baseline, steps=steps)
    close(found, expected.float())
    close(integrated_gradients(net, images, CLASSES, baseline=0.3, steps=steps), found)


@torch.no_grad()
def test_integrated_gradients_sum_up_to_the_difference(net, images):
    images = 20 * images
    rows = torch.arange(4)
    difference = (net(images) - net(0 * images))[rows, CLASSES]
    found = integrated_gradients(net, images, CLASSES, steps=200).sum((1, 2, 3))
    torch.testing.assert_close(found, difference, atol=1e-3, rtol=1e-2)
    assert difference.abs().min() > 0.01


@pytest.mark.parametrize(("window", "stride"), [(5, 3), (4, 4), (7, 2), (20, 6)])
def test_occlusion_is_captums(net, images, window, stride):
    expected = Occlusion(net).attribute(
        images, (3, window, window), (3, stride, stride), baselines=0.5, target=CLASSES
    )
    found = occlusion(net, images, CLASSES, window=window, stride=stride, fill=0.5)
    assert found.shape == (4, 20, 26)
    close(found, expected[:, 0].float())


def test_smooth_grad_is_captums_within_its_own_noise(net, images):
    images[:, 0, 0, 0], images[:, 0, 0, 1] = 0, 1  # every image's range is 1
    torch.manual_seed(0)
    tunnel = NoiseTunnel(Saliency(net))
    options = {"nt_type": "smoothgrad", "stdevs": 0.2, "target": CLASSES, "abs": False}
    theirs = [tunnel.attribute(leaf(images), nt_samples=50, **options) for _ in range(6)]
    ours = [smooth_grad(net, images, CLASSES, samples=50, noise=0.2, seed=n) for n in range(6)]
    error = (torch.stack(theirs).var(0) / 6 + torch.stack(ours).var(0) / 6).sqrt()
    apart = torch.stack(theirs).mean(0) - torch.stack(ours).mean(0)
    z = (apart / error)[error > 0]
    assert z.square().mean() < 3
    assert abs(float(z.mean())) < 0.2
    plain = plain_gradient(net, images)
    beside = ((torch.stack(theirs).mean(0) - plain) / error)[error > 0]
    assert beside.square().mean() > 6  # the noise is something to agree upon


def test_smooth_grad_without_noise_is_the_gradient_and_a_seed_is_a_result(net, images):
    close(
        smooth_grad(net, images, CLASSES, samples=2, noise=0.0),
        plain_gradient(net, images),
    )
    first, again, other = (smooth_grad(net, images, CLASSES, samples=3, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(method, context, fails, net, images):
    net.train()
    net.relu1.eval()
    net.requires_grad_(False)
    net.head.weight.requires_grad_().grad = torch.ones_like(net.head.weight)
    calls: list[int] = []

    def sometimes(*args: object) -> None:
        calls.append(torch.rand(()) and 1)  # draws, as dropout would
        if fails and len(calls) == 2:
            raise RuntimeError("mid-air")

    net.relu2.register_forward_hook(sometimes)
    before, kept, random = copy.deepcopy(net.state_dict()), images.clone(), torch.get_rng_state()
    flags = [module.training for module in net.modules()]
    with context():
        if fails:
            with pytest.raises(RuntimeError, match="mid-air"):
                METHODS[method](net, images, CLASSES)
        else:
            found = METHODS[method](net, images, CLASSES)
            assert found.grad_fn is None
            assert not found.requires_grad
            assert len(found) == 4
            assert found.abs().flatten(1).amax(1).min() > 0
    assert [module.training for module in net.modules()] == flags
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(images, kept)
    assert images.grad is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(net.head.weight.grad, torch.ones(7, 8))
    assert all(p.grad is None for name, p in net.named_parameters() if name != "head.weight")
    assert [len(m._forward_hooks) + len(m._backward_hooks) for m in net.modules()] == [
        int(module is net.relu2) for module in net.modules()
    ]


@pytest.mark.parametrize("method", METHODS)
def test_the_predicted_classes_are_explained_and_classes_that_do_not_fit_refused(
    method, net, images
):
    predicted = net.eval()(images).argmax(1)
    assert torch.equal(METHODS[method](net, images), METHODS[method](net, images, predicted))
    with pytest.raises(UsageError, match="expected 4 numbers from 0 to 6"):
        METHODS[method](net, images, [1, 2])


def test_values_that_make_no_sense_are_refused(net, images):
    with pytest.raises(UsageError, match="samples = 0: expected a positive number"):
        smooth_grad(net, images, samples=0)
    with pytest.raises(UsageError, match="steps = -1"):
        integrated_gradients(net, images, steps=-1)
    with pytest.raises(UsageError, match="window = 0"):
        occlusion(net, images, window=0)
    with pytest.raises(UsageError, match="stride = 0"):
        occlusion(net, images, stride=0)
