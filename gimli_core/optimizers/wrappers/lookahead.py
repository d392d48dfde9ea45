"""Lookahead: slow weights that follow the fast ones every k steps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import unexpected
from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers.interface import Pulled, hyperparameter
from gimli_core.optimizers.tensorwise import reduce_like
from gimli_core.optimizers.wrappers.interface import Wrapper, added, only

__all__ = ["Lookahead"]


@dataclass(frozen=True, eq=False)
class Lookahead(Wrapper):
    """Lookahead (Zhang et al. 2019) around any optimizer, whose state it leaves alone.

        f       = inner step from theta                 (slow_0 = theta_0; f = theta where the loss does not use it)
        slow'   = slow + slow_rate·(f - slow)  where k divides t,  else  slow
        theta'  = slow'                        where k divides t,  else  f

    Args:
        inner: the fast optimizer.
        slow_rate: the paper's alpha; a number, or any form that a meta-parameter takes.
        every: k, not differentiable.

    Raises:
        ArgumentError: a number out of range.

    Cost: state |theta| more. Source: Zhang et al. 2019, Algorithm 1.

    >>> import torch, gimli_core as gimli
    >>> rule = gimli.optimizers.Lookahead(gimli.optimizers.SGD(lr=1.0), slow_rate=0.5, every=1)
    >>> theta, G = {"w": torch.ones(1)}, {"w": torch.ones(1)}
    >>> hyper = {"w": {n: torch.tensor(v) for n, v in rule.hyperparameters().items()}}
    >>> rule.step(theta, rule.initial_state(theta, hyper), G, hyper)[0]["w"]
    tensor([0.5000])
    """

    slow_rate: Any = hyperparameter(0.5)
    every: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_every("Lookahead", self.every)

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        # slow_0 = theta_0 is read off at the first step, so that its adjoint goes to theta_0.
        return {**self.inner.initial_state(theta, hyper), "slow": {k: torch.zeros_like(v) for k, v in theta.items()}}

    def _parts(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper
    ) -> tuple[Tensor, Tensor, Tensors, State, Tensors]:
        """(first step?, k divides t?, f, inner s', slow)."""
        t = state["step"] + 1
        first = t == 1
        f, inner = self.inner.step_used(theta, {n: of_slot for n, of_slot in state.items() if n != "slow"}, G, hyper)
        return (
            first,
            t % self.every == 0,
            f,
            inner,
            {k: torch.where(first, v, state["slow"][k]) for k, v in theta.items()},
        )

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        _, on, f, inner, slow = self._parts(theta, state, G, hyper)
        slow = {k: torch.where(on, v + hyper[k]["slow_rate"] * (f[k] - v), v) for k, v in slow.items()}
        return {k: torch.where(on, slow[k], v) for k, v in f.items()}, {**inner, "slow": slow}

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        first, on, f, _, slow = self._parts(theta, state, G, hyper)
        f_bar, slow_bar, by_rate = {}, {}, {}
        for k, B_k in B.items():
            rate = hyper[k]["slow_rate"]
            both = B_k + S["slow"][k]
            f_bar[k] = torch.where(on, rate * both, B_k)
            slow_bar[k] = torch.where(on, (1 - rate) * both, S["slow"][k])
            if "slow_rate" in wanted:
                by_rate[k] = {"slow_rate": reduce_like(torch.where(on, both * (f[k] - slow[k]), 0.0), rate)}
        inner_state, inner_S = ({n: of_slot for n, of_slot in tree.items() if n != "slow"} for tree in (state, S))
        pulled = self.inner.pullback_used(theta, inner_state, G, hyper, f_bar, inner_S, only(wanted, self.inner))
        B_j = {k: v + torch.where(first, slow_bar[k], 0.0) for k, v in pulled.B.items()}
        S_j = {**pulled.S, "slow": {k: torch.where(first, 0.0, v) for k, v in slow_bar.items()}}
        return Pulled(pulled.V, B_j, S_j, added(pulled.A, by_rate))


def check_every(name: str, every: Any) -> None:
    """Raise `ArgumentError` unless `every` is a whole number >= 1."""
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise unexpected(f"{name}(every=…)", "a whole number >= 1", repr(every), "1 acts in every step.")
