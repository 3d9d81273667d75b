"""Checks of the network itself: shapes, numerics, and slow checks such as learning.

Each check takes a `Case` and raises AssertionError if it fails. Checks run in the order of this
file. Shapes come first, since a wrong shape explains most later failures.
"""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core import registry
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.errors import UsageError, ZooError
from cnn_core.layers import Classifier, features
from cnn_core.testing.assertions import require, require_close
from cnn_core.testing.case import Case

__all__: list[str] = []

# Shapes


def _shape(case: Case, size: int) -> tuple[int, ...]:
    """Return the shape of the output for two square images, on the meta device."""
    with torch.device("meta"):
        model, image = case.build().eval(), torch.empty(2, case.spec.input[0], size, size)
    with torch.no_grad():
        return tuple(model(image).shape)


def check_output_shape_at_the_papers_size(case: Case) -> None:
    """The output has shape N classes, or N classes h w for segmentation."""
    shape = _shape(case, case.spec.input[1])
    expected = 4 if case.segments else 2
    require(len(shape) == expected and shape[:2] == (2, case.spec.num_classes), f"gives {shape}")


def check_output_shape_at_the_smallest_size(case: Case) -> None:
    """Images of the smallest size give an output for every class."""
    shape = _shape(case, case.spec.min_size)
    require(shape[:2] == (2, case.spec.num_classes), f"gives {shape}")


def check_other_sizes_work_or_raise_a_clear_error(case: Case) -> None:
    """Sizes a little above the smallest work, or raise a UsageError that contains a number."""
    for size in (case.spec.min_size + 1, case.spec.min_size + 7):
        try:
            shape = _shape(case, size)
        except UsageError as error:
            require(re.search(r"\d", str(error)), f"at {size}: {error}")
        else:
            require(shape[0] == 2, f"gives {shape} at {size}")


def check_images_too_small_raise_an_error_with_the_smallest_size(case: Case) -> None:
    """An image that is too small raises a UsageError that names the smallest size."""
    if case.spec.min_size == 1:
        return
    try:
        shape = _shape(case, case.spec.min_size - 1)
    except UsageError as error:
        named = str(case.spec.min_size) in str(error)
        require(named, f"the error does not name {case.spec.min_size}: {error}")
    else:
        raise AssertionError(f"accepts {case.spec.min_size - 1} pixels, gives {shape}")


def check_classes_and_channels_are_honoured(case: Case) -> None:
    """The network supports any number of classes and of input channels."""
    for classes, channels in ((2, 1), (37, 3), (5, 4)):
        with torch.device("meta"):
            model = case.build(num_classes=classes, in_channels=channels).eval()
            image = torch.empty(2, channels, case.spec.min_size, case.spec.min_size)
        with torch.no_grad():
            shape = model(image).shape
        require(shape[1] == classes, f"{classes} classes give {tuple(shape)}")


def check_invalid_values_raise_errors_that_quote_them(case: Case) -> None:
    """Zero or a negative number of classes or channels raises an error that quotes the value."""
    for name in ("num_classes", "in_channels"):
        for value in (0, -3):
            try:
                case.build(**{name: value})
            except ZooError as error:
                require(str(value) in str(error), f"{name} = {value}: {error}")
            else:
                raise AssertionError(f"accepts {name} = {value}")


def check_the_last_layer_can_be_replaced(case: Case) -> None:
    """`reset_classifier` changes the number of classes but not the shape of the features."""
    if case.segments:
        return
    with torch.device("meta"):
        model = case.build().eval()
        image = torch.empty(2, case.spec.input[0], case.spec.min_size, case.spec.min_size)
    require(isinstance(model, Classifier), "is not a cnn_core.layers.Classifier")
    assert isinstance(model, Classifier)
    with torch.no_grad():
        before = model.forward_features(image).shape
        model.reset_classifier(7)
        require(model(image).shape == (2, 7), "reset_classifier(7) has no effect")
        require(model.forward_features(image).shape == before, "the shape of the features changed")


# Numerics


def check_builds_on_the_meta_device(case: Case) -> None:
    """Built under `torch.device("meta")`, all of the network's tensors are on the meta device.

    `cnnzoo show` and many of these checks rely on that.
    """
    with torch.device("meta"):
        model = case.build()
    real = [name for name, t in model.state_dict().items() if t.device.type != "meta"]
    require(not real, f"{', '.join(real[:3])} is not on the meta device")


def check_seed_determines_the_weights(case: Case) -> None:
    """The same seed gives the same weights."""
    again = case.build().state_dict()
    same = all(torch.equal(t, again[name]) for name, t in case.model.state_dict().items())
    require(same, "two builds with one seed differ")


@torch.no_grad()
def check_activations_are_in_range_at_initialisation(case: Case) -> None:
    """No stage of an untrained network returns NaN, infinity, or only vanishing values."""
    for stage, output in features(case.model, case.images(), case.spec.stages).items():
        require(torch.isfinite(output).all(), f"stage {stage} is not finite")
        largest = output.abs().max().item()
        require(1e-12 < largest < 1e6, f"stage {stage} reaches {largest:.2g}")


@torch.no_grad()
def check_images_do_not_influence_each_other(case: Case) -> None:
    """In eval mode an image gives the same output alone and in a batch."""
    images = case.images(3)
    in_batch = case.model(images)
    alone = torch.cat([case.model(image[None]) for image in images])
    require_close(alone, in_batch, "the output of an image alone")


def check_gradient_reaches_every_parameter(case: Case) -> None:
    """In training mode every parameter gets a gradient."""
    model = case.build().train()
    outputs = model(case.images(4, case.training_size(model)))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(1)
    loss = sum((torch.randn(o.shape, generator=generator) * o).sum() for o in outputs)
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    require(not missing, f"{', '.join(missing[:3])} gets no gradient")


@torch.no_grad()
def check_state_survives_safetensors(case: Case) -> None:
    """Saved with safetensors and loaded strictly, the state dict gives the same output."""
    from safetensors.torch import load, save

    state = {name: t.contiguous() for name, t in case.model.state_dict().items()}
    other = case.build().eval()
    for parameter in other.parameters():
        parameter.zero_()  # a parameter that is not in the state dict would stay at zero
    other.load_state_dict(load(save(state)), strict=True)
    same = torch.equal(other(case.images()), case.model(case.images()))
    require(same, "the output changes")


@torch.no_grad()
def check_copies_and_pickles_give_the_same_output(case: Case) -> None:
    """A `copy.deepcopy` and an unpickled copy of the network give the same output."""
    expected = case.model(case.images())
    for other in (copy.deepcopy(case.model), pickle.loads(pickle.dumps(case.model))):
        require(torch.equal(other(case.images()), expected), "the output changes")


@torch.no_grad()
def check_channels_last_gives_the_same_output(case: Case) -> None:
    """The output does not depend on the memory format."""
    model = copy.deepcopy(case.model).to(memory_format=torch.channels_last)
    found = model(case.images().to(memory_format=torch.channels_last))
    require_close(found, case.model(case.images()), "the output in channels_last", 1e-3)


@torch.no_grad()
def check_double_precision_works(case: Case) -> None:
    """In float64 the network returns float64, and about the same values."""
    found = copy.deepcopy(case.model).double()(case.images().double())
    require(found.dtype == torch.float64, f"gives {found.dtype}")
    require_close(found.float(), case.model(case.images()), "the output in float64", 1e-2)


@torch.no_grad()
def check_autocast_to_bfloat16_is_finite(case: Case) -> None:
    """The output under bfloat16 autocast is finite."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = case.model(case.images(1))
    require(torch.isfinite(found).all(), "is not finite")


def check_grad_cam_at_its_stage(case: Case) -> None:
    """Grad-CAM works at `cam_stage`: the stage returns feature maps, and the map is finite."""
    kept: list[Tensor] = []
    stage = case.model.get_submodule(case.spec.cam_stage)
    handle = stage.register_forward_hook(lambda *args: kept.append(args[2]))
    try:
        outputs = case.model(case.images())
    finally:
        handle.remove()
    require(kept and kept[0].ndim == 4, f"stage {case.spec.cam_stage} returns no feature maps")
    (gradient,) = torch.autograd.grad(outputs.amax(1).sum(), kept[0])
    heat = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True)
    size = case.images().shape[2:]
    heat = F.interpolate(heat, size, mode="bilinear", align_corners=False)
    require(heat.shape == (2, 1, *size), f"the map is {tuple(heat.shape)}")
    require(torch.isfinite(heat).all(), "the map is not finite")


def check_grad_cam_maps_are_large_enough(case: Case) -> None:
    """`cam_stage` has maps of at least 4x4 at the paper's size, if any stage has such maps.

    Smaller ones give a heat map that is a single blob.
    """
    maps = {s.name: s.output[1:] for s in case.traced.stages if len(s.output) == 3}
    large = [name for name, size in maps.items() if min(size) >= 4]
    size = "x".join(map(str, maps.get(case.spec.cam_stage, ())))
    large_enough = case.spec.cam_stage in large or not large
    require(
        large_enough,
        f"stage {case.spec.cam_stage} has maps of {size}; {large[-1:]} has 4x4 or more",
    )


def check_key_maps_are_invertible(case: Case) -> None:
    """Each key maps to a different key in the other library, which maps back to it.

    The options and the preprocessing of a key map exist.
    """
    if not case.spec.key_maps:
        return
    for naming, keymap in registry.resolve(case.entry, "key_maps")(case.spec.name).items():
        with torch.device("meta"):
            keys = list(case.build(**keymap.options).state_dict())
        if keymap.preprocessing:
            Preprocessing(size=(1, 1), image_size=(0, 0), **keymap.preprocessing)
        theirs = [keymap.theirs(key) for key in keys]
        require(len(set(theirs)) == len(keys), f"{naming}: two keys map to the same key")
        require(
            [keymap.ours(key) for key in theirs] == keys,
            f"{naming}: keys do not map back to themselves",
        )


# Slow


def check_exports(case: Case) -> None:
    """The program made by `torch.export` gives the same output."""
    images = case.images(2)
    program = torch.export.export(case.model, (images,))
    with torch.no_grad():
        require_close(program.module()(images), case.model(images), "the exported output")


def check_compiles_as_one_graph(case: Case) -> None:
    """The network compiles with `torch.compile(fullgraph=True)` and gives the same output."""
    torch.compiler.reset()  # graphs of earlier models count against the recompilation limit
    compiled: Callable[[Tensor], Any] = torch.compile(case.model, fullgraph=True)
    with torch.no_grad():
        require_close(
            compiled(case.images()), case.model(case.images()), "the compiled output", 1e-3
        )


def check_overfits_one_batch(case: Case) -> None:
    """The network can memorise four images: the loss falls to 10 % at one of three learning rates.

    No single learning rate suits every architecture.
    """
    lowest = 1.0
    for lr in (1e-3, 3e-4, 1e-4):
        lowest = min(lowest, _remaining_loss(case, lr))
        if lowest < 0.1:
            return
    raise AssertionError(f"the loss falls only to {lowest:.2g} of its first value")


def _remaining_loss(case: Case, lr: float) -> float:
    """Train on one batch for at most 120 steps; return the last loss divided by the first."""
    model = case.build().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # its noise could keep the loss from falling to a tenth
    images = case.images(4, case.training_size(model))
    first = last = math.inf
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    targets: Tensor | None = None
    for step in range(120):
        outputs = model(images)
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        if targets is None:
            targets = _targets(case, logits.detach())
        loss = F.cross_entropy(logits, targets)
        first, last = (loss.item() if step == 0 else first), loss.item()
        if last < first / 10:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return last / first


def _targets(case: Case, logits: Tensor) -> Tensor:
    """Return a random class per image or, for segmentation, whether a pixel's logits are large.

    Random classes for every pixel would take far more than 120 steps to memorise.
    """
    if case.segments:
        return (logits.mean(1) > logits.mean()).long()
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, logits.shape[1], (len(logits),), generator=generator)
