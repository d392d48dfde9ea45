"""An elementwise rule on all small tensors at once, as one long vector: one chain of operations, not one a tensor."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gimli_core.notation import Hyper, State, Tensors, counts, slots
from gimli_core.optimizers.interface import Optimizer, Pulled
from gimli_core.optimizers.tensorwise import SMALL, ElementwiseOptimizer, reduce_like
from gimli_core.transforms.over_tasks import OverTasks

__all__ = ["Fused", "Spread", "fuses"]

ALL = "all"  # the one name under which the rule sees the vector
NUMBERS = SMALL  # beyond, joining the tensors costs more than it saves


class Spread(dict[str, Tensor]):
    """`{name: tensor}` whose tensors are views of one vector, `flat`; they are made when one is asked for.

    To be read: the vector would not follow another tensor under a name.
    """

    def __init__(self, flat: Tensor, places: Mapping[str, tuple[int, ...]], sizes: list[int]) -> None:
        super().__init__()
        self.flat, self._places, self._sizes = flat, places, sizes

    def _made(self) -> Spread:
        if not super().__len__():
            for (k, place), part in zip(self._places.items(), self.flat.split(self._sizes, -1), strict=True):
                super().__setitem__(k, part.reshape(place))
        return self

    def summed(self) -> Spread:
        """The sum over the first dimension."""
        return Spread(self.flat.sum(0), {k: place[1:] for k, place in self._places.items()}, self._sizes)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def keys(self) -> Any:
        return self._places.keys()

    def __getitem__(self, name: str) -> Tensor:
        return super(Spread, self._made()).__getitem__(name)

    def values(self) -> Any:
        return super(Spread, self._made()).values()

    def items(self) -> Any:
        return super(Spread, self._made()).items()

    def get(self, name: str, default: Any = None) -> Any:
        return super(Spread, self._made()).get(name, default)

    def copy(self) -> Tensors:
        return dict(self._made().items())

    def __repr__(self) -> str:
        return repr(self.copy())

    def __eq__(self, other: object) -> bool:
        return self.copy() == other

    def __ne__(self, other: object) -> bool:
        return self.copy() != other

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def __reversed__(self) -> Iterator[str]:
        return reversed(list(self._places))

    def __setitem__(self, name: str, value: Tensor) -> None:
        raise TypeError(f"{name!r} is a view of one vector of all tensors: make a new dict, {{**these, {name!r}: …}}")


@dataclass(frozen=True, eq=False)
class Fused(Optimizer):
    """`rule` on one vector of all tensors; slots of its state are such vectors under a single name.

    Every element has the bits that the rule alone would give it. Hyperparameters are one number for all tensors, or one
    an element of each. A step that leaves tensors alone takes one tensor after the other, and so do those that follow:
    the tensors' counts of steps are no longer one.

    Args:
        rule: an elementwise optimizer.
        shapes: `{name: shape}`, of one task.
        scalars: names of the hyperparameters that all tensors share as one number.
        tasks: T, where tensors are `[T, …]`; all hyperparameters are then shared by the tasks.

    Cost: one copy of G_j and of B_j a step.
    """

    rule: ElementwiseOptimizer = field(kw_only=True)
    shapes: Mapping[str, torch.Size] = field(kw_only=True)
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
            return dict.fromkeys(self.shapes, vector) if vector.ndim == 0 else dict(self.unpack(vector).items())

        return {**counts(state), **{slot: of(held) for slot, held in slots(state).items()}}

    def _joined(self, state: State) -> State:
        """The other way round."""
        return {**counts(state), **{slot: {ALL: self.pack(held)} for slot, held in slots(state).items()}}

    @property
    def _by_name(self) -> Optimizer:
        """The rule on every tensor by itself."""
        alone = {k: dict.fromkeys(self.rule.continuous(), False) for k in self.shapes}
        return self.rule if self.tasks is None else OverTasks(rule=self.rule, by_task=alone)

    def step_used(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        if len(G) == len(theta) and "skipped" not in state:
            return self.step(theta, state, G, hyper)
        new, new_state = self._by_name.step_used(theta.copy(), self.split_state(state), G, hyper)
        return self.gathered(new), self._joined(new_state)

    def pullback_used(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        if len(G) == len(theta) and "skipped" not in state:
            return self.pullback(theta, state, G, hyper, B, S, wanted)
        by_name = (theta.copy(), self.split_state(state), dict(G.items()), hyper, dict(B.items()), self.split_state(S))
        pulled = self._by_name.pullback_used(*by_name, wanted)
        return pulled._replace(B=self.gathered(pulled.B), S=self._joined(pulled.S))

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        return self.initial_state_packed(self.pack(theta), self.pack_hyper(hyper))

    def initial_state_packed(self, theta: Tensor, hyper: Hyper) -> State:
        return self.rule.initial_state({ALL: theta}, hyper)

    def initial_state_pullback(self, S_0: State, hyper: Hyper, wanted: Collection[str]) -> dict[str, Tensors]:
        # Of a state that is split by tensor, as without fusing: the pullback of a start has sums of its own.
        return self.rule.initial_state_pullback(S_0, hyper, wanted)

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
        s, S_all = ({slot: held[ALL] for slot, held in slots(tree).items()} for tree in (state, S))
        V, B_j, S_j, thunks = self.rule._pullback(theta, s, G, hyper[ALL], state["step"] + 1, B, S_all)
        A = self._by_tensor({name: thunks[name]() for name in wanted if name in thunks}, hyper[ALL])
        return V, B_j, {slot: {ALL: S_j[slot]} for slot in S}, A

    def pack_hyper(self, hyper: Hyper) -> Hyper:
        """Every hyperparameter of the vector: one number for all as it is, one an element in a vector too."""
        first = next(iter(hyper.values()))
        return {ALL: {name: v if name in self.scalars else self._wide(name, hyper) for name, v in first.items()}}

    def _wide(self, name: str, hyper: Hyper) -> Tensor:
        wide = torch.cat([hyper[k][name].reshape(-1) for k in self.shapes])
        return wide.expand(*self._lead, len(wide))

    def _by_tensor(self, A: Tensors, h: Tensors) -> dict[str, Tensors]:
        """Increments of the vector by tensor, each summed as its own: in what order changes the last bits."""
        found: dict[str, Tensors] = {k: {} for k in self.shapes}
        for name, increment in A.items():
            for (k, place), part in zip(self._places.items(), increment.split(self._sizes, -1), strict=True):
                if name not in self.scalars:
                    found[k][name] = part.reshape(place)
                elif self.tasks is None:
                    found[k][name] = reduce_like(part.reshape(place), h[name])
                else:
                    found[k][name] = part.sum(-1, dtype=torch.promote_types(part.dtype, torch.float32))
        return found


def fuses(optimizer: Optimizer, theta: Tensors, scalars: Collection[str], exact: Collection[str]) -> bool:
    """Whether it pays to fuse an elementwise rule over the tensors of theta, tasks included.

    `exact` names hyperparameters that are single numbers for some tensor, and so are used in float64: spread over the
    elements they would be rounded to theta's dtype, and the bits would no longer be those of the rule alone.
    """
    small = len(theta) > 1 and sum(v.numel() for v in theta.values()) <= NUMBERS
    return isinstance(optimizer, ElementwiseOptimizer) and small and set(exact) <= set(scalars)
