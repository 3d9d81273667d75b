"""Embed a network's features in two dimensions, and measure how far the plot can be trusted.

PCA: K. Pearson (1901). t-SNE: L. van der Maaten and G. Hinton, JMLR 9 (2008). UMAP: L. McInnes,
J. Healy, J. Melville (2018), arXiv:1802.03426; it needs the extra [umap] and runs only on request,
by `cnnzoo embed`. Quality of a plot: trustworthiness (J. Venna and S. Kaski, ICANN 2001), the
silhouette (P. Rousseeuw, 1987) and the accuracy of k nearest neighbours in the plot.

A two-dimensional plot always distorts distances, and t-SNE draws clusters even in noise. So every
plot is shown with these scores.
"""

from __future__ import annotations

import hashlib
import io
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnn_core.data import Batch
from cnn_core.errors import UnknownNameError, UsageError
from cnn_core.files import write_bytes

__all__ = [
    "Embedding",
    "METHODS",
    "MIN_IMAGES",
    "Placement",
    "evenly_spaced",
    "features_of",
    "neighbour_count",
    "neighbours_of",
    "place_features",
    "quality",
]

Matrix = NDArray[np.float32]
SEED = 0
NEIGHBOURS = 10  # for trustworthiness and k-NN accuracy, as usual in the literature
MIN_IMAGES = 4  # images: with fewer, t-SNE's perplexity, at most (images - 1) / 3, is below 1
QUALITY_SAMPLE = 2_000  # images, at most: the cost of measuring quality is quadratic


def _pca(x: Matrix) -> Any:
    from sklearn.decomposition import PCA

    return PCA(2, random_state=SEED).fit_transform(x)


def _tsne(x: Matrix) -> Any:
    from sklearn.manifold import TSNE

    # sklearn's default of 30 needs at least 91 images.
    near = min(30.0, (len(x) - 1) / 3)
    # Starting from PCA keeps the global arrangement better than starting at random.
    return TSNE(init="pca", perplexity=near, random_state=SEED).fit_transform(x)


def _umap(x: Matrix) -> Any:
    with warnings.catch_warnings():
        # It warns of a missing TensorFlow, and that a seed restricts it to one thread.
        warnings.simplefilter("ignore")
        try:
            from umap import UMAP
        except ImportError as error:
            raise UsageError(f"UMAP: {error}", "pip install 'cnn-viz[umap]'") from error
        return UMAP(n_neighbors=min(15, len(x) - 1), random_state=SEED).fit_transform(x)


# With each method, the most images that it places: more would take minutes.
METHODS: dict[str, tuple[Callable[[Matrix], Any], int]] = {
    "PCA": (_pca, 10_000),
    "t-SNE": (_tsne, 1_000),
    "UMAP": (_umap, 5_000),
}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Points in the plane, `xy` N x 2, the `indices` of their images, and `quality` scores."""

    indices: NDArray[np.int64]
    xy: Matrix
    quality: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Features of images, N x D, and their placement by each method, cached in a folder.

    `indices` are the images' indices in the split. `labels` determine their colours: classes, or a
    number whose name is `coloured`. `about` describes the features in a sentence. `key` identifies
    weights, data and stage, so that a cached placement of other weights is never used.
    """

    features: Tensor
    indices: Tensor
    labels: Tensor
    about: str
    folder: Path
    key: str
    coloured: str = "class"
    _placements: dict[str, Placement] = field(default_factory=dict)

    def placement(self, method: str) -> Placement:
        """Return a method's placement; of many images an evenly spaced subset is placed.

        Raises:
            UnknownNameError: the method is unknown; suggests names.
            UsageError: there are too few images, or UMAP is not installed.
        """
        if method not in METHODS:
            raise UnknownNameError("method", method, METHODS)
        if method not in self._placements:
            self._placements[method] = self._load(method) or self._compute(method)
        return self._placements[method]

    def methods_to_draw(self) -> list[str]:
        """Return the methods to draw: PCA, t-SNE, and UMAP if `cnnzoo embed` has computed it."""
        return [m for m in METHODS if m != "UMAP" or self._file(m).is_file()]

    def _compute(self, method: str) -> Placement:
        placement = place_features(self.features, self.labels, method, self.coloured == "class")
        file = io.BytesIO()
        np.savez(file, indices=placement.indices, xy=placement.xy, **_scalars(placement.quality))
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self._file(method), file.getvalue())
        return placement

    def _load(self, method: str) -> Placement | None:
        """Return the cached placement, or None if there is none or its file is damaged."""
        try:
            content = io.BytesIO(self._file(method).read_bytes())
            # The cache is in the run's folder, which may come from someone else: no pickles.
            with np.load(content, allow_pickle=False) as kept:
                quality = {
                    name: float(kept[name]) for name in kept if name not in ("indices", "xy")
                }
                return Placement(indices=kept["indices"], xy=kept["xy"], quality=quality)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
            return None

    def _file(self, method: str) -> Path:
        digest = hashlib.sha256(f"{self.key} {method} {METHODS[method][1]}".encode()).hexdigest()
        return self.folder / f"{method.lower()}-{digest[:16]}.npz"


def _scalars(quality: dict[str, float]) -> Any:
    return {name: np.float64(value) for name, value in quality.items()}


def place_features(
    features: Tensor, labels: Tensor, method: str, classes: bool = True
) -> Placement:
    """Place features, N x D, in the plane; `labels`, N, only serve to measure the quality.

    `classes` tells whether the labels are classes.

    Raises:
        UsageError: there are fewer than four images, their features are identical or not finite,
            or UMAP is not installed.
    """
    if len(features) < MIN_IMAGES:
        raise UsageError(
            f"{len(features)} images: expected at least {MIN_IMAGES} for an embedding"
        )
    embed, most = METHODS[method]
    indices = np.asarray(evenly_spaced(len(features), most))
    x = _centred(np.asarray(features[indices], dtype=np.float64))
    xy = np.asarray(embed(x), dtype=np.float32)
    sample = np.asarray(evenly_spaced(len(x), QUALITY_SAMPLE))
    truth = np.asarray(labels[indices])[sample] if classes else None
    return Placement(indices=indices, xy=xy, quality=quality(x[sample], xy[sample], truth))


def _centred(features: NDArray[np.float64]) -> Matrix:
    """Centre features and scale them to a maximum of 1; pad to at least two columns.

    Identical or non-finite features are refused: on them t-SNE crashes the whole process.
    """
    if not np.isfinite(features).all():
        raise UsageError("the features are not finite: the images cannot be placed")
    center_crop = features - features.mean(0)
    if (np.abs(center_crop) <= 1e-6 * np.abs(features)).all():  # equal up to rounding
        raise UsageError(f"{len(features)} images with identical features: they cannot be placed")
    center_crop /= np.abs(center_crop).max()
    return np.pad(center_crop, ((0, 0), (0, max(2 - features.shape[1], 0)))).astype("f4")


def quality(x: Matrix, xy: Matrix, labels: NDArray[Any] | None = None) -> dict[str, float]:
    """Return "trustworthiness" and, if labels vary, "silhouette" and "knn".

    Trustworthiness, from 0 to 1, is the extent to which neighbours in the plot are neighbours in
    the features. "knn" is the leave-one-out accuracy of k nearest neighbours in the plot. k is
    `neighbour_count`.
    """
    from sklearn.manifold import trustworthiness
    from sklearn.metrics import silhouette_score

    neighbours = neighbour_count(len(x))
    scores = {"trustworthiness": float(trustworthiness(x, xy, n_neighbors=neighbours))}
    if labels is not None and 1 < len(np.unique(labels)) < len(labels):
        scores["silhouette"] = float(silhouette_score(xy, labels))
        labels_around = labels[neighbours_of(xy, neighbours)]
        votes = [np.bincount(row).argmax() for row in labels_around]
        scores["knn"] = float(np.mean(np.array(votes) == labels))
    return scores


def neighbour_count(count: int) -> int:
    """Return k for the quality scores: 10, but less than half of the images.

    Trustworthiness is not defined for more.
    """
    return min(NEIGHBOURS, (count - 1) // 2)


def neighbours_of(x: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Return the indices of each row's nearest neighbours, N x count, the nearest first."""
    from sklearn.neighbors import NearestNeighbors

    indices = NearestNeighbors(n_neighbors=count).fit(x).kneighbors(return_distance=False)
    return np.asarray(indices, dtype=np.int64)


@torch.no_grad()
def features_of(
    model: nn.Module, stage: str, batches: Iterable[Batch], *, inside: bool = False
) -> Tensor:
    """Return the inputs of a stage, or with `inside` its outputs, as features: N x D, float32.

    Maps are averaged over their positions.

    Raises:
        UnknownNameError: the network has no such stage; suggests names.
    """
    modules = dict(model.named_modules())
    if stage not in modules:
        raise UnknownNameError("stage", stage, [name for name in modules if name])
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Sequence[Any], output: Any = None) -> None:
        features = output if inside else inputs[0]
        kept.append(
            (features.mean((2, 3)) if features.ndim == 4 else features.flatten(1)).float().cpu()
        )

    hooked = modules[stage]
    hook = hooked.register_forward_hook(keep) if inside else hooked.register_forward_pre_hook(keep)
    try:
        for batch in batches:
            model(batch.images)
    finally:
        hook.remove()
    return torch.cat(kept)


def evenly_spaced(count: int, most: int) -> Tensor:
    """Return up to `most` evenly spaced indices from 0 to `count` - 1."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()
