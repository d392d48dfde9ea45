"""Evolution strategies, of whole inner loops or of truncated windows."""

from __future__ import annotations

from gimli_core.notation import Tensors
from gimli_core.outer_loop.estimators.evolution import EvolutionStrategy

__all__ = ["ES"]


class ES(EvolutionStrategy):
    """Evolution strategies: an estimate of dL/dphi from N antithetic pairs.

        A = 1/(2 N sigma^2) Σ_pairs e (L(phi + e) - L(phi - e)),   e ~ N(0, sigma^2)

    Its mean is dL/dphi with L averaged over the perturbations: of bias O(sigma^2), none where L is quadratic in phi.
    With windows shorter than the inner loop it also leaves out how phi acts through the steps before a window, as
    `gimli.Windows` does; `gimli.PES` does not.

    Args: those of `gimli.PES`.

    Raises:
        ArgumentError, and when it is called what `gimli.unroll` raises.

    Cost: 2N inner loops forwards, 6F·length·N, in the memory of 2N steps.
    Source: Salimans et al. 2017, Evolution Strategies as a Scalable Alternative to Reinforcement Learning; Nesterov and
    Spokoiny 2017.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD())
    >>> phi = {"lr": torch.tensor(0.5, requires_grad=True)}
    >>> def inner(phi, target):
    ...     return {"theta_0": {"w": torch.zeros(1)}, "train_batches": lambda j: target, "val_batch": target,
    ...             "phi_opt": {"lr": phi["lr"]}}
    >>> estimator = gimli.ES(problem, phi, inner, sigma=0.01, pairs=2000, steps=2)
    >>> abs(estimator(torch.ones(1)).A["lr"].item() + 0.25) < 0.05        # exact: -0.25
    True
    """

    def _weights(self, e: Tensors, xi: Tensors) -> Tensors:
        return e

    def _left_out(self, step: int) -> str:
        return f"; steps before {step} held constant" if step else ""
