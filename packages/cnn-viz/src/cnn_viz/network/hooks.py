"""Replace the outputs of named stages by forward hooks, which are removed on exit."""

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
    replace: Callable[[str, Tensor], Tensor],
    call: int | None = None,
) -> Iterator[None]:
    """Replace the output of each named stage, maps N C h w, with `replace(stage, maps)`.

    For a module that is called more than once, `call` selects the call to replace, counted from 0.
    The hooks are removed on exit, even after an error.

    Raises:
        UnknownNameError: the model has no such stage; suggests names.
        UsageError: a stage does not output maps, is never called, is called more than once and
            `call` is not given, or is not called that often.
    """
    modules = dict(model.named_modules())
    calls: Counter[str] = Counter()
    hook = partial(_hook, replace, call, calls)
    with contextlib.ExitStack() as stack:
        for stage in stages:
            if not stage or stage not in modules:
                raise UnknownNameError("stage", stage, [name for name in modules if name])
            stack.enter_context(modules[stage].register_forward_hook(partial(hook, stage)))
        yield
        # The number of calls is known only now: a stage may be unused or reused.
        for stage in stages:
            _require_call(stage, calls[stage], call)


def _hook(
    replace: Callable[[str, Tensor], Tensor],
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
            f"stage '{stage}' is called more than once",
            "choose a module that is called once, or select a call: call=0 is the first",
        )
    if call is not None and calls[stage] - 1 != call:
        return None
    if not isinstance(output, Tensor) or output.ndim != 4:
        actual = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(f"stage '{stage}' outputs {actual}: expected maps, N C H W")
    return replace(stage, output)


def _require_call(stage: str, calls: int, call: int | None) -> None:
    if not calls:
        raise UsageError(f"stage '{stage}' is not used in the forward pass")
    if call is not None and not 0 <= call < calls:
        times = "once" if calls == 1 else f"{calls} times"
        raise UsageError(
            f"stage '{stage}' is called {times}: call = {call}, expected 0 to {calls - 1}"
        )
