"""What modules held while a loss was evaluated, put back for as long as that loss is differentiated.

Some of a loss's work may be put off until it is differentiated: `torch.utils.checkpoint` runs parts of a model again,
and a hook of saved tensors or of the backward pass may read what it likes. By then `functional_call` has put a module's
own weights back, or a later step its own. Every module that is called says what it holds; an entry that is another one
once the loss is there is put in again around each derivative, so that work put off meets what work done at once met.

No function is replaced for that, and nothing is asked about who swapped the weights, how they are named or tied: only
torch's own hook on calls of modules is used. A module that one loss calls with several sets of weights is put
back to the first of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["HeldWeights", "noting"]

Entry = tuple[dict[str, Any], str, Tensor]  # where a module keeps its tensors, a name, what was there


class HeldWeights:
    """The entries of modules that were others while a loss was evaluated, first call by first call."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Modules hold again what they held."""
        if not self.entries:
            yield
            return
        now = [(home, name, home[name]) for home, name, _ in self.entries if name in home]
        try:
            for home, name, held in self.entries:
                if name in home:
                    home[name] = held
            yield
        finally:
            for home, name, held in now:
                home[name] = held


@contextmanager
def noting() -> Iterator[HeldWeights]:
    """Note what modules hold when this thread calls them; complete once the block is left."""
    held, thread = HeldWeights(), threading.get_ident()
    met: dict[int, tuple[nn.Module, dict[str, Any], dict[str, Any]]] = {}

    def note(module: nn.Module, _: Any) -> None:
        if threading.get_ident() != thread:
            return
        if id(module) not in met:
            met[id(module)] = module, module._parameters, dict(module._parameters)

    handle = register_module_forward_pre_hook(note)
    try:
        yield held
    finally:
        handle.remove()
        held.entries = [
            (home, name, tensor)
            for _, home, then in met.values()
            for name, tensor in then.items()
            if tensor is not None and home.get(name) is not tensor
        ]
