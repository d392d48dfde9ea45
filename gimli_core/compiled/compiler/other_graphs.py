"""Looking at what was compiled, without compiling more: would it take another graph, and what do the graphs read?"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch

from gimli_core.compiled.compiler.trial import Uncompiled

__all__ = ["as_compiled", "note_graph", "refuse_another_graph"]

_here = threading.local()


class as_compiled:
    """Within it, in this thread, graphs that there are may be called; another one is Uncompiled.

    Attributes:
        graphs: those that were looked at.
        besides: the tensors, of any shapes, that they read besides their arguments, and their versions.
    """

    def __enter__(self) -> as_compiled:
        self.graphs: list[Any] = []
        self.besides: list[tuple[torch.Tensor, int]] = []
        self._outer = getattr(_here, "closed", None)
        _here.closed = self
        return self

    def __exit__(self, *_: object) -> None:
        _here.closed = self._outer

    def same_graphs(self, other: as_compiled) -> bool:
        """Whether the same ones were looked at."""
        return list(map(id, self.graphs)) == list(map(id, other.graphs))

    def same_tensors(self, other: as_compiled) -> bool:
        """Whether they read the same tensors besides, none of them written to in between."""
        here, there = ([(id(x), version) for x, version in of.besides] for of in (self, other))
        return here == there


def refuse_another_graph() -> None:
    """What a backend asks before it compiles."""
    if getattr(_here, "closed", None) is not None:
        raise Uncompiled("what the losses read besides their arguments has changed")


def note_graph(graph: Any, besides: Sequence[Any]) -> None:
    """What is told of a graph that is looked at: tensors of any shapes, and what else it reads."""
    if (closed := getattr(_here, "closed", None)) is not None:
        closed.graphs.append(graph)
        closed.besides += [(x, x._version) for x in besides if isinstance(x, torch.Tensor)]
