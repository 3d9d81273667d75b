"""Grad-CAM against the paper's equations, a network whose evidence is known, and side effects."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core import create_model
from cnn_core.errors import UnknownNameError, UsageError
from cnn_core.layers.tracing import trace
from cnn_viz import Cam, grad_cam


@pytest.fixture
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return create_model("lenet5_modern").eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def by_hand(model: nn.Module, images: Tensor, classes: list[int]) -> Tensor:
    """Eq. 1 and 2 of Selvaraju et al. for C3 of `lenet5_modern`, image by image."""
    maps = []
    for image, number in zip(images, classes, strict=True):
        a = model.c3(model.s2(F.relu(model.c1(image[None])))).detach().requires_grad_()
        x = model.s4(F.relu(a))
        y = model.output(F.relu(model.f6(F.relu(model.c5(x)).flatten(1))))[0, number]
        (gradient,) = torch.autograd.grad(y, a)
        total = torch.zeros(a.shape[2:])
        for k in range(a.shape[1]):
            total += gradient[0, k].mean() * a[0, k].detach()
        maps.append(total)
    return torch.stack(maps)


def test_maps_are_those_of_the_papers_equations(lenet, images):
    classes = [3, 1, 4, 1, 5, 9]
    cam = grad_cam(lenet, images, "c3", classes)
    assert cam.raw.shape == (6, 10, 10)
    assert (cam.raw > 0).any()
    assert (cam.raw < 0).any()
    torch.testing.assert_close(cam.raw, by_hand(lenet, images, classes), atol=1e-6, rtol=1e-5)


def test_without_classes_the_predicted_ones_are_explained(lenet, images):
    cam = grad_cam(lenet, images, "c3")
    predicted = lenet(images).argmax(1)
    assert torch.equal(cam.classes, predicted)
    torch.testing.assert_close(cam.logits, lenet(images).detach())
    torch.testing.assert_close(cam.raw, by_hand(lenet, images, predicted.tolist()))


def test_images_of_a_batch_do_not_influence_each_other(lenet, images):
    together = grad_cam(lenet, images, "c3", [0, 1, 2, 3, 4, 5]).raw
    alone = [grad_cam(lenet, images[n : n + 1], "c3", [n]).raw for n in range(6)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=1e-5)


def test_evidence_in_a_known_quadrant_is_found_there(quadrants, quadrant):
    number, (rows, columns) = quadrant
    image = torch.zeros(1, 1, 16, 16)
    image[:, :, rows, columns] = 1
    cam = grad_cam(quadrants, image, "stage")
    assert cam.classes.tolist() == [number]
    heat = cam.heat()[0]
    inside = heat[rows, columns].sum() / heat.sum()
    assert inside > 0.8  # bilinear resizing blurs the border
    # The centre of the quadrant is not blended with anything.
    assert heat[rows, columns][3:5, 3:5].min() == 1


class InPlace(nn.Module):
    """A convolution whose output the next layer overwrites, as VGG and DenseNet do."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.stage = nn.Conv2d(1, 8, 3)
        self.relu = nn.ReLU(inplace=inplace)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.stage(x)).mean((2, 3)))


def test_a_following_in_place_relu_changes_nothing():
    torch.manual_seed(0)
    clean, overwriting = InPlace(inplace=False), InPlace(inplace=True)
    overwriting.load_state_dict(clean.state_dict())
    images = torch.randn(3, 1, 9, 9)
    expected = grad_cam(clean, images, "stage", [0, 1, 2])
    found = grad_cam(overwriting, images, "stage", [0, 1, 2])
    # A hook that does not copy the maps would see the overwritten values.
    after = clean.stage(images).relu()
    assert (after - clean.stage(images)).abs().max() > 0.1
    assert torch.equal(found.raw, expected.raw)
    assert torch.equal(found.logits, expected.logits)


class Moody(nn.Module):
    """Draws random numbers in eval mode, too, and can be told to raise."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.norm(self.stage(x)), 0.1, training=True)
        if self.fail:
            raise RuntimeError("mid-air")
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind_even_after_an_exception(fails):
    model = Moody()
    model.norm.eval()  # a mixture: only some modules train
    model.fail = fails
    model.head.weight.grad = torch.full_like(model.head.weight, 7.0)
    calls: list[str] = []
    model.stage.register_forward_hook(lambda *_: calls.append("the user's own hook"))
    before = copy.deepcopy(model.state_dict())
    flags = {name: module.training for name, module in model.named_modules()}
    hooks = {name: list(module._forward_hooks) for name, module in model.named_modules()}
    images = torch.randn(2, 1, 8, 8)
    kept = images.clone()
    state = torch.get_rng_state()

    if fails:
        with pytest.raises(RuntimeError, match="mid-air"):
            grad_cam(model, images, "stage")
    else:
        grad_cam(model, images, "stage")

    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == flags
    found = {name: list(module._forward_hooks) for name, module in model.named_modules()}
    assert found == hooks
    assert calls == ["the user's own hook"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert torch.equal(grads.pop("head.weight"), torch.full((2, 4), 7.0))
    assert set(grads.values()) == {None}
    assert torch.equal(images, kept)
    assert images.grad is None
    assert torch.is_grad_enabled()


def test_a_model_in_training_mode_is_explained_in_eval_mode():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    images = torch.randn(4, 1, 8, 8)
    in_eval = grad_cam(model.eval(), images, "0", [0] * 4).raw
    in_train = grad_cam(model.train(), images, "0", [0] * 4).raw
    assert torch.equal(in_train, in_eval)
    assert model[1].num_batches_tracked == 0


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("frozen", [False, True])
def test_it_works_wherever_it_is_called_and_on_frozen_weights(lenet, images, context, frozen):
    expected = by_hand(lenet, images, [2] * 6)
    lenet.requires_grad_(not frozen)
    with context():
        made_inside = images * 1  # a tensor created under inference_mode, which autograd refuses
        cam = grad_cam(lenet, made_inside, "c3", torch.tensor([2] * 6))
    torch.testing.assert_close(cam.raw, expected, atol=1e-6, rtol=1e-5)
    assert not cam.raw.requires_grad
    assert not cam.logits.requires_grad


def test_half_precision_is_explained_in_float32(lenet, images):
    cam = grad_cam(lenet.bfloat16(), images.bfloat16(), "c3", [2] * 6)
    assert cam.raw.dtype == torch.float32
    expected = by_hand(lenet.float(), images, [2] * 6)
    assert (cam.raw - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_map_without_evidence_says_so_and_stays_black():
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.constant_(model[0].weight, -1.0)
    bright = torch.ones(1, 1, 4, 4)  # A = -1 and alpha > 0: all of the map is below 0
    cam = grad_cam(model, torch.cat([bright, -bright]), "0", [0, 0])
    assert cam.empty.tolist() == [True, False]
    assert cam.raw[0].max() < 0
    heat = cam.heat()
    assert heat[0].abs().max() == 0
    assert heat[1].max() == 1


def test_heat_is_the_map_enlarged_without_aligned_corners(lenet, images):
    cam = grad_cam(lenet, images, "c3")
    heat = cam.heat()
    assert heat.shape == (6, 32, 32)
    for raw, found in zip(cam.raw, heat, strict=True):
        large = F.interpolate(raw.clamp(min=0)[None, None], (32, 32), mode="bilinear")[0, 0]
        torch.testing.assert_close(found, large / large.max())
        assert found.max() == 1


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_heat_does_not_depend_on_the_scale_of_the_logits(lenet, images, scale):
    expected = grad_cam(lenet, images, "c3", [2] * 6).heat()
    with torch.no_grad():
        lenet.output.weight.mul_(scale)
    torch.testing.assert_close(grad_cam(lenet, images, "c3", [2] * 6).heat(), expected)


def test_an_unknown_stage_suggests(lenet, images):
    with pytest.raises(UnknownNameError, match="unknown stage 'c33', did you mean 'c3'"):
        grad_cam(lenet, images, "c33")


def test_a_stage_without_maps_is_refused(lenet, images):
    with pytest.raises(UsageError, match=r"stage 'f6' outputs \[6, 84\]: expected maps"):
        grad_cam(lenet, images, "f6")
    assert not lenet.f6._forward_hooks


def test_a_stage_that_runs_twice_or_never_is_refused():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)
            self.idle = nn.Conv2d(1, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x)).flatten(1)

    with pytest.raises(UsageError, match="'conv' is called more than once"):
        grad_cam(Twice(), torch.zeros(1, 1, 4, 4), "conv")
    with pytest.raises(UsageError, match="'idle' is not used"):
        grad_cam(Twice(), torch.zeros(1, 1, 4, 4), "idle")


@pytest.mark.parametrize("classes", [[1, 2], [0, 0, 0, 0, 0, 10], [-1] * 6])
def test_classes_that_do_not_fit_are_refused(lenet, images, classes):
    with pytest.raises(UsageError, match="expected 6 numbers from 0 to 9"):
        grad_cam(lenet, images, "c3", classes)


def test_a_map_with_a_stride_lies_at_the_centre():
    raw = torch.zeros(1, 2, 3)
    raw[0, 1, 2], raw[0, 0, 0] = 2.0, -1.0
    cam = Cam(raw=raw, logits=torch.zeros(1, 2), classes=torch.zeros(1), size=(10, 12))
    heat = cam.heat(stride=2)[0]
    assert heat.shape == (10, 12)
    assert heat.max() == 1
    assert divmod(int(heat.argmax()), 12) == (6, 8)  # 4 x 6 of 10 x 12 pixels, from (3, 3) on
    assert heat[3:7, 3:9].sum() == heat.sum()
    torch.testing.assert_close(cam.heat(stride=5)[0].sum(0), cam.heat()[0].sum(0))
    with pytest.raises(UsageError, match="stride = 2: only supported with like='cnnzoo'"):
        cam.heat("torch-cam", stride=2)


@pytest.mark.parametrize("stage", ["down.1", "bottom", "up.1"])
def test_positions_of_a_network_without_padding_lie_at_their_receptive_fields(stage):
    """The centre of the pixels that a position depends on is where its stride places it."""
    torch.manual_seed(0)
    build = partial(create_model, "unet", in_channels=1, width=8, depth=2)
    model = build().double().eval()
    side = 92
    image = torch.rand(1, 1, side, side, dtype=torch.float64).requires_grad_()
    strides = {s.name: s.stride for s in trace(build, (stage,), (1, side, side)).stages}
    kept = {}
    model.get_submodule(stage).register_forward_hook(lambda m, x, y: kept.update(maps=y))
    model(image)
    maps, stride = kept["maps"], strides[stage]
    size = maps.shape[-1]
    assert size * stride < side
    for place in (0, size // 2, size - 1):
        (slope,) = torch.autograd.grad(maps[..., place, place].sum(), image, retain_graph=True)
        seen = slope.abs().sum((0, 1, 3)).nonzero().flatten()
        looks = (int(seen[0]) + int(seen[-1])) / 2
        spot = torch.zeros(1, size, size)
        spot[0, place, place] = 1
        cam = Cam(raw=spot, logits=spot, classes=torch.zeros(1), size=(side, side))
        drawn = cam.heat(stride=stride)[0].sum(1)
        middle = float((drawn * torch.arange(side)).sum() / drawn.sum())
        assert abs(middle - looks) <= 1 + stride / 2  # a transposed convolution sees no middle
