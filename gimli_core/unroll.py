"""The meta-gradient as one node of autograd's graph: `loss.backward()` runs the backward sweep."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from gimli_core.arguments.approximation import Approximation
from gimli_core.arguments.call import Call
from gimli_core.arguments.form import Form
from gimli_core.arguments.surroundings import check_watching
from gimli_core.arguments.until import Until
from gimli_core.derivatives.caller_modes import modes_now
from gimli_core.derivatives.once import Once
from gimli_core.errors import ClosedError, closest, listing, unexpected
from gimli_core.memory.schedules.actions import Schedule
from gimli_core.meta_parameters.marks import detached, look_up, tensor_paths, unmarked, unmarked_entries
from gimli_core.notation import State, slots
from gimli_core.problem import Problem
from gimli_core.processes.mesh import tells
from gimli_core.record import Event
from gimli_core.results import MetaGradient
from gimli_core.runs.make_run import make_run
from gimli_core.runs.recorded import Recorded, check_derivatives
from gimli_core.runs.run import Run, drain
from gimli_core.runs.wants import Wants
from gimli_core.transforms.nested import nested
from gimli_core.transforms.proximal import without_centre
from gimli_core.transforms.tasks import Tasks
from gimli_core.trees import tensors
from gimli_core.watchers.progress import Progress

__all__ = ["gradient_at", "tied_tensors", "unroll"]

_SECOND = (
    "unroll: expected one derivative of the validation loss; got a request for a second one. The backward sweep gives "
    "exact first derivatives: say unroll(..., derivatives=2) for second ones, of a loss within another inner loop too."
)

_ANOTHER = (
    "unroll: expected one backward through the k outer losses, since a sweep frees what it used; got a second one, "
    "along another cotangent. Weigh them into one number first, as in (weights * losses).sum().backward(), or ask "
    "gimli.meta_gradient, which returns the gradient of each."
)

WRT = ("phi_opt", "phi_loss", "theta_0", "state_0", "val_weights")


def unroll(
    problem: Problem,
    theta_0: Mapping[str, Tensor],
    train_batches: Sequence[Any] | Callable[[int], Any],
    val_batch: Any,
    *,
    steps: int | None = None,
    phi_opt: Mapping[str, Any] | None = None,
    phi_loss: Mapping[str, Any] | None = None,
    state_0: State | None = None,
    val_weights: Sequence[float] | Tensor | None = None,
    memory: Schedule | None = None,
    approximation: Approximation | None = None,
    second_order: str = "auto",
    tasks: int | Tasks | None = None,
    compile: bool | str = "auto",
    resume: str | Path | None = None,
    check: bool = True,
    until: Until | Callable[..., Any] | None = None,
    micro_batches: int | None = None,
    mesh: DeviceMesh | str | None = None,
    watch: Callable[[Event], None] | None = None,
    progress: bool = False,
    with_trajectory: bool = False,
    derivatives: int = 1,
    wrt: Collection[str] = WRT,
) -> Any:
    """The validation loss after J inner steps, tied into autograd.

    `loss.backward()` runs the backward sweep once and fills the gradients of phi_opt, phi_loss,
    theta_0, state_0 and val_weights, and of whatever computed them (a hypernetwork, `log_lr.exp()`). Where val_loss
    returns k outer losses, so does this: a backward with any cotangent, as of `(weights * losses).sum()`, is one sweep
    (with tasks in chunks, one for each outer loss).

    Args: as in `meta_gradient` (`resume` notes the sweep too; its files go when `backward` ends), and
        with_trajectory: return `(loss, trajectory)`, with a `Trajectory` of detached results.
        derivatives: 2 if the gradient is to be differentiated itself, by `torch.autograd.grad(…, create_graph=True)` or
            by an inner loop around this one, whose loss calls unroll: nested loops, as deep as you like. The sweep is
            then run again with its operations recorded, which are torch's own; every further derivative is exact. At a
            gradient of exactly 0 Adam's second derivatives are nan. Not beside approximation=, resume=, chunks of
            tasks, or val_weights that require grad.
        wrt: the arguments that get gradients, by default all of these. With `wrt=("phi_opt", "phi_loss")` a live
            model's parameters in theta_0 get no `.grad`.

    Returns:
        Tensor: L, a scalar, or `[k]`.

    Raises:
        what `meta_gradient` raises, and
        RequirementError: a loss that reaches a tensor which requires grad and is in none of the arguments: its
            gradient would be missing.
        SecondDerivativeError: when a second derivative is asked for through L (`create_graph=True`
            alone is harmless) without derivatives=2.
        ClosedError: a second backward through k outer losses, along another cotangent than the first.

    Cost: forwards 3F·J, backwards the rest of what `meta_gradient` costs. With
    derivatives=2 a backward with create_graph=True takes 9F·J, and its graph stays as long as the gradient does: the J
    graphs of `RetainGraphs`, and those of line 13's products, about twice as much. Where nobody can go backwards (under
    `torch.no_grad()`, or if nothing requires grad) the run keeps nothing: the memory of one step.
    Source: Grefenstette et al. 2019, Algorithm 1.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> log_lr = torch.tensor(0.5).log().requires_grad_()
    >>> theta_0, batches = {"w": torch.zeros(2)}, [torch.ones(2)] * 2
    >>> L = gimli.unroll(problem, theta_0, batches, torch.ones(2), phi_opt={"lr": log_lr.exp()})
    >>> L.backward()
    >>> log_lr.grad                       # lr · dL/dlr
    tensor(-0.2500)
    """
    check_watching(watch, progress)
    phi_opt, phi_loss, theta_0, state_0, val_weights = arguments = _with_gradients_of(
        wrt, phi_opt, phi_loss, theta_0, state_0, val_weights
    )
    needed = torch.is_grad_enabled() and any(t.requires_grad for t in tensors(arguments))
    call = Call(
        problem,
        theta_0,
        train_batches,
        val_batch,
        steps,
        phi_opt,
        phi_loss,
        state_0,
        val_weights,
        memory,
        approximation,
        second_order,
        tasks,
        compile,
        resume,
        check,
        until,
        micro_batches,
        mesh,
    )
    check_derivatives(derivatives, call)
    again = None
    if derivatives == 2 and needed:
        again = Recorded(call, next(iter(unmarked_entries(theta_0).values())))
    start = any(t.requires_grad for t in tensors(theta_0))
    wants = Wants(
        tied=True, steps=progress, lines=watch is not None, forward_only=not needed, weighed=needed, start=start
    )
    run = make_run(call, wants)
    watching = (watch, Progress(run.steps) if progress and tells(mesh) else None)
    if not needed:
        drain(run.forward(), *watching)
        return (run.val_loss.clone(), run.trajectory()) if with_trajectory else run.val_loss.clone()
    paths, tied = zip(*tied_tensors(call, run.form), strict=True)
    loss: Tensor = _Unrolled.apply(run, watching, paths, again, *tied)
    return (loss, run.trajectory()) if with_trajectory else loss


def _with_gradients_of(wrt: Any, *arguments: Any) -> tuple[Any, ...]:
    """The arguments, detached unless they are named in `wrt`."""
    unknown = [name for name in ([wrt] if isinstance(wrt, str) else wrt) if name not in WRT]
    if unknown or isinstance(wrt, str):
        do = f'For example ("phi_opt", "phi_loss").{closest(unknown[0], WRT) if unknown else ""}'
        raise unexpected("wrt", f"a tuple of {listing(WRT)}", repr(wrt), do)
    return tuple(value if name in wrt else detached(value) for name, value in zip(WRT, arguments, strict=True))


def tied_tensors(call: Call, form: Form) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """(where its gradient stands in a result, tensor) for every tensor of a call that has a gradient. Of any shape."""
    results = {
        "A_opt": call.phi_opt or {},
        "A_loss": nested(without_centre(call.phi_loss), call.nested) or {},
        "B_0": {k: unmarked(call.theta_0)[k] for k in form.trained},
        "S_0": slots(unmarked(call.state_0) or {}),
        "val_losses": _from_the_end(call.val_weights),
    }
    return tensor_paths(results)


class _Unrolled(torch.autograd.Function):
    """Forward: lines 2-9. Backward: lines 10-15, once, times the gradient that arrives."""

    @staticmethod
    def forward(
        ctx: Any, run: Run, watching: Any, paths: Sequence[tuple[Any, ...]], again: Recorded | None, *tied: Tensor
    ) -> Tensor:
        drain(run.forward(), *watching)
        if again is not None and run.val_loss.ndim:
            actual, do = f"a vector of {run.val_loss.numel()}", "Weigh them into one number in val_loss."
            raise unexpected("val_loss", "one number beside derivatives=2", actual, do)
        ctx.again, ctx.steps, ctx.scale = again, run.form.steps, run.form.scale
        ctx.modes = modes_now(tied[0].device)
        ctx.run, ctx.watching, ctx.paths, ctx.gradients = run, watching, paths, None
        ctx.save_for_backward(*tied)
        return run.val_loss.clone()

    @staticmethod
    def backward(ctx: Any, arriving: Tensor) -> tuple[Tensor | None, ...]:
        tied = ctx.saved_tensors  # raises if one was changed in place since the forward unroll
        if torch.is_grad_enabled() and ctx.again is not None:
            with ctx.modes():
                result = ctx.again.run(ctx.steps)
            recorded = [gradient_at(result, ctx.scale, path, t) for path, t in zip(ctx.paths, tied, strict=True)]
            return (None, None, None, None, *((arriving * g).to(t) for g, t in zip(recorded, tied, strict=True)))
        along = arriving.detach().clone() if arriving.ndim else None  # of several outer losses: how much each counts
        if ctx.gradients is None:
            with ctx.modes():  # of the forward pass: steps may be run again
                drain(ctx.run.backward(along), *ctx.watching)
            result, scale = ctx.run.result(), ctx.run.form.scale
            if along is not None:  # val_losses alone are not weighed yet
                result = replace(result, val_losses=result.val_losses @ along)
            places = zip(ctx.paths, tied, strict=True)  # of all that there is, a rate alone may be learned
            ctx.gradients = [gradient_at(result, scale, path, t) if t.requires_grad else None for path, t in places]
            ctx.run, ctx.along = None, along
        elif along is not None and not torch.equal(along, ctx.along):
            raise ClosedError(_ANOTHER)
        factor = arriving if along is None else 1.0
        scaled = [(factor * g).to(t) for g, t in zip(ctx.gradients, tied, strict=True) if g is not None]
        if torch.is_grad_enabled():
            scaled = list(Once.apply(_SECOND, len(scaled), *scaled, *tied, arriving))
        remaining = iter(scaled)
        return (None, None, None, None, *[None if g is None else next(remaining) for g in ctx.gradients])


def _from_the_end(val_weights: Any) -> Any:
    """Weights that are single numbers, keyed by -1 for w_J, -2 …: the first may be w_0 or w_1."""
    plain = val_weights is None or isinstance(val_weights, Tensor)
    return val_weights if plain else dict(enumerate(val_weights, start=-len(val_weights)))


def gradient_at(result: MetaGradient, scale: float, path: tuple[Any, ...], tied: Tensor) -> Tensor:
    """The gradient of the tensor `tied`, which stands at `path` in a result. It has the shape of `tied`."""
    if path[0] == "val_losses" and result.task_val_losses is not None:
        result = replace(result, val_losses=result.val_losses.sum(-1) * scale)
    gradient: Tensor = look_up(vars(result), path)
    gradient = gradient.to_dense() if gradient.is_sparse else gradient  # as most that made an indexed entry take it
    # val_weights may start at theta_1; val_losses always starts at theta_0.
    return gradient[-len(tied) :] if path == ("val_losses",) else gradient
