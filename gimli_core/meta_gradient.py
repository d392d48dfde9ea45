"""Algorithm 1 whole: the public entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from gimli_core.arguments.approximation import Approximation
from gimli_core.arguments.call import Call
from gimli_core.arguments.surroundings import check_watching
from gimli_core.arguments.until import Until
from gimli_core.memory.schedules.actions import Schedule
from gimli_core.notation import State
from gimli_core.problem import Problem
from gimli_core.processes.mesh import tells
from gimli_core.record import Event
from gimli_core.results import MetaGradient
from gimli_core.runs.make_run import make_run
from gimli_core.runs.run import drain
from gimli_core.runs.wants import Wants
from gimli_core.transforms.tasks import Tasks
from gimli_core.watchers.progress import Progress

__all__ = ["meta_gradient"]


def meta_gradient(
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
) -> MetaGradient:
    """The exact meta-gradient of the validation loss after J inner steps (Algorithm 1, lines 2-16).

        theta_{j+1}, s_{j+1} = opt(theta_j, s_j, phi_opt, grad ell_j(theta_j, phi_loss)),   j = 0 … J-1
        L = Σ_j w_j L_val(theta_j, phi_loss),   by default L_val(theta_J, phi_loss)

    Args:
        problem: the two losses and the optimizer.
        theta_0: `{name: floating tensor}`, for a module `dict(module.named_parameters())`. An
            `nn.Parameter` that does not require grad is held constant.
        train_batches: a sequence with one batch a step, or a function `j -> batch`; a batch may be
            `gimli.MicroBatches([…])`, parts of which one is held in memory at a time.
        val_batch: what `val_loss` is called with, or a function of j (def, lambda, a method or partial) for theta_j.
        steps: J; by default the length of `train_batches`. 0 gives the plain gradient.
        phi_opt: hyperparameters that are meta-parameters: `{"lr": value, …}`. A value is a number or
            tensor for all, `[J]` one a step, `{name: …}` one a tensor or (shaped like it) one an element,
            each also with a leading J; with optimizer groups `[groups]` or `{group: …}`. What is learned may
            leave the range that the rule's constructor asks for, a rate go below 0 say; a single number outside is told
            of once. Only betas and eps_root, which have no meaning outside of theirs, are refused.
        phi_loss: `{name: tensor}`, handed to both losses; with dicts in it `A_loss` has the same structure.
        state_0: a warm optimizer state, in the form of `result.state_J`; a cold start by default.
        val_weights: w_j, J numbers for theta_1 … theta_J or J + 1 from theta_0 on.
        memory: a schedule of `gimli.memory`; by default `RetainGraphs(compact=False)`, the fastest, which leaves memory
            that it has freed to the next call (up to 2 GiB, on glibc). A run with a schedule gives that back first.
        approximation: what to leave out on purpose, for comparison: `gimli.FirstOrder()`, `gimli.Truncated(k)`,
            `gimli.ThetaOnly()`, joined by `&`. The result names it. None is exact.
        second_order: the means of the products with second derivatives in lines 13 and 14. They agree to rounding.
            "reverse_over_reverse" keeps the graph of G_j and goes back through it; "forward_over_reverse" and
            "reverse_over_forward" keep theta_j, s_j and G_j alone and take 3F more. Where the loss has an
            operation without the formula that one needs, another that works takes its place, and a line
            in the log says why. "auto" is the first of the three that works; with check=False, the first.
        check: test requirements I-III when a problem is first met with these shapes (17F, once).
        until: `gimli.Until(grad_norm=…, loss_change=…)` or a function `(j, loss, theta, G) -> bool`: what ends an inner
            loop before its `steps` are over. J is then what was run (of each task: `task_steps`, and nan in
            `train_losses` after its end), a constant of the differentiation. It costs a run forwards, 3F a step.
        resume: a directory in which the run notes every 30 s what it has reached. A run that was killed goes on from
            there when it is called again alike, to the same bits; the files go when it ends.
        watch: called with every `gimli.Event` as it happens: `gimli.AdjointNorms()`, or your own.
        progress: show on standard error how far the run is and how long it still takes, by `gimli.Progress`.
        tasks: T, a meta-batch in one vectorised run, or `gimli.Tasks(T, reduce=…, chunk=…)`. Every tensor of a batch
        and of
            `val_batch` then has a leading dimension T; theta_0, phi and state_0 are shared, but for what
            `gimli.per_task` marks. Losses and gradients are the mean over the tasks, or their sum.
        micro_batches: n cuts every batch in n parts along its leading dimension (behind the tasks'), as
            `gimli.MicroBatches` does, of which the inner loss is the mean.
        mesh: processes that share the call: a `torch.distributed` DeviceMesh with dimensions named "tasks", "data" or
            "shard", or one of these names for all processes. All call alike, and all get the result; what differs, or
            fails on one, is an error on all. "tasks": each runs its share of the tasks, one at a time (or
            `Tasks(chunk=…)`), each with random numbers of its own; the same bits for any number of processes. "data":
            each is given its part of every batch (`gimli.Share` says what a part counts for), and its own random
            numbers; each keeps a part of every stored state. "shard": each holds a part of theta, s, B and S; all
            have the same batches and random numbers; beside it no tasks, `until` or `watch`. "data+shard": both, by
            the same processes.
        compile: True compiles the steps at the first call, once for a problem and its shapes ("steps"), and a short
            run of few operations as a whole ("whole"). "auto" never waits for it: once eager runs of the problem have
            taken half a minute of processor time, a fork compiles beside them, on one processor at low priority, and
            they change over when that is ready and agrees; on Linux and a processor, unless `memory`, `resume` or
            `mesh` is given. False never. Compiled and eager agree to rounding. A notice says why something is not
            compiled: losses that branch on values, return aux, or keep things from one evaluation to the next run
            eager, and so do batches that change what losses read, or each other, as they are asked for. That is looked
            after once for the code of a function of j.

    Returns:
        MetaGradient: `val_loss`, `A_opt`, `A_loss`, `B_0`, `S_0`, `theta_J`, `state_J`,
        `buffers_J`, `train_losses`, `val_losses`, `train_aux`, `val_aux`; `recurrence` and `approximation` say what is
        left out. Buffers of modules are left as they were found. Where `val_loss` returns a vector `[k]` of outer
        losses (queries, metrics), `val_loss` is `[k]` and A_opt, A_loss, B_0 and S_0 have a leading k: a row has the
        bits of a call of its own, and all rows share one unroll and one graph of G_j a step.

    Raises:
        ArgumentError, RequirementError: before any work. NotFiniteError: a loss or gradient that is
        not finite, with its step. ReplayError: a replayed step that returned another loss.
        NotReachedError: an `until` that is never met.

    Cost: see the schedule; `RetainGraphs` takes 9F·J and keeps J graphs. Compiled, a run without `memory` takes 9F·J
    too, and keeps what lies between products out of its graphs; under a schedule a step takes 12F and keeps no graph.
    With k outer losses 3F·J + 6F·k·J in place of 9F·k·J, and k times (theta, s, phi) besides.
    Source: Grefenstette et al. 2019, Algorithm 1.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> result = gimli.meta_gradient(
    ...     problem, {"w": torch.zeros(2)}, lambda j: torch.ones(2), torch.ones(2), steps=2, phi_opt={"lr": 0.5}
    ... )
    >>> result.val_loss, result.A_opt["lr"]    # w_J - 1 = -(1 - lr)^J, so L = (1 - lr)^2J
    (tensor(0.0625), tensor(-0.5000, dtype=torch.float64))
    """
    check_watching(watch, progress)
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
    run = make_run(call, Wants(steps=progress, lines=watch is not None))
    shown = Progress(run.steps) if progress and tells(mesh) else None
    drain(run.forward(), watch, shown)
    drain(run.backward(), watch, shown)
    return run.result()
