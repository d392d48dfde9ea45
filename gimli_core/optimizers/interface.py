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
Hyperparameters arrive as `{tensor name: {hyperparameter: value}}`, each value
0-dimensional or of the tensor's shape.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.errors import ArgumentError, explain, listing

__all__ = [
    "ElementwiseOptimizer",
    "Hyper",
    "Optimizer",
    "Pulled",
    "State",
    "Tensors",
    "TensorwiseOptimizer",
    "hyperparameter",
]

Tensors = dict[str, Tensor]
State = dict[str, Any]
Hyper = dict[str, dict[str, Tensor]]
Thunks = dict[str, Callable[[], Tensor]]

SMALL = 2**17  # elements; up to there an operation costs less than calling it


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

    groups: Mapping[str, Sequence[str]] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, value in self.hyperparameters().items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self.check_range(name, value, f"{type(self).__name__}({name}=…)")

    def _assign(self, given: Mapping[str, Any], **pairs: tuple[str, ...]) -> None:
        """Set the fields from an explicit `__init__`'s `locals()`; `betas=("beta1", "beta2")` splits a tuple."""
        values = {name: value for name, value in given.items() if name not in ("self", "__class__", *pairs)}
        for pair, names in pairs.items():
            if not isinstance(given[pair], (tuple, list)) or len(given[pair]) != len(names):
                raise ArgumentError(
                    explain(f"{type(self).__name__}({pair}=…)", f"({', '.join(names)})", repr(given[pair]),
                            f"Give {len(names)} numbers.")
                )  # fmt: skip
            values.update(zip(names, given[pair], strict=True))
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def continuous(self) -> tuple[str, ...]:
        """Names of the hyperparameters that a meta-gradient can be taken of."""
        return tuple(f.name for f in fields(self) if f.metadata.get("continuous"))

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
            raise ArgumentError(
                explain(
                    argument, f"a number in [{meta['low']:g}, {meta['below']:g})", repr(value), "Choose one inside."
                )
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
            object.__setattr__(bound, name, torch.tensor(value, dtype=torch.float64) if number else value)
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

    def gathered(self, tensors: Tensors) -> Tensors:
        """theta or G_j as the rule takes them best."""
        return tensors

    def pack(self, tensors: Tensors) -> Any:
        """The same in what `step_packed` and `pullback_packed` take: fewer tensors, if the rule knows how."""
        return tensors

    def unpack(self, packed: Any) -> Tensors:
        """What was packed, by name."""
        tensors: Tensors = packed
        return tensors

    def pack_hyper(self, hyper: Hyper) -> Hyper:
        """Hyperparameters likewise."""
        return hyper

    def initial_state_packed(self, theta: Any, hyper: Hyper) -> State:
        """`initial_state` of packed arguments."""
        return self.initial_state(theta, hyper)

    def step_packed(self, theta: Any, state: State, G: Any, hyper: Hyper) -> tuple[Any, State]:
        """`step` of packed arguments."""
        return self.step(theta, state, G, hyper)

    def pullback_packed(
        self, theta: Any, state: State, G: Any, hyper: Hyper, B: Any, S: State, wanted: Collection[str]
    ) -> tuple[Any, Any, State, dict[str, Tensors]]:
        """`pullback` of packed arguments: (V, B, S, A), V and B packed."""
        return self.pullback(theta, state, G, hyper, B, S, wanted)

    def split_state(self, state: State) -> State:
        """A state, or the adjoint of one, as `{slot: {tensor name: tensor}}`."""
        return state

    def zero_adjoint(self, state: State) -> State:
        """S_J = 0 for every differentiable slot of `state`."""
        return {
            slot: {k: torch.zeros_like(v) for k, v in held.items()} for slot, held in state.items() if slot != "step"
        }


class TensorwiseOptimizer(Optimizer):
    """A rule that treats every tensor of theta alone.

    A subclass says which slots it keeps and writes two functions of single tensors:
    `_step(theta, s, G, h, t) -> (theta', s')` and
    `_pullback(theta, s, G, h, t, B, S) -> (V, B, S, A)`, with t the number of this step
    counted from 1 and A a dict of functions, so that only what is asked for is computed.
    """

    def slots(self) -> tuple[str, ...]:
        """Names of the state tensors kept for each tensor of theta."""
        return ()

    def _initial(self, slot: str, theta: Tensor, h: dict[str, Tensor]) -> Tensor | None:
        """s_0 of one slot, or None where this tensor has no such slot."""
        return torch.zeros_like(theta)

    @abstractmethod
    def _step(
        self, theta: Tensor, s: Tensors, G: Tensor, h: dict[str, Tensor], t: Tensor
    ) -> tuple[Tensor, Tensors]: ...

    @abstractmethod
    def _pullback(
        self, theta: Tensor, s: Tensors, G: Tensor, h: dict[str, Tensor], t: Tensor, B: Tensor, S: Tensors
    ) -> tuple[Tensor, Tensor, Tensors, Thunks]: ...

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        state: State = {"step": torch.zeros((), dtype=torch.float64)}
        for slot in self.slots():
            first = {k: self._initial(slot, v, hyper[k]) for k, v in theta.items()}
            state[slot] = {k: v for k, v in first.items() if v is not None}
        return state

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        t = state["step"] + 1
        new_theta: Tensors = {}
        new_state: State = {"step": t} | {slot: {} for slot in self.slots()}
        for k, theta_k in theta.items():
            new, s = self._step(lifted(theta_k), self._held(state, k, theta_k), lifted(G[k]), hyper[k], t)
            new_theta[k] = new.reshape(theta_k.shape)
            for slot, value in s.items():
                new_state[slot][k] = value.reshape(state[slot][k].shape)
        return new_theta, new_state

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        t = state["step"] + 1
        pulled = Pulled({}, {}, {slot: {} for slot in self.slots()}, {})
        for k, theta_k in theta.items():
            s, S_k = self._held(state, k, theta_k), self._held(S, k, theta_k)
            V, B_k, S_k, thunks = self._pullback(lifted(theta_k), s, lifted(G[k]), hyper[k], t, lifted(B[k]), S_k)
            pulled.V[k], pulled.B[k] = V.reshape(theta_k.shape), B_k.reshape(theta_k.shape)
            for slot, value in S_k.items():
                pulled.S[slot][k] = value.reshape(state[slot][k].shape)
            pulled.A[k] = {name: reduce_like(thunks[name](), hyper[k][name]) for name in wanted if name in thunks}
        return pulled

    def _held(self, state: State, k: str, theta: Tensor) -> Tensors:
        """The slots of one tensor, lifted where it is. Plain numbers, in float64, stay numbers."""
        held = {slot: state[slot][k] for slot in self.slots() if k in state[slot]}
        return {slot: lifted(v) if theta.ndim == 0 and v.dtype == theta.dtype else v for slot, v in held.items()}


class ElementwiseOptimizer(TensorwiseOptimizer):
    """A rule that treats every element alone; its Jacobians are diagonal.

    Written as a `TensorwiseOptimizer` is. In return, `jacobians` shows every derivative.
    """

    def jacobians(
        self, theta: Tensors, state: State | None = None, G: Tensors | None = None, hyper: Hyper | None = None
    ) -> dict[str, dict[str, Tensors]]:
        """The diagonal Jacobians of one step, for inspection.

        `jacobians(...)[output][input][name]` is d output / d input, elementwise: the
        paper's O_j is `["theta"]["G"]`. Outputs are theta and the state slots; inputs are
        G, theta, the slots and every hyperparameter.

        Args:
            theta: `{name: tensor}`.
            state: s_j; the initial state by default.
            G: inner gradient, shaped like theta; zero by default.
            hyper: `{name: {hyperparameter: value}}`; the values given at construction by default.

        Raises:
            ArgumentError: an argument of another form.

        Cost: one pullback for each output.

        >>> import torch, gimli_core as gimli
        >>> adam = gimli.optimizers.Adam(lr=0.5, eps=0.25)
        >>> adam.jacobians({"w": torch.zeros(1)})["theta"]["G"]["w"]   # -lr / eps at G = 0
        tensor([-2.])
        """
        self._check_inspected(theta, state, G, hyper)
        if hyper is None:
            hyper = {
                k: {n: torch.as_tensor(v, dtype=torch.float64) for n, v in self.hyperparameters().items()}
                for k in theta
            }
        # In float64, as scalars are in a step: beta2 = 0.999 is 1 in bfloat16.
        dtypes = {k: v.dtype for k, v in theta.items()}
        theta = {k: v.double() for k, v in theta.items()}
        # Spread every hyperparameter over the elements, so that nothing is summed away.
        hyper = {
            k: {n: torch.as_tensor(h).to(theta_k).expand_as(theta_k) for n, h in hyper[k].items()}
            for k, theta_k in theta.items()
        }
        state = self.initial_state(theta, hyper) if state is None else state
        state = {"step": state["step"]} | {
            slot: {k: v.double().expand_as(theta[k]) for k, v in state[slot].items()} for slot in self.slots()
        }
        G = {k: torch.zeros_like(v) if G is None else G[k].double() for k, v in theta.items()}
        result = {}
        for output in ("theta", *self.slots()):
            B = {k: torch.full_like(v, float(output == "theta")) for k, v in theta.items()}
            S = {
                slot: {k: torch.full_like(v, float(output == slot)) for k, v in theta.items()} for slot in self.slots()
            }
            pulled = self.pullback(theta, state, G, hyper, B, S, self.continuous())
            by_input: dict[str, Tensors] = {"G": pulled.V, "theta": pulled.B, **pulled.S}
            for name in self.continuous():
                by_input[name] = {k: A[name] for k, A in pulled.A.items() if name in A}
            result[output] = {name: {k: d.to(dtypes[k]) for k, d in held.items()} for name, held in by_input.items()}
        return result

    def _check_inspected(self, theta: Any, state: Any, G: Any, hyper: Any) -> None:
        """Raise unless the arguments of `jacobians` fit together."""
        _check_tensors("theta", theta, theta)
        if G is not None:
            _check_tensors("G", G, theta)
        if state is not None:
            if not isinstance(state, Mapping) or set(state) != {"step", *self.slots()}:
                expected = f"a dict with the keys {listing(('step', *self.slots()))}"
                raise ArgumentError(explain("state", expected, repr(state), "A result's state_J has this form."))
            for slot in self.slots():
                _check_tensors(f"state[{slot!r}]", state[slot], theta)
        names = self.continuous()
        if hyper is None:
            several = [n for n, v in self.hyperparameters().items() if not isinstance(v, (int, float, Tensor))]
            if several:
                do = "Give hyper={name: {hyperparameter: value}}."
                raise ArgumentError(explain("hyper", "the values of one step", f"a dict for {listing(several)}", do))
        elif not isinstance(hyper, Mapping) or not all(
            isinstance(hyper.get(k), Mapping) and set(hyper[k]) == set(names) for k in theta
        ):
            expected = f"{{name: {{hyperparameter: value}}}} with {listing(names)} for each name of theta"
            raise ArgumentError(explain("hyper", expected, repr(hyper), "Add what is missing."))


def _check_tensors(argument: str, held: Any, theta: Any) -> None:
    """Raise unless `held` is a dict of floating-point tensors with theta's names and shapes."""
    sound = isinstance(held, Mapping) and isinstance(theta, Mapping) and set(held) == set(theta)
    if not sound or not all(isinstance(v, Tensor) and v.is_floating_point() for v in held.values()):
        came = f"a dict with {', '.join(map(repr, held))}" if isinstance(held, Mapping) else type(held).__name__
        expected = "a dict {name: floating-point tensor} with the names of theta"
        raise ArgumentError(explain(argument, expected, came, "Key it as theta is."))
    for k, v in held.items():
        if v.shape != theta[k].shape:
            expected = f"shape {list(theta[k].shape)}, as theta[{k!r}] has"
            raise ArgumentError(explain(f"{argument}[{k!r}]", expected, str(list(v.shape)), "Expand it."))


def lifted(x: Tensor) -> Tensor:
    """A 0-dimensional tensor as a vector of one element, which keeps its dtype beside float64 hyperparameters."""
    return x.reshape(1) if x.ndim == 0 else x


def reduce_like(product: Tensor, value: Tensor) -> Tensor:
    """Sum an elementwise adjoint to the shape of the hyperparameter it belongs to.

    A small one in rows, however it lies: so it lies in the one vector of a fused rule, and another order changes the
    last bits.
    """
    if product.shape == value.shape:
        return product
    if product.numel() <= SMALL:
        product = product.contiguous()
    return product.sum(dtype=torch.promote_types(product.dtype, torch.float32))
