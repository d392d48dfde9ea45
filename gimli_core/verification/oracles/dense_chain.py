"""Oracle (d): the chain rule with whole matrices, forwards.

With z = (theta, s) in one vector and x all meta-parameters in another, z_0 = I(x) and z_{j+1} = F_j(z_j, x):

    D_0     = dI/dx
    D_{j+1} = dF_j/dz D_j + dF_j/dx
    dL/dx   = Σ_j w_j (dL_val/dz_j D_j + dL_val/dx)

The matrices come from autograd through single plain steps; how steps combine owes nothing to reverse mode. For
small problems only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from gimli_core.environment import Environment, split_frozen
from gimli_core.notation import State, Tensors, counts, slots
from gimli_core.verification.oracles.plain_rules import Root, handed, initial_state, plain_step, values_at
from gimli_core.verification.oracles.plain_unroll import inner_gradient
from gimli_core.verification.question import Entries, Question, flatten, rebuild, same_randomness
from gimli_core.verification.tasks import joined, keys_by_task, of_each, scale_of

__all__ = ["LIMIT", "dense_chain"]

LIMIT = 250  # elements of z and of x together, of one task


def dense_chain(question: Question, environment: Environment, *, root: Root = torch.sqrt) -> Entries | None:
    """The meta-gradient, or None where z and x are too large. Cost: 9F·(|theta| + |s|)·J, of each task."""
    each: list[Entries] = []
    for one in of_each(question):
        totals = _of_one(one, environment, root)
        if totals is None:
            return None
        each.append(totals)
    return each[0] if question.tasks is None else joined(each, keys_by_task(question), scale_of(question))


def _of_one(question: Question, environment: Environment, root: Root) -> Entries | None:
    """The derivatives of one inner loop."""
    leaves = question.entries()
    theta_0: Tensors = {key[1]: leaf for key, leaf in leaves.items() if key[0] == "B_0"}
    s_0 = initial_state(question, leaves, theta_0)
    like_x, like_z = leaves, flatten([theta_0, slots(s_0)], ())
    if sum(v.numel() for v in (*like_x.values(), *like_z.values())) > LIMIT:
        return None
    counted, frozen = {0: counts(s_0)}, split_frozen(question.call.theta_0)[1]

    def unpack_z(z: Tensor, j: int) -> tuple[Tensors, State]:
        theta, s = rebuild([theta_0, slots(s_0)], (), _split(z, like_z))
        return theta, {**counted[j], **s}

    def start(x: Tensor) -> Tensor:
        entries = _split(x, like_x)
        theta = {key[1]: leaf for key, leaf in entries.items() if key[0] == "B_0"}
        return _join(flatten([theta, slots(initial_state(question, entries, theta))], ()))

    def step(j: int) -> Callable[[Tensor, Tensor], Tensor]:
        def F(z: Tensor, x: Tensor) -> Tensor:
            (theta, s), entries = unpack_z(z, j), _split(x, like_x)
            phi = question.phi_of(entries)
            G, unused, loss = inner_gradient(question, theta, phi, j, frozen, graph=True)
            hyper = handed(question, values_at(question, entries, theta, j), j, loss)
            theta, s = plain_step(question, theta, s, G, hyper, root, unused)
            counted[j + 1] = counts(s)
            return _join(flatten([theta, slots(s)], ()))

        return F

    def L_val(j: int) -> Callable[[Tensor, Tensor], Tensor]:
        def L(z: Tensor, x: Tensor) -> Tensor:
            phi = question.phi_of(_split(x, like_x))
            return question.outer_loss({**frozen, **unpack_z(z, j)[0]}, phi, j)

        return L

    x = _join(leaves)
    z, D = start(x), jacobian(start, x)
    total = torch.zeros_like(x)
    with same_randomness(environment):
        for j, weight in enumerate(question.weights()):
            if weight:
                with same_randomness(environment):
                    by_z, by_x = jacobian(L_val(j), (z, x))
                total = total + weight * (by_z @ D + by_x)
            if j < question.steps:
                with same_randomness(environment):
                    by_z, by_x = jacobian(step(j), (z, x))
                z, D = step(j)(z.requires_grad_(), x).detach(), by_z @ D + by_x
    return _split(total, like_x)


def _join(entries: Entries) -> Tensor:
    return torch.cat([v.reshape(-1) for v in entries.values()])


def _split(vector: Tensor, like: Entries) -> Entries:
    parts = vector.split([v.numel() for v in like.values()])
    return {key: part.reshape(v.shape).to(v.dtype) for (key, v), part in zip(like.items(), parts, strict=True)}
