"""Any nn.Module as a function of its parameters: frozen parameters, buffers and random numbers.

`torch.func.functional_call(module, theta, args)` is the whole story of stateless modules; this file looks after what it
leaves out. Buffers are constants of the differentiation, as autograd has it, but they move: a replayed step must find
them, and the random number generators, as the first run did. `Environment` takes snapshots of both and restores them.
"""

from __future__ import annotations

import functools
import inspect
import os
import random
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from gimli_core.attributes import ROOM, attributes_of, filled
from gimli_core.notation import Tensors
from gimli_core.trees import nodes

__all__ = ["Environment", "Snapshot", "discover", "keeping_buffers", "split_frozen"]


def split_frozen(theta_0: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
    """(trained, frozen): an `nn.Parameter` with `requires_grad=False` is held constant. Entries of any shape."""
    frozen = {k: v.detach() for k, v in theta_0.items() if not v.requires_grad and isinstance(v, nn.Parameter)}
    return {k: v.detach() for k, v in theta_0.items() if k not in frozen}, frozen


def discover(functions: Iterable[Callable[..., Any]]) -> list[nn.Module]:
    """The modules that functions can see: closures, globals they name, defaults, partials, `self`."""
    modules: dict[int, nn.Module] = {}
    seen: dict[int, Any] = {}  # holds what was seen, so that no id is used twice

    def visit(thing: Any, depth: int) -> None:
        if id(thing) in seen or depth > 4:
            return
        seen[id(thing)] = thing
        if isinstance(thing, nn.Module):
            modules[id(thing)] = thing
        elif isinstance(thing, functools.partial):
            visit([thing.func, *thing.args, *thing.keywords.values()], depth)
        elif inspect.ismethod(thing):
            visit([thing.__self__, thing.__func__], depth)
        elif inspect.isfunction(thing):
            visit(_globals_of(thing), depth + 1)
            visit([c.cell_contents for c in thing.__closure__ or () if filled(c)], depth + 1)
            visit([*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()], depth + 1)
        elif isinstance(thing, Mapping):
            visit(list(thing.values()), depth + 1)
        elif isinstance(thing, (list, tuple, set)):
            for item in thing if len(thing) <= 256 else ():  # a longer one holds data, not modules
                visit(item, depth)
        elif not isinstance(thing, (type, Tensor)) and hasattr(thing, "__dict__") and not inspect.ismodule(thing):
            visit(list(vars(thing).values()), depth + 1)
            if callable(thing):
                visit(type(thing).__call__, depth + 1)

    for function in functions:
        visit(function, 0)
    return list(modules.values())


def _globals_of(function: types.FunctionType) -> list[Any]:
    """The globals that a function names, in inner functions and as `python_module.name` too."""
    of_torch = str(function.__globals__.get("__name__")).startswith("torch.")  # names no module of a user's
    codes, names = [] if of_torch else [function.__code__], set[str]()
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes.extend(inner for inner in code.co_consts if isinstance(inner, types.CodeType))
    things = [function.__globals__[n] for n in sorted(names) if n in function.__globals__]
    values = [vars(thing).get(n) for thing in things if inspect.ismodule(thing) for n in sorted(names)]
    return [*things, *(thing for thing in values if isinstance(thing, nn.Module))]


class Snapshot(NamedTuple):
    """Random number generators and buffers at one moment. Unchanged parts are shared between snapshots."""

    generators: tuple[Any, ...]
    buffers: tuple[Tensor, ...]


# For each module the lock of those who call it, for as long as an environment of it lives.
_TURNS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_MAKING = threading.Lock()


class Environment:
    """What a loss may read besides its arguments: global random number generators and module buffers.

    Restores to the bit: torch's CPU generator, the current CUDA device's where CUDA is in use, NumPy's and Python's
    global generators, and every buffer of `modules`. A `torch.Generator` of the user's own is not seen; the replay
    check says so. `functions` (losses, batches of j) may keep what they like outside of modules, which a trial alone
    puts back: `room` bytes of tensors, and what is larger is data.
    """

    def __init__(
        self, modules: Sequence[nn.Module], device: torch.device, functions: Iterable[Any] = (), room: int = ROOM
    ) -> None:
        self.device, self.room = device, room
        self.modules, self.functions = tuple(modules), tuple(functions)
        self._homes: list[tuple[nn.Module, str, Tensor]] = []  # module, attribute, the tensor that was found there
        names = []
        for number, module in enumerate(modules):
            for path, owner in module.named_modules():
                for key, buffer in owner.named_buffers(recurse=False) if owner._buffers else ():  # most have none
                    if not any(owner is other and key == name for other, name, _ in self._homes):
                        self._homes.append((owner, key, buffer))
                        names.append((f"{number}:" if number else "") + ".".join(filter(None, (path, key))))
        self.names = tuple(names)
        with _MAKING:  # in one order everywhere, so that no two threads wait for each other
            self._turns = [_TURNS.setdefault(id(m), threading.RLock()) for m in sorted(self.modules, key=id)]
        self._process = os.getpid()

    def alone(self) -> AbstractContextManager[Any]:
        """No other thread's run calls these modules in here: `functional_call` swaps weights of what all share."""
        locks = self._turns if os.getpid() == self._process else ()  # a fork has others' locks, without them
        if len(locks) < 2:  # as of most problems, and a step asks three times: a stack takes ten times a lock's time
            return locks[0] if locks else nullcontext()
        turns = ExitStack()
        for turn in locks:
            turns.enter_context(turn)
        return turns

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """The buffers as they are now: a module may replace one instead of changing it in place."""
        return tuple([getattr(owner, key) for owner, key, _ in self._homes])

    def copies(self) -> Tensors:
        """The buffers as they are now, by name, in memory of their own."""
        return {name: b.detach().clone() for name, b in zip(self.names, self.buffers, strict=True)}

    def moved(self, snapshot: Snapshot) -> bool:
        """Whether a random number has been drawn, or a buffer changed, since `snapshot`."""
        now = self.capture(snapshot)  # shares with `snapshot` what is the same
        pairs = zip((*now.generators, *now.buffers), (*snapshot.generators, *snapshot.buffers), strict=True)
        return any(new is not old for new, old in pairs)

    def bytes_moved(self, before: Snapshot) -> tuple[int, int]:
        """Bytes of a snapshot that are its own: of generators that have moved since `before`, and of buffers."""
        now = self.capture(before)
        generators = [new for new, old in zip(now.generators, before.generators, strict=True) if new is not old]
        buffers = [new for new, old in zip(now.buffers, before.buffers, strict=True) if new is not old]
        return sum(map(_bytes_of_state, generators)), sum(b.nbytes for b in buffers)

    def capture(self, previous: Snapshot | None = None) -> Snapshot:
        """A snapshot of now; parts equal to `previous` are shared with it, not copied."""
        generators: list[Any] = [torch.get_rng_state(), _numpy_state(), random.getstate()]
        if self.device.type == "cuda":
            generators.append(torch.cuda.get_rng_state(self.device))
        if previous is None:
            return Snapshot(tuple(generators), self.capture_buffers().buffers)
        shared = [old if _same(old, new) else new for old, new in zip(previous.generators, generators, strict=True)]
        # By value: BatchNorm's kernels move its running statistics without counting a version.
        pairs = zip(previous.buffers, self.buffers, strict=True)
        return Snapshot(tuple(shared), tuple(old if torch.equal(old, b) else b.detach().clone() for old, b in pairs))

    def capture_buffers(self) -> Snapshot:
        """A snapshot of the buffers alone, for `restore_buffers`."""
        return Snapshot((), tuple(b.detach().clone() for b in self.buffers))

    def restore(self, snapshot: Snapshot) -> None:
        """Put generators and buffers back, bit for bit."""
        torch.set_rng_state(snapshot.generators[0])
        kind, key, *rest = snapshot.generators[1]  # NumPy reads a list in a tenth of an array's time
        np.random.set_state((kind, key.tolist(), *rest))  # noqa: NPY002 - the user's losses may draw from it
        random.setstate(snapshot.generators[2])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(snapshot.generators[3], self.device)
        self.restore_buffers(snapshot)

    @contextmanager
    def trial(self) -> Iterator[None]:
        """What is evaluated in here leaves no trace in generators, buffers, attributes or what the functions keep."""
        with self.alone():
            snapshot, put_attributes_back = self.capture(), attributes_of(self.modules, self.functions, self.room)
            try:
                yield
            finally:
                self.restore(snapshot)
                put_attributes_back()

    def restore_buffers(self, snapshot: Snapshot) -> None:
        """Put only the buffers back."""
        for (owner, key, buffer), now, old in zip(self._homes, self.buffers, snapshot.buffers, strict=True):
            if now is not buffer:
                setattr(owner, key, buffer)
            if buffer.shape != old.shape:
                setattr(owner, key, old.clone())
            elif not torch.equal(buffer, old):
                # Through .data: retained graphs of BatchNorm hold the buffer, and would refuse a counted change.
                buffer.data.copy_(old)


class keeping_buffers(saved_tensors_hooks):
    """Graphs recorded in here keep copies of the buffers they need, and so outlive later changes of them.

    BatchNorm's kernels change its running statistics without counting a version: a retained graph that read
    them (a BatchNorm in eval mode) would be differentiated with later ones, silently. Other tensors that a
    graph saves are watched by their version, as autograd does by itself.
    """

    def __init__(self, buffers: Iterable[Tensor]) -> None:
        places = {buffer.untyped_storage().data_ptr() for buffer in buffers} - {0}

        def pack(saved: Tensor) -> tuple[Tensor, int]:
            # Never the tensor itself: the node that made it would hold it, and so itself, for ever.
            kept = saved.clone() if saved.untyped_storage().data_ptr() in places else saved.detach()
            return kept, kept._version

        def unpack(packed: tuple[Tensor, int]) -> Tensor:
            kept, version = packed
            if kept._version != version:
                raise RuntimeError(
                    f"a tensor of shape {list(kept.shape)} that the inner loss used has been changed in place before "
                    "the backward sweep. Leave batches and parameters as they are until then, or pass copies."
                )
            return kept

        super().__init__(pack, unpack)


def _numpy_state() -> tuple[Any, ...]:
    state = np.random.get_state(legacy=True)  # noqa: NPY002
    assert isinstance(state, tuple)
    return state


def _bytes_of_state(state: Any) -> int:
    return sum(int(x.nbytes) if isinstance(x, Tensor) else sys.getsizeof(x) for x in nodes(state))


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor):
        return torch.equal(old, new)
    if isinstance(old, tuple) and len(old) == 5:  # NumPy's state holds an array
        return bool(old[2] == new[2]) and bool(np.array_equal(old[1], new[1])) and old[3:] == new[3:]
    return bool(old == new)
