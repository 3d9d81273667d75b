"""Checks of a model's package: its plugin, its documentation, and the claims of its spec.

Each check takes a `Case`, or any `Offer`, and raises AssertionError if it fails.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from cnn_core import registry
from cnn_core.plugins import HEAVY
from cnn_core.registry.names import recipes_of, resolve_for
from cnn_core.specs import ModelSpec, RecipeSpec
from cnn_core.testing.assertions import require
from cnn_core.testing.case import Case, Offer

__all__: list[str] = []

# The plugin


def check_plugin_module_is_light(case: Offer[Any]) -> None:
    """Importing the plugin, as every command does, imports nothing slow, such as torch."""
    code = f"print([name for name in {HEAVY!r} if name in sys.modules])"
    found = case.on_import(code).strip()
    require(found == "[]", f"importing {case.entry.plugin.target} imports {found}")


def check_import_prints_and_writes_nothing(case: Offer[Any]) -> None:
    """Importing the plugin prints nothing and creates no file, except in __pycache__."""
    found = case.on_import("print(sorted(set(os.listdir()) - before))").strip()
    require(found in ("[]", "['__pycache__']"), f"on import: {found}")


def check_import_leaves_random_state(case: Case) -> None:
    """Importing the module of the network does not change torch's random state."""
    before = torch.random.get_rng_state()
    registry.resolve(case.entry)
    unchanged = torch.equal(before, torch.random.get_rng_state())
    require(unchanged, "draws random numbers when it is imported")


def check_requirement_of_core_is_pinned(case: Offer[Any]) -> None:
    """The distribution's requirement of cnn-core has a version, which the loader checks."""
    entry = case.entry.plugin.entry
    requirements = (entry.dist.requires if entry is not None and entry.dist else None) or []
    pinned = [r for r in requirements if re.match(r"cnn-core\s*[~=<>]", r)]
    require(pinned, f"requires {requirements}, expected cnn-core with a version: cnn-core~=0.1")


def check_target_is_callable(case: Case) -> None:
    """The target of the spec resolves to a callable."""
    require(callable(registry.resolve(case.entry)), f"{case.spec.target} is not callable")


# The documentation


def check_docstring_cites_the_paper(case: Case) -> None:
    """The docstring of the network's module names the paper's first author and year."""
    author = re.split(r",| and | et al", case.spec.paper.authors)[0].split()[-1]
    for part in (author, str(case.spec.paper.year)):
        require(part in case.module_doc(), f"the file's docstring does not mention {part!r}")


def check_docstring_has_the_table(case: Case) -> None:
    """The docstring of the network's module contains the paper's table, with numbers."""
    table = [line for line in case.paper_table().splitlines() if re.search(r"\d", line)]
    require(len(table) >= 3, f"the table in the docstring has {len(table)} lines with numbers")


def check_table_has_the_sizes_of_the_maps(case: Case) -> None:
    """The table contains the size of every stage's feature maps, such as 28x28."""
    # Tables also write "28 x 28 x 192" or "28 x  28".
    sizes = set(re.findall(r"\d+x\d+", re.sub(r"(?<=\d) +x +(?=\d)", "x", case.paper_table())))
    for stage in case.traced.stages:
        if len(stage.output) == 3:
            size = "x".join(map(str, stage.output[1:]))
            require(size in sizes, f"stage {stage.name} has maps of {size}, not in the table")


def check_departures_are_written_down(case: Case) -> None:
    """The docstring of the network's module mentions departures from the paper."""
    require("departures" in case.module_doc().lower(), "the docstring has no 'Departures'")


def check_recipes_are_sound(case: Case) -> None:
    """Each recipe of the distribution has valid settings and names a known dataset."""
    from cnn_core.runs.recipe import Recipe

    for recipe in _own_recipes(case.entry):
        pair = {"model": recipe.spec.model, "data": recipe.spec.dataset}
        Recipe.from_settings({**pair, **recipe.spec.settings}, recipe.spec.name)
        resolve_for(registry.datasets(), recipe.spec.dataset, recipe.plugin)


def _own_recipes(model: registry.Entry[ModelSpec]) -> list[registry.Entry[RecipeSpec]]:
    """Return the recipes for a model that come from the model's own distribution."""
    own = model.plugin.distribution
    return [recipe for recipe in recipes_of(model) if recipe.plugin.distribution == own]


def check_a_recipe_is_measured(case: Case) -> None:
    """A recipe of the model's family has a claim, a result measured with at least three seeds.

    One recipe per family is enough, since not everybody can train its largest network.
    """
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


# The claims of the spec


def check_parameters_are_as_claimed(case: Case) -> None:
    """The network's number of trainable parameters is the spec's."""
    require(case.traced.params == case.spec.params, f"{case.traced.params:,} parameters")


def check_macs_are_as_claimed(case: Case) -> None:
    """The network's number of multiply-accumulates at the paper's size is the spec's."""
    require(case.traced.macs == case.spec.macs, f"{case.traced.macs:,} MACs")


def check_stages_run_in_order(case: Case) -> None:
    """The stages are modules of the network and run in the order of the spec."""
    with torch.device("meta"):
        model, image = case.build().eval(), torch.empty(1, *case.spec.input)
    order: list[str] = []
    for stage in case.spec.stages:
        model.get_submodule(stage).register_forward_hook(
            lambda *_, stage=stage: order.append(stage)
        )
    with torch.no_grad():
        model(image)
    first = list(dict.fromkeys(order))  # a shared module may run several times
    require(first == list(case.spec.stages), f"the stages run as {first}")
