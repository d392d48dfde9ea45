"""ML³ (Bechtle et al. 2021): the inner loss is a network, trained so that what it teaches does well by the true one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gimli_core.learned.cells import check_sizes, linear_start
from gimli_core.notation import Tensors

__all__ = ["LearnedLoss"]


class LearnedLoss:
    """ℓ(theta, phi) = mean over rows of softplus(MLP_phi(prediction, target)): positive, smooth, one number a row.

    Args:
        outputs: numbers in a prediction, and in a target (classes are one-hot).
        hidden: of the two hidden layers; 40 in the paper.

    Raises:
        ArgumentError: sizes that are no whole numbers >= 1.

    Cost: that of the network, hidden·(2·outputs + hidden) multiplications a row. Its activation is smooth (silu, where
    the paper has relu), since line 13 takes its second derivative.
    Source: Bechtle et al. 2021, "Meta learning via learned loss".

    >>> import torch, gimli_core as gimli
    >>> learned = gimli.learned.LearnedLoss(outputs=1, hidden=8)
    >>> inner = learned.train_loss(lambda theta, x: x * theta["w"])
    >>> def true(theta, phi, batch):
    ...     return ((batch[0] * theta["w"] - batch[1]) ** 2).mean()
    >>> x = torch.linspace(-1, 1, 5).reshape(5, 1)
    >>> problem = gimli.Problem(inner, true, gimli.optimizers.SGD(lr=0.1))
    >>> batch, phi = (x, 2 * x), learned.parameters(seed=0)
    >>> result = gimli.meta_gradient(problem, {"w": torch.zeros(1)}, [batch] * 3, batch, phi_loss=phi)
    >>> sorted(result.A_loss) == sorted(phi)
    True
    """

    def __init__(self, outputs: int, hidden: int = 40) -> None:
        check_sizes("LearnedLoss", outputs=outputs, hidden=hidden)
        self.outputs, self.hidden = outputs, hidden

    def parameters(self, seed: int = 0) -> Tensors:
        """Weights to start from, {name: tensor}: phi_loss."""
        generator = torch.Generator().manual_seed(seed)
        first = linear_start("in", 2 * self.outputs, self.hidden, generator)
        return (
            first
            | linear_start("mid", self.hidden, self.hidden, generator)
            | linear_start("out", self.hidden, 1, generator)
        )

    def __call__(self, phi: Tensors, prediction: Tensor, target: Tensor) -> Tensor:
        """The mean over rows. Predictions and targets are `[rows, outputs]`; integer targets `[rows]` are classes."""
        if not target.is_floating_point():
            target = F.one_hot(target, self.outputs).to(prediction.dtype)
        x = torch.cat([prediction, target], -1)
        for layer in ("in", "mid"):
            x = F.silu(F.linear(x, phi[f"{layer}.W"], phi[f"{layer}.b"]))
        return F.softplus(F.linear(x, phi["out.W"], phi["out.b"])).mean()

    def train_loss(self, predict: Callable[[Tensors, Tensor], Tensor]) -> Callable[[Tensors, Tensors, Any], Tensor]:
        """The inner loss of `predict(theta, x)`, of batches (x, target)."""

        def train_loss(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
            x, target = batch
            return self(phi, predict(theta, x), target)

        return train_loss
