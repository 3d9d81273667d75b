"""Run the checks: under pytest, or one after the other with a result for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cnn_core.discovery import describe
from cnn_core.testing import checks
from cnn_core.testing.case import Case, cases_of

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
    """How one check of one model ended: "passed", "failed", or "expected" to fail, and why."""

    model: str
    check: str
    outcome: str
    reason: str = ""


def run_checks(distribution: str, *, slow: bool = False) -> Iterator[Result]:
    """Check every model of an installed distribution; yield a result for each check.

    A check named in `ModelSpec.expected_failures` has to fail: one that passes has failed.
    """
    cases = cases_of(distribution)
    while cases:
        case = cases.pop(0)  # which keeps a model: one at a time
        for check in CHECKS + (SLOW if slow else ()):
            yield _run(case, check)


def _run(case: Case, check: Check) -> Result:
    name = check.__name__
    excuse = case.spec.expected_failures.get(name)
    try:
        check(case)
    except Exception as error:
        reason = describe(error)
        outcome = "expected" if excuse else "failed"
        return Result(case.spec.name, name, outcome, excuse or reason)
    if excuse:
        return Result(
            case.spec.name, name, "failed", f"passes, but was expected to fail: {excuse}"
        )
    return Result(case.spec.name, name, "passed")


def parametrize_with_checks(distribution: str, *, slow: bool = False) -> Any:
    """Return a pytest decorator: the test is called with each (check, case).

    With `slow` it is called with the slow checks, otherwise with all others.
    """
    import pytest

    parameters = []
    for case in cases_of(distribution):
        for check in SLOW if slow else CHECKS:
            excuse = case.spec.expected_failures.get(check.__name__)
            marks = [pytest.mark.xfail(reason=excuse, strict=True)] if excuse else []
            name = f"{case.spec.name}-{check.__name__}"
            parameters.append(pytest.param(check, case, id=name, marks=marks))
    return pytest.mark.parametrize(("check", "case"), parameters)
