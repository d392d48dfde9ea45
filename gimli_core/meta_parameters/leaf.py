"""One tensor of phi_opt, or one value of the optimizer's own, checked by itself: what it serves, and when."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.derivatives.finite import finite
from gimli_core.errors import ArgumentError, notice, unexpected
from gimli_core.notation import Tensors
from gimli_core.optimizers.interface import Optimizer

__all__ = ["Leaf", "as_tensor", "check_values", "tell_of_numbers_outside"]

_TOLD: set[tuple[str, str]] = set()  # a rule and a label: a value that is learned or differenced comes again and again


class Leaf(NamedTuple):
    """One tensor of phi_opt, and how it is spread over tensors, elements and steps."""

    hyperparameter: str
    label: str  # as in an error message: phi_opt['lr']['fc.weight']
    value: Tensor
    serves: tuple[str, ...]  # names of the tensors of theta
    by_step: bool
    group_index: tuple[int, ...] | None  # for a vector over groups: the entry that each of `serves` uses
    by_task: bool = False

    def renewed(self, rule: Optimizer, value: Any, theta: Tensors) -> Leaf:
        """The leaf with another value of the same shape, checked."""
        value = as_tensor(value, self.label)
        check_values(rule, self.hyperparameter, value, self.label, next(iter(theta.values())), self.by_element)
        leaf = self._replace(value=value)
        tell_of_numbers_outside(rule, leaf)
        return leaf

    @property
    def by_element(self) -> bool:
        """Whether every element of a tensor has a value of its own."""
        return not self.per_tensor

    @property
    def per_tensor(self) -> bool:
        """Whether a tensor has a single number of this leaf at a step."""
        return self.value.ndim == self.by_task + self.by_step + (self.group_index is not None)

    def used(self, j: int, position: int, theta: Tensor) -> Tensor:
        """The value of step j for a tensor of theta, a scalar in float64, so that 1 - beta^t is as exact as
        torch.optim's, and values of elements in theta's dtype."""
        value = self.part(self.value, j, position)
        return value.to(torch.float64) if value.ndim == self.by_task else value.to(theta.dtype)

    def part(self, value: Tensor, j: int, position: int) -> Tensor:
        """What of a tensor of this leaf's shape belongs to step j and a tensor of theta; a view."""
        tasks = (slice(None),) if self.by_task else ()
        value = value[(*tasks, j)] if self.by_step else value
        return value if self.group_index is None else value[(*tasks, self.group_index[position])]


def as_tensor(value: Any, label: str) -> Tensor:
    """The value as a tensor of its own shape without a graph; a number as a scalar. Raises ArgumentError."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        raise unexpected(
            label,
            "a number, a floating-point tensor, or a dict of them keyed by names",
            type(value).__name__,
            "Convert it.",
        )
    if isinstance(value, (int, float)):
        return torch.tensor(float(value), dtype=torch.float64, device="cpu")  # whatever the default is
    if not value.is_floating_point():
        raise unexpected(
            label,
            "a floating-point tensor",
            f"{value.dtype} of shape {list(value.shape)}, which is not continuous",
            "Convert it with .float().",
        )
    return value.detach()


def check_values(rule: Optimizer, name: str, value: Tensor, label: str, theta: Tensor, by_element: bool) -> None:
    """Raise ArgumentError unless all values are finite, and betas and eps_root in their range as they will be used.

    They have any shape of readings.py.
    """
    if not finite(value):
        raise unexpected(label, "finite values", "inf or nan", "Find out where it was computed.")
    if _bounded(name) and value.numel():
        rounds = by_element and theta.dtype != value.dtype  # 0.999 is 1 in bfloat16
        used = value.to(theta.dtype) if rounds else value
        for extreme in (used.min().item(), used.max().item()):
            rule.check_range(name, extreme, f"{label}, rounded to {theta.dtype}" if rounds else label)


def tell_of_numbers_outside(rule: Optimizer, leaf: Leaf) -> None:
    """A notice, once, of one number that the rule's constructor would refuse. It may be meant: what is learned can get
    there, as the rates of Meta-SGD do, and so can a difference around 0.
    """
    about = (type(rule).__name__, leaf.label)
    if leaf.value.ndim or leaf.value.device.type != "cpu" or about in _TOLD:
        return
    try:
        rule.check_range(leaf.hyperparameter, leaf.value.item(), leaf.label)
    except ArgumentError as error:
        _TOLD.add(about)
        notice(f"{error} It is used as it is, since a value that is learned can get there; {about[0]} would refuse it.")


def _bounded(name: str) -> bool:
    """Whether a hyperparameter, a part's say, has no meaning outside of its range."""
    return name.rpartition(".")[2] in ("beta1", "beta2", "eps_root")
