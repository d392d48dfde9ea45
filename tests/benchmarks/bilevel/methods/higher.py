"""higher's differentiable SGD, differentiated by autograd through the unroll."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.benchmarks.bilevel.problem import Bilevel, Reached, Tensors, gradient, leaves, outer_loop


def unrolled(problem: Bilevel) -> Iterator[Reached]:
    import higher

    own = list(
        leaves(problem.start(problem.phi_0)).values()
    )  # what its optimizer is made for; their values are not used
    inner = torch.optim.SGD(own, lr=problem.lr)

    def hypergradient(phi: Tensors) -> tuple[Tensor, Tensors]:
        stepper = higher.optim.get_diff_optim(inner, own)
        theta = {k: v if v.requires_grad else v.clone().requires_grad_() for k, v in problem.start(phi).items()}
        for j in range(problem.steps):
            moved = stepper.step(problem.ell_j(j, theta, phi), params=list(theta.values()))
            theta = dict(zip(theta, moved, strict=True))
        loss = problem.L(theta, phi)
        return loss, gradient(loss, phi)

    return outer_loop(problem, hypergradient)
