"""Run the checks: under pytest, or one after the other with a result for each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import SkipTest

from cnn_core import registry
from cnn_core.errors import PluginError, UsageError
from cnn_core.plugins.discovery import describe, strays
from cnn_core.testing import checks
from cnn_core.testing.case import Case, Offer, offered
from cnn_core.testing.others import OTHERS, check_plugin_has_no_fault, others_of, plugins_of

__all__ = ["CHECKS", "Check", "Result", "SLOW", "parametrize_with_checks", "run_checks"]

Check = Callable[[Case], None]

SLOW: tuple[Check, ...] = (
    checks.check_exports,
    checks.check_compiles_as_one_graph,
    checks.check_overfits_one_batch,
)
CHECKS: tuple[Check, ...] = tuple(
    check
    for name, check in vars(checks).items()
    if name.startswith("check_") and check not in SLOW
)


@dataclass(frozen=True)
class Result:
    """How one check of one thing ended, and why.

    `kind` is "model", "plugin", "dataset", "view", "command" or "observer"; `outcome`
    "passed", "failed", "expected" to fail, or "skipped": it cannot be tried here.
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
    """Check all that an installed distribution offers; yield a result for each check.

    `data_dir` is where the files of its datasets are; `progress` is told how many checks are
    done, of how many. A check named in
    `ModelSpec.expected_failures` has to fail: one that passes has failed.

    Raises:
        UsageError: the distribution offers nothing that can be checked, or is blocked.
        PluginError: it requires cnn-core, and has no entry point in the group "cnnzoo".
    """
    offers = _offers_of(distribution, data_dir)
    done, total = 0, sum(len(_checks_of(offer, slow)) for offer in offers)
    while offers:
        offer = offers.pop(0)  # which keeps a model: one at a time
        for check in _checks_of(offer, slow):
            yield _run(offer, check)
            done += 1
            if progress is not None:
                progress(done, total)


def _offers_of(
    distribution: str, data_dir: str | os.PathLike[str] | None = None
) -> list[Offer[Any]]:
    """Return what a distribution offers, networks first, and its plugins, also broken ones."""
    registry.catalogues()  # calls every hook: what fails is a plugin's fault
    mine = plugins_of(distribution)
    if mine and all(plugin.blocked for plugin in mine):
        raise UsageError(f"'{distribution}' is blocked: {mine[0].blocked}", "cnnzoo plugins")
    if not mine and (line := strays().get(distribution)):
        raise PluginError(line)
    networks = map(Case, offered(registry.models(), distribution))
    found: list[Offer[Any]] = [*networks, *others_of(distribution, data_dir)]
    if not found:
        raise UsageError(
            f"'{distribution}' offers no model, dataset, view or command, and observes nothing",
            "cnnzoo plugins",
        )
    return found


def _checks_of(offer: Offer[Any], slow: bool) -> tuple[Callable[[Any], None], ...]:
    if isinstance(offer, Case):
        return CHECKS + (SLOW if slow else ())
    if offer.entry.plugin.status in ("blocked", "broken"):
        return (check_plugin_has_no_fault,)
    return OTHERS[offer.spec.kind]


def _excuses(offer: Offer[Any]) -> Mapping[str, str]:
    """Return the checks that are expected to fail, and why."""
    return getattr(offer.spec, "expected_failures", {})


def _run(offer: Offer[Any], check: Callable[[Any], None]) -> Result:
    name = check.__name__
    excuse = _excuses(offer).get(name)
    outcome, reason = "passed", ""
    try:
        check(offer)
    except SkipTest as skipped:
        outcome, reason = "skipped", str(skipped)
    except Exception as error:
        outcome, reason = ("expected", excuse) if excuse else ("failed", describe(error))
    else:
        if excuse:
            outcome, reason = "failed", f"passes, but was expected to fail: {excuse}"
    return Result(offer.spec.kind, offer.spec.name, name, outcome, reason)


def parametrize_with_checks(distribution: str, *, slow: bool = False) -> Any:
    """Return a pytest decorator: the test is called with each (check, case).

    With `slow` it is called with the slow checks, which networks have, otherwise with all others.

    Raises:
        UsageError: the distribution offers nothing that can be checked.
    """
    import pytest

    parameters = []
    for offer in _offers_of(distribution):
        slower = SLOW if isinstance(offer, Case) else ()
        for check in slower if slow else _checks_of(offer, False):
            excuse = _excuses(offer).get(check.__name__)
            marks = [pytest.mark.xfail(reason=excuse, strict=True)] if excuse else []
            name = f"{offer.spec.name}-{check.__name__}"
            parameters.append(pytest.param(check, offer, id=name, marks=marks))
    return pytest.mark.parametrize(("check", "case"), parameters)
