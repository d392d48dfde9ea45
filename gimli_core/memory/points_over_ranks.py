"""A stored point, of which each of W ranks that are at the same point keeps a W-th."""

from __future__ import annotations

from typing import Any

from torch.utils import _pytree as pytree

from gimli_core.processes.mesh import Ranks
from gimli_core.processes.pieces import Pieces
from gimli_core.record import Point

__all__ = ["PointsOverRanks"]


class PointsOverRanks:
    """Cuts points and puts them together again; random numbers and buffers are each rank's own, and stay whole.

    Cost: an all_gather of theta and s, one a dtype, for each point that is put together; it has the bits that it had.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._cut: dict[int, tuple[Pieces, Any]] = {}  # by step

    def part(self, point: Point) -> Point:
        """The point with this rank's pieces in the place of theta and s; views."""
        leaves, structure = pytree.tree_flatten((point.theta, point.state))
        tensors = {str(i): leaf for i, leaf in enumerate(leaves)}
        pieces = Pieces.of(self._ranks, tensors)
        self._cut[point.j] = pieces, structure
        return point._replace(theta=pieces.cut(tensors), state={})

    def gathered(self, point: Point) -> Point:
        """The point of which every rank has a part. All ranks ask for it."""
        pieces, structure = self._cut[point.j]
        leaves = pieces.gathered(point.theta, f"the stored state of step {point.j}").values()
        theta, state = pytree.tree_unflatten(list(leaves), structure)
        return point._replace(theta=theta, state=state)

    def forget(self, j: int) -> None:
        """The point of step j is no longer stored."""
        self._cut.pop(j, None)
