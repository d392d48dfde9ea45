"""theta, s, B and S cut over ranks, one W-th each: no rank holds them whole between two lines.

    G_j                = part( grad ell(gathered(theta_j)) )              # line 5
    theta', s'         = opt(theta_j, s_j, phi_opt, G_j)               # line 6, on pieces
    V_j, A_opt, B, S   = the pullback, on pieces                       # lines 11 and 12
    B_j               += part( gathered(V_j) Hessian ell(gathered(theta_j)) )  # line 14; line 13 is alike on all ranks

`whole` gathers the pieces, `part` cuts. Every rank evaluates the losses on the same batch, so nothing needs to be
summed but A_opt, once, at the end. What is gathered is gathered before a derivative is asked for, and what comes out
is cut after it: no collective is ever differentiated, and theta has the bits that it has on one process.

DTensor, which cuts each tensor by its rows, sends 20 messages for a gradient and a product of a network of three layers
where this sends 2, and has no forward mode; losses and batches must be made for it, and the last bits change.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gimli_core.layout import cloned
from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers.interface import Optimizer
from gimli_core.problem import Problem
from gimli_core.processes.collectives import summed
from gimli_core.processes.mesh import Ranks
from gimli_core.processes.pieces import Pieces
from gimli_core.record import Ends
from gimli_core.transforms.interface import Transform
from gimli_core.transforms.rule_on_shards import RuleOnShards, rule_on_shards

__all__ = ["Shards", "shards_of"]


@dataclass(frozen=True, eq=False)
class Shards(Transform):
    """The tensors of theta in pieces, one a rank.

    Args:
        pieces: how they are cut.
        rule: in this form.

    Cost: an all_gather of theta for each evaluation of a loss and one of V_j for each product: |theta| bytes arrive,
    |theta| / W are sent. Between two lines a rank holds a W-th of theta, s, B and S; within a line theta, G_j or V_j
    is there as a whole.
    """

    pieces: Pieces
    rule: RuleOnShards

    def problem(self, problem: Problem) -> Problem:
        return problem

    def theta(self, theta: Tensors) -> Tensors:
        return self.pieces.cut(theta)

    def gathered(self, theta: Tensors, what: str) -> Tensors:
        return self.pieces.gathered(theta, what)

    def part(self, G: Tensors) -> Tensors:
        return {k: piece.clone() for k, piece in self.pieces.cut(G).items()}  # so that the whole can go

    def hyper(self, hyper: Hyper) -> Hyper:
        return self.rule.hyper(hyper)

    def total(self, A_opt: list[Tensor]) -> list[Tensor]:
        by_number = {str(i): A for i, A in enumerate(A_opt)}
        return list(summed(self.pieces.ranks, by_number, "A_opt").values())

    def back(self, ends: Ends) -> Ends:
        gathered = self.pieces.gathered  # views of one row, which would hold each other
        return Ends(
            cloned(gathered(ends.theta_J, "theta_J")),
            self.rule.gathered(ends.s_J, "s_J")[0],
            cloned(gathered(ends.B, "B_0")),
            self.rule.whole_adjoint(ends.S),
        )


def shards_of(ranks: Ranks, optimizer: Optimizer, theta: Tensors, state: State, hyper: Hyper) -> Shards:
    """theta over ranks, and its optimizer, whose state as a whole is like `state`."""
    pieces = Pieces.of(ranks, theta)
    return Shards(pieces, rule_on_shards(optimizer, pieces, theta, state, hyper))
