"""A bilevel problem, as every method is handed it.

    min over phi of L(theta_J(phi), phi)
    theta_0 = start(phi),   theta_{j+1} = theta_j − lr · ∇_theta ell(theta_j, phi)

The inner steps are plain gradient descent, with step j on the part `train_part(j)` of the training data, or on all of
it: unrolled methods, those that differentiate at the minimum, and single-loop methods all have the same inner problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Loss = Callable[[Tensors, Tensors, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Bilevel:
    """One instance, drawn from a seed."""

    name: str
    train_loss: Loss  # ell(theta, phi, train)
    val_loss: Loss  # L(theta, phi, val)
    phi_0: Tensors
    start: Callable[[Tensors], Tensors]  # phi -> theta_0
    train: Any
    val: Any
    steps: int  # J
    lr: float  # of the inner steps
    outer_lr: float  # of Adam, which moves phi for all methods
    convex: bool  # whether ell is strongly convex in theta, so that its minimum's gradient exists
    closed_form: Callable[[Bilevel], Tensors] | None = None  # dL(theta*(phi_0), phi_0)/dphi, where it is known
    parts: int = 1  # into which the data are cut; step j trains on part j modulo this
    part: Callable[[Any, int], Any] = lambda data, i: data  # the i-th of them

    def batch(self, j: int) -> Any:
        return self.part(self.train, j % self.parts)

    def val_batch(self, j: int) -> Any:
        return self.part(self.val, j % self.parts)

    def ell(self, theta: Tensors, phi: Tensors) -> Tensor:
        """On all of the training data."""
        return self.train_loss(theta, phi, self.train)

    def ell_j(self, j: int, theta: Tensors, phi: Tensors) -> Tensor:
        """Of step j."""
        return self.train_loss(theta, phi, self.batch(j))

    def L(self, theta: Tensors, phi: Tensors) -> Tensor:
        return self.val_loss(theta, phi, self.val)

    def to(self, dtype: torch.dtype) -> Bilevel:
        """The same in another precision; whole numbers stay."""
        return replace(
            self,
            phi_0=cast(self.phi_0, dtype),
            train=cast(self.train, dtype),
            val=cast(self.val, dtype),
            start=lambda phi: cast(self.start(phi), dtype),
        )


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """Floating tensors of nested dicts and tuples in another dtype."""
    if isinstance(tree, dict):
        return {k: cast(v, dtype) for k, v in tree.items()}
    if isinstance(tree, tuple):
        return tuple(cast(v, dtype) for v in tree)
    return tree.to(dtype) if isinstance(tree, Tensor) and tree.is_floating_point() else tree


def leaves(tensors: Tensors) -> Tensors:
    """Fresh copies that require grad."""
    return {k: v.detach().clone().requires_grad_() for k, v in tensors.items()}


def gradient(loss: Tensor, of: Tensors, **options: Any) -> Tensors:
    """d loss / d of, by name; zero where there is no path."""
    grads = torch.autograd.grad(loss, list(of.values()), allow_unused=True, **options)
    return {k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(of.items(), grads, strict=True)}


def descended(problem: Bilevel, phi: Tensors) -> Tensors:
    """theta_J, detached: J steps, of which nothing is kept. Cost 3F·J."""
    theta = leaves(problem.start(phi))
    for j in range(problem.steps):
        G = gradient(problem.ell_j(j, theta, phi), theta)
        theta = {k: (v.detach() - problem.lr * G[k]).requires_grad_() for k, v in theta.items()}
    return theta


@dataclass(frozen=True)
class Reached:
    """Where a method was before its last outer step, and what that step found there."""

    phi: Tensors
    loss: float | None = None  # L(theta_J(phi), phi), where the method computes it
    gradient: Tensors | None = None  # at phi; a single-loop method has none


Method = Callable[[Bilevel], Iterator[Reached]]  # one outer step a `next`
Hypergradient = Callable[
    [Tensors], tuple[Tensor, Tensors]
]  # phi -> L(theta_J(phi), phi) and its gradient, or an estimate


def outer_loop(problem: Bilevel, hypergradient: Hypergradient) -> Iterator[Reached]:
    """Adam on phi; each `next` is one meta-gradient."""
    phi = leaves(problem.phi_0)
    adam = torch.optim.Adam(list(phi.values()), lr=problem.outer_lr)
    while True:
        before = {k: v.detach().clone() for k, v in phi.items()}
        loss, grads = hypergradient(phi)
        for k, v in phi.items():
            v.grad = grads[k].detach()
        adam.step()
        yield Reached(before, float(loss.detach()), grads)
