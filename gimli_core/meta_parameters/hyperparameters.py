"""Lines 2 and 16: phi_opt split into the value each tensor uses at each step, and its adjoints joined again.

A hyperparameter can be one number, one per parameter group, one per tensor, one per element, and each of
these per step. Whatever its form, it is a list of leaves; a leaf knows which tensors it serves, and the
shape says how:

    shape          meaning for a tensor of shape p         with J steps
    []             one value                               [J]       one value a step
    [groups]       one value a group                       [J, groups]
    p              one value an element                    [J, *p]

A dict keyed by tensor names (or group names) gives each its own leaf; a dict for a rule's own parameter has its
tensors as leaves, of any shape. A shape that could be read in two ways is refused; `per_step` or `per_element`
settles it. With T tasks a value marked `per_task` has one of these forms with a leading T.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from gimli_core.errors import listing, unexpected
from gimli_core.meta_parameters.leaf import Leaf, tell_of_numbers_outside
from gimli_core.meta_parameters.marks import unmarked
from gimli_core.meta_parameters.readings import Layout
from gimli_core.meta_parameters.resolve import check_name, expand_betas, resolve, resolve_groups
from gimli_core.notation import Hyper, Tensors
from gimli_core.optimizers.derived import own_root
from gimli_core.optimizers.interface import Optimizer
from gimli_core.trees import folded, leaves, unmarked_node

__all__ = ["Hyperparameters"]


class _Transform(Protocol):
    def hyper(self, hyper: Hyper) -> Hyper: ...


class Hyperparameters:
    """Every hyperparameter of a bound optimizer, resolved against theta and the number of steps.

    Args:
        optimizer: supplies the values that phi_opt does not.
        phi_opt: `{hyperparameter: value}`; these are meta-parameters.
        theta: `{name: tensor}`, of one task.
        steps: J.
        tasks: T, where there are tasks: increments of A_opt then have a leading T.

    Raises:
        ArgumentError: an unknown name, a shape that fits nothing or fits twice, an integer tensor,
            another device, a value that is not finite or out of range.
    """

    def __init__(
        self, optimizer: Optimizer, phi_opt: Mapping[str, Any], theta: Tensors, steps: int, tasks: int | None = None
    ) -> None:
        self._rule = optimizer
        self.steps = steps
        self.tasks = tasks
        self.theta = theta
        layout = Layout(theta, resolve_groups(optimizer, theta), steps, tasks)
        # The caller's own dicts may change before the result is put in their form.
        self.phi_opt = {name: dict(v) if isinstance(v, Mapping) else v for name, v in phi_opt.items()}
        meta = expand_betas(phi_opt)
        for name in meta:
            check_name(name, optimizer)
        rule = type(optimizer).__name__
        fixed = [
            resolve(layout, optimizer, n, v, f"{rule}({n}=…)")
            for n, v in optimizer.hyperparameters().items()
            if v is not None  # phi_opt's to give
        ]
        learned = [resolve(layout, optimizer, n, v, f"phi_opt[{n!r}]") for n, v in meta.items()]
        self.leaves = [leaf for group in learned for leaf in group]
        for leaf in self.leaves:
            tell_of_numbers_outside(optimizer, leaf)
        self.wanted = tuple(dict.fromkeys(leaf.hyperparameter for leaf in self.leaves))
        split = {name for name, value in meta.items() if isinstance(unmarked(value), Mapping) and unmarked(value)}
        # Later entries win: a phi_opt that covers some tensors leaves the others to the optimizer's own value.
        self._home: dict[str, dict[str, tuple[Leaf, int, int | None]]] = {k: {} for k in theta}
        for groups, learning in ((fixed, False), (learned, True)):
            for number, leaf in enumerate(leaf for group in groups for leaf in group):
                for position, k in enumerate(leaf.serves):
                    self._home[k][leaf.hyperparameter] = (leaf, position, number if learning else None)
        self._cached: Hyper | None = None
        self._through: Callable[[Hyper], Hyper] | None = None
        for name in optimizer.continuous():
            missing = [k for k in theta if name not in self._home[k] and own_root(optimizer, name) not in split]
            if missing:
                few = len(missing) < len(theta)
                do = "Add the missing names." if few else f"Give it in phi_opt[{name!r}], or {rule}({name}=…)."
                expected = "a value for every tensor of theta"
                raise unexpected(name, expected, f"none for {listing(missing)}", do)

    def at(self, j: int) -> Hyper:
        """{tensor: {hyperparameter: value}} of step j."""
        if self._cached is not None:
            return self._cached
        # The last step's values stand for a state or an inspection after the end.
        j = min(j, max(self.steps - 1, 0))
        shared: dict[int, Tensor] = {}  # by the leaf, which all hold: one number for all tensors is looked up once
        hyper: Hyper = {}
        for k, homes in self._home.items():
            hyper[k] = values = {}
            for name, (leaf, at, _) in homes.items():
                value = shared.get(id(leaf))
                if value is None:
                    value = leaf.used(j, at, self.theta[k])
                    if leaf.group_index is None and not leaf.by_element:
                        shared[id(leaf)] = value
                values[name] = value
        if "j" in self._rule.seen():
            number = torch.tensor(float(j), dtype=torch.float64, device="cpu")
            hyper = {k: {**per, "j": number} for k, per in hyper.items()}
        hyper = hyper if self._through is None else self._through(hyper)
        if self.constant:
            self._cached = hyper
        return hyper

    def through(self, transform: _Transform) -> Hyperparameters:
        """The same, of which each step's values come in a transform's form. Increments of A_opt stay by name."""
        other = copy.copy(self)
        other._cached, other._through = None, transform.hyper
        return other

    @functools.cached_property
    def constant(self) -> bool:
        """Whether all steps have the same values."""
        of_steps = any(leaf.by_step for homes in self._home.values() for leaf, _, _ in homes.values())
        return not (of_steps or "j" in self._rule.seen())

    def renewed(self, phi_opt: Mapping[str, Any]) -> Hyperparameters:
        """The same for a phi_opt of the same form with other values. Raises ArgumentError as the constructor does."""
        values = (leaf for _, leaf in leaves(expand_betas(phi_opt)))
        other = self._of([leaf.renewed(self._rule, v, self.theta) for leaf, v in zip(self.leaves, values, strict=True)])
        other.phi_opt = {name: dict(v) if isinstance(v, Mapping) else v for name, v in phi_opt.items()}
        return other

    def attached(self, phi_opt: Mapping[str, Any]) -> Hyperparameters:
        """The same of the same phi_opt, whose tensors keep what made them: what is done with them is recorded."""
        values = (leaf for _, leaf in leaves(expand_betas(phi_opt)))
        return self._of(
            [
                leaf._replace(value=v) if isinstance(v, Tensor) else leaf
                for leaf, v in zip(self.leaves, values, strict=True)
            ]
        )

    def _of(self, leaves: list[Leaf]) -> Hyperparameters:
        """The same with other leaves of phi_opt."""
        other = copy.copy(self)
        other.leaves = leaves
        other._home = {
            k: {n: home if (at := home[2]) is None else (leaves[at], home[1], at) for n, home in homes.items()}
            for k, homes in self._home.items()
        }
        other._cached = None
        return other

    def zeros(self) -> list[Tensor]:
        """A_opt = 0, one accumulator a leaf, in float32 at least (line 8)."""
        return [
            torch.zeros_like(leaf.value, dtype=torch.promote_types(leaf.value.dtype, torch.float32))
            for leaf in self.leaves
        ]

    def accumulate(self, A_opt: list[Tensor], j: int, increments: Mapping[str, Mapping[str, Tensor]]) -> None:
        """A_opt += the increments of step j, in place (line 12)."""
        for k, by_name in increments.items():
            home = self._home[k]
            for name, increment in by_name.items():
                leaf, position, number = home[name]
                if number is None:
                    continue
                if self.tasks is not None and not leaf.by_task:
                    increment = increment.sum(0)
                target = A_opt[number]
                if leaf.by_step or leaf.group_index is not None:
                    target = leaf.part(target, j, position)
                target.add_(increment.sum() if increment.ndim and increment.shape != target.shape else increment)

    def join(self, A_opt: Sequence[Tensor]) -> dict[str, Any]:
        """A_opt in the structure that phi_opt came in (line 16)."""
        remaining = iter(A_opt)

        def fill(value: Any) -> Any:
            return folded(value, lambda *_: next(remaining), unmarked_node)

        return {name: fill(value) for name, value in self.phi_opt.items()}

    def scalars(self) -> tuple[frozenset[str], frozenset[str]]:
        """The hyperparameters that are one number for all tensors, and those that are a number for at least one."""
        homes = {name: [per[name] for per in self._home.values()] for name in next(iter(self._home.values()))}
        number = {name: [leaf.per_tensor for leaf, _, _ in of_tensors] for name, of_tensors in homes.items()}
        one = {
            name
            for name, of_tensors in homes.items()
            if all(number[name])
            and all(leaf is of_tensors[0][0] and leaf.group_index is None for leaf, _, _ in of_tensors)
        }
        return frozenset(one), frozenset(name for name in homes if any(number[name]))

    def by_task(self) -> dict[str, dict[str, bool]]:
        """{tensor: {hyperparameter: whether each task has its own}}."""
        return {k: {name: home[0].by_task for name, home in homes.items()} for k, homes in self._home.items()}
