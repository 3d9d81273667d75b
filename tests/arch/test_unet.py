"""U-Net against the paper: counts, sizes, crops, and Fig. 1 written out in functions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cnn_arch_unet.unet import centre_crop, unet
from cnn_arch_unet.unet_same import unet_same
from cnn_core.errors import UsageError
from cnn_core.layers import features, trace
from networks import SPECS, assert_same, build, images, layers, names_of, on_meta, with_dropout

NAMES = names_of("unet")
STAGES = [f"down.{i}" for i in (1, 2, 3, 4)] + ["bottom"] + [f"up.{i}" for i in (4, 3, 2, 1)]


def traced(name: str, channels: int, size: int, **options):
    return trace(lambda: build(name, **options), SPECS[name].stages, (channels, size, size))


# Counts and sizes


def test_the_2015_network_has_23_convolutions():
    # "In total the network has 23 convolutional layers."
    assert len(layers(on_meta("unet"), nn.Conv2d | nn.ConvTranspose2d)) == 23


def test_the_padded_network_for_one_class_has_the_known_counts():
    found = traced("unet_same", 3, 256, num_classes=1)
    assert (found.params, found.macs) == (31_031_745, 48_167_387_136)
    assert len(on_meta("unet_same", num_classes=1).state_dict()) == 46


@pytest.mark.parametrize("name", NAMES)
def test_they_are_for_segmentation_into_two_classes(name):
    spec = SPECS[name]
    assert (spec.task, spec.num_classes, spec.cam_stage) == ("segmentation", 2, "bottom")


MAPS = (64, 128, 256, 512, 1024, 512, 256, 128, 64, 2)


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        (572, (568, 280, 136, 64, 28, 52, 100, 196, 388, 388)),  # Fig. 1
        (204, (200, 96, 44, 18, 5, 6, 8, 12, 20, 20)),
        (188, (184, 88, 40, 16, 4, 4, 4, 4, 4, 4)),
    ],
)
def test_stages_have_the_sizes_of_figure_1(size, sides):
    stages = traced("unet", 1, size).stages
    assert [s.name for s in stages] == [*STAGES, "output"]
    assert [s.output for s in stages] == [(m, s, s) for m, s in zip(MAPS, sides, strict=True)]


def test_padded_stages_halve_and_double():
    sides = (256, 128, 64, 32, 16, 32, 64, 128, 256, 256)
    found = [stage.output for stage in traced("unet_same", 3, 256).stages]
    assert found == [(m, s, s) for m, s in zip(MAPS, sides, strict=True)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("depth", "width"), [(1, 8), (2, 16), (3, 32), (5, 4)])
def test_depth_and_width_are_the_poolings_and_the_maps_at_the_top(name, depth, width):
    model = on_meta(name, depth=depth, width=width)
    assert [*model.down] == [str(i + 1) for i in range(depth)]
    assert [*model.up] == [*model.down][::-1]
    assert [level.conv2.out_channels for level in model.down.values()] == [
        width * 2**i for i in range(depth)
    ]
    assert model.bottom.conv2.out_channels == width * 2**depth
    size = 12 * 2**depth - 4
    out = {"unet": 4, "unet_same": size}[name]
    x = torch.empty(1, SPECS[name].input[0], size, size, device="meta")
    assert model(x).shape == (1, 2, out, out)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("option", ["depth", "width"])
@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_a_bad_depth_or_width_is_refused(name, option, value):
    with pytest.raises(UsageError, match=f"{option} = {value}: expected a positive integer"):
        build(name, **{option: value})


# Which images it takes


def test_the_2015_network_takes_16_k_plus_60_pixels_from_188_and_names_the_nearest():
    model = on_meta("unet", width=1)
    valid = [16 * k + 60 for k in range(8, 34)]
    for size in range(1, 589):
        image = torch.empty(1, 1, size, 188, device="meta")
        if size in valid:
            assert model(image).shape == (1, 2, size - 184, 4)
            continue
        with pytest.raises(UsageError) as caught:
            model(image)
        nearest = [v for v in valid if abs(v - size) < 16] if size > 188 else [188, 204]
        assert f"nearest to {size} are {nearest[0]} and {nearest[1]}" in str(caught.value)
        assert f"{size} x 188: the sides of U-Net's images must be 188 + 16 k pixels" in str(
            caught.value
        )
    with pytest.raises(UsageError, match="nearest to 573 are 572 and 588"):
        model(torch.empty(1, 1, 572, 573, device="meta"))


def test_the_spec_says_the_smallest_size():
    model = unet(width=1)
    assert SPECS["unet"].min_size == 188
    with pytest.raises(UsageError, match="188"):
        model(torch.zeros(1, 1, 187, 187))
    assert model(torch.zeros(1, 1, 188, 188)).shape == (1, 2, 4, 4)


def test_other_depths_have_other_sizes():
    model = unet(depth=2, width=2)
    assert model(torch.zeros(1, 1, 44, 48)).shape == (1, 2, 4, 8)
    with pytest.raises(UsageError, match=r"44 \+ 4 k pixels; nearest to 47 are 44 and 48"):
        model(torch.zeros(1, 1, 44, 47))


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 31), (48, 33), (5, 64)])
def test_the_padded_network_gives_back_the_size_it_gets(size):
    torch.manual_seed(0)
    model = unet_same(width=4).eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        found = model(x)
        rows = torch.arange(-(-size[0] // 16) * 16).clamp(max=size[0] - 1)
        columns = torch.arange(-(-size[1] // 16) * 16).clamp(max=size[1] - 1)
        expected = model(x[:, :, rows][..., columns])[..., : size[0], : size[1]]
    assert found.shape == (2, 2, *size)
    assert found.std() > 0
    torch.testing.assert_close(found, expected)


# What it computes


@pytest.mark.parametrize(("inside", "outside"), [(56, 64), (104, 136), (200, 280), (392, 568)])
def test_crops_are_centred(inside, outside):
    rows, columns = torch.meshgrid(torch.arange(outside), torch.arange(outside), indexing="ij")
    cropped = centre_crop(torch.stack([rows, columns])[None], (inside, inside))
    margin = (outside - inside) // 2
    assert cropped.shape == (1, 2, inside, inside)
    assert cropped[0, :, 0, 0].tolist() == [margin, margin]
    assert cropped[0, :, -1, -1].tolist() == [outside - 1 - margin] * 2


CROPS = {4: slice(4, 60), 3: slice(16, 120), 2: slice(40, 240), 1: slice(88, 480)}


def literal_unet(w: dict[str, torch.Tensor], x: torch.Tensor, padding: int) -> torch.Tensor:
    """Fig. 1 in functions; without padding for 572 pixels only: the crops are its numbers."""

    def two_convolutions(x, stage):
        x = F.conv2d(x, w[f"{stage}.conv1.weight"], w[f"{stage}.conv1.bias"], padding=padding)
        x = F.relu(x)
        x = F.conv2d(x, w[f"{stage}.conv2.weight"], w[f"{stage}.conv2.bias"], padding=padding)
        return F.relu(x)

    def up(x, copied, level):
        if not padding:
            copied = copied[:, :, CROPS[level], CROPS[level]]
        name = f"up.{level}.upconv"
        x = F.conv_transpose2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=2)
        assert x.shape == copied.shape
        return two_convolutions(torch.cat([copied, x], 1), f"up.{level}.convs")

    level1 = two_convolutions(x, "down.1")
    level2 = two_convolutions(F.max_pool2d(level1, 2, 2), "down.2")
    level3 = two_convolutions(F.max_pool2d(level2, 2, 2), "down.3")
    level4 = two_convolutions(F.max_pool2d(level3, 2, 2), "down.4")
    x = two_convolutions(F.max_pool2d(level4, 2, 2), "bottom")
    x = up(x, level4, 4)
    x = up(x, level3, 3)
    x = up(x, level2, 2)
    x = up(x, level1, 1)
    return F.conv2d(x, w["output.weight"], w["output.bias"])


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("name", "size", "out"), [("unet", 572, 388), ("unet_same", 64, 64)])
def test_it_is_figure_1_written_out_and_so_are_its_gradients(name, size, out, train):
    model = with_dropout(build(name, num_classes=3, width=4), 0.0).train(train)
    for layer in layers(model, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.bias, 0, 0.1)
    weights, padding = model.state_dict(), int(name == "unet_same")
    x = images(size, batch=1, channels=SPECS[name].input[0])
    y = model(x)
    assert y.shape == (1, 3, out, out)
    assert y.std() > 0.01
    assert_same(model, lambda x: literal_unet(weights, x, padding), x)


def test_tiles_of_an_image_have_the_outputs_of_the_whole():
    """The overlap-tile strategy: "seamless segmentation of arbitrarily large images" (Fig. 2)."""
    torch.manual_seed(0)
    model = unet(width=2).double().eval()
    image = torch.randn(1, 1, 204, 220, dtype=torch.float64)
    with torch.no_grad():
        whole = model(image)
        assert whole.shape == (1, 2, 20, 36)
        for top in (0, 16):
            for left in (0, 16, 32):
                tile = model(image[..., top : top + 188, left : left + 188])
                part = whole[..., top : top + 4, left : left + 4]
                torch.testing.assert_close(tile, part, rtol=1e-9, atol=1e-12)
    assert whole.std() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_at_the_end_of_the_contracting_path(name):
    model = build(name, width=8)
    rates = {key: m.p for key, m in model.named_modules() if isinstance(m, nn.Dropout)}
    used = {key: rate for key, rate in rates.items() if rate}
    assert used == {"down.4.dropout": 0.5, "bottom.dropout": 0.5}
    x = images({"unet": 188, "unet_same": 48}[name], channels=SPECS[name].input[0])
    first, second = (features(model, x, ("down.3", "down.4", "bottom")) for _ in range(2))
    assert torch.equal(first["down.3"], second["down.3"])
    assert not torch.equal(first["down.4"], second["down.4"])
    assert not torch.equal(first["bottom"], second["bottom"])
    model.eval()
    assert torch.equal(model(x), model(x))


# Initialisation and learning


@pytest.mark.parametrize("name", NAMES)
def test_weights_have_a_variance_of_two_over_the_incoming_nodes(name):
    model = build(name, width=16)
    checked = 0
    for key, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            continue
        assert (module.bias == 0).all()
        incoming = module.in_channels * (1 if isinstance(module, nn.ConvTranspose2d) else 9)
        if module.weight.numel() > 2000:
            scaled = module.weight * (incoming / 2) ** 0.5
            assert scaled.std().item() == pytest.approx(1, rel=0.05), key
            assert abs(scaled.mean().item()) < 0.06, key
            checked += 1
    assert checked == 21  # all but the first convolution and the output
    wide = build(name, num_classes=512, width=16).output.weight
    assert wide.std().item() == pytest.approx((2 / 16) ** 0.5, rel=0.05)


def test_576_nodes_come_into_a_3x3_convolution_over_64_maps():
    """The paper's example: "for a 3x3 convolution and 64 feature channels [...] N = 576"."""
    torch.manual_seed(0)
    weight = unet(depth=1).down["1"].conv2.weight
    assert weight.std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_to_outline_a_disc_where_the_disc_is(name):
    model = build(name, depth=2, width=8).eval()
    rows, columns = torch.meshgrid(torch.arange(76), torch.arange(76), indexing="ij")
    disc = ((rows - 36) ** 2 + (columns - 40) ** 2 < 300).long()[None]
    x = (disc + 0.3 * torch.randn(1, 76, 76)).expand(SPECS[name].input[0], -1, -1)[None]
    margin = {"unet": 20, "unet_same": 0}[name]
    target = disc[:, margin : 76 - margin, margin : 76 - margin]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(50):
        loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = model(x).argmax(1)
    overlap = (found & target).sum() / (found | target).sum()
    assert overlap > 0.95
