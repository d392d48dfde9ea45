"""The symbols of Algorithm 1, and the types that carry them. What everyone speaks.

The symbols, here and everywhere, are the paper's:

    theta_j   parameters after j inner steps          phi_opt    optimizer meta-parameters
    s_j       optimizer state                         phi_loss   loss meta-parameters
    ell_j     inner loss of step j                    G_j        its gradient
    L_val     validation loss                         J          number of inner steps
    B_j, S_j  dL/dtheta_j, dL/ds_j                    V_j        dL/dG_j, the paper's B O
    A_opt     dL/dphi_opt                             A_loss     dL/dphi_loss

    name      what it is
    Tensors   {tensor name: tensor}, such as theta, G, B or phi_loss
    State     s or S, slot by slot: {"step": t, "exp_avg": {tensor name: tensor}, …}. `step` counts the optimizer's
              finished steps. Only where some tensor has missed one, since the loss of the step did not use it, there is
              "skipped" beside it: {tensor name: how many}. These are float64 numbers that nothing is differentiated by
    Hyper     the hyperparameters of one step: {tensor name: {hyperparameter: value}}, each value 0-dimensional or of
              the tensor's shape
    Loss      (theta, phi_loss, batch) -> a scalar tensor, or [T] values of T tasks
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["COUNTS", "Hyper", "Loss", "State", "Tensors", "Thunks", "counts", "slots"]

Tensors = dict[str, Tensor]
State = dict[str, Any]
Hyper = dict[str, dict[str, Tensor]]
Thunks = dict[str, Callable[[], Tensor]]  # increments of A that are computed only where they are asked for
Loss = Callable[[dict[str, Tensor], dict[str, Tensor], Any], Tensor]

COUNTS = ("step", "skipped", "idle")  # what of a state is counted, and not differentiated; the last is Accumulate's


def slots(state: Mapping[str, Any]) -> State:
    """The slots of a state: all of it but the counts. A tensor may well be called "step": a slot is not a name."""
    return {slot: of_slot for slot, of_slot in state.items() if slot not in COUNTS}


def counts(state: Mapping[str, Any]) -> State:
    """The counts of a state: all of it but the slots."""
    return {slot: count for slot, count in state.items() if slot in COUNTS}
