"""A rule of one task, vectorised over a leading dimension of tasks."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_map

from gimli_core.notation import Hyper, State, Tensors, counts, slots
from gimli_core.optimizers.interface import Pulled
from gimli_core.transforms.interface import RuleInAnotherForm
from gimli_core.transforms.vectorised import vectorised
from gimli_core.trees import mapped

__all__ = ["RuleOverTasks"]


@dataclass(frozen=True, eq=False)
class RuleOverTasks(RuleInAnotherForm):
    """`rule` on tensors `[T, …]`; every task keeps its own state, and shares the count of steps.

    Increments of A have a leading T too: who shares a hyperparameter sums them.

    Args:
        rule: any optimizer.
        count: T.
        by_task: `{tensor: {hyperparameter: whether its value has a leading T}}`.
    """

    count: int = field(kw_only=True)
    by_task: dict[str, dict[str, bool]] = field(kw_only=True)
    apart: bool = field(init=False)  # whether tasks differ in a value of a step

    def __post_init__(self) -> None:
        object.__setattr__(self, "apart", "loss" in self.seen() or any(any(k.values()) for k in self.by_task.values()))

    def _over(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function` of each task; of the last argument all tasks have the same."""
        which = (*(True for _ in arguments[1:]), False)
        # torch's own is slower by far, but a compiler does not trace what is in it.
        quickest = tree_map if torch.compiler.is_compiling() else mapped
        return vectorised(function, which, self.count, mapped=quickest)(*arguments)

    def _split(self, hyper: Hyper) -> tuple[Hyper, Hyper]:
        """(values of a step that have a leading T, those that all tasks share). With the first is a loss that the rule
        sees. By tensors, as `hyper`."""
        if not self.apart:
            return {}, hyper
        sees_loss = "loss" in self.seen()
        by_task = {k: {**per, "loss": sees_loss} for k, per in self.by_task.items()}
        mine = {k: {name: x for name, x in per.items() if by_task[k].get(name)} for k, per in hyper.items()}
        shared = {k: {name: x for name, x in per.items() if name not in mine[k]} for k, per in hyper.items()}
        return {k: per for k, per in mine.items() if per}, shared

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        def one(theta: Tensors, mine: Hyper, shared: Hyper) -> State:
            return slots(self.rule.initial_state(theta, joined(mine, shared)))

        started: State = self._over(one, theta, *self._split(hyper))
        return {"step": torch.zeros((), dtype=torch.float64), **started}

    def initial_state_pullback(self, S_0: State, hyper: Hyper, wanted: Collection[str]) -> dict[str, Tensors]:
        def one(S_0: State, mine: Hyper, shared: Hyper) -> dict[str, Tensors]:
            return self.rule.initial_state_pullback(S_0, joined(mine, shared), wanted)

        if not any(S_0.values()):
            return {}  # no state, nothing to vectorise over
        A: dict[str, Tensors] = self._over(one, S_0, *self._split(hyper))
        return A

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        counted: State = {}

        def one(theta: Tensors, moments: State, G: Tensors, mine: Hyper, shared: Hyper) -> tuple[Tensors, State]:
            theta, new = self.rule.step_used(theta, {**counts(state), **moments}, G, joined(mine, shared))
            counted.update(counts(new))  # of counts alone, so the same for every task
            return theta, slots(new)

        theta, new = self._over(one, theta, slots(state), G, *self._split(hyper))
        return theta, {**counted, **new}

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        def one(theta: Tensors, moments: State, G: Tensors, B: Tensors, S: State, mine: Hyper, shared: Hyper) -> Pulled:
            state_of_one = {**counts(state), **moments}
            return self.rule.pullback_used(theta, state_of_one, G, joined(mine, shared), B, S, wanted)

        pulled: Pulled = self._over(one, theta, slots(state), G, B, S, *self._split(hyper))
        return pulled


def joined(mine: Hyper, shared: Hyper) -> Hyper:
    """The values of one task, by tensors: what `_split` took apart."""
    return {k: {**per, **mine.get(k, {})} for k, per in shared.items()} if mine else shared
