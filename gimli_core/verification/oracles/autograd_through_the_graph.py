"""Oracle (a): autograd through the plainly written unroll of `plain_unroll`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from gimli_core.environment import Environment, Snapshot, keeping_buffers
from gimli_core.verification.oracles.plain_rules import Root
from gimli_core.verification.oracles.plain_unroll import Rounding, Unroll
from gimli_core.verification.question import Entries, Question, same_randomness
from gimli_core.verification.tasks import joined, keys_by_task, leaves_of, of_each, scale_of

__all__ = ["Totals", "autograd_gradient", "draws", "loss_value", "random_rounding"]


@dataclass(frozen=True)
class Totals:
    """What autograd found: the meta-gradient, and every quantity of Algorithm 1 by symbol, step and name.

    With T tasks a quantity is `[T, …]`, but for the loss and for what a phi_loss that they share gets.
    """

    loss: Tensor
    gradient: Entries
    # ("loss", J), ("G", j, name), ("theta", j, name), ("s", j, slot, name)
    forward: Entries
    # ("V", j, name), ("B", j, name), ("S", j, slot, name), ("A_opt", j, name, hyperparameter), ("A_loss", j, name),
    # and ("B with L", j, name): B_j with the gradient of L_val(theta_j) in it, where that has a weight
    backward: Entries


def loss_value(
    question: Question, leaves: Entries, environment: Environment, buffers: list[Snapshot] | None = None
) -> float:
    """L at `leaves`, for finite differences. Random numbers and buffers are left as found.

    A derivative takes buffers for constants, though a BatchNorm in eval mode reads what earlier theta_j left in
    them. So must a difference: the first call with an empty list `buffers` fills it, later ones find the same.
    """
    buffers = [] if buffers is None else buffers
    by_task, total = keys_by_task(question), 0.0
    for t, one in enumerate(of_each(question)):
        with same_randomness(environment):
            unroll = Unroll(one, leaves_of(leaves, by_task, t), environment, graph=False, buffers=buffers)
            total += float(unroll.run().detach())
    return scale_of(question) * total


def draws(question: Question, environment: Environment) -> bool:
    """Whether a batch or loss of an unroll draws random numbers (or changes buffers). Cost: 3F·J, of one task."""
    one, by_task = of_each(question)[0], keys_by_task(question)
    with same_randomness(environment):
        snapshot = environment.capture()
        Unroll(one, leaves_of(question.entries(), by_task, 0), environment, graph=False).run()
        return environment.moved(snapshot)


def random_rounding(dtype: torch.dtype, seed: int) -> Rounding:
    """Every number moved up or down by one unit in the last place of `dtype`."""
    generator = torch.Generator().manual_seed(seed)

    def rounding(x: Tensor) -> Tensor:
        up = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
        return x * (1 + up * torch.finfo(dtype).eps)

    return rounding


def autograd_gradient(
    question: Question, environment: Environment, *, root: Root = torch.sqrt, rounding: Rounding | None = None
) -> Totals:
    """The meta-gradient by autograd, with every quantity on the way.

    Args:
        question: what to differentiate.
        environment: random numbers and buffers; left as found.
        root: the square root of the adaptive rules; `flat_root` where an element of v is 0.
        rounding: applied to every theta_j, G_j and s_j, and by float64 units to phi_opt. How far
            `random_rounding` moves the result is what
            rounding alone can do to it: the conditioning bound of the report.

    Cost: 9F·J, and the whole graph in memory; with tasks, that of each in turn.
    """
    if question.tasks is None:
        return _of_one(question, environment, root, rounding)
    each = [_of_one(one, environment, root, rounding) for one in of_each(question)]
    scale, by_task, J = scale_of(question), keys_by_task(question), question.steps
    forward, backward = each[0].forward, each[0].backward
    shared = {key for key in backward if key[0] == "A_loss" and ("A_loss", *key[2:]) not in by_task}
    loss = scale * torch.stack([totals.loss for totals in each]).sum()
    return Totals(
        loss=loss,
        gradient=joined([totals.gradient for totals in each], by_task, scale),
        forward={**joined([totals.forward for totals in each], forward, 1.0), ("loss", J): loss},
        backward=joined([totals.backward for totals in each], backward.keys() - shared, scale),
    )


def _of_one(question: Question, environment: Environment, root: Root, rounding: Rounding | None) -> Totals:
    """The totals of one inner loop."""
    leaves = {key: value.detach().requires_grad_() for key, value in question.entries().items()}
    keeping = keeping_buffers(environment.buffers) if environment.buffers else nullcontext()
    with same_randomness(environment), keeping:
        unroll = Unroll(question, leaves, environment, graph=True, root=root, rounding=rounding)
        L = unroll.run()
        inputs = {**leaves, **{("node", *path): node for path, node in unroll.nodes.items()}}
        gradients = torch.autograd.grad(L, list(inputs.values()), allow_unused=True)
    derivatives = {
        key: torch.zeros_like(x) if g is None else g for (key, x), g in zip(inputs.items(), gradients, strict=True)
    }
    return Totals(
        loss=L.detach(),
        gradient={key: g for key, g in derivatives.items() if key[0] != "node"},
        forward=unroll.forward,
        backward={key[1:]: g for key, g in derivatives.items() if key[0] == "node"},
    )
