"""What classifiers have in common, and how to look into any network by its stages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from cnn_core.errors import UnknownNameError, UsageError

__all__ = ["Classifier", "features", "require_size"]


def require_size(x: Tensor, smallest: int, *, exactly: bool = False) -> None:
    """Hold images, N C H W, to the size that a network needs, in pixels.

    Raises:
        UsageError: they are smaller, or not exactly that large; says both sizes.
    """
    height, width = x.shape[-2:]
    fits = height == width == smallest if exactly else min(height, width) >= smallest
    if not fits:
        wanted = f"{smallest} x {smallest}" if exactly else f"at least {smallest} x {smallest}"
        raise UsageError(f"images are {height} x {width}, this network needs {wanted}")


class Classifier(nn.Module):
    """A network that ends in a linear layer over classes: features first, then a head.

    A subclass writes `forward_features` (N C H W -> what the head takes) and `forward_head`
    (-> N classes), and names its last linear layer in `classifier`.
    """

    classifier: ClassVar[str] = "fc"

    def forward_features(self, x: Tensor) -> Tensor:
        """Return what the network sees in images, N C H W."""
        raise NotImplementedError

    def forward_head(self, x: Tensor) -> Tensor:
        """Return logits, N classes, for what `forward_features` returned."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, N classes, for images, N C H W."""
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new, untrained last layer in place, for another number of classes."""
        parent, _, name = self.classifier.rpartition(".")
        old = self.get_submodule(self.classifier)
        assert isinstance(old, nn.Linear | nn.Conv2d)
        new: nn.Module
        if isinstance(old, nn.Linear):
            new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
        else:  # a 1x1 convolution over pooled maps is the same thing
            new = nn.Conv2d(old.in_channels, num_classes, 1, bias=old.bias is not None)
        setattr(self.get_submodule(parent), name, new.to(old.weight.device, old.weight.dtype))


def features(model: nn.Module, x: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
    """Run a network on images, N C H W, and return the outputs of the named stages.

    Raises:
        UnknownNameError: the network has no such stage; suggests names.
    """
    modules = dict(model.named_modules())
    for stage in stages:
        if stage not in modules:
            raise UnknownNameError("stage", stage, modules)
    found: dict[str, Tensor] = {}
    handles = [modules[s].register_forward_hook(partial(_keep, found, s)) for s in stages]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _keep(found: dict[str, Tensor], stage: str, module: nn.Module, _: Any, output: Tensor) -> None:
    # A copy: what follows may work in place.
    found[stage] = output.clone()
