"""The checks. Each takes a `Case`, says in its name what must hold, and raises if it does not."""

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
from cnn_core.errors import UsageError, ZooError
from cnn_core.layers import Classifier, features
from cnn_core.plugins import HEAVY
from cnn_core.registry.names import recipes_of, resolve_for
from cnn_core.specs import ModelSpec, RecipeSpec
from cnn_core.testing.case import Case, Offer

__all__: list[str] = []


def require(holds: object, message: str) -> None:
    """Raise AssertionError with a message; unlike `assert`, also under `python -O`."""
    if not holds:
        raise AssertionError(message)


def close(found: Tensor, expected: Tensor, what: str, tolerance: float = 1e-4) -> None:
    """Raise unless two tensors agree to a part of the larger one's largest value."""
    scale = max(expected.abs().max().item(), 1e-12)
    apart = (found - expected).abs().max().item() / scale
    require(apart <= tolerance, f"{what} differs by {apart:.2g} of its largest value")


# The plugin


def check_plugin_module_is_light(case: Offer[Any]) -> None:
    """Importing the plugin imports nothing heavy: listing stays fast for everyone."""
    code = f"print([name for name in {HEAVY!r} if name in sys.modules])"
    found = case.on_import(code).strip()
    require(found == "[]", f"importing {case.entry.plugin.target} imports {found}")


def check_import_prints_and_writes_nothing(case: Offer[Any]) -> None:
    """Importing the plugin is silent and leaves no file behind."""
    found = case.on_import("print(sorted(set(os.listdir()) - before))").strip()
    require(found in ("[]", "['__pycache__']"), f"on import: {found}")


def check_import_leaves_random_state(case: Case) -> None:
    """Importing the network's file draws no random number."""
    before = torch.random.get_rng_state()
    registry.resolve(case.entry)
    require(torch.equal(before, torch.random.get_rng_state()), "draws when it is imported")


def check_requirement_of_core_is_pinned(case: Offer[Any]) -> None:
    """The distribution says which cnn-core it needs."""
    entry = case.entry.plugin.entry
    requirements = (entry.dist.requires if entry is not None and entry.dist else None) or []
    pinned = [r for r in requirements if re.match(r"cnn-core\s*[~=<>]", r)]
    require(pinned, f"requires {requirements}, expected cnn-core with a version: cnn-core~=0.1")


def check_name_of_package_and_target(case: Case) -> None:
    """The target resolves to something that can be called."""
    require(callable(registry.resolve(case.entry)), f"{case.spec.target} cannot be called")


# What is written


def check_docstring_cites_the_paper(case: Case) -> None:
    """The network's file names the first author and the year of the paper."""
    author = re.split(r",| and | et al", case.spec.paper.authors)[0].split()[-1]
    for part in (author, str(case.spec.paper.year)):
        require(part in case.module_doc(), f"the docstring of the file does not say {part!r}")


def check_docstring_has_the_table(case: Case) -> None:
    """The network's file carries the paper's table: indented lines with sizes."""
    table = [line for line in case.paper_table().splitlines() if re.search(r"\d", line)]
    require(len(table) >= 3, f"the docstring's table has {len(table)} lines with numbers")


def check_table_has_the_sizes_of_the_maps(case: Case) -> None:
    """The table gives the size of every stage's maps, as 28x28, and the code makes that size."""
    sizes = set(re.findall(r"\d+x\d+", re.sub(r"(?<=\d) +x +(?=\d)", "x", case.paper_table())))
    for stage in case.traced.stages:
        if len(stage.output) == 3:
            size = "x".join(map(str, stage.output[1:]))
            require(size in sizes, f"stage {stage.name} has maps of {size}, not in the table")


def check_departures_are_written_down(case: Case) -> None:
    """The network's file says how it departs from the paper, or that it does not."""
    require("departures" in case.module_doc().lower(), "the docstring has no 'Departures'")


def check_recipes_are_sound(case: Case) -> None:
    """Each recipe of its distribution names a dataset that is there, with keys that are."""
    from cnn_core.runs.recipe import Recipe

    for recipe in _own_recipes(case.entry):
        pair = {"model": recipe.spec.model, "data": recipe.spec.dataset}
        Recipe.from_settings({**pair, **recipe.spec.settings}, recipe.spec.name)
        resolve_for(registry.datasets(), recipe.spec.dataset, recipe.plugin)


def _own_recipes(model: registry.Entry[ModelSpec]) -> list[registry.Entry[RecipeSpec]]:
    """Return the recipes for a model that are of its own distribution."""
    own = model.plugin.distribution
    return [recipe for recipe in recipes_of(model) if recipe.plugin.distribution == own]


def check_a_recipe_is_measured(case: Case) -> None:
    """A recipe of its family says what it reached: mean and deviation of three seeds or more."""
    family = [
        entry
        for _, entry in registry.models()
        if (entry.plugin.origin, entry.spec.family) == (case.entry.plugin.origin, case.spec.family)
    ]
    recipes = [recipe.spec for entry in family for recipe in _own_recipes(entry)]
    require(recipes, f"there is no recipe for any network of the family {case.spec.family}")
    measured = any(recipe.claim.get("n", 0) >= 3 for recipe in recipes)
    names = ", ".join(recipe.name for recipe in recipes)
    require(measured, f"no claim of three seeds or more in {names}")


# Counts


def check_parameters_are_as_claimed(case: Case) -> None:
    """The trainable parameters are those of the spec."""
    require(case.traced.params == case.spec.params, f"{case.traced.params:,} parameters")


def check_macs_are_as_claimed(case: Case) -> None:
    """The multiply-accumulates at the paper's size are those of the spec."""
    require(case.traced.macs == case.spec.macs, f"{case.traced.macs:,} MACs")


def check_stages_run_in_order(case: Case) -> None:
    """The stages are modules, run in the order in which the spec names them."""
    with torch.device("meta"):
        model, image = case.build().eval(), torch.empty(1, *case.spec.input)
    order: list[str] = []
    for stage in case.spec.stages:
        model.get_submodule(stage).register_forward_hook(
            lambda *_, stage=stage: order.append(stage)
        )
    with torch.no_grad():
        model(image)
    first = list(dict.fromkeys(order))
    require(first == list(case.spec.stages), f"the stages run as {first}")


# Shapes


def _shape(case: Case, size: int) -> tuple[int, ...]:
    with torch.device("meta"):
        model, image = case.build().eval(), torch.empty(2, case.spec.input[0], size, size)
    with torch.no_grad():
        return tuple(model(image).shape)


def check_output_at_the_papers_size(case: Case) -> None:
    """Logits for each image: N classes, or N classes h w where pixels are classified."""
    shape = _shape(case, case.spec.input[1])
    expected = 4 if case.segments else 2
    require(len(shape) == expected and shape[:2] == (2, case.spec.num_classes), f"gives {shape}")


def check_output_at_the_smallest_size(case: Case) -> None:
    """The smallest size works."""
    shape = _shape(case, case.spec.min_size)
    require(shape[:2] == (2, case.spec.num_classes), f"gives {shape}")


def check_other_sizes_work_or_say_why_not(case: Case) -> None:
    """Odd sizes above the smallest either work, or are an error that names sizes that do."""
    for size in (case.spec.min_size + 1, case.spec.min_size + 7):
        try:
            shape = _shape(case, size)
        except UsageError as error:
            require(re.search(r"\d", str(error)), f"at {size}: {error}")
        else:
            require(shape[0] == 2, f"gives {shape} at {size}")


def check_below_the_smallest_size_the_error_names_it(case: Case) -> None:
    """An image that is too small is an error that says how large it has to be."""
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
    """Any number of classes and of input channels."""
    for classes, channels in ((2, 1), (37, 3), (5, 4)):
        with torch.device("meta"):
            model = case.build(num_classes=classes, in_channels=channels).eval()
            image = torch.empty(2, channels, case.spec.min_size, case.spec.min_size)
        with torch.no_grad():
            shape = model(image).shape
        require(shape[1] == classes, f"{classes} classes give {tuple(shape)}")


def check_bad_values_are_refused_with_the_value(case: Case) -> None:
    """No classes and no channels are refused, and the error quotes the value."""
    for name in ("num_classes", "in_channels"):
        for value in (0, -3):
            try:
                case.build(**{name: value})
            except ZooError as error:
                require(str(value) in str(error), f"{name} = {value}: {error}")
            else:
                raise AssertionError(f"accepts {name} = {value}")


def check_the_last_layer_can_be_replaced(case: Case) -> None:
    """`reset_classifier` changes the number of classes; features stay as they are."""
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
        require(model.forward_features(image).shape == before, "its features changed")


# Numbers


def check_builds_on_the_meta_device(case: Case) -> None:
    """Building it there allocates nothing: no tensor is made outside the current device."""
    with torch.device("meta"):
        model = case.build()
    real = [name for name, t in model.state_dict().items() if t.device.type != "meta"]
    require(not real, f"{', '.join(real[:3])} is not on the meta device")


def check_the_seed_decides_the_weights(case: Case) -> None:
    """The same seed gives the same weights."""
    again = case.build().state_dict()
    same = all(torch.equal(t, again[name]) for name, t in case.model.state_dict().items())
    require(same, "two builds with one seed differ")


@torch.no_grad()
def check_activations_are_in_range_at_initialisation(case: Case) -> None:
    """No stage of the new network gives NaN, infinity, or only nearly nothing."""
    for stage, output in features(case.model, case.images(), case.spec.stages).items():
        require(torch.isfinite(output).all(), f"stage {stage} is not finite")
        largest = output.abs().max().item()
        require(1e-12 < largest < 1e6, f"stage {stage} reaches {largest:.2g}")


@torch.no_grad()
def check_images_do_not_influence_each_other(case: Case) -> None:
    """In eval mode a batch gives what its images give one by one; one image is a batch."""
    images = case.images(3)
    eval_batch_size = case.model(images)
    alone = torch.cat([case.model(image[None]) for image in images])
    close(alone, eval_batch_size, "an image's output alone")


def check_gradient_reaches_every_parameter(case: Case) -> None:
    """In training mode no parameter is left out."""
    model = case.build().train()
    outputs = model(case.images(4, case.training_size(model)))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    weight = torch.Generator().manual_seed(1)
    loss = sum((torch.randn(o.shape, generator=weight) * o).sum() for o in outputs)
    loss.backward()
    left = [name for name, p in model.named_parameters() if p.grad is None]
    require(not left, f"{', '.join(left[:3])} gets no gradient")


@torch.no_grad()
def check_state_survives_safetensors(case: Case) -> None:
    """Its state goes through a safetensors file and back, strictly, to the same output."""
    from safetensors.torch import load, save

    state = {name: t.contiguous() for name, t in case.model.state_dict().items()}
    other = case.build().eval()
    for parameter in other.parameters():
        parameter.zero_()
    other.load_state_dict(load(save(state)), strict=True)
    same = torch.equal(other(case.images()), case.model(case.images()))
    require(same, "gives another output")


@torch.no_grad()
def check_copies_and_pickles(case: Case) -> None:
    """`copy.deepcopy` and `pickle` give a network with the same output."""
    expected = case.model(case.images())
    for other in (copy.deepcopy(case.model), pickle.loads(pickle.dumps(case.model))):
        require(torch.equal(other(case.images()), expected), "gives another output")


@torch.no_grad()
def check_channels_last_gives_the_same(case: Case) -> None:
    """The memory format changes nothing but speed."""
    model = copy.deepcopy(case.model).to(memory_format=torch.channels_last)
    found = model(case.images().to(memory_format=torch.channels_last))
    close(found, case.model(case.images()), "the output in channels_last", 1e-3)


@torch.no_grad()
def check_double_precision_works(case: Case) -> None:
    """In float64 it computes the same, in float64."""
    found = copy.deepcopy(case.model).double()(case.images().double())
    require(found.dtype == torch.float64, f"gives {found.dtype}")
    close(found.float(), case.model(case.images()), "the output in float64", 1e-2)


@torch.no_grad()
def check_autocast_to_bfloat16_is_finite(case: Case) -> None:
    """Mixed precision gives finite numbers."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = case.model(case.images(1))
    require(torch.isfinite(found).all(), "is not finite")


def check_grad_cam_at_its_stage(case: Case) -> None:
    """Grad-CAM's stage has maps, and the score's gradient there is finite."""
    kept: list[Tensor] = []
    stage = case.model.get_submodule(case.spec.cam_stage)
    handle = stage.register_forward_hook(lambda *args: kept.append(args[2]))
    try:
        outputs = case.model(case.images())
    finally:
        handle.remove()
    require(kept and kept[0].ndim == 4, f"stage {case.spec.cam_stage} has no maps")
    (gradient,) = torch.autograd.grad(outputs.amax(1).sum(), kept[0])
    heat = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True)
    size = case.images().shape[2:]
    heat = F.interpolate(heat, size, mode="bilinear", align_corners=False)
    require(heat.shape == (2, 1, *size), f"the map is {tuple(heat.shape)}")
    require(torch.isfinite(heat).all(), "the map is not finite")


def check_grad_cam_has_enough_places(case: Case) -> None:
    """At the paper's size its stage has maps of 4x4 at least, if any stage has: less is a blot."""
    maps = {s.name: s.output[1:] for s in case.traced.stages if len(s.output) == 3}
    large = [name for name, size in maps.items() if min(size) >= 4]
    size = "x".join(map(str, maps.get(case.spec.cam_stage, ())))
    fits = case.spec.cam_stage in large or not large
    require(fits, f"stage {case.spec.cam_stage} has maps of {size}; {large[-1:]} has 4x4 or more")


def check_key_maps_lead_there_and_back(case: Case) -> None:
    """Each key has one name in the other library, and comes back from it."""
    if not case.spec.key_maps:
        return
    with torch.device("meta"):
        keys = list(case.build().state_dict())
    for naming, keymap in registry.resolve(case.entry, "key_maps")(case.spec.name).items():
        theirs = [keymap.theirs(key) for key in keys]
        require(len(set(theirs)) == len(keys), f"{naming}: two keys get one name")
        require([keymap.ours(key) for key in theirs] == keys, f"{naming}: keys do not come back")


# Slow


def check_exports(case: Case) -> None:
    """`torch.export` gives a program with the same output."""
    images = case.images(2)
    program = torch.export.export(case.model, (images,))
    with torch.no_grad():
        close(program.module()(images), case.model(images), "the exported output")


def check_compiles_as_one_graph(case: Case) -> None:
    """`torch.compile(fullgraph=True)` gives the same output."""
    torch.compiler.reset()  # what other models left would count against this one
    compiled: Callable[[Tensor], Any] = torch.compile(case.model, fullgraph=True)
    with torch.no_grad():
        close(compiled(case.images()), case.model(case.images()), "the compiled output", 1e-3)


def check_overfits_one_batch(case: Case) -> None:
    """Four images can be learned by heart: the loss falls to a tenth, at one of three rates."""
    left = 1.0
    for lr in (1e-3, 3e-4, 1e-4):
        left = min(left, _what_is_left_of_the_loss(case, lr))
        if left < 0.1:
            return
    raise AssertionError(f"the loss falls only to {left:.2g} of what it was")


def _what_is_left_of_the_loss(case: Case, lr: float) -> float:
    """Train on one batch until its loss is a tenth; return what part of the loss is left."""
    model = case.build().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images = case.images(4, case.training_size(model))
    first = last = math.inf
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    targets: Tensor | None = None
    for step in range(120):
        outputs = model(images)
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        if targets is None:
            shape = (len(logits), *logits.shape[2:])
            generator = torch.Generator().manual_seed(0)
            targets = torch.randint(0, logits.shape[1], shape, generator=generator)
            if case.segments:  # the image's own brightness is something to learn
                targets = (logits.detach().mean(1) > logits.detach().mean()).long()
        loss = F.cross_entropy(logits, targets)
        first, last = (loss.item() if step == 0 else first), loss.item()
        if last < first / 10:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return last / first
