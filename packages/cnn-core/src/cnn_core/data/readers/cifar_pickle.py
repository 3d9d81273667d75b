"""Reader of CIFAR's pickled batches that unpickles nothing: it knows some opcodes and no class."""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from cnn_core.errors import DatasetCorruptError
from cnn_core.text import printable

__all__ = ["PIXELS", "corrupt", "read_pickled"]

PIXELS = 3 * 32 * 32
MAX_OPCODES = 1_000_000  # about twice what CIFAR-100's train has when Python 3 wrote it
BLOCK = 1 << 20

RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
NAMES = (*RECONSTRUCT, "numpy ndarray", "numpy dtype", "_codecs encode")

# The opcodes that are let in, but for those that are methods of the machine: see pickletools
# in the standard library. A number follows these, or the length of a string.
NUMBERS = {"K": "<B", "M": "<H", "J": "<i"}
LONG = "\x8a"  # Python 2's other integer: a length, and that many bytes
STRINGS = {"U": "<B", "T": "<i", "C": "<B", "B": "<I", "X": "<I"}
PUTS = {"q": "<B", "r": "<I"}
GETS = {"h": "<B", "j": "<I"}
CONSTANTS = {"N": None, "\x88": True, "\x89": False}
TUPLES = {"\x85": 1, "\x86": 2, "\x87": 3}


@dataclass(frozen=True, slots=True)
class Span:
    """A string, by where its bytes are in the file; `encoded` says that they are UTF-8."""

    start: int
    stop: int
    encoded: bool


@dataclass(frozen=True, slots=True)
class Name:
    """What a pickle calls a global: compared with, and never looked up."""

    text: str


@dataclass(slots=True)
class Element:
    """The element type uint8, the only one that is let in."""


@dataclass(slots=True)
class Array:
    """A numpy array of bytes, as the pickle describes it; no `pixels` until it has."""

    shape: tuple[object, ...] = ()
    fortran: bool = False
    pixels: Span | None = None


Batch = dict[bytes, tuple[int, object]]  # by key: the byte where it stands, and the value

T = TypeVar("T")


def read_pickled(path: Path, labels: Mapping[bytes, int], rows: np.ndarray) -> Tensor:
    """Read the images of a batch into the first of `rows`, uint8 N 3072; return its targets.

    `labels` has the keys of the lists of labels and the number of classes of each; the last
    one's are returned, int64.

    Raises:
        DatasetCorruptError: not a pickle of protocol 2 or 3 that Python and numpy make of such
            a batch; names the byte.
    """
    data = path.read_bytes()
    batch = _Machine(path, data).run()
    at, array = _value(path, batch, b"data")
    if not isinstance(array, Array):
        raise corrupt(path, at, "a numpy array", type(array).__name__)
    count = _copy(path, at, data, array, rows)
    found: list[int] = []
    for key, classes in labels.items():
        at, value = _value(path, batch, key)
        found = _labels(path, at, value, count, classes)
    at, names = batch.get(b"filenames", (0, None))
    if isinstance(names, list) and len(names) != count:
        raise corrupt(path, at, f"{count:,} file names", f"{len(names):,}")
    return torch.tensor(found, dtype=torch.int64)


def corrupt(path: Path, offset: int, expected: str, found: str) -> DatasetCorruptError:
    """Return the error that says what is wrong with a file and where."""
    return DatasetCorruptError(
        f"{path}: at byte {offset}: expected {expected}, found {found}",
        "delete it and fetch it again",
    )


def _value(path: Path, batch: Batch, key: bytes) -> tuple[int, object]:
    if key not in batch:
        keys = ", ".join(printable(key.decode("latin-1")) for key in list(batch)[:8])
        raise corrupt(path, 0, f"a batch with {key.decode()}", keys or "an empty one")
    return batch[key]


def _labels(path: Path, at: int, found: object, count: int, classes: int) -> list[int]:
    if not isinstance(found, list) or len(found) != count:
        what = f"{len(found):,}" if isinstance(found, list) else type(found).__name__
        raise corrupt(path, at, f"a list of {count:,} labels", what)
    for label in found:
        if type(label) is not int or not 0 <= label < classes:
            what = str(label) if type(label) is int else type(label).__name__
            raise corrupt(path, at, f"labels from 0 to {classes - 1}", what)
    return found


def _copy(path: Path, at: int, data: bytes, array: Array, rows: np.ndarray) -> int:
    """Copy an array's pixels into the first rows; return how many images there are."""
    span, shape = array.pixels, array.shape
    match shape:
        case (int(count), int(width)) if 1 <= count <= len(rows) and width == PIXELS:
            pass
        case _:
            found = " x ".join(str(n) if isinstance(n, int) else "?" for n in shape)
            expected = f"a numpy array of 1 to {len(rows):,} x {PIXELS:,}"
            raise corrupt(path, at, expected, found or "none")
    if span is None or span.stop - span.start < count * PIXELS:
        found = f"{span.stop - span.start:,}" if span else "none"
        raise corrupt(path, at, f"{count * PIXELS:,} bytes of pixels", found)
    flat = np.empty(count * PIXELS, np.uint8) if array.fortran else rows[:count].reshape(-1)
    try:
        _fill(flat, data, span)
    except ValueError as error:  # not UTF-8, not Latin-1, or not as many
        raise corrupt(path, span.start, f"{len(flat):,} bytes of pixels", str(error)) from error
    if array.fortran:
        rows[:count] = flat.reshape(PIXELS, count).T
    return count


def _fill(flat: np.ndarray, data: bytes, span: Span) -> None:
    """Copy a string's bytes; of an encoded one, each character is a byte."""
    if not span.encoded:
        flat[:] = np.frombuffer(data, np.uint8, span.stop - span.start, span.start)
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    filled = 0
    for start in range(span.start, span.stop, BLOCK):
        stop = min(span.stop, start + BLOCK)
        block = decoder.decode(data[start:stop], stop == span.stop).encode("latin-1")
        flat[filled : filled + len(block)] = np.frombuffer(block, np.uint8)
        filled += len(block)
    if filled != len(flat):
        raise ValueError(f"{filled:,}")


class _Machine:
    """What a pickle drives: it makes numbers, lists, tuples, one dictionary and one array.

    Anything else is refused. No name is looked up, nothing is called, and the memory taken
    grows with the file, never with what it claims.
    """

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data = path, data
        self.at = self.next = 0  # the bytes where this opcode starts, and where its argument
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def run(self) -> Batch:
        """Return the dictionary that the pickle describes, by its keys."""
        if self.data[:2] not in (b"\x80\x02", b"\x80\x03"):
            start = self.data[:8].hex(" ") or "nothing"
            raise self.corrupt("a pickle of protocol 2 (80 02)", start)
        self.next = 2
        for _ in range(MAX_OPCODES):
            self.at = self.next
            opcode = chr(self.number("<B"))
            if opcode == ".":
                return self.batch()
            self.step(opcode)
        raise self.corrupt(f"at most {MAX_OPCODES:,} opcodes", "more")

    def step(self, opcode: str) -> None:
        """Do what one opcode says, if it is let in."""
        if opcode in NUMBERS:
            self.stack.append(self.number(NUMBERS[opcode]))
        elif opcode == LONG:
            start, self.next = self.skip(self.number("<B"))
            digits = self.data[start : self.next]
            self.stack.append(int.from_bytes(digits, "little", signed=True))
        elif opcode in STRINGS:
            start, self.next = self.skip(self.number(STRINGS[opcode]))
            self.stack.append(Span(start, self.next, opcode == "X"))
        elif opcode in PUTS:
            self.memo[self.number(PUTS[opcode])] = self.top(object)
        elif opcode in GETS:
            self.stack.append(self.recalled(self.number(GETS[opcode])))
        elif opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in TUPLES:
            items = [self.pop(object) for _ in range(TUPLES[opcode])]
            self.stack.append(tuple(reversed(items)))
        elif opcode in ACTIONS:
            ACTIONS[opcode](self)
        else:
            raise self.corrupt("an opcode of a batch of images", repr(opcode))

    def number(self, layout: str) -> int:
        """Read an argument."""
        start, self.next = self.skip(struct.calcsize(layout))
        number: int = struct.unpack_from(layout, self.data, start)[0]
        return number

    def skip(self, size: int) -> tuple[int, int]:
        """Return where the next `size` bytes start and stop, if they are there."""
        if not 0 <= size <= len(self.data) - self.next:
            raise self.corrupt(f"{size:,} bytes more", f"{len(self.data) - self.next:,}")
        return self.next, self.next + size

    def recalled(self, number: int) -> object:
        """Return what was put into the memo."""
        if number not in self.memo:
            raise self.corrupt("something put before", f"nothing as number {number}")
        return self.memo[number]

    def top(self, kind: type[T]) -> T:
        """Return the value on top, which has to be of a kind and above the last mark."""
        floor = self.marks[-1] if self.marks else 0
        value = self.stack[-1] if len(self.stack) > floor else self.stack
        if value is self.stack or not isinstance(value, kind):
            found = "nothing" if value is self.stack else type(value).__name__
            raise self.corrupt(f"a value ({kind.__name__}) before this opcode", found)
        return value

    def pop(self, kind: type[T]) -> T:
        """Take the value on top."""
        value = self.top(kind)
        self.stack.pop()
        return value

    def collect(self) -> list[object]:
        """Take everything above the last mark, and the mark."""
        if not self.marks:
            raise self.corrupt("a mark before this opcode", "none")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def extend(self, items: list[object]) -> None:
        """Append to the list on top."""
        self.top(list).extend(items)

    def set_items(self, items: list[object]) -> None:
        """Put keys and values, in turn, into the dictionary."""
        batch = self.top(dict)
        if len(items) % 2:
            raise self.corrupt("as many values as keys", f"{len(items)} in all")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, Span) or not (text := self.text(key)):
                raise self.corrupt("a short string as key", type(key).__name__)
            batch[text] = (key.start, value)

    def text(self, value: object) -> bytes:
        """Return a short string's bytes; nothing for whatever else."""
        if not isinstance(value, Span) or value.stop - value.start > 64:
            return b""
        return self.data[value.start : value.stop]

    def name(self) -> None:
        """Read the two lines that name a global; only five are let in."""
        lines = []
        for _ in range(2):
            stop = self.data.find(b"\n", self.next, self.next + 64)
            if stop < 0:
                raise self.corrupt("the name of a global", "none, or a long one")
            lines.append(self.data[self.next : stop].decode("latin-1"))
            self.next = stop + 1
        if (text := " ".join(lines)) not in NAMES:
            raise self.corrupt("parts of a numpy array", f"the global {printable(text)}")
        self.stack.append(Name(text))

    def reduce(self) -> None:
        """Stand in for the three calls that make an array, its element type and bytes."""
        arguments, called = self.pop(tuple), self.pop(Name)
        match called.text, arguments:
            case "_codecs encode", (Span() as span, name) if self.text(name) == b"latin1":
                self.stack.append(span)
            case "numpy dtype", (name, *_) if self.text(name) == b"u1":
                self.stack.append(Element())
            case text, (Name("numpy ndarray"), *_) if text in RECONSTRUCT:
                self.stack.append(Array())
            case text, _:
                raise self.corrupt("an array of uint8", f"another call of {text}")

    def build(self) -> None:
        """Give an array its shape and pixels; what an element type gets changes nothing."""
        state = self.pop(tuple)
        match self.top(object), state:
            case Element(), _:
                pass
            case Array() as array, (_, tuple() as shape, Element(), bool(fortran), Span() as span):
                array.shape, array.fortran, array.pixels = shape, fortran, span
            case value, _:
                raise self.corrupt("the state of an array", f"another of {type(value).__name__}")

    def batch(self) -> Batch:
        """Return the dictionary, with which the file has to end."""
        batch: Batch = self.pop(dict)
        if self.stack or self.marks or self.next != len(self.data):
            left = len(self.data) - self.next
            raise self.corrupt("the end", f"{left:,} bytes and {len(self.stack)} values more")
        return batch

    def corrupt(self, expected: str, found: str) -> DatasetCorruptError:
        """Return the error, at this opcode."""
        return corrupt(self.path, self.at, expected, found)


# The other opcodes that are let in.
ACTIONS: dict[str, Callable[[_Machine], None]] = {
    "}": lambda machine: machine.stack.append({}),
    "]": lambda machine: machine.stack.append([]),
    ")": lambda machine: machine.stack.append(()),
    "(": lambda machine: machine.marks.append(len(machine.stack)),
    "t": lambda machine: machine.stack.append(tuple(machine.collect())),
    "a": lambda machine: machine.extend([machine.pop(object)]),
    "e": lambda machine: machine.extend(machine.collect()),
    "s": lambda machine: machine.set_items([machine.pop(object), machine.pop(object)][::-1]),
    "u": lambda machine: machine.set_items(machine.collect()),
    "c": _Machine.name,
    "R": _Machine.reduce,
    "b": _Machine.build,
}
