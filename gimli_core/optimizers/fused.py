"""An elementwise rule on all small tensors at once, as one long vector: one chain of operations, not one a tensor."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gimli_core.optimizers.interface import ElementwiseOptimizer, Hyper, Optimizer, Pulled, State, Tensors

__all__ = ["Fused", "Spread", "fuses"]

ALL = "all"  # the one name under which the rule sees the vector
NUMBERS = 2**17  # beyond, an operation costs more than calling it, and joining the tensors more than it saves


class Spread(dict[str, Tensor]):
    """`{name: tensor}` whose tensors are views of one vector, `flat`; they are made when one is asked for."""

    def __init__(self, flat: Tensor, places: Mapping[str, tuple[int, ...]], sizes: list[int]) -> None:
        super().__init__()
        self.flat, self._places, self._sizes = flat, places, sizes

    def _made(self) -> Spread:
        if not super().__len__():
            for (k, place), part in zip(self._places.items(), self.flat.split(self._sizes, -1), strict=True):
                super().__setitem__(k, part.reshape(place))
        return self

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> Tensor:
        return super(Spread, self._made()).__getitem__(name)

    def keys(self) -> Any:
        return self._places.keys()

    def values(self) -> Any:
        return super(Spread, self._made()).values()

    def items(self) -> Any:
        return super(Spread, self._made()).items()


@dataclass(frozen=True, eq=False)
class Fused(Optimizer):
    """`rule` on one vector of all tensors; slots of its state are such vectors under a single name.

    Scalars that all tensors share stay scalars; any other hyperparameter is spread over the elements that it serves.

    Args:
        rule: an elementwise optimizer.
        shapes: `{name: shape}`, of one task.
        dtype: of theta.
        scalars: names of the hyperparameters that all tensors share as one number.
        tasks: T, where tensors are `[T, …]`; all hyperparameters are then shared by the tasks.

    Cost: one copy of G_j and of B_j a step.
    """

    rule: Optimizer = field(kw_only=True)
    shapes: Mapping[str, torch.Size] = field(kw_only=True)
    dtype: torch.dtype = field(kw_only=True)
    scalars: frozenset[str] = field(kw_only=True)
    tasks: int | None = field(kw_only=True)

    _lead: tuple[int, ...] = field(init=False)
    _sizes: list[int] = field(init=False)
    _places: dict[str, tuple[int, ...]] = field(init=False)  # the shape of each tensor, tasks included

    def __post_init__(self) -> None:
        lead = () if self.tasks is None else (self.tasks,)
        object.__setattr__(self, "_lead", lead)
        object.__setattr__(self, "_sizes", [shape.numel() for shape in self.shapes.values()])
        object.__setattr__(self, "_places", {k: lead + tuple(shape) for k, shape in self.shapes.items()})

    def gathered(self, tensors: Tensors) -> Spread:
        """The tensors as views of one vector [n] or [T, n]."""
        if isinstance(tensors, Spread):
            return tensors
        return self.unpack(torch.cat([tensors[k].reshape(*self._lead, -1) for k in self.shapes], -1))

    def pack(self, tensors: Tensors) -> Tensor:
        """The vector alone."""
        return self.gathered(tensors).flat

    def unpack(self, packed: Tensor) -> Spread:
        """Views of a vector, by name."""
        return Spread(packed, self._places, self._sizes)

    def split_state(self, state: State) -> State:
        """A state of vectors as `{slot: {name: tensor}}`."""

        def of(held: Tensors) -> Tensors:
            vector = held[ALL]
            return dict.fromkeys(self.shapes, vector) if vector.ndim == 0 else dict(self.unpack(vector))

        return {slot: held if slot == "step" else of(held) for slot, held in state.items()}

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        return self.rule.initial_state({ALL: self.pack(theta)}, self.pack_hyper(hyper))

    def initial_state_pullback(self, S_0: State, hyper: Hyper, wanted: Collection[str]) -> dict[str, Tensors]:
        found = self.rule.initial_state_pullback(S_0, self.pack_hyper(hyper), wanted)
        return self._by_tensor(found.get(ALL, {}))

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        new, new_state = self.step_packed(self.pack(theta), state, self.pack(G), self.pack_hyper(hyper))
        return self.unpack(new), new_state

    def step_packed(self, theta: Tensor, state: State, G: Tensor, hyper: Hyper) -> tuple[Tensor, State]:
        new, new_state = self.rule.step({ALL: theta}, state, {ALL: G}, hyper)
        return new[ALL], new_state

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        theta_G_B = (self.pack(theta), state, self.pack(G), self.pack_hyper(hyper), self.pack(B))
        V, B_j, S_j, A = self.pullback_packed(*theta_G_B, S, wanted)
        return Pulled(self.unpack(V), self.unpack(B_j), S_j, A)

    def pullback_packed(
        self, theta: Tensor, state: State, G: Tensor, hyper: Hyper, B: Tensor, S: State, wanted: Collection[str]
    ) -> tuple[Tensor, Tensor, State, dict[str, Tensors]]:
        pulled = self.rule.pullback({ALL: theta}, state, {ALL: G}, hyper, {ALL: B}, S, wanted)
        return pulled.V[ALL], pulled.B[ALL], pulled.S, self._by_tensor(pulled.A[ALL])

    def pack_hyper(self, hyper: Hyper) -> Hyper:
        """Every hyperparameter of the vector: what is shared as it is, the rest spread over the elements."""
        first = next(iter(hyper.values()))
        return {ALL: {name: v if name in self.scalars else self._wide(name, hyper) for name, v in first.items()}}

    def _wide(self, name: str, hyper: Hyper) -> Tensor:
        wide = torch.cat([hyper[k][name].to(self.dtype).expand(s).reshape(-1) for k, s in self.shapes.items()])
        return wide.expand(*self._lead, len(wide))

    def _by_tensor(self, A: Tensors) -> dict[str, Tensors]:
        """Increments of the vector by tensor. One that all share is summed already, and stands with the first."""
        found: dict[str, Tensors] = {k: {} for k in self.shapes}
        for name, increment in A.items():
            if increment.ndim == 0:
                found[next(iter(found))][name] = increment if self.tasks is None else increment.reshape(1)
                continue
            parts = increment.split(self._sizes, -1)
            for (k, place), part in zip(self._places.items(), parts, strict=True):
                found[k][name] = part.reshape(place)
        return found


def fuses(optimizer: Optimizer, theta: Tensors, scalars: Collection[str], exact: Collection[str]) -> bool:
    """Whether it pays to fuse an elementwise rule over the tensors of theta, tasks included.

    `exact` names hyperparameters that are single numbers for some tensor, and so are used in float64; but for a rate or
    a weight decay, spreading them would round them to theta's dtype too early (1 - beta^t).
    """
    small = len(theta) > 1 and sum(v.numel() for v in theta.values()) <= NUMBERS
    return isinstance(optimizer, ElementwiseOptimizer) and small and set(exact) <= {*scalars, "lr", "weight_decay"}
