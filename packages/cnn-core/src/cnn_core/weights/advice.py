"""Say how a file that does not fit a model can be loaded: with another head, or as which model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from cnn_core import registry
from cnn_core.errors import ZooError
from cnn_core.specs import ModelSpec
from cnn_core.weights.blueprint import Blueprint, Shapes, blueprint_of, key_maps
from cnn_core.weights.foreign import ForeignFile
from cnn_core.weights.loading import MismatchError
from cnn_core.weights.naming import Match, best_match

__all__ = ["hint_for"]

TRIED = 12  # models of other families, those with the nearest numbers of parameters
ANEW = "new_head=True loads all but the head, as cnnzoo train --weights does"


def hint_for(error: MismatchError, blueprint: Blueprint, file: ForeignFile) -> str:
    """Return how to load a file that does not fit a model, as far as the file shows it."""
    heads = blueprint.dimensions_of("num_classes")
    if error.key in heads and heads[error.key] < len(error.shape):
        classes = error.shape[heads[error.key]]
        return f"the file has {classes:,} classes: num_classes={classes} loads them; {ANEW}"
    maps = key_maps(blueprint.entry)
    match = best_match(blueprint.shapes(), file.tensors, maps)
    of_head = {maps[match.naming].theirs(h) if match.naming in maps else h for h in heads}
    if error.missing and set(error.missing) <= of_head:
        return f"the file has another head: {ANEW}"
    if fitting := _fitting_model(file, blueprint.entry):
        name, match = fitting
        return (
            f"the file fits '{name}', all {match.count} parameters under {match.naming} naming: "
            f"create_model('{name}', weights=…), or --model {name}"
        )
    return error.hint


def _fitting_model(
    file: ForeignFile, entry: registry.Entry[ModelSpec]
) -> tuple[str, Match] | None:
    """Return the first other model that a file fits, and where its parameters are."""
    for name, other in _candidates(file, entry):
        with suppress(ZooError):  # a model of a broken plugin
            maps, shapes = key_maps(other), blueprint_of(other).shapes()
            match = best_match(shapes, file.tensors, maps)
            warned = match.naming in maps and maps[match.naming].warning
            if not warned and _fits(match, shapes, file):
                return name, match
    return None


def _candidates(
    file: ForeignFile, entry: registry.Entry[ModelSpec]
) -> Iterator[tuple[str, registry.Entry[ModelSpec]]]:
    """Yield other models: those of the same family, then some of about the file's size."""
    numbers = sum(tensor.numel() for tensor in file.tensors.values())
    # Building takes time. With few classes instead of 1,000, a file may be smaller than a model.
    others = [(n, e) for n, e in registry.models() if e != entry and e.spec.params < 4 * numbers]
    others.sort(key=lambda pair: abs(pair[1].spec.params - numbers))
    relatives = [pair for pair in others if pair[1].spec.family == entry.spec.family]
    yield from relatives
    yield from [pair for pair in others if pair not in relatives][:TRIED]


def _fits(match: Match, shapes: Shapes, file: ForeignFile) -> bool:
    """Return whether all parameters are there, apart from the number of classes in the head."""
    if match.missing or match.unexpected:
        return False
    differ = [
        (shapes[key], tuple(file.tensors[name].shape))
        for key, name in match.found.items()
        if tuple(file.tensors[name].shape) != shapes[key]
    ]
    return len(differ) < len(shapes) / 4 and all(own[1:] == their[1:] for own, their in differ)
