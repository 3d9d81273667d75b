"""Class activation maps (CAMs): the parts of an image that are evidence for a class.

A_k is the k-th feature map of a stage, y is the logit of the class, and g_k = dy / dA_k has the
shape of A_k. sum_k runs over the feature maps; sum and mean without an index run over positions.
Each method defines one map over the positions of the stage:

    CAM         sum_k w_k A_k, w = the class's weights after global average pooling
                B. Zhou et al., CVPR 2016, arXiv:1512.04150, Eq. 2
    Grad-CAM    sum_k mean(g_k) A_k
                R. R. Selvaraju et al., ICCV 2017, arXiv:1610.02391, Eq. 1 and 2
    Grad-CAM++  sum_k sum(alpha_k ReLU(g_k)) A_k, alpha_k = g_k^2 / (2 g_k^2 + sum(A_k) g_k^3)
                A. Chattopadhay et al., WACV 2018, arXiv:1710.11063, Eq. 19
    HiRes-CAM   sum_k g_k A_k
                R. L. Draelos and L. Carin, 2020, arXiv:2011.08891
    XGrad-CAM   sum_k (sum(g_k A_k) / sum(A_k)) A_k
                R. Fu et al., BMVC 2020, arXiv:2008.02312, Eq. 8
    Layer-CAM   sum_k ReLU(g_k) A_k
                P.-T. Jiang et al., IEEE TIP 2021, doi:10.1109/TIP.2021.3089943, Eq. 6
    Eigen-CAM   A projected onto its first right singular vector; independent of the class
                M. B. Muhammad and M. Yeasin, IJCNN 2020, arXiv:2008.00299
    Score-CAM and Ablation-CAM: cam_perturbation.py

Only the positive part of a map is displayed (`Cam.heat`). In Seg-Grad-CAM, y is the sum of the
class's logits over a set of pixels: K. Vinogradova, A. Dibrov, G. Myers, AAAI 2020,
arXiv:2002.11434.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cnn_core.errors import UnknownNameError, UsageError
from cnn_core.tasks.segmentation import two_class_logits
from cnn_viz.attribution.cam_perturbation import PERTURBATION_METHODS, class_weights
from cnn_viz.attribution.cam_scale import SCALES, scale_to_maximum
from cnn_viz.attribution.target import Classes, Target
from cnn_viz.network.hooks import hook_stages
from cnn_viz.network.inspection import inspection_mode

__all__ = ["Cam", "METHODS", "cams", "cams_by_method", "grad_cam", "seg_grad_cam"]

# Each function takes A and g, float32, N C h w, and returns one map per image, N h w.


def gradcam(a: Tensor, g: Tensor) -> Tensor:
    """Return sum_k mean(g_k) A_k."""
    return (g.mean((2, 3), keepdim=True) * a).sum(1)


def gradcam_plus_plus(a: Tensor, g: Tensor) -> Tensor:
    """Return sum_k sum(alpha_k ReLU(g_k)) A_k.

    g^2 is cancelled in alpha, so that the division needs no epsilon.
    """
    denominator = 2 + a.sum((2, 3), keepdim=True) * g
    alpha = torch.where((g != 0) & (denominator != 0), 1 / denominator, 0)
    return ((alpha * g.relu()).sum((2, 3), keepdim=True) * a).sum(1)


def hirescam(a: Tensor, g: Tensor) -> Tensor:
    """Return sum_k g_k A_k."""
    return (g * a).sum(1)


def xgradcam(a: Tensor, g: Tensor) -> Tensor:
    """Return sum_k (sum(g_k A_k) / sum(A_k)) A_k; feature maps with a sum of 0 are ignored."""
    numerator, denominator = (g * a).sum((2, 3), keepdim=True), a.sum((2, 3), keepdim=True)
    return (torch.where(denominator != 0, numerator / denominator, 0) * a).sum(1)


def layercam(a: Tensor, g: Tensor) -> Tensor:
    """Return sum_k ReLU(g_k) A_k."""
    return (g.relu() * a).sum(1)


def eigencam(a: Tensor, g: Tensor) -> Tensor:
    """Return A projected onto its first right singular vector v."""
    # The activations are not mean-centred: the paper projects the raw ones.
    v: Tensor = torch.linalg.svd(a.flatten(2).mT, full_matrices=False).Vh[:, 0]  # N C
    projected = (v[:, :, None, None] * a).sum(1)
    # The sign of v is arbitrary: choose it so that the sum of the map is positive.
    return projected * projected.sum((1, 2), keepdim=True).sign()


EQUATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad-cam": gradcam,
    "grad-cam++": gradcam_plus_plus,
    "hires-cam": hirescam,
    "xgrad-cam": xgradcam,
    "layer-cam": layercam,
    "eigen-cam": eigencam,
}
METHODS = ("cam", *EQUATIONS, *PERTURBATION_METHODS)


@dataclass(frozen=True, kw_only=True)
class Cam:
    """Class activation maps: the evidence for one class in each image, at a stage's resolution.

    `raw` is the signed map before the ReLU: float32, N h w, with the height and width of the
    stage's feature maps. `classes`, N, are the explained classes. `logits` are the network's
    output, N x classes or N x classes x h x w. `size` is the height and width of the images.
    """

    raw: Tensor
    logits: Tensor
    classes: Tensor
    size: tuple[int, int]

    @property
    def empty(self) -> Tensor:
        """Whether each map has no positive value, so no evidence for the class: bool, N."""
        return ~(self.raw > 0).flatten(1).any(1)

    def heat(self, like: str = "cnnzoo", *, stride: int = 0) -> Tensor:
        """Return the positive part of each map, resized to the image and divided by its maximum.

        The result is N H W in [0, 1]; an empty map is 0 everywhere. By default a map is stretched
        over the whole image, as in other libraries. With the `stride` of the stage, in pixels, a
        map of h x w covers only the central h·stride x w·stride pixels, where its receptive
        fields are centred. The two differ in networks without padding, such as the original
        U-Net: there, stretching would shift central evidence towards the border.

        With `like` "pytorch-grad-cam" or "torch-cam", maps are scaled as in that library;
        torch-cam does not resize them.

        Raises:
            UnknownNameError: `like` is unknown; suggests names.
            UsageError: `stride` was given with another library's scale.
        """
        if like not in SCALES:
            raise UnknownNameError("scale", like, SCALES)
        # Raise rather than silently ignore `stride`.
        if stride and like != "cnnzoo":
            raise UsageError(f"stride = {stride}: only supported with like='cnnzoo', not {like!r}")
        if stride:
            return scale_to_maximum(self.raw, self.size, stride)
        return SCALES[like](self.raw, self.size)


def grad_cam(model: nn.Module, images: Tensor, stage: str, classes: Classes = None) -> Cam:
    """Return Grad-CAM maps of images for `classes` at one stage; see `cams`."""
    return cams(model, images, [stage], classes)[stage]


def cams(
    model: nn.Module,
    images: Tensor,
    stages: str | Sequence[str],
    classes: Classes = None,
    method: str = "grad-cam",
    *,
    call: int | None = None,
    batch: int = 64,
) -> dict[str, Cam]:
    """Return class activation maps of images, N C H W, by stage.

    `classes` has one class per image; the default is the predicted one. All stages share one
    forward and one backward pass. Score-CAM and Ablation-CAM also run the network once for each
    feature map of each image, `batch` at a time; `cost` returns the number of passes. For a
    module that is called more than once, `call` selects the call to explain, counted from 0.

    Parameters, their `.grad`, training flags, hooks and the random state are left unchanged, even
    after an exception. Frozen weights, `no_grad`, `inference_mode` and `autocast` are supported;
    maps are float32 whatever the model's dtype.

    Raises:
        UnknownNameError: the method or the stage is unknown; suggests names.
        UsageError: a stage has no maps, or is called more than once and `call` is not given; or
            the classes do not match the images and logits.
    """
    return cams_by_method(model, images, stages, classes, [method], call=call, batch=batch)[method]


def cams_by_method(
    model: nn.Module,
    images: Tensor,
    stages: str | Sequence[str],
    classes: Classes = None,
    methods: Sequence[str] = tuple(EQUATIONS),
    *,
    call: int | None = None,
    batch: int = 64,
) -> dict[str, dict[str, Cam]]:
    """Return maps by method and stage, as `cams` does; the methods share their passes."""
    return _compute_cams(
        model,
        images,
        stages,
        methods,
        lambda logits: Target.of_images(logits, classes),
        call=call,
        batch=batch,
    )


def seg_grad_cam(
    model: nn.Module,
    images: Tensor,
    stage: str,
    classes: Tensor | Sequence[int],
    region: Tensor | None = None,
    *,
    method: str = "grad-cam",
) -> Cam:
    """Return maps of images, N C H W, for one class of each, from a segmentation network.

    The maps explain the sum of the class's logits over `region`: bool, N h w, with the height and
    width of the logits. The default region is the pixels predicted as the class. See `cams`.

    Raises:
        UsageError: as in `cams`, or the logits or the region have the wrong shape.
    """
    return _compute_cams(
        model, images, [stage], [method], lambda logits: Target.of_pixels(logits, classes, region)
    )[method][stage]


def _compute_cams(
    model: nn.Module,
    images: Tensor,
    stages: str | Sequence[str],
    methods: Sequence[str],
    make_target: Callable[[Tensor], Target],
    *,
    call: int | None = None,
    batch: int = 64,
) -> dict[str, dict[str, Cam]]:
    """Return maps by method and stage; `make_target` returns the target for given logits."""
    stages = [stages] if isinstance(stages, str) else list(stages)
    for method in methods:
        if method not in METHODS:
            raise UnknownNameError("method", method, METHODS)
    images = images.detach()
    size = (images.shape[-2], images.shape[-1])
    results: dict[str, dict[str, Cam]] = {method: {} for method in methods}
    with inspection_mode(model, images):
        maps, gradients, logits, target = _forward_backward(
            model, images, stages, call, make_target
        )
        class_logits = logits if target.region is None else two_class_logits(logits)
        for method in methods:
            for stage, a, g in zip(stages, maps, gradients, strict=True):
                if method in EQUATIONS:
                    raw = EQUATIONS[method](a, g)
                elif method == "cam":
                    raw = (class_weights(model, stage, target.classes, g) * a).sum(1)
                else:
                    perturb = PERTURBATION_METHODS[method]
                    raw = perturb(model, images, stage, a, target, call=call, batch=batch)
                results[method][stage] = Cam(
                    raw=raw, logits=class_logits, classes=target.classes, size=size
                )
    return results


def _forward_backward(
    model: nn.Module,
    images: Tensor,
    stages: Sequence[str],
    call: int | None,
    make_target: Callable[[Tensor], Target],
) -> tuple[list[Tensor], list[Tensor], Tensor, Target]:
    """Run the network once; return A and g of each stage, float32, the logits and the target."""
    stored: dict[str, Tensor] = {}

    def store(stage: str, maps: Tensor) -> Tensor:
        # Autograd starts recording at the first stage: this saves the backward pass through all
        # earlier layers, and works with frozen weights.
        torch.set_grad_enabled(True)
        stored[stage] = maps if maps.requires_grad else maps.detach().requires_grad_()
        return stored[stage].clone()  # a later in-place ReLU would overwrite the stored maps

    with torch.no_grad(), hook_stages(model, stages, store, call):
        logits = model(images.clone())
        target = make_target(logits)
        # In eval mode images do not influence each other, so one backward pass from the sum
        # gives the gradient of every image.
        score = target.scores(logits).sum()
    maps = [stored[stage] for stage in stages]
    gradients: Sequence[Tensor | None] = [None] * len(maps)
    if score.requires_grad:
        gradients = torch.autograd.grad(score, maps, allow_unused=True)
    g = []
    for stage, gradient in zip(stages, gradients, strict=True):
        if gradient is None:
            raise UsageError(f"the logits do not depend on stage '{stage}'")
        g.append(gradient.float())
    return [a.detach().float() for a in maps], g, logits.detach(), target


def cost(
    model: nn.Module, images: Tensor, stage: str, method: str, *, call: int | None = None
) -> int:
    """Return the number of forward passes that a method needs for images, N C H W.

    Each image counts as one pass. Gradient methods also need one backward pass to the stage. This
    function runs the network once on one image, to count the feature maps of the stage. `call` is
    as in `cams`.

    Raises:
        UnknownNameError, UsageError: as in `cams`.
    """
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    channels = 0

    def count(_: str, maps: Tensor) -> Tensor:
        nonlocal channels
        channels = maps.shape[1]
        return maps

    with inspection_mode(model, images), hook_stages(model, [stage], count, call):
        model(images[:1].clone())
    if method not in PERTURBATION_METHODS:
        return len(images)
    return len(images) * (channels + (2 if method == "ablation-cam" else 1))
