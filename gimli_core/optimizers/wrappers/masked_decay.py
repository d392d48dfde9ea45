"""Weight decay on chosen tensors only, coupled or decoupled, around any optimizer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from gimli_core.errors import unexpected
from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers.interface import Pulled, hyperparameter
from gimli_core.optimizers.tensorwise import reduce_like
from gimli_core.optimizers.wrappers.interface import Wrapper, added, only

__all__ = ["MaskedDecay"]


def matrices(name: str, tensor: Tensor) -> bool:
    """The usual choice: no decay on biases, gains and other vectors. True for two dimensions and more in the shape."""
    return tensor.ndim >= 2


@dataclass(frozen=True, eq=False)
class MaskedDecay(Wrapper):
    """Weight decay for the tensors that a mask chooses.

        decoupled:  theta ← theta·(1 - lr·decay) before the inner step, as in AdamW
        coupled:    G ← G + decay·theta, as in `torch.optim.SGD`

    Args:
        inner: the optimizer; leave its own weight_decay at 0. Decoupled decay uses its lr.
        decay: a number, or any form that a meta-parameter takes.
        mask: names or shell patterns of the tensors that decay, or a function (name, tensor) -> bool; matrices
            and tensors of higher order by default.
        decoupled: a switch, not differentiable.

    Raises:
        ArgumentError: decoupled decay around an optimizer without lr.

    Cost: no state. Source: Loshchilov and Hutter 2019.

    >>> import torch, gimli_core as gimli
    >>> rule = gimli.optimizers.MaskedDecay(gimli.optimizers.SGD(lr=0.5), decay=0.5, mask=["w"])
    >>> theta = {"w": torch.ones(1), "b": torch.ones(1)}
    >>> hyper = {k: {n: torch.tensor(v) for n, v in rule.hyperparameters().items()} for k in theta}
    >>> G = {k: torch.zeros(1) for k in theta}
    >>> rule.step(theta, rule.initial_state(theta, hyper), G, hyper)[0]
    {'w': tensor([0.7500]), 'b': tensor([1.])}
    """

    decay: Any = hyperparameter(1e-2)
    mask: Sequence[str] | Callable[[str, Tensor], bool] = matrices
    decoupled: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoupled and "lr" not in self.inner.continuous():
            raise unexpected(
                "MaskedDecay(inner, decoupled=True)",
                "an optimizer with lr",
                type(self.inner).__name__,
                "Use decoupled=False.",
            )

    def _chosen(self, theta: Tensors, G: Tensors) -> list[str]:
        if callable(self.mask):
            return [k for k, v in theta.items() if k in G and self.mask(k, v)]
        return [k for k in theta if k in G and any(fnmatchcase(k, p) for p in self.mask)]

    def _before(self, theta: Tensors, G: Tensors, hyper: Hyper) -> tuple[Tensors, Tensors]:
        """(theta, G) as the inner step gets them."""
        chosen = self._chosen(theta, G)
        if self.decoupled:
            return {**theta, **{k: theta[k] * (1 - hyper[k]["lr"] * hyper[k]["decay"]) for k in chosen}}, G
        return theta, {**G, **{k: G[k] + hyper[k]["decay"] * theta[k] for k in chosen}}

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        inner_theta, inner_G = self._before(theta, G, hyper)
        return self.inner.step_used(inner_theta, state, inner_G, hyper)

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        inner_theta, inner_G = self._before(theta, G, hyper)
        pulled = self.inner.pullback_used(inner_theta, state, inner_G, hyper, B, S, only(wanted, self.inner))
        B_j, A = dict(pulled.B), {}
        for k in self._chosen(theta, G):
            h, V_k, B_k = hyper[k], pulled.V[k], pulled.B[k]
            if self.decoupled:
                B_j[k] = B_k * (1 - h["lr"] * h["decay"])
                by_name = {"decay": -h["lr"] * B_k * theta[k], "lr": -h["decay"] * B_k * theta[k]}
            else:
                B_j[k] = B_k + h["decay"] * V_k
                by_name = {"decay": V_k * theta[k]}
            A[k] = {n: reduce_like(v, h[n]) for n, v in by_name.items() if n in wanted}
        return Pulled(pulled.V, B_j, pulled.S, added(pulled.A, A))
