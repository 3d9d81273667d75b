"""What a network makes of images, in two dimensions, and how far to trust the image.

PCA: K. Pearson (1901). t-SNE: L. van der Maaten and G. Hinton, JMLR 9 (2008). UMAP: L. McInnes,
J. Healy, J. Melville (2018), arXiv:1802.03426; it is asked for with `cnnzoo embed`, and needs the
extra [umap]. How well an image does: trustworthiness (J. Venna and S. Kaski, ICANN 2001), the
silhouette (P. Rousseeuw, 1987) and the accuracy of the nearest neighbours' majority.
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
    "Embedded",
    "MIN_IMAGES",
    "METHODS",
    "Placed",
    "even",
    "features_of",
    "nearest",
    "neighbours_of",
    "placed",
    "quality",
]

Matrix = NDArray[np.float32]
SEED = 0
NEAREST = 10  # neighbours of the quality's accuracy and trustworthiness
MIN_IMAGES = 4  # images: of fewer there is no image
QUALITY_SAMPLE = 2_000  # images that the quality is of, at most: it grows with their square


def _pca(x: Matrix) -> Any:
    from sklearn.decomposition import PCA

    return PCA(2, random_state=SEED).fit_transform(x)


def _tsne(x: Matrix) -> Any:
    from sklearn.manifold import TSNE

    near = min(30.0, (len(x) - 1) / 3)
    return TSNE(init="pca", perplexity=near, random_state=SEED).fit_transform(x)


def _umap(x: Matrix) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no TensorFlow, and a seed keeps it on one thread
        try:
            from umap import UMAP
        except ImportError as error:
            raise UsageError(f"UMAP: {error}", "pip install 'cnn-viz[umap]'") from error
        return UMAP(n_neighbors=min(15, len(x) - 1), random_state=SEED).fit_transform(x)


METHODS: dict[str, tuple[Callable[[Matrix], Any], int]] = {  # and images, at most
    "PCA": (_pca, 10_000),
    "t-SNE": (_tsne, 1_000),
    "UMAP": (_umap, 5_000),
}


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where images are: `indices` among those embedded, `xy` N x 2, and the `quality` of that."""

    indices: NDArray[np.int64]
    xy: Matrix
    quality: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Features of images, N x D, and their places by method, kept in a folder.

    `indices` are the images' places in the split, `labels` what colours them: classes, or numbers
    with a name, `coloured`. `about` says in words what the features are; `key` is of the weights,
    the data and the stage.
    """

    features: Tensor
    indices: Tensor
    labels: Tensor
    about: str
    folder: Path
    key: str
    coloured: str = "class"
    _known: dict[str, Placed] = field(default_factory=dict)

    def places(self, method: str) -> Placed:
        """Return where a method places the images: of many, so many in even steps.

        Raises:
            UnknownNameError: there is no such method; suggests names.
            UsageError: there are too few images, or UMAP is not installed.
        """
        if method not in METHODS:
            raise UnknownNameError("method", method, METHODS)
        if method not in self._known:
            self._known[method] = self._read(method) or self._made(method)
        return self._known[method]

    def drawn(self) -> list[str]:
        """Return the methods to draw: PCA and t-SNE, and others that were asked for before."""
        return [m for m in METHODS if m != "UMAP" or self._file(m).is_file()]

    def _made(self, method: str) -> Placed:
        found = placed(self.features, self.labels, method, self.coloured == "class")
        file = io.BytesIO()
        np.savez(file, indices=found.indices, xy=found.xy, **_scalars(found.quality))
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(self._file(method), file.getvalue())
        return found

    def _read(self, method: str) -> Placed | None:
        """Return what was kept; None if there is nothing, or nothing that can be read."""
        try:
            content = io.BytesIO(self._file(method).read_bytes())
            with np.load(content, allow_pickle=False) as kept:
                quality = {
                    name: float(kept[name]) for name in kept if name not in ("indices", "xy")
                }
                return Placed(indices=kept["indices"], xy=kept["xy"], quality=quality)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
            return None

    def _file(self, method: str) -> Path:
        digest = hashlib.sha256(f"{self.key} {method} {METHODS[method][1]}".encode()).hexdigest()
        return self.folder / f"{method.lower()}-{digest[:16]}.npz"


def _scalars(quality: dict[str, float]) -> Any:
    return {name: np.float64(value) for name, value in quality.items()}


def placed(features: Tensor, labels: Tensor, method: str, classes: bool = True) -> Placed:
    """Place features, N x D, by a method; `labels`, N, are for the quality, if they are classes.

    Raises:
        UsageError: there are fewer than four images, their features are all the same or no
            numbers, or UMAP is not installed.
    """
    if len(features) < MIN_IMAGES:
        raise UsageError(
            f"{len(features)} images: expected at least {MIN_IMAGES} for an embedding"
        )
    make, most = METHODS[method]
    indices = np.asarray(even(len(features), most))
    x = _centred(np.asarray(features[indices], dtype=np.float64))
    xy = np.asarray(make(x), dtype=np.float32)
    judged = np.asarray(even(len(x), QUALITY_SAMPLE))
    truth = np.asarray(labels[indices])[judged] if classes else None
    return Placed(indices=indices, xy=xy, quality=quality(x[judged], xy[judged], truth))


def _centred(features: NDArray[np.float64]) -> Matrix:
    """Return features around 0, the largest 1, and two columns at least.

    Of images that are all at one place, t-SNE would end the process.
    """
    if not np.isfinite(features).all():
        raise UsageError("features that are not numbers: nothing to place the images by")
    centred = features - features.mean(0)
    if (np.abs(centred) <= 1e-6 * np.abs(features)).all():  # but for rounding
        raise UsageError(f"{len(features)} images with the same features: nothing to tell apart")
    centred /= np.abs(centred).max()
    return np.pad(centred, ((0, 0), (0, max(2 - features.shape[1], 0)))).astype("f4")


def quality(x: Matrix, xy: Matrix, labels: NDArray[Any] | None = None) -> dict[str, float]:
    """Return "trustworthiness", and of labels "silhouette" and "knn", an accuracy, if they vary.

    Trustworthiness, from 0 to 1, is about `nearest` neighbours; "knn" leaves each image out in
    turn.
    """
    from sklearn.manifold import trustworthiness
    from sklearn.metrics import silhouette_score

    near = nearest(len(x))
    found = {"trustworthiness": float(trustworthiness(x, xy, n_neighbors=near))}
    if labels is not None and 1 < len(np.unique(labels)) < len(labels):
        found["silhouette"] = float(silhouette_score(xy, labels))
        around = labels[neighbours_of(xy, near)]
        votes = [np.bincount(row).argmax() for row in around]
        found["knn"] = float(np.mean(np.array(votes) == labels))
    return found


def nearest(count: int) -> int:
    """Return how many neighbours the quality of so many images is about: 10, below a half."""
    return min(NEAREST, (count - 1) // 2)


def neighbours_of(x: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Return each row's nearest others, N x count, the nearest first."""
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=count).fit(x).kneighbors(return_distance=False)
    return np.asarray(found, dtype=np.int64)


@torch.no_grad()
def features_of(
    model: nn.Module, stage: str, batches: Iterable[Batch], *, inside: bool = False
) -> Tensor:
    """Return what goes into a stage, or with `inside` what comes out of it: N x D, float32.

    Maps are averaged over their positions.

    Raises:
        UnknownNameError: the network has no such stage; suggests names.
    """
    modules = dict(model.named_modules())
    if stage not in modules:
        raise UnknownNameError("stage", stage, [name for name in modules if name])
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Sequence[Any], output: Any = None) -> None:
        found = output if inside else inputs[0]
        kept.append((found.mean((2, 3)) if found.ndim == 4 else found.flatten(1)).float().cpu())

    hooked = modules[stage]
    hook = hooked.register_forward_hook(keep) if inside else hooked.register_forward_pre_hook(keep)
    try:
        for batch in batches:
            model(batch.images)
    finally:
        hook.remove()
    return torch.cat(kept)


def even(count: int, most: int) -> Tensor:
    """Return places from 0 to `count` - 1: all, or `most` in even steps."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()
