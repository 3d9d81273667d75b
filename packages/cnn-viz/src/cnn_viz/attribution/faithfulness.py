"""Measure how faithful a map is to the network that it explains.

Deletion and insertion: V. Petsiuk, A. Das, K. Saenko, "RISE", BMVC 2018, arXiv:1806.07421.
ROAD: Y. Rong et al., "A consistent and efficient evaluation strategy for attribution methods",
ICML 2022, arXiv:2202.00449. Energy in the mask: H. Wang et al., "Score-CAM", arXiv:1910.01279.
Pointing game: J. Zhang et al., "Top-down neural attention by excitation backprop", ECCV 2016,
arXiv:1608.00507. Randomised weights: J. Adebayo et al., "Sanity checks for saliency maps",
NeurIPS 2018, arXiv:1810.03292.

A score means little alone: deleting any pixels lowers the probability, and the object often lies
on edges. So compare each score with those of two baselines that do not depend on the network:
`random_map` and `edge_map`.
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

# Images are N C H W, maps N H W of the same height and width, classes N.


def random_map(images: Tensor, seed: int = 0) -> Tensor:
    """Return uniform random values, independent of network and image: N H W in [0, 1)."""
    values = torch.rand(images[:, 0].shape, generator=torch.Generator().manual_seed(seed))
    return values.to(images.device)


def edge_map(images: Tensor) -> Tensor:
    """Return the magnitude of the image's gradient, by Sobel filters: N H W, at least 0."""
    grey = images.float().mean(1, keepdim=True)
    # Over 8, the sum of Sobel's weights, so that a slope of 1 per pixel has magnitude 1.
    down = torch.tensor([[-1.0, -2, -1], [0, 0, 0], [1, 2, 1]], device=images.device) / 8
    kernels = torch.stack([down, down.T])[:, None]
    gradients = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels)
    return gradients.square().sum(1).sqrt()


def deletion(
    model: nn.Module, images: Tensor, heat: Tensor, classes: Tensor, *, steps: int = 16
) -> Tensor:
    """Return the class's probability as pixels are set to 0, highest first: N x (steps + 1).

    The mean is the area under the curve; lower is better.
    """
    return _probability_curve(
        model, start=images, end=torch.zeros_like(images), heat=heat, classes=classes, steps=steps
    )


def insertion(
    model: nn.Module, images: Tensor, heat: Tensor, classes: Tensor, *, steps: int = 16
) -> Tensor:
    """Return the class's probability as pixels of a blurred image are restored, highest first.

    N x (steps + 1); higher is better. The Gaussian's standard deviation is an eighth of the
    image's shorter side: enough to hide the object. A black start would add edges of its own.
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
    shares: Sequence[float] = (0.2, 0.4, 0.6, 0.8),
    noise: float = 0.01,
    seed: int = 0,
) -> Tensor:
    """Return the class's probability without the lowest pixels minus that without the highest: N.

    In [-1, 1], averaged over the fractions removed (`shares`); higher is better, and 0 is chance.
    Each removed pixel is replaced by the weighted mean of its eight neighbours (1/6 for direct
    ones, 1/12 for diagonal ones), solved for all removed pixels at once, plus noise. Without
    this imputation the outline of the removed region would itself be evidence for the class.
    """
    rank = _ranks(heat)
    generator = torch.Generator().manual_seed(seed)
    difference = torch.zeros(len(images), device=images.device)
    # Removing the lowest pixels is the control: imputation alone lowers the probability.
    for share in shares:
        highest, lowest = rank < share, rank >= 1 - share
        imputed = [_impute(images, removed, noise, generator) for removed in (lowest, highest)]
        without_lowest, without_highest = (_probability(model, x, classes) for x in imputed)
        difference += (without_lowest - without_highest) / len(shares)
    return difference


def energy_in_mask(heat: Tensor, mask: Tensor) -> Tensor:
    """Return the fraction of a map's sum inside a mask, bool N H W: N; NaN for an empty map."""
    inside = (heat * mask).sum((1, 2)) / heat.sum((1, 2))
    return torch.where(heat.sum((1, 2)) > 0, inside, torch.nan)


def pointing_game(heat: Tensor, mask: Tensor) -> Tensor:
    """Return whether a map's maximum lies inside a mask, bool N H W: bool N.

    Of several equal maxima the first counts. An empty map is a miss.
    """
    flat = heat.flatten(1)
    hit = mask.flatten(1).gather(1, flat.argmax(1, keepdim=True))[:, 0]
    return hit & (flat.amax(1) > 0)


def randomised(
    model: nn.Module, stages: Sequence[str] | None = None, *, seed: int = 0
) -> nn.Module:
    """Return a copy with the weights of these stages, or all, shuffled within each tensor.

    Shuffling keeps the distribution of trained weights, so signals neither vanish nor explode, as
    they could with fresh random weights.

    Raises:
        UnknownNameError: the stage is unknown; suggests names.
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
    """Return rank correlations of maps before and after shuffling weights, by stage: N each.

    From the last stage to the first, the weights of that stage and of all later ones are shuffled
    ("cascading randomization"), and `explain(copy)`, N H W, is compared with `explain(model)`. If
    the maps hardly change, the method does not explain the network.
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
    """Return Spearman's rank correlation of two maps for each image: N; NaN if one is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(x.flatten(1).double().cpu().numpy(), axis=1) for x in (first, second)]
    a, b = (x - x.mean(1, keepdims=True) for x in ranks)
    with np.errstate(invalid="ignore"):
        return torch.as_tensor((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1)))


def _ranks(heat: Tensor) -> Tensor:
    """Return each pixel's rank within its image, from 0, the highest value, to below 1: N H W."""
    # Stable, so that ties, as in a map that is mostly 0, are ranked alike on every device.
    places = heat.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1)
    ranks: Tensor = places / places.shape[1]
    return ranks.view_as(heat)


def _probability_curve(
    model: nn.Module, *, start: Tensor, end: Tensor, heat: Tensor, classes: Tensor, steps: int
) -> Tensor:
    """Return the class's probability as pixels change from start to end, highest first."""
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
    # Reflection padding has to be narrower than the image.
    reach = min(max(round(3 * sigma), 1), min(images.shape[-2:]) - 1)
    places = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    bell = torch.exp(-places.square() / (2 * sigma * sigma))
    row = (bell / bell.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    # A Gaussian is separable: two passes of k weights instead of one of k * k.
    across = F.conv2d(padded, row, groups=images.shape[1])
    return F.conv2d(across, row.mT, groups=images.shape[1])


def _impute(images: Tensor, removed: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Replace the pixels in `removed`, bool N H W, by means of their neighbours plus noise."""
    filled = images.clone()
    for number, mask in enumerate(removed.cpu().numpy()):
        # In float64: the larger the removed region, the worse the system is conditioned.
        values = _solve_neighbour_means(images[number].double().cpu().numpy(), mask)
        noise_values = noise * torch.randn(values.shape, generator=generator)
        places = removed[number].expand_as(filled[number])
        filled[number][places] = (torch.as_tensor(values) + noise_values).flatten().to(filled)
    return filled


def _solve_neighbour_means(image: Any, mask: Any) -> Any:
    """Return values, C x n, for the n pixels of a mask: weighted means of their neighbours.

    Neighbours may be masked too, so the values solve a sparse linear system.
    """
    from scipy.sparse import csr_matrix, identity
    from scipy.sparse.linalg import spsolve

    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    number = np.full(mask.shape, -1)
    number[rows, columns] = np.arange(len(rows))
    given = np.zeros((len(rows), len(image)))
    weights, left, right, total = [], [], [], np.zeros(len(rows))
    for down, across in ((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j):
        y, x = rows + down, columns + across
        inside = np.flatnonzero((y >= 0) & (y < height) & (x >= 0) & (x < width))
        weight = 1 / 12 if down and across else 1 / 6
        total[inside] += weight  # smaller at the border, where neighbours are missing
        y, x = y[inside], x[inside]
        unknown = mask[y, x]
        left.append(inside[unknown])
        right.append(number[y[unknown], x[unknown]])
        weights.append(np.full(unknown.sum(), weight))
        given[inside[~unknown]] += weight * image[:, y[~unknown], x[~unknown]].T
    # Without a single known pixel the system is singular.
    if not len(rows) or mask.all():
        return np.zeros((len(image), len(rows)))
    entries = np.concatenate(weights), (np.concatenate(left), np.concatenate(right))
    matrix = csr_matrix(entries, shape=(len(rows), len(rows)))
    system = csr_matrix(identity(len(rows)).multiply(total[:, None])) - matrix
    return spsolve(system.tocsc(), given).reshape(len(rows), -1).T
