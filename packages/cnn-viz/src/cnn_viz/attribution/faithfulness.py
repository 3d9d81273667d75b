"""How good is a map: does the network hang on what it shows, and does the map on the network?

Deletion and insertion: V. Petsiuk, A. Das, K. Saenko, "RISE", BMVC 2018, arXiv:1806.07421.
ROAD: Y. Rong et al., "A consistent and efficient evaluation strategy for attribution methods",
ICML 2022, arXiv:2202.00449. Energy in the mask: H. Wang et al., "Score-CAM", arXiv:1910.01279.
Pointing game: J. Zhang et al., "Top-down neural attention by excitation backprop", ECCV 2016,
arXiv:1608.00507. Randomised weights: J. Adebayo et al., "Sanity checks for saliency maps",
NeurIPS 2018, arXiv:1810.03292.

Every number stands beside those of two maps that know nothing of the network: `random_map` and
`edge_map`.
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

# Maps are N H W, as large as the images, N C H W; classes are N.


def random_map(images: Tensor, seed: int = 0) -> Tensor:
    """Return a map that knows neither network nor image: N H W in [0, 1)."""
    drawn = torch.rand(images[:, 0].shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(images.device)


def edge_map(images: Tensor) -> Tensor:
    """Return the length of the image's gradient by Sobel's operator: N H W, 0 and above."""
    grey = images.float().mean(1, keepdim=True)
    down = torch.tensor([[-1.0, -2, -1], [0, 0, 0], [1, 2, 1]], device=images.device) / 8
    kernels = torch.stack([down, down.T])[:, None]
    both = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels)
    return both.square().sum(1).sqrt()


def deletion(
    model: nn.Module, images: Tensor, heat: Tensor, classes: Tensor, *, steps: int = 16
) -> Tensor:
    """Return the class's probability while pixels turn to 0, highest first: N x (steps + 1).

    Its mean is the area below the curve; a good map's is small.
    """
    return _revealed(model, images, torch.zeros_like(images), heat, classes, steps)


def insertion(
    model: nn.Module, images: Tensor, heat: Tensor, classes: Tensor, *, steps: int = 16
) -> Tensor:
    """Return the class's probability while a blurred image gets sharp, as `deletion` does.

    The Gaussian's deviation is an eighth of the image's shorter side. A good map's is large.
    """
    return _revealed(model, _blurred(images), images, heat, classes, steps)


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
    """Return how much more probable the class is without the lowest than the highest pixels: N.

    A mean over the shares removed, in [-1, 1]. A pixel that is removed becomes the weighted mean
    of its eight neighbours (1/6 beside, 1/12 across), all such pixels at once, plus noise: no
    edge of what was removed gives away its shape. Above 0 where a map is worth something.
    """
    rank = _ranks(heat)
    generator = torch.Generator().manual_seed(seed)
    gained = torch.zeros(len(images), device=images.device)
    for share in shares:
        highest, lowest = rank < share, rank >= 1 - share
        left = [_imputed(images, gone, noise, generator) for gone in (lowest, highest)]
        without_lowest, without_highest = (_probability(model, x, classes) for x in left)
        gained += (without_lowest - without_highest) / len(shares)
    return gained


def energy_in_mask(heat: Tensor, mask: Tensor) -> Tensor:
    """Return what part of a map's sum lies in a mask, bool N H W: N; NaN for an empty map."""
    inside = (heat * mask).sum((1, 2)) / heat.sum((1, 2))
    return torch.where(heat.sum((1, 2)) > 0, inside, torch.nan)


def pointing_game(heat: Tensor, mask: Tensor) -> Tensor:
    """Return whether a map's highest point lies in a mask, bool N H W: bool N.

    Of several that are equally high, each would have to: the first counts. An empty map misses.
    """
    flat = heat.flatten(1)
    hit = mask.flatten(1).gather(1, flat.argmax(1, keepdim=True))[:, 0]
    return hit & (flat.amax(1) > 0)


def randomised(
    model: nn.Module, stages: Sequence[str] | None = None, *, seed: int = 0
) -> nn.Module:
    """Return a copy whose weights are shuffled, tensor by tensor; of these stages only, or all.

    Shuffled weights have the size of trained ones, so that signals neither fade nor explode.

    Raises:
        UnknownNameError: there is no such stage; suggests names.
    """
    made = copy.deepcopy(model)
    modules = dict(made.named_modules())
    generator = torch.Generator().manual_seed(seed)
    for stage in [""] if stages is None else stages:
        if stage not in modules:
            raise UnknownNameError("stage", stage, [name for name in modules if name])
        for parameter in modules[stage].parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.data = parameter.data.flatten()[order].view_as(parameter)
    return made


def randomisation(
    model: nn.Module,
    stages: Sequence[str],
    explain: Callable[[nn.Module], Tensor],
    *,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return, for each stage from the last to the first, what is left of maps without its weights.

    The weights of that stage and of all after it are shuffled ("cascading"); what is left is the
    rank correlation of `explain(copy)`, N H W, with `explain(model)`: N. A method whose maps
    stay as they are does not explain the network.
    """
    before = explain(model)
    found: dict[str, Tensor] = {}
    gone: list[str] = []
    modules = dict(model.named_modules())
    for stage in reversed(stages):
        if stage not in modules:
            raise UnknownNameError("stage", stage, [name for name in modules if name])
        gone.append(stage)
        if any(True for _ in modules[stage].parameters()):
            found[stage] = rank_correlation(before, explain(randomised(model, gone, seed=seed)))
    return found


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Return Spearman's coefficient of two maps, image by image: N; NaN where one is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(x.flatten(1).double().cpu().numpy(), axis=1) for x in (one, other)]
    a, b = (x - x.mean(1, keepdims=True) for x in ranks)
    with np.errstate(invalid="ignore"):
        return torch.as_tensor((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1)))


def _ranks(heat: Tensor) -> Tensor:
    """Return each pixel's place among its image's, from the highest, 0, up to 1: N H W."""
    places = heat.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1)
    ranks: Tensor = places / places.shape[1]
    return ranks.view_as(heat)


def _revealed(
    model: nn.Module, start: Tensor, end: Tensor, heat: Tensor, classes: Tensor, steps: int
) -> Tensor:
    """Return the class's probability while pixels go from start to end, highest first."""
    if steps < 1:
        raise UsageError(f"steps = {steps}: expected a positive number")
    if heat.shape != start[:, 0].shape:
        raise UsageError(f"map of shape {list(heat.shape)}: expected {list(start[:, 0].shape)}")
    rank = _ranks(heat)[:, None]
    shown = [torch.where(rank < step / steps, end, start) for step in range(steps + 1)]
    return torch.stack([_probability(model, images, classes) for images in shown], 1)


def _probability(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    with inspection_mode(model, images):
        probabilities: Tensor = model(images.clone()).float().softmax(1)
    return probabilities.gather(1, classes[:, None])[:, 0]


def _blurred(images: Tensor) -> Tensor:
    """Return images under a Gaussian whose deviation is an eighth of their shorter side."""
    sigma = min(images.shape[-2:]) / 8
    reach = min(max(round(3 * sigma), 1), min(images.shape[-2:]) - 1)
    places = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    bell = torch.exp(-places.square() / (2 * sigma * sigma))
    row = (bell / bell.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    across = F.conv2d(padded, row, groups=images.shape[1])
    return F.conv2d(across, row.mT, groups=images.shape[1])


def _imputed(images: Tensor, gone: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Return images whose pixels in `gone`, bool N H W, come from their neighbours."""
    filled = images.clone()
    for number, mask in enumerate(gone.cpu().numpy()):
        values = _solved(images[number].double().cpu().numpy(), mask)
        drawn = noise * torch.randn(values.shape, generator=generator)
        places = gone[number].expand_as(filled[number])
        filled[number][places] = (torch.as_tensor(values) + drawn).flatten().to(filled)
    return filled


def _solved(image: Any, mask: Any) -> Any:
    """Return C x n values for the n pixels of a mask, each its neighbours' weighted mean."""
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
        total[inside] += weight  # at the border there are fewer, which then count for more
        y, x = y[inside], x[inside]
        unknown = mask[y, x]
        left.append(inside[unknown])
        right.append(number[y[unknown], x[unknown]])
        weights.append(np.full(unknown.sum(), weight))
        given[inside[~unknown]] += weight * image[:, y[~unknown], x[~unknown]].T
    if not len(rows) or mask.all():
        return np.zeros((len(image), len(rows)))
    entries = np.concatenate(weights), (np.concatenate(left), np.concatenate(right))
    matrix = csr_matrix(entries, shape=(len(rows), len(rows)))
    system = csr_matrix(identity(len(rows)).multiply(total[:, None])) - matrix
    return spsolve(system.tocsc(), given).reshape(len(rows), -1).T
