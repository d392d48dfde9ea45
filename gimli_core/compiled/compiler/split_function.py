"""A pure function of which some arguments are known later, compiled in two halves.

The first half computes what does not depend on the late arguments, and hands on what the second needs of it. Where to
cut, so that nothing dear is computed twice and little is kept, torch's own min-cut decides, which parts the forward
and backward graphs of autograd under `torch.compile`. With a step forwards as the first half and its sweep as the
second that is a kept graph (9F a step), without all that lies between products: that is cheap, and computed again.

How it is cut. `torch.compile` traces the function and hands the traced graph to a backend, which is here
`Halves._backend`. It lowers the graph, names its early inputs `primals` and its late ones `tangents`, as the
partitioner wants them, has it cut in two, and compiles each half; or finds all that on the disk (stored_cut.py). What
the compiler then calls computes nothing: `_noted` notes what it was called with and returns marks in place of outputs.
From the identities of arguments and marks `_connect` reads which leaf goes where (`Joined`); a run calls the two halves
directly from then on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from gimli_core.compiled.compiler.compiled_function import compiler_options, each_once
from gimli_core.compiled.compiler.cut import Compiled, Cut, Uncut, cut_in_two, noted_by, results_of
from gimli_core.compiled.compiler.lowering import lowered, make_ahead
from gimli_core.compiled.compiler.other_graphs import note_graph, refuse_another_graph
from gimli_core.compiled.compiler.refusals import refuse_branches, refuse_side_effects
from gimli_core.compiled.compiler.trial import beside_eager, compiling, tell_traced
from gimli_core.environment import Environment

__all__ = ["Halves", "Joined"]


class Joined(NamedTuple):
    """The two halves with their inputs and outputs followed to the leaves of the arguments and of the results.

    Everything is told by its place in a list:

        early + constants + what the first graph gives      (constants: what the function reads besides its arguments)
        kept + late + what the second graph gives
    """

    first_graph: Compiled
    second_graph: Compiled
    kept: list[int]
    constants: list[Any]
    first_takes: list[int]
    first_results: list[int]
    second_takes: list[int]
    second_results: list[int]

    def first(self, early: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """(the leaves of the first result, what `second` needs) from the leaves of the early arguments."""
        pool = [*early, *self.constants]
        with torch.no_grad():  # what is read besides may require a gradient
            pool += self.first_graph([pool[i] for i in self.first_takes])
        return [pool[i] for i in self.first_results], [pool[i] for i in self.kept]

    def second(self, kept: Sequence[Any], late: Sequence[Any]) -> list[Any]:
        """The leaves of the second result."""
        pool = [*kept, *late]
        with torch.no_grad():
            pool += self.second_graph([pool[i] for i in self.second_takes])
        return [pool[i] for i in self.second_results]


class Halves:
    """`function(*arguments)`, a pair, in two calls: `Joined.first` without the late arguments, `second` with them.

    Args:
        function: pure, of nested dicts and lists of tensors. It draws no random numbers and changes no buffers.
            The first of the two that it returns does not depend on what comes late.
        environment: what it may read besides.
        arguments: of a trial.
        late: how many of the last leaves of the arguments are known later.
        options: of the compiler.

    Attributes:
        results: what the function returned in the trial.
        seconds: of compiling.

    Raises:
        Uncompiled: with the reason; Uncut if only the cutting failed.
    """

    def __init__(
        self,
        function: Callable[..., tuple[Any, Any]],
        environment: Environment,
        arguments: tuple[Any, ...],
        late: int,
        **options: Any,
    ) -> None:
        self._lock = threading.RLock()  # a look writes to what stands here
        self._options = compiler_options(options)
        make_ahead(self._options)
        self._late = late
        self._early_results = 0  # how many leaves the first of the pair has
        self._flat: list[Any] = []  # of the guarded call that is under way
        self._marks: list[Any] = []  # stand for the outputs of its graph
        self._inputs: list[int] = []  # where each input of its graph stands
        self._constants: list[Any] = []
        self._cut: Cut | None = None
        self._compiled, self.results, self.seconds = beside_eager(
            function, environment, arguments, self._backend, self._trial
        )

    def look(self, flat: Sequence[Any]) -> Joined:
        """NOTE [one look a run] in compiled_function.py: does what was compiled still fit? If not, compile again.

        Computes nothing. Of the leaves of all arguments only the form matters. Raises Uncompiled. What it returns is
        one run's: another run, in another thread, may look again and find something else.
        """
        with compiling(), torch.no_grad():
            return self._look(self._compiled, flat)

    def _trial(self, compiled: Callable[..., Any], flat: Sequence[Any], eager: tuple[Any, Any]) -> list[Any]:
        self._early_results = len(pytree.tree_leaves(eager[0]))
        joined = self._look(compiled, flat)
        cut = len(flat) - self._late
        first, kept = joined.first(flat[:cut])
        return [*first, *joined.second(kept, flat[cut:])]

    def _look(self, compiled: Callable[..., Any], flat: Sequence[Any]) -> Joined:
        with self._lock:
            self._flat = each_once(flat)
            try:
                with noted_by(self._noted):
                    results = compiled(*self._flat)
                if self._cut is None:
                    raise Uncut("nothing in it depends on its arguments")
                return self._connect(self._cut, results)
            finally:
                self._flat, self._marks = [], []

    def _connect(self, cut: Cut, results: Sequence[Any]) -> Joined:
        """Follow every result back to where it comes from."""
        base = len(self._flat) - self._late + len(self._constants)  # of what the first graph gives
        of_flat, of_marks = self._places(), {id(x): i for i, x in enumerate(self._marks)}
        of_gives: dict[Any, int] = {mark: base + i for i, mark in enumerate(cut.first_gives)}
        of_later: dict[Any, int] = {mark: i for i, mark in enumerate(cut.second_gives)}
        kept: list[int] = []

        def handed(place: int) -> int:
            """Where something stands in the second pool; what is late stands before its end and is counted from it."""
            if place < 0:
                return place
            if place not in kept:
                kept.append(place)
            return kept.index(place)

        takes = [handed(self._inputs[i] if is_input else base + i) for is_input, i in cut.second_takes]
        first_results: list[int] = []
        second_results: list[tuple[bool, int]] = []  # (whether the second graph gives it, its place)
        for result in results:
            mark = of_marks.get(id(result))
            place = of_flat.get(id(result)) if mark is None else of_gives.get(mark)
            if place is None and mark is None:
                raise Uncut("one of its results is neither computed nor given")
            if len(first_results) == self._early_results:
                second_results.append((False, handed(place)) if place is not None else (True, of_later[mark]))
            elif place is None or place < 0:
                raise Uncut("what comes first depends on what comes late")
            else:
                first_results.append(place)
        end = len(kept) + self._late
        return Joined(
            cut.first,
            cut.second,
            kept,
            list(self._constants),
            [self._inputs[i] for i in cut.first_takes],
            first_results,
            [i if i >= 0 else end + i for i in takes],
            [end + i if is_input or i < 0 else i for is_input, i in second_results],
        )

    def _places(self) -> dict[int, int]:
        """Where each leaf stands, by identity; the late ones are counted from the end."""
        size, early = len(self._flat), len(self._flat) - self._late
        return {id(x): i if i < early else i - size for i, x in reversed(list(enumerate(self._flat)))}

    def _backend(self, module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """What `torch.compile` calls with a traced graph, once for every form that it meets."""
        from gimli_core.compiled.compiler.graph_passes import traced_once
        from gimli_core.compiled.compiler.stored_cut import StoredCut, kept_on_the_disk

        refuse_another_graph()
        refuse_side_effects()
        refuse_branches()
        traced_once(module)
        tell_traced("the step", len(module.graph.nodes))
        outputs = len(results_of(module.graph))
        comes_late = {id(x) for x in self._flat[len(self._flat) - self._late :]}
        late = [id(x) in comes_late for x in inputs]

        def compile_halves(lowered: GraphModule, examples: Sequence[Any], **options: Any) -> StoredCut:
            places = [node for node in lowered.graph.nodes if node.op == "placeholder"]
            if len(places) != len(late) or len(results_of(lowered.graph)) != outputs:
                raise Uncut("it changes something besides what it returns")
            return StoredCut(cut_in_two(lowered, late, options))

        with kept_on_the_disk(module, late):
            graph: Callable[..., Any] = lowered(
                module, inputs, inner_compile=compile_halves, config_patches=self._options
            )
            refuse_branches()
            return graph

    def _noted(self, cut: Cut, inputs: Sequence[Any]) -> list[Any]:
        """What a cut graph does when it is called: no computing; note what was called with what, mark the outputs."""
        where = self._places()
        self._constants = [x for x in inputs if id(x) not in where]
        note_graph(cut, self._constants)
        where |= {id(x): len(self._flat) - self._late + i for i, x in enumerate(self._constants)}
        self._inputs, self._cut = [where[id(x)] for x in inputs], cut
        self._marks = [torch.empty(0) for _ in range(len(cut.first_gives) + len(cut.second_gives))]
        return list(self._marks)
