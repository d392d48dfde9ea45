"""One optimizer over T tasks at once: the same rule, vectorised over a leading dimension."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers.interface import Optimizer, Pulled

__all__ = ["OverTasks"]


@dataclass(frozen=True, eq=False)
class OverTasks(Optimizer):
    """`rule` on tensors `[T, …]`; every task keeps its own state, and shares the count of steps.

    Increments of A have a leading T too: who shares a hyperparameter sums them.

    Args:
        rule: any optimizer.
        by_task: `{tensor: {hyperparameter: whether its value has a leading T}}`.
    """

    rule: Optimizer = field(kw_only=True)
    by_task: dict[str, dict[str, bool]] = field(kw_only=True)

    def __post_init__(self) -> None:
        pass  # the rule has checked itself

    @property
    def _dims(self) -> dict[str, dict[str, int | None]]:
        return {k: {name: 0 if by else None for name, by in per.items()} for k, per in self.by_task.items()}

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        def one(theta: Tensors, hyper: Hyper) -> State:
            return _slots(self.rule.initial_state(theta, hyper))

        started: State = vmap(one, in_dims=(0, self._dims))(theta, hyper)
        return {"step": torch.zeros((), dtype=torch.float64), **started}

    def initial_state_pullback(self, S_0: State, hyper: Hyper, wanted: Collection[str]) -> dict[str, Tensors]:
        def one(S_0: State, hyper: Hyper) -> dict[str, Tensors]:
            return self.rule.initial_state_pullback(S_0, hyper, wanted)

        if not any(S_0.values()):
            return {}  # no state, nothing to vectorise over
        found: dict[str, Tensors] = vmap(one, in_dims=(0, self._dims))(S_0, hyper)
        return found

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        def one(theta: Tensors, slots: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
            theta, new = self.rule.step(theta, {"step": count, **slots}, G, hyper)
            return theta, _slots(new)

        count: Tensor = state["step"]
        theta, new = vmap(one, in_dims=(0, 0, 0, self._dims))(theta, _slots(state), G, hyper)
        return theta, {"step": count + 1, **new}

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        def one(theta: Tensors, slots: State, G: Tensors, hyper: Hyper, B: Tensors, S: State) -> Pulled:
            return self.rule.pullback(theta, {"step": count, **slots}, G, hyper, B, S, wanted)

        count: Tensor = state["step"]
        pulled: Pulled = vmap(one, in_dims=(0, 0, 0, self._dims, 0, 0))(theta, _slots(state), G, hyper, B, S)
        return pulled


def _slots(state: dict[str, Any]) -> State:
    return {slot: held for slot, held in state.items() if slot != "step"}
