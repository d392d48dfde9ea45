"""How well tasks come out of the inner loop: metrics of each, their mean, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gimli_core.arguments.batches import check_val_batch
from gimli_core.arguments.inputs import modules_of
from gimli_core.arguments.theta import theta_by_task
from gimli_core.arguments.until import Until
from gimli_core.derivatives.beside_loss import value_and_aux
from gimli_core.environment import Environment, split_frozen
from gimli_core.errors import unexpected
from gimli_core.evaluation.adapt import adapt
from gimli_core.meta_parameters.marks import PerTask, unmarked
from gimli_core.notation import State, Tensors
from gimli_core.problem import Problem
from gimli_core.processes.mesh import check_mesh
from gimli_core.results import Trajectory
from gimli_core.transforms.nested import NestedLoss, unnested
from gimli_core.transforms.numbered import called
from gimli_core.transforms.over_tasks import LossOverTasks
from gimli_core.transforms.tasks import Tasks, check_tasks, split_marked

if TYPE_CHECKING:  # asked for by name alone, and its module is only there where torch has processes
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["Evaluation", "evaluate"]

Metric = Callable[[Tensors, Tensors, Any], Any]
NORMAL = 1.959964  # of a normal distribution 95 % lie within so many deviations


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Metrics of T tasks, after adaptation.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> theta_0, one = {"w": torch.zeros(2)}, torch.ones(2)
    >>> targets = torch.tensor([[1.0, 3.0], [0.0, 2.0]])                  # of two tasks
    >>> gimli.evaluate(problem, theta_0, [targets], targets, tasks=2).metrics["loss"]
    tensor([1.2500, 0.5000])
    """

    metrics: dict[str, Tensor]  # [T] each
    trajectory: Trajectory  # where each task's inner loop went

    @property
    def mean(self) -> dict[str, float]:
        """The mean over the tasks."""
        return {name: float(v.double().mean()) for name, v in self.metrics.items()}

    @property
    def interval(self) -> dict[str, float]:
        """Half the width of a 95 % interval around the mean, 1.96·s/√T, as few-shot papers state it; nan for one task.

        s is the deviation between tasks, T - 1 in its denominator. Below some 30 tasks it is too narrow.
        """
        return {name: NORMAL * _deviation(v.double()) / len(v) ** 0.5 for name, v in self.metrics.items()}

    def __repr__(self) -> str:
        T, interval = len(next(iter(self.metrics.values()))), self.interval
        told = ", ".join(f"{name} {mean:.4g} ± {interval[name]:.2g}" for name, mean in self.mean.items())
        return f"Evaluation({told}; {T} task{'s' * (T != 1)})"


def evaluate(
    problem: Problem,
    theta_0: Mapping[str, Tensor],
    train_batches: Sequence[Any] | Callable[[int], Any],
    val_batch: Any,
    metrics: Mapping[str, Metric] | None = None,
    *,
    steps: int | None = None,
    phi_opt: Mapping[str, Any] | None = None,
    phi_loss: Mapping[str, Any] | None = None,
    state_0: State | None = None,
    tasks: int | Tasks | None = None,
    until: Until | Callable[..., Any] | None = None,
    mesh: DeviceMesh | str | None = None,
) -> Evaluation:
    """Adapt, then measure each task on its val_batch: per-task metrics, their mean and a 95 % interval.

    Args:
        metrics: `{name: function (theta, phi_loss, batch) -> number}`, each of one task, with theta_J whole; by default
            `{"loss": val_loss}`. They are vectorised over the tasks; one that cannot be is called for each in turn.
        mesh: as for `meta_gradient`, but "data": a metric of parts need not be a mean. Every rank has all results.
        problem, theta_0, train_batches, val_batch and the others: as in `meta_gradient`.

    Returns:
        Evaluation: `.metrics` `[T]` by name, `.mean`, `.interval`, `.trajectory`. Nothing is differentiated.

    Raises:
        ArgumentError: metrics that are no functions, or return no single number; and what `adapt` raises.

    Cost: that of `adapt`, and one call of each metric.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).mean()
    >>> def near(theta, phi, target):
    ...     return ((theta["w"] - target).abs() < 0.5).double().mean()
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5))
    >>> targets = torch.tensor([[1.0, 3.0], [0.2, -0.4], [0.6, 8.0]])       # of three tasks
    >>> gimli.evaluate(problem, {"w": torch.zeros(2)}, [targets], targets, {"near": near}, tasks=3)
    Evaluation(near 0.5 ± 0.57; 3 tasks)
    """
    metrics = _checked(metrics, problem)
    checked = check_mesh(mesh)
    if checked is not None and checked.data is not None:
        do = "Adapt with mesh=, and measure theta_J on every rank's part yourself."
        raise unexpected("mesh", 'None, "tasks" or "shard" where metrics are asked for', "one of parts of batches", do)
    problem, phi_loss, places = unnested(problem, phi_loss)
    if places:
        metrics = {name: NestedLoss(metric, places) for name, metric in metrics.items()}
    T = check_tasks(tasks)
    ended = adapt(
        problem,
        theta_0,
        train_batches,
        steps=steps,
        phi_opt=phi_opt,
        phi_loss=phi_loss,
        state_0=state_0,
        tasks=tasks,
        until=until,
        mesh=checked,  # type: ignore[arg-type]
    )
    J = len(ended.train_losses)
    batch, phi = check_val_batch(val_batch, J)(J), _tensors(phi_loss)
    environment = Environment(modules_of(problem), next(iter(ended.theta_J.values())).device)
    before = environment.capture()
    try:
        with torch.no_grad():
            _lay(environment, ended.buffers_J)
            of_all = _alone if T is None else _over_tasks(problem, theta_0, phi_loss, T)
            means = {
                name: of_all(_of_one(metric, name, J), name)(ended.theta_J, phi, batch)
                for name, metric in metrics.items()
            }
    finally:
        environment.restore(before)
    return Evaluation(means, ended)


def _over_tasks(problem: Problem, theta_0: Any, phi_loss: Any, tasks: Tasks) -> Callable[[Any, str], Metric]:
    """What makes a metric of one task, and its name, a metric of all: [T] values."""
    theta_per_task, plain = theta_by_task(theta_0, tasks.count)
    shared = frozenset(k for k in split_frozen(plain)[1] if k not in theta_per_task)
    all_marked, entries = split_marked(phi_loss)
    by_task = frozenset(k for k, v in (entries or {}).items() if all_marked or isinstance(v, PerTask))
    modules = modules_of(problem)
    return lambda of_one, name: LossOverTasks(of_one, name, tasks.count, shared, by_task, modules)


def _alone(of_one: Metric, name: str) -> Metric:
    """A metric without tasks, as of one task: [1]."""

    def of_all(theta: Tensors, phi_loss: Tensors, batch: Any) -> Tensor:
        value: Tensor = of_one(theta, phi_loss, batch)
        if value.ndim != 0:
            do = "Reduce it with .mean()."
            raise unexpected(name, "one number for a task", f"shape {list(value.shape)}", do)
        return value.reshape(1)

    return of_all


def _of_one(metric: Metric, name: str, J: int) -> Metric:
    """A metric at theta_J, without what it returns beside its value."""

    def of_one(theta: Tensors, phi_loss: Tensors, batch: Any) -> Any:
        return torch.as_tensor(value_and_aux(called(metric, theta, phi_loss, batch, J), name)[0])

    return of_one


def _lay(environment: Environment, buffers_J: Tensors) -> None:
    """Put what the inner loop left in the buffers, such as running statistics, where the metrics read them."""
    for buffer, left in zip(environment.buffers, buffers_J.values(), strict=True):
        if left.shape != buffer.shape:
            do = "Evaluate one task at a time, or normalise by batch statistics alone."
            raise unexpected("tasks", "an inner loop that changes no buffer", "one of each task's own", do)
        buffer.copy_(left)


def _tensors(phi_loss: Any) -> Tensors:
    return {k: torch.as_tensor(unmarked(v)).detach() for k, v in (unmarked(phi_loss) or {}).items()}


def _checked(metrics: Any, problem: Any) -> Mapping[str, Metric]:
    if metrics is None and isinstance(problem, Problem):
        return {"loss": problem.val_loss}
    functions = isinstance(metrics, Mapping) and metrics and all(map(callable, metrics.values()))
    if not functions and isinstance(problem, Problem):
        do = 'For example {"accuracy": lambda theta, phi, batch: …}.'
        raise unexpected("metrics", "a dict {name: function}", repr(metrics), do)
    return metrics  # type: ignore[no-any-return]


def _deviation(values: Tensor) -> float:
    return float(values.std()) if len(values) > 1 else float("nan")
