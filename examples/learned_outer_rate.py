"""A learned initialisation whose own outer rate is learned: two nested inner loops.

The inner loop fits a sine wave from K points, the middle loop moves the initialisation (and is MAML), the outer loop
moves the rates of both:

    inner    x_{i+1} = x_i - α·grad of the fit,                    x_0 = w
    middle   w_{j+1} = w_j - β·grad over w_j of the query loss of x_I, the mean over tasks
    outer    log α, log β by Adam, on the query loss of new tasks after the last w

Run: python examples/learned_outer_rate.py [--outer 40]. Needs nothing but the library. On two cores a minute or two.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

import gimli_core as gimli

TASKS, SHOTS, INNER, MIDDLE = 8, 10, 3, 5
NET = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1))


def waves(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, y) to fit and (x, y) to judge, of TASKS sine waves with phases and amplitudes of their own."""
    amplitude = 0.5 + 1.5 * torch.rand(TASKS, 1, 1, generator=generator)
    phase = math.pi * torch.rand(TASKS, 1, 1, generator=generator)
    x = 6 * torch.rand(TASKS, 2 * SHOTS, 1, generator=generator) - 3
    y = amplitude * torch.sin(x + phase)
    return x[:, :SHOTS], y[:, :SHOTS], x[:, SHOTS:], y[:, SHOTS:]


def fit(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared error of one task."""
    x, y = batch
    return ((functional_call(NET, theta, x) - y) ** 2).mean()


TASK = gimli.Problem(fit, fit, gimli.optimizers.SGD())


def after_fitting(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
    """The middle loop's loss: the query loss after INNER steps from theta, the mean over tasks."""
    x, y, x_query, y_query = batch
    loss: Tensor = gimli.unroll(
        TASK,
        theta,
        lambda i: (x, y),
        (x_query, y_query),
        steps=INNER,
        phi_opt={"lr": phi["log_alpha"].exp()},
        tasks=TASKS,
        derivatives=2,
    )
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--outer", type=int, default=40, help="outer steps")
    steps = parser.parse_args().outer
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    log_alpha, log_beta = (torch.tensor(math.log(rate), requires_grad=True) for rate in (0.01, 0.01))
    outer = torch.optim.Adam([log_alpha, log_beta], lr=0.1)
    middle = gimli.Problem(after_fitting, after_fitting, gimli.optimizers.SGD())
    w = {k: v.detach().clone() for k, v in NET.named_parameters()}
    for step in range(steps):
        batches = [waves(generator) for _ in range(MIDDLE + 1)]
        outer.zero_grad()
        loss, trajectory = gimli.unroll(
            middle,
            w,
            batches[:-1],
            batches[-1],
            phi_opt={"lr": log_beta.exp()},
            phi_loss={"log_alpha": log_alpha},
            with_trajectory=True,
        )
        loss.backward()
        outer.step()
        w = trajectory.theta_J  # the initialisation goes on from where it is
        if step % 5 == 0 or step == steps - 1:
            rates = f"α {log_alpha.exp().item():.4f}  β {log_beta.exp().item():.4f}"
            print(f"step {step:3}  query loss {loss.item():.4f}  {rates}")


if __name__ == "__main__":
    main()
