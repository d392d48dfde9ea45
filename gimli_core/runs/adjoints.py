"""What the sweep carries and adds up: B_j and S_j, the adjoints of theta_j and s_j, and the accumulators A."""

from __future__ import annotations

import torch
from torch import Tensor

from gimli_core.arguments.inputs import Inputs
from gimli_core.derivatives.first_order import Gradient
from gimli_core.meta_parameters.indexed import SparseSum
from gimli_core.notation import State, Tensors
from gimli_core.record import Point, Swept

__all__ = ["Adjoints"]


class Adjoints:
    """B, S, A_opt and A_loss of one outer loss, in the form that is run, from B_J = 0 and S_J = 0 on.

    The accumulators are kept in float32 at least. A_opt is a list, an accumulator a leaf of phi_opt.
    """

    def __init__(self, inputs: Inputs, end: Point) -> None:
        self._inputs = inputs
        self.B: Tensors = {k: torch.zeros_like(v) for k, v in end.theta.items()}
        self.S: State = inputs.form.optimizer.zero_adjoint(end.state)
        self.A_opt: list[Tensor] = inputs.values.hyper.zeros()
        self.A_rows = {k: SparseSum(v.value) for k, v in inputs.values.indexed.items()}  # of A_loss, what is indexed
        self.A_loss: Tensors = {
            k: torch.zeros_like(v, dtype=torch.promote_types(v.dtype, torch.float32))
            for k, v in inputs.values.phi_loss.items()
        }

    def add_validation(self, j: int, L: Gradient) -> None:
        """B_j += w_j grad_theta L_val(theta_j), and A_loss its explicit part (lines 8-9)."""
        w = self._inputs.values.weights[j]
        assert w is not None
        w *= self._inputs.form.scale
        self.B = {k: torch.add(v, L.theta[k], alpha=w) for k, v in self.B.items()}
        for k, explicit in L.phi_loss.items():
            self.A_loss[k].add_(explicit, alpha=w)

    def add_step(self, j: int, swept: Swept) -> None:
        """B_j and S_j in the place of B_{j+1} and S_{j+1}, and what step j adds to A (lines 12-14)."""
        self.B, self.S = swept.B, swept.S
        self._inputs.values.hyper.accumulate(self.A_opt, j, swept.A_opt)
        rows = self._inputs.values.rows_at(j) if self.A_rows else {}
        for k, increment in swept.A_loss.items():
            if k in rows:
                self.A_rows[k].add(rows[k], increment)
            else:
                self.A_loss[k] += increment

    def A_loss_with_rows(self) -> Tensors:
        """A_loss with what is indexed as sparse tensors, in the order of phi_loss' dense and indexed entries."""
        return {**self.A_loss, **{k: rows.total() for k, rows in self.A_rows.items()}}
