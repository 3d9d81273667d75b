"""Load the weights of other libraries into a model: renamed, adapted, and with notes for users."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from torch import Tensor, nn

from cnn_core.errors import UsageError
from cnn_core.weights.foreign import ForeignFile
from cnn_core.weights.keymap import KeyMap
from cnn_core.weights.naming import COUNTS, Match, best_match
from cnn_core.weights.torch_file import short

__all__ = ["MismatchError", "load_foreign"]

SHOWN = 5  # names in a line


class MismatchError(UsageError):
    """A file has other tensors than a model.

    `missing` are keys that the file lacks. If a shape differs, `key` is the tensor, and `shape` is
    its shape in the file.
    """

    def __init__(
        self,
        message: str,
        hint: str,
        *,
        missing: tuple[str, ...] = (),
        key: str = "",
        shape: tuple[int, ...] = (),
    ) -> None:
        super().__init__(message, hint)
        self.missing = missing
        self.key = key
        self.shape = shape


def load_foreign(
    model: nn.Module,
    file: ForeignFile,
    maps: Mapping[str, KeyMap],
    naming: str | None = None,
    fresh: Collection[str] = (),
) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Load a file with the key map called `naming`, by default the best match.

    Returns the name of the key map, "cnnzoo" if no renaming was needed; lines for the user: which
    of several state dicts was taken, what was left out or adapted, and whether a tensor contains
    NaN or infinity; and the names of the tensors in `fresh` that keep the model's values.

    A conv with 3 input channels is adapted to other channel counts: its weights are summed over
    RGB, and the sum is divided equally among the new channels. Tensors named in `fresh`, those of
    the head, keep the model's values if the file lacks them or the shapes differ.

    Raises:
        MismatchError: a key is missing or unexpected, or a shape differs. The message gives the
            key map under which most keys match, and the first differences.
        UsageError: the key map has a warning and `naming` does not request it.
    """
    expected = model.state_dict()
    shapes = {key: tuple(value.shape) for key, value in expected.items()}
    match = best_match(shapes, file.tensors, maps, naming)
    keymap = maps.get(match.naming, KeyMap())
    _require_all_keys(file, match, keymap, fresh)
    if keymap.warning and naming is None:
        raise UsageError(
            f"{file.path}: {keymap.warning}",
            f"naming='{match.naming}' loads it anyway: use it if you know that the file is "
            "compatible",
        )
    renamed = {key: file.tensors[name] for key, name in match.found.items()}
    loaded = {key: _adapted(key, expected[key], renamed, file, fresh) for key in expected}
    model.load_state_dict(loaded)
    notes = (*_choice(match), *_left_out(file, match), *_changes(model, renamed, fresh))
    return match.naming, notes, tuple(key for key in fresh if not _fits(key, renamed, expected))


def _require_all_keys(
    file: ForeignFile, match: Match, keymap: KeyMap, fresh: Collection[str]
) -> None:
    """Raise MismatchError unless a file has all parameters of the model and no others.

    Counters of batches are optional, and so are tensors of the head if they may be fresh.
    """
    heads = tuple({f"{keymap.theirs(key).rpartition('.')[0]}." for key in fresh})
    missing = [name for name in match.missing if not name.startswith(heads)]
    inner = [key.removeprefix(match.prefix) for key in match.unexpected]
    unexpected = [key for key in inner if not key.startswith(heads)]
    total, place = match.count + len(match.missing), ""
    if 2 * match.count < total:  # another network's file: the prefix means nothing
        unexpected = [key for key in file.tensors if key not in match.found.values()]
    elif match.prefix:
        place = f" in {match.place}"
    differences = []
    if missing:
        differences.append(f"{min(missing)} is missing ({len(missing)} in all)")
    if unexpected:
        differences.append(
            f"{short(unexpected[0])} is not a parameter of this model ({len(unexpected)} in all)"
        )
    if differences:
        naming = f"{match.naming} naming" if match.count else "any known naming"
        raise MismatchError(
            f"{file.path}: {match.count} of {total} names match under {naming}{place}: "
            f"{', and '.join(differences)}",
            "the file is for another network or variant",
            missing=tuple(missing),
        )


def _choice(match: Match) -> Iterator[str]:
    """Yield a line that says which of several complete state dicts was taken."""
    if match.rivals:
        others = [short(rival.rstrip(".")) for rival in match.rivals]
        yield (
            f"took the weights in {match.place}; there are also {_listed(map(repr, others))}: "
            f"naming '{match.naming}@{others[0]}' would take those in {others[0]!r}"
        )


def _left_out(file: ForeignFile, match: Match) -> Iterator[str]:
    """Yield a line that names what else the file contains."""
    rivals = tuple(rival for rival in match.rivals if rival)
    keys = [key for key in (*match.beside, *match.unexpected) if not key.startswith(rivals)]
    groups = Counter(_group(key, match.prefix) for key in keys)
    names = [name if n == 1 else f"{name} ({n} tensors)" for name, n in groups.items()]
    if names or file.others:
        yield f"left out: {_listed([*names, *map(short, file.others)])}"


def _group(key: str, prefix: str) -> str:
    """Return the name under which a tensor that was left out is counted in a note."""
    last = key.rpartition(".")[2]
    if last in COUNTS:
        return last
    # The key shares the first parts of the prefix, like "state_dict.criterion.weight", or none.
    parts, depth = key.split("."), 0
    while depth < len(parts) - 1 and prefix.startswith(".".join(parts[: depth + 1]) + "."):
        depth += 1
    return short(key if len(parts) - depth <= 2 else ".".join(parts[: depth + 1]))


def _changes(
    model: nn.Module, renamed: Mapping[str, Tensor], fresh: Collection[str]
) -> Iterator[str]:
    """Yield lines about adapted inputs and values that are not numbers."""
    state = model.state_dict()
    for key, value in renamed.items():
        if key not in fresh and not _fits(key, renamed, state):
            channels = state[key].shape[1]
            yield f"{key} is adapted from {value.shape[1]} to {channels} input channels"
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        yield f"contains NaN or infinity in {_listed(broken)}: outputs will not be numbers"


def _fits(key: str, found: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    """Return whether a file has a tensor in the model's shape."""
    return key in found and found[key].shape == state[key].shape


def _listed(names: Iterable[str]) -> str:
    """Return the first names, and how many more there are."""
    known = list(names)
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return ", ".join(known[:SHOWN]) + more


def _adapted(
    key: str,
    own: Tensor,
    state: Mapping[str, Tensor],
    file: ForeignFile,
    fresh: Collection[str],
) -> Tensor:
    """Return a tensor in the model's shape; keys in `fresh` may keep the model's own tensor."""
    value = state.get(key, own)
    if value.shape == own.shape:
        return value
    if key in fresh:
        return own
    same_kernel = own.ndim == 4 and value.ndim == 4 and own.shape[2:] == value.shape[2:]
    if same_kernel and own.shape[0] == value.shape[0] and value.shape[1] == 3:
        # On a grey image, summed weights give the output that the RGB weights give on three
        # copies of it.
        channels = own.shape[1]
        total = value.sum(1, keepdim=True)
        return total if channels == 1 else total.expand(-1, channels, -1, -1) / channels
    raise MismatchError(
        f"{file.path}: {key} has shape {tuple(value.shape)}, the model has {tuple(own.shape)}",
        "the file is for another network, variant or number of classes (num_classes)",
        key=key,
        shape=tuple(value.shape),
    )
