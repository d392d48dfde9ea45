"""The public edge: every argument of a meta-gradient checked and put into one shape, before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from gimli_core.errors import ArgumentError, closest, explain, listing
from gimli_core.meta_parameters import Hyperparameters, expand_betas
from gimli_core.modules import Environment, discover, split_frozen
from gimli_core.optimizers.fused import Fused, fuses
from gimli_core.optimizers.interface import ElementwiseOptimizer, Optimizer, State, Tensors
from gimli_core.optimizers.over_tasks import OverTasks
from gimli_core.problem import Problem
from gimli_core.second_order import ASKED, BY_GRAPH
from gimli_core.tasks import Tasks, check_tasks, expanded, over_tasks, own, split_marked, stacked_state

__all__ = ["RECURRENCES", "Inputs", "check_batches", "fused", "prepare"]

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
    trained, frozen = _check_theta(theta_0)
    one = {k: v[0] for k, v in own("theta_0", trained, T).items()} if own_theta else trained  # theta of one task
    batch, J = check_batches(train_batches, steps)
    first = _check_truncate(truncate, J)
    anywhere = next(iter(trained.values()))
    own_phi, loss_parameters = _check_phi_loss(phi_loss, anywhere, T)
    if phi_opt is not None and not isinstance(phi_opt, Mapping):
        raise ArgumentError(
            explain("phi_opt", "a dict {hyperparameter: value}", type(phi_opt).__name__, "For example {'lr': lr}.")
        )
    hyper = Hyperparameters(problem.optimizer, phi_opt or {}, one, J, T)
    optimizer = problem.optimizer.bind(expand_betas(phi_opt or {}))
    modules = discover([problem.train_loss, problem.val_loss]) if problem.modules is None else problem.modules
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
        state_0=cold if state_0 is None else _check_state(state_0, cold),
        warm=state_0 is not None,
        phi_loss=loss_parameters,
        hyper=hyper,
        batch=batch,
        val_batch=val_batch,
        steps=J,
        weights=_check_weights(val_weights, J, first),
        environment=Environment(modules, anywhere.device),
        recurrence=recurrence,
        tasks=batched,
        second_order=second_order,
        first_order=first_order,
        first=first,
    )


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


def _check_theta(theta_0: Any) -> tuple[Tensors, Tensors]:
    if not isinstance(theta_0, Mapping) or not theta_0:
        came = "an empty dict" if isinstance(theta_0, Mapping) else type(theta_0).__name__
        raise ArgumentError(
            explain(
                "theta_0",
                "a dict {name: floating-point tensor}",
                came,
                "For a module: dict(module.named_parameters()).",
            )
        )
    seen: dict[int, str] = {}
    for k, v in theta_0.items():
        _check_tensor(f"theta_0[{k!r}]", v)
        if not isinstance(k, str):
            raise ArgumentError(explain("theta_0", "names that are strings", f"the key {k!r}", "Rename it."))
        if id(v) in seen:
            raise ArgumentError(
                explain(
                    f"theta_0[{k!r}]",
                    "each tensor once",
                    f"the tensor of {seen[id(v)]!r} again",
                    "For tied weights give one name, as named_parameters() does; functional_call fills in the others.",
                )
            )
        seen[id(v)] = k
    trained, frozen = split_frozen(theta_0)
    if not trained:
        raise ArgumentError(
            explain(
                "theta_0",
                "at least one trained entry",
                "only frozen parameters",
                "Call .requires_grad_() on what is trained.",
            )
        )
    first_name, first = next(iter(trained.items()))
    for k, v in trained.items():
        if (v.dtype, v.device) != (first.dtype, first.device):
            raise ArgumentError(
                explain(f"theta_0[{k!r}]", f"{first.dtype} on {first.device}, as theta_0[{first_name!r}] is",
                        f"{v.dtype} on {v.device}", "Bring all entries to one dtype and device.")
            )  # fmt: skip
    # The losses see the order in which theta_0 was given: some take theta.values() apart by it.
    return trained, {k: v.detach() for k, v in theta_0.items()} if frozen else {}


def _check_tensor(argument: str, value: Any) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
        came = f"a {value.dtype} tensor, layout {value.layout}" if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentError(explain(argument, "a dense floating-point tensor", came, "Convert it, or leave it out."))
    if value.is_meta or isinstance(value, UninitializedParameter):
        came = "one on the meta device" if value.is_meta else "a parameter that a lazy module has not made yet"
        do = "Materialize it: run the module once, or .to_empty(device=...) and initialise it."
        raise ArgumentError(explain(argument, "a tensor that holds values", came, do))
    if not bool(torch.isfinite(value).all()):
        raise ArgumentError(explain(argument, "finite values", "inf or nan", "Find out where it was computed."))


def _check_phi_loss(phi_loss: Any, theta: Tensor, tasks: int | None) -> tuple[frozenset[str], Tensors]:
    """The names that each task has its own tensor of, and all tensors."""
    whole, phi_loss = split_marked(phi_loss)
    if phi_loss is None:
        return frozenset(), {}
    if not isinstance(phi_loss, Mapping):
        raise ArgumentError(
            explain(
                "phi_loss",
                "a dict {name: tensor}",
                type(phi_loss).__name__,
                "For a module: dict(module.named_parameters()).",
            )
        )
    checked, by_task = {}, set()
    for k, v in phi_loss.items():
        argument = f"phi_loss[{k!r}]"
        alone, v = split_marked(v)
        if alone or whole:
            by_task.add(k)
            own(argument, v, tasks)
        if isinstance(v, (int, float)) and not isinstance(v, bool):
            v = torch.tensor(float(v), dtype=theta.dtype, device=theta.device)
        _check_tensor(argument, v)
        if not isinstance(k, str):
            raise ArgumentError(explain("phi_loss", "names that are strings", f"the key {k!r}", "Rename it."))
        half = theta.dtype in (torch.float16, torch.bfloat16) and v.dtype == torch.float32
        if v.ndim > 0 and ((v.dtype != theta.dtype and not half) or v.device != theta.device):
            raise ArgumentError(
                explain(
                    argument,
                    f"{theta.dtype} on {theta.device}, as theta_0 is",
                    f"{v.dtype} on {v.device}",
                    "Convert it with .to(...).",
                )
            )
        checked[k] = v.detach()
    return frozenset(by_task), checked


def check_batches(train_batches: Any, steps: Any) -> tuple[Callable[[int], Any], int]:
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 0):
        raise ArgumentError(
            explain("steps", "a whole number J >= 0", repr(steps), "steps=0 gives the plain gradient of val_loss.")
        )
    if isinstance(train_batches, Iterator) or (
        hasattr(train_batches, "__iter__") and not hasattr(train_batches, "__getitem__")
    ):
        raise ArgumentError(
            explain("train_batches", "a sequence, or a function of j: the sweep may ask for a batch again",
                    f"a {type(train_batches).__name__}, which can be read only in order", "Wrap it in "
                    "list(...), cut to the steps you need.")
        )  # fmt: skip
    scalar = isinstance(train_batches, (Tensor, np.ndarray)) and train_batches.ndim == 0
    if (
        scalar
        or isinstance(train_batches, (Mapping, str))
        or not (hasattr(train_batches, "__len__") or callable(train_batches))
    ):
        raise ArgumentError(
            explain("train_batches", "a sequence of batches, or a function j -> batch", type(train_batches).__name__,
                    "One batch for every step: lambda j: batch.")
        )  # fmt: skip
    steps = None if steps is None else int(steps)
    if not hasattr(train_batches, "__len__"):
        if steps is None:
            raise ArgumentError(
                explain("steps", "a number, since train_batches is a function", "None", "Say how many steps to run.")
            )
        return train_batches, steps
    held = len(train_batches)
    if held == 0 and steps is None:
        raise ArgumentError(
            explain("train_batches", "at least one batch", "none", "For no inner step at all say steps=0.")
        )
    J = held if steps is None else steps
    if held < J:
        raise ArgumentError(
            explain(
                "train_batches",
                f"a batch for each of the {J} steps",
                f"{held}",
                "Give more, lower steps, or use a function of j: lambda j: batch uses one batch for every step.",
            )
        )
    return lambda j: train_batches[j], J


def _check_truncate(truncate: Any, steps: int) -> int:
    """The step at which the sweep ends."""
    if truncate is None:
        return 0
    if isinstance(truncate, bool) or not isinstance(truncate, Integral) or truncate < 1:
        do = "truncate=k sweeps the last k steps only; first_order=True leaves out curvature."
        raise ArgumentError(explain("truncate", "a whole number k >= 1", repr(truncate), do))
    return max(0, steps - int(truncate))


def _check_weights(val_weights: Any, steps: int, first: int) -> tuple[float | None, ...]:
    if val_weights is None:
        return (None,) * steps + (1.0,)
    try:
        weights = [float(w.detach() if isinstance(w, Tensor) else w) for w in val_weights]
    except (TypeError, ValueError):
        weights = []
    if len(weights) not in (steps, steps + 1) or not weights:
        raise ArgumentError(
            explain("val_weights", f"{steps} numbers (for theta_1 … theta_{steps}) or {steps + 1} (from theta_0 on)",
                    f"{len(weights)} from {type(val_weights).__name__}", "w_j weighs L_val(theta_j).")
        )  # fmt: skip
    if not all(abs(w) < float("inf") for w in weights):
        raise ArgumentError(
            explain("val_weights", "finite numbers", repr(weights), "Find out where they were computed.")
        )
    if not any(weights):
        raise ArgumentError(
            explain("val_weights", "at least one weight that is not 0", "zeros only", "The loss would be 0.")
        )
    # A weight of 0 that is learned has a derivative too.
    learned = any(isinstance(w, Tensor) and w.requires_grad for w in (val_weights, *val_weights))
    checked = (None,) * (steps + 1 - len(weights)) + tuple(w if w or learned else None for w in weights)
    early = [j for j in range(first) if checked[j] is not None]
    if early:
        expected = f"no weight before theta_{first}, where the sweep of the last {steps - first} steps ends"
        came = f"one at theta_{early[0]}" + (", which is learned" if learned else "")
        raise ArgumentError(explain("val_weights", expected, came, "Raise truncate, or put 0 there."))
    return checked


def _check_state(state_0: Any, like: State, path: str = "state_0") -> State:
    """`state_0`, detached, if it has the structure of `like`."""
    if isinstance(like, Tensor):
        value = torch.as_tensor(state_0, dtype=like.dtype) if isinstance(state_0, (int, float)) else state_0
        if not isinstance(value, Tensor) or value.shape != like.shape:
            came = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentError(
                explain(path, f"a tensor of shape {list(like.shape)}", came, "Take it from a result's state_J.")
            )
        if not bool(torch.isfinite(value).all()):
            raise ArgumentError(explain(path, "finite values", "inf or nan", "Find out where it was computed."))
        if value.ndim > 0 and value.device != like.device:
            raise ArgumentError(
                explain(
                    path,
                    f"a tensor on theta's device {like.device}",
                    f"one on {value.device}",
                    "Move it with .to(...).",
                )
            )
        if path == "state_0['step']" and (value < 0 or value != value.round()):
            raise ArgumentError(
                explain(
                    path,
                    "a whole number of finished steps, 0 or more",
                    f"{value.item():g}",
                    "A result's state_J counts them.",
                )
            )
        return value.detach().to(like.dtype)
    if not isinstance(state_0, Mapping) or set(state_0) != set(like):
        came = listing(state_0) if isinstance(state_0, Mapping) else type(state_0).__name__
        near = "".join(closest(k, like) for k in state_0 if k not in like) if isinstance(state_0, Mapping) else ""
        raise ArgumentError(
            explain(path, f"a dict with the keys {listing(like)}", came, f"A result's state_J has this form.{near}")
        )
    return {k: _check_state(state_0[k], like[k], f"{path}[{k!r}]") for k in like}
