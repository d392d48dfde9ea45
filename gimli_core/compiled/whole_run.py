"""All of Algorithm 1 for a short inner loop, compiled as one function, from the arguments to the result's tensors.

Worth it where a step is so small that calling it costs more than computing it. Cost: 9F a step; memory as
`RetainGraphs`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gimli_core.arguments.inputs import Inputs
from gimli_core.arguments.outer_losses import outer_losses
from gimli_core.compiled.compiler.compiled_function import Kernel
from gimli_core.compiled.compiler.copies import Part, Uncopied, every_time, once
from gimli_core.compiled.compiler.trial import Uncompiled
from gimli_core.compiled.pure_steps import (
    Along,
    Fixed,
    Validated,
    added,
    linearised,
    lines_11_to_14,
    soundness,
    validate,
)
from gimli_core.compiled.steps import bound, fixed_of, options_of
from gimli_core.notation import Hyper, State, Tensors, slots
from gimli_core.optimizers.seen import seeing
from gimli_core.record import Ends
from gimli_core.transforms.interface import Transform

__all__ = ["CompiledWhole", "RunTensors", "WholeOutcome", "course_of", "run_at_once", "tensors_of_run"]


class RunTensors(NamedTuple):
    """The tensors of a run; the last two are what may have another form in another call."""

    theta_0: Tensors  # by name, as it was given, before any transform
    state_0: State  # empty where the optimizer's own start is meant
    phi_loss: Tensors
    frozen: Tensors
    hypers: list[Hyper]  # in the form that is run; one alone if it holds for every step
    weights: Tensor
    batches: list[Any]
    val_batches: list[Any]  # where L_val has a weight


class Course(NamedTuple):
    """What a whole run is compiled for, besides what is `Fixed`."""

    weighted: tuple[bool, ...]  # where L_val has a weight, from theta_0 to theta_J
    transforms: tuple[Transform, ...]
    tasks: int | None
    scale: float
    warm: bool  # whether s_0 was given


class WholeOutcome(NamedTuple):
    """What a run has computed, in the form that the arguments came in; of A_opt its increments."""

    val_loss: Tensor
    of_each: Tensor
    train_losses: Tensor
    val_losses: Tensor
    ends: Ends
    A_opt: list[dict[str, Tensors]]  # of step J-1 first; or their sum alone
    A_start: dict[str, Tensors]  # what s_0 adds
    A_loss: Tensors


class CompiledWhole:
    """Lines 4-14 of one problem as one compiled function. Raises Uncompiled, with the reason."""

    def __init__(self, inputs: Inputs) -> None:
        if outer_losses(inputs) is not None:
            raise Uncompiled("val_loss returns a vector, of which each number has a sweep of its own")
        tensors, environment, options = tensors_of_run(inputs), inputs.environment, options_of(inputs)

        def kernel(part: Callable[[str, Part], Part]) -> Kernel:
            function = bound(run_at_once, fixed_of(inputs), course_of(inputs), part)
            return Kernel("the whole run", function, environment, (tensors,), tensors[-2:], **options)

        try:
            self._kernel = kernel(once)
        except Uncopied:
            self._kernel = kernel(every_time)
        self.seconds = self._kernel.seconds
        snapshot = environment.capture()
        self._kernel(tensors[-2:], tensors)
        self._pure = not environment.names and not environment.moved(snapshot)
        environment.restore(snapshot)

    @property
    def pure(self) -> bool:
        """Whether a run surely changes nothing but what it returns: no random numbers, no buffers, no other graph."""
        return self._pure and self._kernel.graphs == 1

    def look(self, inputs: Inputs) -> None:
        """Can a run be done with what was compiled, or compiled again? Raises Uncompiled."""
        tensors = tensors_of_run(inputs)
        self._kernel.look(tensors[-2:], tensors)

    def __call__(self, tensors: RunTensors) -> WholeOutcome | None:
        """The outcome; None where it cannot run compiled, or something is not finite: an eager run names what broke."""
        self._kernel.begin()
        return _sound(self._kernel.compiled(tensors[-2:], tensors))

    def as_it_is(self, tensors: RunTensors) -> WholeOutcome | None:
        """The same, None also where something that the losses read is no longer as it was when they were compiled."""
        return _sound(self._kernel.as_it_is(tensors[-2:], tensors)) if self.pure else None


def _sound(checked: tuple[WholeOutcome, Tensor] | None) -> WholeOutcome | None:
    return checked[0] if checked is not None and checked[1].item() else None


def course_of(inputs: Inputs) -> Course:
    """What `run_at_once` is compiled for."""
    form = inputs.form
    return Course(form.weighted, form.transforms, form.tasks, form.scale, form.warm)


def tensors_of_run(inputs: Inputs) -> RunTensors:
    """The tensors of a run."""
    form, values = inputs.form, inputs.values
    start = {} if values.cold else pytree.tree_map(torch.Tensor.contiguous, values.state_0)
    return RunTensors(
        theta_0={k: v.contiguous() for k, v in values.trained.items()},
        state_0=start,
        phi_loss=values.phi_loss,
        frozen=values.frozen,
        hypers=[values.hyper.at(j) for j in range(1 if values.hyper.constant else form.steps)],
        weights=torch.tensor([0.0 if w is None else w for w in values.weights], dtype=torch.float64),
        batches=[values.batch(j) for j in range(form.steps)],
        val_batches=[values.val_batch(j) for j, weighted in enumerate(form.weighted) if weighted],
    )


def run_at_once(
    fixed: Fixed, course: Course, part: Callable[[str, Part], Part], tensors: RunTensors
) -> tuple[WholeOutcome, Tensor]:
    """(lines 4-14, 1 if what came, the losses, theta_J and B_0 are finite and else 0).

    The transforms are made in here, and taken back. `weights` [J + 1] are w_0 … w_J, used where `weighted`.
    """
    theta_0, state_0, phi_loss, frozen, hypers, weights, batches, val_batches = tensors
    optimizer, tasks, J = fixed.optimizer, course.tasks, len(batches)
    theta = theta_0
    for transform in course.transforms:
        theta = transform.theta(theta)
    s = state_0 or optimizer.initial_state(theta, hypers[0])
    kept, train_losses = [], []
    validated: dict[int, Validated] = {}

    def forwards(theta: Tensors, s: State, batch: Any, hyper: Hyper = hypers[0]) -> tuple[Any, Any]:
        """Lines 5 and 6, and what lines 11-14 are then, a function of B and S."""
        G, pull, loss = linearised(fixed, theta, phi_loss, frozen, batch)
        hyper = seeing(optimizer, hyper, loss)

        def backwards(along: Along) -> Any:
            return lines_11_to_14(fixed, theta, s, hyper, G, loss, pull, along)

        return (*optimizer.step(theta, s, G, hyper), loss), backwards

    step = part("step", forwards)
    value = part("value", lambda theta, batch: (validate(fixed, theta, phi_loss, frozen, batch), None))
    for j in range(J + 1):
        if course.weighted[j]:
            validated[j], _ = value(theta, val_batches[len(validated)])
        if j < J:
            (theta, s, loss), backwards = step(theta, s, batches[j], *hypers[j : j + 1] * (len(hypers) > 1))
            kept.append(backwards)
            train_losses.append(loss)
    theta_J, s_J = theta, s
    B = {k: torch.zeros_like(v) for k, v in theta.items()}
    A_loss = {k: torch.zeros_like(v, dtype=torch.promote_types(v.dtype, torch.float32)) for k, v in phi_loss.items()}
    S, A_opt = optimizer.zero_adjoint(s), []
    for j in range(J, -1, -1):
        if j < J:
            B, S, A_j, mixed = kept[j](Along(B, S))
            A_opt.append(A_j)
            A_loss = {k: v + mixed[k] for k, v in A_loss.items()}
        if course.weighted[j]:
            w = weights[j] if tasks is None else weights[j] * course.scale
            B = pytree.tree_map(lambda v, g, w=w: v + w.to(g.dtype) * g, B, validated[j].theta)
            A_loss = {k: v + w.to(v.dtype) * validated[j].phi_loss[k] for k, v in A_loss.items()}
    if len(hypers) == 1 and A_opt:  # no hyperparameter has a value of its own at each step
        A_opt = [{k: {name: added([A_j[k][name] for A_j in A_opt]) for name in A} for k, A in A_opt[0].items()}]
    of_each = torch.stack([weights[j].to(L.loss.dtype) * L.loss for j, L in validated.items()]).sum(0)
    nan = torch.full_like(of_each, float("nan"))
    ends = Ends(theta_J, s_J, B, S)
    for transform in reversed(course.transforms):
        ends = transform.back(ends)
    outcome = WholeOutcome(
        val_loss=of_each if tasks is None else of_each.sum() * course.scale,
        of_each=of_each,
        train_losses=torch.stack(train_losses),
        val_losses=torch.stack([validated[j].loss if j in validated else nan for j in range(J + 1)]),
        ends=ends,
        A_opt=A_opt,
        A_start={} if course.warm or not slots(S) else optimizer.initial_state_pullback(S, hypers[0], fixed.wanted),
        A_loss=A_loss,
    )
    losses = train_losses, [L.loss for L in validated.values()]
    sound = soundness((theta_0, frozen, phi_loss, losses, theta_J, B))
    return outcome, torch.isfinite(sound).to(torch.float32)
