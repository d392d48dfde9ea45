"""The inner loop alone: lines 4-7, forwards, in the memory of one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gimli_core.arguments.call import Call
from gimli_core.arguments.surroundings import check_watching
from gimli_core.arguments.until import Until
from gimli_core.notation import State, Tensors
from gimli_core.problem import Problem
from gimli_core.processes.mesh import tells
from gimli_core.record import Event
from gimli_core.results import Trajectory
from gimli_core.runs.make_run import make_run
from gimli_core.runs.run import drain
from gimli_core.runs.wants import Wants
from gimli_core.transforms.tasks import Tasks
from gimli_core.watchers.progress import Progress

if TYPE_CHECKING:  # asked for by name alone, and its module is only there where torch has processes
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["adapt"]


def adapt(
    problem: Problem,
    theta_0: Mapping[str, Tensor],
    train_batches: Sequence[Any] | Callable[[int], Any],
    *,
    steps: int | None = None,
    phi_opt: Mapping[str, Any] | None = None,
    phi_loss: Mapping[str, Any] | None = None,
    state_0: State | None = None,
    tasks: int | Tasks | None = None,
    until: Until | Callable[..., Any] | None = None,
    watch: Callable[[Event], None] | None = None,
    progress: bool = False,
    mesh: DeviceMesh | str | None = None,
) -> Trajectory:
    """theta_J after J inner steps, and nothing that a derivative would need: val_loss is not called.

        theta_{j+1}, s_{j+1} = opt(theta_j, s_j, phi_opt, grad ell_j(theta_j, phi_loss)),   j = 0 … J-1

    Args: as in `meta_gradient`; with `gimli.Tasks(T, chunk=…)` the tasks are vectorised, so many at a time.

    Returns:
        Trajectory: `theta_J`, `state_J`, `buffers_J`, `train_losses`, `train_aux`, to the bits of `meta_gradient`'s;
        the losses of L_val are nan. Module buffers are left as they were.

    Raises:
        ArgumentError: before any work. NotFiniteError: a loss or update that is not finite, with its step.
        NotReachedError: an `until` that is never met.

    Cost: 3F a step (6F with `until`), in the memory of one step, whatever J is.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> gimli.adapt(problem, {"w": torch.zeros(2)}, lambda j: torch.ones(2), steps=3).theta_J["w"]
    tensor([0.8750, 0.8750])
    """
    check_watching(watch, progress)
    call = Call(
        _without_val_loss(problem),
        theta_0,
        train_batches,
        None,
        steps,
        phi_opt,
        phi_loss,
        state_0,
        tasks=tasks,
        compile=False,
        check=False,
        until=until,
        mesh=mesh,
    )
    with torch.no_grad():
        run = make_run(call, Wants(steps=progress, lines=watch is not None, forward_only=True))
        drain(run.forward(), watch, Progress(run.steps) if progress and tells(mesh) else None)
        ended = run.trajectory()
    kept = {f.name: getattr(ended, f.name) for f in fields(Trajectory)}
    nan = {name: torch.full_like(kept[name], float("nan")) for name in ("val_loss", "val_losses")}
    return Trajectory(**{**kept, **nan, "task_val_losses": None, "val_aux": None, "approximation": ""})


def _without_val_loss(problem: Problem) -> Problem:
    """The problem with nothing to validate; made once, so that what is found out about it is kept."""
    if not isinstance(problem, Problem):
        return problem  # to be refused with the other arguments
    if "adapt" not in problem.memo.forms:
        problem.memo.forms["adapt"] = Problem(problem.train_loss, _nothing, problem.optimizer, problem.modules)
    return problem.memo.forms["adapt"]


def _nothing(theta: Tensors, phi_loss: Tensors, batch: None) -> Tensor:
    """0, at every theta: a run ends in a validation loss."""
    return torch.stack([v.sum() * 0 for v in theta.values()]).sum()
