"""Reach into a network while it runs: replace what its named stages give."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from cnn_core.errors import UnknownNameError, UsageError

__all__ = ["hook_stages"]


@contextlib.contextmanager
def hook_stages(
    model: nn.Module,
    stages: Sequence[str],
    act: Callable[[str, Tensor], Tensor],
    call: int | None = None,
) -> Iterator[None]:
    """While open, `act(stage, maps)` replaces the maps, N C h w, that each named stage gives.

    A module that runs more than once is acted on in its call number `call`, from 0 on.

    Raises:
        UnknownNameError: the model has no such stage; suggests names.
        UsageError: a stage gives no maps, or does not run exactly once, or not that often.
    """
    modules = dict(model.named_modules())
    calls: Counter[str] = Counter()
    hook = partial(_hook, act, call, calls)
    with contextlib.ExitStack() as stack:
        for stage in stages:
            if not stage or stage not in modules:
                raise UnknownNameError("stage", stage, [name for name in modules if name])
            stack.enter_context(modules[stage].register_forward_hook(partial(hook, stage)))
        yield
        for stage in stages:
            _require_call(stage, calls[stage], call)


def _hook(
    act: Callable[[str, Tensor], Tensor],
    call: int | None,
    calls: Counter[str],
    stage: str,
    module: nn.Module,
    inputs: Any,
    output: Any,
) -> Tensor | None:
    calls[stage] += 1
    if call is None and calls[stage] > 1:
        raise UsageError(
            f"stage '{stage}' runs more than once",
            "name a module that runs once, or the call: call=0 is the first",
        )
    if call is not None and calls[stage] - 1 != call:
        return None
    if not isinstance(output, Tensor) or output.ndim != 4:
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(f"stage '{stage}' gives {found}: Grad-CAM needs maps, N C H W")
    return act(stage, output)


def _require_call(stage: str, calls: int, call: int | None) -> None:
    if not calls:
        raise UsageError(f"stage '{stage}' took no part in the forward pass")
    if call is not None and not 0 <= call < calls:
        times = "once" if calls == 1 else f"{calls} times"
        raise UsageError(f"stage '{stage}' runs {times}: call = {call}, expected 0 to {calls - 1}")
