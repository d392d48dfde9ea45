"""What modules held while a loss was evaluated, put back for as long as that loss is differentiated.

Some of a loss's work may be put off until it is differentiated: `torch.utils.checkpoint` runs parts of a model again,
and a hook of saved tensors or of the backward pass may read what it likes. By then `functional_call` has put a module's
own weights back, or a later step its own. Every module that is called says what it holds; an entry that is another one
once the loss is there is put in again around each derivative, so that work put off meets what work done at once met.

No function is replaced for that, and nothing is asked about who swapped the weights, how they are named or tied: only
torch's own hook on calls of modules is used. A module that one loss calls with several sets of weights cannot hold them
all again: it is put back to the first of them, and `changes` tells whether that could matter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["ModuleWeights", "noting"]

Entry = tuple[dict[str, Any], str, Tensor]  # where a module keeps its tensors, a name, what was there


class ModuleWeights:
    """The entries of modules that were others while a loss was evaluated, first call by first call."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.later: list[Entry] = []  # what modules held in the last of several calls, where that is something else

    def in_place(self, *, later: bool = False) -> AbstractContextManager[None]:
        """Modules hold again what they held; with `later` in their last calls."""
        entries = [*self.entries, *self.later] if later else self.entries
        return _Put(entries) if entries else nullcontext()

    def changes(self, first: tuple[Tensor | None, ...], derivative: Callable[[], tuple[Tensor | None, ...]]) -> bool:
        """Whether a derivative is another one where modules hold what they held last: then work was put off that reads
        weights, and no single set of them is right. Costs nothing where each module was called with one set.
        """
        if not self.later:
            return False
        with self.in_place(later=True):
            second = derivative()
        return not all(map(_same, first, second))


class _Put:
    """Within it, modules hold these entries. A class, at half the time of a generator: two a step stand around it."""

    __slots__ = ("_before", "_entries")

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = entries

    def __enter__(self) -> None:
        self._before: list[Entry] = []
        for home, name, tensor in self._entries:
            if name in home:
                self._before.append((home, name, home[name]))
                home[name] = tensor

    def __exit__(self, *_: object) -> None:
        for home, name, tensor in reversed(self._before):
            home[name] = tensor


_transform = torch._C._functorch.peek_interpreter_stack
_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def _transformed(tensors: Mapping[str, Tensor | None]) -> bool:
    """Whether one of them is a transform's own, such as vmap's, which nothing can be put back to once that is over.

    Asked within a transform alone: outside of them there is none.
    """
    for tensor in tensors.values():  # noqa: SIM110 - a generator takes twice the time, at every call of a module
        if tensor is not None and _wrapped(tensor):
            return True
    return False


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two derivatives are the same: to the bit on a processor, where nothing else may move them."""
    if a is None or b is None:
        return a is b
    return torch.allclose(a, b, rtol=0.0 if a.device.type == "cpu" else 1e-4, atol=0.0, equal_nan=True)


class noting:
    """Note what modules hold when this thread calls them; complete once the block is left."""

    __slots__ = ("_again", "_handle", "_met", "_weights")

    def __enter__(self) -> ModuleWeights:
        self._weights = ModuleWeights()
        # A function of its own, with all that it needs at hand: it is called for every module in a loss.
        met: dict[int, tuple[nn.Module, dict[str, Any], dict[str, Any]]] = {}
        again: dict[tuple[int, str], Entry] = {}
        now_in, this_thread = threading.get_ident, threading.get_ident()

        def note(module: nn.Module, _: Any) -> None:
            now = module._parameters
            if not now or now_in() != this_thread or (_transform() is not None and _transformed(now)):
                return
            before = met.get(id(module))
            if before is None:
                met[id(module)] = module, now, now.copy()
                return
            for name, tensor in before[2].items():
                other = now.get(name)
                if other is not None and other is not tensor:
                    again[id(module), name] = now, name, other

        self._met, self._again, self._handle = met, again, register_module_forward_pre_hook(note)
        return self._weights

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
        for _module, home, then in self._met.values():
            for name, tensor in then.items():
                if tensor is not None and home.get(name) is not tensor:
                    self._weights.entries.append((home, name, tensor))
        self._weights.later.extend(self._again.values())
