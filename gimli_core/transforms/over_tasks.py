"""T tasks at once: the loss and the rule of one task, vectorised over a leading dimension."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.utils import _pytree as pytree

from gimli_core.derivatives.beside_loss import stacked, value_and_aux
from gimli_core.errors import ArgumentError, explain, first_line, notice, unexpected
from gimli_core.notation import Loss, Tensors
from gimli_core.optimizers.interface import Optimizer
from gimli_core.problem import Problem
from gimli_core.record import Ends
from gimli_core.transforms.interface import Transform
from gimli_core.transforms.numbered import Numbered
from gimli_core.transforms.rule_over_tasks import RuleOverTasks
from gimli_core.transforms.tasks import by_task, summed
from gimli_core.transforms.vectorised import vectorised

__all__ = ["LossOverTasks", "OverTasks", "TasksApart"]

PUT_OFF = "work put off until backward, such as a checkpoint, cannot be vectorised"


class TasksApart(ArgumentError):
    """Tasks can only be run one at a time: a loss changes buffers, and each needs its own, or puts work off until
    backward, which meets a module's weights as one task has them.
    """

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


@dataclass(frozen=True, eq=False)
class OverTasks(Transform):
    """A problem of one task as that of `count` tasks.

    Args:
        count: T.
        scale: what the sum of their losses is multiplied by: 1, or one over how many tasks there are in all.
        theta_per_task: names in theta_0 that were given once a task.
        shared_state: whether a warm state_0 is shared, so that its adjoint is summed.
        phi_loss: names in phi_loss that the tasks do not share.
        frozen: names in theta that all tasks share, held constant.
        hyper_by_task: `{tensor: {hyperparameter: whether its value has a leading T}}`.
        modules: whose buffers the losses may change; with tasks they must not.
    """

    count: int
    scale: float
    theta_per_task: frozenset[str]
    shared_state: bool
    phi_loss: frozenset[str]
    frozen: frozenset[str]
    hyper_by_task: dict[str, dict[str, bool]]
    modules: Any

    def problem(self, problem: Problem) -> Problem:
        """The losses of `[T]` values are made once a problem, so that what is compiled for them is found again."""
        key = ("over tasks", self.count, self.frozen, self.phi_loss)
        if key not in problem.memo.forms:
            losses = {
                name: LossOverTasks(getattr(problem, name), name, self.count, self.frozen, self.phi_loss, self.modules)
                for name in ("train_loss", "val_loss")
            }
            problem.memo.forms[key] = Problem(**losses, optimizer=problem.optimizer, modules=self.modules)
            problem.memo.forms[key].memo.patience = problem.memo.patience
        return problem.memo.forms[key]

    def rule(self, rule: Optimizer) -> RuleOverTasks:
        """A rule in this form."""
        return RuleOverTasks(rule=rule, count=self.count, by_task=self.hyper_by_task)

    def theta(self, theta: Tensors) -> Tensors:
        return {k: v if k in self.theta_per_task else v.expand(self.count, *v.shape) for k, v in theta.items()}

    def back(self, ends: Ends) -> Ends:
        """What the tasks share gets the sum over them."""
        B = {k: v if k in self.theta_per_task else summed(v) for k, v in ends.B.items()}
        return ends._replace(B=B, S=summed(ends.S) if self.shared_state else ends.S)


class LossOverTasks:
    """`loss` for T tasks: from theta `[T, …]`, batch `[T, …]` to `[T]` values; of k outer losses to `[T, k]`.

    Vectorised by `vmap`; where that cannot be (a branch on values, autograd inside the loss), one task after the
    other, to the same result.

    Args:
        loss: of one task.
        name: in messages.
        count: T.
        shared: names in theta that all tasks share (held constant).
        phi_by_task: names in phi_loss that they do not.
        modules: whose buffers the loss may change; with more tasks than one it must not.

    Raises:
        ArgumentError: at a call: a batch without the leading dimension, a loss that is not one number a task.
        TasksApart: a loss that changes a buffer, or puts work off until backward.
    """

    def __init__(
        self, loss: Loss, name: str, count: int, shared: frozenset[str], phi_by_task: frozenset[str], modules: Any
    ) -> None:
        self.loss, self.name, self.shape = loss, name, (count,)
        self._shared, self._phi_by_task = shared, phi_by_task
        self._buffers = [buffer for module in modules for buffer in module.buffers()]
        self._one_by_one = self._vectorised = False

    def vectorised(self, theta: Tensors, phi_loss: Tensors, batch: Any) -> Any:
        """The losses of all tasks by vmap; raises what vmap raises."""
        which = self._which_said_once(theta, phi_loss, batch)
        return vectorised(self._of_one, which, self.shape[0], randomness="different")(theta, phi_loss, batch)

    def __call__(self, theta: Tensors, phi_loss: Tensors, batch: Any) -> Any:
        if not self._one_by_one:
            generator = torch.get_rng_state()
            before = [] if self._vectorised else self._copies()
            try:
                with _nothing_put_off():
                    losses = self.vectorised(theta, phi_loss, batch)
                self._vectorised = True
                return losses
            except (RuntimeError, ValueError, NotImplementedError) as error:
                if isinstance(error, ArgumentError):
                    raise
                torch.set_rng_state(generator)
                _put_back(before)  # BatchNorm counts its batches before vmap refuses the rest
                if str(error) == PUT_OFF and self.shape != (1,):
                    do = "Run one task at a time: tasks=gimli.Tasks(T, chunk=1)."
                    raise TasksApart(explain(self.name, "a loss that vmap can take", PUT_OFF, do), PUT_OFF) from error
                self._in_turn(theta, phi_loss, batch)  # where this fails too, the loss itself is at fault
                self._one_by_one = True
                torch.set_rng_state(generator)
                _put_back(before)
                if self.shape != (1,):
                    notice(f"{self.name} runs one task after the other, since vmap cannot: {first_line(error)}")
        return self._in_turn(theta, phi_loss, batch)

    def _which(self, theta: Tensors, phi_loss: Tensors, batch: Any) -> Any:
        """What of the arguments each task has of its own."""
        theta_per_task = {k: k not in self._shared for k in theta}
        phi_per_task = {k: k in self._phi_by_task for k in phi_loss}
        if isinstance(batch, Numbered):
            return theta_per_task, phi_per_task, batch._replace(batch=self._which_of(batch.batch), j=False)  # shared
        return theta_per_task, phi_per_task, self._which_of(batch)

    def _which_said_once(self, theta: Tensors, phi_loss: Tensors, batch: Any) -> tuple[Any, ...]:
        """`_which`, in one word for all of an argument where it can be: that is gone through faster than a tree."""
        if self._shared or self._phi_by_task or isinstance(batch, Numbered):
            return tuple(_said_once(mine) for mine in self._which(theta, phi_loss, batch))
        mine = [by_task(leaf, self.shape[0], self.name) for leaf in pytree.tree_leaves(batch)]
        return True, False, bool(mine) if all(mine) else _said_once(self._which_of(batch))

    def _which_of(self, batch: Any) -> Any:
        return pytree.tree_map(lambda leaf: by_task(leaf, self.shape[0], self.name), batch)

    def _in_turn(self, *arguments: Any) -> Any:
        """The losses of all tasks, without vmap."""
        before = self._copies()
        by_task = self._which(*arguments)

        def of(t: int) -> Any:
            return pytree.tree_map(lambda mine, leaf: leaf[t] if mine else leaf, by_task, arguments)

        each = [self._of_one(*of(t)) for t in range(self.shape[0])]
        losses = stacked(each, self.name)
        if self.shape != (1,) and any(not torch.equal(buffer, old) for buffer, old in before):
            _put_back(before)
            expected = "a loss that changes no buffer, since each task needs buffers of its own"
            do = (
                "Run one task at a time, tasks=gimli.Tasks(T, chunk=1), or normalise by batch statistics alone: "
                "BatchNorm(track_running_stats=False), or eval() before the call."
            )
            why = "a loss changes running statistics: each has buffers of its own"
            raise TasksApart(explain(self.name, expected, "one that changes running statistics", do), why)
        return losses

    def _copies(self) -> list[tuple[Tensor, Tensor]]:
        return [(buffer, buffer.clone()) for buffer in self._buffers]

    def _of_one(self, theta: Tensors, phi_loss: Tensors, batch: Any) -> Any:
        loss, aux = value_and_aux(self.loss(theta, phi_loss, batch), self.name)
        if not isinstance(loss, Tensor) or loss.ndim > (self.name == "val_loss"):
            actual = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise unexpected(self.name, "to return a scalar for one task", actual, "Reduce it with .mean().")
        return loss if aux is None else (loss, aux)


def _put_back(buffers: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, old in buffers:
        buffer.data.copy_(old)


def _nothing_put_off() -> AbstractContextManager[Any]:
    """Within it, work that is put off until backward is an error at once: by then vmap is over, and it would fail
    there.

    Where hooks of saved tensors are in use already, as around graphs that outlive their buffers, torch has no such
    switch.
    """
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return nullcontext()
    return disable_saved_tensors_hooks(PUT_OFF)


def _said_once(by_task: Any) -> Any:
    """A tree of booleans, or one for all of it."""
    leaves = pytree.tree_leaves(by_task)
    return any(leaves) if all(leaves) or not any(leaves) else by_task
