"""What gradients are compared with, in float64: that of J steps by autograd, and that at the inner minimum."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from tests.benchmarks.bilevel.problem import Bilevel, Tensors, descended, gradient, leaves

# The norm of the gradient at which theta counts as the minimum, and after how many steps it must.
MINIMUM, NEWTON = 1e-10, 20


def of_steps(problem: Bilevel) -> Tensors:
    """dL(theta_J(phi), phi)/dphi at phi_0, by autograd through a plain unroll."""
    problem = problem.to(torch.float64)
    phi = leaves(problem.phi_0)
    theta = {k: v if v.requires_grad else v.clone().requires_grad_() for k, v in problem.start(phi).items()}
    for j in range(problem.steps):
        G = gradient(problem.ell_j(j, theta, phi), theta, create_graph=True)
        theta = {k: v - problem.lr * G[k] for k, v in theta.items()}
    return gradient(problem.L(theta, phi), phi)


def of_minimum(problem: Bilevel) -> Tensors | None:
    """dL(theta*(phi), phi)/dphi at phi_0, where ell is convex: its closed form, or by Newton's steps and SciPy's CG."""
    if not problem.convex:
        return None
    problem = problem.to(torch.float64)
    if problem.closed_form is not None:
        return problem.closed_form(problem)
    phi, theta = leaves(problem.phi_0), leaves(descended(problem, problem.phi_0))
    for _ in range(NEWTON):
        G = gradient(problem.ell(theta, phi), theta, create_graph=True)
        if torch.stack([g.norm() for g in G.values()]).norm() <= MINIMUM:
            break
        step = solved(G, theta, {k: g.detach() for k, g in G.items()})
        theta = {k: (v.detach() - step[k]).requires_grad_() for k, v in theta.items()}
    else:
        raise ArithmeticError(f"{problem.name}: expected the inner minimum in {NEWTON} of Newton's steps; got none")
    v = solved(G, theta, gradient(problem.L(theta, phi), theta))
    mixed, direct = gradient(along(G, v), phi), gradient(problem.L(theta, phi), phi)
    return {k: direct[k] - mixed[k] for k in phi}


def along(G: Tensors, v: Tensors) -> Tensor:
    return torch.stack([(g * v[k]).sum() for k, g in G.items()]).sum()


def solved(G: Tensors, theta: Tensors, b: Tensors) -> Tensors:
    """H⁻¹ b, where G is the gradient with its graph."""

    def product(v: np.ndarray) -> np.ndarray:
        return flat(gradient(along(G, parted(torch.from_numpy(v), theta)), theta, retain_graph=True))

    size = sum(v.numel() for v in theta.values())
    v, failed = cg(LinearOperator((size, size), matvec=product, dtype=np.float64), flat(b), rtol=1e-10, maxiter=5000)
    if failed:
        raise ArithmeticError("SciPy's conjugate gradients did not come to 1e-10")
    return parted(torch.from_numpy(v), theta)


def flat(tensors: Tensors) -> np.ndarray:
    return torch.cat([v.detach().reshape(-1) for v in tensors.values()]).numpy()


def parted(vector: Tensor, like: Tensors) -> Tensors:
    pieces = vector.split([v.numel() for v in like.values()])
    return {k: piece.view_as(v) for (k, v), piece in zip(like.items(), pieces, strict=True)}
