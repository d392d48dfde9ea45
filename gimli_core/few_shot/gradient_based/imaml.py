"""iMAML: Rajeswaran, Finn, Kakade & Levine 2019, "Meta-learning with implicit gradients"."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.errors import NegativeCurvatureError
from gimli_core.few_shot.episodes import Episode
from gimli_core.few_shot.gradient_based.adapting import Adapting
from gimli_core.implicit.conjugate_gradient import CG
from gimli_core.implicit.implicit_gradient import implicit_gradient
from gimli_core.optimizers import SGD
from gimli_core.transforms.proximal import proximal

__all__ = ["Imaml"]


class Imaml(Adapting):
    """Adapts with a pull of strength λ towards theta_0, and differentiates the point where that ends, not the way.

        theta* = argmin ell(theta) + λ/2 |theta - theta_0|²,   B_0 = (I + H/λ)⁻¹ ∇L(theta*),   by conjugate gradients

    The paper stops conjugate gradients after 5 steps, wherever they are. Here they go on to `rtol`; and where theta* is
    no minimum, as is usual of a network with batch norm on a handful of rows, they refuse with the damping that cures
    it, which is then taken: (H + λ + damping)⁻¹ is between the implicit gradient and that of first order.

    Args:
        learner, steps, test_steps, objective: as in `Adapting`; 16 steps on Omniglot.
        lr: of the inner SGD.
        strength: λ; 2 in the paper.
        rtol: of conjugate gradients.
        damping: the least; one that is seldom too small saves the attempts that are refused.
    """

    def __init__(
        self,
        learner: nn.Module,
        lr: float = 0.1,
        steps: int = 16,
        *,
        strength: float = 2.0,
        rtol: float = 0.1,
        damping: float = 0.0,
        **arguments: Any,
    ) -> None:
        super().__init__(learner, SGD(lr=lr), steps, **arguments)
        self.problem = proximal(self.problem, strength)
        self.rtol, self.damping = rtol, damping

    def loss(self, episode: Episode) -> Tensor:
        """The query loss at theta*. Its gradient is the implicit one, tied in as that of a product with theta_0."""
        support, query = (episode.support_x, episode.support_y), (episode.query_x, episode.query_y)
        theta_0 = self.theta_0()
        theta_star = self.adapted(*support, steps=self.steps).theta_J
        damping = self.damping
        while True:
            try:
                result = implicit_gradient(
                    self.problem,
                    theta_star,
                    support,
                    query,
                    theta_0=theta_0,
                    solver=CG(rtol=self.rtol),
                    damping=damping,
                    tasks=episode.tasks,
                    inner_tolerance=float("inf"),
                )
                break
            except NegativeCurvatureError as error:
                damping += error.damping
        product = torch.stack([(result.B_0[k].to(v) * v).sum() for k, v in theta_0.items()]).sum()
        return result.val_loss.to(product) + product - product.detach()
