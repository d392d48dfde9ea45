"""The inputs of a call that is like an earlier one, but for what its tensors hold.

An outer loop calls with the same arguments over and over: only theta_0, phi_loss and the batches are new. Where the
tensors are small, working out everything anew takes a tenth of the time of a compiled run. What is taken over here
depends on the form of the arguments alone; the tensors are looked at as `prepare` looks at them, and none is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.arguments.batches import check_batches
from gimli_core.arguments.inputs import Inputs, modules_of
from gimli_core.arguments.phi_loss import check_phi_loss
from gimli_core.arguments.theta import check_theta, laid_out
from gimli_core.compiled.whole_run import CompiledWhole, Given
from gimli_core.environment import Environment
from gimli_core.problem import Problem
from gimli_core.runs.compiled_run import Frame
from gimli_core.transforms.one_vector import Fused
from gimli_core.transforms.tasks import expanded, over_tasks

__all__ = ["form_of", "recalled", "recalled_whole", "remember", "remember_whole"]

TENSORS = ("theta_0", "phi_loss")  # whose values may be others
FREE = ("problem", "train_batches", "val_batch")  # of which a form says nothing
PLAIN = (bool, int, float, str, type(None))
# What is taken over of the inputs.
KEPT = ("optimizer", "warm", "hyper", "steps", "weights", "recurrence", "tasks", "second_order", "first_order", "first")

Form = tuple[Any, ...]


def form_of(arguments: Mapping[str, Any], *more: bool | str) -> Form | None:
    """What two calls must share, for one to take over from the other; None where values matter or are unknown.

    `more`: what the inputs are checked for, and how they are run.

    >>> import torch
    >>> a, b = ({"theta_0": {"w": torch.ones(2)}, "phi_opt": {"lr": lr}, "steps": 3} for lr in (0.1, torch.tensor(0.1)))
    >>> form_of(a) == form_of(a), form_of(a) == form_of({**a, "steps": 4}), form_of(b)
    (True, False, None)
    """
    if torch.is_inference_mode_enabled():
        return None
    form: list[Any] = [(type(x), x) for x in more]
    for name, value in arguments.items():
        if name not in FREE:
            entry = outlines(value) if name in TENSORS and value is not None else plain(value)
            if entry is None:
                return None
            form.append((name, entry))
    return tuple(form)


def outlines(value: Any) -> Form | None:
    """The outlines of a dict of tensors; None for anything else."""
    if type(value) is not dict or not all(type(v) in (Tensor, nn.Parameter) for v in value.values()):
        return None
    return tuple((k, type(v), v.requires_grad, v.shape, v.dtype, v.device, v.layout) for k, v in value.items())


def plain(value: Any) -> Form | None:
    """A number, a string or a dict of them, each with its type, since True is not 1 here; None for anything else."""
    if type(value) is dict:
        entries = [(k, plain(v)) for k, v in value.items()]
        return None if any(entry is None for _, entry in entries) else (dict, *entries)
    return (type(value), value) if type(value) in PLAIN else None


def remember(form: Form | None, inputs: Inputs, problem: Problem) -> None:
    """Keep what a call of the same form can take over, if theta is small and the optimizer holds no tensor."""
    fixed = all(plain(value) for value in problem.optimizer.hyperparameters().values())
    if form is not None and fixed and isinstance(inputs.optimizer, Fused):
        inputs.hyper.theta = {k: v.clone() for k, v in inputs.hyper.theta.items()}  # a caller's may be part of more
        problem.made["form"] = form, {name: getattr(inputs, name) for name in KEPT}


def recalled(form: Form | None, arguments: Mapping[str, Any]) -> Inputs | None:
    """The inputs of a call of the remembered form. Raises what `prepare` raises where tensors are at fault."""
    problem = arguments["problem"]
    known: tuple[Form, dict[str, Any]] | None = problem.made.get("form") if isinstance(problem, Problem) else None
    if known is None or known[0] != form:
        return None
    kept = known[1]
    batch, steps = check_batches(arguments["train_batches"], arguments["steps"])
    if steps != kept["steps"]:
        return None
    optimizer, hyper, tasks = kept["optimizer"], kept["hyper"], kept["tasks"]
    trained, frozen = check_theta(arguments["theta_0"])
    anywhere = next(iter(trained.values()))
    _, phi_loss = check_phi_loss(arguments["phi_loss"], anywhere, hyper.tasks)
    modules = modules_of(problem)
    if tasks is not None:
        problem = over_tasks(problem, tasks, frozenset(frozen) - frozenset(trained), modules)
        trained = expanded(trained, tasks.count)
    theta = optimizer.gathered(trained)
    return Inputs(
        problem=problem,
        theta_0=theta,
        frozen=frozen,
        state_0=optimizer.initial_state(theta, hyper.at(0)),
        phi_loss=phi_loss,
        batch=batch,
        val_batch=arguments["val_batch"],
        environment=Environment(modules, anywhere.device),
        **kept,
    )


def remember_whole(form: Form | None, compiled: CompiledWhole, frame: Frame, given: Given, problem: Problem) -> None:
    """Keep what a compiled run of the same form can take over; only after `remember`, and if it touches nothing."""
    if form is not None and compiled.pure and problem.made.get("form", (None,))[0] == form:
        problem.made["whole"] = form, compiled, frame, (given.hypers, given.weights)


def recalled_whole(form: Form | None, arguments: Mapping[str, Any]) -> tuple[CompiledWhole, Frame, Given] | None:
    """A compiled run of the remembered form. Whether theta_0 and phi_loss are finite is told by the run itself."""
    problem = arguments["problem"]
    known: Any = problem.made.get("whole") if isinstance(problem, Problem) else None
    if known is None or known[0] != form:
        return None
    _, compiled, frame, (hypers, weights) = known
    theta_0, phi_loss, val_batch = arguments["theta_0"], arguments["phi_loss"] or {}, arguments["val_batch"]
    batch, steps = check_batches(arguments["train_batches"], arguments["steps"])
    if steps != frame.steps or len(set(map(id, theta_0.values()))) != len(theta_0):
        return None
    trained, frozen = laid_out(theta_0)
    theta_0 = {k: v.contiguous() for k, v in trained.items()}
    phi_loss = {k: v.detach() for k, v in phi_loss.items()}
    batches = [batch(j) for j in range(steps)]
    return compiled, frame, Given(theta_0, {}, phi_loss, frozen, hypers, weights, batches, val_batch)
