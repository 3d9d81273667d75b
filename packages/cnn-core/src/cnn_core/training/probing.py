"""Measure features: k nearest neighbours and a linear probe, chosen on validation images."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnn_core.data.dataset import Dataset, load_dataset
from cnn_core.errors import UsageError, ZooError
from cnn_core.tasks.intervals import wilson
from cnn_core.text import counted, printable
from cnn_core.training.feature_extraction import Extraction, OnError, Part, Progress
from cnn_core.training.trained import Source, Trained

__all__ = ["ProbeResult", "ProbeScore", "probe"]

NEIGHBOURS = (1, 3, 5, 11, 21)  # odd, against ties
INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of scikit-learn
VALIDATION = 0.2  # of the training images of each class, if the dataset has no split for it
MAX_ITERATIONS = 1_000

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]
Labelled = tuple[Vectors, Labels]
log: logging.Logger = logging.getLogger("cnn_core")


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """The test accuracy of one classifier of features, as a fraction.

    `setting` is the value that had the best accuracy on the validation images, `validation`; it is
    NaN if there were none. `interval` is the 95 % interval of the accuracy (Wilson).
    """

    method: str
    setting: str
    validation: float
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The scores of a probe; `counts` has the images of each class in each split, by name."""

    scores: tuple[ProbeScore, ...]
    counts: Mapping[str, Mapping[str, int]]
    stage: str
    side: str


def probe(
    source: Trained | Source,
    data: str,
    *,
    stage: str | None = None,
    shots: int = 0,
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
    on_error: OnError | None = None,
    progress: Progress | None = None,
) -> ProbeResult:
    """Classify a dataset by the features of a trained network, which is not trained itself.

    Two classifiers are fitted to the features of the training split: k nearest neighbours by
    cosine similarity, and multinomial logistic regression on standardised features. k and the
    penalty are chosen on the split "val", or on a fifth of the training images, which then join
    the others again. With `shots`, only this many training images of each class are used, chosen
    by `seed`. `on_error` is called with the error of each unreadable file, which is left out.

    Raises:
        UsageError: scikit-learn is not installed, the dataset is not for classification, or a
            class has fewer than `shots` images.
        CorruptError: a file is not a readable image, and there is no `on_error`.
    """
    _require_sklearn()
    extraction = Extraction(Trained.of(source, device=device), stage)
    dataset = load_dataset(data, data_dir=data_dir)
    if dataset.spec.task != "classification":
        raise UsageError(f"'{printable(data)}' is for {dataset.spec.task}: probes need classes")
    parts = _parts(dataset, shots, seed)
    found = extraction.collect(parts, on_error or _raise, progress)
    vectors, targets = found.features.numpy(), found.targets.numpy()
    rows = {part.name: np.array(found.splits) == part.name for part in parts}
    labelled = {name: (vectors[chosen], targets[chosen]) for name, chosen in rows.items()}
    for name, (_, labels) in labelled.items():
        _require_classes(data, name, labels, at_least=1 if name == "test" else 2)
    fit, held = _divided(labelled, seed)
    scores = [_score(method, fit, held, labelled["train"], labelled["test"]) for method in METHODS]
    labels_of = {"train": labelled["train"][1], "validation": held[1], "test": labelled["test"][1]}
    return ProbeResult(
        scores=tuple(scores),
        counts={name: _counts(y, dataset.spec.classes) for name, y in labels_of.items()},
        stage=extraction.stage,
        side="outputs" if extraction.use_outputs else "inputs",
    )


def _require_sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        message = "scikit-learn is not installed"
        raise UsageError(message, 'pip install "cnn-core[probe]"') from error


def _raise(error: ZooError) -> None:
    raise error


def _parts(dataset: Dataset, shots: int, seed: int) -> list[Part]:
    """Return the splits to use, train with at most `shots` images of each class."""
    splits = {"train": dataset.split("train"), "test": dataset.split("test")}
    if shots:
        splits["train"] = splits["train"].subset(_few(dataset, shots, seed))
    elif "val" in dataset.splits:  # with shots, it would add to the few labels
        splits["val"] = dataset.splits["val"]
    classes = dataset.spec.classes
    return [Part(name=name, images=split, classes=classes) for name, split in splits.items()]


def _few(dataset: Dataset, shots: int, seed: int) -> Tensor:
    """Return the indices of `shots` training images of each class, ascending."""
    targets, generator = dataset.split("train").targets, torch.Generator().manual_seed(seed)
    assert isinstance(targets, Tensor)  # not masks: the task is classification
    chosen = []
    for number, name in enumerate(dataset.spec.classes):
        members = (targets == number).nonzero().squeeze(1)
        if len(members) < shots:
            raise UsageError(
                f"shots = {shots}: class '{printable(name)}' has "
                f"{counted(len(members), 'training image')}"
            )
        chosen.append(members[torch.randperm(len(members), generator=generator)[:shots]])
    return torch.cat(chosen).sort().values


def _require_classes(data: str, split: str, labels: Labels, at_least: int) -> None:
    found = len(np.unique(labels))
    if found < at_least:
        raise UsageError(
            f"'{printable(data)}': readable images of {counted(found, 'class', 'classes')} in "
            f"split '{split}', expected {at_least} or more"
        )


def _divided(labelled: Mapping[str, Labelled], seed: int) -> tuple[Labelled, Labelled]:
    """Return the images to fit to and those to choose settings with."""
    vectors, labels = labelled["train"]
    if "val" in labelled:
        return (vectors, labels), labelled["val"]
    held, generator = np.zeros(len(labels), dtype=bool), np.random.default_rng(seed)
    for number in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == number))
        held[members[: round(VALIDATION * len(members))]] = True
    return (vectors[~held], labels[~held]), (vectors[held], labels[held])


def _score(
    method: Method, fit: Labelled, held: Labelled, whole: Labelled, test: Labelled
) -> ProbeScore:
    """Choose a method's setting, fit it to all training images, and test it."""
    settings = [s for s in method.settings if method.possible(s, len(fit[1]))]
    setting, validation = method.default, math.nan
    if len(held[1]):
        correct = [_hits(method, s, fit, held) for s in settings]
        # Of equals the first: the fewest neighbours, the highest penalty.
        setting = settings[correct.index(max(correct))]
        validation = max(correct) / len(held[1])
    hits, n = _hits(method, setting, whole, test), len(test[1])
    return ProbeScore(
        method=method.name,
        setting=f"{method.symbol} = {setting:g}",
        validation=validation,
        accuracy=hits / n,
        interval=wilson(hits, n),
    )


def _hits(method: Method, setting: float, fit: Labelled, queries: Labelled) -> int:
    return int((method.classify(setting, fit, queries[0]) == queries[1]).sum())


def _nearest(k: float, fit: Labelled, queries: Vectors) -> Labels:
    """Return the most frequent class among the k most similar images, for each query."""
    from sklearn.neighbors import KNeighborsClassifier

    found = KNeighborsClassifier(int(k), metric="cosine").fit(*fit).predict(queries)
    return np.asarray(found, dtype=np.int64)


def _linear(c: float, fit: Labelled, queries: Vectors) -> Labels:
    """Return the classes that logistic regression predicts."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(fit[0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        classifier = LogisticRegression(C=c, max_iter=MAX_ITERATIONS)
        classifier.fit(scaler.transform(fit[0]), fit[1])
    if caught:
        log.warning("linear probe, C = %g: not converged after %d steps", c, MAX_ITERATIONS)
    return np.asarray(classifier.predict(scaler.transform(queries)), dtype=np.int64)


def _counts(labels: Labels, classes: tuple[str, ...]) -> dict[str, int]:
    counted = Counter(labels.tolist())
    return {name: counted[number] for number, name in enumerate(classes)}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A classifier of features, with the settings to choose from.

    `default` is used without validation images. `classify(setting, fit, queries)` returns classes.
    """

    name: str
    symbol: str
    settings: tuple[float, ...]
    default: float
    classify: Callable[[float, Labelled, Vectors], Labels]
    counts_images: bool = False

    def possible(self, setting: float, n: int) -> bool:
        """Return whether the setting can be used with `n` images."""
        return not self.counts_images or setting <= n


METHODS = (
    Method(
        name="k-NN",
        symbol="k",
        settings=NEIGHBOURS,
        default=1,
        classify=_nearest,
        counts_images=True,
    ),
    Method(
        name="linear probe",
        symbol="C",
        settings=INVERSE_PENALTIES,
        default=1.0,
        classify=_linear,
    ),
)
