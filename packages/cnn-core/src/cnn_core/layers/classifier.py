"""The base class of all classifiers, and access to intermediate outputs of any network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from cnn_core.errors import UnknownNameError, UsageError

__all__ = ["Classifier", "features", "require_size"]


def require_size(x: Tensor, smallest: int, *, exactly: bool = False) -> None:
    """Check that images, N C H W, are at least `smallest` pixels high and wide.

    With `exactly`, both sides have to be `smallest`. Networks call this first in
    `forward_features`: otherwise torch would report a kernel larger than its input from some inner
    layer.

    Raises:
        UsageError: the images have a wrong size; the message gives both sizes.
    """
    height, width = x.shape[-2:]
    fits = height == width == smallest if exactly else min(height, width) >= smallest
    if not fits:
        wanted = f"{smallest} x {smallest}" if exactly else f"at least {smallest} x {smallest}"
        raise UsageError(f"images are {height} x {width}, this network needs {wanted}")


class Classifier(nn.Module):
    """A network of two parts: a feature extractor, then a head that ends in a linear layer.

    A subclass implements `forward_features` (N C H W -> features) and `forward_head`
    (features -> N classes), and sets `classifier` to the module name of
    its last linear layer, or 1x1 convolution.
    """

    classifier: ClassVar[str] = "fc"

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the features of images, N C H W; their shape depends on the network."""
        raise NotImplementedError

    def forward_head(self, x: Tensor) -> Tensor:
        """Return logits, N classes, for the output of `forward_features`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, N classes, for images, N C H W."""
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer with a new, untrained one for `num_classes` classes."""
        parent, _, name = self.classifier.rpartition(".")
        old = self.get_submodule(self.classifier)
        assert isinstance(old, nn.Linear | nn.Conv2d)
        new: nn.Module
        if isinstance(old, nn.Linear):
            new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
        else:  # as in SqueezeNet: a 1x1 convolution is a linear layer at each position
            new = nn.Conv2d(old.in_channels, num_classes, 1, bias=old.bias is not None)
        setattr(self.get_submodule(parent), name, new.to(old.weight.device, old.weight.dtype))


def features(model: nn.Module, x: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
    """Run a network on images, N C H W, and return the outputs of the named stages.

    Raises:
        UnknownNameError: the network has no such module; the message suggests similar names.
    """
    modules = dict(model.named_modules())
    for stage in stages:
        if stage not in modules:
            raise UnknownNameError("stage", stage, modules)
    outputs: dict[str, Tensor] = {}
    handles = [modules[s].register_forward_hook(partial(_keep, outputs, s)) for s in stages]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _keep(
    outputs: dict[str, Tensor], stage: str, module: nn.Module, _: Any, output: Tensor
) -> None:
    # Clone it, because the next layer may be an in-place ReLU that overwrites the output.
    outputs[stage] = output.clone()
