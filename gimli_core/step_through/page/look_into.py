"""One step of the sweep taken apart: the two parts of V_j, the Hessian, and the Jacobian of the whole step."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gimli_core.derivatives.first_order import hessian
from gimli_core.notation import State, Tensors
from gimli_core.optimizers.interface import Optimizer
from gimli_core.step_through.page.summaries import number
from gimli_core.step_through.walk import Moment

__all__ = ["StepParts", "look_into", "steepest"]


class StepParts(NamedTuple):
    """V_j by where it comes from; the two matrices where they were asked for."""

    V_theta: Tensors  # B_{j+1} dtheta'/dG
    V_state: Tensors  # S_{j+1} ds'/dG
    hessian: Tensor | None  # of l_j, [n, n]
    jacobian: Tensor | None  # of (theta', s') in (theta, s), or of theta' in theta alone


def look_into(moment: Moment, optimizer: Optimizer, slots: list[str], rows: int, matrices: bool) -> StepParts:
    """The parts of a moment at line 11.

    Cost: two pullbacks; with `matrices` one Hessian and a pullback for each of the Jacobian's `rows`.
    """
    used = moment.inputs
    B, S = used["B"], used["S"]
    no_B, no_S = {k: torch.zeros_like(v) for k, v in B.items()}, optimizer.zero_adjoint(used["s"])

    def pull(B: Tensors, S: State) -> tuple[Tensors, Tensors, State]:
        pulled = optimizer.pullback(used["theta"], used["s"], used["G"], used["phi_opt"], B, S, ())
        return pulled.V, pulled.B, pulled.S

    V_theta, V_state = pull(B, no_S)[0], pull(no_B, S)[0]
    if not matrices or used["graph"] is None:
        return StepParts(V_theta, V_state, None, None)
    H = hessian(used["graph"])
    of_all: list[Tensor] = []
    for out, like in [("theta", no_B), *((slot, no_S[slot]) for slot in slots)]:
        for k, t in like.items():
            for i in range(t.numel()):
                unit = torch.zeros_like(t).reshape(-1)
                unit[i] = 1
                one = {**like, k: unit.reshape(t.shape)}
                V, of_theta, of_s = pull(one, no_S) if out == "theta" else pull(no_B, {**no_S, out: one})
                parts = [_flat(of_theta) + _flat(V) @ H, *(_flat(of_s[slot]) for slot in slots)]
                of_all.append(torch.cat(parts)[:rows])
                if len(of_all) == rows:
                    break
    return StepParts(V_theta, V_state, H, torch.stack(of_all[:rows]))


def steepest(rule: Tensors, G: Tensors) -> list[float | str]:
    """Where a step follows its gradient furthest: [number of the tensor, entry in its flat form, O there, G there].

    Args:
        rule: O_j = dtheta'/dG, in the form of theta.
        G: G_j, alike.
    """
    peaks = [torch.nan_to_num(t.detach(), nan=math.inf).abs().max() for t in rule.values()]
    n = int(torch.stack([peak.double() for peak in peaks]).argmax())
    of_O, of_G = (list(one.values())[n].detach().reshape(-1) for one in (rule, G))
    k = int(torch.nan_to_num(of_O, nan=math.inf).abs().argmax())
    return [n, k, number(of_O[k].item()), number(of_G[k].item())]


def _flat(tensors: Tensors) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors.values()])
