"""Oracle (a): autograd through a plainly written unroll.

Nothing of the engine's arithmetic is used. Each optimizer is its textbook update, written so that autograd can
differentiate it (`plain_rules`). Every intermediate quantity is kept as a node of the graph, so that one call of
`torch.autograd.grad` gives the total derivative of L with respect to each theta_j, s_j, G_j and each step's use
of phi: what B_j, S_j, V_j and the increments of A_opt and A_loss must be.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gimli_core.environment import Environment, Snapshot, keeping_buffers, split_frozen
from gimli_core.errors import ArgumentError, explain
from gimli_core.notation import Hyper, State, Tensors, counts, slots
from gimli_core.verification.oracles.plain_rules import Root, initial_state, plain_step, values_at
from gimli_core.verification.question import Entries, Question, flatten, same_randomness
from gimli_core.verification.tasks import joined, leaves_of, of_each, own_keys, scale_of

__all__ = ["Rounding", "Totals", "autograd_gradient", "draws", "inner_gradient", "loss_value", "random_rounding"]

Rounding = Callable[[Tensor], Tensor]


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


@dataclass
class _Unroll:
    """One run of the loop; `nodes` and `forward` are filled as it goes, if a graph is kept.

    `buffers` are those of the modules before each step: filled by a first run, given back to a later one.
    """

    question: Question
    leaves: Entries
    environment: Environment
    graph: bool
    root: Root = torch.sqrt
    rounding: Rounding | None = None
    buffers: list[Snapshot] = field(default_factory=list)
    nodes: Entries = field(default_factory=dict)
    forward: Entries = field(default_factory=dict)

    def run(self) -> Tensor:
        """L, the weighted sum of validation losses."""
        question, weights = self.question, self.question.weights()
        frozen = split_frozen(question.theta_0)[1]
        theta: Tensors = {key[1]: leaf for key, leaf in self.leaves.items() if key[0] == "B_0"}
        phi = question.phi_of(self.leaves)
        L: Any = 0.0
        s = initial_state(question, self.leaves, theta)
        for j in range(question.steps):
            theta = self._rounded(theta)
            self._settle_buffers(j)
            if weights[j]:
                theta = self._noted("B with L", j, theta)
                with same_randomness(self.environment):
                    L = L + weights[j] * question.problem.val_loss({**frozen, **theta}, phi, question.val_batch)
            theta, s = self._truncated(j, theta, s)
            theta_j, phi_j = self._noted("B", j, theta), self._noted("A_loss", j, phi)
            s_j: State = {**counts(s), **self._noted("S", j, slots(s))}
            at = _cut(theta_j) if question.left_out.first_order else theta_j
            G_j, unused = inner_gradient(question, at, phi_j, j, frozen, graph=self.graph)
            G_j = self._rounded(G_j)
            self._seen("G", j, G_j)
            G_j = self._noted("V", j, G_j)
            values = self._rounded_finely(values_at(question, self.leaves, theta, j))
            hyper = self._noted("A_opt", j, values, learned_only=True)
            theta, s = plain_step(question, theta_j, s_j, G_j, hyper, self.root, unused)
            self._check_differentiable(theta)
            s = {**counts(s), **self._rounded(slots(s))}
            self._seen("theta", j + 1, theta)
            self._seen("s", j + 1, slots(s))
        J = question.steps
        self._settle_buffers(J)
        if weights[J]:
            theta_J, phi_J = self._noted("B with L", J, self._rounded(theta)), self._noted("A_loss", J, phi)
            L = L + weights[J] * question.problem.val_loss({**frozen, **theta_J}, phi_J, question.val_batch)
        self._seen("loss", J, L)
        assert isinstance(L, Tensor)
        return L

    def _truncated(self, j: int, theta: Tensors, s: State) -> tuple[Tensors, State]:
        """(theta_j, s_j); where the sweep ends here, as if they were theta_0 and s_0 moved by a constant."""
        if j == 0 or j != self.question.left_out.first(self.question.steps):
            return theta, s
        started = {key[1]: leaf for key, leaf in self.leaves.items() if key[0] == "B_0"}
        theta = {k: v.detach() + (started[k] - started[k].detach()) for k, v in theta.items()}
        first = initial_state(self.question, self.leaves, started)
        moved = {
            slot: {k: v.detach() + (first[slot][k] - first[slot][k].detach()) for k, v in held.items()}
            for slot, held in slots(s).items()
        }
        return theta, {"step": s["step"], **moved}

    def _settle_buffers(self, j: int) -> None:
        if j == len(self.buffers):
            self.buffers.append(self.environment.capture(self.buffers[-1] if self.buffers else None))
        else:
            self.environment.restore_buffers(self.buffers[j])

    def _check_differentiable(self, theta: Tensors) -> None:
        if self.graph and not all(v.requires_grad for v in theta.values()):
            raise ArgumentError(
                explain(f"{type(self.question.optimizer).__name__}.step", "a step that autograd can differentiate",
                        "theta' without a gradient path", "Compute it without .detach(), .item() or torch.no_grad().")
            )  # fmt: skip

    def _seen(self, symbol: str, j: int, tree: Any) -> None:
        if self.graph:
            self.forward.update({key: value.detach() for key, value in flatten(tree, (symbol, j)).items()})

    def _noted(self, symbol: str, j: int, tree: Any, learned_only: bool = False) -> Any:
        """`tree` with every tensor passed through a node of its own, whose derivative is this use's."""
        if not self.graph:
            return tree

        def visit(branch: Any, path: tuple[Any, ...]) -> Any:
            if isinstance(branch, dict):
                return {name: visit(below, (*path, name)) for name, below in branch.items()}
            if not branch.requires_grad:
                if learned_only:
                    return branch
                branch = branch.detach().requires_grad_()
            self.nodes[path] = branch.view_as(branch)
            return self.nodes[path]

        return visit(tree, (symbol, j))

    def _rounded(self, tree: Any) -> Any:
        if self.rounding is None:
            return tree
        if isinstance(tree, dict):
            return {name: self._rounded(branch) for name, branch in tree.items()}
        return self.rounding(tree)

    def _rounded_finely(self, values: Hyper) -> Hyper:
        """Hyperparameters moved by one unit of float64, in which the engine computes 1 - beta^t and its like."""
        if self.rounding is None:
            return values
        unit = torch.finfo(torch.float64).eps
        return {
            k: {name: h * (1 + unit * torch.sign(self.rounding(torch.ones_like(h)) - 1)) for name, h in named.items()}
            for k, named in values.items()
        }


def _cut(tensors: Tensors) -> Tensors:
    """The same numbers, of which nothing is a function any more, though they may be differentiated by."""
    return {k: v.detach().requires_grad_() for k, v in tensors.items()}


def inner_gradient(
    question: Question, theta: Tensors, phi: Tensors, j: int, frozen: Tensors, graph: bool
) -> tuple[Tensors, frozenset[str]]:
    """G_j, with its graph or without, and the names that the loss does not use: torch leaves them without .grad."""
    if not graph:
        theta = {k: v.detach().requires_grad_() for k, v in theta.items()}
    loss = question.problem.train_loss({**frozen, **theta}, phi, question.batch(j))
    G = torch.autograd.grad(loss, list(theta.values()), create_graph=graph, allow_unused=True)
    unused = frozenset(k for k, g in zip(theta, G, strict=True) if g is None)
    return {k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(theta.items(), G, strict=True)}, unused


def loss_value(
    question: Question, leaves: Entries, environment: Environment, buffers: list[Snapshot] | None = None
) -> float:
    """L at `leaves`, for finite differences. Random numbers and buffers are left as found.

    A derivative takes buffers for constants, though a BatchNorm in eval mode reads what earlier theta_j left in
    them. So must a difference: the first call with an empty list `buffers` fills it, later ones find the same.
    """
    buffers = [] if buffers is None else buffers
    own, total = own_keys(question), 0.0
    for t, one in enumerate(of_each(question)):
        with same_randomness(environment):
            unroll = _Unroll(one, leaves_of(leaves, own, t), environment, graph=False, buffers=buffers)
            total += float(unroll.run().detach())
    return scale_of(question) * total


def draws(question: Question, environment: Environment) -> bool:
    """Whether a batch or loss of an unroll draws random numbers (or changes buffers). Cost: 3F·J, of one task."""
    one, own = of_each(question)[0], own_keys(question)
    with same_randomness(environment):
        found = environment.capture()
        _Unroll(one, leaves_of(question.entries(), own, 0), environment, graph=False).run()
        return environment.moved(found)


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
    scale, own, J = scale_of(question), own_keys(question), question.steps
    forward, backward = each[0].forward, each[0].backward
    shared = {key for key in backward if key[0] == "A_loss" and ("A_loss", *key[2:]) not in own}
    loss = scale * torch.stack([totals.loss for totals in each]).sum()
    return Totals(
        loss=loss,
        gradient=joined([totals.gradient for totals in each], own, scale),
        forward={**joined([totals.forward for totals in each], forward, 1.0), ("loss", J): loss},
        backward=joined([totals.backward for totals in each], backward.keys() - shared, scale),
    )


def _of_one(question: Question, environment: Environment, root: Root, rounding: Rounding | None) -> Totals:
    """The totals of one inner loop."""
    leaves = {key: value.detach().requires_grad_() for key, value in question.entries().items()}
    keeping = keeping_buffers(environment.buffers) if environment.buffers else nullcontext()
    with same_randomness(environment), keeping:
        unroll = _Unroll(question, leaves, environment, graph=True, root=root, rounding=rounding)
        L = unroll.run()
        inputs = {**leaves, **{("node", *path): node for path, node in unroll.nodes.items()}}
        found = torch.autograd.grad(L, list(inputs.values()), allow_unused=True)
    derivatives = {
        key: torch.zeros_like(x) if g is None else g for (key, x), g in zip(inputs.items(), found, strict=True)
    }
    return Totals(
        loss=L.detach(),
        gradient={key: g for key, g in derivatives.items() if key[0] != "node"},
        forward=unroll.forward,
        backward={key[1:]: g for key, g in derivatives.items() if key[0] == "node"},
    )
