"""From what a run has computed to what the user gets: the one place that makes a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from gimli_core.arguments.form import Form
from gimli_core.arguments.inputs import Inputs
from gimli_core.meta_parameters.hyperparameters import Hyperparameters
from gimli_core.notation import Tensors
from gimli_core.record import Ends, Outcome
from gimli_core.results import MetaGradient, Trajectory
from gimli_core.transforms.nested import nested
from gimli_core.transforms.proximal import into_start
from gimli_core.trees import mapped, zipped

__all__ = [
    "contracted",
    "estimated",
    "finished",
    "losses_of",
    "of_state_dict",
    "outcome_of",
    "reduced",
    "stacked",
    "trajectory",
    "weighted",
]

ROWS = ("A_opt", "A_loss", "B_0", "S_0")  # of a result, what each outer loss has its own of


def weighted(weights: tuple[float | None, ...], val_losses: dict[int, Tensor]) -> Tensor:
    """Σ_j w_j L_val(theta_j), of each task if there are any, and of each outer loss.

    A scalar, or [T] or [k], or [T, k]; so is each L_val.
    """
    terms = [w * val_losses[j] for j, w in enumerate(weights) if w is not None]
    return terms[0] if len(terms) == 1 else torch.stack(terms).sum(0)


def reduced(form: Form, of_each: Tensor) -> Tensor:
    """One number, of all tasks if there are any; of k outer losses [k]."""
    return of_each if form.tasks is None else of_each.sum(0) * form.scale


def outcome_of(
    inputs: Inputs,
    ends: Ends,
    train_losses: list[Tensor],
    val_losses: dict[int, Tensor],
    buffers_J: Tensors,
    A_opt: list[Tensor],
    A_loss: Tensors,
) -> Outcome:
    """The outcome of a run from what it ended with, in the form that it ran in. Adds to A_opt what s_0 adds.

    Losses are scalars, or [T] or [k]; A has the shapes of phi.
    """
    form, hyper = inputs.form, inputs.values.hyper
    if not form.warm:  # s_0 = s_0(phi_opt)
        started = form.optimizer.initial_state_pullback(ends.S, hyper.at(0), form.wanted)
        hyper.accumulate(A_opt, 0, started)
    return Outcome(*losses_of(inputs, train_losses, val_losses), form.back(ends), buffers_J, form.total(A_opt), A_loss)


def losses_of(
    inputs: Inputs, train_losses: list[Tensor], val_losses: dict[int, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(L, L of each task, every ell_j, every L_val(theta_j)).

    A scalar, [T] or none, [J] and [J + 1], with T and k behind.
    """
    of_each = weighted(inputs.values.weights, val_losses)
    tasks = () if inputs.form.tasks is None else (inputs.form.tasks,)
    every = torch.stack(train_losses) if train_losses else of_each.new_empty((0, *tasks))
    validated = of_each.new_full((inputs.form.steps + 1, *of_each.shape), float("nan"))
    for j, L in val_losses.items():
        validated[j] = L
    return reduced(inputs.form, of_each), of_each, every, validated


def trajectory(form: Form, frozen: Tensors, outcome: Outcome) -> Trajectory:
    """Where the inner loop went."""
    theta_J, s_J = outcome.ends.theta_J, outcome.ends.s_J
    return Trajectory(
        val_loss=outcome.val_loss,
        theta_J={**frozen, **theta_J} if frozen else theta_J,
        state_J=s_J,
        buffers_J=outcome.buffers_J,
        train_losses=outcome.train_losses,
        val_losses=outcome.val_losses,
        task_val_losses=None if form.tasks is None else outcome.of_each,
        train_aux=outcome.aux[0],
        val_aux=outcome.aux[1],
        approximation=form.approximation,
    )


def finished(form: Form, frozen: Tensors, hyper: Hyperparameters, outcome: Outcome) -> MetaGradient:
    """The result (line 16): A_opt and A_loss in the structures that phi_opt and phi_loss came in, the centre of a
    proximal loss in B_0.
    """
    A_loss, B_0 = into_start(outcome.A_loss, outcome.ends.B, curvature=form.curvature)
    return MetaGradient(
        **vars(trajectory(form, frozen, outcome)),
        A_opt=hyper.join(outcome.A_opt),
        A_loss=nested(A_loss, form.nested),
        B_0=B_0,
        S_0=outcome.ends.S,
        recurrence=form.recurrence,
    )


def estimated(
    trajectory: Trajectory, approximation: str, *, B_0: Tensors | None = None, A: Tensors | None = None
) -> MetaGradient:
    """A result of a run that was not swept. `approximation` says what stands in the place of the gradient; B_0 and A
    have the shapes of theta and phi.
    """
    parts = {f.name: getattr(trajectory, f.name) for f in fields(Trajectory)} | {"approximation": approximation}
    return MetaGradient(**parts, A_opt={}, A_loss={}, B_0=B_0 or {}, S_0={}, A=A or {})


def of_state_dict(fields: Mapping[str, Any]) -> MetaGradient:
    """The result of which `fields` is the `state_dict()`, such as another process sends."""
    return MetaGradient(**fields)


def stacked(results: list[MetaGradient]) -> MetaGradient:
    """The results of k outer losses, which share all but their gradients, as one with a leading k."""
    return replace(
        results[0],
        **{name: zipped(lambda *of_each: torch.stack(of_each), *[vars(r)[name] for r in results]) for name in ROWS},
    )


def contracted(result: MetaGradient, along: Tensor) -> MetaGradient:
    """The gradient of `along · L` from those of each of k outer losses. `along` is [k]."""

    def summed(rows: Tensor) -> Tensor:
        of_all: Tensor = torch.tensordot(along.to(rows), rows, 1)
        return of_all

    return replace(result, **{name: mapped(summed, vars(result)[name]) for name in ROWS})
