"""A call, checked: its form, which holds no tensor, and its values, which are the tensors.

    Call      what the user gave                              call.py
    Form      all that is checked, and what is run            form.py
    Values    theta_0, s_0, phi, batches and weights          form.py

Every argument is checked by a file of its own; here they are put together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.arguments.approximation import check_approximation
from gimli_core.arguments.batches import code_of, code_of_val
from gimli_core.arguments.call import Call
from gimli_core.arguments.form import Form, Parts, Values
from gimli_core.arguments.phi_loss import check_phi_loss, indexed_entries
from gimli_core.arguments.phi_opt import check_phi_opt
from gimli_core.arguments.state import check_state
from gimli_core.arguments.surroundings import check_surroundings
from gimli_core.arguments.theta import check_theta, theta_by_task
from gimli_core.arguments.val_weights import check_weights
from gimli_core.arguments.wrapped_modules import refuse_spread
from gimli_core.derivatives.evaluate import LossOfTheta
from gimli_core.derivatives.first_order import Gradient
from gimli_core.derivatives.micro_batches import MicroBatches, each
from gimli_core.environment import Environment, discover
from gimli_core.errors import unexpected
from gimli_core.meta_parameters.hyperparameters import Hyperparameters
from gimli_core.meta_parameters.resolve import bound
from gimli_core.notation import Tensors, slots
from gimli_core.optimizers.interface import Optimizer
from gimli_core.optimizers.tensorwise import ElementwiseOptimizer
from gimli_core.problem import Problem
from gimli_core.transforms.interface import Transform
from gimli_core.transforms.one_vector import LeftAlone, OneVector, one_vector
from gimli_core.transforms.over_tasks import OverTasks
from gimli_core.transforms.tasks import Tasks, check_tasks, split_marked, stacked_state
from gimli_core.trees import tensors

__all__ = ["Inputs", "as_one_vector", "in_parts", "kept_by", "modules_of", "parts_of", "prepare"]


@dataclass(frozen=True, eq=False)
class Inputs:
    """All that one run of Algorithm 1 needs."""

    form: Form
    values: Values
    environment: Environment

    @cached_property
    def device(self) -> torch.device:
        """Where theta lies."""
        return next(iter(self.values.theta_0.values())).device

    @property
    def start(self) -> Tensors:
        """theta_0 as the losses are handed it."""
        return self.values.theta_0 if self.form.pieces is None else self.values.trained

    def inner_loss(self, j: int) -> LossOfTheta:
        """ell_j as a function of theta_j alone; batch_j is read here."""
        values = self.values
        return LossOfTheta(self.form.problem.train_loss, "train_loss", values.phi_at(j), self._batch(j), values.frozen)

    def outer_loss(self, j: int) -> LossOfTheta:
        """L_val as a function of theta_j alone; its batch is read here."""
        values = self.values
        return LossOfTheta(self.form.problem.val_loss, "val_loss", values.phi_loss, values.val_batch(j), values.frozen)

    def _batch(self, j: int) -> Any:
        batch = self.values.batch(j)
        if isinstance(batch, MicroBatches) and not self.form.in_parts:
            actual, do = f"some at step {j}", "MicroBatches([batch]) is a batch in one part."
            raise unexpected("train_batches", "MicroBatches from step 0 on, or in no step", actual, do)
        return batch

    def through(self, transform: Transform, optimizer: Optimizer, **values: Any) -> Inputs:
        """The inputs in a transform's form, with the optimizer and the `Values` that have another one in it."""
        form, problem = self.form, transform.problem(self.form.problem)
        form = replace(form, problem=problem, optimizer=optimizer, transforms=(*form.transforms, transform))
        return replace(self, form=form, values=replace(self.values, **values))

    def look_for_missed(self, j: int, G_j: Gradient) -> None:
        """Raise `LeftAlone` if tensors are one vector of which step j's loss does not use a part."""
        if G_j.unused and self.form.transforms and isinstance(self.form.transforms[-1], OneVector):
            raise LeftAlone(j, sorted(G_j.unused))

    def signature(self) -> tuple[Any, ...]:
        """What two runs of a problem that share what was compiled are alike in the outline of: all tensors that a step
        works on, and what else it is compiled for; with the means of second order, what a step costs."""
        form, values = self.form, self.values
        shapes = {k: tuple(v.shape) for k, v in values.hyper.theta.items()}  # of one task, no longer seen in a vector
        readings = values.hyper.constant, values.hyper.by_task() if form.tasks else None  # a shape has two readings
        more = (*form.wanted, form.recurrence, repr((form.tasks, form.scale, shapes, readings)))
        phi_loss = values.phi_at(0) if form.steps else values.phi_loss
        tensors = (values.theta_0, values.hyper.at(0), values.frozen, values.state_0, phi_loss)
        return (*tensors, values.batch(0), values.last_val_batch, more)


def prepare(call: Call) -> Inputs:
    """Check the arguments of `meta_gradient` and bring them into the form that is run. Raises ArgumentError."""
    check_surroundings(call)
    left_out, tasks = check_approximation(call.approximation), check_tasks(call.tasks)
    T = None if tasks is None else tasks.count
    theta_per_task, theta_0 = theta_by_task(call.theta_0, T)
    trained, frozen = check_theta(theta_0)
    one = {k: v[0] if k in theta_per_task else v for k, v in trained.items()}  # theta of one task
    marked = indexed_entries(call.phi_loss)
    if T is not None:
        call.check_stacked(T, ask=True)
    problem, batch, J, val_batch, rows = call.batches(marked)
    phi_per_task, phi_loss = check_phi_loss(call.phi_loss, trained, T)
    hyper = Hyperparameters(problem.optimizer, check_phi_opt(call.phi_opt), one, J, T)
    weights = check_weights(call.val_weights, J, left_out.first(J))
    modules = modules_of(problem)
    refuse_spread(modules, theta_0)
    form = Form(
        problem=problem,
        optimizer=bound(problem.optimizer, call.phi_opt or {}),
        steps=J,
        weighted=tuple(w is not None for w in weights),
        warm=call.state_0 is not None,
        wanted=hyper.wanted,
        phi_loss=bool(phi_loss) or bool(marked),
        tasks=T,
        scale=_scale(call, tasks),
        left_out=left_out,
        second_order=call.second_order,
        trained=tuple(trained),
        in_parts=in_parts(batch, J),
        nested=call.nested,
        given_by=(code_of(call.train_batches), code_of_val(call.val_batch)),
    )
    values = Values(trained, trained, frozen, {}, phi_loss, hyper, batch, val_batch, weights, marked, rows)
    inputs = Inputs(form, values, Environment(modules, _anywhere(trained).device, kept_by(call), call.room))
    if T is None:
        return _of_one(inputs, call.state_0)
    return _over_tasks(inputs, call.state_0, theta_per_task, phi_per_task.union(marked), one, modules)


def _scale(call: Call, tasks: Tasks | None) -> float:
    """What L is times the sum over the tasks."""
    return 1.0 if tasks is None or tasks.reduce != "mean" else 1 / (call.among or tasks.count)


def _of_one(inputs: Inputs, state_0: Any) -> Inputs:
    """The inputs of one inner loop, with its start."""
    values = inputs.values
    cold = inputs.form.optimizer.initial_state(values.theta_0, values.hyper.at(0))
    started = cold if state_0 is None else check_state(state_0, cold, values.theta_0)
    return replace(inputs, values=replace(values, state_0=started))


def in_parts(batch: Callable[[int], Any], steps: int) -> Parts:
    """`parts_of` the first batch; none where there is none, or it cannot be had."""
    try:
        first = batch(0) if steps > 0 else None
    except Exception:  # the run fails there as well, and says at which step
        return ()
    return parts_of(first)


def parts_of(batch: Any) -> Parts:
    """Of a batch's parts the weights and their tensors' shapes; none where it does not come in parts."""
    if not isinstance(batch, MicroBatches):
        return ()
    return tuple((weight, tuple(t.shape for t in tensors(part))) for weight, part in each(batch))


def _over_tasks(
    inputs: Inputs,
    state_0: Any,
    theta_per_task: frozenset[str],
    phi_per_task: frozenset[str],
    one: Tensors,
    modules: Sequence[nn.Module],
) -> Inputs:
    """The inputs of all tasks."""
    form, values = inputs.form, inputs.values
    rule, hyper, T = form.optimizer, values.hyper, form.tasks
    assert T is not None
    state_per_task, state_0 = split_marked(state_0)
    shared = frozenset(k for k in values.frozen if k not in values.theta_0 and k not in theta_per_task)
    transform = OverTasks(
        count=T,
        scale=form.scale,
        theta_per_task=theta_per_task,
        shared_state=form.warm and not state_per_task,
        phi_loss=phi_per_task,
        frozen=shared,
        hyper_by_task=hyper.by_task(),
        modules=modules,
    )
    theta_0, optimizer = transform.theta(values.theta_0), transform.rule(rule)
    if theta_per_task or any(by for per in transform.hyper_by_task.values() for by in per.values()):
        cold = optimizer.initial_state(theta_0, hyper.at(0))
    else:  # all start from the same
        cold = stacked_state(rule.initial_state(one, hyper.at(0)), T)
    if state_0 is not None:
        cold = check_state(state_0 if state_per_task else stacked_state(state_0, T), cold, one)
    return inputs.through(transform, optimizer, theta_0=theta_0, state_0=cold)


def as_one_vector(inputs: Inputs) -> Inputs:
    """The inputs with an elementwise rule on one vector of all small tensors, where that pays."""
    form, values = inputs.form, inputs.values
    rule, hyper = form.optimizer, values.hyper
    for transform in form.transforms:
        if isinstance(transform, OverTasks):
            if any(by for per in transform.hyper_by_task.values() for by in per.values()):
                return inputs
            rule = rule.rule  # type: ignore[attr-defined]
    shapes = {k: v.shape for k, v in hyper.theta.items()}
    vector = one_vector(rule, values.theta_0, shapes, *hyper.scalars(), form.tasks, values.frozen)
    if vector is None:
        return inputs
    assert isinstance(rule, ElementwiseOptimizer)
    optimizer, hyper, theta_0 = vector.rule(rule), hyper.through(vector), vector.theta(values.theta_0)
    state_0 = optimizer.initial_state(theta_0, hyper.at(0))
    if any(v.ndim == 0 for slot in slots(state_0).values() for v in slot.values()):
        return inputs  # each tensor has numbers of its own, whose adjoints are sums over it
    if form.warm:
        if values.state_0.keys() != state_0.keys():
            return inputs  # it counts what some of the tensors have missed
        state_0 = vector.state(values.state_0)
    return inputs.through(vector, optimizer, theta_0=theta_0, state_0=state_0, hyper=hyper, cold=not form.warm)


def modules_of(problem: Problem) -> Sequence[nn.Module]:
    """The modules whose buffers the losses may use."""
    return discover([problem.train_loss, problem.val_loss]) if problem.modules is None else problem.modules


def kept_by(call: Call) -> tuple[Any, ...]:
    """What a user wrote that may keep something of its own: the losses, and what gives batches."""
    return call.problem.train_loss, call.problem.val_loss, call.train_batches, call.val_batch


def _anywhere(theta: Tensors) -> Tensor:
    return next(iter(theta.values()))
