"""The tasks of a meta-batch over processes: each rank runs its share of the chunks, and all ranks get all results.

Chunks are the same for any number of ranks, each has random numbers of its own, and their results are summed in the
order of the tasks: a result has the same bits for any number of ranks, and on every rank.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence

import numpy as np
import torch

from gimli_core.environment import Environment
from gimli_core.errors import ProcessError
from gimli_core.processes.agreement import raised_by
from gimli_core.processes.collectives import everyones, everyones_tree
from gimli_core.processes.mesh import Ranks
from gimli_core.record import Event
from gimli_core.results import MetaGradient
from gimli_core.runs.finished_tasks import FinishedTasks
from gimli_core.runs.journal_over_ranks import any_of
from gimli_core.runs.outcome import of_state_dict

__all__ = ["TasksOverRanks"]

WHAT = "the results of the tasks"


class TasksOverRanks:
    """Which chunks this rank runs, with which random numbers, and how it comes by the results of the others.

    `within`: the dimensions of the ranks that run a chunk together.
    """

    def __init__(
        self,
        ranks: Ranks,
        device: torch.device,
        kept: FinishedTasks | None = None,
        within: Sequence[Ranks] = (),
    ) -> None:
        self._ranks, self._device, self._kept, self._within = ranks, device, kept, within
        self._seed = 0

    def share(self, count: int) -> range:
        """The chunks of this rank, of so many; their numbers differ by one at most."""
        rank, size = self._ranks.rank, self._ranks.size
        return range(rank * count // size, (rank + 1) * count // size)

    def begin(self, i: int) -> MetaGradient | None:
        """Chunk i begins: its result, if an earlier run has it; else the global generators are put where they are for
        it on whichever rank runs it."""
        through = None if self._kept is None else self._kept.result(i)
        if self._kept is not None and any_of(self._within, through is None):
            through = None  # those that run it together do so all, or none
        if through is None:
            number = int(np.random.SeedSequence([self._seed, i]).generate_state(1, np.uint64)[0] >> 1)
            torch.manual_seed(number)
            np.random.seed(number % 2**32)  # noqa: NPY002 - the user's losses may draw from it
            random.seed(number)
        return through

    def end(self, i: int, result: MetaGradient) -> None:
        """Chunk i is through."""
        if self._kept is not None:
            self._kept.keep(i, result)

    def everyones(self, each: Generator[Event, None, list[MetaGradient]]) -> Generator[Event, None, list[MetaGradient]]:
        """The results of all chunks in their order, from what runs those of this rank.

        The global generators are left one number further, whatever is drawn within.

        Raises:
            what running raises here, and on the other ranks ProcessError, with the rank, the step and the reason.

        Cost: in all two all_gather_object and one all_gather, of the bytes of the results.
        """
        environment = Environment((), self._device)
        drawn = int(torch.randint(2**62, ()))
        if self._kept is not None and self._ranks.rank == 0:
            drawn = self._kept.seed(drawn)
        snapshot = environment.capture()
        self._seed = everyones(self._ranks, drawn, "the seed of the tasks")[0]
        mine: list[MetaGradient] = []
        failed: Exception | None = None
        try:
            mine = yield from each
        except Exception as error:
            failed = error
        finally:
            environment.restore(snapshot)
        word = None if failed is None else raised_by(failed)
        told = everyones_tree(self._ranks, (word, [result.state_dict() for result in mine]), self._device, WHAT)
        if failed is not None:
            raise failed
        for rank, (raised, _) in enumerate(told):
            if raised is not None:
                raise ProcessError(f"rank {rank} of {self._ranks.size} of 'tasks' raised {raised}")
        if self._kept is not None and self._ranks.rank == 0:
            self._kept.remove()
        return [of_state_dict(fields) for _, results in told for fields in results]
