"""A cut graph as torch's cache on the disk keeps it, so that the next process need not lower and cut it again.

torch keeps what it made of a traced graph by a hash of all that this depends on: the graph, its inputs, the options,
its own version. Of what a backend of ours returns it keeps the whole, an `OutputCode`, which knows how it is written
down and read again. Where to cut, and the code that cuts, are not in that hash: `kept_on_the_disk` adds them.

Imports the compiler, which takes seconds: import it where there is something to compile.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch._functorch._aot_autograd.autograd_cache import BypassAOTAutogradCache
from torch._guards import TracingContext
from torch._inductor.codecache import FxGraphCache
from torch._inductor.custom_graph_pass import get_hash_for_files
from torch._inductor.output_code import CompiledFxGraph, CompiledFxGraphConstants, OutputCode
from torch.fx import GraphModule

from gimli_core.compiled.compiler import cut as cutting
from gimli_core.compiled.compiler.cut import Cut, note

__all__ = ["StoredCut", "kept_on_the_disk"]


class StoredCut(OutputCode):
    """What torch calls as the compiled graph, and keeps: a call is noted (`cut.noted_by`), and computes nothing."""

    def __init__(self, cut: Cut) -> None:
        super().__init__()
        self.cut = cut
        self._boxed_call = True  # it takes its arguments as one list

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        return note(self.cut, inputs)

    def prepare_for_serialization(self) -> None:
        """Before it is written down: torch's compiled graphs, without the functions that they call."""
        self.cut = self.cut._replace(first=written(self.cut.first), second=written(self.cut.second))

    def post_compile(self, example_inputs: Any, constants: Any, graph_kwargs: Any) -> None:
        """After it was read: the functions are loaded again."""
        halves: Any = self.cut.first, self.cut.second
        for half in halves:
            loaded, _ = FxGraphCache.cache_hit_post_compile(half, {}, CompiledFxGraphConstants())
            if loaded is None:
                raise BypassAOTAutogradCache("what the graph calls is no longer on the disk")
            with TracingContext.report_output_strides():  # which are the halves', not the graph's
                loaded.post_compile(example_inputs, constants, graph_kwargs)


def written(half: Any) -> CompiledFxGraph:
    """A compiled half as it is written down."""
    if not isinstance(half, CompiledFxGraph):
        raise BypassAOTAutogradCache("a half that only hands on what it gets is not compiled")
    on_the_disk: CompiledFxGraph = copy.copy(half)
    on_the_disk.prepare_for_serialization()
    return on_the_disk


@contextlib.contextmanager
def kept_on_the_disk(module: GraphModule, late: Sequence[bool]) -> Iterator[None]:
    """Within it, a traced graph is lowered that will be cut where its inputs are `late`, one for each input."""
    # Any attribute of the graph is hashed with it.
    module.cut_where = (tuple(late), get_hash_for_files((__file__, cutting.__file__)))  # type: ignore[assignment]
    with torch._functorch.config.patch(bundled_autograd_cache=True):
        yield
