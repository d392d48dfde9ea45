"""A problem with all that replay must restore: dropout, BatchNorm, per-step rates, losses along the way."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import gimli_core as gimli

STEPS = 9


def gradients(memory, rule=None, steps=STEPS, val_weights=None, **options):
    """A meta-gradient from fixed seeds; everything that it returns, flat."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3))
    x, y = torch.randn(steps + 1, 8, 4), torch.randint(3, (steps + 1, 8))

    def loss(theta, phi, batch):
        out = torch.func.functional_call(net, theta, (batch[0],))
        return F.cross_entropy(out, batch[1]) + phi["l2"] * sum(v.square().sum() for v in theta.values())

    problem = gimli.Problem(loss, loss, rule or gimli.optimizers.Adam())
    result = gimli.meta_gradient(
        problem, {k: v.detach() for k, v in net.named_parameters()}, lambda j: (x[j], y[j]), (x[-1], y[-1]),
        steps=steps,
        phi_opt={"lr": torch.linspace(0.01, 0.02, steps)}, phi_loss={"l2": torch.tensor(0.01)}, memory=memory,
        val_weights=val_weights, **options,
    )  # fmt: skip
    flat = {"L": result.val_loss, "lr": result.A_opt["lr"], "l2": result.A_loss["l2"], "losses": result.train_losses}
    flat |= {f"B.{k}": v for k, v in result.B_0.items()} | {f"theta.{k}": v for k, v in result.theta_J.items()}
    flat |= {f"S.{slot}.{k}": v for slot, held in result.S_0.items() for k, v in held.items()}
    return flat | {f"buffer.{k}": v for k, v in result.buffers_J.items()}


def assert_identical(found, expected):
    assert list(found) == list(expected)
    for k, v in found.items():
        assert torch.equal(v, expected[k]), k
