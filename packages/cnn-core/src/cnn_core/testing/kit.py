"""Run the checks, in pytest or as a generator of results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import SkipTest

from cnn_core import registry
from cnn_core.errors import PluginError, UsageError
from cnn_core.plugins.discovery import describe, unregistered
from cnn_core.testing import network_checks, spec_checks
from cnn_core.testing.case import Case, Offer, offered
from cnn_core.testing.extension_checks import (
    EXTENSION_CHECKS,
    check_plugin_has_no_fault,
    extensions_of,
    plugins_of,
)

__all__ = ["CHECKS", "Check", "Result", "SLOW", "parametrize_with_checks", "run_checks"]

Check = Callable[[Case], None]

SLOW: tuple[Check, ...] = (
    network_checks.check_exports,
    network_checks.check_compiles_as_one_graph,
    network_checks.check_overfits_one_batch,
)
# In the order of definition. Checks of the package come first: they are the cheapest, and a
# network that cannot even be imported fails there with the clearest message.
CHECKS: tuple[Check, ...] = tuple(
    check
    for module in (spec_checks, network_checks)
    for name, check in vars(module).items()
    if name.startswith("check_") and check not in SLOW
)


@dataclass(frozen=True)
class Result:
    """The outcome of one check, and the reason for it.

    `kind` is "model", "plugin", "dataset", "view", "command", "weights" or "observer". `outcome`
    is "passed", "failed", "expected" (it failed and is in the spec's `expected_failures`) or
    "skipped" (it could not run, for example because files are missing).
    """

    kind: str
    name: str
    check: str
    outcome: str
    reason: str = ""


def run_checks(
    distribution: str,
    *,
    slow: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Iterator[Result]:
    """Check everything that an installed distribution offers; yield a result for each check.

    `slow` adds checks of export, compilation and training. Datasets are read from `data_dir`.
    `progress` is called with the number of finished checks and the total. A check named in
    `ModelSpec.expected_failures` must fail: if it passes, its outcome is "failed".

    Raises:
        UsageError: the distribution offers nothing that can be checked, or is blocked.
        PluginError: the distribution requires cnn-core but has no entry point in the group
            "cnnzoo".
    """
    offers = _offers_of(distribution, data_dir)
    done, total = 0, sum(len(_checks_of(offer, slow)) for offer in offers)
    while offers:
        offer = offers.pop(0)  # popped, not iterated over, to free the model that a Case holds
        for check in _checks_of(offer, slow):
            yield _run(offer, check)
            done += 1
            if progress is not None:
                progress(done, total)


def _offers_of(
    distribution: str, data_dir: str | os.PathLike[str] | None = None
) -> list[Offer[Any]]:
    """Return everything a distribution offers, models first; see `extensions_of`."""
    registry.catalogues()  # calls every hook, which records failures as plugin faults
    mine = plugins_of(distribution)
    if mine and all(plugin.blocked for plugin in mine):
        raise UsageError(f"'{distribution}' is blocked: {mine[0].blocked}", "cnnzoo plugins")
    if not mine and (line := unregistered().get(distribution)):
        raise PluginError(line)
    models = map(Case, offered(registry.models(), distribution))
    found: list[Offer[Any]] = [*models, *extensions_of(distribution, data_dir)]
    if not found:
        raise UsageError(
            f"'{distribution}' offers no model, dataset, view, command, weights or observer",
            "cnnzoo plugins",
        )
    return found


def _checks_of(offer: Offer[Any], slow: bool) -> tuple[Callable[[Any], None], ...]:
    if isinstance(offer, Case):
        return CHECKS + (SLOW if slow else ())
    if offer.entry.plugin.status in ("blocked", "broken"):
        return (check_plugin_has_no_fault,)
    return EXTENSION_CHECKS[offer.spec.kind]


def _expected_failures(offer: Offer[Any]) -> Mapping[str, str]:
    """Return the names of checks that are expected to fail, with the reason for each."""
    return getattr(offer.spec, "expected_failures", {})


def _run(offer: Offer[Any], check: Callable[[Any], None]) -> Result:
    name = check.__name__
    expected_reason = _expected_failures(offer).get(name)
    outcome, reason = "passed", ""
    try:
        check(offer)
    except SkipTest as skipped:
        outcome, reason = "skipped", str(skipped)
    except Exception as error:
        outcome, reason = (
            ("expected", expected_reason) if expected_reason else ("failed", describe(error))
        )
    else:
        if expected_reason:
            outcome, reason = "failed", f"passes, but was expected to fail: {expected_reason}"
    return Result(offer.spec.kind, offer.spec.name, name, outcome, reason)


def parametrize_with_checks(distribution: str, *, slow: bool = False) -> Any:
    """Return a pytest decorator that runs the test for every pair (check, case).

    With `slow`, only the slow checks, which only models have; otherwise, all other checks.

    Raises:
        UsageError: the distribution offers nothing that can be checked.
    """
    import pytest

    parameters = []
    for offer in _offers_of(distribution):
        slow_checks = SLOW if isinstance(offer, Case) else ()
        for check in slow_checks if slow else _checks_of(offer, slow=False):
            reason = _expected_failures(offer).get(check.__name__)
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
            name = f"{offer.spec.name}-{check.__name__}"
            parameters.append(pytest.param(check, offer, id=name, marks=marks))
    return pytest.mark.parametrize(("check", "case"), parameters)
