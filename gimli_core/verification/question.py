"""What is verified: the arguments of one meta-gradient, and its meta-parameters as one flat dict.

Every oracle is a function of a `Question`. An entry is named by the result that holds its derivative and its
path in there: `("A_opt", "lr")`, `("A_loss", "log_l2")`, `("B_0", "fc1.weight")`, `("S_0", "exp_avg", "w")`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gimli_core.arguments.approximation import Approximation, check_approximation
from gimli_core.arguments.batches import check_val_batch
from gimli_core.arguments.call import Call
from gimli_core.derivatives.micro_batches import each
from gimli_core.environment import Environment, discover, split_frozen
from gimli_core.meta_parameters.indexed import Indexed
from gimli_core.meta_parameters.marks import unmarked, unmarked_entries
from gimli_core.meta_parameters.resolve import bound
from gimli_core.notation import Tensors, slots
from gimli_core.optimizers.interface import Optimizer
from gimli_core.transforms.numbered import called
from gimli_core.transforms.proximal import centre_of, without_centre
from gimli_core.transforms.tasks import Tasks, check_tasks
from gimli_core.trees import bare, folded, leaves, mapped, rebuilt, unmarked_node

__all__ = ["RESULTS", "VAL_LOSS", "Entries", "Key", "Question", "flatten", "label", "rebuild", "same_randomness"]

Key = tuple[Any, ...]
Entries = dict[Key, Tensor]

RESULTS = ("A_opt", "A_loss", "B_0", "S_0")
VAL_LOSS: Key = ("val_loss",)


@dataclass(frozen=True, eq=False)
class Question:
    """A call whose meta-gradient is asked for; its `steps` is J, its train_batches are in parts already."""

    call: Call
    row: int | None = None  # of several outer losses the one that is L: rows.py

    @property
    def steps(self) -> int:
        """J."""
        assert self.call.steps is not None
        return self.call.steps

    @property
    def phi_opt(self) -> Mapping[str, Any]:
        """Learned hyperparameters; an empty dict if there are none."""
        return self.call.phi_opt or {}

    @property
    def phi_loss(self) -> Mapping[str, Any]:
        """As it was given; an empty dict if it was not."""
        return without_centre(self.call.phi_loss) or {}

    @property
    def left_out(self) -> Approximation:
        """What the meta-gradient leaves out."""
        return check_approximation(self.call.approximation)

    @property
    def tasks(self) -> Tasks | None:
        """Of how many inner loops L is the mean or the sum: tasks.py."""
        return check_tasks(self.call.tasks)

    def entries(self) -> Entries:
        """Every meta-parameter: phi_opt, phi_loss, the trained part of theta_0, and a warm state."""
        warm = slots(unmarked(self.call.state_0) or {})
        trained = split_frozen(unmarked_entries(self.call.theta_0))[0]
        trees = dict(zip(RESULTS, (self.phi_opt, self.phi_loss, trained, warm), strict=True))
        return {key: leaf.detach() for key, leaf in flatten(trees, ()).items()}

    def phi_of(self, entries: Entries) -> Any:
        """phi_loss from the entries of a meta-gradient; the centre of a proximal loss is theta_0, a constant to first
        order."""
        phi_loss = rebuild(self.phi_loss, ("A_loss",), entries)
        theta_0 = {key[1]: leaf for key, leaf in entries.items() if key[0] == "B_0"}
        if self.left_out.first_order:
            theta_0 = {k: v.detach() for k, v in theta_0.items()}
        return {**phi_loss, **centre_of(self.call.problem.train_loss, theta_0)}

    def batch(self, j: int) -> Any:
        batches: Any = self.call.train_batches
        return batches[j] if hasattr(batches, "__len__") else batches(j)

    def inner_loss(self, theta: Tensors, phi: Tensors, j: int) -> Tensor:
        """l_j, without what is returned beside it."""
        batch, train_loss = self.batch(j), self.call.problem.train_loss
        losses = [w * _value(called(train_loss, theta, self._looked_up(phi, p), p, j)) for w, p in each(batch)]
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def _looked_up(self, phi: Tensors, batch: Any) -> Tensors:
        """phi_loss with the batch's rows of what is indexed."""
        marked = {k: mark for k, mark in self.phi_loss.items() if isinstance(mark, Indexed)}
        rows = {k: m.rows(batch) if callable(m.rows) else batch[m.rows] for k, m in marked.items()}
        return {**phi, **{k: phi[k][rows_k] for k, rows_k in rows.items()}}

    def outer_loss(self, theta: Tensors, phi: Tensors, j: int) -> Tensor:
        """L_val(theta_j), without what is returned beside it; of several the one that is asked about."""
        val_batch = check_val_batch(self.call.val_batch, self.steps)(j)
        losses = [w * _value(called(self.call.problem.val_loss, theta, phi, p, j)) for w, p in each(val_batch)]
        loss = torch.stack(losses).sum(0) if len(losses) > 1 else losses[0]
        return loss if self.row is None else loss[self.row]

    def weights(self) -> list[float]:
        """How much L_val(theta_j) counts, for j = 0 ... J."""
        if self.call.val_weights is None:
            return [0.0] * self.steps + [1.0]
        weights = [float(w) for w in self.call.val_weights]
        return weights if len(weights) == self.steps + 1 else [0.0, *weights]

    @property
    def optimizer(self) -> Optimizer:
        """The problem's, knowing which of its hyperparameters are meta-parameters."""
        return bound(self.call.problem.optimizer, self.phi_opt)

    @property
    def dtype(self) -> torch.dtype:
        """The least precise of theta, of phi_loss and of a warm state: what is computed with it is no more precise.

        Hyperparameters are no part of that: a rule computes with them in theta's dtype.
        """
        dtypes: set[torch.dtype] = {v.dtype for v in unmarked_entries(self.call.theta_0).values()}
        dtypes |= {dtype for key, dtype in self.held_in().items() if key[0] != "A_opt"}
        return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)

    def held_in(self) -> dict[Key, torch.dtype]:
        """The dtype of every entry that is a floating tensor: a number is none, and is as precise as it gets."""
        return {key: entry.dtype for key, entry in self.entries().items() if entry.is_floating_point()}

    @property
    def _first(self) -> Tensor:
        tensor: Tensor = next(iter(unmarked_entries(self.call.theta_0).values()))
        return tensor

    def environment(self) -> Environment:
        """The random number generators and buffers that the losses may read."""
        losses = [self.call.problem.train_loss, self.call.problem.val_loss]
        modules = discover(losses) if self.call.problem.modules is None else self.call.problem.modules
        return Environment(modules, self._first.device)

    def in_double(self) -> Question:
        """The same question with every floating tensor in float64."""
        call = replace(
            self.call,
            theta_0=_double(self.call.theta_0),
            train_batches=lambda j: _double(self.batch(j)),
            val_batch=lambda j: _double(check_val_batch(self.call.val_batch, self.steps)(j)),
            phi_opt=_double(self.phi_opt),
            phi_loss=_double(self.phi_loss),
            state_0=_double(self.call.state_0),
        )
        return Question(call)


def _value(returned: Any) -> Tensor:
    loss: Tensor = returned[0] if isinstance(returned, tuple) else returned
    return loss


def flatten(tree: Any, path: Key) -> Entries:
    """The leaves of nested dicts, tuples and lists, keyed by their paths."""
    return {
        (*path, *bare(at)): torch.as_tensor(leaf, dtype=None if isinstance(leaf, Tensor) else torch.float64)
        for at, leaf in leaves(tree)
    }


def rebuild(tree: Any, path: Key, entries: Mapping[Key, Tensor]) -> Any:
    """`tree` with every leaf replaced by the entry of its path; what is indexed without its mark."""

    def node(at: Key, part: Any, results: dict[Any, Any]) -> Any:
        if isinstance(part, (tuple, list)):
            return list(results.values())
        return unmarked_node(at, part, results) if isinstance(part, Indexed) else rebuilt(at, part, results)

    return folded(tree, lambda at, _: entries[(*path, *bare(at))], node)


def label(key: Key) -> str:
    """`A_opt["lr"]["fc1.weight"]`."""
    return str(key[0]) + "".join(f'["{part}"]' if isinstance(part, str) else f"[{part}]" for part in key[1:])


@contextmanager
def same_randomness(environment: Environment) -> Iterator[None]:
    """Random number generators and buffers are put back as they were, however the block ends."""
    snapshot = environment.capture()
    try:
        yield
    finally:
        environment.restore(snapshot)


def _double(tree: Any) -> Any:
    def double(leaf: Any) -> Any:
        if isinstance(leaf, torch.nn.Parameter):
            return torch.nn.Parameter(leaf.detach().double(), requires_grad=leaf.requires_grad)
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return mapped(double, tree)
