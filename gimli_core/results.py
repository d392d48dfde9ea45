"""What a run returns, by the paper's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gimli_core.notation import State, Tensors

__all__ = ["MetaGradient", "Trajectory"]


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory:
    """Where the inner loop went. All tensors are detached."""

    val_loss: Tensor  # [] or [k], L = Σ_j w_j L_val(theta_j), by default L_val(theta_J); over tasks their mean or sum
    theta_J: Tensors  # frozen entries included
    state_J: State
    buffers_J: Tensors  # module buffers after the last step
    train_losses: Tensor  # [J], ell_j(theta_j); [J, T] of T tasks
    val_losses: Tensor  # [J + 1], L_val(theta_j) where it has a weight, else nan; [J + 1, T]; and of k losses k last
    task_val_losses: Tensor | None = field(default=None, kw_only=True)  # [T] or [T, k], L of each task
    task_steps: Tensor | None = field(default=None, kw_only=True)  # [T], where `until` ended each task's loop
    train_aux: Any = field(
        default=None, kw_only=True
    )  # what train_loss returned besides, each tensor [J, …] or [J, T, …]
    val_aux: Any = field(
        default=None, kw_only=True
    )  # of val_loss, [K, …] at the K theta_j with a weight, in their order
    approximation: str = field(default="", kw_only=True)  # what the gradient leaves out; "" if it is exact


@dataclass(frozen=True, eq=False, repr=False)
class MetaGradient(Trajectory):
    """What Algorithm 1 returns, by the paper's names and keyed as the inputs were.

    Of a vector of k outer losses every A_opt, A_loss, B_0 and S_0 has a leading k, a row for each.
    """

    A_opt: dict[str, Any]  # dL/dphi_opt
    A_loss: Tensors  # dL/dphi_loss
    B_0: Tensors  # dL/dtheta_0
    S_0: State  # dL/ds_0
    recurrence: str = "augmented"
    A: Tensors = field(default_factory=dict, kw_only=True)  # dL/dphi by the names of what an outer loop learns

    def __repr__(self) -> str:
        note = "" if self.recurrence == "augmented" else f", recurrence={self.recurrence!r} (not the exact gradient)"
        loss = f"{self.val_loss.item():.6g}" if self.val_loss.ndim == 0 else f"[{len(self.val_loss)} outer losses]"
        note += f", approximation={self.approximation!r} (not the exact gradient)" if self.approximation else ""
        return (
            f"MetaGradient(val_loss={loss}, steps={len(self.train_losses)}, A_opt: "
            f"{list(self.A_opt)}, "
            f"A_loss: {list(self.A_loss)}, B_0: {list(self.B_0)}{note})"
        )
