"""What a wrapper is: an optimizer around another, whose hyperparameters and state it shows beside its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gimli_core.errors import ArgumentError, GimliError, explain, listing, unexpected
from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers.interface import Optimizer, Pulled
from gimli_core.optimizers.numbers import pulled_as_vectors, stepped_as_vectors

__all__ = ["GradientWrapper", "Wrapper", "added", "only", "rules_within"]


@dataclass(frozen=True, eq=False)
class Wrapper(Optimizer):
    """Base of all wrappers. A subclass adds hyperparameters as fields, slots to `initial_state`, step and pullback.

    G may lack a tensor that the loss does not use. So step and pullback go through `inner.step_used` and
    `inner.pullback_used`, and leave alone what is theirs of such a tensor; a step that does not is refused.

    Args:
        inner: the optimizer that is wrapped; its groups are the wrapper's.
    """

    inner: Optimizer

    def __post_init__(self) -> None:
        self._check_switches()
        if not isinstance(self.inner, Optimizer):
            raise unexpected(
                f"{type(self).__name__}(inner)",
                "an optimizer of gimli_core",
                type(self.inner).__name__,
                "For a torch.optim instance use gimli.optimizers.from_torch(...).optimizer.",
            )
        clash = set(self.of_wrapper()) & set(self.inner.continuous())
        if clash:
            raise unexpected(
                f"{type(self).__name__}(inner)",
                f"an optimizer without its own {listing(clash)}",
                type(self.inner).__name__,
                "Use each wrapper once.",
            )
        if self.groups is None:
            object.__setattr__(self, "groups", self.inner.groups)
        for name in self.of_wrapper():
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self.check_range(name, value, f"{type(self).__name__}({name}=…)")

    def of_wrapper(self) -> tuple[str, ...]:
        """Names of the wrapper's own continuous hyperparameters."""
        return super().continuous()

    def continuous(self) -> tuple[str, ...]:
        return (*self.of_wrapper(), *self.inner.continuous())

    def seen(self) -> tuple[str, ...]:
        return self.inner.seen()

    def own_parameters(self) -> tuple[str, ...]:
        return self.inner.own_parameters()

    def whole_tensor(self) -> tuple[str, ...]:
        return self.inner.whole_tensor()

    def check_range(self, name: str, value: float, argument: str) -> None:
        if name in self.of_wrapper():
            super().check_range(name, value, argument)
        else:
            self.inner.check_range(name, value, argument)

    def hyperparameters(self) -> dict[str, Any]:
        return {**{name: getattr(self, name) for name in self.of_wrapper()}, **self.inner.hyperparameters()}

    def bind(self, values: Mapping[str, Any]) -> Optimizer:
        bound = super().bind({name: v for name, v in values.items() if name in self.of_wrapper()})
        inner = self.inner.bind({name: v for name, v in values.items() if name not in self.of_wrapper()})
        object.__setattr__(bound, "inner", inner)
        return bound

    def uses(self, name: str) -> bool:
        return super().uses(name) if name in self.of_wrapper() else self.inner.uses(name)

    def moved_by_gradient(self, names: Collection[str]) -> Collection[str]:
        return self.inner.moved_by_gradient(names)

    @stepped_as_vectors
    def step_used(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        missed = set(self.moved_by_gradient(theta)) - G.keys()
        if not missed:
            return self.step(theta, state, G, hyper)
        try:
            new_theta, new_state = self.step(theta, state, G, hyper)
        except KeyError as error:
            if error.args[:1] and error.args[0] in missed:
                raise self._forgot("step", missed) from error
            raise
        # A change of one is the wrapper's business: slow weights and gradients gathered before move it as well.
        if not missed <= new_theta.keys():
            raise self._forgot("step", missed)
        return new_theta, new_state

    @pulled_as_vectors
    def pullback_used(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        missed = set(self.moved_by_gradient(theta)) - G.keys()
        try:
            pulled = self.pullback(theta, state, G, hyper, B, S, wanted)
        except KeyError as error:
            if error.args[:1] and error.args[0] in missed:
                raise self._forgot("pullback", missed) from error
            raise
        if any(k not in pulled.B for k in missed):
            raise self._forgot("pullback", missed)
        return pulled

    def _forgot(self, method: str, missed: Collection[str]) -> GimliError:
        expected = f"to leave alone what the loss does not use ({listing(sorted(missed))})"
        actual = "none of it" if method == "step" else "no adjoint of it"
        do = (
            f"Call self.inner.{method}_used(…) in place of self.inner.{method}(…), and pass by what G has no entry for."
        )
        return ArgumentError(explain(f"{type(self).__name__}.{method}", expected, actual, do))

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        return self.inner.initial_state(theta, hyper)

    def initial_state_pullback(self, S_0: State, hyper: Hyper, wanted: Collection[str]) -> dict[str, Tensors]:
        return self.inner.initial_state_pullback(S_0, hyper, wanted)


class GradientWrapper(Wrapper):
    """A wrapper that hands another gradient to the inner optimizer, and is itself a function of (theta, G) alone."""

    @abstractmethod
    def _transform(self, theta: Tensors, G: Tensors, hyper: Hyper) -> Tensors: ...

    @abstractmethod
    def _transform_pullback(
        self, theta: Tensors, G: Tensors, hyper: Hyper, adjoint: Tensors, wanted: Collection[str]
    ) -> tuple[Tensors, Tensors, dict[str, Tensors]]:
        """(V, what is added to B, what is added to A) from the adjoint of the transformed gradient."""

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        return self.inner.step_used(theta, state, self._transform(theta, G, hyper) if G else G, hyper)

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        if not G:
            return self.inner.pullback_used(theta, state, G, hyper, B, S, only(wanted, self.inner))
        transformed = self._transform(theta, G, hyper)
        pulled = self.inner.pullback_used(theta, state, transformed, hyper, B, S, only(wanted, self.inner))
        V, more_B, more_A = self._transform_pullback(theta, G, hyper, pulled.V, wanted)
        B_j = {k: v + more_B[k] if k in more_B else v for k, v in pulled.B.items()}
        return Pulled(V, B_j, pulled.S, added(pulled.A, more_A))


def only(wanted: Collection[str], optimizer: Optimizer) -> tuple[str, ...]:
    """Those of `wanted` that `optimizer` has, or sees."""
    names = (*optimizer.continuous(), *optimizer.seen())
    return tuple(name for name in wanted if name in names)


def added(first: Mapping[str, Tensors], second: Mapping[str, Tensors]) -> dict[str, Tensors]:
    """The increments of A of both, summed where both have one: neither need have every tensor."""
    total = {k: dict(A) for k, A in first.items()}
    for k, A in second.items():
        mine = total.setdefault(k, {})
        mine.update({name: mine[name] + v if name in mine else v for name, v in A.items()})
    return total


def rules_within(optimizer: Optimizer) -> Iterator[Optimizer]:
    """An optimizer, and every one that it wraps or hands a part of theta to."""
    yield optimizer
    parts = [rule for rule, _ in getattr(optimizer, "parts", {}).values()]
    for rule in [optimizer.inner, *parts] if isinstance(optimizer, Wrapper) else parts:
        yield from rules_within(rule)
