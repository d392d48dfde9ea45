"""Looking at what was compiled, without compiling more: would it take another graph, and what do the graphs read?"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch

from gimli_core.compiled.compiler.trial import Uncompiled

__all__ = ["as_compiled", "note_besides", "refuse_another_graph"]

_here = threading.local()


class as_compiled:
    """Within it, in this thread, graphs that there are may be called; another one is Uncompiled.

    Attributes:
        besides: the tensors, of any shapes, that the graphs looked at read besides their arguments, and their versions.
    """

    def __enter__(self) -> as_compiled:
        self.besides: list[tuple[torch.Tensor, int]] = []
        self._outer = getattr(_here, "closed", None)
        _here.closed = self
        return self

    def __exit__(self, *_: object) -> None:
        _here.closed = self._outer


def refuse_another_graph() -> None:
    """What a backend asks before it compiles."""
    if getattr(_here, "closed", None) is not None:
        raise Uncompiled("what the losses read besides their arguments has changed")


def note_besides(read: Sequence[Any]) -> None:
    """Of a graph that is looked at, what it reads besides its arguments: tensors of any shapes, and what else."""
    if (closed := getattr(_here, "closed", None)) is not None:
        closed.besides += [(x, x._version) for x in read if isinstance(x, torch.Tensor)]
