"""Checks of published weights: their specs, their files and their claims.

Files and datasets that are not on this machine are not fetched: the check is skipped.
"""

from __future__ import annotations

from typing import Any
from unittest import SkipTest

import torch

from cnn_core import registry
from cnn_core.errors import DatasetMissingError, UnknownNameError, UsageError, WeightsMissingError
from cnn_core.registry.names import resolve_for
from cnn_core.testing.assertions import require
from cnn_core.training import Trained, evaluate
from cnn_core.training.sources import preprocessing_of
from cnn_core.weights.published import class_names

__all__: list[str] = []

TOLERANCE = 0.005  # of a claimed accuracy: libraries decode and resize images differently


def check_weights_are_for_a_known_model(extension: Any) -> None:
    """The model is installed, and a key map of it has the naming of the file."""
    spec = extension.spec
    model = resolve_for(registry.models(), spec.model, extension.entry.plugin)
    if not spec.naming:
        return
    require(model.spec.key_maps, f"'{spec.model}' has no key maps, so none called {spec.naming!r}")
    known = registry.resolve(model, "key_maps")(model.spec.name)
    require(spec.naming in known, f"naming = {spec.naming!r}: '{spec.model}' has {sorted(known)}")


def check_weights_name_their_classes(extension: Any) -> None:
    """There is a name for each of the classes."""
    count, names = extension.spec.num_classes, class_names(extension.entry)
    require(len(names) == count, f"{len(names):,} names for {count:,} classes")


def check_weights_load(extension: Any) -> None:
    """The file is the one that the spec describes, and the network computes with its weights."""
    trained, spec = _trained(extension), extension.spec
    weights = trained.weights
    require(weights.classes == class_names(extension.entry), "the file has other classes")
    require(weights.preprocessing == preprocessing_of(spec), "the file has other preprocessing")
    for name, tensor in weights.tensors.items():
        finite = not tensor.is_floating_point() or bool(tensor.isfinite().all())
        require(finite, f"{name} has values that are not finite")
    with torch.inference_mode():
        logits = trained.model(torch.zeros(2, weights.in_channels, *spec.input_size))
    require(logits.shape[:2] == (2, spec.num_classes), f"returns {tuple(logits.shape)}")


def check_weights_reach_their_accuracy(extension: Any) -> None:
    """On the test split, the accuracy is the claimed one, to half a point."""
    claimed = extension.spec.accuracy.get("top1")
    if claimed is None:
        raise SkipTest("no top-1 accuracy is claimed")
    try:
        measured = evaluate(_trained(extension)).get("top1", 0.0)
    except (DatasetMissingError, UnknownNameError, UsageError) as error:
        raise SkipTest(error.message) from error
    message = f"top-1 accuracy {100 * measured:.2f} %, claimed {100 * claimed:.2f} %"
    require(abs(measured - claimed) <= TOLERANCE, message)


def _trained(extension: Any) -> Trained:
    """Open the weights; skip the check if they are not on this machine."""
    trained = Trained(extension.spec.name, data_dir=extension.data_dir, device="cpu")
    try:
        assert trained.weights
    except WeightsMissingError as error:
        raise SkipTest(error.message) from error
    return trained


WEIGHTS_CHECKS = (
    check_weights_are_for_a_known_model,
    check_weights_name_their_classes,
    check_weights_load,
    check_weights_reach_their_accuracy,
)
