"""Find a model's parameters among the tensors of a file: under which names, behind which prefix.

A training script puts the state dict of a network into a file as it likes: in a dictionary
("state_dict"), as a part of another module ("model.", "module.densenet121."), twice (with its
moving average), beside loss buffers and an optimizer. Files are read with all keys joined by dots
(`cnn_core.weights.foreign`), so all of these are prefixes. A key map and a prefix are chosen
together: those under which most of the model's parameters are in the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from cnn_core.errors import UsageError
from cnn_core.text import did_you_mean
from cnn_core.weights.keymap import KeyMap
from cnn_core.weights.torch_file import short

__all__ = ["COUNTER", "COUNTS", "Match", "best_match"]

COUNTER = "num_batches_tracked"  # files from before torch 0.4.1 have none
MAX_PARTS = 20  # of a prefix

# Where a file contains several complete state dicts, moving averages come first, because they are
# the weights that trainings evaluate; then these names in this order; then the file's own order.
AVERAGES = re.compile(r"(.*_)?(ema|swa|averaged?)(_.*)?")
PREFERRED = (
    *("state_dict", "model_state_dict", "model", "network", "net", "params", "weights"),
    *("teacher", "student"),
)
# Optimizers keep tensors of the parameters' names and shapes, too: these are never chosen first.
STATES = re.compile(r"(.*_)?(optim|optimi[sz]er|grads?|gradients?|momentum|exp_avg(_sq)?)s?(_.*)?")

# Tensors that are not the network's parameters: those of losses, metrics, training loops and
# averages, by the first part of their keys (BESIDE), and those of `thop`, which counts operations,
# by the last part (COUNTS).
BESIDE = re.compile(
    r"(.*_)?(criterion|loss|losses)(_fn|_func|_function|_module)?"
    r"|(.*_)?(optim|optimi[sz]er|scheduler|metric)s?"
    r"|(train|val|valid|test)_(acc|accuracy|f1|auroc|iou)"
    r"|n_averaged|epochs?|(global_)?steps?|iterations?|best_\w+|lr"
)
COUNTS = ("total_ops", "total_params")


@dataclass(frozen=True, kw_only=True)
class Match:
    """Parameters of a model found in a file under one key map and behind one prefix.

    `found` maps the model's keys to the file's; `missing` are those that the file lacks, under the
    file's names without prefix. `unexpected` are the file's keys behind the prefix that the model
    has no place for, `beside` those that are no parameters. `same_shape` is the number of found
    tensors with the model's shape. `rivals` are prefixes behind which equally many were found.
    """

    naming: str
    prefix: str
    found: Mapping[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    beside: tuple[str, ...]
    same_shape: int
    rivals: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """The number of parameters found, without counters of batches, which are optional."""
        return sum(not key.endswith(COUNTER) for key in self.found)

    @property
    def place(self) -> str:
        """Where the parameters are, in words."""
        return f"'{short(self.prefix.rstrip('.'))}'" if self.prefix else "the top level"


def best_match(
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Tensor],
    maps: Mapping[str, KeyMap],
    naming: str | None = None,
) -> Match:
    """Return where in a file most parameters of a model are; `shapes` are the model's, by key.

    Of equal places, the first is the one with more tensors of the model's shapes, then the one
    with fewer unexpected keys, then the one that `PREFERRED` names first. With `naming`, only that
    key map is considered; "NAMING@PREFIX" also says the prefix, without its last dot.

    Raises:
        UsageError: there is no key map of that name; suggests one.
    """
    known = {"cnnzoo": KeyMap(), **maps}
    wanted, at, place = (naming or "").partition("@")
    if wanted and wanted not in known:
        nearest = did_you_mean(wanted, known)
        raise UsageError(f"naming = '{naming}'{nearest}", f"one of {', '.join(known)}")
    prefix = (f"{place}." if place else "") if at else None
    matches = [
        match
        for name, keymap in known.items()
        if wanted in ("", name)
        for match in _matches(name, keymap, shapes, tensors, prefix)
    ]
    return max(matches, key=lambda m: (m.count, m.same_shape, -len(m.unexpected)))


def _matches(
    naming: str,
    keymap: KeyMap,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Tensor],
    prefix: str | None,
) -> list[Match]:
    """Return the matches behind those prefixes that have most of a key map's keys, best first."""
    theirs = {key: keymap.theirs(key) for key in shapes}
    wanted = {name for name in theirs.values() if not name.endswith(COUNTER)}
    counts = Counter(
        key[:start] for key in tensors for start in _starts(key) if key[start:] in wanted
    )
    most = max(counts.values(), default=0)
    # A Counter keeps the file's order.
    prefixes = sorted((p for p in counts if counts[p] == most), key=_preference) or [""]
    return [
        _match(naming, keymap, chosen, theirs, shapes, tensors, prefixes)
        for chosen in (prefixes if prefix is None else [prefix])
    ]


def _starts(key: str) -> list[int]:
    """Return the positions at which the first parts of a key begin."""
    return [0, *(dot.end() for dot in islice(re.finditer(r"\.", key), MAX_PARTS))]


def _preference(prefix: str) -> tuple[bool, list[int]]:
    """Return the rank of a prefix, lower is better."""
    parts = prefix.split(".")[:-1]
    last = len(PREFERRED) + 1
    ranks = [
        0 if AVERAGES.fullmatch(part) else 1 + PREFERRED.index(part) if part in PREFERRED else last
        for part in parts
    ]
    return any(STATES.fullmatch(part) for part in parts), sorted(ranks)


def _match(
    naming: str,
    keymap: KeyMap,
    prefix: str,
    theirs: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Tensor],
    prefixes: list[str],
) -> Match:
    found = {key: prefix + name for key, name in theirs.items() if prefix + name in tensors}
    used, modules = set(found.values()), {name.partition(".")[0] for name in theirs.values()}
    rivals = tuple(other for other in prefixes if other != prefix)
    elsewhere = tuple(other for other in rivals if other)
    unexpected, beside = [], []
    for key in tensors:
        inner = key.removeprefix(prefix)
        if key in used or (inner.endswith(COUNTER) and key.startswith(prefix)):
            continue
        if not key.startswith(prefix) or key.startswith(elsewhere) or _is_beside(inner, modules):
            beside.append(key)
        elif not inner.startswith(keymap.ignored_prefixes):
            unexpected.append(key)
    return Match(
        naming=naming,
        prefix=prefix,
        found=found,
        missing=tuple(
            name for key, name in theirs.items() if key not in found and not name.endswith(COUNTER)
        ),
        unexpected=tuple(unexpected),
        beside=tuple(beside),
        same_shape=sum(tuple(tensors[name].shape) == shapes[key] for key, name in found.items()),
        rivals=rivals,
    )


def _is_beside(key: str, modules: Collection[str]) -> bool:
    """Return whether a key behind the prefix is no parameter; `modules` are the network's own."""
    first, last = key.partition(".")[0], key.rpartition(".")[2]
    return last in COUNTS or (first not in modules and BESIDE.fullmatch(first) is not None)
