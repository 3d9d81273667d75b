"""Monte Carlo dropout: estimate the uncertainty of each pixel by passes with dropout active.

Y. Gal and Z. Ghahramani, "Dropout as a Bayesian approximation", ICML 2016, arXiv:1506.02142: the
mean of T passes with dropout is the prediction, and its entropy is the total uncertainty.
N. Houlsby et al., 2011, arXiv:1112.5745: the entropy of the mean minus the mean entropy of the
passes is the mutual information of the prediction and the weights. It measures how much the passes
disagree, and more data could reduce it. The mean entropy is the part inherent in the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cnn_core.errors import UsageError
from cnn_core.tasks.segmentation import two_class_logits
from cnn_viz.network.inspection import eval_mode, preserved_random_state

__all__ = ["Uncertainty", "mc_dropout"]

NATS_PER_BIT = 0.6931471805599453  # ln 2
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """Mean probabilities, N x classes x h x w, and the uncertainty of each pixel, N h w, in bits.

    `entropy` is the entropy of the mean probabilities; `expected` is the mean entropy of the
    passes.
    """

    probabilities: Tensor
    entropy: Tensor
    expected: Tensor

    @property
    def mutual(self) -> Tensor:
        """The mutual information of the prediction and the weights: N h w, in bits, at least 0."""
        return (self.entropy - self.expected).clamp(min=0)


@torch.no_grad()
def mc_dropout(model: nn.Module, images: Tensor, passes: int = 20, seed: int = 0) -> Uncertainty:
    """Return the uncertainty of images, N C H W, from `passes` passes with dropout active.

    All other layers are in eval mode. Training flags and the random state are restored. Means are
    updated after each pass, so memory does not grow with `passes`.

    Raises:
        UsageError: the network has no dropout layer with p > 0.
    """
    dropouts = [m for m in model.modules() if isinstance(m, DROPOUT) and m.p > 0]
    if not dropouts:
        raise UsageError(
            f"{type(model).__name__} has no dropout: all passes would be equal",
            "use a network that was trained with dropout",
        )
    mean, expected = torch.zeros(()), torch.zeros(())
    with preserved_random_state(images), eval_mode(model, except_for=dropouts):
        torch.manual_seed(seed)
        for _ in range(passes):
            p = two_class_logits(model(images).float()).softmax(1)
            mean = mean.to(p.device) + p / passes
            expected = expected.to(p.device) + _entropy(p) / passes
    return Uncertainty(probabilities=mean, entropy=_entropy(mean), expected=expected)


def _entropy(p: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(p).sum(1) / NATS_PER_BIT
    return entropy
