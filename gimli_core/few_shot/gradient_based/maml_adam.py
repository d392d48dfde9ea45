"""MAML with Adam in the inner loop: Grefenstette et al. 2019 (GIMLI), section 5.2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.few_shot.episodes import Episode
from gimli_core.few_shot.gradient_based.adapting import Adapting, by_name, learned
from gimli_core.few_shot.gradient_based.maml_pp import annealed
from gimli_core.notation import State
from gimli_core.optimizers import Adam

__all__ = ["MamlAdam"]


class MamlAdam(Adapting):
    """The inner Adam starts with the moments of the outer one; its rates and betas are learned, one a tensor.

    Args:
        learner, steps, objective: as in `Adapting`.
        lr, beta1, beta2: where the learned values start.
        anneal, first_order: as in `MamlPlusPlus`.

    Set `outer` to the outer `torch.optim.Adam` once that is made: its moments of theta_0 are the inner s_0, held
    constant, and cold before its first step.
    """

    outer: torch.optim.Adam | None = None

    def __init__(
        self,
        learner: nn.Module,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        steps: int = 5,
        *,
        anneal: int = 0,
        first_order: int = 0,
        **arguments: Any,
    ) -> None:
        super().__init__(learner, Adam(), steps, **arguments)
        self.anneal, self.first_order = anneal, first_order
        names = list(self.theta_0())
        self.log_lr = learned({k: torch.tensor(lr).log() for k in names})
        self.logit_1 = learned({k: torch.tensor(beta1).logit() for k in names})
        self.logit_2 = learned({k: torch.tensor(beta2).logit() for k in names})

    def meta_parameters(self) -> dict[str, Any]:
        rates = {k: v.exp() for k, v in by_name(self.log_lr).items()}
        beta1, beta2 = ({k: v.sigmoid() for k, v in by_name(p).items()} for p in (self.logit_1, self.logit_2))
        return {"phi_opt": {"lr": rates, "beta1": beta1, "beta2": beta2}, "state_0": self.state_0()}

    def loss(self, episode: Episode) -> Tensor:
        return annealed(self, episode, self.anneal, self.first_order)

    def state_0(self) -> State | None:
        """The outer Adam's moments of theta_0, and how many steps it has taken; None before its first."""
        theta_0 = self.theta_0()
        states = {} if self.outer is None else {k: self.outer.state.get(v, {}) for k, v in theta_0.items()}
        if not states or not all(states.values()):
            return None
        step = next(iter(states.values()))["step"]
        moments = {slot: {k: state[slot].clone() for k, state in states.items()} for slot in ("exp_avg", "exp_avg_sq")}
        return {"step": torch.as_tensor(step, dtype=torch.float64), **moments}
