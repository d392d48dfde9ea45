"""Sine waves as tasks: a few points of one to learn from, others to be tested on. Used by the recipe_*.py examples."""

import math

import torch
from torch.func import functional_call

import gimli_core as gimli

TASKS, STEPS = 8, 5  # tasks of an outer step, inner steps


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(1, 40), torch.nn.Tanh(), torch.nn.Linear(40, 40), torch.nn.Tanh(), torch.nn.Linear(40, 1)
    )


def draw(generator: torch.Generator) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """((x, y) to learn from, (x, y) to be tested on) of one wave."""
    amplitude, phase = torch.rand(2, generator=generator) * torch.tensor([4.9, math.pi]) + torch.tensor([0.1, 0.0])
    x = torch.rand(20, 1, generator=generator) * 10 - 5
    y = amplitude * torch.sin(x + phase)
    return (x[:10], y[:10]), (x[10:], y[10:])


def problem(net: torch.nn.Module) -> gimli.Problem:
    def loss(theta, phi, batch):
        return torch.nn.functional.mse_loss(functional_call(net, theta, batch[0]), batch[1])

    return gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.01))


train_tasks = gimli.TaskSampler(draw, TASKS, seed=0)
test_tasks = gimli.TaskSampler(draw, 100, seed=1)


def loss_after_adaptation(net: torch.nn.Module, of: gimli.Problem, drawn) -> torch.Tensor:
    """The mean loss of the tasks after their inner steps: MAML's, tied into autograd."""
    support, query = drawn
    return gimli.unroll(of, dict(net.named_parameters()), lambda j: support, query, steps=STEPS, tasks=len(query[0]))
