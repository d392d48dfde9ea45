"""Tensors cut into W pieces, one a rank, and put together again.

All tensors of one dtype stand in a row, of which rank r holds the r-th W-th: a piece `[n]` of each tensor, which may be
empty. A W-th is rounded up, so the last ranks may hold less: then what is gathered is the row itself, and no copy is
made to take the tensors out of it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from gimli_core.notation import Tensors
from gimli_core.processes.collectives import (
    Weighed,
    Weight,
    all_gathered,
    common_dtype,
    divisor,
    exchanged,
    numbers,
    weighed,
)
from gimli_core.processes.mesh import Ranks

__all__ = ["Pieces"]

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Pieces:
    """How tensors are cut.

    Args:
        ranks: that share them.
        shapes: of the tensors as they are whole.
        dtypes: that the row of each tensor goes by; a tensor of the same name and another dtype is cut alike.
    """

    ranks: Ranks
    shapes: Mapping[str, torch.Size]
    dtypes: Mapping[str, torch.dtype]
    cuts: Mapping[str, tuple[int, ...]] = field(init=False)  # of each tensor: rank r holds [cuts[r], cuts[r + 1])

    def __post_init__(self) -> None:
        cuts, W = {}, self.ranks.size
        for dtype in dict.fromkeys(self.dtypes.values()):
            sizes = {k: shape.numel() for k, shape in self.shapes.items() if self.dtypes[k] == dtype}
            most, first = -(-sum(sizes.values()) // W), 0
            for k, size in sizes.items():
                cuts[k] = tuple(min(max(r * most - first, 0), size) for r in range(W + 1))
                first += size
        object.__setattr__(self, "cuts", cuts)

    @classmethod
    def of(cls, ranks: Ranks, tensors: Mapping[str, Tensor]) -> Pieces:
        """How tensors like these are cut."""
        return cls(ranks, {k: v.shape for k, v in tensors.items()}, {k: v.dtype for k, v in tensors.items()})

    def piece(self, k: str, tensor: Tensor) -> Tensor:
        """This rank's piece of a tensor; a view."""
        cut, r = self.cuts[k], self.ranks.rank
        return tensor.reshape(-1)[cut[r] : cut[r + 1]]

    def cut(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """This rank's pieces; views."""
        return {k: self.piece(k, v) for k, v in tensors.items()}

    def redealt(self, every: Sequence[Tensors]) -> Tensors:
        """This rank's pieces of tensors whose pieces another number of ranks had, in the order of these."""
        rows = {k: torch.cat([pieces[k].reshape(-1) for pieces in every]) for k in every[0]}
        if any(row.numel() != self.shapes[k].numel() for k, row in rows.items()):
            raise ValueError("pieces of other tensors")
        return {k: self.piece(k, row).clone() for k, row in rows.items()}

    def once(self, total: Tensor) -> Tensor:
        """A sum over ranks, of any shape, as this rank's term of it: the first has all of it."""
        return total if self.ranks.rank == 0 else torch.zeros_like(total)

    def alone(self, k: str, piece: Tensor) -> Tensor:
        """The tensor that has this rank's piece, and 0 elsewhere."""
        tensor = piece.new_zeros(self.shapes[k])
        self.piece(k, tensor).copy_(piece)
        return tensor

    def gathered(self, pieces: Tensors, what: str) -> Tensors:
        """The tensors of which all ranks have the pieces, with the bits that were cut; of one dtype they are views of
        one row. One all_gather a dtype."""
        return self.all_gathered([pieces], what)[0]

    def all_gathered(self, trees: Sequence[Tensors], what: str) -> list[Tensors]:
        """`whole` of several dicts, together in one all_gather a dtype."""
        places = [(i, k) for i, tree in enumerate(trees) for k in tree]
        tensors: dict[tuple[int, str], Tensor] = {}
        for dtype in dict.fromkeys(trees[i][k].dtype for i, k in places):
            alike = [(i, k) for i, k in places if trees[i][k].dtype == dtype]
            gathered = self._gathered([k for _, k in alike], [trees[i][k] for i, k in alike], what)
            tensors.update(zip(alike, gathered, strict=True))
        return [{k: tensors[i, k] for k in tree} for i, tree in enumerate(trees)]

    def summed(
        self,
        tensors: Mapping[tuple[int, str], Tensor],
        shared: Mapping[Name, Tensor],
        what: str,
        weight: Weight,
        beside: Sequence[float],
    ) -> Weighed:
        """`weighed`, of which this rank gets its piece of each of `tensors`, by number and name, and all of `shared`.

        One all_to_all. What is shared goes in each of its W chunks, or, if it is as much as half of a chunk, by an
        all_reduce.
        """
        names = [k for _, k in tensors]
        sizes = self._sizes(names)
        most, apart = max(map(sum, sizes)), dict[Name, Tensor]()
        if 2 * sum(v.numel() for v in shared.values()) > most:
            shared, apart = {}, dict(shared)
        dtype, device = common_dtype({**tensors, **shared}), next(iter(tensors.values())).device
        flats = [v.detach().reshape(-1) for v in tensors.values()]
        words = numbers((weight.value, weight.value * weight.divides, *beside), dtype, device)
        behind = [*(v.detach().reshape(-1) for v in shared.values()), words]
        row: list[Tensor] = []
        for r, each in enumerate(sizes):
            row += [flat[self.cuts[k][r] : self.cuts[k][r + 1]] for k, flat in zip(names, flats, strict=True)]
            row += [numbers((0.0,) * (most - sum(each)), dtype, device), *behind]
        chunks = torch.cat([part.to(dtype) for part in row]).view(len(sizes), -1)
        if weight.value == 0:
            chunks[:, : -len(words)] = 0
        every = exchanged(self.ranks, chunks, what)
        of_tensors, said = every[:, : -len(words)], every[:, -len(words) :]
        factors = said[:, 0] / divisor(said[:, 1].sum())
        total = of_tensors[0] * factors[0]
        for of_rank, factor in zip(of_tensors[1:], factors[1:], strict=True):
            total.addcmul_(of_rank, factor)
        mine = sizes[self.ranks.rank]
        parts = total.split([*mine, most - sum(mine), *map(len, behind[:-1])])
        sums: dict[Any, Tensor] = {at: part.to(v.dtype) for (at, v), part in zip(tensors.items(), parts, strict=False)}
        for (name, v), part in zip(shared.items(), parts[len(mine) + 1 :], strict=True):
            sums[name] = part.reshape(v.shape).to(v.dtype)
        if apart:
            sums |= weighed(self.ranks, apart, what, weight).sums
        return Weighed(sums, said[:, 2:].sum(0), factors[self.ranks.rank])

    def _sizes(self, names: Sequence[str]) -> list[list[int]]:
        """Of the pieces of these tensors, by rank."""
        return [[self.cuts[k][r + 1] - self.cuts[k][r] for k in names] for r in range(self.ranks.size)]

    def _gathered(self, names: Sequence[str], pieces: Sequence[Tensor], what: str) -> list[Tensor]:
        """Tensors of one dtype. Each rank sends a buffer of the same size, as collectives ask for."""
        sizes = self._sizes(names)
        most = max(map(sum, sizes))
        padding = pieces[0].new_zeros(most - sum(sizes[self.ranks.rank]))
        every = all_gathered(self.ranks, torch.cat([*(piece.detach().reshape(-1) for piece in pieces), padding]), what)
        if self._is_row(names):
            counts = [self.shapes[k].numel() for k in names]
            row = every.view(-1)[: sum(counts)].split(counts)
            return [part.view(self.shapes[k]) for k, part in zip(names, row, strict=True)]
        parts = [buffer[: sum(each)].split(each) for buffer, each in zip(every, sizes, strict=True)]
        return [_joined([part[i] for part in parts]).view(self.shapes[k]) for i, k in enumerate(names)]

    def _is_row(self, names: Sequence[str]) -> bool:
        """Whether these are all tensors of one row, in its order."""
        return [k for k in self.shapes if self.dtypes[k] == self.dtypes[names[0]]] == list(names)


def _joined(parts: list[Tensor]) -> Tensor:
    """What stands in a row, without a copy where one rank has all of it."""
    some = [part for part in parts if len(part)]
    return torch.cat(some) if len(some) > 1 else [*some, *parts][0]
