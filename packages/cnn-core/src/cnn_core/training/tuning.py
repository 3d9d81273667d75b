"""Let optuna's TPE suggest settings, one trial after another, in a study on disk.

Source: J. Bergstra, R. Bardenet, Y. Bengio, B. Kegl, "Algorithms for hyper-parameter
optimization", NeurIPS 2011, section 4: the tree-structured Parzen estimator.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnn_core.errors import CorruptError, UsageError, ZooError
from cnn_core.plugins.discovery import describe
from cnn_core.runs.ranges import Range

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Study", "require_optuna"]

# Hidden, so that DIR/* are the runs: cnnzoo compare DIR/* --group
FILE = ".study.journal"
NAME = "sweep"
ASKED = "asked"  # the attribute of a study that says what it searches
STRIDE = 9973  # between the random numbers of two seeds; a prime, more than anybody's trials


def require_optuna() -> Any:
    """Return the module optuna; raise UsageError if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        message = f"search = 'tpe': {error.name or 'optuna'} is not installed"
        raise UsageError(message, 'pip install "cnn-core[tune]"') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else a line for each trial
    return optuna


class Study:
    """A study of optuna in the folder of a sweep; higher values are better.

    The suggestions depend only on the grid, the seed and the trials before: a study that was
    killed goes on as if it had not been. A value is the mean of `seeds` runs.

    Raises:
        UsageError: optuna is not installed, or the folder has a study of another grid.
        CorruptError: the file of the study is damaged.
    """

    def __init__(
        self, path: Path, grid: Mapping[str, Sequence[Any] | Range], seed: int, seeds: int
    ) -> None:
        self._optuna = require_optuna()
        self._grid, self._seed = grid, seed
        self.path: Path = path
        self._file = path / FILE
        self._trial: Any = None
        path.mkdir(parents=True, exist_ok=True)
        with self._readable():
            self._study = self._open()
            self._require_same({**{k: _described(v) for k, v in grid.items()}, "": [seed, seeds]})
            # Of a process that was killed. Asked again, the sampler suggests the same.
            for trial in self._trials("RUNNING"):
                self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)

    def cells(self) -> list[dict[str, Any]]:
        """Return the settings of all finished trials, in their order."""
        return [self._cell(trial.params) for trial in self._trials("COMPLETE", "PRUNED")]

    def ask(self) -> dict[str, Any]:
        """Begin a trial, and return its settings."""
        with self._readable():
            done = len(self._trials("COMPLETE", "PRUNED"))
            # New random numbers for each trial: those of a killed process are lost.
            number = (self._seed * STRIDE + done) % 2**32
            self._study.sampler = self._optuna.samplers.TPESampler(seed=number)
            self._trial = self._study.ask()
            for key, values in self._grid.items():
                self._suggest(key, values)
            return self._cell(self._trial.params)

    def tell(self, value: float | None) -> None:
        """End the trial with its value; None if it has none, which is worse than any."""
        with self._readable():
            if value is None or not math.isfinite(value):
                self._study.tell(self._trial, state=self._optuna.trial.TrialState.PRUNED)
            else:
                self._study.tell(self._trial, value)

    def _open(self) -> Any:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        if self._file.exists():
            # A kill may have cut off the last line, and the next one would be appended to it.
            content = self._file.read_bytes()
            if not content.endswith(b"\n"):
                self._file.write_bytes(content[: content.rfind(b"\n") + 1])
        storage = JournalStorage(JournalFileBackend(str(self._file)))
        options = {"study_name": NAME, "direction": "maximize", "load_if_exists": True}
        return self._optuna.create_study(storage=storage, **options)

    def _require_same(self, asked: Mapping[str, Any]) -> None:
        now = json.dumps(asked)
        before = self._study.user_attrs.get(ASKED, now)
        if before != now:
            raise UsageError(
                f"{self._file.parent}: has a study of other values, ranges or seeds",
                "give those of the first start, or another --out",
            )
        self._study.set_user_attr(ASKED, now)

    def _trials(self, *states: str) -> list[Any]:
        kinds = [self._optuna.trial.TrialState[state] for state in states]
        found: list[Any] = self._study.get_trials(deepcopy=False, states=kinds)
        return found

    def _suggest(self, key: str, values: Sequence[Any] | Range) -> None:
        if not isinstance(values, Range):
            # As text: optuna's choices are no lists.
            self._trial.suggest_categorical(key, [json.dumps(value) for value in values])
        elif values.whole:
            self._trial.suggest_int(key, values.low, values.high, log=values.log)
        else:
            self._trial.suggest_float(key, values.low, values.high, log=values.log)

    def _cell(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a trial: its values as they are in a recipe."""
        return {
            key: values.value(found[key]) if isinstance(values, Range) else json.loads(found[key])
            for key, values in self._grid.items()
        }

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn the exceptions of optuna, of many types, into one that names the file."""
        try:
            yield
        except (ZooError, OSError):
            raise
        except Exception as error:
            raise CorruptError(
                f"{self._file}: not a readable study: {describe(error)}",
                "delete it: the same command finds the finished runs",
            ) from error


def _described(values: Sequence[Any] | Range) -> str | list[Any]:
    return repr(values) if isinstance(values, Range) else list(values)
