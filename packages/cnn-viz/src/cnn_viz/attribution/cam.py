"""Class activation maps (CAMs): the parts of an image that are evidence for a class.

A_k are the feature maps of one stage, y is the class's logit before the softmax, and
g_k = dy / dA_k has the shape of A_k. Each method defines a map over the positions of the stage:

    CAM         sum_k w_k A_k, w = the class's weights after global average pooling
                B. Zhou et al., CVPR 2016, arXiv:1512.04150, Eq. 2
    Grad-CAM    sum_k mean(g_k) A_k
                R. R. Selvaraju et al., ICCV 2017, arXiv:1610.02391, Eq. 1 and 2
    Grad-CAM++  sum_k sum(alpha_k ReLU(g_k)) A_k, alpha_k = g^2 / (2 g^2 + sum(A_k) g^3)
                A. Chattopadhay et al., WACV 2018, arXiv:1710.11063, Eq. 19
    HiRes-CAM   sum_k g_k A_k
                R. L. Draelos and L. Carin, 2020, arXiv:2011.08891
    XGrad-CAM   sum_k sum(g_k A_k) / sum(A_k) A_k
                R. Fu et al., BMVC 2020, arXiv:2008.02312, Eq. 8
    Layer-CAM   sum_k ReLU(g_k) A_k
                P.-T. Jiang et al., IEEE TIP 2021, doi:10.1109/TIP.2021.3089943, Eq. 6
    Eigen-CAM   A projected onto its first right singular vector; independent of the class
                M. B. Muhammad and M. Yeasin, IJCNN 2020, arXiv:2008.00299
    Score-CAM and Ablation-CAM: cam_perturbation.py

Only the positive part is shown (`Cam.heat`). Seg-Grad-CAM (K. Vinogradova, A. Dibrov, G. Myers,
AAAI 2020, arXiv:2002.11434): y is the sum of the class's logits over a set of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cnn_core.errors import UnknownNameError, UsageError
from cnn_core.tasks.segmentation import two_class_logits
from cnn_viz.attribution.cam_perturbation import PERTURBING, class_weights
from cnn_viz.attribution.cam_scale import SCALES, scale_to_maximum
from cnn_viz.attribution.target import Classes, Target
from cnn_viz.network.hooks import hook_stages
from cnn_viz.network.inspection import inspection_mode

__all__ = ["Cam", "METHODS", "cams", "cams_by_method", "grad_cam", "seg_grad_cam"]

# Each equation takes A and g, float32, N C h w, and returns maps, N h w.


def gradcam(a: Tensor, g: Tensor) -> Tensor:
    """Return sum_k mean(g_k) A_k."""
    return (g.mean((2, 3), keepdim=True) * a).sum(1)


def gradcam_plus_plus(a: Tensor, g: Tensor) -> Tensor:
    """Return sum_k sum(alpha_k ReLU(g_k)) A_k, alpha with g^2 cancelled, so no epsilon."""
    below = 2 + a.sum((2, 3), keepdim=True) * g
    alpha = torch.where((g != 0) & (below != 0), 1 / below, 0)
    return ((alpha * g.relu()).sum((2, 3), keepdim=True) * a).sum(1)


def hirescam(a: Tensor, g: Tensor) -> Tensor:
    """Return sum_k g_k A_k."""
    return (g * a).sum(1)


def xgradcam(a: Tensor, g: Tensor) -> Tensor:
    """Return sum_k sum(g_k A_k) / sum(A_k) A_k; a map whose sum is 0 contributes 0."""
    above, below = (g * a).sum((2, 3), keepdim=True), a.sum((2, 3), keepdim=True)
    return (torch.where(below != 0, above / below, 0) * a).sum(1)


def layercam(a: Tensor, g: Tensor) -> Tensor:
    """Return sum_k ReLU(g_k) A_k."""
    return (g.relu() * a).sum(1)


def eigencam(a: Tensor, g: Tensor) -> Tensor:
    """Return A projected onto its first right singular vector v."""
    # Positions are not centred first: the paper projects the raw activations.
    v: Tensor = torch.linalg.svd(a.flatten(2).mT, full_matrices=False).Vh[:, 0]  # N C
    projected = (v[:, :, None, None] * a).sum(1)
    # The decomposition leaves the sign of v open: choose the one with a positive sum.
    return projected * projected.sum((1, 2), keepdim=True).sign()


EQUATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad-cam": gradcam,
    "grad-cam++": gradcam_plus_plus,
    "hires-cam": hirescam,
    "xgrad-cam": xgradcam,
    "layer-cam": layercam,
    "eigen-cam": eigencam,
}
METHODS = ("cam", *EQUATIONS, *PERTURBING)


@dataclass(frozen=True, kw_only=True)
class Cam:
    """The evidence for one class of each image, at the resolution of a stage.

    `raw` is the method's sum before the ReLU: signed, float32, N h w, with the height and width
    of the stage's maps. `classes` (N) are the classes explained, `logits` (N x classes, or
    N x classes x h x w) the network's output, and `size` the (H, W) of the images.
    """

    raw: Tensor
    logits: Tensor
    classes: Tensor
    size: tuple[int, int]

    @property
    def empty(self) -> Tensor:
        """Whether a map has no positive value, so no evidence for the class: bool, N."""
        return ~(self.raw > 0).flatten(1).any(1)

    def heat(self, like: str = "cnnzoo", *, stride: int = 0) -> Tensor:
        """Return each map's positive part at image size, over its maximum: N H W in [0, 1].

        An empty map is 0 everywhere. By default a map is stretched over the whole image, as in
        other libraries. With the stage's `stride`, in pixels, it covers only the box that its
        positions are centred on. The two differ in networks without padding, such as the
        original U-Net: stretching would draw evidence from the middle at the border.

        `like` "pytorch-grad-cam" or "torch-cam" scales as those libraries do; torch-cam does not
        resize.

        Raises:
            UnknownNameError: the scale is unknown; suggests names.
            UsageError: a stride was given with another library's scale.
        """
        if like not in SCALES:
            raise UnknownNameError("scale", like, SCALES)
        # An option without effect would be a silent surprise.
        if stride and like != "cnnzoo":
            raise UsageError(f"stride = {stride}: {like} stretches maps over the image")
        if stride:
            return scale_to_maximum(self.raw, self.size, stride)
        return SCALES[like](self.raw, self.size)


def grad_cam(model: nn.Module, images: Tensor, stage: str, classes: Classes = None) -> Cam:
    """Explain `classes` of images at one stage by Grad-CAM; see `cams`."""
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
    """Explain `classes` (default: the predicted ones) of images, N C H W, at named stages.

    All stages share one forward pass and one backward pass to the stages. Score-CAM and
    Ablation-CAM run the network once more for each map of each image, `batch` at a time; `cost`
    returns the number of passes. For a module that runs more than once, `call` selects the run,
    counted from 0.

    Parameters, their `.grad`, training flags, hooks and the random state are left unchanged, even
    after an exception. Frozen weights, `no_grad`, `inference_mode` and `autocast` are supported;
    maps are float32 whatever the model's dtype.

    Raises:
        UnknownNameError: the method or the stage is unknown; suggests names.
        UsageError: a stage has no maps or runs more than once, or the classes do not match the
            images and logits.
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
    """Explain by several methods that share their passes; return maps by method and stage."""
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
    """Explain one class of each image, N C H W, for a segmentation network, at a named stage.

    The score is the sum of the class's logits over a `region`, bool, N h w, of the logits' height
    and width. The default region is the pixels predicted as the class. See `cams`.

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
    target_of: Callable[[Tensor], Target],
    *,
    call: int | None = None,
    batch: int = 64,
) -> dict[str, dict[str, Cam]]:
    """Return maps by method and stage; `target_of` chooses the target given the logits."""
    stages = [stages] if isinstance(stages, str) else list(stages)
    for method in methods:
        if method not in METHODS:
            raise UnknownNameError("method", method, METHODS)
    images = images.detach()
    size = (images.shape[-2], images.shape[-1])
    explained: dict[str, dict[str, Cam]] = {method: {} for method in methods}
    with inspection_mode(model, images):
        maps, gradients, logits, target = _forward_backward(model, images, stages, call, target_of)
        class_logits = logits if target.region is None else two_class_logits(logits)
        for method in methods:
            for stage, a, g in zip(stages, maps, gradients, strict=True):
                if method in EQUATIONS:
                    raw = EQUATIONS[method](a, g)
                elif method == "cam":
                    raw = (class_weights(model, stage, target.classes, g) * a).sum(1)
                else:
                    perturb = PERTURBING[method]
                    raw = perturb(model, images, stage, a, target, call=call, batch=batch)
                explained[method][stage] = Cam(
                    raw=raw, logits=class_logits, classes=target.classes, size=size
                )
    return explained


def _forward_backward(
    model: nn.Module,
    images: Tensor,
    stages: Sequence[str],
    call: int | None,
    target_of: Callable[[Tensor], Target],
) -> tuple[list[Tensor], list[Tensor], Tensor, Target]:
    """Run the network once; return each stage's A and g, float32, the logits and the target."""
    kept: dict[str, Tensor] = {}

    def keep(stage: str, maps: Tensor) -> Tensor:
        # The graph begins at the first stage: no gradient of a parameter is ever computed, which
        # saves most of the backward pass and works on frozen weights.
        torch.set_grad_enabled(True)
        kept[stage] = maps if maps.requires_grad else maps.detach().requires_grad_()
        return kept[stage].clone()  # a later in-place ReLU would overwrite the stored maps

    with torch.no_grad(), hook_stages(model, stages, keep, call):
        logits = model(images.clone())
        target = target_of(logits)
        # In eval mode images do not influence each other, so one backward pass of the sum gives
        # every image's own gradient.
        score = target.scores(logits).sum()
    maps = [kept[stage] for stage in stages]
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
    """Return the number of single-image forward passes that a method needs for images, N C H W.

    Gradient methods also need one backward pass to the stage. The network runs once on one image
    to count the stage's maps. `call` is as in `cams`.

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
    if method not in PERTURBING:
        return len(images)
    return len(images) * (channels + (2 if method == "ablation-cam" else 1))
