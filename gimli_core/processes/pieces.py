"""Tensors cut into W pieces, one a rank, and put together again.

All tensors of one dtype stand in a row, of which rank r holds the r-th W-th: a piece `[n]` of each tensor, which may be
empty. So all ranks hold the same number of bytes, to one element, and one message brings all of a dtype together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gimli_core.notation import Tensors
from gimli_core.processes.collectives import all_gathered
from gimli_core.processes.mesh import Ranks

__all__ = ["Pieces"]


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
            row, first = sum(sizes.values()), 0
            for k, size in sizes.items():
                cuts[k] = tuple(min(max(r * row // W - first, 0), size) for r in range(W + 1))
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

    def alone(self, k: str, piece: Tensor) -> Tensor:
        """The tensor that has this rank's piece, and 0 elsewhere."""
        tensor = piece.new_zeros(self.shapes[k])
        self.piece(k, tensor).copy_(piece)
        return tensor

    def whole(self, pieces: Tensors, what: str) -> Tensors:
        """The tensors of which all ranks have the pieces, with the bits that were cut. One all_gather a dtype."""
        return self.wholes([pieces], what)[0]

    def wholes(self, trees: Sequence[Tensors], what: str) -> list[Tensors]:
        """`whole` of several dicts, together in one all_gather a dtype."""
        places = [(i, k) for i, tree in enumerate(trees) for k in tree]
        tensors: dict[tuple[int, str], Tensor] = {}
        for dtype in dict.fromkeys(trees[i][k].dtype for i, k in places):
            alike = [(i, k) for i, k in places if trees[i][k].dtype == dtype]
            gathered = self._gathered([k for _, k in alike], [trees[i][k] for i, k in alike], what)
            tensors.update(zip(alike, gathered, strict=True))
        return [{k: tensors[i, k] for k in tree} for i, tree in enumerate(trees)]

    def _gathered(self, names: Sequence[str], pieces: Sequence[Tensor], what: str) -> list[Tensor]:
        """Tensors of one dtype. Each rank sends a buffer of the same size, as collectives ask for."""
        sizes = [[self.cuts[k][r + 1] - self.cuts[k][r] for k in names] for r in range(self.ranks.size)]
        most = max(map(sum, sizes))
        mine = torch.cat([piece.detach().reshape(-1) for piece in pieces])
        padded = mine if len(mine) == most else torch.cat([mine, mine.new_zeros(most - len(mine))])
        every = all_gathered(self.ranks, padded, what)
        parts = [buffer[: sum(each)].split(each) for buffer, each in zip(every, sizes, strict=True)]
        return [_joined([part[i] for part in parts]).view(self.shapes[k]) for i, k in enumerate(names)]


def _joined(parts: list[Tensor]) -> Tensor:
    """What stands in a row, without a copy where one rank has all of it."""
    some = [part for part in parts if len(part)]
    return torch.cat(some) if len(some) > 1 else [*some, *parts][0]
