"""Rules that treat every tensor alone, or every element alone: a step and a pullback of single tensors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from gimli_core.notation import Hyper, State, Tensors, Thunks, counts
from gimli_core.optimizers.counting import next_step
from gimli_core.optimizers.interface import Optimizer, Pulled
from gimli_core.optimizers.jacobians import diagonal_jacobians

__all__ = ["SMALL", "ElementwiseOptimizer", "TensorwiseOptimizer", "by_element_alone", "lifted", "reduce_like"]

SMALL = 2**17  # elements; up to there an operation costs less than calling it


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
        state: State = {"step": torch.zeros((), dtype=torch.float64, device="cpu")}
        for slot in self.slots():
            first = {k: self._initial(slot, v, hyper[k]) for k, v in theta.items()}
            state[slot] = {k: v for k, v in first.items() if v is not None}
        return state

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        new_theta: Tensors = {}
        steps, slots = next_step(state["step"]), self.slots()
        new_state: State = {**counts(state), "step": steps} | {slot: {} for slot in slots}
        for k, theta_k in theta.items():
            t, s_k = this_step(state, k, steps), self.state_of_tensor(slots, state, k, theta_k)
            new, s = self._step(lifted(theta_k), s_k, lifted(G[k]), hyper[k], t)
            new_theta[k] = shaped(new, theta_k)
            for slot, value in s.items():
                new_state[slot][k] = shaped(value, state[slot][k])
        return new_theta, new_state

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        steps, slots = next_step(state["step"]), self.slots()
        pulled = Pulled({}, {}, {slot: {} for slot in slots}, {})
        for k, theta_k in theta.items():
            s, S_k = (self.state_of_tensor(slots, of, k, theta_k) for of in (state, S))
            t, G_k, B_k = this_step(state, k, steps), lifted(G[k]), lifted(B[k])
            V, B_k, S_k, thunks = self._pullback(lifted(theta_k), s, G_k, hyper[k], t, B_k, S_k)
            pulled.V[k], pulled.B[k] = shaped(V, theta_k), shaped(B_k, theta_k)
            for slot, value in S_k.items():
                pulled.S[slot][k] = shaped(value, state[slot][k])
            pulled.A[k] = {name: reduce_like(thunks[name](), hyper[k][name]) for name in wanted if name in thunks}
        return pulled

    def state_of_tensor(self, slots: Sequence[str], state: State, k: str, theta: Tensor) -> Tensors:
        """The slots of one tensor, lifted where it is. Plain numbers, in float64, stay numbers.

        A slot that no tensor has (a file keeps tensors only) is as good as an empty one.
        """
        s_k = {slot: state[slot][k] for slot in slots if k in state.get(slot, ())}
        if theta.ndim:
            return s_k
        return {slot: lifted(v) if v.dtype == theta.dtype else v for slot, v in s_k.items()}


class ElementwiseOptimizer(TensorwiseOptimizer):
    """A rule that treats every element alone; its Jacobians are diagonal.

    Written as a `TensorwiseOptimizer` is. In return, `jacobians` shows every derivative, and small tensors are stepped
    as one vector, unless a subclass has a `step`, a `pullback` or a start of its own, which sees them by name.
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
        return diagonal_jacobians(self, self.slots(), theta, state, G, hyper)


_WHOLE = ("initial_state", "step", "pullback", "step_used", "pullback_used")


def by_element_alone(rule: Optimizer) -> bool:
    """Whether `_step` and `_pullback` of an elementwise rule are all that there is to it. A subclass with a `step`, a
    pullback or a start of its own may look at names, shapes or all tensors at once."""
    of_base = (getattr(type(rule), name) is getattr(ElementwiseOptimizer, name) for name in _WHOLE)
    return isinstance(rule, ElementwiseOptimizer) and all(of_base)


def this_step(state: State, k: str, steps: Tensor) -> Tensor:
    """t, the number of this step for one tensor, counted from 1: of `steps` those that it has missed do not count."""
    skipped = state.get("skipped", {})
    t: Tensor = steps - skipped[k] if k in skipped else steps
    return t


def lifted(x: Tensor) -> Tensor:
    """A 0-dimensional tensor as a vector of one element, which keeps its dtype beside float64 hyperparameters."""
    return x.reshape(1) if x.ndim == 0 else x


def shaped(x: Tensor, like: Tensor) -> Tensor:
    """x in the shape of another tensor, where that was lifted."""
    return x if x.ndim == like.ndim else x.reshape(like.shape)


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
