"""A pure function of tensors, compiled, and called many times.

NOTE [one look a run]
`torch.compile` looks, at every call, whether what it compiled still fits: shapes, and every global, attribute and
closure that the function read. That costs more than a small step. Within one run of Algorithm 1 none of these
changes (batches aside, whose form is looked at each time), so the first call of a run goes through that look, and the
others call the compiled graph itself with the same places of the arguments. What would change them is not compiled:
losses that do it themselves (refusals.py), and batches that do it as they are asked for (effects_of_batches.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gimli_core.compiled.compiler.copies import tell_compiler, with_copies
from gimli_core.compiled.compiler.lowering import lowered, make_ahead
from gimli_core.compiled.compiler.other_graphs import as_compiled, note_graph, refuse_another_graph
from gimli_core.compiled.compiler.refusals import refuse_branches, refuse_side_effects
from gimli_core.compiled.compiler.trees_in_source import builder, taker
from gimli_core.compiled.compiler.trial import Uncompiled, beside_eager, compiling, of_compiler, tell_traced
from gimli_core.environment import Environment
from gimli_core.errors import first_line, notice
from gimli_core.outlines import fits, lies_alike, outline

__all__ = ["ANOTHER_FORM", "Kernel", "compiler_options", "each_once"]

ANOTHER_FORM = "its batch has another shape, dtype or content than the first"


class Direct:
    """A compiled graph, which of the arguments it takes, and where each result stands in what it returns."""

    def __init__(self, graph: Callable[..., Sequence[Any]], took: Sequence[int], gave: Sequence[int]) -> None:
        self._graph, self._took, self._gave = graph, took, gave

    def __call__(self, flat: Sequence[Any]) -> list[Any]:
        out = self._graph(*[flat[i] for i in self._took])
        return [out[i] for i in self._gave]


class Kernel:
    """`function(*arguments)`, compiled for the form of one call's arguments.

    Guards of `torch.compile` watch what the function reads besides its arguments, and compile it again where that
    changes. A batch of another form, or one that the compiler cannot do after all, runs the function as it is.

    Args:
        name: in notices.
        function: pure, of nested dicts and lists of tensors.
        environment: what the function may read besides: restored between the trial runs.
        arguments: of a first call.
        varying: the part of the arguments whose form may differ from call to call.
        options: of the compiler.

    Raises:
        Uncompiled: with the reason.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        environment: Environment,
        arguments: tuple[Any, ...],
        varying: Any,
        **options: Any,
    ) -> None:
        self.name = name
        self.graphs = 0  # that were compiled: another one for each state of what the function reads besides
        self._function = function
        self._lock = threading.RLock()  # a call notes on this object what it met: one at a time, from any thread
        self._options = compiler_options(options)
        make_ahead(self._options)
        self._varying = outline(varying)
        self._told = self._refused = False
        self._looked_with: set[int] | None = None  # while it is looked at: the arguments, by identity
        self._called: tuple[Any, Any, Any] | None = None  # by the last guarded call: the graph, what it took and gave
        self._direct: Direct | None = None
        self._take = taker(arguments)
        tell_compiler()
        self._compiled, eager, self.seconds = beside_eager(
            function, environment, arguments, self._backend, lambda compiled, flat, _: self._guarded(flat, compiled)
        )
        self._build = builder(eager)

    def begin(self) -> None:
        """A run begins: its first call looks at everything again."""
        self._direct = None

    def __call__(self, varying: Any, *arguments: Any) -> Any:
        """The results, of the function as it is where it cannot run compiled."""
        results = self.compiled(varying, *arguments)
        if results is None:
            with torch.no_grad():
                return self._function(*arguments)
        return results

    def compiled(self, varying: Any, *arguments: Any) -> Any:
        """The results; None where the function cannot run compiled, which a notice tells once."""
        if self._refused:
            return None
        if not fits(varying, self._varying):
            self._tell(ANOTHER_FORM)
            return None
        flat = self._take(arguments)
        with self._lock, torch.no_grad():
            try:
                direct = self._direct  # another thread's run may begin, and forget it
                if direct is not None and lies_alike(varying, self._varying):
                    try:
                        return self._build(direct(flat))
                    except AssertionError:  # other strides
                        self._direct = None
                return self._build(self._guarded(flat))
            except Exception as error:
                if not of_compiler(error):
                    raise
                self._refused = True
                self._tell(first_line(error))
                return None

    def look(self, varying: Any, *arguments: Any) -> None:
        """Does what was compiled still fit? If not, compile again. Computes nothing. Raises Uncompiled."""
        if self._refused:
            raise Uncompiled("what it reads besides its arguments has changed so that the compiler cannot do it")
        if not fits(varying, self._varying):
            return
        with self._lock:
            flat = each_once(self._take(arguments))
            self._looked_with = {id(x) for x in flat}
            try:
                with compiling(), torch.no_grad():
                    self._compiled(*flat)
            finally:
                self._looked_with = None

    def as_it_is(self, varying: Any, *arguments: Any) -> Any:
        """The results by a graph that there is; None, and nothing said, where another one would have to be compiled."""
        if self._refused or not fits(varying, self._varying):
            return None
        with self._lock:
            try:
                with as_compiled(), compiling(), torch.no_grad():
                    return self._build(self._compiled(*each_once(self._take(arguments))))
            except Uncompiled:
                return None
            finally:
                self._called = None

    def _guarded(self, flat: Sequence[Any], compiled: Callable[..., Any] | None = None) -> list[Any]:
        """Call it with every guard; the next calls of the run go to the graph that it found."""
        self._called = None
        flat = each_once(flat)
        results: list[Any] = (compiled or self._compiled)(*flat)
        called: Any = self._called
        if called is not None:
            graph, inputs, outputs = called
            took, gave = places_in(flat, inputs), places_in(outputs, results)
            if took is not None and gave is not None:
                self._direct = Direct(graph, took, gave)
        self._called = None
        return results

    def _backend(self, module: Any, inputs: Any) -> Callable[..., Any]:
        from gimli_core.compiled.compiler.graph_passes import traced_once

        refuse_another_graph()
        refuse_side_effects()
        refuse_branches()
        with_copies(module)
        traced_once(module)
        tell_traced(self.name, len(module.graph.nodes))
        graph: Any = lowered(module, inputs, config_patches=self._options)  # may have it traced once more
        refuse_branches()
        self.graphs += 1

        outputs_count = len(module.graph.output_node().args[0])

        def noted(*inputs: Any) -> Any:
            if self._looked_with is not None:
                note_graph(graph, [x for x in inputs if id(x) not in self._looked_with])
                return [torch.empty(0) for _ in range(outputs_count)]
            outputs = graph(*inputs)
            self._called = (graph, inputs, outputs)
            return outputs

        return noted

    def _tell(self, reason: str) -> None:
        if not self._told:
            self._told = True
            notice(f"{self.name} runs uncompiled here: {reason}")


def compiler_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the compiler: random numbers are the eager ones, and the passes of graph_passes.py are made.

    The others save compiling time, of which the C++ compiler takes half. Measured on the first compiled call, in
    seconds of processor time: 12 went into trying out which vector instructions the C++ compiler knows, where one that
    knows C++20, as torch 2.13 demands, knows all that the processor has.
    """
    # Here, since it imports the compiler, which takes seconds.
    from gimli_core.compiled.compiler.graph_passes import InMemory, SumsApart, Transposes

    passes = {"post_grad_custom_pre_pass": Transposes(), "post_grad_custom_post_pass": (SumsApart(), InMemory())}
    quick = {"cpp.vec_isa_ok": True, "aot_inductor.enable_line_tables": False}
    return {"fallback_random": True, **quick, **passes, **options}


def each_once(flat: Sequence[Any]) -> list[Any]:
    """The same with a new name for a tensor that comes again: in the next call the two may be different ones."""
    seen: set[int] = set()
    names = []
    for x in flat:
        names.append(x.detach() if isinstance(x, torch.Tensor) and id(x) in seen else x)
        seen.add(id(x))
    return names


def places_in(many: Sequence[Any], some: Sequence[Any]) -> list[int] | None:
    """Where each of `some` stands in `many`; None if one does not."""
    places = {id(x): i for i, x in reversed(list(enumerate(many)))}
    return [places[id(x)] for x in some] if all(id(x) in places for x in some) else None
