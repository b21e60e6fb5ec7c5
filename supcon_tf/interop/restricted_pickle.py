"""Reads pickles from untrusted sources without executing them.

A pickle is a program for a small stack machine that can import and call anything. This module
implements a restricted machine: it supports only the few instructions that plain data needs,
imports nothing, calls only the constructors that it was given, and stops at fixed limits. The
result consists of plain Python values and of the values that these constructors return.
"""

from __future__ import annotations

import dataclasses
import io
import pickletools
from collections.abc import Callable, Mapping

MAX_BYTES = 16 * 2**20
# A checkpoint of a ResNet-200 with its optimizer needs about 100,000 instructions.
MAX_INSTRUCTIONS = 1_000_000
MAX_DEPTH = 32
MAX_PROTOCOL = 5
# Larger integers can be chosen to have the same hash, which makes a dictionary slow.
_MAX_KEY = 2**60
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}


class RefusedError(ValueError):
    """The pickle is damaged, too large, or contains something other than data."""


@dataclasses.dataclass(frozen=True)
class Global:
    """A module-level name in a pickle. It is not imported."""

    module: str
    name: str

    def __str__(self):
        return ascii(f"{self.module}.{self.name}")[1:-1][:200]


def load_pickle(
    data: io.BytesIO,
    *,
    constructors: Mapping[Global, Callable | None],
    persistent_load: Callable[[object], object] | None = None,
) -> object:
    """Reads the pickle that starts at the current position of `data`.

    Args:
        data: A stream at the start of the pickle. Afterwards it is at the end of the pickle.
        constructors: Maps each name that the pickle may contain to a function that creates the
            value from the arguments, or to None for a name that must not be called.
        persistent_load: Returns the value for a persistent id. None rejects persistent ids.

    Returns:
        None, bool, int, float, str, tuple, list, dict, `Global`, or the value of a constructor.

    Raises:
        RefusedError: If the pickle is damaged, exceeds a limit, or contains anything else.
    """
    machine = _Machine(constructors, persistent_load)
    try:
        for _ in range(MAX_INSTRUCTIONS):
            opcode = _OPCODES.get(data.read(1).decode("latin-1"))
            name = opcode.name if opcode else "unknown"
            if name == "STOP":
                return machine.result()
            if opcode is None or name not in _INSTRUCTIONS:  # Raise before the argument is read.
                raise RefusedError(
                    f"its pickle is damaged or has the unsupported instruction {name}"
                )
            _INSTRUCTIONS[name](machine, opcode.arg.reader(data) if opcode.arg else None)
    except RefusedError:
        raise
    except Exception as error:  # Readers and constructors raise many types for damaged input.
        raise RefusedError(f"its pickle is damaged ({type(error).__name__})") from error
    raise RefusedError(f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions")


_MARK = object()


class _Machine:
    """The stack, the memo, and the nesting depth of each container in them."""

    def __init__(self, constructors, persistent_load):
        self._constructors, self._persistent_load = constructors, persistent_load
        self._stack, self._memo = [], {}
        # Depths by id(); the containers are kept alive so that their ids stay unique.
        self._depths, self._containers = {}, []

    def result(self):
        if len(self._stack) != 1:
            raise RefusedError("its pickle is damaged (the final stack is not a single value)")
        return self._pop()

    def push(self, value):
        self._stack.append(value)

    def _pop(self):
        if not self._stack or self._stack[-1] is _MARK:
            raise RefusedError("its pickle is damaged (it pops from an empty stack)")
        return self._stack.pop()

    def mark(self):
        self._stack.append(_MARK)

    def _pop_to_mark(self):
        items = []
        while self._stack and self._stack[-1] is not _MARK:
            items.append(self._stack.pop())
        if not self._stack:
            raise RefusedError("its pickle is damaged (a mark is missing)")
        self._stack.pop()
        return items[::-1]

    def _top(self, kind):
        value = self._pop()
        if type(value) is not kind:
            raise RefusedError(f"it uses a {type(value).__name__} as a {kind.__name__}")
        self.push(value)
        return value

    def _nest(self, container, items):
        """Records that the container holds these items, and checks the nesting depth."""
        depth = self._depths.get(id(container))
        if depth is None:
            self._containers.append(container)
            depth = 1
        depth = max([depth, *(self._depths.get(id(item), 0) + 1 for item in items)])
        if depth > MAX_DEPTH:
            raise RefusedError(f"its values are nested more than {MAX_DEPTH} levels deep")
        self._depths[id(container)] = depth

    def push_container(self, container, items=()):
        self._nest(container, items)
        self.push(container)

    def make_tuple(self, count=None):
        items = self._pop_to_mark() if count is None else [self._pop() for _ in range(count)][::-1]
        self.push_container(tuple(items), items)

    def append(self, items):
        target = self._top(list)
        target.extend(items)
        self._nest(target, items)

    def append_one(self):
        self.append([self._pop()])

    def append_many(self):
        self.append(self._pop_to_mark())

    def set_items(self, items):
        target = self._top(dict)
        if len(items) % 2:
            raise RefusedError("its pickle is damaged (a key without a value)")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Tuples are not allowed: hashing nested shared tuples takes exponential time.
            is_number = isinstance(key, int) and abs(key) < _MAX_KEY
            if not is_number and not isinstance(key, str):
                raise RefusedError(
                    f"it has a dictionary key of type {type(key).__name__}; expected strings or "
                    "integers below 2^60"
                )
            target[key] = value
        self._nest(target, items[1::2])

    def set_one(self):
        value, key = self._pop(), self._pop()
        self.set_items([key, value])

    def set_many(self):
        self.set_items(self._pop_to_mark())

    def put(self, index):
        value = self._pop()
        self.push(value)
        self._memo[index] = value

    def memoize(self):
        self.put(len(self._memo))

    def get(self, index):
        if index not in self._memo:
            raise RefusedError("its pickle is damaged (it refers to a missing value)")
        self.push(self._memo[index])

    def push_global(self, module, name):
        found = Global(module, name)
        if found not in self._constructors:
            raise RefusedError(f"it contains the name {found}, which is not allowed")
        self.push(found)

    def push_stack_global(self):
        name, module = self._pop(), self._pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise RefusedError("its pickle is damaged (a name is not a string)")
        self.push_global(module, name)

    def call(self):
        arguments, function = self._pop(), self._pop()
        constructor = self._constructors.get(function) if type(function) is Global else None
        if constructor is None or type(arguments) is not tuple:
            called = function if type(function) is Global else "a value"
            raise RefusedError(f"it calls {called}, which is not allowed")
        value = constructor(*arguments)
        # Only a new dictionary can receive further items later.
        self.push_container(value, arguments)

    def discard_state(self):
        """Ignores the attributes that BUILD sets, because no value here has attributes."""
        self._pop()
        target = self._pop()
        if type(target) is Global:
            raise RefusedError(f"it modifies {target}, which is not allowed")
        self.push(target)

    def push_persistent(self):
        saved_id = self._pop()
        if self._persistent_load is None:
            raise RefusedError("it refers to external data, which is not allowed here")
        self.push(self._persistent_load(saved_id))

    def check_protocol(self, version):
        if version > MAX_PROTOCOL:
            raise RefusedError(
                f"it uses pickle protocol {version}; the newest supported protocol is "
                f"{MAX_PROTOCOL}"
            )


_INSTRUCTIONS = {
    "PROTO": _Machine.check_protocol,
    "FRAME": lambda machine, _: None,
    "MARK": lambda machine, _: machine.mark(),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
        _Machine.push,
    ),
    "EMPTY_TUPLE": lambda machine, _: machine.make_tuple(0),
    "TUPLE1": lambda machine, _: machine.make_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_tuple(3),
    "TUPLE": lambda machine, _: machine.make_tuple(),
    "EMPTY_LIST": lambda machine, _: machine.push_container([]),
    "APPEND": lambda machine, _: machine.append_one(),
    "APPENDS": lambda machine, _: machine.append_many(),
    "EMPTY_DICT": lambda machine, _: machine.push_container({}),
    "SETITEM": lambda machine, _: machine.set_one(),
    "SETITEMS": lambda machine, _: machine.set_many(),
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": lambda machine, _: machine.memoize(),
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": lambda machine, names: machine.push_global(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.push_stack_global(),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.discard_state(),
    "BINPERSID": lambda machine, _: machine.push_persistent(),
}
