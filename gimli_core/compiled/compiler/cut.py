"""A traced graph cut where its late inputs come in, each half compiled: torch's own min-cut decides where."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch._guards import TracingContext
from torch.fx import Graph, GraphModule, Node
from torch.utils.checkpoint import CheckpointPolicy

from gimli_core.compiled.compiler.trial import Uncompiled

__all__ = ["Compiled", "Cut", "Uncut", "cut_in_two", "note", "noted_by", "results_of"]


Compiled = Callable[[list[Any]], Sequence[Any]]


class Uncut(Uncompiled):
    """Why a function that may well be compiled cannot be cut."""


class Cut(NamedTuple):
    """A graph in two compiled halves; graph inputs and outputs are told by their place in the graph."""

    first: Compiled
    second: Compiled
    first_takes: list[int]  # inputs
    first_gives: list[int]  # outputs, in this order; what is handed on comes after them
    second_takes: list[tuple[bool, int]]  # (True, an input) or (False, what the first graph gives at this place)
    second_gives: list[int]  # outputs


Note = Callable[[Cut, Sequence[Any]], list[Any]]
_here = threading.local()


@contextmanager
def noted_by(function: Note) -> Iterator[None]:
    """Within it, in this thread, a cut graph that is called as a whole calls `function(cut, inputs)`."""
    before = getattr(_here, "function", None)
    _here.function = function
    try:
        yield
    finally:
        _here.function = before


def note(cut: Cut, inputs: Sequence[Any]) -> list[Any]:
    """What is called in place of a cut graph."""
    function: Note = _here.function
    return function(cut, inputs)


def cut_in_two(graph_module: GraphModule, late: Sequence[bool], options: dict[str, Any]) -> Cut:
    """A graph cut where its late inputs come in, and each half compiled."""
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.compile_fx import compile_fx_inner

    if any(torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) for node in graph_module.graph.nodes):
        raise Uncut("it draws random numbers")
    joint, inputs, outputs = arranged(graph_module, late)
    early_outputs = [i for i, (depends, _) in enumerate(outputs) if not depends]
    late_outputs = [i for i, (depends, _) in enumerate(outputs) if depends]
    compare_again(joint.graph)
    first, second = min_cut_rematerialization_partition(joint, None, num_fwd_outputs=len(early_outputs))
    # Compiling rewrites the graphs.
    gives = [node.name if isinstance(node, Node) else None for node in results_of(first.graph)]
    takes = [node.name for node in first.graph.nodes if node.op == "placeholder"]
    needs = [node.name for node in second.graph.nodes if node.op == "placeholder"]

    def compiled(half: GraphModule, visible: int) -> tuple[Any, list[Any]]:
        """(what computes a half, the strides of its outputs); the compiler chooses all but those of visible ones."""
        nodes = list(half.graph.nodes)
        nodes[-1].meta["user_visible_output_idxs"] = list(range(visible))
        examples = [node.meta["val"] for node in nodes if node.op == "placeholder"]
        # By itself, so that a half is found on the disk even where the whole cannot be kept there.
        apart = torch._functorch.config.patch(bundled_autograd_cache=False)
        with apart, TracingContext.report_output_strides() as strides:
            return compile_fx_inner(half, examples, **{**options, "static_input_idxs": []}), strides or []

    run_first, strides = compiled(first, len(early_outputs))
    of_handed = dict(zip(gives, strides, strict=False))
    for node in second.graph.nodes:
        if node.op == "placeholder" and (stride := of_handed.get(node.name)) is not None:
            node.meta["val"] = torch.as_strided(node.meta["val"], node.meta["val"].shape, stride)
    run_second, _ = compiled(second, len(late_outputs))
    return Cut(
        first=run_first,
        second=run_second,
        first_takes=[inputs[name] for name in takes],
        first_gives=early_outputs,
        second_takes=[(True, inputs[name]) if name in inputs else (False, gives.index(name)) for name in needs],
        second_gives=late_outputs,
    )


def arranged(graph_module: GraphModule, late: Sequence[bool]) -> tuple[GraphModule, dict[str, int], list[Any]]:
    """The graph with its inputs and outputs named and ordered as the partitioner wants them.

    Returns (the graph, which of its inputs each name was, whether each output depends on a late input).
    """
    nodes = list(graph_module.graph.nodes)
    places = [node for node in nodes if node.op == "placeholder"]
    depends = {place for place, comes_late in zip(places, late, strict=True) if comes_late}
    for node in nodes:
        if any(x in depends for x in node.all_input_nodes):
            depends.add(node)
    graph, names, new = Graph(), dict[str, int](), dict[Node, Node]()
    for place in sorted(places, key=lambda place: place in depends):  # the early ones first
        name = f"{'tangents' if place in depends else 'primals'}_{len(names) + 1}"
        names[name] = places.index(place)
        new[place] = graph.placeholder(name)
        new[place].meta = dict(place.meta)
    for node in nodes:
        if node.op not in ("placeholder", "output"):
            new[node] = graph.node_copy(node, lambda x: new[x])
    outputs = [
        (isinstance(x, Node) and x in depends, new[x] if isinstance(x, Node) else x)
        for x in results_of(graph_module.graph)
    ]
    graph.output([x for is_late in (False, True) for depend, x in outputs if depend is is_late])
    return GraphModule(graph_module, graph), names, outputs


def compare_again(graph: Graph) -> None:
    """Have masks computed in both halves: a processor lays one down an entry at a time, which takes longer than all
    else that a loop over a ReLU does. What was compared is kept instead, unless it is kept anyway or cheap to compute.
    """
    for node in graph.nodes:
        value = node.meta.get("val")
        is_mask = isinstance(value, torch.Tensor) and value.dtype == torch.bool and value.dim() > 0
        if node.op == "call_function" and is_mask and value.device.type == "cpu":
            node.meta["recompute"] = CheckpointPolicy.PREFER_RECOMPUTE


def results_of(graph: Graph) -> Any:
    """What a graph returns."""
    return next(node for node in graph.nodes if node.op == "output").args[0]
