"""Monte Carlo dropout: the uncertainty of each pixel from several passes with dropout active.

Y. Gal and Z. Ghahramani, "Dropout as a Bayesian approximation", ICML 2016, arXiv:1506.02142: the
mean of T passes with dropout is the prediction, and its entropy the total uncertainty. N. Houlsby
et al., 2011, arXiv:1112.5745: the disagreement of the passes is the mutual information of
prediction and weights, the entropy of the mean minus the mean entropy. It is the part that more
data could reduce; the mean entropy is the part that is inherent in the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cnn_core.errors import UsageError
from cnn_core.tasks.segmentation import two_class_logits
from cnn_viz.network.inspection import eval_mode, preserved_random_state

__all__ = ["Uncertainty", "mc_dropout"]

NATS = 0.6931471805599453  # in a bit
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """Mean probabilities, N classes h w, and uncertainties of each pixel in bits, N h w.

    `entropy` is the entropy of the mean, `expected` the mean of the passes' entropies.
    """

    probabilities: Tensor
    entropy: Tensor
    expected: Tensor

    @property
    def mutual(self) -> Tensor:
        """The mutual information of prediction and weights in bits, N h w, at least 0."""
        return (self.entropy - self.expected).clamp(min=0)


@torch.no_grad()
def mc_dropout(model: nn.Module, images: Tensor, passes: int = 20, seed: int = 0) -> Uncertainty:
    """Run images, N C H W, `passes` times with dropout active and all other layers in eval mode.

    Training flags and the random state are restored. Sums are updated pass by pass, so memory
    does not grow with `passes`.

    Raises:
        UsageError: the network has no dropout layer with p > 0.
    """
    dropouts = [m for m in model.modules() if isinstance(m, DROPOUT) and m.p > 0]
    if not dropouts:
        raise UsageError(
            f"{type(model).__name__} has no dropout: all passes would be the same",
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
    entropy: Tensor = torch.special.entr(p).sum(1) / NATS
    return entropy
