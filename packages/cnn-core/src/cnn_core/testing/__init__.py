"""The conformance kit: checks that every plugin must pass, including third-party plugins.

    from cnn_core.testing import parametrize_with_checks

    @parametrize_with_checks("cnn-arch-mine")
    def test_conformance(check, case):
        check(case)

`cnnzoo check cnn-arch-mine` runs the same checks from the command line.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cnn_core.lazy import lazy_names

if TYPE_CHECKING:
    from cnn_core.testing.case import Case, cases_of
    from cnn_core.testing.kit import CHECKS, SLOW, Result, parametrize_with_checks, run_checks

__all__ = [
    "CHECKS",
    "Case",
    "Result",
    "SLOW",
    "cases_of",
    "parametrize_with_checks",
    "run_checks",
]

__getattr__: Callable[[str], Any] = lazy_names(
    __name__,
    {
        "cnn_core.testing.case": ("Case", "cases_of"),
        "cnn_core.testing.kit": (
            "CHECKS",
            "SLOW",
            "Result",
            "parametrize_with_checks",
            "run_checks",
        ),
    },
)
