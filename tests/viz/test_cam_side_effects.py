"""Explaining a network has no side effects, for any method and wherever an error is raised."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core import create_model
from cnn_core.errors import UnknownNameError, UsageError
from cnn_viz import cams, cost
from cnn_viz.attribution.cam import METHODS


class Trap(nn.Module):
    """Passes maps on, draws a random number, and raises in one of its calls or backward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.raises_at, self.backward_raises = 0, -1, False

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls - 1 == self.raises_at:
            raise RuntimeError("mid-air")
        if self.backward_raises and x.requires_grad:
            x = x * 1
            x.register_hook(raising)
        return x + 0 * torch.rand(())


def raising(gradient: Tensor) -> None:
    raise RuntimeError("mid-air")


class Net(nn.Module):
    """A small network that every method explains, with a trap before and after its stage."""

    def __init__(self) -> None:
        super().__init__()
        self.before = Trap()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.after = Trap()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(self.before(x))))
        return self.head(self.after(x).mean((2, 3)))


def made() -> Net:
    torch.manual_seed(0)
    net = Net().train()
    net.norm.eval()  # a mixture: only some modules train
    net.head.weight.grad = torch.full_like(net.head.weight, 7.0)
    net.conv.bias.requires_grad_(False)
    net.norm.register_forward_hook(print_nothing)
    return net


def print_nothing(*args: Any) -> None:
    """A hook of the user's own."""


def state(net: nn.Module) -> dict[str, Any]:
    """Return all state of a network, and of torch, that a method could change."""
    return {
        "modules": [(name, id(module)) for name, module in net.named_modules()],
        "training": [module.training for module in net.modules()],
        "hooks": [
            [list(value) for key, value in sorted(vars(module).items()) if key.endswith("_hooks")]
            for module in net.modules()
        ],
        "parameters": [
            (name, id(p), p._version, p.requires_grad, id(p.grad), p.grad_fn)
            for name, p in net.named_parameters()
        ],
        "values": [tensor.tolist() for tensor in net.state_dict().values()],
        "grads": [None if p.grad is None else p.grad.tolist() for p in net.parameters()],
        "random": torch.get_rng_state().tolist(),
        "modes": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
    }


IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    place=st.sampled_from(["before", "after"]),
    raises_at=st.integers(0, 4),
    backward=st.booleans(),
    batch=st.integers(1, 12),
)
def test_nothing_is_left_wherever_something_raises(method, place, raises_at, backward, batch):
    net = made()
    trap = getattr(net, place)
    trap.raises_at, trap.backward_raises = (-1, True) if backward else (raises_at, False)
    before, kept = state(net), IMAGES.clone()
    raised = False
    try:
        cams(net, IMAGES, "relu", [0, 1], method, batch=batch)
    except RuntimeError as error:
        raised = "mid-air" in str(error)
        if not raised:
            raise
    # The gradient stops at the stage; only methods that look again come to later calls.
    assert raised == (place == "after" if backward else raises_at < trap.calls)
    assert state(net) == before
    assert torch.equal(IMAGES, kept)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_every_method_works_everywhere_and_leaves_nothing(method, context):
    net = made()
    expected = cams(net, IMAGES, "relu", [0, 1], method)["relu"].raw
    assert expected.abs().max() > 0
    net.requires_grad_(False)
    before = state(net)
    with context():
        images = IMAGES * 1
        found = cams(net, images, "relu", [0, 1], method)["relu"]
    assert state(net) == before
    assert torch.equal(found.raw, expected)
    assert not found.raw.requires_grad
    assert not found.logits.requires_grad
    assert found.raw.dtype == torch.float32


@pytest.mark.parametrize("method", METHODS)
def test_every_method_works_under_autocast_and_training_goes_on_in_it(method):
    net = made()
    net.conv.bias.requires_grad_(True)
    expected = cams(net, IMAGES, "relu", [0, 1], method)["relu"].raw
    with torch.autocast("cpu", torch.bfloat16):
        found = cams(net, IMAGES, "relu", [0, 1], method)["relu"].raw
        net(IMAGES).sum().backward()  # in the same context: no copy without a graph is cached
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 0.1 * expected.abs().max()
    for name in ("conv.weight", "conv.bias", "head.bias"):
        assert net.get_parameter(name).grad.abs().max() > 0, name


def test_no_gradient_of_a_weight_is_computed():
    """Not even a temporary one: the graph begins at the stage."""
    net, asked = made(), []
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda g, name=name: asked.append(name))
    cams(net, IMAGES, ["conv", "relu"], [0, 1])
    assert asked == []
    net(IMAGES).sum().backward()
    assert "conv.weight" in asked  # the hooks work


def alive() -> tuple[int, int]:
    """Return the number of live tensors and of the graph nodes that they hold."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
    return len(tensors), sum(tensor.grad_fn is not None for tensor in tensors)


def test_two_hundred_calls_leave_no_hook_no_graph_and_no_memory():
    net = made()
    net.relu.register_forward_hook(print_nothing)

    def look(times: int) -> None:
        for number in range(times):
            cams(net, IMAGES, ["relu", "norm"], [0, 1], METHODS[number % len(METHODS) or 1])

    look(len(METHODS))
    before, hooks = alive(), state(net)["hooks"]
    objects = len(gc.get_objects())
    look(200)
    assert alive() == before
    assert state(net)["hooks"] == hooks
    assert len(gc.get_objects()) - objects < 100  # a leak of one an iteration is 200


def test_a_map_holds_no_graph_and_no_network():
    net = made()
    cam = cams(net, IMAGES, "relu", [0, 1])["relu"]
    for tensor in (cam.raw, cam.logits, cam.classes):
        assert tensor.grad_fn is None
        assert tensor.is_leaf


# Several stages, several calls


def test_several_stages_take_one_forward_pass_and_give_what_each_gives_alone():
    torch.manual_seed(0)
    net = create_model("resnet20_cifar").eval()
    images = torch.randn(2, 3, 32, 32)
    passes: list[int] = []
    net.conv1.register_forward_hook(lambda *_: passes.append(1))
    stages = ["conv4_x", "conv2_x", "conv3_x.1.residual", "conv3_x"]  # in any order
    together = cams(net, images, stages, [3, 5])
    assert len(passes) == 1
    assert list(together) == stages
    for stage in stages:
        alone = cams(net, images, stage, [3, 5])[stage]
        assert torch.equal(together[stage].raw, alone.raw), stage


class Twice(nn.Module):
    """One module called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)
        self.idle = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv2(self.relu(self.conv1(x))))
        return self.head(self.relu(x - 0.1).mean((2, 3)))


@pytest.mark.parametrize("method", ["grad-cam", "layer-cam", "ablation-cam", "score-cam"])
def test_a_module_that_runs_several_times_is_explained_call_by_call(method):
    torch.manual_seed(0)
    net = Twice()
    one, two, three = (nn.ReLU() for _ in range(3))

    class Apart(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = self.two(self.conv2(self.one(self.conv1(x))))
            return self.head(self.three(x - 0.1).mean((2, 3)))

    apart = Apart()
    for name, module in {"one": one, "two": two, "three": three}.items():
        apart.add_module(name, module)
    for name in ("conv1", "conv2", "head"):
        apart.add_module(name, net.get_submodule(name))
    for call, name in enumerate(["one", "two", "three"]):
        found = cams(net, IMAGES, "relu", [0, 1], method, call=call)["relu"]
        expected = cams(apart, IMAGES, name, [0, 1], method)[name]
        torch.testing.assert_close(found.raw, expected.raw, msg=f"{method} at call {call}")
        assert found.raw.abs().max() > 0
        assert cost(net, IMAGES, "relu", method, call=call) == cost(apart, IMAGES, name, method)


def test_a_call_that_is_not_named_or_not_there_is_refused():
    net = Twice()
    with pytest.raises(UsageError, match=r"'relu' is called more than once\n.*call=0 is"):
        cams(net, IMAGES, "relu")
    with pytest.raises(UsageError, match="'relu' is called more than once"):
        cost(net, IMAGES, "relu", "grad-cam")
    with pytest.raises(UnknownNameError, match="unknown stage 'rely', did you mean 'relu'"):
        cost(net, IMAGES, "rely", "grad-cam")
    with pytest.raises(UsageError, match=r"'relu' is called 3 times: call = 3, expected 0 to 2"):
        cams(net, IMAGES, "relu", call=3)
    with pytest.raises(UsageError, match=r"'conv1' is called once: call = -1, expected 0 to 0"):
        cams(net, IMAGES, "conv1", call=-1)
    with pytest.raises(UsageError, match="'idle' is not used"):
        cams(net, IMAGES, "idle")


def test_names_of_methods_scales_and_stages_are_suggested():
    net = made()
    with pytest.raises(UnknownNameError, match="unknown method 'gradcam', did you mean"):
        cams(net, IMAGES, "relu", method="gradcam")
    with pytest.raises(UnknownNameError, match="unknown stage 'rely', did you mean 'relu'"):
        cams(net, IMAGES, ["norm", "rely"])
    with pytest.raises(UnknownNameError, match="unknown scale 'torchcam', did you mean 'torch-"):
        cams(net, IMAGES, "relu")["relu"].heat(like="torchcam")
    assert not any(len(m._forward_hooks) for m in net.modules() if m is not net.norm)


def test_logits_that_do_not_depend_on_the_stage_are_refused():
    class Cut(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.relu(self.conv(x)).mean((2, 3)).detach())

    with pytest.raises(UsageError, match="the logits do not depend on stage 'conv'"):
        cams(Cut(), IMAGES, "conv", [0, 1])


# What the methods find


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_evidence_in_a_known_quadrant(method, quadrants, quadrant):
    number, (rows, columns) = quadrant
    image = torch.full((1, 1, 16, 16), 0.05)  # a little of everything: not only one thing to find
    image[:, :, rows, columns] = 1
    cam = cams(quadrants, image, "looked", method=method)["looked"]
    assert cam.classes.tolist() == [number]
    heat = cam.heat()[0]
    assert heat[rows, columns].sum() / heat.sum() > 0.75
    assert heat[rows, columns][3:5, 3:5].min() > 0.999


@pytest.mark.parametrize("method", METHODS[:-1])
def test_other_weights_give_another_map(method):
    torch.manual_seed(0)
    first, second = (create_model("resnet20_cifar").eval() for _ in range(2))
    images = torch.randn(2, 3, 32, 32)
    maps = [cams(m, images, "conv4_x", [1, 2], method)["conv4_x"].raw for m in (first, second)]
    for one, other in zip(*maps, strict=True):
        assert F.cosine_similarity(one.flatten(), other.flatten(), dim=0) < 0.99
    again = cams(copy.deepcopy(first), images, "conv4_x", [1, 2], method)["conv4_x"].raw
    assert torch.equal(again, maps[0])


def test_cam_needs_pooling_and_a_linear_layer():
    net = create_model("lenet5_modern").eval()
    with pytest.raises(UsageError, match=r"CAM needs global average pooling .* stage 'c3'\n"):
        cams(net, torch.randn(2, 1, 32, 32), "c3", method="cam")


def passes(net: nn.Module, act: Callable[[], object]) -> int:
    """Return how many images pass through a network while `act` runs."""
    images: list[int] = []
    handle = net.register_forward_hook(lambda *args: images.append(len(args[1][0])))
    act()
    handle.remove()
    return sum(images)


@pytest.mark.parametrize("method", METHODS)
def test_the_cost_is_what_is_spent(method):
    net = made()
    spent = passes(net, lambda: cams(net, IMAGES, "relu", [0, 1], method, batch=5))
    assert cost(net, IMAGES, "relu", method) == spent
    assert passes(net, lambda: cost(net, IMAGES, "relu", method)) <= 1
