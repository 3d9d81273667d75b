"""How uncertain a network is of each pixel: dropout left on, and what its passes disagree about.

Y. Gal and Z. Ghahramani, "Dropout as a Bayesian approximation", ICML 2016, arXiv:1506.02142: the
mean of T passes with dropout is the prediction, its entropy the uncertainty. N. Houlsby et al.,
2011, arXiv:1112.5745: what the passes disagree about is the mutual information of prediction and
weights, the entropy of the mean less the mean entropy; what is left, the pixel itself leaves open.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cnn_core.errors import UsageError
from cnn_core.tasks.segmentation import two_sided
from cnn_viz.network.inspection import eval_mode, preserved_random_state

__all__ = ["Uncertainty", "mc_dropout"]

NATS = 0.6931471805599453  # in a bit
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """Of each pixel: the mean probabilities, N classes h w, their entropy, and what is expected.

    `entropy` of the mean and `expected`, the mean of the passes' entropies, are in bits, N h w.
    """

    probabilities: Tensor
    entropy: Tensor
    expected: Tensor

    @property
    def mutual(self) -> Tensor:
        """The mutual information of prediction and weights in bits, N h w, from 0."""
        return (self.entropy - self.expected).clamp(min=0)


@torch.no_grad()
def mc_dropout(model: nn.Module, images: Tensor, passes: int = 20, seed: int = 0) -> Uncertainty:
    """Look at images, N C H W, `passes` times with dropout on and all else in eval mode.

    Nothing is left behind: modes and the random state are as before. Memory is that of one pass.

    Raises:
        UsageError: the network has no dropout that drops anything.
    """
    dropping = [m for m in model.modules() if isinstance(m, DROPOUT) and m.p > 0]
    if not dropping:
        raise UsageError(
            f"{type(model).__name__} has no dropout: its passes would all be the same",
            "uncertainty by dropout is for networks that were trained with it",
        )
    mean, expected = torch.zeros(()), torch.zeros(())
    with preserved_random_state(images), eval_mode(model, but=dropping):
        torch.manual_seed(seed)
        for _ in range(passes):
            p = two_sided(model(images).float()).softmax(1)
            mean = mean.to(p.device) + p / passes
            expected = expected.to(p.device) + _entropy(p) / passes
    return Uncertainty(probabilities=mean, entropy=_entropy(mean), expected=expected)


def _entropy(p: Tensor) -> Tensor:
    found: Tensor = torch.special.entr(p).sum(1) / NATS
    return found
