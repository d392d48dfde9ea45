"""Episodes: few-shot tasks drawn from labelled rows, or sinusoids, each a pure function of its number.

    images or rows x [n, …], labels [n]  --EpisodeSampler-->  rows of T tasks  --episodes_of-->  Episode

`EpisodeSampler` is an ordinary torch `Sampler` and `sampler.collate` an ordinary collate function:
`DataLoader(TensorDataset(x, labels), batch_sampler=sampler, collate_fn=sampler.collate)` gives the very episodes that
`Episodes(x, sampler)` gives by number, without a worker in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Sampler

from gimli_core.errors import unexpected
from gimli_core.outer_loop.randomness import TASK, generator_at

__all__ = ["Episode", "EpisodeSampler", "EpisodeSource", "Episodes", "Sinusoids", "episodes_of", "with_rotations"]


class Episode(NamedTuple):
    """T tasks, stacked: what a learner is shown, and what it is asked."""

    support_x: Tensor  # [T, S, …]; of classes, class by class: S = way·shot
    support_y: Tensor  # [T, S], classes 0 … way-1; of a regression [T, S, outputs]
    query_x: Tensor  # [T, Q, …]
    query_y: Tensor  # [T, Q]; [T, Q, outputs]
    number: int = 0  # of the meta-batch: what is annealed is a function of it

    @property
    def tasks(self) -> int:
        """T."""
        return len(self.support_x)

    @property
    def way(self) -> int:
        """How many classes a task has; of a regression, how many outputs."""
        return self.support_y.shape[-1] if self.support_y.is_floating_point() else int(self.support_y.max()) + 1


class EpisodeSource(Protocol):
    """Where episodes come from: the meta-batch with a number, always the same."""

    def __call__(self, number: int) -> Episode: ...


class EpisodeSampler(Sampler[list[int]]):
    """The rows of episodes, from the labels alone.

    Task t of meta-batch `number` is a function of (seed, number, t): it can be drawn again, in any order and process,
    and is the same among more tasks. The classes
    of a task are distinct, and no row is both shown and asked.

    Args:
        labels: [n] whole numbers, one a row.
        way: classes a task.
        shot: rows of each class that are shown.
        queries: rows of each class that are asked; the mean of them if they are not balanced.
        tasks: T, tasks a meta-batch.
        balanced: False draws the way·queries asked rows from all that the classes have left, so that how often a
            class is asked differs.
        seed: of the draws; episodes of different seeds are different streams.
        batches: meta-batches in an epoch, for iterating; numbers go on without end otherwise.

    Raises:
        ArgumentError: too few classes or rows, numbers below 1: before any is drawn.

    >>> import torch
    >>> from gimli_core.few_shot.episodes import EpisodeSampler
    >>> sampler = EpisodeSampler(torch.arange(6).repeat_interleave(4), way=3, shot=1, queries=2, batches=2)
    >>> [len(rows) for rows in sampler], sampler.rows(1).shape
    ([9, 9], torch.Size([1, 9]))
    """

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        *,
        way: int,
        shot: int,
        queries: int,
        tasks: int = 1,
        balanced: bool = True,
        seed: int = 0,
        batches: int = 1,
    ) -> None:
        for name, value, least in (
            ("way", way, 2),
            ("shot", shot, 1),
            ("queries", queries, 1),
            ("tasks", tasks, 1),
            ("seed", seed, 0),
            ("batches", batches, 1),
        ):
            check_count(name, value, least)
        self.labels = _checked_labels(labels)
        self.way, self.shot, self.queries, self.tasks = way, shot, queries, tasks
        self.balanced, self.seed, self.batches = balanced, seed, batches
        order = torch.argsort(self.labels, stable=True)
        self.classes, counts = torch.unique(self.labels, return_counts=True)
        self._members = torch.split(order, counts.tolist())
        if way > len(self.classes):
            do = "Ask for fewer ways, bring more classes, or take rotations as classes."
            raise unexpected("way", f"at most the {len(self.classes)} classes of the labels", str(way), do)
        least = shot + queries if balanced else shot + 1
        small = [int(c) for c, count in zip(self.classes, counts, strict=True) if count < least]
        if small:
            first = int(counts[self.classes.tolist().index(small[0])])
            actual = f"{first} of class {small[0]}" + (f", and too few of {len(small) - 1} more" if small[1:] else "")
            do = "Leave small classes out, or ask for fewer shots or queries."
            raise unexpected("labels", f"at least {least} rows of each class, shot + queries", actual, do)
        if not balanced and sum(sorted(counts.tolist())[:way]) < way * (shot + queries):
            actual = f"{sum(sorted(counts.tolist())[:way])} in the {way} smallest"
            do = "Ask for fewer queries."
            raise unexpected("labels", f"{way * (shot + queries)} rows in any {way} classes", actual, do)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self.batches):
            yield self.rows(number).flatten().tolist()

    def rows(self, number: int) -> Tensor:
        """Row numbers of meta-batch `number`, [T, way·shot + way·queries]: those that are shown, then those asked."""
        return torch.stack([self._one_task(generator_at(self.seed, TASK, number, t)) for t in range(self.tasks)])

    def _one_task(self, generator: torch.Generator) -> Tensor:
        chosen = torch.randperm(len(self.classes), generator=generator)[: self.way].tolist()
        drawn = [self._members[c][torch.randperm(len(self._members[c]), generator=generator)] for c in chosen]
        shown = [rows[: self.shot] for rows in drawn]
        if self.balanced:
            return torch.cat(shown + [rows[self.shot : self.shot + self.queries] for rows in drawn])
        left = torch.cat([rows[self.shot :] for rows in drawn])
        asked = left[torch.randperm(len(left), generator=generator)[: self.way * self.queries]]
        return torch.cat([*shown, asked])

    def collate(self, items: Sequence[tuple[Tensor, Tensor]]) -> Episode:
        """The episode of rows (x, label) in the order of `rows`: a `DataLoader`'s `collate_fn`."""
        x, labels = torch.stack([item[0] for item in items]), torch.stack([torch.as_tensor(item[1]) for item in items])
        by_task = (self.tasks, len(items) // self.tasks)
        return episodes_of(x.unflatten(0, by_task), labels.unflatten(0, by_task), self.way, self.shot)


class Episodes:
    """Meta-batches of labelled rows, by number.

    Args:
        x: [n, …]; bytes (uint8) come out as numbers from 0 to 1.
        sampler: of the rows' labels.
        device: where episodes are put.

    Raises:
        ArgumentError: another number of rows than labels, numbers that are not finite.
    """

    def __init__(self, x: Tensor, sampler: EpisodeSampler, device: str | torch.device = "cpu") -> None:
        if len(x) != len(sampler.labels):
            expected = f"{len(sampler.labels)} rows, one a label"
            raise unexpected("x", expected, str(len(x)), "Give each row its label.")
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            row = int((~torch.isfinite(x.flatten(1))).any(1).nonzero()[0])
            raise unexpected("x", "finite numbers", f"others in row {row}", "Mend the row, or leave it out.")
        self.x, self.sampler, self.device = x, sampler, device

    def __call__(self, number: int) -> Episode:
        rows = self.sampler.rows(number)
        x, labels = self.x[rows].to(self.device), self.sampler.labels[rows].to(self.device)
        drawn = episodes_of(x, labels, self.sampler.way, self.sampler.shot)
        return drawn._replace(number=number)


def episodes_of(x: Tensor, labels: Tensor, way: int, shot: int) -> Episode:
    """The episode of rows [T, way·shot + Q, …] and their labels: those shown stand first, class by class.

    A task's classes are numbered 0 … way-1 in the order in which they are shown.
    """
    shown = way * shot
    if x.dtype == torch.uint8:
        x = x.to(torch.get_default_dtype()) / 255
    classes = labels[:, :shown:shot]
    y = (labels[:, :, None] == classes[:, None, :]).int().argmax(-1)
    return Episode(x[:, :shown], y[:, :shown], x[:, shown:], y[:, shown:])


def with_rotations(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Four times the rows: every class of images [n, C, H, W] again as three more, turned by 90, 180 and 270 degrees.

    Class c turned k times has the label c + k·(largest label + 1).
    """
    step = int(labels.max()) + 1
    turned = [torch.rot90(images, k, (-2, -1)) for k in range(4)]
    return torch.cat(turned), torch.cat([labels + k * step for k in range(4)])


class Sinusoids:
    """Regression tasks y = A·sin(x + p) behind the face of `Episodes`: A in [0.1, 5], p in [0, π], x in [-5, 5].

    Args:
        shot, queries: points that are shown and asked.
        tasks: T, tasks a meta-batch.
        seed: of the draws.

    Source: Finn et al. 2017, section 5.1.

    >>> from gimli_core.few_shot.episodes import Sinusoids
    >>> Sinusoids(shot=10, queries=5, tasks=4)(0).query_y.shape
    torch.Size([4, 5, 1])
    """

    def __init__(self, *, shot: int = 10, queries: int = 10, tasks: int = 25, seed: int = 0) -> None:
        for name, value, least in (("shot", shot, 1), ("queries", queries, 1), ("tasks", tasks, 1), ("seed", seed, 0)):
            check_count(name, value, least)
        self.shot, self.queries, self.tasks, self.seed = shot, queries, tasks, seed

    def __call__(self, number: int) -> Episode:
        tasks = torch.stack([self._one_task(number, t) for t in range(self.tasks)])
        amplitude, phase, x = 0.1 + 4.9 * tasks[:, :1, None], math.pi * tasks[:, 1:2, None], 10 * tasks[:, 2:, None] - 5
        y = amplitude * torch.sin(x + phase)
        return Episode(x[:, : self.shot], y[:, : self.shot], x[:, self.shot :], y[:, self.shot :], number)

    def _one_task(self, number: int, task: int) -> Tensor:
        return torch.rand(2 + self.shot + self.queries, generator=generator_at(self.seed, TASK, number, task))


def check_count(name: str, value: object, least: int) -> None:
    """Raise ArgumentError unless `value` is a whole number from `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise unexpected(name, f"a whole number from {least}", repr(value), "Choose a larger one.")


def _checked_labels(labels: Tensor | Sequence[int]) -> Tensor:
    checked = torch.as_tensor(labels)
    if checked.ndim != 1 or not len(checked) or checked.is_floating_point() or checked.is_complex():
        actual = f"shape {list(checked.shape)} of {checked.dtype}"
        raise unexpected("labels", "whole numbers, one a row", actual, "Number the classes.")
    return checked.long()
