"""All of Algorithm 1 for a short inner loop, compiled as one function, from the arguments to the result's tensors.

Worth it where a step is so small that calling it costs more than computing it; compiling takes longer with every
step (about 20 s for 5 steps of a small network). Cost: 9F a step; memory as `RetainGraphs`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gimli_core.arguments.inputs import Inputs
from gimli_core.compiled.compiler.compiled_function import Kernel
from gimli_core.compiled.pure_steps import Fixed, Packed, linearised, lines_11_to_14, soundness, validate
from gimli_core.compiled.steps import bound, fixed_of, options_of
from gimli_core.notation import Hyper, State, Tensors
from gimli_core.transforms.one_vector import Fused
from gimli_core.transforms.tasks import Tasks, expanded, summed

__all__ = ["CompiledWhole", "Given", "Outcome", "course_of", "given_of", "is_small", "whole"]

# What is compiled whole unasked: few steps, and few numbers in each.
STEPS, NUMBERS = 8, 2**18


def is_small(inputs: Inputs) -> bool:
    """Whether a run is small enough to be compiled whole."""
    packed = pytree.tree_leaves(inputs.optimizer.pack(inputs.theta_0))
    return inputs.steps <= STEPS and sum(v.numel() for v in packed) <= NUMBERS


class Given(NamedTuple):
    """The tensors of a run; the last two are what may have another form in another call."""

    theta_0: Tensors  # as the caller gave them: not packed, and not once a task where the tasks share them
    state_0: State  # empty where the optimizer's own start is meant
    phi_loss: Tensors
    frozen: Tensors
    hypers: list[Hyper]  # packed; one alone if it holds for every step
    weights: Tensor
    batches: list[Any]
    val_batch: Any


class Course(NamedTuple):
    """What a whole run is compiled for, besides what is `Fixed`."""

    validates: tuple[bool, ...]  # where L_val has a weight, from theta_0 to theta_J
    tasks: Tasks | None
    warm: bool  # whether s_0 was given


class Outcome(NamedTuple):
    """The fields of a result that are tensors; of A_opt its increments."""

    val_loss: Tensor
    task_val_losses: Tensor
    train_losses: Tensor
    val_losses: Tensor
    theta_J: Tensors
    state_J: State
    B_0: Tensors
    S_0: State
    A_opt: list[dict[str, Tensors]]  # of step J-1 first; or their sum alone
    A_loss: Tensors


class CompiledWhole:
    """Lines 4-14 of one problem as one compiled function. Raises Uncompiled, with the reason."""

    def __init__(self, inputs: Inputs) -> None:
        given, environment = given_of(inputs), inputs.environment
        function = bound(whole, fixed_of(inputs), course_of(inputs))
        self._kernel = Kernel("the whole run", function, environment, given, given[-2:], **options_of(inputs))
        self.seconds = self._kernel.seconds
        found = environment.capture()
        self._kernel(given[-2:], *given)
        self._pure = not environment.names and not environment.moved(found)
        environment.restore(found)

    @property
    def pure(self) -> bool:
        """Whether a run surely changes nothing but what it returns: no random numbers, no buffers, no other graph."""
        return self._pure and self._kernel.graphs == 1

    def __call__(self, given: Given) -> Outcome | None:
        """The outcome; None where it cannot run compiled, or something is not finite: an eager run names what broke."""
        self._kernel.begin()
        return _sound(self._kernel.compiled(given[-2:], *given))

    def as_it_is(self, given: Given) -> Outcome | None:
        """The same, None also where something that the losses read is no longer as it was when they were compiled."""
        return _sound(self._kernel.as_it_is(given[-2:], *given)) if self.pure else None


def _sound(found: tuple[Outcome, Tensor] | None) -> Outcome | None:
    return found[0] if found is not None and found[1].item() else None


def course_of(inputs: Inputs) -> Course:
    """What `whole` is compiled for."""
    return Course(tuple(w is not None for w in inputs.weights), inputs.tasks, inputs.warm)


def given_of(inputs: Inputs) -> Given:
    """The tensors of a run. What the tasks share is theirs once: the first task's."""
    J, optimizer, tasks = inputs.steps, inputs.optimizer, inputs.tasks
    shared = tasks is not None and not tasks.theta
    return Given(
        theta_0={k: (v[0] if shared else v).contiguous() for k, v in inputs.theta_0.items()},
        state_0={} if isinstance(optimizer, Fused) else pytree.tree_map(torch.Tensor.contiguous, inputs.state_0),
        phi_loss=inputs.phi_loss,
        frozen=inputs.frozen,
        hypers=[optimizer.pack_hyper(inputs.hyper.at(j)) for j in range(1 if inputs.hyper.constant else J)],
        weights=torch.tensor([0.0 if w is None else w for w in inputs.weights], dtype=torch.float64),
        batches=[inputs.batch(j) for j in range(J)],
        val_batch=inputs.val_batch,
    )


def whole(
    fixed: Fixed, course: Course, theta_0: Tensors, state_0: State, phi_loss: Tensors, frozen: Tensors,
    hypers: list[Hyper], weights: Tensor, batches: list[Any], val_batch: Any,
) -> tuple[Outcome, Tensor]:  # fmt: skip
    """(lines 4-14, 1 if what came, the losses, theta_J and B_0 are finite and else 0).

    theta_0 as it was given, not packed. `state_0` is empty where the optimizer's own start is meant. `weights` [J + 1]
    are w_0 … w_J, used where `validates`.
    """
    optimizer, tasks, J = fixed.optimizer, course.tasks, len(batches)
    theta = optimizer.pack(theta_0 if tasks is None or tasks.theta else expanded(theta_0, tasks.count))
    s = state_0 or optimizer.initial_state_packed(theta, hypers[0])
    kept, train_losses, validated = [], [], {}
    for j, batch in enumerate(batches):
        if course.validates[j]:
            validated[j] = validate(fixed, theta, phi_loss, frozen, val_batch)
        hyper = hypers[j if len(hypers) > 1 else 0]
        G, pull, loss = linearised(fixed, theta, phi_loss, frozen, batch)
        kept.append((theta, s, hyper, G, pull))
        train_losses.append(loss)
        theta, s = optimizer.step_packed(theta, s, G, hyper)
    theta_J, s_J = theta, s
    if course.validates[J]:
        validated[J] = validate(fixed, theta, phi_loss, frozen, val_batch)
    B: Packed = pytree.tree_map(torch.zeros_like, theta)
    A_loss = {k: torch.zeros_like(v, dtype=torch.promote_types(v.dtype, torch.float32)) for k, v in phi_loss.items()}
    S, A_opt = optimizer.zero_adjoint(s), []
    for j in range(J, -1, -1):
        if j < J:
            theta, s, hyper, G, pull = kept[j]
            B, S, A_j, mixed = lines_11_to_14(fixed, theta, s, hyper, G, pull, B, S)
            A_opt.append(A_j)
            A_loss = {k: v + mixed[k] for k, v in A_loss.items()}
        if course.validates[j]:
            w = weights[j] if tasks is None else weights[j] * tasks.scale
            B = pytree.tree_map(lambda v, g, w=w: v + w.to(g.dtype) * g, B, validated[j].theta)
            A_loss = {k: v + w.to(v.dtype) * validated[j].phi_loss[k] for k, v in A_loss.items()}
    if len(hypers) == 1 and A_opt:  # no hyperparameter has a value of its own at each step
        A_opt = [{k: {name: added([A_j[k][name] for A_j in A_opt]) for name in A} for k, A in A_opt[0].items()}]
    of_each = torch.stack([weights[j].to(L.loss.dtype) * L.loss for j, L in validated.items()]).sum(0)
    nan = torch.full_like(of_each, float("nan"))
    B_0 = optimizer.unpack(B) if tasks is None or tasks.theta else summed(optimizer.unpack(B))
    S_0 = optimizer.split_state(S)
    outcome = Outcome(
        val_loss=of_each if tasks is None else of_each.sum() * tasks.scale,
        task_val_losses=of_each,
        train_losses=torch.stack(train_losses),
        val_losses=torch.stack([validated[j].loss if j in validated else nan for j in range(J + 1)]),
        theta_J=dict(optimizer.unpack(theta_J).items()),
        state_J=optimizer.split_state(s_J),
        B_0=dict(B_0.items()),
        S_0=S_0 if tasks is None or tasks.state or not course.warm else summed(S_0),
        A_opt=A_opt,
        A_loss=A_loss,
    )
    came = theta_0, frozen, phi_loss
    sound = soundness((came, train_losses, [L.loss for L in validated.values()], theta_J, B))
    return outcome, torch.isfinite(sound).to(torch.float32)


def added(terms: list[Tensor]) -> Tensor:
    """The sum of J increments, in float32 at least, the last step's first."""
    total = terms[0].to(torch.promote_types(terms[0].dtype, torch.float32))
    for term in terms[1:]:
        total = total + term
    return total
