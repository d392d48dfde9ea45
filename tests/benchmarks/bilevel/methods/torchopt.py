"""torchopt's functional SGD, differentiated by autograd through the unroll."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from tests.benchmarks.bilevel.problem import Bilevel, Reached, Tensors, gradient, outer_loop


def unrolled(problem: Bilevel) -> Iterator[Reached]:
    import torchopt

    rule = torchopt.sgd(lr=problem.lr)

    def hypergradient(phi: Tensors) -> tuple[Tensor, Tensors]:
        theta = {k: v if v.requires_grad else v.clone().requires_grad_() for k, v in problem.start(phi).items()}
        state = rule.init(theta)
        for j in range(problem.steps):
            G = gradient(problem.ell_j(j, theta, phi), theta, create_graph=True)
            updates, state = rule.update(G, state, inplace=False)
            theta = torchopt.apply_updates(theta, updates, inplace=False)
        loss = problem.L(theta, phi)
        return loss, gradient(loss, phi)

    return outer_loop(problem, hypergradient)
