"""An exponential moving average of the weights, carried beside them in theta."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.errors import listing, unexpected
from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers.interface import Pulled, hyperparameter
from gimli_core.optimizers.tensorwise import reduce_like
from gimli_core.optimizers.wrappers.interface import Wrapper, added, only

__all__ = ["EMA"]

PREFIX = "ema."


@dataclass(frozen=True, eq=False)
class EMA(Wrapper):
    """A moving average of every tensor, which the validation loss may use.

        theta_k'  = inner step, or theta_k where the loss does not use it
        ema.k'    = ema_decay·ema.k + (1 - ema_decay)·theta_k'

    The averages are entries of theta named `ema.…`, so that losses see them and B carries their adjoint. `extend`
    makes them, `weights` and `averages` take theta apart again: the inner loss uses the first, the validation loss the
    second.

    Args:
        inner: the optimizer of the weights.
        ema_decay: a number, or any form that a meta-parameter takes, by the name of the weight.

    Raises:
        ArgumentError: a theta without averages.

    Cost: |theta| more in theta. Source: Polyak and Juditsky 1992; `torch.optim.swa_utils.get_ema_avg_fn`.

    >>> import torch, gimli_core as gimli
    >>> ema = gimli.optimizers.EMA(gimli.optimizers.SGD(lr=0.5), ema_decay=0.5)
    >>> def train_loss(theta, phi, batch):
    ...     return (ema.weights(theta)["w"] ** 2).sum() / 2
    >>> def val_loss(theta, phi, batch):
    ...     return ema.averages(theta)["w"].sum()
    >>> problem = gimli.Problem(train_loss, val_loss, ema)
    >>> theta_0 = ema.extend({"w": torch.tensor([1.0])})
    >>> result = gimli.meta_gradient(problem, theta_0, lambda j: None, None, steps=1, phi_opt={"ema_decay": 0.5})
    >>> result.val_loss, result.A_opt["ema_decay"]         # (1 + 1/2) / 2, and 1 - 1/2
    (tensor(0.7500), tensor(0.5000, dtype=torch.float64))
    """

    ema_decay: Any = hyperparameter(0.999, below=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner.groups:
            both = {group: [*names, *(PREFIX + n for n in names)] for group, names in self.inner.groups.items()}
            object.__setattr__(self, "groups", both)

    def extend(self, theta_0: Mapping[str, Tensor]) -> Tensors:
        """theta_0 with an average for each entry, equal to it; that of a frozen entry is frozen."""
        taken = [k for k in theta_0 if PREFIX + k in theta_0]
        if taken:
            raise unexpected(
                "theta_0",
                f"names without {PREFIX}… before another",
                f"an average of {listing(taken)} already",
                "Call ema.extend once, with the weights alone.",
            )
        return {**theta_0, **{PREFIX + k: _copy(v) for k, v in theta_0.items()}}

    def _weight_of(self, theta: Mapping[str, Any]) -> dict[str, str]:
        """{an average: its weight}. A weight may itself be called `ema.…`: an average has its weight beside it."""
        weights: dict[str, str] = {}
        for k in sorted(theta, key=len):
            weight = k.removeprefix(PREFIX)
            if weight != k and weight in theta and weight not in weights:
                weights[k] = weight
        return weights

    def weights(self, theta: Mapping[str, Tensor]) -> Tensors:
        """The weights themselves, without their averages."""
        return self._of_weights(theta)

    def _of_weights(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        averages = self._weight_of(entries)
        return {k: v for k, v in entries.items() if k not in averages}

    def averages(self, theta: Mapping[str, Tensor]) -> Tensors:
        """The averages, by the names of the weights."""
        return {weight: theta[k] for k, weight in self._weight_of(theta).items()}

    def moved_by_gradient(self, names: Collection[str]) -> Collection[str]:
        return self.inner.moved_by_gradient(self._of_weights(dict.fromkeys(names)))

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        missing = [k for k in self.weights(theta) if PREFIX + k not in theta]
        if missing:
            raise unexpected(
                "theta_0",
                f"an average {PREFIX}… beside each of its entries",
                f"none for {listing(missing)}",
                "Call ema.extend(theta_0).",
            )
        return self.inner.initial_state(self.weights(theta), self._of_weights(hyper))

    def initial_state_pullback(self, S_0: State, hyper: Hyper, wanted: Collection[str]) -> dict[str, Tensors]:
        return self.inner.initial_state_pullback(S_0, self._of_weights(hyper), only(wanted, self.inner))

    def _inner(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State, Tensors, Hyper]:
        """The same without the averages."""
        fast = self.weights(theta)
        return fast, state, {k: G[k] for k in fast if k in G}, self._of_weights(hyper)

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        fast, state = self.inner.step_used(*self._inner(theta, state, G, hyper))
        for k, average in self.averages(theta).items():
            fast[PREFIX + k] = torch.lerp(average, fast[k], (1 - hyper[k]["ema_decay"]).to(average))
        return {k: fast[k] for k in theta}, state

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        inner = self._inner(theta, state, G, hyper)
        averages, ema_bar = self.averages(theta), self.averages(B)
        inner_B = {k: B[k] + (1 - hyper[k]["ema_decay"]) * ema_bar[k] if k in averages else B[k] for k in inner[0]}
        pulled = self.inner.pullback_used(*inner, inner_B, S, only(wanted, self.inner))
        V, B_j, A = dict(pulled.V), dict(pulled.B), {}
        new = self.inner.step_used(*inner)[0] if "ema_decay" in wanted else {}
        for k, average in averages.items():
            V[PREFIX + k] = torch.zeros_like(average)  # an average is moved by its weight
            B_j[PREFIX + k] = hyper[k]["ema_decay"] * ema_bar[k]
            if new:
                decay = hyper[k]["ema_decay"]
                A[k] = {"ema_decay": reduce_like(ema_bar[k] * (average - new[k]), decay)}
        V = {k: V[k] for k in theta if k in V}
        return Pulled(V, {k: B_j[k] for k in theta}, pulled.S, added(pulled.A, A))


def _copy(entry: Tensor) -> Tensor:
    frozen = isinstance(entry, nn.Parameter) and not entry.requires_grad
    return nn.Parameter(entry.detach().clone(), requires_grad=False) if frozen else entry.clone()
