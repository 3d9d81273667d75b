"""Class activation maps: which parts of an image speak for a class.

A_k are the feature maps of one stage, y is the class's logit, before the softmax, and g_k is
dy / dA_k, as large as A_k. Each method is a map over the positions of the stage:

    CAM         sum_k w_k A_k, w the class's weights after global average pooling
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
    Eigen-CAM   A projected on its first right singular vector; the class plays no part
                M. B. Muhammad and M. Yeasin, IJCNN 2020, arXiv:2008.00299
    Score-CAM and Ablation-CAM: cam_perturb.py

The positive part is what counts (`Cam.heat`). Seg-Grad-CAM (K. Vinogradova, A. Dibrov, G. Myers,
AAAI 2020, arXiv:2002.11434): y is the sum of the class's logits over a set of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cnn_core.errors import UnknownNameError, UsageError
from cnn_core.tasks.segmentation import two_sided
from cnn_viz.attribution.cam_perturbation import PERTURBING, class_weights
from cnn_viz.attribution.cam_scale import SCALES, shares
from cnn_viz.attribution.target import Classes, Target
from cnn_viz.network.hooks import hook_stages
from cnn_viz.network.inspection import inspection_mode

__all__ = ["Cam", "METHODS", "cams", "cams_by_method", "grad_cam", "seg_grad_cam"]

# Each equation takes A and g, float32, N C h w, and returns maps, N h w.


def gradcam(a: Tensor, g: Tensor) -> Tensor:
    """Return sum_k mean(g_k) A_k."""
    return (g.mean((2, 3), keepdim=True) * a).sum(1)


def gradcam_plus_plus(a: Tensor, g: Tensor) -> Tensor:
    """Return sum_k sum(alpha_k ReLU(g_k)) A_k, alpha with g^2 cancelled: no small number helps."""
    below = 2 + a.sum((2, 3), keepdim=True) * g
    alpha = torch.where((g != 0) & (below != 0), 1 / below, 0)
    return ((alpha * g.relu()).sum((2, 3), keepdim=True) * a).sum(1)


def hirescam(a: Tensor, g: Tensor) -> Tensor:
    """Return sum_k g_k A_k."""
    return (g * a).sum(1)


def xgradcam(a: Tensor, g: Tensor) -> Tensor:
    """Return sum_k sum(g_k A_k) / sum(A_k) A_k; 0 where a map's sum is."""
    above, below = (g * a).sum((2, 3), keepdim=True), a.sum((2, 3), keepdim=True)
    return (torch.where(below != 0, above / below, 0) * a).sum(1)


def layercam(a: Tensor, g: Tensor) -> Tensor:
    """Return sum_k ReLU(g_k) A_k."""
    return (g.relu() * a).sum(1)


def eigencam(a: Tensor, g: Tensor) -> Tensor:
    """Return A projected on its first right singular vector v, which is as good as -v."""
    v: Tensor = torch.linalg.svd(a.flatten(2).mT, full_matrices=False).Vh[:, 0]  # N C
    projected = (v[:, :, None, None] * a).sum(1)
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
    """What speaks for one class of each image.

    `raw` is a method's sum before its ReLU: signed, float32, N h w, as small as the stage's
    maps. `classes` (N) are the classes explained, `logits` (N x classes, or N x classes x h x w)
    what the network said, `size` the images' (H, W).
    """

    raw: Tensor
    logits: Tensor
    classes: Tensor
    size: tuple[int, int]

    @property
    def empty(self) -> Tensor:
        """Whether nothing speaks for the class, no position being above 0: bool, N."""
        return ~(self.raw > 0).flatten(1).any(1)

    def heat(self, like: str = "cnnzoo", *, stride: int = 0) -> Tensor:
        """The positive part at the images' size, each divided by its maximum: N H W in [0, 1].

        An empty map is 0 everywhere. A map is stretched over the image, as everyone does; with the
        stage's `stride`, in pixels, each position stays where it looks, which is elsewhere in
        networks without padding, as the original U-Net: what is seen in the middle is not
        drawn at the border. `like` "pytorch-grad-cam" or "torch-cam" scales as those
        libraries do; torch-cam leaves maps as small as they are.

        Raises:
            UnknownNameError: there is no such way; suggests names.
            UsageError: a stride is given, and a way that is another library's.
        """
        if like not in SCALES:
            raise UnknownNameError("scale", like, SCALES)
        if stride and like != "cnnzoo":
            raise UsageError(f"stride = {stride}: {like} stretches maps over the image")
        if stride:
            return shares(self.raw, self.size, stride)
        return SCALES[like](self.raw, self.size)


def grad_cam(model: nn.Module, images: Tensor, stage: str, classes: Classes = None) -> Cam:
    """Explain `classes` of images at one stage by Grad-CAM; otherwise as `cams`."""
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

    One forward pass and one backward to the stages serve all of them; Score-CAM and Ablation-CAM
    take one more for each map of each image, `batch` at a time (`cost` says how many). A module
    that runs more than once needs the number of the `call`, from 0 on.

    Nothing is left behind: parameters, their `.grad`, training flags, hooks and the random state
    are as before, also after an exception. Works on frozen weights, under `no_grad`,
    `inference_mode` and `autocast`; maps are float32 whatever the model's type.

    Raises:
        UnknownNameError: there is no such method or stage; suggests names.
        UsageError: a stage has no maps or runs more than once, or the classes do not fit.
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
    """Explain as `cams` does by several methods, which share its passes: method, then stage."""
    return _explained(
        model, images, stages, methods, call, batch, lambda y: Target.of_images(y, classes)
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
    """Explain one class of each image of a network that segments, N C H W, at a named stage.

    The score is the sum of the class's logits over a `region`, bool, N h w, as large as the
    logits: by default over the pixels that the network takes for the class. Otherwise as
    `cams`.

    Raises:
        UsageError: as `cams`, and if the logits or the region have another shape.
    """
    return _explained(
        model, images, [stage], [method], None, 64, lambda y: Target.of_pixels(y, classes, region)
    )[method][stage]


def _explained(
    model: nn.Module,
    images: Tensor,
    stages: str | Sequence[str],
    methods: Sequence[str],
    call: int | None,
    batch: int,
    target_of: Callable[[Tensor], Target],
) -> dict[str, dict[str, Cam]]:
    """Return a map for each method and stage, of the target `target_of` makes of the logits."""
    stages = [stages] if isinstance(stages, str) else list(stages)
    for method in methods:
        if method not in METHODS:
            raise UnknownNameError("method", method, METHODS)
    images = images.detach()
    size = (images.shape[-2], images.shape[-1])
    found: dict[str, dict[str, Cam]] = {method: {} for method in methods}
    with inspection_mode(model, images):
        maps, gradients, logits, target = _looked(model, images, stages, call, target_of)
        said = logits if target.region is None else two_sided(logits)
        for method in methods:
            for stage, a, g in zip(stages, maps, gradients, strict=True):
                if method in EQUATIONS:
                    raw = EQUATIONS[method](a, g)
                elif method == "cam":
                    raw = (class_weights(model, stage, target.classes, g) * a).sum(1)
                else:
                    raw = PERTURBING[method](model, images, stage, a, target, call, batch)
                found[method][stage] = Cam(raw=raw, logits=said, classes=target.classes, size=size)
    return found


def _looked(
    model: nn.Module,
    images: Tensor,
    stages: Sequence[str],
    call: int | None,
    target_of: Callable[[Tensor], Target],
) -> tuple[list[Tensor], list[Tensor], Tensor, Target]:
    """Return A and g of each stage, float32, the logits, and the target."""
    kept: dict[str, Tensor] = {}

    def keep(stage: str, maps: Tensor) -> Tensor:
        torch.set_grad_enabled(True)  # the graph begins at the first of the stages
        kept[stage] = maps if maps.requires_grad else maps.detach().requires_grad_()
        return kept[stage].clone()  # what follows may work in place: on a copy

    with torch.no_grad(), hook_stages(model, stages, keep, call):
        logits = model(images.clone())
        target = target_of(logits)
        # Images do not influence each other in eval mode: one sum gives every gradient.
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
    """Return how many forward passes of a single image a method needs for images, N C H W.

    Beside them, the methods with gradients need one backward pass, to the stage. The network
    runs once, on one image, to see how many maps the stage has. `call` is that of `cams`.

    Raises:
        UnknownNameError, UsageError: as `cams`.
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
