"""What a rule may ask for besides (theta, s, G, phi_opt): the loss of the step, and its number.

A rule with `sees = ("loss", "j")` is handed ell_j and j among the hyperparameters of every tensor, as
`hyper[k]["loss"]` and `hyper[k]["j"]`. The step is then

    theta_{j+1}, s_{j+1} = opt(theta_j, s_j, G_j, phi_opt, l),    l = ell_j(theta_j, phi_loss)

and l carries a derivative as G_j does. With the adjoint of the loss's value, one number (of each task),

    g_j     = B_{j+1} dtheta'/dl + S_{j+1} ds'/dl                               # line 11

the chain rule through l adds what every other use of theta_j and phi_loss does not know of:

    A_loss += V_j grad_phi grad_theta ell_j  +  g_j grad_phi ell_j              # line 13
    B_j     = B_{j+1} dtheta'/dtheta + S_{j+1} ds'/dtheta + V_j Hessian ell_j  +  g_j G_j        # line 14

Lines 12 and S_j are as they were. To first order V_j Hessian is left out, and g_j G_j is not: it has no second
derivative. j is a number that nothing is differentiated by. Proof: appendix_proofs/seen_loss.py.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from gimli_core.notation import Hyper
from gimli_core.optimizers.interface import Optimizer, Pulled

__all__ = ["adjoint_of_loss", "asked", "seeing", "times"]


def seeing(optimizer: Optimizer, hyper: Hyper, loss: Tensor) -> Hyper:
    """The hyperparameters of a step, and ell_j for a rule that sees it. (j is among them already.)

    The loss is a scalar, or [T].
    """
    if "loss" not in optimizer.seen():
        return hyper
    return {k: {**per, "loss": loss} for k, per in hyper.items()}


def asked(optimizer: Optimizer, wanted: Collection[str]) -> tuple[str, ...]:
    """What a pullback is asked the adjoints of: the hyperparameters of phi_opt, and the loss where the rule sees it."""
    return (*wanted, "loss") if "loss" in optimizer.seen() else tuple(wanted)


def adjoint_of_loss(optimizer: Optimizer, pulled: Pulled, loss: Tensor) -> tuple[Pulled, Tensor | None]:
    """(what was pulled back, without the loss's adjoint; g_j, summed over the tensors that saw the loss). The loss and
    g_j are scalars, or [T].

    None where the rule does not see it.
    """
    if "loss" not in optimizer.seen():
        return pulled, None
    of_each = [A["loss"] for A in pulled.A.values() if "loss" in A]
    g = torch.stack(of_each).sum(0) if of_each else torch.zeros_like(loss)
    A_opt = {k: {name: a for name, a in A.items() if name != "loss"} for k, A in pulled.A.items()}
    return pulled._replace(A=A_opt), g


def times(g: Tensor, G: Tensor) -> Tensor:
    """g_j G_j of one tensor: g is a number, or one a task, which G's first dimension counts."""
    return g.reshape(g.shape + (1,) * (G.ndim - g.ndim)) * G
