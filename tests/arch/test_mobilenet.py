"""MobileNet v1 and v2 against their papers, torchvision, timm, and Table 1 in functions."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from cnn_arch_mobilenet import mobilenet_v1 as v1
from cnn_arch_mobilenet import mobilenet_v2 as v2
from cnn_arch_mobilenet import plugin
from cnn_core import create_model, train
from cnn_core.create import build as rebuild
from cnn_core.errors import UsageError
from cnn_core.layers import features, trace
from cnn_core.training.sources import open_source
from networks import (
    SPECS,
    adopted,
    assert_same,
    build,
    count,
    images,
    key_maps,
    layers,
    lively,
    lively_network,
    names_of,
    on_meta,
    with_dropout,
)

NAMES = names_of("mobilenet")

# width: parameters, multiply-accumulates at 224
V1_WIDTHS = {
    1.0: (4_231_976, 568_740_352),
    0.75: (2_585_560, 325_400_448),
    0.5: (1_331_592, 149_497_088),
    0.25: (470_072, 41_030_272),
}
V1_SIZES = {192: 418_121_728, 160: 290_675_200, 128: 186_400_768}
V2_WIDTHS = {
    1.4: (6_108_776, 582_195_824),
    1.0: (3_504_872, 300_774_272),
    0.75: (2_636_424, 209_069_792),
    0.5: (1_968_680, 97_131_840),
    0.35: (1_677_128, 59_285_808),
}


def counted(name: str, size: int = 224, **options):
    return trace(lambda: build(name, **options), SPECS[name].stages, (3, size, size))


@pytest.mark.parametrize(("width", "golden"), V1_WIDTHS.items())
def test_v1_has_the_papers_parameters_and_multiply_adds_at_each_width(width, golden):
    found = counted("mobilenet_v1", width=width)
    assert (found.params, found.macs) == golden
    assert len(on_meta("mobilenet_v1", width=width).state_dict()) == 164


@pytest.mark.parametrize(("size", "macs"), V1_SIZES.items())
def test_v1_has_the_papers_multiply_adds_at_each_resolution(size, macs):
    assert counted("mobilenet_v1", size).macs == macs


@pytest.mark.parametrize(("width", "golden"), V2_WIDTHS.items())
def test_v2_has_the_known_parameters_and_multiply_adds_at_each_width(width, golden):
    found = counted("mobilenet_v2", width=width)
    assert (found.params, found.macs) == golden
    assert len(on_meta("mobilenet_v2", width=width).state_dict()) == 314


def test_v1_stages_have_the_sizes_of_table_1():
    shapes = [stage.output for stage in counted("mobilenet_v1").stages]
    assert shapes == [
        (32, 112, 112),
        (64, 112, 112),
        *[(128, 56, 56)] * 2,
        *[(256, 28, 28)] * 2,
        *[(512, 14, 14)] * 6,
        *[(1024, 7, 7)] * 2,
        (1000,),
    ]


def test_v2_stages_have_the_sizes_of_table_2():
    shapes = [stage.output for stage in counted("mobilenet_v2").stages]
    assert shapes == [
        (32, 112, 112),
        (16, 112, 112),
        (24, 56, 56),
        (32, 28, 28),
        (64, 14, 14),
        (96, 14, 14),
        (160, 7, 7),
        (320, 7, 7),
        (1280, 7, 7),
        (1000,),
    ]


def test_the_last_depthwise_layer_of_v1_keeps_the_size():
    strides = [layer.stride[0] for layer in layers(on_meta("mobilenet_v1"), nn.Conv2d)]
    # conv1, then depthwise and pointwise by turns: Table 1, but for the last s2
    assert strides[0] == 2
    assert strides[1::2] == [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    assert strides[2::2] == [1] * 13


def test_every_convolution_of_v1_is_followed_by_bn_and_relu():
    kinds = [type(m) for m in on_meta("mobilenet_v1").modules() if not [*m.children()]]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 27 + [nn.Linear]


def test_widths_thin_as_the_papers_do():
    assert v1.scale_channels(0.25, 32, 64, 1024) == [8, 16, 256]
    assert v1.scale_channels(0.1, 32) == [8]
    # 24 x 0.35 = 8.4 -> 8, within a tenth; 32 x 0.35 = 11.2 -> 8 is too few -> 16
    assert v2.scale_channels(0.35, 24, 32, 16, 96) == [8, 16, 8, 32]
    assert v2.scale_channels(1.4, 32, 1280) == [48, 1792]


@pytest.mark.parametrize(("width", "last"), [(0.35, 1280), (1.0, 1280), (1.4, 1792)])
def test_the_last_layer_of_v2_grows_with_width_but_does_not_shrink(width, last):
    assert on_meta("mobilenet_v2", width=width).fc.in_features == last


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [0, -1.0, float("nan")])
def test_a_width_that_is_not_positive_is_refused(name, width):
    with pytest.raises(UsageError, match=f"width = {width}: expected a positive number"):
        build(name, width=width)


def test_v2_adds_its_input_where_the_shape_allows_it():
    blocks = on_meta("mobilenet_v2").children()
    rows = [row for row in blocks if isinstance(row, nn.Sequential)][1:8]
    assert [[layer.residual for layer in row] for row in rows] == [
        [False],
        [False, True],
        [False, True, True],
        [False, True, True, True],
        [False, True, True],
        [False, True, True],
        [False],
    ]
    layer = v2.Bottleneck(8, 8, stride=1, t=6).eval()
    nn.init.zeros_(layer.project.bn.weight)
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(layer(x), x)
    layer = v2.Bottleneck(8, 8, stride=2, t=6).eval()
    assert layer(x).shape == (2, 8, 3, 3)


def test_bottlenecks_are_linear_and_the_layers_inside_are_relu6():
    model = v2.mobilenet_v2(width=0.35).eval()
    x = 20 * torch.randn(2, 3, 64, 64)
    seen = features(model, x, ("conv1", "bottleneck1", "bottleneck7", "conv2"))
    assert seen["bottleneck1"].min() < 0
    assert seen["bottleneck7"].min() < 0
    assert (seen["conv1"].min(), seen["conv1"].max()) == (0, 6)
    assert seen["conv2"].min() == 0
    kinds = [type(module) for module in model.bottleneck3[0].modules()]
    assert kinds.count(nn.ReLU6) == 2
    assert isinstance(model.bottleneck1[0].expand, nn.Identity)


# Table 1 of the first paper: output channels and stride of each depthwise separable layer.
TABLE_1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5)
TABLE_1 = (*TABLE_1, (1024, 2), (1024, 1))


def literal_mobilenet_v1(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The first paper's network in functions, with running statistics."""

    def layer(x, name, stride, padding, groups=1):
        w = state[f"{name}.conv.weight"]
        x = F.conv2d(x, w, stride=stride, padding=padding, groups=groups)
        mean, var = (state[f"{name}.bn.running_{s}"][:, None, None] for s in ("mean", "var"))
        gamma, beta = (state[f"{name}.bn.{s}"][:, None, None] for s in ("weight", "bias"))
        return ((x - mean) / (var + 1e-5).sqrt() * gamma + beta).clamp(min=0)

    x = layer(x, "conv1", 2, 1)
    for number, (channels, stride) in enumerate(TABLE_1, start=1):
        x = layer(x, f"separable{number}.depthwise", stride, 1, groups=x.shape[1])
        x = layer(x, f"separable{number}.pointwise", 1, 0)
        assert x.shape[1] == channels
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def test_v1_is_table_1_written_out():
    model = lively_network("mobilenet_v1", num_classes=10).double().eval()
    weights = model.state_dict()
    assert_same(model, lambda x: literal_mobilenet_v1(weights, x), images(96).double(), 1e-9)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NAMES)
def test_both_are_timms(name, train):
    timm = pytest.importorskip("timm")
    names = key_maps(name)["timm"]
    ours = lively_network(name, num_classes=7, **names.options)

    def make():
        return timm.create_model(f"{name.replace('_', '')}_100", num_classes=7)

    theirs = with_dropout(adopted(make, names.to_theirs(ours.state_dict())), 0.0)
    # Three times as large as normalised images: ReLU6 must have something to clip.
    x = 3 * images(64, batch=4)
    assert_same(with_dropout(ours, 0.0).train(train), theirs.train(train), x)
    after = names.to_ours(theirs.state_dict())
    assert all(torch.equal(after[key], value) for key, value in ours.state_dict().items())


def test_v1_with_relu_is_timms_with_relu():
    timm = pytest.importorskip("timm")
    names, ours = key_maps("mobilenet_v1")["timm"], lively_network("mobilenet_v1", num_classes=7)

    def make():
        return timm.create_model("mobilenetv1_100", num_classes=7, act_layer="relu")

    theirs = with_dropout(adopted(make, names.to_theirs(ours.state_dict())), 0.0)
    assert_same(with_dropout(ours, 0.0).eval(), theirs.eval(), 3 * images(64))


def test_timms_v1_is_loaded_as_the_function_it_is(tmp_path, caplog):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = lively(timm.create_model("mobilenetv1_100", num_classes=7)).eval()
    path, x = tmp_path / "w.pth", 3 * torch.randn(2, 3, 65, 97)
    torch.save(theirs.state_dict(), path)
    with torch.no_grad():
        expected = theirs(x)
        ours = create_model("mobilenet_v1", num_classes=7, weights=path).eval()
        assert torch.equal(ours(x), expected)
        relu = create_model("mobilenet_v1", num_classes=7, weights=path, activation="relu").eval()
        assert (relu(x) - expected).abs().max() > 0.1
        opened = open_source(path, model="mobilenet_v1")
        assert torch.equal(opened.model(x), expected)
        # The option is recorded, so the network is rebuilt with it, and fine-tuned with it.
        assert opened.weights.options == {"activation": "relu6"}
        assert torch.equal(rebuild(opened.weights)(x), expected)
        tuned = create_model("mobilenet_v1", num_classes=7, weights=opened.weights).eval()
        assert torch.equal(tuned(x), expected)
    (record,) = caplog.records
    assert "activation = 'relu', but the weights are for activation = 'relu6'" in record.message


def test_a_run_that_starts_from_timms_v1_records_its_activation(tmp_path):
    torch.manual_seed(0)
    path, x = tmp_path / "w.pth", 3 * torch.randn(2, 1, 64, 64)
    theirs = key_maps("mobilenet_v1")["timm"].to_theirs(v1.mobilenet_v1(width=0.25).state_dict())
    torch.save(theirs, path)
    run = train(
        "mobilenet_v1",
        "digits",
        weights=str(path),
        epochs=1,
        batch_size=512,
        image_size=8,
        freeze=["conv1"],
        out=tmp_path / "run",
        progress=False,
    )
    assert run.recipe.options == {"activation": "relu6", "width": 0.25}  # the recipe's width
    model = create_model("mobilenet_v1", weights=run.path)
    assert isinstance(model.conv1.relu, nn.ReLU6)
    again = create_model("mobilenet_v1", weights=run.path, **run.recipe.options).eval()
    with torch.no_grad():
        assert torch.equal(again(x), model.eval()(x))


@pytest.mark.parametrize("name", NAMES)
def test_timms_files_are_preprocessed_as_timm_does(tmp_path, name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = lively(timm.create_model(f"{name.replace('_', '')}_100")).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    opened = open_source(tmp_path / "w.pth", model=name)
    # timm's own configuration; its bicubic filter is Pillow's, as here
    config = timm.data.resolve_data_config(theirs.pretrained_cfg)
    transform = timm.data.create_transform(**config)
    pixels = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8)
    pixels = (
        F.interpolate(pixels[None].float(), (300, 400), mode="bicubic").clamp(0, 255).byte()[0]
    )
    expected = transform(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    found = opened.weights.preprocessing(pixels[None])[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert "preprocessing as in its library, mean (0." in opened.notes[-1]


def test_an_unknown_activation_is_refused():
    with pytest.raises(UsageError, match="activation = 'swish'") as caught:
        build("mobilenet_v1", activation="swish")
    assert caught.value.hint == "one of relu, relu6"


@pytest.mark.parametrize("name", NAMES)
def test_initialisation_is_he_normal_by_fan_out(name):
    model = build(name)
    depthwise = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            if module.groups > 1:
                depthwise.append(module.weight.detach().flatten())
            elif module.weight.numel() > 5000:
                fan_out = module.out_channels * module.kernel_size[0] ** 2
                assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    assert torch.cat(depthwise).std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.02)
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert (model.fc.bias == 0).all()


def test_the_network_for_digits_is_small():
    (recipe,) = [recipe for recipe in plugin.cnnzoo_recipes() if recipe.dataset == "digits"]
    options = recipe.settings["options"]
    assert count(on_meta(recipe.model, num_classes=10, in_channels=1, **options)) < 250_000
