"""A plainly written unroll, for autograd to differentiate.

Nothing of the engine's arithmetic is used. Each optimizer is its textbook update, written so that autograd can
differentiate it (`plain_rules`). Every intermediate quantity is kept as a node of the graph, so that one call of
`torch.autograd.grad` gives the total derivative of L with respect to each theta_j, s_j, G_j and each step's use
of phi: what B_j, S_j, V_j and the increments of A_opt and A_loss must be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gimli_core.environment import Environment, Snapshot, split_frozen
from gimli_core.errors import unexpected
from gimli_core.notation import Hyper, State, Tensors, counts, slots
from gimli_core.trees import KeyPath, mapped, mapped_at
from gimli_core.verification.oracles.plain_rules import Root, handed, initial_state, plain_step, values_at
from gimli_core.verification.question import Entries, Question, flatten, same_randomness

__all__ = ["Rounding", "Unroll", "inner_gradient"]

Rounding = Callable[[Tensor], Tensor]


@dataclass
class Unroll:
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
        frozen = split_frozen(question.call.theta_0)[1]
        theta: Tensors = {key[1]: leaf for key, leaf in self.leaves.items() if key[0] == "B_0"}
        phi = question.phi_of(self.leaves)
        L: Any = 0.0
        s = initial_state(question, self.leaves, theta)
        for j in range(question.steps):
            theta = self._rounded(theta)
            self._settle_buffers(j)
            theta, s = self._truncated(j, theta, s)  # first: L_val(theta_j) counts where the sweep ends, and no further
            if weights[j]:
                theta = self._noted("B with L", j, theta)
                with same_randomness(self.environment):
                    L = L + weights[j] * question.outer_loss({**frozen, **theta}, phi, j)
            theta_j, phi_j = self._noted("B", j, theta), self._noted("A_loss", j, phi)
            s_j: State = {**counts(s), **self._noted("S", j, slots(s))}
            at = _cut(theta_j) if question.left_out.first_order else theta_j
            G_j, unused, loss = inner_gradient(question, at, phi_j, j, frozen, graph=self.graph)
            if question.left_out.first_order:  # to first order G_j is a constant, and the loss is none
                loss = loss + sum(((theta_j[k] - at[k]) * G.detach()).sum() for k, G in G_j.items())
            G_j = self._rounded(G_j)
            self._seen("G", j, G_j)
            G_j = self._noted("V", j, G_j)
            values = self._rounded_finely(values_at(question, self.leaves, theta, j))
            hyper = self._noted("A_opt", j, values, learned_only=True)
            hyper = handed(question, hyper, j, loss)
            theta, s = plain_step(question, theta_j, s_j, G_j, hyper, self.root, unused)
            self._check_differentiable(theta)
            s = {**counts(s), **self._rounded(slots(s))}
            self._seen("theta", j + 1, theta)
            self._seen("s", j + 1, slots(s))
        J = question.steps
        self._settle_buffers(J)
        if weights[J]:
            theta_J, phi_J = self._noted("B with L", J, self._rounded(theta)), self._noted("A_loss", J, phi)
            L = L + weights[J] * question.outer_loss({**frozen, **theta_J}, phi_J, J)
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
            slot: {k: v.detach() + (first[slot][k] - first[slot][k].detach()) for k, v in of_slot.items()}
            for slot, of_slot in slots(s).items()
        }
        return theta, {"step": s["step"], **moved}

    def _settle_buffers(self, j: int) -> None:
        if j == len(self.buffers):
            self.buffers.append(self.environment.capture(self.buffers[-1] if self.buffers else None))
        else:
            self.environment.restore_buffers(self.buffers[j])

    def _check_differentiable(self, theta: Tensors) -> None:
        if self.graph and not all(v.requires_grad for v in theta.values()):
            raise unexpected(
                f"{type(self.question.optimizer).__name__}.step",
                "a step that autograd can differentiate",
                "theta' without a gradient path",
                "Compute it without .detach(), .item() or torch.no_grad().",
            )

    def _seen(self, symbol: str, j: int, tree: Any) -> None:
        if self.graph:
            self.forward.update({key: value.detach() for key, value in flatten(tree, (symbol, j)).items()})

    def _noted(self, symbol: str, j: int, tree: Any, learned_only: bool = False) -> Any:
        """`tree` with every tensor passed through a node of its own, whose derivative is this use's."""
        if not self.graph:
            return tree

        def node(path: KeyPath, leaf: Tensor) -> Tensor:
            if not leaf.requires_grad:
                if learned_only:
                    return leaf
                leaf = leaf.detach().requires_grad_()
            self.nodes[path] = leaf.view_as(leaf)
            return self.nodes[path]

        return mapped_at(node, tree, (symbol, j))

    def _rounded(self, tree: Any) -> Any:
        return tree if self.rounding is None else mapped(self.rounding, tree)

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
) -> tuple[Tensors, frozenset[str], Tensor]:
    """G_j, with its graph or without, the names that the loss does not use (torch leaves them without .grad), ell_j."""
    if not graph:
        theta = {k: v.detach().requires_grad_() for k, v in theta.items()}
    loss = question.inner_loss({**frozen, **theta}, phi, j)
    G = torch.autograd.grad(loss, list(theta.values()), create_graph=graph, allow_unused=True)
    unused = frozenset(k for k, g in zip(theta, G, strict=True) if g is None)
    G_j = {k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(theta.items(), G, strict=True)}
    return G_j, unused, loss if graph else loss.detach()
