"""Rules whose pullback autograd can differentiate in turn: what second derivatives through an inner loop need."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers.derived import DerivedOptimizer, derived_pullback
from gimli_core.optimizers.interface import Optimizer, Pulled
from gimli_core.optimizers.rules.adagrad import Adagrad
from gimli_core.optimizers.rules.adam import Adam, AdamW
from gimli_core.optimizers.rules.sgd import SGD
from gimli_core.optimizers.wrappers.interface import Wrapper

__all__ = ["TWICE", "recordable"]

# Rules whose analytic pullback is traceable by autograd as it stands. A test holds each to it.
TWICE: set[type[Optimizer]] = {SGD, Adam, AdamW, Adagrad}


def recordable(rule: Optimizer) -> Optimizer:
    """The rule, with a pullback of which every operation is recorded: its own, or that of autograd through its step."""
    return rule if type(rule) in TWICE or isinstance(rule, DerivedOptimizer) else _ByItsStep(rule)


@dataclass(frozen=True, eq=False)
class _ByItsStep(Wrapper):
    """A rule whose pullback is one vector-Jacobian product of its step."""

    def __post_init__(self) -> None:
        pass  # the rule has checked itself

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        return self.inner.step_used(theta, state, G, hyper)

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        return derived_pullback(self.inner.step_used, theta, state, G, hyper, B, S, wanted)
