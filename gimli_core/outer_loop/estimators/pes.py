"""Persistent evolution strategies: truncated, in the memory of a window, and without the bias of truncation."""

from __future__ import annotations

from gimli_core.notation import Tensors
from gimli_core.outer_loop.estimators.evolution import EvolutionStrategy

__all__ = ["PES"]


class PES(EvolutionStrategy):
    """Persistent evolution strategies: an estimate of dL/dphi that truncation does not bias.

    N pairs of inner loops go on side by side from outer step to outer step, each `length` steps a time. In every window
    w a pair draws e_w ~ N(0, sigma^2) and runs at phi + e_w and phi - e_w; xi = Σ_{v ≤ w} e_v is all that it has
    drawn since its inner loop began.

        A = 1/(2 N sigma^2) Σ_pairs xi (L+ - L-)

    Its mean is dL/dphi of L at the window's end, through all steps since the inner loop's begin, with L averaged over
    the perturbations: of bias O(sigma^2), and none where L is quadratic in phi. In the place of a bias it has variance,
    which grows with the size of phi and the number of windows, and falls as 1/N. It needs no derivative of the losses,
    copes with losses that are not smooth or chaotic, and its memory does not grow with J.

    Args:
        problem, phi, inner, arguments: as for `gimli.Unrolled`; `val_weights` are those of a window. `inner` is called
            once for each perturbed phi. All runs of a window are tasks of one vectorised run.
        sigma: standard deviation of the perturbations, a number or `{name: number}`, in units of phi.
        pairs: N.
        length: inner steps of a window; J by default.
        steps: J, a multiple of `length`. Then a new inner loop begins, and an outer loop draws anew.
        chunk: inner loops that are run at a time, to bound memory; by default all 2N.
        seed: of the perturbations.

    Random numbers in the losses differ between the runs of a pair, and add to the variance: draw them into the batches.

    Raises:
        ArgumentError, and when it is called what `gimli.unroll` raises.

    Cost: 2N inner loops forwards, 6F·length·N, in the memory of 2N steps.
    Source: Vicol, Metz and Sohl-Dickstein 2021, Unbiased Gradient Estimation in Unrolled Computation Graphs with
    Persistent Evolution Strategies.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD())
    >>> phi = {"lr": torch.tensor(0.5, requires_grad=True)}
    >>> def inner(phi, target):
    ...     return {"theta_0": {"w": torch.zeros(1)}, "train_batches": lambda j: target, "val_batch": target,
    ...             "phi_opt": {"lr": phi["lr"]}}
    >>> estimator = gimli.PES(problem, phi, inner, sigma=0.01, pairs=2000, length=1, steps=2)
    >>> [abs(estimator(torch.ones(1)).A["lr"].item() - exact) < 0.1 for exact in (-0.5, -0.25)]
    [True, True]
    """

    def _weights(self, e: Tensors, xi: Tensors) -> Tensors:
        return xi

    def _left_out(self, step: int) -> str:
        return ""
