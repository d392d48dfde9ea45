"""What all gradient-based methods share: a learner, its inner loop, and what is asked of it afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from gimli_core.evaluation.adapt import adapt
from gimli_core.few_shot.episodes import Episode
from gimli_core.few_shot.method import Method
from gimli_core.notation import Tensors
from gimli_core.optimizers.interface import Optimizer
from gimli_core.problem import Problem
from gimli_core.results import Trajectory
from gimli_core.unroll import unroll

__all__ = ["Adapting", "by_name", "learned"]


class Adapting(Method):
    """Adapts its learner to a task's support by J inner steps, all tasks of a meta-batch in one vectorised run.

        theta_{j+1} = opt(theta_j, ∇ ell(theta_j; support)),  L = mean over tasks of ell(theta_J; queries)

    Args:
        learner: a network with `way` outputs; its batch norm must use the statistics of the batch at hand, so that
            all queries of a task are normalised together: in the test too, which is transductive.
        optimizer: of the inner loop.
        steps: J in training.
        test_steps: J in the test; by default the same.
        objective: ell, of the outputs and y: cross entropy, or for regression `mse_loss`.
    """

    def __init__(
        self,
        learner: nn.Module,
        optimizer: Optimizer,
        steps: int,
        test_steps: int | None = None,
        objective: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    ) -> None:
        super().__init__()
        self.learner, self.objective = learner, objective
        self.steps, self.test_steps = steps, steps if test_steps is None else test_steps
        ell: Any = self._ell  # one that takes j
        self.problem = Problem(ell, ell, optimizer)

    def theta_0(self) -> Mapping[str, Tensor]:
        """What adapts."""
        return dict(self.learner.named_parameters())

    def meta_parameters(self) -> dict[str, Any]:
        """phi_opt and phi_loss, as `unroll` takes them."""
        return {}

    def weights(self, theta: Tensors, phi_loss: Tensors, j: Tensor) -> Tensors:
        """The learner's parameters at theta_j."""
        return theta

    def _ell(self, theta: Tensors, phi_loss: Tensors, batch: tuple[Tensor, Tensor], j: Tensor) -> Tensor:
        x, y = batch
        return self.objective(functional_call(self.learner, self.weights(theta, phi_loss, j), (x,)), y)

    def unrolled(self, episode: Episode, **arguments: Any) -> Tensor:
        """The query loss after the inner loop, tied into autograd; `arguments` go to `unroll`."""
        loss: Tensor = unroll(
            self.problem,
            self.theta_0(),
            lambda j: (episode.support_x, episode.support_y),
            (episode.query_x, episode.query_y),
            steps=self.steps,
            tasks=episode.tasks,
            compile=False,
            **self.meta_parameters(),
            **arguments,
        )
        return loss

    def loss(self, episode: Episode) -> Tensor:
        return self.unrolled(episode)

    def adapted(self, support_x: Tensor, support_y: Tensor, **arguments: Any) -> Trajectory:
        """The inner loop alone, as in the test."""
        ours = {"train_batches": lambda j: (support_x, support_y), "steps": self.test_steps, **self.meta_parameters()}
        with torch.no_grad():
            return adapt(self.problem, self.theta_0(), tasks=len(support_x), **{**ours, **arguments})

    def outputs(self, theta_J: Tensors, query_x: Tensor) -> Tensor:
        """[T, Q, way]: each task's adapted learner on its queries."""
        phi_loss, J = self.meta_parameters().get("phi_loss") or {}, torch.tensor(self.test_steps, device=query_x.device)

        def of_task(theta: Tensors, x: Tensor) -> Any:
            return functional_call(self.learner, self.weights(theta, phi_loss, J), (x,))

        out: Tensor = vmap(of_task)(theta_J, query_x)
        return out

    def predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        return self.outputs(self.adapted(support_x, support_y).theta_J, query_x)


def learned(values: Mapping[str, Tensor]) -> nn.ParameterDict:
    """Parameters under names that may have dots, which a ParameterDict refuses; `by_name` gives them back."""
    return nn.ParameterDict({name.replace(".", "/"): nn.Parameter(value) for name, value in values.items()})


def by_name(parameters: nn.ParameterDict) -> dict[str, Tensor]:
    """What `learned` was given, as parameters."""
    return {name.replace("/", "."): value for name, value in parameters.items()}
