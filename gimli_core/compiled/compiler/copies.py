"""A part of a function that comes again and again, as a step does: traced once, and copied in the graph.

`torch.compile` reads a function one instruction after the other, and J steps J times, to the same operations each time:
that is most of what a first call takes once the rest stands in torch's cache on the disk. `once` has it read the first
of all calls that look alike. Each call is noted as one operation of the graph,

    begin(part, tensors)              new names for the tensors that go in
        …                             the operations of the part, as read
    end(part)
    copy(part, call, like, tensors)   a call: of these tensors, with results as `like`

and `with_copies` puts the part's operations in its place, before anything is lowered. The graph is then the one that
reading every call gives, and what the part reads besides its arguments is guarded as ever.

A part has two halves: besides its results it returns a function that needs what it has at hand, as a sweep needs what
its step has computed. That function is traced once too, and its copy for a call uses the copies of that call.

Calls that look alike are alike, since what changes something besides is not compiled (refusals.py).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from gimli_core.compiled.compiler.trial import Uncompiled
from gimli_core.errors import first_line

__all__ = ["Part", "Uncopied", "every_time", "once", "tell_compiler", "with_copies"]

Part = Callable[..., tuple[Any, Any]]  # returns its results, and its second half
Name = tuple[Any, ...]  # of a part, which of its forms; of a second half also which of that one's
OfCall = Callable[[int, list[Tensor]], tuple[Any, Any]]
Alike = list[tuple[list[Any], OfCall]]  # what calls look like, and what notes one

CONSTANTS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


class Uncopied(Uncompiled):
    """Why a function that may well be compiled has to be traced call by call."""


class Unlike:
    """What is like nothing, itself included."""

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


def begin(part: Name, tensors: list[Tensor]) -> list[Tensor]:
    """In a graph: from here on a part's operations, on new names of these tensors, of any shape."""
    return [x.clone() for x in tensors]


def end(part: Name, tensors: list[Tensor]) -> list[Tensor]:
    """In a graph: up to here a part's operations, with these results, of any shape."""
    return [x.clone() for x in tensors]


def copy(part: Name, call: int, like: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """In a graph: a call of a part with tensors of the shapes that `begin` had; its results have those of `like`."""
    return [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device) for x in like]


def tell_compiler() -> None:
    """Have the compiler write these three into its graph as they are. To tell it takes the seconds of its import."""
    for mark in (begin, end, copy):
        torch.compiler.allow_in_graph(mark)


def every_time(name: str, function: Part) -> Part:
    """In place of `once`: a part that is traced at each call."""
    return function


def once(name: str, function: Part) -> Part:
    """`function`, traced once for all calls whose arguments look alike. Uncompiled it is the function itself.

    Args:
        name: no other part of the traced function has it.
        function: of nested dicts, tuples and lists of tensors and constants, to such a one and a function of such.
    """
    firsts: Alike = []
    calls: list[int] = []

    def called(*arguments: Any) -> tuple[Any, Any]:
        if not torch.compiler.is_compiling():
            return function(*arguments)
        calls.append(len(calls))
        of_call, tensors = of_form(firsts, (name,), function, arguments)
        return of_call(calls[-1], tensors)

    return called


def of_form(firsts: Alike, part: Name, function: Part, arguments: Any) -> tuple[OfCall, list[Tensor]]:
    """(what notes a copy for calls that look like this one, the tensors in the arguments); traced if none did yet.

    The tensors have any shape.
    """
    tensors: list[Tensor] = []
    form: list[Any] = []
    read(arguments, tensors, form)
    for seen, of_call in firsts:
        if seen == form:
            return of_call, tensors
    firsts.append((form, traced((*part, len(firsts)), function, arguments, tensors)))
    return firsts[-1][1], tensors


def traced(part: Name, function: Part, arguments: Any, tensors: list[Tensor]) -> OfCall:
    """A part, or its second half, traced here and now; what is returned notes a copy of it. Tensors have any shape."""
    results, second = function(*refilled(arguments, iter(begin(part, tensors))))
    like: list[Tensor] = []
    read(results, like, [])
    end(part, like)
    seconds: Alike = []

    def of_call(call: int, tensors: list[Tensor]) -> tuple[Any, Any]:
        def later(*arguments: Any) -> Any:
            half, tensors = of_form(seconds, part, lambda *late: (second(*late), None), arguments)
            return half(call, tensors)[0]

        return refilled(results, iter(copy(part, call, like, tensors))), later

    return of_call


def read(tree: Any, tensors: list[Tensor], form: list[Any]) -> None:
    """Append the tensors of a tree, of any shape, and what each of its nodes looks like.

    What is neither a tensor nor a constant, nor of such in dicts, tuples and lists, is like nothing. The compiler reads
    this and `refilled`, at every call of a part: the loops of trees.py take it three times as many instructions.
    """
    if isinstance(tree, Tensor):
        tensors.append(tree)
        form.append((tree.shape, tree.stride(), tree.dtype, tree.device))
    elif type(tree) is dict:
        form.append(list(tree))
        for x in tree.values():
            read(x, tensors, form)
    elif type(tree) is tuple or type(tree) is list or hasattr(tree, "_fields"):
        form.append((type(tree), len(tree)))
        for x in tree:
            read(x, tensors, form)
    else:
        form.append((type(tree), tree) if isinstance(tree, CONSTANTS) else Unlike())


def refilled(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The tree with these tensors, of any shape, in place of its own, in order."""
    if isinstance(tree, Tensor):
        return next(tensors)
    if type(tree) is dict:
        new = {}
        for k, x in tree.items():
            new[k] = refilled(x, tensors)
        return new
    if type(tree) is tuple or type(tree) is list or hasattr(tree, "_fields"):
        parts = []
        for x in tree:
            parts.append(refilled(x, tensors))
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


def with_copies(module: GraphModule) -> None:
    """Put copies where they were noted, in place. Raises Uncopied."""
    graph = module.graph
    nodes: list[Any] = list(graph.nodes)
    noted = [node for node in nodes if node.target is copy]
    if not noted:
        return
    begins = {node.args[0]: i for i, node in enumerate(nodes) if node.target is begin}
    ends = {node.args[0]: i for i, node in enumerate(nodes) if node.target is end}
    parts = {part: nodes[i : ends[part] + 1] for part, i in begins.items()}
    known_as: dict[tuple[Name, int], dict[Node, Node]] = {}  # of each call: what the part's nodes are in its copy
    for node in noted:
        part, call = node.args[:2]
        new = known_as[part, call] = dict(known_as.get((part[:2], call), {}))
        put(graph, parts[part], node, new)
    try:
        for part in sorted(parts, reverse=True):  # a second half before the first, of which it uses something
            for node in reversed(parts[part]):
                if node.op != "get_attr":
                    graph.erase_node(node)
        graph.lint()
    except RuntimeError as error:
        raise Uncopied(f"something in it is used elsewhere: {first_line(error)}") from error
    module.recompile()


def put(graph: Graph, part: Sequence[Any], at: Any, new: dict[Node, Node]) -> None:
    """A copy of the part's operations in the place of `at`; `new` is told what each has become."""
    *_, like, tensors = at.args
    first, *inside, _ = part
    with graph.inserting_before(at):
        for node in inside:
            if node.target is operator.getitem and node.args[0] is first:
                new[node] = tensors[node.args[1]]
            elif node.op != "get_attr":  # a constant is one for all
                new[node] = graph.node_copy(node, lambda x: new.get(x, x))
    for user in list(at.users):
        result = like[user.args[1]]
        user.replace_all_uses_with(new.get(result, result))
        graph.erase_node(user)
    graph.erase_node(at)
