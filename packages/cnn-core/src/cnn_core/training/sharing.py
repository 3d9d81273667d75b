"""Share a trained network: weights, config.json for timm and a model card, in one folder."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from cnn_core.errors import DatasetMissingError, UsageError
from cnn_core.files import new_folder, write_new, write_text
from cnn_core.registry.names import base_name
from cnn_core.runs.destinations import folder_of
from cnn_core.tasks.class_counts import class_keys
from cnn_core.tasks.class_weights import own_targets
from cnn_core.text import did_you_mean, printable
from cnn_core.training.evaluation import evaluate, require_finite
from cnn_core.training.model_card import Measured, model_card
from cnn_core.training.outputs import predictions
from cnn_core.training.prediction import task_of
from cnn_core.training.trained import Source, Trained
from cnn_core.weights.hub import (
    CARD,
    CONFIG,
    WEIGHTS,
    Repository,
    parse_repository,
    require_hub,
    upload_folder,
)
from cnn_core.weights.native import write_weights
from cnn_core.weights.timm_files import timm_config, timm_naming

__all__ = ["Shared", "push"]

IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.-]*")
# The hub's identifiers that SPDX lacks: https://huggingface.co/docs/hub/repositories-licenses
OF_THE_HUB = {
    *("apple-amlr", "apple-ascl", "bigcode-openrail-m", "bigscience-bloom-rail-1.0", "bsd"),
    *("bigscience-openrail-m", "c-uda", "cc", "creativeml-openrail-m", "deepfloyd-if-license"),
    *("fair-noncommercial-research-license", "gemma", "gpl", "grok2-community", "h-research"),
    *("intel-research", "lgpl", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3"),
    *("llama4", "open-mdw", "openmdw-1.0", "openrail", "openrail++", "other", "unknown"),
}
USUAL = ("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "other")


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What was shared: its address or folder, whether timm can read it, and the results in it."""

    place: str
    timm: bool
    metrics: dict[str, float]


def push(
    run: Trained | Source,
    repository: str,
    *,
    licence: str,
    out: str | os.PathLike[str] | None = None,
    private: bool = False,
    force: bool = False,
) -> Shared:
    """Upload a trained network to a repository of the Hugging Face Hub, "hf:owner/name".

    The repository gets model.safetensors and a model card, README.md. If timm has the network, the
    tensors have timm's names, and timm's config.json is added. The card has the results on the
    test split of the dataset of the run or `Trained`; for published weights, only if their dataset
    is on this machine. `licence`
    is an identifier of the hub, such as "mit" or "cc-by-4.0"; published weights keep theirs. With
    `out`, the files are only written into a new folder. `private` creates a private repository.
    `force` adds to one that has files, or replaces the folder.

    Raises:
        UsageError: the name, the licence or the source is invalid, the repository or the folder
            has files already, or huggingface_hub is not installed.
        ZooError: the hub refuses the upload or cannot be reached.
    """
    target = parse_repository(repository)
    require_hub()
    _require_valid(target, licence, out, private)
    trained = Trained.of(run)
    if not trained.weights.tensors:
        raise UsageError(
            f"{trained.path}: an exported file, which cannot be pushed",
            "give the run or the weights that it was exported from",
        )
    _require_same_licence(trained, licence)
    if out is not None:
        folder = _new(Path(out), force)
        with new_folder(folder) as temporary:
            timm, measured = _write(trained, target, temporary, licence)
        place = str(folder)
    else:
        with tempfile.TemporaryDirectory() as name:
            timm, measured = _write(trained, target, Path(name), licence)
            place = upload_folder(Path(name), target, private=private, force=force)
    return Shared(place=place, timm=timm, metrics=dict(measured.metrics) if measured else {})


def _require_valid(
    target: Repository, licence: str, out: str | os.PathLike[str] | None, private: bool
) -> None:
    if target.revision is not None:
        raise UsageError(f"{target}: uploads go to the main branch", f"hf:{target.id}")
    if not _is_identifier(licence):
        raise UsageError(
            f"licence = '{printable(licence)}': expected an identifier of the hub"
            f"{did_you_mean(licence, USUAL)}",
            f"such as {', '.join(USUAL)}: https://huggingface.co/docs/hub/repositories-licenses",
        )
    if out is not None and private:
        raise UsageError("--private is for uploads, and --out only writes a folder")


def _is_identifier(licence: str) -> bool:
    """Return whether a licence is one of SPDX or of the hub, in lower case."""
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    if licence in OF_THE_HUB:
        return True
    # SPDX allows names of one's own, such as LicenseRef-mine.
    if not IDENTIFIER.fullmatch(licence) or licence.startswith("licenseref-"):
        return False
    with contextlib.suppress(InvalidLicenseExpression):
        return bool(canonicalize_license_expression(licence))
    return False


def _require_same_licence(trained: Trained, licence: str) -> None:
    """Raise UsageError if published weights would get another licence than their publisher's."""
    entry = None if trained.is_run else trained.opened.entry
    if entry is None or entry.spec.licence.lower() == licence:
        return
    own = entry.spec.licence
    if licence == "other" and not _is_identifier(own.lower()):
        return
    raise UsageError(
        f"{entry.spec.name}: its publisher gives it under the licence {own}, not {licence}",
        f"--licence {own.lower() if _is_identifier(own.lower()) else 'other'}",
    )


def _new(folder: Path, force: bool) -> Path:
    """Return a folder to write; raise UsageError if it has files already."""
    if folder.exists() and not (folder.is_dir() and (force or not any(folder.iterdir()))):
        hint = "--force replaces it" if folder.is_dir() else ""
        raise UsageError(f"{folder}: already exists", hint)
    folder_of(folder)
    return folder


def _write(
    trained: Trained, repository: Repository, folder: Path, licence: str
) -> tuple[bool, Measured | None]:
    """Write all files; return whether timm can read them, and the results on the card."""
    weights, measured = trained.weights, _measured(trained)
    naming = timm_naming(weights)
    card = model_card(trained, repository, licence=licence, measured=measured, timm=bool(naming))
    write_weights(folder / WEIGHTS, weights, naming)
    if naming:
        config = json.dumps(timm_config(weights, naming), indent=2, ensure_ascii=False)
        write_text(folder / CONFIG, f"{config}\n")
    write_new(folder / CARD, card.encode())
    return bool(naming), measured


def _measured(trained: Trained) -> Measured | None:
    """Return the results on the split to measure, or None if there is no dataset for it."""
    if not trained.is_run and trained.data is None:
        try:
            _ = trained.dataset
        except (UsageError, DatasetMissingError):  # unknown, or not on this machine
            return None
    data, split = base_name(trained.recipe.data), trained.default_split
    classes = trained.weights.classes
    if task_of(trained.weights) == "classification":
        found = predictions(trained, split=split)
        totals = torch.bincount(found.targets, minlength=len(classes)).tolist()
        hits = found.targets[found.predicted == found.targets]
        right = torch.bincount(hits, minlength=len(classes)).tolist()
        score = "recall"
        by_class = [
            (name, n, hit / n) for name, n, hit in zip(classes, totals, right, strict=True) if n
        ]
        metrics = evaluate(trained, split=split)
    elif task_of(trained.weights) == "multilabel":
        metrics, score = evaluate(trained, split=split), "recall"
        totals = own_targets(trained.split(split)).sum(0, dtype=torch.int64).tolist()
        by_class = [
            (name, n, metrics[f"recall_{key}"])
            for name, n, key in zip(classes, totals, class_keys(classes), strict=True)
            if n
        ]
    else:
        metrics, score = evaluate(trained, split=split), "IoU"
        require_finite(metrics, split, str(trained.path))
        by_class = [
            (name, 0, metrics[f"iou/{name}"]) for name in classes if f"iou/{name}" in metrics
        ]
    return Measured(
        data=data,
        split=split,
        count=len(trained.split(split)),
        metrics=metrics,
        score=score,
        by_class=by_class,
    )
