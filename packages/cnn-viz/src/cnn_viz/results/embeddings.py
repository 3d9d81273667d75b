"""Embed a network's features in two dimensions, and measure how reliable the plot is.

PCA: K. Pearson (1901). t-SNE: L. van der Maaten and G. Hinton, JMLR 9 (2008). UMAP: L. McInnes,
J. Healy, J. Melville (2018), arXiv:1802.03426; it needs the extra [umap] and runs only on request,
with `cnnzoo embed`. Quality scores: trustworthiness (J. Venna and S. Kaski, ICANN 2001), the
silhouette (P. Rousseeuw, 1987) and the accuracy of k nearest neighbours in the plot.

A two-dimensional plot always distorts distances, and t-SNE draws clusters even in noise. So these
scores accompany every plot.
"""

from __future__ import annotations

import hashlib
import io
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnn_core.errors import UnknownNameError, UsageError
from cnn_core.files import write_bytes
from cnn_core.runs.destinations import make_folder

__all__ = [
    "Embedding",
    "METHODS",
    "MIN_IMAGES",
    "Placement",
    "evenly_spaced",
    "neighbour_count",
    "neighbours_of",
    "place_features",
    "quality",
]

Matrix = NDArray[np.float32]
SEED = 0
NEIGHBOURS = 10  # k for trustworthiness and k-NN accuracy, as usual in the literature
MIN_IMAGES = 4  # with fewer, the perplexity of t-SNE, at most (images - 1) / 3, would be below 1
QUALITY_SAMPLE = 2_000  # at most this many images: the cost of the scores is quadratic


def _pca(x: Matrix) -> Any:
    from sklearn.decomposition import PCA

    return PCA(2, random_state=SEED).fit_transform(x)


def _tsne(x: Matrix) -> Any:
    from sklearn.manifold import TSNE

    # The default perplexity of 30 needs at least 91 images.
    perplexity = min(30.0, (len(x) - 1) / 3)
    # Initialisation with PCA preserves global structure better than random initialisation.
    return TSNE(init="pca", perplexity=perplexity, random_state=SEED).fit_transform(x)


def _umap(x: Matrix) -> Any:
    with warnings.catch_warnings():
        # UMAP warns that TensorFlow is missing, and that a seed restricts it to one thread.
        warnings.simplefilter("ignore")
        try:
            from umap import UMAP
        except ImportError as error:
            raise UsageError(f"UMAP: {error}", "pip install 'cnn-viz[umap]'") from error
        return UMAP(n_neighbors=min(15, len(x) - 1), random_state=SEED).fit_transform(x)


# Each method with the maximum number of images: more would take minutes.
METHODS: dict[str, tuple[Callable[[Matrix], Any], int]] = {
    "PCA": (_pca, 10_000),
    "t-SNE": (_tsne, 1_000),
    "UMAP": (_umap, 5_000),
}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Points in the plane, `xy` N x 2, with the `indices` of their images and `quality` scores."""

    indices: NDArray[np.int64]
    xy: Matrix
    quality: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Features of images, N x D, and their placement by each method, cached in a directory.

    `indices` are the indices of the images in the split. `labels` determine the colours of the
    points; `label_name` is "class", or the name of a metric such as "mIoU". `description` is one
    sentence about the features. `key` identifies the weights, the data and the stage, so that
    placements cached for other weights are never used.
    """

    features: Tensor
    indices: Tensor
    labels: Tensor
    description: str
    folder: Path
    key: str
    label_name: str = "class"
    _placements: dict[str, Placement] = field(default_factory=dict)

    def placement(self, method: str) -> Placement:
        """Return the placement by a method, of an evenly spaced subset if there are many images.

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
        placement = place_features(self.features, self.labels, method, self.label_name == "class")
        file = io.BytesIO()
        np.savez(file, indices=placement.indices, xy=placement.xy, **_scalars(placement.quality))
        make_folder(self.folder)
        write_bytes(self._file(method), file.getvalue())
        return placement

    def _load(self, method: str) -> Placement | None:
        """Return the cached placement, or None if its file is missing or damaged."""
        try:
            content = io.BytesIO(self._file(method).read_bytes())
            # The run directory may come from someone else: never unpickle.
            with np.load(content, allow_pickle=False) as archive:
                quality = {
                    name: float(archive[name]) for name in archive if name not in ("indices", "xy")
                }
                return Placement(indices=archive["indices"], xy=archive["xy"], quality=quality)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
            return None

    def _file(self, method: str) -> Path:
        digest = hashlib.sha256(f"{self.key} {method} {METHODS[method][1]}".encode()).hexdigest()
        return self.folder / f"{method.lower()}-{digest[:16]}.npz"


def _scalars(quality: dict[str, float]) -> Any:
    return {name: np.float64(value) for name, value in quality.items()}


def place_features(
    features: Tensor, labels: Tensor, method: str, labels_are_classes: bool = True
) -> Placement:
    """Place features, N x D, in the plane.

    `labels`, N, are used only for the quality scores, and only if `labels_are_classes`.

    Raises:
        UsageError: there are fewer than four images, their features are identical or not finite,
            or UMAP is not installed.
    """
    if len(features) < MIN_IMAGES:
        raise UsageError(
            f"{len(features)} images: expected at least {MIN_IMAGES} for an embedding"
        )
    embed, limit = METHODS[method]
    indices = np.asarray(evenly_spaced(len(features), limit))
    x = _centred(np.asarray(features[indices], dtype=np.float64))
    xy = np.asarray(embed(x), dtype=np.float32)
    sample = np.asarray(evenly_spaced(len(x), QUALITY_SAMPLE))
    truth = np.asarray(labels[indices])[sample] if labels_are_classes else None
    return Placement(indices=indices, xy=xy, quality=quality(x[sample], xy[sample], truth))


def _centred(features: NDArray[np.float64]) -> Matrix:
    """Centre features, scale them to a maximum of 1, and pad them to at least two columns.

    Raise UsageError for identical or non-finite features, on which t-SNE crashes the process.
    """
    if not np.isfinite(features).all():
        raise UsageError("the features are not finite, so they cannot be embedded")
    centred = features - features.mean(0)
    if (np.abs(centred) <= 1e-6 * np.abs(features)).all():  # equal up to rounding
        raise UsageError(
            f"{len(features)} images have identical features, which cannot be embedded"
        )
    centred /= np.abs(centred).max()
    return np.pad(centred, ((0, 0), (0, max(2 - features.shape[1], 0)))).astype("f4")


def quality(x: Matrix, xy: Matrix, labels: NDArray[Any] | None = None) -> dict[str, float]:
    """Return the quality scores of points, `xy`, by name: "trustworthiness", "silhouette", "knn".

    Trustworthiness, from 0 to 1, measures how far neighbours in the plot are also neighbours in
    the features, `x`. "knn" is the leave-one-out accuracy of k nearest neighbours in the plot,
    with k from `neighbour_count`. Only trustworthiness is defined without labels, or if all
    labels are equal or all are different.
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
    """Return k for the quality scores: 10, but always less than half the number of images.

    Trustworthiness is not defined for a larger k.
    """
    return min(NEIGHBOURS, (count - 1) // 2)


def neighbours_of(x: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Return the indices of the nearest neighbours of each row, N x count, nearest first."""
    from sklearn.neighbors import NearestNeighbors

    indices = NearestNeighbors(n_neighbors=count).fit(x).kneighbors(return_distance=False)
    return np.asarray(indices, dtype=np.int64)


def evenly_spaced(count: int, limit: int) -> Tensor:
    """Return up to `limit` evenly spaced indices from 0 to `count` - 1."""
    return torch.linspace(0, count - 1, min(count, limit)).round().long()
