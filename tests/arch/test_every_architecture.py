"""What holds for every network of the packages here, whatever its paper."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models.resnet import Bottleneck

from cnn_core.errors import UsageError
from cnn_core.training import Recipe
from networks import (
    PACKAGES,
    PLUGINS,
    SPECS,
    adopted,
    assert_same,
    build,
    close,
    home_of,
    images,
    key_maps,
    layers,
    lively,
    lively_network,
    on_meta,
    traced,
    with_dropout,
)

# Trainable parameters, multiply-accumulates, entries of the state dict.
# fmt: off
GOLDEN = {
    "alexnet":           ( 60_965_224,     724_406_816,   16),
    "alexnet_owt":       ( 61_100_840,     714_188_480,   16),
    "alexnet_small":     (  9_345_226,     100_962_304,   16),
    "densenet121":       (  7_978_856,   2_834_161_664,  727),
    "densenet169":       ( 14_149_480,   3_359_843_328, 1015),
    "densenet201":       ( 20_013_928,   4_291_365_888, 1207),
    "densenet161":       ( 28_681_000,   7_727_907_072,  967),
    "densenet40_cifar":  (  1_019_722,     264_812_928,  236),
    "densenet100_cifar": (    769_162,     287_929_692,  596),
    "efficientnet_lite0": (  4_652_008,    385_187_552,  296),
    "efficientnet_lite1": (  5_416_680,    600_185_232,  386),
    "efficientnet_lite2": (  6_092_072,    859_736_272,  386),
    "googlenet":         ( 13_378_280,   1_582_671_872,  128),
    "googlenet_bn":      ( 13_004_888,   1_498_376_192,  364),
    "lenet5":            (     60_000,         415_680,   13),
    "lenet5_modern":     (     61_706,         416_520,   10),
    "mobilenet_v1":      (  4_231_976,     568_740_352,  164),
    "mobilenet_v2":      (  3_504_872,     300_774_272,  314),
    "resnet18":          ( 11_689_512,   1_814_073_344,  122),
    "resnet34":          ( 21_797_672,   3_663_761_408,  218),
    "resnet50":          ( 25_557_032,   4_089_184_256,  320),
    "resnet101":         ( 44_549_160,   7_801_405_440,  626),
    "resnet152":         ( 60_192_808,  11_513_626_624,  932),
    "resnet50_v1":       ( 25_557_032,   3_857_973_248,  320),
    "resnet101_v1":      ( 44_549_160,   7_570_194_432,  626),
    "resnet152_v1":      ( 60_192_808,  11_282_415_616,  932),
    "resnet20_cifar":    (    269_722,      40_551_040,  116),
    "resnet32_cifar":    (    464_154,      68_862_592,  188),
    "resnet44_cifar":    (    658_586,      97_174_144,  260),
    "resnet56_cifar":    (    853_018,     125_485_696,  332),
    "resnet110_cifar":   (  1_727_962,     252_887_680,  656),
    "resnet20_cifar_b":  (    272_474,      40_813_184,  128),
    "resnet32_cifar_b":  (    466_906,      69_124_736,  200),
    "resnet44_cifar_b":  (    661_338,      97_436_288,  272),
    "resnet56_cifar_b":  (    855_770,     125_747_840,  344),
    "resnet110_cifar_b": (  1_730_714,     253_149_824,  668),
    "resnet18_cifar":    ( 11_173_962,     555_422_720,  122),
    "resnet50_cifar":    ( 23_520_842,   1_297_829_888,  320),
    "unet":              ( 31_030_658, 150_428_424_448,   46),
    "unet_same":         ( 31_031_810,  48_171_581_440,   46),
    "vgg11":             (132_863_336,   7_609_090_048,   22),
    "vgg11_bn":          (132_868_840,   7_609_090_048,   62),
    "vgg13":             (133_047_848,  11_308_466_176,   26),
    "vgg13_bn":          (133_053_736,  11_308_466_176,   76),
    "vgg16":             (138_357_544,  15_470_264_320,   32),
    "vgg16_bn":          (138_365_992,  15_470_264_320,   97),
    "vgg19":             (143_667_240,  19_632_062_464,   38),
    "vgg19_bn":          (143_678_248,  19_632_062_464,  118),
    "vgg11_cifar":       (  9_231_114,     152_769_536,   58),
    "vgg16_cifar":       ( 14_728_266,     313_201_664,   93),
}
# fmt: on
LENETS = ["lenet5", "lenet5_modern"]  # images of 32 x 32 only
CLASSIFIERS = [name for name, spec in SPECS.items() if spec.task == "classification"]
RESIZABLE = [name for name in CLASSIFIERS if name not in LENETS]
# Deeper rows of a table whose other rows are tested here. That they are built as the table says is
# tested by their golden numbers and by torchvision's state dicts.
DEEP = re.compile(
    r"densenet(161|169|201)|resnet(34|101|152)(_v1)?|resnet(32|44|56|110)_cifar(_b)?"
    r"|vgg(11|13|13_bn|16_bn|19|19_bn)|efficientnet_lite[12]"
)


def slow_if_deep(name: str, *values: Any) -> Any:
    marks = [pytest.mark.slow] if DEEP.fullmatch(name) else []
    return pytest.param(name, *values, marks=marks)


def empty(*size: int, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.empty(batch, channels, *size, device="meta")


# What the specs claim


def test_every_network_has_golden_numbers():
    assert set(GOLDEN) == set(SPECS)


@pytest.mark.parametrize("name", GOLDEN)
def test_parameters_macs_and_state_are_the_golden_ones_and_the_specs(name):
    params, macs, entries = GOLDEN[name]
    found, spec = traced(name), SPECS[name]
    assert (found.params, found.macs) == (spec.params, spec.macs) == (params, macs)
    assert tuple(stage.name for stage in found.stages) == spec.stages
    assert len(on_meta(name).state_dict()) == entries
    if spec.family != "googlenet":  # its auxiliary classifiers are no stages
        assert sum(stage.params for stage in found.stages) == params


@pytest.mark.parametrize("name", [slow_if_deep(name) for name in SPECS])
def test_classes_and_channels_are_honoured(name):
    spec = SPECS[name]
    height, width = (spec.min_size,) * 2 if spec.min_size > 1 else (40, 40)
    out = {"unet": (4, 4), "unet_same": (40, 40)}.get(name, ())
    for classes, channels in ((1, 1), (37, 4)):
        model = on_meta(name, num_classes=classes, in_channels=channels).eval()
        x = empty(height, width, channels=channels)
        assert model(x).shape == (2, classes, *out)
        if name in CLASSIFIERS:
            model.reset_classifier(7)
            assert model(x).shape == (2, 7)


# The sizes of images


@pytest.mark.parametrize("name", [slow_if_deep(name) for name in RESIZABLE])
def test_every_size_from_the_smallest_up_works_and_a_smaller_one_names_it(name, monkeypatch):
    model, smallest = on_meta(name).eval(), SPECS[name].min_size
    for size in ((smallest, smallest), (smallest + 1, smallest + 31), (251, smallest)):
        assert model(empty(*size)).shape == (2, SPECS[name].num_classes)
    # These leave images without pixels to torch.
    if SPECS[name].family in ("mobilenet", "efficientnet"):
        return
    for height, width in ((smallest - 1, 300), (300, smallest - 1)):
        message = rf"{height} x {width}, .* at least {smallest} x {smallest}"
        with pytest.raises(UsageError, match=message):
            model(empty(height, width))
    if smallest > 1:  # without the check, a layer finds too few pixels
        monkeypatch.setattr(f"{home_of(name)}.require_size", lambda *_: None)
        with pytest.raises(RuntimeError):
            model(empty(smallest - 1, smallest - 1))


# Other libraries

FOREIGN = [name for name, spec in SPECS.items() if spec.key_maps]


@pytest.mark.parametrize("name", FOREIGN)
def test_every_naming_maps_every_key_there_and_back(name):
    keys = list(on_meta(name).state_dict())
    assert key_maps(name)
    for naming, names in key_maps(name).items():
        theirs = [names.theirs(key) for key in keys]
        assert len({*theirs}) == len(keys), naming
        assert [names.ours(key) for key in theirs] == keys, naming


def test_only_these_networks_have_no_foreign_names():
    native = {"alexnet", "alexnet_small", "densenet40_cifar", "googlenet"}
    assert set(SPECS) - set(FOREIGN) == {*native, *LENETS, "unet", "unet_same"}
    for name in native:
        weights = import_module(f"{home_of(name).partition('.')[0]}.weights")
        assert weights.key_maps(name) == {}


def torchvisions(name: str, **options: Any) -> Any:
    """Build torchvision's network of ours; for a _v1, its strides go to the first 1x1 layers."""
    if name == "googlenet_bn":
        options |= {"aux_logits": options.pop("aux", True), "init_weights": False}
    if "width" in options:
        options["width_mult"] = options.pop("width")
    theirs = {"googlenet_bn": "googlenet"}.get(name, name.removesuffix("_owt").removesuffix("_v1"))
    model = getattr(torchvision.models, theirs)(**options)
    for block in layers(model, Bottleneck) if name.endswith("_v1") else ():
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return model


@pytest.mark.parametrize("name", [n for n in FOREIGN if "torchvision" in key_maps(n)])
def test_state_dicts_fit_torchvisions_strictly_both_ways(name):
    names, ours = key_maps(name)["torchvision"], on_meta(name)
    with torch.device("meta"):
        theirs = torchvisions(name)
    theirs.load_state_dict(names.to_theirs(ours.state_dict()), strict=True, assign=True)
    ours.load_state_dict(names.to_ours(theirs.state_dict()), strict=True, assign=True)
    assert names.to_ours(theirs.state_dict()).keys() == ours.state_dict().keys()
    shapes = {key: value.shape for key, value in names.to_theirs(ours.state_dict()).items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}


TWINS = [
    ("alexnet_owt", {}, (63, 100, 224)),
    *((name, {}, (64, (75, 33))) for name in ("vgg11", "vgg11_bn", "vgg16")),
    *((f"resnet{depth}", {}, (40,)) for depth in (18, 34, 50, 101, 152)),
    *((f"resnet{depth}_v1", {}, (40,)) for depth in (50, 101)),
    *((f"densenet{depth}", {}, (64,)) for depth in (121, 161, 169, 201)),
    *(("googlenet_bn", {"aux": aux}, (64, 75, 224)) for aux in (True, False)),
    *(("mobilenet_v2", {"width": width}, (64,)) for width in (1.0, 0.35, 1.4)),
]


@pytest.mark.parametrize(("name", "options", "sizes"), [slow_if_deep(*twin) for twin in TWINS])
def test_outputs_and_gradients_are_torchvisions_to_the_bit(name, options, sizes):
    names = key_maps(name)["torchvision"]
    ours = lively_network(name, num_classes=10, **options)
    state = names.to_theirs(ours.state_dict())
    theirs = adopted(lambda: torchvisions(name, num_classes=10, **options), state)
    for training in (False, True):
        for size in sizes:
            x = images(*size) if isinstance(size, tuple) else images(size)
            assert_same(ours.train(training), theirs.train(training), x)
    # and training has left the same statistics
    after = names.to_theirs(ours.state_dict())
    assert all(torch.equal(after[key], value) for key, value in theirs.state_dict().items())


# What networks compute: one of every kind of block, options that keep it small, sizes of images

KINDS = {
    "alexnet": ({}, (72, 72)),
    "alexnet_owt": ({}, (68, 68)),
    "alexnet_small": ({}, (13, 13)),
    "densenet121": ({}, (64, 64)),
    "densenet40_cifar": ({}, (16, 16)),
    "densenet100_cifar": ({}, (16, 16)),
    "googlenet": ({}, (223, 223)),  # its auxiliary classifiers take no smaller ones
    "googlenet_bn": ({}, (64, 64)),
    "mobilenet_v1": ({"width": 0.35}, (64, 64)),
    "mobilenet_v2": ({"width": 0.35}, (64, 64)),
    **dict.fromkeys(("resnet18", "resnet50", "resnet50_v1"), ({}, (40, 40))),
    **dict.fromkeys(("resnet20_cifar", "resnet20_cifar_b"), ({}, (16, 16))),
    **dict.fromkeys(("resnet18_cifar", "resnet50_cifar"), ({}, (16, 16))),
    **dict.fromkeys(("vgg11", "vgg11_cifar", "vgg16_cifar"), ({}, (40, 40))),
    **dict.fromkeys(LENETS, ({}, (32, 32))),
    "unet": ({"width": 4}, (188, 188)),
    "unet_same": ({"width": 4}, (41, 30)),
}
SMALL = [name for name in KINDS if name not in ("alexnet", "alexnet_owt", "vgg11")]
EXPORTED = ["alexnet_small", "googlenet", "googlenet_bn", *LENETS, "mobilenet_v1", "mobilenet_v2"]
EXPORTED += ["resnet18", "resnet20_cifar", "unet", "unet_same", "vgg11_cifar"]


def images_for(name: str, batch: int = 3) -> Tensor:
    return images(*KINDS[name][1], batch=batch, channels=SPECS[name].input[0])


@pytest.fixture(scope="module")
def shared(request):
    options, _ = KINDS[request.param]
    model = lively(build(request.param, num_classes=10, **options))
    return request.param, with_dropout(model, 0.0)


@pytest.fixture
def network(shared):
    """A name and the network, in eval mode; tests share it and leave its weights as they are."""
    name, model = shared
    yield name, model.eval()
    model.zero_grad()


def over(*left_out: str) -> Any:
    """Run a test on every kind but those at the end: the same order, so each is built once."""
    names = [name for name in KINDS if name not in left_out]
    return pytest.mark.parametrize("shared", names, indirect=True)


@over()
def test_gradient_reaches_every_parameter(network):
    name, model = network
    outputs = model.train()(images_for(name))
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    torch.manual_seed(0)  # every logit counts differently: alike, their gradients nearly cancel
    sum((torch.randn_like(o) * o).sum() for o in outputs).backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.abs().sum() > 0, parameter


@over()
@torch.no_grad()
def test_neither_a_batch_nor_its_format_nor_precision_changes_the_output(network):
    name, model = network
    exact, x = copy.deepcopy(model).double(), images_for(name).double()
    together = exact(x)
    assert together.std(0).min() > 0
    assert close(torch.cat([exact(image[None]) for image in x]), together, 1e-9)
    assert close(exact(x.to(memory_format=torch.channels_last)), together, 1e-9)
    assert close(model(x.float()).double(), together, 1e-4)


@over("unet", "unet_same")
@torch.no_grad()
def test_features_and_head_make_the_network_and_the_last_layer_can_be_replaced(network):
    name, model = network
    x = images_for(name)
    maps = model.forward_features(x)
    assert torch.equal(model.forward_head(maps), model(x))
    old = model.get_submodule(model.classifier)
    model.reset_classifier(7)
    assert torch.equal(model.forward_features(x), maps)
    assert model(x).shape == (3, 7)
    model.set_submodule(model.classifier, old)


@over(*LENETS, "unet", "unet_same")
@torch.no_grad()
def test_small_and_odd_images_have_finite_logits(network):
    name, model = network
    for more in ((0, 0), (1, 2), (32, 46), (96, 30)):
        logits = model(images(*(SPECS[name].min_size + n for n in more)))
        assert logits.shape == (2, 10)
        assert logits.isfinite().all()
        assert logits.std() > 0


@pytest.mark.parametrize("name", EXPORTED)
@torch.no_grad()
def test_an_exported_network_computes_the_same(name):
    model, x = build(name, num_classes=10, **KINDS[name][0]).eval(), images_for(name, batch=2)
    exported = torch.export.export(model, (x,)).module()
    assert close(exported(x), model(x))


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_copies_formats_and_low_precision(name):
    model, x = build(name, num_classes=10, **KINDS[name][0]).eval(), images_for(name, batch=2)
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(x)
    assert low.dtype == (torch.float32 if name == "lenet5" else torch.bfloat16)  # distances
    assert close(low, expected, 0.05)
    last = model.to(memory_format=torch.channels_last)
    assert close(last(x.to(memory_format=torch.channels_last)), expected, 1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_the_same_seed_gives_the_same_weights(name):
    options, _ = KINDS[name]
    one, same, other = (build(name, seed, **options).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, same[key]) for key, tensor in one.items())
    assert not all(torch.equal(tensor, other[key]) for key, tensor in one.items())


# The packages


@pytest.mark.parametrize("package", PACKAGES)
def test_a_plugin_and_its_key_maps_need_no_torch(package):
    code = (
        f"import sys; from {package} import plugin; plugin.cnnzoo_recipes()\n"
        "from importlib import import_module\n"
        "for spec in plugin.cnnzoo_models():\n"
        "    module, _, function = spec.key_maps.partition(':')\n"
        "    if module: getattr(import_module(module), function)(spec.name)\n"
        "print(sorted({'torch', 'numpy', 'torchvision'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_sorted_and_exist(package):
    home = import_module(package)
    names = [f"{package}.{module.name}" for module in iter_modules(home.__path__)]
    for module in (home, *map(import_module, names)):
        public = getattr(module, "__all__", [])
        assert public == sorted(public), module.__name__
        assert all(hasattr(module, name) for name in public), module.__name__
    assert home.__all__
    assert {getattr(home, name).__name__ for name in home.__all__} == set(home.__all__)
    for spec in PLUGINS[package].cnnzoo_models():
        module, _, function = spec.target.partition(":")
        assert function in import_module(module).__all__


RECIPES = [recipe for plugin in PLUGINS.values() for recipe in plugin.cnnzoo_recipes()]


@pytest.mark.parametrize("spec", RECIPES, ids=lambda spec: spec.name)
def test_a_recipe_builds_its_network_for_images_of_its_size(spec):
    recipe = Recipe.from_settings(spec.settings)
    assert recipe.model == spec.model
    size = recipe.image_size or SPECS[recipe.model].input[1]
    model = on_meta(recipe.model, num_classes=10, in_channels=1, **recipe.options).eval()
    assert size >= SPECS[recipe.model].min_size
    assert model(empty(size, size, channels=1)).shape[:2] == (2, 10)


def test_these_recipes_are_there():
    assert {recipe.name for recipe in RECIPES} >= {
        "alexnet-imagenet-paper",
        "alexnet_small-digits",
        "densenet40_cifar-cifar10-paper",
        "densenet40_cifar-digits",
        "googlenet-imagenet-paper",
        "googlenet_bn-digits",
        "mobilenet_v1-digits",
        "mobilenet_v1-imagenet-paper",
        "vgg11_cifar-digits",
        "vgg16-imagenet-paper",
    }
