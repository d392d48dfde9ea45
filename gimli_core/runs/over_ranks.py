"""The run of a call that several processes share: begun only once all ranks could begin, and with the same inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gimli_core.arguments.call import Call
from gimli_core.arguments.inputs import Inputs, prepare
from gimli_core.compiled.compiler.trial import progress_told
from gimli_core.errors import unexpected
from gimli_core.memory.directory import directory_of
from gimli_core.meta_parameters.marks import tensor_paths
from gimli_core.processes.agreement import raised_by, together
from gimli_core.processes.collectives import everyones
from gimli_core.processes.mesh import Mesh, check_device
from gimli_core.processes.words import leave
from gimli_core.requirements.parts import refuse_undecomposed
from gimli_core.runs.chunks import Chunks
from gimli_core.runs.digests import digests
from gimli_core.runs.finished_tasks import FinishedTasks
from gimli_core.runs.gathered import gathered
from gimli_core.runs.journal_over_ranks import of_rank, refuse_other_number
from gimli_core.runs.run import Events, Run
from gimli_core.runs.shared_directory import check_shared
from gimli_core.runs.tasks_over_ranks import TasksOverRanks
from gimli_core.transforms.tasks import check_tasks

__all__ = ["Told", "begun_together", "chunks_of", "over_ranks"]


def over_ranks(call: Call, mesh: Mesh, run: Callable[[Call], Run]) -> Run:
    """The run of all tasks, of which this rank runs its share; `run` makes that of a chunk of them.

    Raises on all ranks, or on none.
    """

    def made() -> Run:
        with progress_told(mesh.first):
            return _chunks(call, mesh, run)

    chunks = together(mesh, "mesh", made, lambda: digests(call, batches=mesh.data is None and mesh.shard is None))
    if call.resume is not None and mesh.tasks is not None:  # another rank may go on with what one has begun
        check_shared(mesh.tasks, "resume", directory_of("resume", call.resume))
    return chunks


class Told:
    """A run whose ranks hear of what one of them raises, wherever it does; see words.py."""

    def __init__(self, run: Run, mesh: Mesh) -> None:
        self._run, self._mesh = run, mesh

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def forward(self) -> Events:
        yield from self._telling(self._run.forward())

    def backward(self, along: Tensor | None = None) -> Events:
        yield from self._telling(self._run.backward(along))

    def _telling(self, events: Events) -> Events:
        try:
            yield from events
        except Exception as error:
            for ranks in self._mesh:
                leave(ranks, f"raised {raised_by(error)}")
            raise


def begun_together(call: Call, mesh: Mesh, make: Callable[[], Inputs]) -> Inputs:
    """The inputs of one inner loop, of which ranks hold parts, once they are made and alike on all ranks.

    Raises on all ranks, or on none: what `make` raises, what differs, and a loss that is not the sum of its parts.
    """

    def made() -> Inputs:
        inputs = make()
        check_device(mesh, inputs.device)
        return inputs

    inputs = together(mesh, "mesh", made, lambda: digests(call, batches=mesh.data is None))
    if mesh.data is None or mesh.data.size == 1 or not call.check or inputs.values.indexed or not inputs.form.steps:
        return inputs
    probed = inputs.form.problem.memo.examined
    signature = ("over ranks", mesh.data.size, tuple((k, v.shape) for k, v in inputs.values.theta_0.items()))
    if not all(everyones(mesh.data, signature in probed, "whether the losses were tried")):
        last = max(j for j, weighted in enumerate(inputs.form.weighted) if weighted)
        of_all = gathered(call, mesh.data, [0], [last])
        together(mesh, "mesh", lambda: _refuse_undecomposed(of_all))
        probed[signature] = True
    return inputs


def _refuse_undecomposed(call: Call) -> None:
    inputs = prepare(call)
    for name in ("train_loss", "val_loss"):
        refuse_undecomposed(inputs, name, "the parts of ranks")


def chunks_of(call: Call, mesh: Mesh) -> list[Call]:
    """The calls of the chunks of tasks that ranks share: of one task each, unless `Tasks(chunk=…)` says how many."""
    tasks = check_tasks(call.tasks)
    if tasks is None:
        expected, do = 'tasks=T beside a mesh of "tasks"', 'One inner loop over processes is mesh="data".'
        raise unexpected("tasks", expected, "None", do)
    # Eager runs and those that an "auto" would change over to, sooner on one rank than on another, differ in last bits.
    compile = False if call.compile == "auto" else call.compile
    alone = replace(mesh, tasks=None) if mesh.data or mesh.shard else None
    return replace(call, tasks=replace(tasks, chunk=tasks.chunk or 1), compile=compile, mesh=alone).parts()


def _chunks(call: Call, mesh: Mesh, run: Callable[[Call], Run]) -> Run:
    """The run of all tasks, of which this rank runs its share."""
    parts = chunks_of(call, mesh)
    assert mesh.tasks is not None
    kept, within = None, [ranks for ranks in mesh if ranks is not mesh.tasks]
    if call.resume is not None:
        digest = hashlib.sha256(repr(sorted(digests(call, batches=True).items())).encode()).hexdigest()
        directory = directory_of("resume", call.resume)
        refuse_other_number(directory, within)
        kept = FinishedTasks(of_rank(directory, within), digest, root=directory)
        parts = [replace(part, resume=kept.journal(i)) for i, part in enumerate(parts)]
    device = next((t.device for _, t in tensor_paths(call.theta_0)), torch.device("cpu"))
    check_device(mesh, device)
    return Chunks(call, parts, run, TasksOverRanks(mesh.tasks, device, kept, within))
