"""SOBA: theta, the solution v of the linear system, and phi move together, one product each at a time.

    theta ← theta − ρ ∇_theta ell;   v ← v − ρ (∇²_theta ell·v − ∇_theta L)
    phi moves along ∇_phi L − v·∂²ell/∂theta∂phi

all three at the same (theta, v, phi). Dagréou et al. 2022, A framework for bilevel optimization that enables stochastic
and global variance reduction algorithms. ρ is the inner steps' rate, and an iteration sees the parts of the data that
an inner step does; phi moves by Adam, as for all methods, with a smaller rate, since it moves many times as often. As
many iterations as half an unroll has steps are counted as one outer step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tests.benchmarks.bilevel.problem import Bilevel, Reached, gradient, leaves

SLOWER = 30  # of 3, 10 and 30 the one with which no problem diverges


def soba(problem: Bilevel) -> Iterator[Reached]:
    phi = leaves(problem.phi_0)
    theta = leaves(problem.start(phi))
    v = {k: torch.zeros_like(x) for k, x in theta.items()}
    adam = torch.optim.Adam(list(phi.values()), lr=problem.outer_lr / SLOWER)
    while True:
        before = {k: x.detach().clone() for k, x in phi.items()}
        for j in range(problem.steps // 2):
            both = {**{f"theta {k}": x for k, x in theta.items()}, **{f"phi {k}": x for k, x in phi.items()}}
            G = gradient(problem.ell_j(j, theta, phi), theta, create_graph=True)
            along = torch.stack([(g * v[k]).sum() for k, g in G.items()]).sum()
            Hv, dL = gradient(along, both), gradient(problem.val_loss(theta, phi, problem.val_batch(j)), both)
            for k, x in phi.items():
                x.grad = dL[f"phi {k}"] - Hv[f"phi {k}"]
            adam.step()
            v = {k: x - problem.lr * (Hv[f"theta {k}"] - dL[f"theta {k}"]) for k, x in v.items()}
            theta = {k: (x - problem.lr * G[k]).detach().requires_grad_() for k, x in theta.items()}
        yield Reached(before)
