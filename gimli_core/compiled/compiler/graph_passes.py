"""Passes over a traced graph, for a processor: how products are written, and what is laid down between loops.

`Transposes`: a product that is transposed at once is computed the other way round,

    (A B)^T = B^T A^T,    (A B + C^T)^T = B^T A^T + C.

The gradient of a weight W in x W^T comes out as (x^T delta)^T. Where the rule runs on one vector of all tensors, laying
that transpose into the vector is a loop over single numbers, which took a third of a small step.

`SumsApart`: a product and a sum of whole matrices, A B + C, which the compiler makes one call on a copy of C, are two
operations again on a processor: the sum then joins the loop that has C at hand. That is 5 % of a step of an MLP.

`InMemory`: two kinds of results are computed for themselves, not within the loops that use them. A number that enters
a loop over a tensor, such as Adam's 1 - beta1^t: its power and its root would be taken again for every sixteen entries,
5 % of a step of an MLP. And what a convolution reads, in the order that eager mode has it in: it would be laid down in
another, and copied for the convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._dynamo.symbolic_convert import TensorifyState
from torch._guards import TracingContext
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, GraphModule, Node
from torch.utils._sympy.symbol import SymT, symbol_is_type

__all__ = ["InMemory", "SumsApart", "Transposes", "traced_once"]

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.bmm.default)
CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)
VIEWS = (aten.permute.default, aten.reshape.default, aten.view.default, aten.unsqueeze.default, aten.squeeze.dims)
SUMS = {aten.addmm.default: aten.mm.default, aten.baddbmm.default: aten.bmm.default}


def traced_once(module: GraphModule) -> None:
    """Keep torch from tracing a function again for numbers that the graph does not use.

    For every tensor of one float64, such as a learning rate, it holds a Python number ready, in case that something
    asks for `.item()`; where nothing did, it starts anew to leave that number out. That is a fifth of compiling time.
    """
    shapes = TracingContext.get().fake_mode.shape_env  # type: ignore[union-attr]
    values = [node.meta.get("example_value") for node in module.graph.nodes]
    used = {str(s) for v in values if isinstance(v, torch.SymFloat) for s in v.node.expr.free_symbols}
    for symbol in shapes.backed_var_to_val if shapes is not None else ():
        if symbol_is_type(symbol, SymT.FLOAT) and str(symbol) not in used:
            TensorifyState.specialize(str(symbol))


class Transposes(CustomGraphPass):
    """Rewrites a graph of aten operations in place; what it computes stays the same but for rounding."""

    def uuid(self) -> Any:
        return get_hash_for_files((__file__,))

    def __call__(self, graph: Graph) -> None:
        nodes = [node for node in graph.nodes if is_transpose(node)]
        while nodes:
            node = nodes.pop()
            inner = node.args[0]
            if is_transpose(inner):
                new = inner.args[0]
            elif len(inner.users) > 1:
                continue
            elif inner.target in PRODUCTS and len(inner.args) == 2:
                A, B = inner.args
                new = call(graph, node, inner.target, transposed(graph, node, B), transposed(graph, node, A))
            elif inner.target is aten.add.Tensor and not inner.kwargs and any(map(is_transpose, inner.args)):
                if any(shape_of(x) != shape_of(inner) for x in inner.args):
                    continue
                new = call(graph, node, inner.target, *[transposed(graph, node, x) for x in inner.args])
            else:
                continue
            nodes += [x for x in (new, *new.args) if is_transpose(x)]
            node.replace_all_uses_with(new)
            graph.erase_node(node)
        graph.eliminate_dead_code()


class SumsApart(CustomGraphPass):
    """Rewrites a graph of aten operations in place; what it computes stays the same but for rounding."""

    def uuid(self) -> Any:
        return get_hash_for_files((__file__,))

    def __call__(self, graph: Graph) -> None:
        for node in list(graph.nodes):
            alone = SUMS.get(node.target)
            if alone is None or node.kwargs or shape_of(node.args[0]) != shape_of(node):
                continue
            if node.meta["val"].device.type == "cpu":
                C, A, B = node.args
                node.replace_all_uses_with(call(graph, node, aten.add.Tensor, call(graph, node, alone, A, B), C))
                graph.erase_node(node)


class InMemory(CustomGraphPass):
    """Marks nodes of a graph; what it computes stays the same."""

    def uuid(self) -> Any:
        return get_hash_for_files((__file__,))

    def __call__(self, graph: Graph) -> None:
        for node in graph.nodes:
            if shape_of(node) == () and any(shape_of(user) != () for user in node.users):
                mark(node)
            if node.target in CONVOLUTIONS:
                for source in map(seen_through, node.all_input_nodes):
                    mark(source)


def mark(node: Node) -> None:
    """Have a node's result in memory, in the strides that it has in eager mode."""
    if node.op == "call_function" and node.meta["val"].device.type == "cpu":
        node.meta["inductor_realize_to_strides"] = True


def seen_through(node: Node) -> Node:
    """What a view is a view of."""
    while node.target in VIEWS:
        node = node.args[0]  # type: ignore[assignment]
    return node


def is_transpose(node: Any) -> bool:
    """Whether a node swaps the last two dimensions, and nothing else."""
    if not isinstance(node, Node) or node.target is not aten.permute.default:
        return False
    order: Any = node.args[1]
    before = list(range(len(order)))
    return len(before) > 1 and list(order) == [*before[:-2], before[-1], before[-2]]


def transposed(graph: Graph, before: Node, node: Node) -> Node:
    """The node's transpose."""
    if is_transpose(node):
        return node.args[0]  # type: ignore[return-value]
    order = list(range(len(shape_of(node))))
    return call(graph, before, aten.permute.default, node, [*order[:-2], order[-1], order[-2]])


def call(graph: Graph, before: Node, target: Any, *args: Any) -> Node:
    """A new node, with what the compiler knows of its result."""
    with graph.inserting_before(before):
        node = graph.call_function(target, args)
    node.meta["val"] = target(*[x.meta["val"] if isinstance(x, Node) else x for x in args])
    return node


def shape_of(node: Any) -> Any:
    """The shape of a node's result; None for a number."""
    return getattr(node.meta.get("val"), "shape", None) if isinstance(node, Node) else None
