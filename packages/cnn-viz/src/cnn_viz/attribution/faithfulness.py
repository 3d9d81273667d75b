"""Measure how faithful a map is to the network that it explains.

Deletion and insertion: V. Petsiuk, A. Das, K. Saenko, "RISE", BMVC 2018, arXiv:1806.07421.
ROAD: Y. Rong et al., "A consistent and efficient evaluation strategy for attribution methods",
ICML 2022, arXiv:2202.00449. Energy in the mask: H. Wang et al., "Score-CAM", arXiv:1910.01279.
Pointing game: J. Zhang et al., "Top-down neural attention by excitation backprop", ECCV 2016,
arXiv:1608.00507. Randomised weights: J. Adebayo et al., "Sanity checks for saliency maps",
NeurIPS 2018, arXiv:1810.03292.

A score alone means little: deleting any pixels lowers the probability, and edges often belong to
the object. So compare each score with the scores of two baselines that do not depend on the
network: `random_map` and `edge_map`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core.errors import UnknownNameError, UsageError
from cnn_viz.network.inspection import inspection_mode

__all__ = [
    "deletion",
    "edge_map",
    "energy_in_mask",
    "insertion",
    "pointing_game",
    "random_map",
    "randomisation",
    "randomised",
    "rank_correlation",
    "road",
]

# Images are N C H W; maps are N H W, with the images' height and width; classes are N.


def random_map(images: Tensor, seed: int = 0) -> Tensor:
    """Return maps of uniform random values, N H W in [0, 1), as a baseline."""
    values = torch.rand(images[:, 0].shape, generator=torch.Generator().manual_seed(seed))
    return values.to(images.device)


def edge_map(images: Tensor) -> Tensor:
    """Return the magnitude of each image's spatial gradient, N H W, by Sobel filters."""
    grey = images.float().mean(1, keepdim=True)
    # Divide by 8, so that an intensity slope of 1 per pixel has magnitude 1.
    vertical = torch.tensor([[-1.0, -2, -1], [0, 0, 0], [1, 2, 1]], device=images.device) / 8
    kernels = torch.stack([vertical, vertical.T])[:, None]
    gradients = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels)
    return gradients.square().sum(1).sqrt()


def deletion(
    model: nn.Module, images: Tensor, heat: Tensor, classes: Tensor, *, steps: int = 16
) -> Tensor:
    """Return the class's probability while pixels are progressively set to 0: N x (steps + 1).

    The pixels with the highest map values come first. The mean of the curve is its area; lower
    is better.
    """
    return _probability_curve(
        model, start=images, end=torch.zeros_like(images), heat=heat, classes=classes, steps=steps
    )


def insertion(
    model: nn.Module, images: Tensor, heat: Tensor, classes: Tensor, *, steps: int = 16
) -> Tensor:
    """Return the class's probability while a blurred image is progressively restored.

    The curve is N x (steps + 1); the pixels with the highest map values come first; higher is
    better. The standard deviation of the Gaussian blur is an eighth of the image's shorter side,
    enough to hide the object. Starting from a black image would add artificial edges.
    """
    return _probability_curve(
        model, start=_blurred(images), end=images, heat=heat, classes=classes, steps=steps
    )


def road(
    model: nn.Module,
    images: Tensor,
    heat: Tensor,
    classes: Tensor,
    *,
    fractions: Sequence[float] = (0.2, 0.4, 0.6, 0.8),
    noise: float = 0.01,
    seed: int = 0,
) -> Tensor:
    """Return the ROAD score of each image: N, in [-1, 1].

    It is the class's probability with the lowest-ranked pixels removed, minus the probability
    with the highest-ranked pixels removed, averaged over the `fractions` of pixels to remove.
    Higher is better, and 0 is chance.

    Each removed pixel is replaced with the weighted mean of its eight neighbours (1/6 for direct
    ones, 1/12 for diagonal ones) plus noise. One linear system gives all removed pixels at once.
    Without this imputation, the outline of the removed region could itself be evidence.
    """
    rank = _ranks(heat)
    generator = torch.Generator().manual_seed(seed)
    difference = torch.zeros(len(images), device=images.device)
    # Removing the lowest-ranked pixels is the control: imputation alone lowers the probability.
    for fraction in fractions:
        highest, lowest = rank < fraction, rank >= 1 - fraction
        imputed = [_impute(images, removed, noise, generator) for removed in (lowest, highest)]
        without_lowest, without_highest = (_probability(model, x, classes) for x in imputed)
        difference += (without_lowest - without_highest) / len(fractions)
    return difference


def energy_in_mask(heat: Tensor, mask: Tensor) -> Tensor:
    """Return the fraction of each map's sum that lies inside `mask`: N; NaN for an empty map.

    `mask` is bool, N H W.
    """
    inside = (heat * mask).sum((1, 2)) / heat.sum((1, 2))
    return torch.where(heat.sum((1, 2)) > 0, inside, torch.nan)


def pointing_game(heat: Tensor, mask: Tensor) -> Tensor:
    """Return whether the maximum of each map lies inside `mask`: bool, N.

    `mask` is bool, N H W. The first of several equal maxima counts. An empty map is a miss.
    """
    flat = heat.flatten(1)
    hit = mask.flatten(1).gather(1, flat.argmax(1, keepdim=True))[:, 0]
    return hit & (flat.amax(1) > 0)


def randomised(
    model: nn.Module, stages: Sequence[str] | None = None, *, seed: int = 0
) -> nn.Module:
    """Return a copy of a model with the parameters of `stages` (default: all) shuffled.

    Each tensor is shuffled separately. Shuffling keeps the distribution of the
    trained weights, so signals neither vanish nor explode, as they could with new random weights.

    Raises:
        UnknownNameError: a stage is unknown; suggests names.
    """
    shuffled = copy.deepcopy(model)
    modules = dict(shuffled.named_modules())
    generator = torch.Generator().manual_seed(seed)
    # "" is the name of the model itself.
    for stage in [""] if stages is None else stages:
        if stage not in modules:
            raise UnknownNameError("stage", stage, [name for name in modules if name])
        for parameter in modules[stage].parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.data = parameter.data.flatten()[order].view_as(parameter)
    return shuffled


def randomisation(
    model: nn.Module,
    stages: Sequence[str],
    explain: Callable[[nn.Module], Tensor],
    *,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the rank correlation, N, of maps before and after shuffling weights, by stage.

    From the last stage to the first, the weights of the stage and of all later stages are shuffled
    ("cascading randomization"). `explain` returns the maps of a model, N H W. If the maps hardly
    change, they do not depend on the weights. Stages without parameters are skipped.

    Raises:
        UnknownNameError: a stage is unknown; suggests names.
    """
    before = explain(model)
    correlations: dict[str, Tensor] = {}
    shuffled: list[str] = []
    modules = dict(model.named_modules())
    for stage in reversed(stages):
        if stage not in modules:
            raise UnknownNameError("stage", stage, [name for name in modules if name])
        shuffled.append(stage)
        if any(True for _ in modules[stage].parameters()):
            correlations[stage] = rank_correlation(
                before, explain(randomised(model, shuffled, seed=seed))
            )
    return correlations


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's rank correlation of two maps of each image: N; NaN if one is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(x.flatten(1).double().cpu().numpy(), axis=1) for x in (first, second)]
    a, b = (x - x.mean(1, keepdims=True) for x in ranks)
    with np.errstate(invalid="ignore"):
        return torch.as_tensor((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1)))


def _ranks(heat: Tensor) -> Tensor:
    """Return the rank of each pixel in its image, in [0, 1), with 0 for the highest: N H W."""
    # Stable, so that ties (many maps are mostly 0) are ranked alike on every device.
    order = heat.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1)
    ranks: Tensor = order / order.shape[1]
    return ranks.view_as(heat)


def _probability_curve(
    model: nn.Module, *, start: Tensor, end: Tensor, heat: Tensor, classes: Tensor, steps: int
) -> Tensor:
    """Return the class's probability while pixels change from start to end, highest first."""
    if steps < 1:
        raise UsageError(f"steps = {steps}: expected a positive number")
    if heat.shape != start[:, 0].shape:
        raise UsageError(f"map of shape {list(heat.shape)}: expected {list(start[:, 0].shape)}")
    rank = _ranks(heat)[:, None]
    mixtures = [torch.where(rank < step / steps, end, start) for step in range(steps + 1)]
    return torch.stack([_probability(model, images, classes) for images in mixtures], 1)


def _probability(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    with inspection_mode(model, images):
        probabilities: Tensor = model(images.clone()).float().softmax(1)
    return probabilities.gather(1, classes[:, None])[:, 0]


def _blurred(images: Tensor) -> Tensor:
    """Blur images with a Gaussian of standard deviation one eighth of their shorter side."""
    sigma = min(images.shape[-2:]) / 8
    # Reflection padding must be narrower than the image.
    radius = min(max(round(3 * sigma), 1), min(images.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    gaussian = torch.exp(-offsets.square() / (2 * sigma * sigma))
    row = (gaussian / gaussian.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, (radius,) * 4, mode="reflect")
    # A Gaussian is separable: two passes with k weights replace one with k * k.
    horizontal = F.conv2d(padded, row, groups=images.shape[1])
    return F.conv2d(horizontal, row.mT, groups=images.shape[1])


def _impute(images: Tensor, removed: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Replace the pixels in `removed`, bool N H W, with their neighbours' mean plus noise."""
    filled = images.clone()
    for n, mask in enumerate(removed.cpu().numpy()):
        # In float64: the larger the removed region, the worse the system is conditioned.
        values = _solve_neighbour_means(images[n].double().cpu().numpy(), mask)
        noise_values = noise * torch.randn(values.shape, generator=generator)
        removed_values = removed[n].expand_as(filled[n])
        filled[n][removed_values] = (torch.as_tensor(values) + noise_values).flatten().to(filled)
    return filled


def _solve_neighbour_means(image: Any, mask: Any) -> Any:
    """Return values, C x n, for the n pixels of a mask: each is the mean of its neighbours.

    Neighbours may be masked as well, so the values solve a sparse linear system.
    """
    from scipy.sparse import csr_matrix, identity
    from scipy.sparse.linalg import spsolve

    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    unknown_index = np.full(mask.shape, -1)
    unknown_index[rows, columns] = np.arange(len(rows))
    known = np.zeros((len(rows), len(image)))
    weights, matrix_rows, matrix_columns, total = [], [], [], np.zeros(len(rows))
    for dy, dx in ((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j):
        y, x = rows + dy, columns + dx
        inside = np.flatnonzero((y >= 0) & (y < height) & (x >= 0) & (x < width))
        weight = 1 / 12 if dy and dx else 1 / 6
        total[inside] += weight  # smaller at the border, where there are fewer neighbours
        y, x = y[inside], x[inside]
        unknown = mask[y, x]
        matrix_rows.append(inside[unknown])
        matrix_columns.append(unknown_index[y[unknown], x[unknown]])
        weights.append(np.full(unknown.sum(), weight))
        known[inside[~unknown]] += weight * image[:, y[~unknown], x[~unknown]].T
    # The system is singular if no pixel is known.
    if not len(rows) or mask.all():
        return np.zeros((len(image), len(rows)))
    entries = (
        np.concatenate(weights),
        (np.concatenate(matrix_rows), np.concatenate(matrix_columns)),
    )
    matrix = csr_matrix(entries, shape=(len(rows), len(rows)))
    system = csr_matrix(identity(len(rows)).multiply(total[:, None])) - matrix
    return spsolve(system.tocsc(), known).reshape(len(rows), -1).T
