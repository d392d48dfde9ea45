"""What modules, closures and objects keep besides arguments: counters, a carried hidden state, lists, generators.

No run looks after these: a step that depends on them cannot be replayed, and the replay check says so. But what is
only tried, before a run, must not move them.
"""

from __future__ import annotations

import functools
import inspect
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gimli_core.globals_named import globals_named

__all__ = ["ROOM", "attributes_of", "filled", "functions_of"]

# Of torch's own: parameters, buffers, submodules and hooks. Whether a module trains is a plain attribute.
_TORCHS = frozenset(vars(nn.Module())) - {"training"}
_DEPTH = 4  # functions and objects within each other, of a user's own
_DATA = 256  # a longer list holds data: what is in it is not looked at
ROOM = 8 << 20  # bytes of tensors outside of modules that are copied: what is larger is data
_LEAVES = frozenset({int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size})
_LIBRARIES = sys.stdlib_module_names - {"types", "argparse"} | {"torch", "torchvision", "numpy", "scipy", "sklearn"}


def attributes_of(modules: Iterable[nn.Module], functions: Iterable[Any] = (), room: int = ROOM) -> Callable[[], None]:
    """A function that puts what a loss may keep outside of its arguments back as it is now.

    Of modules and of objects of a user's own the attributes; of functions what they close over, the globals that they
    set, their defaults and attributes. Each is put back as the same object with the same contents: tensors (outside of
    modules `room` bytes of them), arrays, dicts, lists, sets, deques and random number generators, nested too. What an
    iterator has given out cannot be put back: the probes notice that.

    >>> net = nn.Linear(1, 1)
    >>> net.calls, net.seen = 0, []
    >>> restore = attributes_of([net])
    >>> net.calls += 1; net.seen.append(1); net.new = True
    >>> restore(); net.calls, net.seen, hasattr(net, "new")
    (0, [], False)
    """
    kept = _Kept(room)
    for value in (*modules, *functions):
        kept.visit(value, 0)
    return kept.put_back


def functions_of(things: Iterable[Any]) -> list[types.FunctionType]:
    """A user's own functions among these things and all that they call or hold."""
    kept = _Kept(0)
    for thing in things:
        kept.visit(thing, 0)
    met = filter(inspect.isfunction, kept.seen.values())
    return [function for function in met if not _is_of(function.__module__, {*_LIBRARIES, "gimli_core"})]


class _Kept:
    """What was met on the way from modules and functions, and how each is put back."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._restorers: list[Callable[[], None]] = []
        self.seen: dict[int, Any] = {}  # holds what was seen, so that no id is used twice

    def put_back(self) -> None:
        for restore in self._restorers:
            restore()

    def visit(self, value: Any, depth: int) -> None:
        if type(value) in _LEAVES:
            return
        # Parameters are moved by optimizers alone, and a copy of a model's would be large.
        if id(value) in self.seen or depth > _DEPTH or isinstance(value, (nn.Parameter, type, types.ModuleType)):
            return
        self.seen[id(value)] = value
        if isinstance(value, nn.Module):
            for owner in value.modules():
                if owner is value or id(owner) not in self.seen:
                    self.seen[id(owner)] = owner
                    self._attributes(owner, _TORCHS, depth)
        elif inspect.isfunction(value):
            self._function(value, depth)
        elif inspect.ismethod(value):
            self._all([value.__self__, value.__func__], depth)
        elif isinstance(value, functools.partial):
            self._all([value.func, *value.args, *value.keywords.values()], depth)
        elif isinstance(value, (Tensor, np.ndarray)):
            if value.nbytes <= self._room and (put_back := _values(value)) is not None:
                self._room -= value.nbytes
                self._restorers.append(put_back)
        elif isinstance(value, (list, tuple, deque, dict, set)):
            if (put_back := _contents(value)) is not None:
                self._restorers.append(put_back)
            if isinstance(value, dict) or len(value) <= _DATA:
                self._all(list(value.values() if isinstance(value, dict) else value), depth)
        elif (put_back := _generator(value)) is not None:
            self._restorers.append(put_back)
        elif _is_users(type(value)):
            self._attributes(value, frozenset(), depth)
            if callable(value):
                self.visit(type(value).__call__, depth)

    def _all(self, values: Iterable[Any], depth: int) -> None:
        for value in values:
            self.visit(value, depth)

    def _function(self, function: types.FunctionType, depth: int) -> None:
        if _is_of(function.__module__, _LIBRARIES):
            return
        ours = _is_of(function.__module__, {"gimli_core"})  # a wrapper around a user's own
        inner = depth + (not ours)
        for cell in function.__closure__ or ():
            if filled(cell):
                self._restorers.append(functools.partial(_fill, cell, cell.cell_contents))
        read, written = globals_named(function.__code__)
        names = function.__globals__
        if written and not ours:
            before = {k: names[k] for k in written if k in names}
            self._restorers.append(functools.partial(_put_globals, names, before, written))
        self._restorers.append(functools.partial(_put_entries, vars(function), dict(vars(function)), ()))
        self._all([cell.cell_contents for cell in function.__closure__ or () if filled(cell)], inner)
        self._all([names[k] for k in read if k in names and not ours], inner)
        self._all([*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()], inner)
        self._all(list(vars(function).values()), inner)

    def _attributes(self, owner: Any, left_out: Collection[str], depth: int) -> None:
        room = self._room
        if isinstance(owner, nn.Module):
            self._room = sys.maxsize
        else:
            depth += 1
        slots = {k: getattr(owner, k) for k in _slots(type(owner)) if hasattr(owner, k)}
        self._restorers += [functools.partial(setattr, owner, k, v) for k, v in slots.items()]
        attributes = getattr(owner, "__dict__", {})
        before = {k: v for k, v in attributes.items() if k not in left_out}
        if isinstance(attributes, dict):
            self._restorers.append(functools.partial(_put_entries, attributes, before, left_out))
        self._all([*slots.values(), *before.values()], depth)
        if isinstance(owner, nn.Module):
            self._room = room


def _is_of(module: str | None, roots: Iterable[str]) -> bool:
    return (module or "builtins").partition(".")[0] in roots


def _is_users(kind: type) -> bool:
    """Whether objects of this class may keep what a user's loss leaves there, or lead to it."""
    if _is_of(kind.__module__, {"gimli_core"}):
        return any("__call__" in vars(base) for base in kind.__mro__)
    return not _is_of(kind.__module__, _LIBRARIES)


def _slots(kind: type) -> tuple[str, ...]:
    """The slots of a class and of those that it is made from."""
    each = [vars(base).get("__slots__", ()) for base in kind.__mro__]
    names = [k for slots in each for k in ((slots,) if isinstance(slots, str) else slots)]
    return tuple(k for k in names if k not in ("__dict__", "__weakref__"))


def filled(cell: types.CellType) -> bool:
    """Whether a closure's variable has been set."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _fill(cell: types.CellType, contents: Any) -> None:
    if not filled(cell) or cell.cell_contents is not contents:
        cell.cell_contents = contents


def _put_entries(now: dict[str, Any], before: dict[str, Any], left_out: Collection[str]) -> None:
    """Entries as they were; those that are left out stay, whether there before or not."""
    for name in [k for k in now if k not in before and k not in left_out]:
        del now[name]
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value


def _put_globals(now: dict[str, Any], before: dict[str, Any], names: Iterable[str]) -> None:
    now.update(before)
    for name in set(names) - set(before):
        now.pop(name, None)


def _contents(value: Any) -> Callable[[], None] | None:
    """What gives a container its contents back; None for one that cannot change."""
    if isinstance(value, (list, deque)):
        return functools.partial(_refill, value, list(value), value.extend)
    if isinstance(value, (dict, set)):
        return functools.partial(_refill, value, {**value} if isinstance(value, dict) else {*value}, value.update)
    return None


def _values(value: Any) -> Callable[[], None] | None:
    """What gives a tensor or an array its numbers back; None for one without any of its own."""
    if isinstance(value, np.ndarray):
        before = value.copy()
        return lambda: None if np.array_equal(value, before) else np.copyto(value, before)
    if value.layout != torch.strided or value.is_nested or value.is_meta or value.is_inference():
        return None
    kept = value.detach().clone()
    return lambda: _put_values_back(value, kept)


def _generator(value: Any) -> Callable[[], None] | None:
    """What puts a random number generator back."""
    if isinstance(value, np.random.Generator):
        return functools.partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, (torch.Generator, np.random.RandomState)):  # imported here, since numpy.random takes its time
        generator: Any = value
        return functools.partial(generator.set_state, generator.get_state())
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return functools.partial(value.setstate, value.getstate())
    return None


def _put_values_back(value: Tensor, kept: Tensor) -> None:
    if value.shape != kept.shape:
        value.data = kept
    elif not torch.equal(value, kept):
        value.data.copy_(kept)  # through .data: a graph that holds it would refuse a counted change


def _refill(value: Any, contents: Any, fill: Callable[[Any], None]) -> None:
    now, then = ([*x, *x.values()] if isinstance(x, dict) else [*x] for x in (value, contents))
    if len(now) != len(then) or any(a is not b for a, b in zip(now, then, strict=True)):
        value.clear()
        fill(contents)
