"""Attribution in plain torch: the peer's method written plainly, autograd through the whole of training, and the bound
of both, the derivatives that they cannot do without."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.benchmarks.attribution.training import BETAS, DECAY, EPS, LR, N, Training

__all__ = ["by_autograd", "by_stored_states", "derivatives_alone"]

Tensors = dict[str, Tensor]
State = tuple[Tensors, Tensors, Tensors]  # theta, m, v


def _step(work: Training, at: State, w: Tensor, j: int, traced: bool) -> State:
    theta, m, v = at
    batch = work.batch(j)
    loss = work.train_loss(theta, {"w": w[batch["rows"]]}, batch)
    G = dict(zip(theta, torch.autograd.grad(loss, list(theta.values()), create_graph=traced), strict=True))
    m = {k: BETAS[0] * m[k] + (1 - BETAS[0]) * g for k, g in G.items()}
    v = {k: BETAS[1] * v[k] + (1 - BETAS[1]) * g * g for k, g in G.items()}
    c_1, c_2 = (1 - beta ** (j + 1) for beta in BETAS)

    def moved(k: str) -> Tensor:
        x = v[k] / c_2 + work.eps_root
        unmoved = x == 0  # the root's slope is infinite there and what it is multiplied by is 0: their limit is 0
        root = torch.where(unmoved, 0.0, torch.sqrt(torch.where(unmoved, 1.0, x)))
        return theta[k] * (1 - LR * DECAY) - LR * (m[k] / c_1) / (root + EPS)

    return {k: moved(k) for k in theta}, m, v


def _leaves(at: State) -> State:
    theta, m, v = ({k: x.detach().requires_grad_() for k, x in part.items()} for part in at)
    return theta, m, v


def _flat(at: State) -> list[Tensor]:
    return [x for part in at for x in part.values()]


def _start(work: Training) -> State:
    zeros = {k: torch.zeros_like(x) for k, x in work.theta_0.items()}
    return _leaves((work.theta_0, zeros, dict(zeros)))


def by_stored_states(work: Training) -> Tensor:
    """[k, N] by the method of MAGIC: about sqrt(J) states are kept, a stretch between two is run again, and each step
    is swept by autograd through its traced update; one sweep for each query."""
    J, w = work.steps, torch.ones(N, dtype=next(work.net.parameters()).dtype, requires_grad=True)
    stretch = math.isqrt(J)
    kept: dict[int, State] = {}
    at = _start(work)
    for j in range(J):
        if j % stretch == 0:
            kept[j] = at
        at = _leaves(_step(work, at, w, j, traced=False))
    rows = []
    for q in range(work.queries):
        loss = work.losses(at[0], work.asked[q : q + 1])[0]
        adjoint = [
            *torch.autograd.grad(loss, list(at[0].values())),
            *(torch.zeros_like(x) for x in _flat(at)[len(at[0]) :]),
        ]
        row = torch.zeros(N, dtype=w.dtype)
        for first in sorted(kept, reverse=True):
            states = [kept[first]]
            for j in range(first, min(first + stretch, J) - 1):
                states.append(_leaves(_step(work, states[-1], w, j, traced=False)))
            for j in reversed(range(first, min(first + stretch, J))):
                before = states.pop()
                after = _flat(_step(work, before, w, j, traced=True))
                *adjoint, by_w = torch.autograd.grad(after, [*_flat(before), w], adjoint)
                row += by_w
        rows.append(row)
    return torch.stack(rows)


def by_autograd(work: Training) -> Tensor:
    """[k, N] through the graph of all J steps."""
    w = torch.ones(N, dtype=next(work.net.parameters()).dtype, requires_grad=True)
    at = _start(work)
    for j in range(work.steps):
        at = _step(work, at, w, j, traced=True)
    losses = work.losses(at[0], work.asked)
    return torch.stack([torch.autograd.grad(L, w, retain_graph=True)[0] for L in losses])


def derivatives_alone(work: Training, parts: int = 1) -> None:
    """What no engine that keeps no graph can save, and nothing besides: J gradients, and J gradients with a product of
    second order, all at theta_0, each of a batch in `parts`. No optimizer, nothing added up. Cost: 12F a step."""
    w = torch.ones(N, dtype=next(work.net.parameters()).dtype)
    for j, second_order in [(j, second_order) for second_order in (False, True) for j in range(work.steps)]:
        batch, theta = work.batch(j), {k: v.requires_grad_() for k, v in work.theta_0.items()}
        for text, rows in zip(batch["text"].tensor_split(parts), batch["rows"].tensor_split(parts), strict=True):
            w_of_part = w[rows].requires_grad_()
            loss = work.train_loss(theta, {"w": w_of_part}, {"text": text})
            G = torch.autograd.grad(loss, list(theta.values()), create_graph=second_order)
            if second_order:
                torch.autograd.grad(G, [*theta.values(), w_of_part], [torch.ones_like(g) for g in G])
