"""The meta-gradient by Algorithm 1: exact, or with an approximation that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gimli_core.outer_loop.estimators.inner import Inner, InnerLoop, swept
from gimli_core.problem import Problem
from gimli_core.results import MetaGradient

__all__ = ["Unrolled"]


class Unrolled:
    """dL/dphi through J inner steps, exactly.

    Args:
        problem: the two losses and the optimizer.
        phi: what is learned, `{name: tensor}`: leaves of autograd's graph.
        inner: `(phi, drawn) -> {"theta_0": …, "train_batches": …, "val_batch": …, "phi_opt": …, …}`: arguments of
            `gimli.unroll`, computed from phi as you like. `drawn` is what the outer loop's tasks gave.
        arguments: what of `gimli.unroll` is the same in each outer step, such as `steps=5, tasks=16,
            memory=gimli.memory.StoreStates(), approximation=gimli.FirstOrder()`.

    Calling it with what was drawn returns a `MetaGradient` whose `A` has dL/dphi by phi's names, and adds that to phi's
    `.grad`. Nothing is left out but what `approximation` says.

    Raises:
        ArgumentError, and when it is called what `gimli.unroll` raises.

    Cost: that of `gimli.meta_gradient`.
    Source: Grefenstette et al. 2019, Algorithm 1.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> phi = {"log_lr": torch.tensor(0.5).log().requires_grad_()}
    >>> def inner(phi, target):
    ...     rate = phi["log_lr"].exp()
    ...     return {"theta_0": {"w": torch.zeros(2)}, "train_batches": [target] * 2, "val_batch": target,
    ...             "phi_opt": {"lr": rate}}
    >>> estimator = gimli.Unrolled(problem, phi, inner)
    >>> estimator(torch.ones(2)).A["log_lr"], phi["log_lr"].grad
    (tensor(-0.2500), tensor(-0.2500))
    """

    def __init__(self, problem: Problem, phi: Mapping[str, Tensor], inner: Inner, **arguments: Any) -> None:
        self._loop = InnerLoop(problem, phi, inner, arguments)

    def parameters(self) -> Mapping[str, Tensor]:
        """phi."""
        return self._loop.phi

    def __call__(self, drawn: Any) -> MetaGradient:
        """Lines 2-15 for what was drawn."""
        result, _, tied = swept(self._loop.call(self._loop.phi, drawn))
        return self._loop.finish(result, tied, "the unroll")

    def __repr__(self) -> str:
        return f"Unrolled({self._loop!r})"
