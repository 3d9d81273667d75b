"""Check a pickle before it is loaded, without building, importing or calling anything.

An unpickler that allows few names runs no foreign code, but a file can still hang it or fill the
memory: nested tuples that repeat each other double in size at every step, deep ones overflow C's
stack when they are hashed, numbers can be chosen to collide in a dictionary, and one list can be
copied a hundred thousand times.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

from cnn_core.text import printable

__all__ = ["Group", "Keys", "Name", "NeedsTrustError", "OTHER", "PickleScan"]

MAX_DEPTH = 50  # nested tuples
MAX_PLAIN = 1 << 31  # smaller integers cannot be chosen so that their hashes collide
SET_STORAGE = 4  # length of a tuple that torch takes for a tensor's storage, offset and shape
OTHER = object()  # stands for any value that no check needs


class NeedsTrustError(ValueError):
    """The file can be loaded only by running code that its author chose."""


class Name(str):
    """The name of a global: "module name"."""


class Keys(list[Any]):
    """A dictionary or set, represented by its keys, since only they are checked."""


class Group(tuple[Any, ...]):
    """A tuple, with its nesting depth and the cost of hashing or copying it."""

    def __init__(self, items: Iterable[Any]) -> None:
        inner = [item for item in self if isinstance(item, Group)]
        self.depth: int = 1 + max((item.depth for item in inner), default=0)
        self.cost: int = 1 + sum(map(cost, self))
        if self.depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} nested tuples")


def cost(value: object) -> int:
    """Return the number of steps to hash or copy a value; 64 characters count as one."""
    if isinstance(value, Group):
        return value.cost
    if isinstance(value, str | bytes):
        return 1 + len(value) // 64
    return 1 + (len(value) if isinstance(value, list) else 0)


class PickleScan:
    """A stack machine that executes a pickle's opcodes on stand-ins for its values.

    Each opcode counts as a step, and so does every value that it repeats. A list or dictionary
    recalled from the memo becomes OTHER, so that nothing can extend or copy it any more.
    """

    def __init__(self, names: Iterable[str], max_steps: int) -> None:
        self.names: frozenset[str] = frozenset(names)
        self.max_steps: int = max_steps
        self.steps: int = 0
        self.odd_keys: int = 0
        self.unknown: dict[str, None] = {}

    def run(self, stream: BinaryIO | bytes) -> Any:
        """Return the stand-in for the pickled value; numbers and strings stand for themselves.

        Raises:
            NeedsTrustError: the pickle has names that are not allowed.
            ValueError: the pickle is broken, has opcodes that are not allowed, or takes too many
                steps.
        """
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                self.spend(1)
                if opcode.name not in ACTIONS:
                    raise ValueError(f"has the opcode {opcode.name}")
                ACTIONS[opcode.name](self, argument)
        except (ValueError, IndexError) as error:
            if not self.unknown:
                raise ValueError(f"its pickle is refused: {error}") from error
        self.require_known()
        return self.stack[-1]

    def require_known(self) -> None:
        """Raise NeedsTrustError if the pickle has names that are not allowed."""
        if self.unknown:
            first = [name.replace(" ", ".")[:80] for name in list(self.unknown)[:3]]
            names = ", ".join(map(printable, first))
            raise NeedsTrustError(f"its pickle names {names}")

    def spend(self, steps: int) -> None:
        """Count steps; raise ValueError if there are too many."""
        self.steps += steps
        if self.steps > self.max_steps:
            raise ValueError(f"takes more than {self.max_steps:,} steps")

    def called(self, name: Name, arguments: Group) -> Any:
        """Return the stand-in for the result of a call; may raise ValueError."""
        return OTHER

    def stored(self, identity: Any) -> Any:
        """Return the stand-in for an object stored outside the pickle; may raise ValueError."""
        raise ValueError("refers to an object outside the pickle")

    def hashed(self, keys: Iterable[Any]) -> None:
        """Count the steps to hash keys: those that may collide cost one for each earlier one."""
        for key in keys:
            plain = isinstance(key, int) and abs(key) < MAX_PLAIN
            if not plain and not isinstance(key, str | bytes):
                self.odd_keys += 1
                self.spend(self.odd_keys)

    # The opcodes. Where one of these pops below a mark, a real unpickler stops.

    def push(self, value: Any) -> None:
        """Put a stand-in on the stack."""
        self.stack.append(value)

    def take(self, count: int) -> list[Any]:
        """Remove and return the last `count` stand-ins, in their order."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def collect(self) -> list[Any]:
        """Remove and return the stand-ins above the last mark."""
        return self.take(len(self.stack) - self.marks.pop())

    def put(self, number: int) -> None:
        """Store the last stand-in in the memo."""
        # CPython 3.11 allocates a memo twice as long as the largest memo number.
        if number > self.max_steps:
            raise ValueError(f"has the memo number {number:,}")
        self.memo[number] = self.stack[-1]

    def get(self, number: int) -> None:
        """Recall a stand-in from the memo."""
        if number not in self.memo:
            raise ValueError(f"recalls memo number {number:,}, which it never stored")
        value = self.memo[number]
        self.spend(cost(value))
        self.push(OTHER if isinstance(value, list) else value)

    def name(self, text: str) -> None:
        """Push a global, and note it if it is not allowed."""
        if text not in self.names:
            self.unknown[text] = None
        self.push(Name(text))

    def append(self, items: list[Any]) -> None:
        """Append to the list on the stack."""
        if type(self.stack[-1]) is not list:
            raise ValueError("appends to something that is not a list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Set keys of the dictionary on the stack."""
        if not isinstance(self.stack[-1], Keys) or len(items) % 2:
            raise ValueError("sets items of something that is not a dictionary")
        self.hashed(items[::2])
        self.stack[-1].extend(items[::2])

    def call(self, _: object) -> None:
        """Call a global: `REDUCE` or `NEWOBJ`."""
        function, arguments = self.take(2)
        if not isinstance(function, Name) or not isinstance(arguments, Group):
            raise ValueError("calls something that is not a name")
        self.push(self.called(function, arguments) if function in self.names else OTHER)

    def stack_global(self, _: object) -> None:
        """Push a global whose name is on the stack."""
        module, name = self.take(2)
        if type(module) is not str or type(name) is not str:
            raise ValueError("names something that is not a string")
        self.name(f"{module} {name}")

    def instance(self, text: str) -> None:
        """Refuse `INST`, which torch never writes."""
        self.name(text)
        raise ValueError("has the opcode INST")

    def build(self, _: object) -> None:
        """Give attributes to an object, as `BUILD` does."""
        state = self.stack.pop()
        # Attributes set on a class would outlive the unpickling.
        plain = self.stack[-1] is OTHER or isinstance(self.stack[-1], Keys)
        attributes = isinstance(state, Keys) or (
            isinstance(state, Group) and len(state) != SET_STORAGE
        )
        if not plain or not attributes:
            raise ValueError("sets attributes of something that has none")


def _literal(scan: PickleScan, argument: Any) -> None:
    scan.push(argument)


ACTIONS: dict[str, Callable[[PickleScan, Any], object]] = {
    **dict.fromkeys(["BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"], _literal),
    **dict.fromkeys(["BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"], _literal),
    **dict.fromkeys(["BINBYTES", "SHORT_BINBYTES", "NONE"], _literal),
    **dict.fromkeys(["PROTO", "FRAME", "STOP"], lambda scan, _: None),
    **dict.fromkeys(["BINPUT", "LONG_BINPUT"], PickleScan.put),
    **dict.fromkeys(["BINGET", "LONG_BINGET"], PickleScan.get),
    **dict.fromkeys(["REDUCE", "NEWOBJ"], PickleScan.call),
    "NEWTRUE": lambda scan, _: scan.push(True),
    "NEWFALSE": lambda scan, _: scan.push(False),
    "MARK": lambda scan, _: scan.marks.append(len(scan.stack)),
    "MEMOIZE": lambda scan, _: scan.put(len(scan.memo)),
    "EMPTY_TUPLE": lambda scan, _: scan.push(Group(())),
    "TUPLE1": lambda scan, _: scan.push(Group(scan.take(1))),
    "TUPLE2": lambda scan, _: scan.push(Group(scan.take(2))),
    "TUPLE3": lambda scan, _: scan.push(Group(scan.take(3))),
    "TUPLE": lambda scan, _: scan.push(Group(scan.collect())),
    "EMPTY_LIST": lambda scan, _: scan.push([]),
    "APPEND": lambda scan, _: scan.append(scan.take(1)),
    "APPENDS": lambda scan, _: scan.append(scan.collect()),
    "EMPTY_DICT": lambda scan, _: scan.push(Keys()),
    "SETITEM": lambda scan, _: scan.set_items(scan.take(2)),
    "SETITEMS": lambda scan, _: scan.set_items(scan.collect()),
    "GLOBAL": PickleScan.name,
    "STACK_GLOBAL": PickleScan.stack_global,
    "INST": PickleScan.instance,
    "BUILD": PickleScan.build,
    "BINPERSID": lambda scan, _: scan.push(scan.stored(scan.stack.pop())),
}
