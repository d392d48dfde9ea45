"""The public edge: every argument of a meta-gradient checked and put into one shape, before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.arguments.batches import check_batches
from gimli_core.arguments.phi_loss import check_phi_loss
from gimli_core.arguments.state import check_state
from gimli_core.arguments.theta import check_theta
from gimli_core.arguments.val_weights import check_weights
from gimli_core.derivatives.second_order import ASKED, BY_GRAPH
from gimli_core.environment import Environment, discover
from gimli_core.errors import ArgumentError, closest, explain, listing
from gimli_core.meta_parameters.hyperparameters import Hyperparameters, expand_betas
from gimli_core.notation import State, Tensors
from gimli_core.optimizers.interface import Optimizer
from gimli_core.optimizers.tensorwise import ElementwiseOptimizer
from gimli_core.problem import Problem
from gimli_core.transforms.one_vector import Fused, fuses
from gimli_core.transforms.over_tasks import OverTasks
from gimli_core.transforms.tasks import Tasks, check_tasks, expanded, over_tasks, own, split_marked, stacked_state

__all__ = ["RECURRENCES", "Inputs", "fused", "modules_of", "prepare", "signature"]

RECURRENCES = ("augmented", "theta_only")


@dataclass(frozen=True, eq=False)
class Inputs:
    """A problem with all that one run of Algorithm 1 needs, checked."""

    problem: Problem
    optimizer: Optimizer  # the problem's, with phi_opt's values in place of its own
    theta_0: Tensors
    frozen: (
        Tensors  # what the trained entries are laid over: all of theta_0, in the order given, if some are held constant
    )
    state_0: State
    warm: bool  # whether state_0 was given
    phi_loss: Tensors
    hyper: Hyperparameters
    batch: Callable[[int], Any]
    val_batch: Any
    steps: int
    weights: tuple[float | None, ...]  # w_0 … w_J of L = Σ_j w_j L_val(theta_j); None: L_val is not evaluated there
    environment: Environment
    recurrence: str
    tasks: Tasks | None = None
    second_order: str = "auto"  # the means of second-order products; `require` puts one that works in its place
    first_order: bool = False  # line 14 without the curvature
    first: int = 0  # the step at which the sweep ends: J - k where it is truncated to k steps

    @property
    def scale(self) -> float:
        """What the sum of the tasks' losses is multiplied by; 1 for a single inner loop."""
        return 1.0 if self.tasks is None else self.tasks.scale

    @property
    def keeps_graph(self) -> bool:
        """Whether second-order products are taken from the kept graph of G_j."""
        return self.second_derivatives and self.second_order in ("auto", BY_GRAPH)

    @property
    def evaluates_again(self) -> bool:
        """Whether second-order products evaluate the inner loss again, at theta_j as it was kept."""
        return self.second_derivatives and not self.keeps_graph

    @property
    def second_derivatives(self) -> bool:
        """Whether line 13 or 14 needs any."""
        return not self.first_order or bool(self.phi_loss)

    @property
    def approximation(self) -> str:
        """What the result leaves out, or the empty string."""
        left_out = ["first order: line 14 without V_j Hessian"] * self.first_order
        k = self.steps - self.first
        left_out += [f"truncated: the last {k} of {self.steps} steps, the others as the identity"] * (self.first > 0)
        return "; ".join(left_out)


def prepare(
    problem: Problem,
    theta_0: Mapping[str, Tensor],
    train_batches: Sequence[Any] | Callable[[int], Any],
    val_batch: Any,
    *,
    steps: int | None = None,
    phi_opt: Mapping[str, Any] | None = None,
    phi_loss: Mapping[str, Tensor] | None = None,
    state_0: State | None = None,
    val_weights: Sequence[float] | Tensor | None = None,
    recurrence: str = "augmented",
    tasks: int | None = None,
    reduce: str = "mean",
    among: int | None = None,
    second_order: str = "auto",
    first_order: bool = False,
    truncate: int | None = None,
) -> Inputs:
    """Check the arguments of `meta_gradient` and put them into one shape. Raises ArgumentError.

    `among`: of how many tasks these are a part; all of them by default.
    """
    if not isinstance(problem, Problem):
        raise ArgumentError(
            explain("problem", "a gimli.Problem", type(problem).__name__, "Build one from two losses and an optimizer.")
        )
    if torch.is_inference_mode_enabled():
        raise ArgumentError(
            explain(
                "torch.inference_mode",
                "it to be off",
                "it on",
                "Its tensors have no derivatives: use torch.no_grad() instead.",
            )
        )
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise ArgumentError(
            explain("torch.func", "none of its transforms around this call", "a call within grad, vmap or jvp",
                    "Use .backward() of unroll for derivatives, and tasks=T for many inner loops at once.")
        )  # fmt: skip
    if recurrence not in RECURRENCES:
        raise ArgumentError(
            explain("recurrence", listing(RECURRENCES), repr(recurrence), "The exact one is 'augmented'.")
        )
    if second_order not in ASKED:
        raise ArgumentError(
            explain(
                "second_order", listing(ASKED), repr(second_order), f"'auto' picks one.{closest(second_order, ASKED)}"
            )
        )
    if not isinstance(first_order, bool):
        raise ArgumentError(
            explain("first_order", "True or False", repr(first_order), "True leaves out line 14's curvature.")
        )
    T = check_tasks(tasks, reduce)
    own_theta, theta_0 = split_marked(theta_0)
    own_state, state_0 = split_marked(state_0)
    trained, frozen = check_theta(theta_0)
    one = {k: v[0] for k, v in own("theta_0", trained, T).items()} if own_theta else trained  # theta of one task
    batch, J = check_batches(train_batches, steps)
    first = _check_truncate(truncate, J)
    anywhere = next(iter(trained.values()))
    own_phi, loss_parameters = check_phi_loss(phi_loss, anywhere, T)
    if phi_opt is not None and not isinstance(phi_opt, Mapping):
        raise ArgumentError(
            explain("phi_opt", "a dict {hyperparameter: value}", type(phi_opt).__name__, "For example {'lr': lr}.")
        )
    hyper = Hyperparameters(problem.optimizer, phi_opt or {}, one, J, T)
    optimizer = problem.optimizer.bind(expand_betas(phi_opt or {}))
    modules = modules_of(problem)
    if T is None:
        batched, cold = None, optimizer.initial_state(trained, hyper.at(0))
    else:
        scale = 1 / (among or T) if reduce == "mean" else 1.0
        batched = Tasks(T, scale, own_theta, own_state, own_phi)
        trained = trained if own_theta else expanded(trained, T)
        state_0 = state_0 if state_0 is None or own_state else stacked_state(state_0, T)
        shared = frozenset(k for k in frozen if k not in trained) if not own_theta else frozenset()
        problem = over_tasks(problem, batched, shared, modules)
        rule, by_task = optimizer, hyper.by_task()
        optimizer = OverTasks(rule=rule, by_task=by_task)
        if own_theta or any(by for per in by_task.values() for by in per.values()):
            cold = optimizer.initial_state(trained, hyper.at(0))
        else:  # all start from the same
            cold = stacked_state(rule.initial_state(one, hyper.at(0)), T)
    return Inputs(
        problem=problem,
        optimizer=optimizer,
        theta_0=trained,
        frozen=frozen,
        state_0=cold if state_0 is None else check_state(state_0, cold),
        warm=state_0 is not None,
        phi_loss=loss_parameters,
        hyper=hyper,
        batch=batch,
        val_batch=val_batch,
        steps=J,
        weights=check_weights(val_weights, J, first),
        environment=Environment(modules, anywhere.device),
        recurrence=recurrence,
        tasks=batched,
        second_order=second_order,
        first_order=first_order,
        first=first,
    )


def modules_of(problem: Problem) -> Sequence[nn.Module]:
    """The modules whose buffers the losses may use."""
    return discover([problem.train_loss, problem.val_loss]) if problem.modules is None else problem.modules


def fused(inputs: Inputs) -> Inputs:
    """The inputs with an elementwise rule fused over small tensors, where that pays; results are split again."""
    optimizer, tasks = inputs.optimizer, inputs.tasks
    if isinstance(optimizer, OverTasks):
        if any(by for per in optimizer.by_task.values() for by in per.values()):
            return inputs
        optimizer = optimizer.rule
    scalars, numbers = inputs.hyper.scalars()
    if inputs.warm or not fuses(optimizer, inputs.theta_0, scalars, numbers):
        return inputs
    shapes = {k: v.shape for k, v in inputs.hyper.theta.items()}
    assert isinstance(optimizer, ElementwiseOptimizer)
    whole = Fused(rule=optimizer, shapes=shapes, scalars=scalars, tasks=None if tasks is None else tasks.count)
    theta_0 = whole.gathered(inputs.theta_0)
    state_0 = whole.initial_state(theta_0, inputs.hyper.at(0))
    if any(v.ndim == 0 for slot, held in state_0.items() if slot != "step" for v in held.values()):
        return inputs  # each tensor has numbers of its own, whose adjoints are sums over it
    return replace(inputs, optimizer=whole, theta_0=theta_0, state_0=state_0)


def signature(inputs: Inputs) -> tuple[Any, ...]:
    """All tensors that a compiled step works on, and what else it is compiled for: two runs of a problem that are alike
    in the outline of this share what was compiled; with the means of second order, what a step costs.
    """
    optimizer, hyper = inputs.optimizer, inputs.hyper
    packed = optimizer.pack(inputs.theta_0), optimizer.pack_hyper(hyper.at(0))
    tensors = (*packed, inputs.frozen, inputs.state_0, inputs.phi_loss)
    shapes = {k: tuple(v.shape) for k, v in hyper.theta.items()}  # of one task, and in a vector no longer seen
    forms = hyper.constant, hyper.by_task() if inputs.tasks else None  # a shape alone can be read in two ways
    fixed = (*hyper.wanted, inputs.recurrence, repr((inputs.tasks, shapes, forms)))
    return (*tensors, inputs.batch(0), inputs.val_batch, fixed)


def _check_truncate(truncate: Any, steps: int) -> int:
    """The step at which the sweep ends."""
    if truncate is None:
        return 0
    if isinstance(truncate, bool) or not isinstance(truncate, Integral) or truncate < 1:
        do = "truncate=k sweeps the last k steps only; first_order=True leaves out curvature."
        raise ArgumentError(explain("truncate", "a whole number k >= 1", repr(truncate), do))
    return max(0, steps - int(truncate))
