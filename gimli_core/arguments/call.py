"""A call: what the user gave, as it was given. Every public function of the engine builds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gimli_core.arguments.approximation import Approximation
from gimli_core.arguments.batches import check_batches, check_val_batch
from gimli_core.arguments.fits_in_memory import check_fits
from gimli_core.arguments.theta import check_room
from gimli_core.attributes import ROOM
from gimli_core.derivatives.micro_batches import MicroBatches, dim_of_examples, split, weighed
from gimli_core.errors import unexpected
from gimli_core.meta_parameters.indexed import Indexed, LastBatch, rows_of
from gimli_core.meta_parameters.marks import PerTask, plain_dicts, unmarked
from gimli_core.notation import COUNTS, State
from gimli_core.problem import Problem
from gimli_core.processes.mesh import check_mesh
from gimli_core.transforms.nested import Places, unnested
from gimli_core.transforms.numbered import numbered, with_j
from gimli_core.transforms.proximal import with_centre
from gimli_core.transforms.shares import of_shares, share_of, shared, whole_batch
from gimli_core.transforms.sliced import of_slices, sliced
from gimli_core.transforms.tasks import Tasks, check_tasks, checked_per_task, of_tasks
from gimli_core.trees import KeyPath, mapped_at, path_text

__all__ = ["Call"]

PART = 1000  # bytes that the call of a chunk of tasks takes at least


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of `gimli.meta_gradient`, unchecked; that function's docstring says what each means."""

    problem: Problem
    theta_0: Mapping[str, Tensor]
    train_batches: Sequence[Any] | Callable[[int], Any]
    val_batch: Any
    steps: int | None = None
    phi_opt: Mapping[str, Any] | None = None
    phi_loss: Mapping[str, Tensor] | None = None
    state_0: State | None = None
    val_weights: Sequence[float] | Tensor | None = None
    memory: Any = None  # a schedule of gimli.memory
    approximation: Approximation | None = None
    second_order: str = "auto"
    tasks: int | Tasks | None = None
    compile: bool | str = "auto"
    resume: str | Path | None = None
    check: bool = True
    until: Any = None  # a gimli.Until, or its test
    micro_batches: int | None = None
    mesh: Any = None  # a DeviceMesh, or what all processes are for
    among: int | None = None  # of how many tasks these are a part; all of them by default
    nested: Places = ()  # where the entries of phi_loss stand in what the user gave, if that had dicts in it

    def __post_init__(self) -> None:
        for name in ("theta_0", "phi_opt", "phi_loss"):
            object.__setattr__(self, name, plain_dicts(getattr(self, name)))
        problem, phi_loss, places = unnested(self.problem, self.phi_loss)
        if places:
            for name, value in (("problem", problem), ("phi_loss", phi_loss), ("nested", places)):
                object.__setattr__(self, name, value)
        train_loss = getattr(self.problem, "train_loss", None)
        object.__setattr__(self, "phi_loss", with_centre(train_loss, self.theta_0, self.phi_loss))

    @property
    def room(self) -> int:
        """Bytes for a copy of what losses and batches keep: several are alive at a time, and a budget counts them."""
        budget = getattr(self.memory, "bytes", None)
        return min(ROOM, budget // 32) if isinstance(budget, int) else ROOM

    def parts(self) -> list[Call]:
        """The calls of the tasks' chunks; this one alone if there are none. Raises ArgumentError."""
        tasks = check_tasks(self.tasks)
        if tasks is None or tasks.count <= (tasks.chunk or tasks.count):
            return [self]
        self.check_stacked(tasks.count)
        check_fits("tasks", -(-tasks.count // (tasks.chunk or 1)), PART, "the calls of so many chunks")
        return [self._part(tasks, first, last) for first, last in tasks.parts]

    def check_stacked(self, count: int, *, ask: bool = False) -> None:
        """Raise ArgumentError before anything is made for all tasks: where batches, those of a function only with
        `ask`, have no slice for each, or memory has no room for all theta_J.
        """
        val = () if callable(self.val_batch) else (self.val_batch,)
        for name, of_loss in (("train_loss", self._first_batch(ask)), ("val_loss", val)):
            of_tasks(of_loss, count, name, 0, count)
        check_room(self.theta_0, count)

    def _first_batch(self, ask: bool) -> Any:
        """The first batch in a sequence; none where there is none, or it cannot be had."""
        if isinstance(self.train_batches, (list, tuple)):
            return self.train_batches[:1]
        try:
            return (self.train_batches(0),) if ask and callable(self.train_batches) and self.steps else ()
        except Exception:  # the run fails there as well, and says at which step
            return ()

    def batches(
        self, indexed: Mapping[str, Indexed] | None = None
    ) -> tuple[Problem, Callable[[int], Any], int, Callable[[int], Any], Any]:
        """(the problem that takes them, batch_j, J, L_val's batch at theta_j, the rows of indexed entries at j).

        All are checked. Raises ArgumentError.
        """
        mesh = check_mesh(self.mesh)
        if mesh is None or mesh.data is None:
            return self._batches(indexed)
        J, dim = check_batches(self.train_batches, self.steps)[1], dim_of_examples(self.tasks)
        train, val = LastBatch(check_batches(self.train_batches, J)[0]), LastBatch(check_val_batch(self.val_batch, J))
        bare = replace(self, train_batches=whole_batch(train), val_batch=partial(whole_batch(val)), steps=J, mesh=None)
        problem, batch, J, val_batch, rows = bare._batches(indexed)
        return (
            of_shares(problem),
            lambda j: shared(batch(j), *share_of(train(j), dim)),
            J,
            lambda j: shared(val_batch(j), *share_of(val(j), dim)),
            rows,
        )

    def _batches(
        self, indexed: Mapping[str, Indexed] | None
    ) -> tuple[Problem, Callable[[int], Any], int, Callable[[int], Any], Any]:
        problem, inner, outer = numbered(self.problem)
        batch, J = self.train_batches_in_parts()
        val_batch = with_j(check_val_batch(self.val_batch, J), outer)
        if not indexed:
            return problem, with_j(batch, inner), J, val_batch, None
        last, entries = LastBatch(batch), dict(indexed)
        tasks = check_tasks(self.tasks)
        rows = LastBatch(lambda j: rows_of(entries, last(j), j, None if tasks is None else tasks.count))
        for j in range(J if isinstance(self.train_batches, (list, tuple)) else min(J, 1)):
            rows(j)  # out of range is an error before any work, where all can be looked at
        numbered_batch = with_j(last, inner)
        return of_slices(problem), lambda j: sliced(numbered_batch(j), rows(j)), J, val_batch, rows

    def train_batches_in_parts(self) -> tuple[Callable[[int], Any], int]:
        """(batch_j, J), checked; batches in parts have weights. Raises ArgumentError."""
        batch, J = check_batches(self.train_batches, self.steps)
        count, dim = self.micro_batches, dim_of_examples(self.tasks)
        if count is None:
            return in_parts(batch, lambda one: weighed(one, dim) if isinstance(one, MicroBatches) else one), J
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
            do = "It is in how many parts each batch is cut; None leaves it whole."
            raise unexpected("micro_batches", "a whole number n >= 1, or None", repr(count), do)
        return in_parts(batch, lambda one: weighed(split(one, int(count), dim), dim)), J

    def _part(self, tasks: Tasks, first: int, last: int) -> Call:
        """The call of the tasks [first, last)."""
        T = tasks.count
        batch_of_all, steps = check_batches(self.train_batches, self.steps)

        def batch(j: int) -> Any:
            return of_tasks(batch_of_all(j), T, "train_loss", first, last)

        val_batch_of_all = check_val_batch(self.val_batch, steps)

        def val_batch(j: int) -> Any:
            return of_tasks(val_batch_of_all(j), T, "val_loss", first, last)

        return replace(
            self,
            theta_0=of_part(self.theta_0, "theta_0", T, first, last),
            phi_opt=of_part(self.phi_opt, "phi_opt", T, first, last),
            phi_loss=of_part(self.phi_loss, "phi_loss", T, first, last),
            state_0=_state_of_part(self.state_0, T, first, last),
            steps=steps,
            tasks=replace(tasks, count=last - first, chunk=None),
            train_batches=batch,
            val_batch=val_batch,
            among=self.among or T,
        )


def in_parts(batch: Callable[[int], Any], cut: Callable[[Any], Any]) -> Callable[[int], Any]:
    """batch_j, cut."""
    return lambda j: cut(batch(j))


def of_part(value: Any, label: str, count: int, first: int, last: int) -> Any:
    """What of an argument belongs to the tasks [first, last): slices of what is marked `per_task`, all of the rest."""

    def part(path: KeyPath, leaf: Any) -> Any:
        if PerTask not in path or not isinstance(leaf, Tensor):
            return leaf
        sliced = checked_per_task(path_text(path, label), leaf, count).detach()[first:last]
        # An nn.Parameter says by what it is whether it is trained: a part of it is one too.
        return nn.Parameter(sliced, requires_grad=leaf.requires_grad) if isinstance(leaf, nn.Parameter) else sliced

    return mapped_at(part, value)


def _state_of_part(state_0: Any, count: int, first: int, last: int) -> Any:
    """A state's slots by task; its counts are the same for all."""
    marked = isinstance(state_0, PerTask)
    state = unmarked(state_0)
    if not isinstance(state, Mapping):
        return state_0
    counts = {name: of_slot for name, of_slot in state.items() if name in COUNTS}
    slots = {name: of_slot for name, of_slot in state.items() if name not in COUNTS}
    part = of_part(PerTask(slots) if marked else slots, "state_0", count, first, last)
    return PerTask({**counts, **unmarked(part)}) if marked else {**counts, **part}
