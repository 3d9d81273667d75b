"""Class activation maps beside captum, torch-cam and pytorch-grad-cam, on every family.

Maps that are empty agree with anything: classes are chosen so that each map has a positive part,
and logits are scaled so that its largest value is 1, where no library's epsilon plays a role.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchcam.methods
from captum.attr import DeepLift, LayerGradCam, LayerGradientXActivation
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cnn_core import create_model
from cnn_viz import cams, seg_grad_cam
from cnn_viz.attribution.cam import EQUATIONS, Cam

PAGE = Path(__file__).parents[2] / "docs" / "cam.md"
MARK = "<!-- differences -->\n", "<!-- /differences -->"


@dataclass(frozen=True)
class Case:
    """A network, three images of a size, and a stage; `overwritten`: by what follows, in place."""

    name: str
    size: tuple[int, int]
    stage: str
    overwritten: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}-{self.stage}-{self.size[0]}x{self.size[1]}"


CLEAN = (
    Case("lenet5", (32, 32), "c3"),
    Case("lenet5_modern", (32, 32), "c3"),
    Case("alexnet_small", (32, 32), "conv5"),
    Case("alexnet_small", (40, 56), "conv2"),
    Case("vgg11_cifar", (32, 32), "conv4"),
    Case("vgg11_cifar", (64, 32), "conv5"),
    Case("googlenet_bn", (64, 64), "inception4c"),
    Case("googlenet_bn", (96, 64), "inception4a"),
    Case("resnet20_cifar", (32, 32), "conv4_x"),
    Case("resnet20_cifar", (24, 40), "conv3_x"),
    Case("resnet50", (64, 96), "conv5_x"),
    Case("densenet40_cifar", (32, 48), "norm"),
    Case("mobilenet_v1", (64, 64), "separable13"),
    Case("mobilenet_v2", (64, 96), "conv2"),
    Case("efficientnet_lite0", (64, 96), "stage9"),
)
OVERWRITTEN = (
    Case("vgg11_bn", (32, 64), "conv4.1.bn", overwritten=True),
    Case("googlenet_bn", (64, 64), "inception4c.conv3x3.bn", overwritten=True),
    Case("resnet20_cifar", (32, 32), "conv4_x.0.residual", overwritten=True),
    Case("densenet40_cifar", (32, 48), "norm.0", overwritten=True),
    Case("mobilenet_v1", (64, 64), "separable12.pointwise.bn", overwritten=True),
    Case("mobilenet_v2", (64, 96), "conv2.bn", overwritten=True),
)


class Scaled(nn.Module):
    """A network with each image's logits times a number, so that its map reaches 1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.scale = torch.ones(1, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images) * self.scale.to(images.dtype)


class Fixture:
    """A case at work: the network, its images, and classes with something in their favour."""

    def __init__(self, case: Case, method: str = "grad-cam") -> None:
        torch.manual_seed(3)
        net = create_model(case.name, num_classes=8, **case.options).eval()
        spread(net)
        self.case, self.model, self.stage = case, Scaled(net), f"net.{case.stage}"
        channels = next(p.shape[1] for p in net.parameters() if p.ndim == 4)
        self.images = torch.randn(3, channels, *case.size)
        peaks = torch.stack([self.of(method, k).raw.amax((1, 2)) for k in range(8)], 1)
        # Every image another class: the best that those before it have left.
        self.classes: list[int] = []
        for row in peaks:
            left = [k for k in row.argsort(descending=True).tolist() if k not in self.classes]
            self.classes.append(left[0])
        self.model.scale = 1 / peaks[torch.arange(3), self.classes][:, None]
        assert (self.model.scale > 0).all(), "an image has no class with a map that is not empty"
        assert len(set(self.classes)) == 3

    def of(self, method: str, classes: int | list[int] | None = None) -> Cam:
        chosen = self.classes if classes is None else classes
        chosen = [chosen] * 3 if isinstance(chosen, int) else chosen
        return cams(self.model, self.images, self.stage, chosen, method)[self.stage]

    @property
    def layer(self) -> nn.Module:
        return self.model.get_submodule(self.stage)


def spread(net: nn.Module) -> None:
    """Make normalisation do something, as it does after training."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)


class NotInPlace(TorchFunctionMode):
    """Run a network with none of its operations in place, however they are written."""

    def __init__(self) -> None:
        super().__init__()
        self.replaced = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        kwargs = dict(kwargs or {})
        if kwargs.get("inplace"):
            kwargs["inplace"] = False
            self.replaced += 1
        elif function in (Tensor.relu_, Tensor.add_):
            function = {Tensor.relu_: Tensor.relu, Tensor.add_: Tensor.add}[function]
            self.replaced += 1
        return function(*args, **kwargs)


def watched(model: nn.Module, stage: str, images: Tensor, score: Callable) -> tuple[Tensor, ...]:
    """A and g of a stage, float64, by a plain hook and `backward`, without operations in place."""
    model = copy.deepcopy(model)
    kept: list[Tensor] = []
    model.get_submodule(stage).register_forward_hook(lambda *args: kept.append(args[2]))
    with NotInPlace() as mode:
        logits = model(images)
    kept[0].retain_grad()
    score(logits).sum().backward()
    assert isinstance(kept[0].grad, Tensor)
    return kept[0].detach().double(), kept[0].grad.double(), torch.tensor(mode.replaced)


def of_classes(classes: list[int]) -> Callable[[Tensor], Tensor]:
    return lambda logits: logits.gather(1, torch.tensor(classes)[:, None])


def by_equation(method: str, a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The map of one image, a and g being C h w, position by position as the papers have it."""
    total = np.zeros(a.shape[1:])
    for a_k, g_k in zip(a, g, strict=True):
        if method == "grad-cam":
            total += g_k.mean() * a_k
        elif method == "grad-cam++":
            weight = 0.0
            for value in g_k.flat:
                below = 2 * value**2 + a_k.sum() * value**3
                weight += (value**2 / below if below else 0.0) * max(value, 0.0)
            total += weight * a_k
        elif method == "hires-cam":
            total += g_k * a_k
        elif method == "xgrad-cam":
            total += (g_k * a_k).sum() / a_k.sum() * a_k if a_k.sum() else 0.0
        elif method == "layer-cam":
            total += np.maximum(g_k, 0) * a_k
    if method == "eigen-cam":
        left, sizes, _ = np.linalg.svd(a.reshape(len(a), -1).T, full_matrices=False)
        total = (left[:, 0] * sizes[0]).reshape(a.shape[1:])
        total *= np.sign(total.sum())
    return total


def apart(found: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    """The largest difference between maps, of which every expected one reaches above 0."""
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
    assert found.shape == expected.shape
    assert (expected.flatten(1).amax(1) > 0).all(), "an empty map agrees with anything"
    return (found - expected).abs().max().item()


def captum(fixture: Fixture, method: str = "grad-cam") -> Tensor:
    """The signed map that captum gives."""
    kind = {"grad-cam": LayerGradCam, "hires-cam": LayerGradientXActivation}[method]
    found = kind(fixture.model, fixture.layer).attribute(fixture.images, fixture.classes)
    return found.sum(1).detach()


def torch_cam(fixture: Fixture, method: str = "grad-cam", normalized: bool = True) -> Tensor:
    """The map that torch-cam gives, as large as the stage's."""
    names = {"grad-cam": "GradCAM", "xgrad-cam": "XGradCAM", "layer-cam": "LayerCAM"}
    kind = getattr(torchcam.methods, {**names, "grad-cam++": "GradCAMpp"}[method])
    with kind(fixture.model, fixture.stage) as extractor:
        scores = fixture.model(fixture.images)
        (found,) = extractor(fixture.classes, scores, normalized)
    return found.detach()


def pytorch_cam(fixture: Fixture, method: str = "grad-cam") -> Tensor:
    """The map that pytorch-grad-cam gives, as large as the images."""
    names = {"grad-cam": "GradCAM", "grad-cam++": "GradCAMPlusPlus", "hires-cam": "HiResCAM"}
    names |= {"xgrad-cam": "XGradCAM", "layer-cam": "LayerCAM"}
    targets = [ClassifierOutputTarget(number) for number in fixture.classes]
    with getattr(pytorch_grad_cam, names[method])(fixture.model, [fixture.layer]) as extractor:
        return torch.as_tensor(extractor(fixture.images, targets))


# Where nothing works in place: all agree.


@pytest.fixture(scope="module", params=CLEAN, ids=str)
def clean(request: pytest.FixtureRequest) -> Fixture:
    return Fixture(request.param)


def test_the_raw_map_is_captums(clean):
    assert apart(clean.of("grad-cam").raw, captum(clean)) <= 1e-6


def test_the_raw_map_of_hires_cam_is_captums_gradient_times_maps(clean):
    ours = clean.of("hires-cam").raw
    assert apart(ours, captum(clean, "hires-cam")) <= 1e-6 * ours.abs().max().clamp(min=1)


@pytest.mark.parametrize("method", ["grad-cam", "xgrad-cam", "layer-cam"])
def test_maps_are_torch_cams_before_and_after_its_scaling(clean, method):
    ours = clean.of(method)
    size = ours.raw.abs().max().clamp(min=1)
    assert apart(ours.raw.relu(), torch_cam(clean, method, normalized=False)) <= 1e-6 * size
    assert apart(ours.heat(like="torch-cam"), torch_cam(clean, method)) <= 1e-6


@pytest.mark.parametrize("method", ["grad-cam", "hires-cam", "xgrad-cam", "layer-cam"])
def test_heat_like_pytorch_grad_cam_is_its_heat(clean, method):
    ours, theirs = clean.of(method).heat(like="pytorch-grad-cam"), pytorch_cam(clean, method)
    assert apart(ours, theirs) <= 1e-5


def test_heat_like_pytorch_grad_cam_is_its_heat_in_float64():
    fixture = Fixture(CLEAN[8])
    fixture.model.double()
    fixture.images = fixture.images.double()
    ours = fixture.of("grad-cam")
    assert ours.raw.dtype == torch.float32
    assert apart(ours.heat(like="pytorch-grad-cam"), pytorch_cam(fixture)) <= 1e-6


# Where something works in place: captum agrees, and a network without such operations.


@pytest.mark.parametrize("case", OVERWRITTEN, ids=str)
def test_operations_in_place_after_a_stage_change_nothing(case):
    fixture = Fixture(case)
    score = of_classes(fixture.classes)
    a, g, replaced = watched(fixture.model, fixture.stage, fixture.images, score)
    assert replaced > 0
    for method in EQUATIONS:
        ours = fixture.of(method).raw
        with NotInPlace():
            assert torch.equal(ours, fixture.of(method).raw), method
        # Of maps below 0, too, these two divide by sums that may be next to nothing.
        if method not in ("grad-cam++", "xgrad-cam"):
            expected = np.stack([by_equation(method, *ag) for ag in zip_numpy(a, g)])
            assert apart(ours, expected) <= 3e-5 * max(1.0, np.abs(expected).max()), method
    assert apart(fixture.of("grad-cam").raw, captum(fixture)) <= 1e-6
    # The others explain something else: were this to change, docs/cam.md would be wrong.
    heat = fixture.of("grad-cam").heat()
    assert apart(pytorch_cam(fixture), heat) > 0.05


def zip_numpy(a: Tensor, g: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return zip(a.numpy(), g.numpy(), strict=True)


@pytest.mark.parametrize("method", EQUATIONS)
@pytest.mark.parametrize("case", [CLEAN[1], CLEAN[9], CLEAN[11]], ids=str)
def test_maps_are_those_of_the_papers_equations_in_float64(case, method):
    fixture = Fixture(case)
    score = of_classes(fixture.classes)
    a, g, _ = watched(fixture.model.double(), fixture.stage, fixture.images.double(), score)
    expected = np.stack([by_equation(method, *ag) for ag in zip_numpy(a, g)])
    ours = fixture.model.float() and fixture.of(method).raw
    assert apart(ours, expected) <= 3e-5 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("stage", ["bottom", "up.2", "bottom.conv2", "down.2.conv1"])
def test_maps_of_a_network_that_segments_are_captums(stage):
    torch.manual_seed(1)
    net = create_model("unet_same", num_classes=5, width=4, depth=2).eval()
    images = torch.randn(2, 3, 40, 24)
    region = torch.zeros(2, 40, 24, dtype=torch.bool)
    region[0, 4:30], region[1, :, 8:] = True, True
    every = [seg_grad_cam(net, images, stage, [k, k], region).raw.amax((1, 2)) for k in range(5)]
    peaks, classes = torch.stack(every, 1).max(1)
    scale = 1 / peaks[:, None, None]

    def score(logits: Tensor) -> Tensor:
        return (logits[torch.arange(2), classes] * region).flatten(1).sum(1)

    ours = seg_grad_cam(net, images, stage, classes, region).raw * scale
    theirs = LayerGradCam(lambda x: score(net(x)), net.get_submodule(stage)).attribute(images)
    assert apart(ours, theirs[:, 0].detach() * scale) <= 1e-6
    a, g, _ = watched(net, stage, images, score)
    expected = np.stack([by_equation("grad-cam", *ag) for ag in zip_numpy(a, g)])
    assert apart(ours, expected * scale.double().numpy()) <= 1e-5


# Score-CAM, Ablation-CAM and CAM, image by image and map by map.


def test_cam_is_grad_cam_times_the_positions_and_reads_the_weights():
    fixture = Fixture(CLEAN[8])
    net = fixture.model.net
    maps = {}
    with torch.no_grad():
        handle = net.conv4_x.register_forward_hook(lambda *args: maps.update(a=args[2]))
        net(fixture.images)
        handle.remove()
    cam = cams(net, fixture.images, "conv4_x", fixture.classes, "cam")["conv4_x"]
    expected = torch.einsum("nk,nkhw->nhw", net.fc.weight[fixture.classes].detach(), maps["a"])
    torch.testing.assert_close(cam.raw, expected, atol=1e-5, rtol=1e-5)
    gradient = cams(net, fixture.images, "conv4_x", fixture.classes)["conv4_x"]
    torch.testing.assert_close(cam.raw, gradient.raw * 64, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_score_cam_and_ablation_cam_equal_plain_loops():
    fixture = Fixture(CLEAN[1])
    net, images, classes = fixture.model.net, fixture.images, fixture.classes
    for n, (image, k) in enumerate(zip(images, classes, strict=True)):
        a = net.c3(net.s2(net.c1(image[None]).relu()))

        def logit(a: Tensor, k: int = k) -> Tensor:
            x = net.c5(net.s4(a.relu())).relu().flatten(1)
            return net.output(net.f6(x).relu())[0, k]

        y, ablated, scored = logit(a), [], []
        for c in range(16):
            without = a.clone()
            without[0, c] = 0
            ablated.append((y - logit(without)) / y.abs())
            mask = F.interpolate(a[:, c : c + 1], (32, 32), mode="bilinear")
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            scored.append(net(image[None] * mask)[0, k])
        for method, weights in {
            "ablation-cam": torch.stack(ablated),
            "score-cam": torch.stack(scored).softmax(0),
        }.items():
            for batch in (7, 64):
                found = cams(net, images, "c3", classes, method, batch=batch)["c3"].raw[n]
                expected = (weights[:, None, None] * a[0]).sum(0)
                torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-4)


# The page


def test_what_the_page_says_of_grad_cam_plus_plus_elsewhere():
    """torch-cam's weights are g^2 ReLU(g), pytorch-grad-cam's small number outweighs g^2."""
    fixture = Fixture(CLEAN[1], "grad-cam++")
    score = of_classes(fixture.classes)
    a, g, _ = watched(fixture.model, fixture.stage, fixture.images, score)
    squares = ((g**2 * g.relu()).sum((2, 3), keepdim=True) * a).sum(1).relu()
    assert apart(torch_cam(fixture, "grad-cam++", normalized=False), squares) <= 1e-5
    base, distances = fixture.model.scale, []
    for factor in (30.0, 1e-3):  # gradients that are large and small beside 1e-3
        fixture.model.scale = base * factor
        ours = fixture.of("grad-cam++").heat(like="pytorch-grad-cam")
        distances.append(apart(pytorch_cam(fixture, "grad-cam++"), ours))
    assert distances[0] < 0.01
    assert distances[1] > 0.1


def test_what_the_page_says_of_frozen_weights_and_no_grad_elsewhere():
    fixture = Fixture(CLEAN[1])
    expected = fixture.of("grad-cam").raw
    with torch.no_grad():
        assert torch.equal(fixture.of("grad-cam").raw, expected)
        for other in (torch_cam, pytorch_cam):
            with pytest.raises(RuntimeError):
                other(fixture)
    fixture.model.requires_grad_(False)
    assert torch.equal(fixture.of("grad-cam").raw, expected)
    for other in (torch_cam, pytorch_cam):
        with pytest.raises(RuntimeError):
            other(fixture)


def test_what_the_page_says_of_bfloat16_and_of_what_stays_behind_elsewhere():
    fixture = Fixture(CLEAN[1])
    weights = list(fixture.model.parameters())
    fixture.of("grad-cam")
    assert all(weight.grad is None for weight in weights)
    fixture.model.train()
    pytorch_cam(fixture)
    assert not all(weight.grad is None for weight in weights)
    assert not fixture.model.training
    fixture.model.bfloat16()
    fixture.images = fixture.images.bfloat16()
    assert fixture.of("grad-cam").raw.dtype == torch.float32
    with pytest.raises(TypeError, match="BFloat16"):
        pytorch_cam(fixture)


def test_what_the_page_says_of_a_module_that_runs_twice_elsewhere():
    torch.manual_seed(0)
    relu = nn.ReLU()
    layers = (nn.Conv2d(1, 4, 3), relu, nn.Conv2d(4, 6, 3), relu)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    images = torch.randn(2, 1, 16, 16)
    first, last = (cams(model, images, "1", [3, 3], call=call)["1"] for call in (0, 1))
    theirs = LayerGradCam(model, relu).attribute(images, 3)[:, 0].detach()
    torch.testing.assert_close(theirs, last.raw)
    with torchcam.methods.GradCAM(model, "1") as extractor:
        (found,) = extractor([3, 3], model(images), normalized=False)
    torch.testing.assert_close(found, last.raw.relu())
    with pytorch_grad_cam.GradCAM(model, [relu]) as extractor:
        targets = [ClassifierOutputTarget(3)] * 2
        found = torch.as_tensor(extractor(images, targets))
    expected = first.heat(like="pytorch-grad-cam")
    assert first.raw.max() > 0
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_snippet_with_a_method_of_captum_runs():
    (code,) = re.findall(
        r"```python\n(import torch\nfrom captum.*?)```", PAGE.read_text("utf-8"), re.S
    )
    scope: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(code, scope)
    parts, found = scope["parts"], scope["found"]
    assert found.raw.shape == parts.shape[:1] + parts.shape[2:] == (2, 10, 10)
    assert found.heat(stride=2).amax((1, 2)).tolist() == [1, 1]


@pytest.mark.filterwarnings("ignore:Setting forward|Input Tensor:UserWarning")
@pytest.mark.parametrize(("name", "adds_up"), [("vgg11_cifar", True), ("alexnet_small", False)])
def test_what_the_page_says_of_deep_lift(name, adds_up):
    torch.manual_seed(0)
    model, images = create_model(name).eval(), torch.rand(2, 3, 32, 32)
    _, delta = DeepLift(model).attribute(images, target=[1, 2], return_convergence_delta=True)
    whole = (model(images) - model(0 * images))[[0, 1], [1, 2]].detach()
    assert ((delta / whole).abs() < 1e-4).tolist() == [adds_up] * 2


def coarse(difference: float, bound: str) -> str:
    """A difference as the page has it: the same on every machine."""
    return f"≤ {bound}" if difference <= float(bound) else f"**{difference:.1f}**"


def table() -> str:
    lines = [
        "| network | stage | followed in place by | captum | torch-cam | pytorch-grad-cam |",
        "|---|---|---|--:|--:|--:|",
    ]
    followed = {"residual": "`add_`", "0": "`ReLU(inplace=True)`", "bn": "ReLU"}
    for case in (*CLEAN, *OVERWRITTEN):
        if case in CLEAN and case.size[0] != case.size[1]:
            continue
        fixture = Fixture(case)
        ours = fixture.of("grad-cam")
        differences = (
            apart(ours.raw, captum(fixture)),
            apart(ours.heat(like="torch-cam"), torch_cam(fixture)),
            apart(ours.heat(like="pytorch-grad-cam"), pytorch_cam(fixture)),
        )
        after = followed[case.stage.rpartition(".")[2]] if case.overwritten else "nothing"
        bounds = ("1e-6", "1e-6", "1e-5")
        cells = " | ".join(map(coarse, differences, bounds))
        lines.append(f"| `{case.name}` | `{case.stage}` | {after} | {cells} |")
    return "\n".join([*lines, ""])


def test_the_pages_table_is_what_is_measured():
    """`CNNZOO_WRITE_DOCS=1 pytest tests/viz/test_cam_oracles.py -k pages` writes it anew."""
    page, found = PAGE.read_text("utf-8"), table()
    before, rest = page.split(MARK[0])
    written, after = rest.split(MARK[1])
    if os.environ.get("CNNZOO_WRITE_DOCS") == "1":
        PAGE.write_text(f"{before}{MARK[0]}{found}{MARK[1]}{after}", "utf-8")
        written = found
    assert written == found
