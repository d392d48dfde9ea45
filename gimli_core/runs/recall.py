"""The inputs of a call that is like an earlier one, but for what its tensors hold.

An outer loop calls with the same arguments over and over: only theta_0, phi and the batches are new. Where the tensors
are small, working out everything anew takes a tenth of the time of a compiled run. What is taken over here is the
`Form`, which depends on the form of the arguments alone; the tensors are looked at as `prepare` looks at them, and none
of theta_0, phi_loss and the batches is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gimli_core.arguments.approximation import Approximation
from gimli_core.arguments.batches import code_of, code_of_val
from gimli_core.arguments.call import Call
from gimli_core.arguments.form import Form, Values
from gimli_core.arguments.inputs import Inputs, kept_by, modules_of, parts_of
from gimli_core.arguments.phi_loss import check_phi_loss
from gimli_core.arguments.state import check_state
from gimli_core.arguments.theta import check_theta, laid_out
from gimli_core.compiled.whole_run import CompiledWhole, RunTensors
from gimli_core.environment import Environment
from gimli_core.meta_parameters.hyperparameters import Hyperparameters
from gimli_core.notation import State, Tensors
from gimli_core.problem import Problem
from gimli_core.transforms.one_vector import OneVector
from gimli_core.transforms.tasks import Tasks, stacked_state
from gimli_core.trees import nodes

__all__ = [
    "OtherParts",
    "Recalled",
    "as_before",
    "forget",
    "look_of",
    "recalled",
    "recalled_whole",
    "remember",
    "remember_whole",
]

TENSORS = ("theta_0", "phi_loss", "phi_opt", "state_0")  # whose values may be others
FREE = ("problem", "train_batches", "val_batch", "memory", "resume")  # of which a look says next to nothing
LOOKED_AT = tuple(field.name for field in fields(Call) if field.name not in FREE)
VALUES = attrgetter(*LOOKED_AT)
LOOKS = 8  # that are remembered of a problem: calls of several looks may take turns
PLAIN = frozenset((bool, int, float, str, type(None), Tasks))

Look = tuple[Any, ...]


class Recalled(NamedTuple):
    """What the next call of the same look takes over."""

    form: Form
    hyper: Hyperparameters
    weights: tuple[float | None, ...]
    compiled: tuple[CompiledWhole, Tensor] | None = None  # a compiled run that touches nothing, and its weights


def look_of(call: Call, *more: bool | str) -> Look | None:
    """What two calls must share, for one to take over from the other; None where values matter or are unknown.

    `more`: what the inputs are checked for, and how they are run.

    >>> import torch
    >>> theta_0 = {"w": torch.ones(2)}
    >>> a, b = (Call(None, theta_0, [], None, 3, {"lr": torch.tensor(lr)}) for lr in (0.1, 0.2))
    >>> look_of(a) == look_of(b), look_of(Call(None, theta_0, [], None, 3, val_weights=torch.ones(3)))
    (True, None)
    """
    if torch.is_inference_mode_enabled():
        return None
    batches = call.train_batches
    look: list[Any] = [(type(x), x) for x in more] + [code_of(batches), code_of_val(call.val_batch)]
    if call.steps is None and (isinstance(batches, (list, tuple)) or (isinstance(batches, Tensor) and batches.ndim)):
        look.append(len(batches))  # is J: calls of several lengths may take turns
    for name, value in zip(LOOKED_AT, VALUES(call), strict=True):
        entry = (type(value), value) if type(value) in PLAIN else outlines(value) if name in TENSORS else plain(value)
        if entry is None:
            return None
        look.append(entry)
    return tuple(look)


def outlines(value: Any) -> Look | None:
    """The outlines of tensors and numbers in nested dicts; None for anything else."""
    looks: list[Any] = []
    for x in nodes(value):
        if type(x) in (Tensor, nn.Parameter):
            looks.append((type(x), x.requires_grad, x.shape, x.dtype, x.device, x.layout))
        elif type(x) is dict:
            looks.append((dict, *x))
        elif type(x) in (int, float):
            looks.append(float)
        else:
            return None
    return tuple(looks)


def plain(value: Any) -> Look | None:
    """A number, a string, an object of such or a dict or list of them, each with its type, since True is not 1 here."""
    looks: list[Any] = []
    for x in nodes(value):
        if type(x) is dict:
            looks.append((dict, *x))
        elif type(x) in (list, tuple):
            looks.append((type(x), len(x)))
        elif type(x) in PLAIN or isinstance(x, Approximation):
            looks.append((type(x), x))
        else:
            return None
    return tuple(looks)


class OtherParts(Exception):
    """The first batch comes in other parts than the form that was taken over was checked for."""


def forget(look: Look | None, problem: Problem) -> None:
    """A call of this look takes over nothing, until one is remembered again."""
    problem.memo.recalled.pop(look, None)


def as_before(inputs: Inputs) -> bool:
    """Whether the first batch is in the parts that the inputs are made for; for what asks for batches before a run."""
    try:
        inputs.values.batch(0)
    except OtherParts:
        return False
    except Exception:  # the run fails there as well, and says at which step
        return True
    return True


def remember(look: Look | None, inputs: Inputs, problem: Problem) -> None:
    """Keep what a call of the same look can take over, if theta is small and the optimizer holds no tensor."""
    fixed = all(plain(value) for value in problem.optimizer.hyperparameters().values())
    if look is not None and fixed and any(isinstance(t, OneVector) for t in inputs.form.transforms):
        hyper = inputs.values.hyper
        hyper.theta = {k: v.clone() for k, v in hyper.theta.items()}  # a caller's may be part of more
        recalled_calls = problem.memo.recalled
        if look not in recalled_calls and len(recalled_calls) >= LOOKS:
            recalled_calls.pop(next(iter(recalled_calls)), None)
        recalled_calls[look] = Recalled(inputs.form, hyper, inputs.values.weights)


def recalled(look: Look | None, call: Call) -> Inputs | None:
    """The inputs of a call of the remembered look. Raises what `prepare` raises where tensors are at fault.

    No batch is asked for: a function of j may draw random numbers or keep something, and to put all that back takes
    longer than the rest of this. Where the first one does not fit, the run says so when it comes to it (`OtherParts`).
    """
    remembered = _remembered(look, call.problem)
    if remembered is None:
        return None
    form = remembered.form
    _, batch, steps, val_batch, _ = call.batches()
    if steps != form.steps:
        return None

    def batch_as_before(j: int) -> Any:
        of_step = batch(j)
        if j == 0 and parts_of(of_step) != form.in_parts:
            raise OtherParts
        return of_step

    trained, frozen = check_theta(call.theta_0)
    anywhere = next(iter(trained.values()))
    _, phi_loss = check_phi_loss(call.phi_loss, trained, form.tasks)
    hyper = _renewed(remembered.hyper, call.phi_opt)
    theta_0, state_0 = _started(form, call, trained, hyper)
    values = Values(
        theta_0,
        trained,
        frozen,
        state_0,
        phi_loss,
        hyper,
        batch_as_before,
        val_batch,
        remembered.weights,
        cold=not form.warm,
    )
    return Inputs(form, values, Environment(modules_of(call.problem), anywhere.device, kept_by(call), call.room))


def remember_whole(look: Look | None, compiled: CompiledWhole, tensors: RunTensors, problem: Problem) -> None:
    """Keep what a compiled run of the same look can take over; only after `remember`, and if it touches nothing."""
    remembered = _remembered(look, problem)
    if remembered is not None and compiled.pure:
        problem.memo.recalled[look] = remembered._replace(compiled=(compiled, tensors.weights))


def recalled_whole(look: Look | None, call: Call) -> tuple[CompiledWhole, Form, Hyperparameters, RunTensors] | None:
    """A compiled run of the remembered look. Whether theta_0 and phi_loss are finite is told by the run itself."""
    remembered = _remembered(look, call.problem)
    if remembered is None or remembered.compiled is None:
        return None
    compiled, weights = remembered.compiled
    theta_0, phi_loss = call.theta_0, call.phi_loss or {}
    _, batch, steps, val_batch, _ = call.batches()
    if steps != remembered.form.steps or len(set(map(id, theta_0.values()))) != len(theta_0):
        return None
    trained, frozen = laid_out(theta_0)
    hyper = _renewed(remembered.hyper, call.phi_opt)
    tensors = RunTensors(
        theta_0={k: v.contiguous() for k, v in trained.items()},
        state_0=_started(remembered.form, call, trained, hyper)[1] if remembered.form.warm else {},
        phi_loss={k: v.detach() for k, v in phi_loss.items()},
        frozen=frozen,
        hypers=[hyper.at(j) for j in range(1 if hyper.constant else steps)],
        weights=weights,
        batches=[batch(j) for j in range(steps)],
        val_batches=[val_batch(j) for j, weighted in enumerate(remembered.form.weighted) if weighted],
    )
    return compiled, remembered.form, hyper, tensors


def _started(form: Form, call: Call, trained: Tensors, hyper: Hyperparameters) -> tuple[Tensors, State]:
    """(theta_0, s_0) in the form that is run. Raises ArgumentError where a warm state is at fault."""
    theta_0 = trained
    for transform in form.transforms:
        theta_0 = transform.theta(theta_0)
    cold = form.optimizer.initial_state(theta_0, hyper.at(0))
    if not form.warm:
        return theta_0, cold
    assert call.state_0 is not None
    state_0 = call.state_0 if form.tasks is None else stacked_state(call.state_0, form.tasks)
    vector = form.transforms[-1]
    assert isinstance(vector, OneVector)  # else nothing is remembered
    return theta_0, vector.state(check_state(state_0, vector.state_by_name(cold), trained))


def _remembered(look: Look | None, problem: Any) -> Recalled | None:
    remembered: Recalled | None = problem.memo.recalled.get(look) if isinstance(problem, Problem) else None
    return remembered


def _renewed(hyper: Hyperparameters, phi_opt: Mapping[str, Any] | None) -> Hyperparameters:
    return hyper if not phi_opt else hyper.renewed(phi_opt)
