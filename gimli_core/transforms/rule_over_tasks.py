"""A rule of one task, vectorised over a leading dimension of tasks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch.func import vmap

from gimli_core.notation import Hyper, State, Tensors, counts, slots
from gimli_core.optimizers.interface import Pulled
from gimli_core.transforms.interface import RuleInAnotherForm

__all__ = ["RuleOverTasks"]


@dataclass(frozen=True, eq=False)
class RuleOverTasks(RuleInAnotherForm):
    """`rule` on tensors `[T, …]`; every task keeps its own state, and shares the count of steps.

    Increments of A have a leading T too: who shares a hyperparameter sums them.

    Args:
        rule: any optimizer.
        by_task: `{tensor: {hyperparameter: whether its value has a leading T}}`.
    """

    by_task: dict[str, dict[str, bool]] = field(kw_only=True)

    def _dims(self, hyper: Hyper) -> dict[str, dict[str, int | None]]:
        """Which values of a step have a leading T: those said to, and a loss that the rule sees."""
        by_task = {k: {**per, "loss": "loss" in self.seen()} for k, per in self.by_task.items()}
        return {k: {name: 0 if by_task[k].get(name) else None for name in per} for k, per in hyper.items()}

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        def one(theta: Tensors, hyper: Hyper) -> State:
            return slots(self.rule.initial_state(theta, hyper))

        started: State = vmap(one, in_dims=(0, self._dims(hyper)))(theta, hyper)
        return {"step": torch.zeros((), dtype=torch.float64), **started}

    def initial_state_pullback(self, S_0: State, hyper: Hyper, wanted: Collection[str]) -> dict[str, Tensors]:
        def one(S_0: State, hyper: Hyper) -> dict[str, Tensors]:
            return self.rule.initial_state_pullback(S_0, hyper, wanted)

        if not any(S_0.values()):
            return {}  # no state, nothing to vectorise over
        A: dict[str, Tensors] = vmap(one, in_dims=(0, self._dims(hyper)))(S_0, hyper)
        return A

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        counted: State = {}

        def one(theta: Tensors, moments: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
            theta, new = self.rule.step_used(theta, {**counts(state), **moments}, G, hyper)
            counted.update(counts(new))  # of counts alone, so the same for every task
            return theta, slots(new)

        theta, new = vmap(one, in_dims=(0, 0, 0, self._dims(hyper)))(theta, slots(state), G, hyper)
        return theta, {**counted, **new}

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        def one(theta: Tensors, moments: State, G: Tensors, hyper: Hyper, B: Tensors, S: State) -> Pulled:
            return self.rule.pullback_used(theta, {**counts(state), **moments}, G, hyper, B, S, wanted)

        pulled: Pulled = vmap(one, in_dims=(0, 0, 0, self._dims(hyper), 0, 0))(theta, slots(state), G, hyper, B, S)
        return pulled
