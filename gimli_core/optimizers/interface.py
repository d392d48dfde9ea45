"""What an optimizer is to the engine: a step and its analytic pullback.

With z = (theta, s) the augmented state, one optimizer step is
`theta', s' = opt(theta, s, G, phi_opt)`. Its pullback takes the adjoints
B' = dL/dtheta' and S' = dL/ds' of what came out to those of what went in:

    V = B' dtheta'/dG     + S' ds'/dG          line 11
    A = B' dtheta'/dphi   + S' ds'/dphi        line 12
    B = B' dtheta'/dtheta + S' ds'/dtheta      line 14, the direct part
    S = B' dtheta'/ds     + S' ds'/ds

Every method is a pure function of tensors: no autograd, no hidden state, no
branch on a value. A new rule derives from `ElementwiseOptimizer` (one tensor at
a time, diagonal Jacobians), from `TensorwiseOptimizer` (one tensor at a time) or
from `Optimizer` (anything else).

State is slot-major: `{"step": t, "exp_avg": {name: tensor}, ...}`. `step`
counts finished steps, a float64 number that nothing is differentiated by.

A tensor that the loss of a step does not use is left alone, as torch.optim leaves a
parameter whose `.grad` is None: no momentum, no decay, and the step does not count for
it. `step_used` and `pullback_used` see to that for any rule; what a tensor has missed
stands in `state["skipped"]`.
Hyperparameters arrive as `{tensor name: {hyperparameter: value}}`, each value
0-dimensional or of the tensor's shape. A rule that `sees` the step's loss or number finds them there too.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from gimli_core.errors import check_switch, listing, unexpected
from gimli_core.notation import Hyper, State, Tensors, counts, slots
from gimli_core.optimizers.numbers import pulled_as_vectors, stepped_as_vectors
from gimli_core.optimizers.to_torch import hand_back

__all__ = ["Optimizer", "Pulled", "hyperparameter", "with_path"]


SEEN = ("loss", "j")  # what a rule may ask for besides


class Pulled(NamedTuple):
    """The adjoints of one optimizer step's inputs."""

    V: Tensors
    B: Tensors
    S: State
    A: dict[str, dict[str, Tensor]]


def hyperparameter(default: Any, low: float = 0.0, below: float = float("inf")) -> Any:
    """A dataclass field for a continuous hyperparameter within [low, below)."""
    return field(default=default, metadata={"continuous": True, "low": low, "below": below})


@dataclass(frozen=True, eq=False)
class Optimizer(ABC):
    """An inner-loop optimizer: pure `step`, analytic `pullback`.

    Args:
        groups: parameter groups, `{group name: [tensor names or shell patterns]}`. A
            hyperparameter may then be given as `{group name: value}` or as a vector
            with one entry a group, in this order.
    """

    _continuous: ClassVar[tuple[str, ...]]  # of a rule: the names of its fields that are continuous hyperparameters
    sees: ClassVar[Collection[str]] = ()  # of SEEN: what a step is handed among the hyperparameters (seen.py)

    groups: Mapping[str, Sequence[str]] | None = field(default=None, kw_only=True)

    def __new__(cls, *_: Any, **__: Any) -> Self:
        # Read once a class, not at each step or copy: fields hold their metadata as mapping proxies, which
        # torch.compile cannot read any more once a module has been given other weights.
        if "_continuous" not in cls.__dict__:
            cls._continuous = tuple(f.name for f in fields(cls) if f.metadata.get("continuous"))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        self._check_switches()
        self._check_seen()
        for name, value in self.hyperparameters().items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self.check_range(name, value, f"{type(self).__name__}({name}=…)")

    def _check_switches(self) -> None:
        """Raise unless every field that is a switch is True or False."""
        for f in fields(self):
            if f.type in (bool, "bool"):
                check_switch(f"{type(self).__name__}({f.name}=…)", getattr(self, f.name))

    def _check_seen(self) -> None:
        """Raise unless what the rule sees is there to be seen, and no hyperparameter has its name."""
        rule, seen = type(self).__name__, self.seen()
        if isinstance(self.sees, str) or not set(seen) <= set(SEEN):
            raise unexpected(
                f"{rule}.sees", f"a tuple of {listing(SEEN)}", repr(self.sees), 'For example sees = ("loss",).'
            )
        if clash := sorted(set(seen) & set(self.continuous())):
            do = f"Rename the field, or leave {listing(clash)} out of {rule}.sees."
            raise unexpected(rule, "hyperparameters with names of their own", listing(clash), do)

    def _assign(self, arguments: Mapping[str, Any], **pairs: tuple[str, ...]) -> None:
        """Set the fields from an explicit `__init__`'s `locals()`; `betas=("beta1", "beta2")` splits a tuple."""
        values = {name: value for name, value in arguments.items() if name not in ("self", "__class__", *pairs)}
        for pair, names in pairs.items():
            if not isinstance(arguments[pair], (tuple, list)) or len(arguments[pair]) != len(names):
                label, expected = f"{type(self).__name__}({pair}=…)", f"({', '.join(names)})"
                raise unexpected(label, expected, repr(arguments[pair]), f"Give {len(names)} numbers.")
            values.update(zip(names, arguments[pair], strict=True))
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def continuous(self) -> tuple[str, ...]:
        """Names of the hyperparameters that a meta-gradient can be taken of."""
        return self._continuous

    def seen(self) -> tuple[str, ...]:
        """What a step is handed besides (theta, s, G, phi_opt): of "loss" and "j". See seen.py."""
        return tuple(self.sees)

    def own_parameters(self) -> tuple[str, ...]:
        """Those of `continuous()` that are the rule's own parameters: of any shape, and the same for every tensor."""
        return ()

    def whole_tensor(self) -> tuple[str, ...]:
        """Those of `continuous()` that act on a tensor as a whole, and so cannot be given per element."""
        return ()

    def check_range(self, name: str, value: float, argument: str) -> None:
        """Raise `ArgumentError` unless `value` lies in the range of hyperparameter `name`."""
        meta = next(f.metadata for f in fields(self) if f.name == name)
        if not meta["low"] <= value < meta["below"]:
            raise unexpected(
                argument, f"a number in [{meta['low']:g}, {meta['below']:g})", repr(value), "Choose one inside."
            )

    def hyperparameters(self) -> dict[str, Any]:
        """Every continuous hyperparameter with the value given at construction."""
        return {name: getattr(self, name) for name in self.continuous()}

    def bind(self, values: Mapping[str, Any]) -> Optimizer:
        """A copy in which `values` (meta-parameters, say) stand for the hyperparameters of those names.

        Numbers become tensors: a meta-parameter of value 0 has a derivative, and so is used.
        """
        bound = copy.copy(self)
        for name, value in values.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            object.__setattr__(bound, name, torch.tensor(value, dtype=torch.float64, device="cpu") if number else value)
        return bound

    def uses(self, name: str) -> bool:
        """False where a hyperparameter is the plain number 0, so that its term can be left out."""
        value = getattr(self, name)
        return not (isinstance(value, (int, float)) and value == 0)

    @abstractmethod
    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        """s_0 before the first step."""

    def initial_state_pullback(self, S_0: State, hyper: Hyper, wanted: Collection[str]) -> dict[str, Tensors]:
        """A = S_0 ds_0/dphi_opt, for initial states that depend on a hyperparameter."""
        return {}

    @abstractmethod
    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        """Line 6: theta', s' = opt(theta, s, G, phi_opt)."""

    @abstractmethod
    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        """Lines 11, 12 and the direct part of 14; `wanted` names the hyperparameters of A."""

    def moved_by_gradient(self, names: Collection[str]) -> Collection[str]:
        """Those of theta's names that a step moves by their gradient: all, but for averages and their like."""
        return names

    @stepped_as_vectors
    def step_used(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        """`step`, where G has no entry for a tensor that the loss does not use: that one is left alone."""
        missed = [k for k in theta if k not in G]
        if not missed:
            new_theta, new_state = self.step(theta, state, G, hyper)
            return new_theta, {**counts(state), **new_state}
        new_theta, new_state = theta, {**state, "step": state["step"] + 1}
        if G:
            part = ({k: theta[k] for k in G}, state_of(state, G), G, {k: hyper[k] for k in G})
            new_theta, new_state = self.step(*part)
        before = state.get("skipped", {})
        return {k: new_theta.get(k, v) for k, v in theta.items()}, {
            "step": new_state["step"],
            "skipped": {**before, **{k: before.get(k, 0) + torch.ones_like(state["step"]) for k in missed}},
            **{slot: {**of_slot, **new_state.get(slot, {})} for slot, of_slot in slots(state).items()},
        }

    @pulled_as_vectors
    def pullback_used(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        """`pullback` of `step_used`. What was left alone is the identity, and has no entry in V and A."""
        if all(k in G for k in theta):
            return self.pullback(theta, state, G, hyper, B, S, wanted)
        pulled = Pulled({}, {}, {}, {})
        if G:
            part = ({k: theta[k] for k in G}, state_of(state, G), G, {k: hyper[k] for k in G})
            pulled = self.pullback(*part, {k: B[k] for k in G}, state_of(S, G), wanted)
        B_j = {k: pulled.B.get(k, v) for k, v in B.items()}
        S_j = {slot: {k: pulled.S.get(slot, {}).get(k, v) for k, v in of_slot.items()} for slot, of_slot in S.items()}
        return Pulled(pulled.V, B_j, S_j, pulled.A)

    def to_torch(self, optimizer: torch.optim.Optimizer, named_parameters: Any = None, **options: Any) -> None:
        """Hand this rule's values to a live `torch.optim` optimizer of its kind, with `phi_opt=`, `theta=`, `state=`.

        All of it or nothing: `optimizers/to_torch.py` has the arguments. The inverse of `from_torch`.

        >>> import torch, gimli_core as gimli
        >>> adam = torch.optim.Adam(torch.nn.Linear(2, 1).named_parameters(), lr=0.1)
        >>> gimli.optimizers.from_torch(adam).optimizer.to_torch(adam, phi_opt={"lr": torch.tensor(0.5)})
        >>> adam.param_groups[0]["lr"]
        0.5
        """
        hand_back(self, optimizer, named_parameters, **options)

    def zero_adjoint(self, state: State) -> State:
        """S_J = 0 for every differentiable slot of `state`."""
        return {slot: {k: torch.zeros_like(v) for k, v in of_slot.items()} for slot, of_slot in slots(state).items()}


def with_path(optimizer: Optimizer, G: Tensors, unused: Collection[str]) -> Tensors:
    """G without the tensors that the loss does not use, where the optimizer would move them."""
    missed = set(optimizer.moved_by_gradient(G)) & set(unused) if unused else set()
    return {k: v for k, v in G.items() if k not in missed} if missed else G


def state_of(state: State, names: Collection[str]) -> State:
    """What `names` hold of a state, or of the adjoint of one."""
    mine = {slot: of_slot for slot, of_slot in state.items() if isinstance(of_slot, Mapping)}
    return {**state, **{slot: {k: v for k, v in of_slot.items() if k in names} for slot, of_slot in mine.items()}}
