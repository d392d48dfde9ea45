"""Marks on a value that say what its shape means: steps or tasks in front, or one value an element."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from gimli_core.trees import Mark, bare, leaves, mapped, nodes

__all__ = [
    "Mark",
    "Marked",
    "PerElement",
    "PerStep",
    "PerTask",
    "detached",
    "look_up",
    "per_element",
    "per_step",
    "per_task",
    "plain_dicts",
    "tensor_paths",
    "unmarked",
    "unmarked_entries",
]

LEAVES = frozenset((Tensor, nn.Parameter, float, int))


class PerStep(Mark):
    """A value whose leading dimension counts the steps; made by `per_step`."""


class PerTask(Mark):
    """A value whose leading dimension counts the tasks; made by `per_task`."""


class PerElement(Mark):
    """A value with one number for each element of a tensor; made by `per_element`."""


class Marked(NamedTuple):
    """Which marks stand on a value, and on what it is in."""

    by_task: bool = False
    by_step: bool = False
    by_element: bool = False

    def inside(self, value: Any) -> tuple[Marked, Any]:
        """(these marks and those of `value`, the value without them)."""
        marked = self
        while isinstance(value, Mark):
            marked = Marked(
                marked.by_task or isinstance(value, PerTask),
                marked.by_step or isinstance(value, PerStep),
                marked.by_element or isinstance(value, PerElement),
            )
            value = value.value
        return marked, value


def per_step(value: Tensor | Mapping[str, Tensor]) -> PerStep:
    """Mark a hyperparameter's leading dimension as the steps, where its shape alone is ambiguous.

    Args:
        value: a tensor `[J, ...]`, or a dict of such tensors keyed by tensor or group names.

    >>> import torch, gimli_core as gimli
    >>> phi_opt = {"lr": gimli.per_step({"w": torch.full((3,), 0.1)})}   # w has 3 elements, and J = 3
    """
    return PerStep(value)


def per_element(value: Tensor | Mapping[str, Tensor] | Mark) -> PerElement:
    """Mark a hyperparameter as one value for each element of a tensor, where its shape alone is ambiguous.

    Args:
        value: a tensor of theta's shape p, or a dict of such tensors keyed by tensor or group names. One that also
            counts steps is `[J, *p]`, tasks `[T, *p]` or `[T, J, *p]`: `per_task(per_step(per_element(…)))`.

    >>> import torch, gimli_core as gimli
    >>> phi_opt = {"lr": gimli.per_element({"w": torch.full((3,), 0.1)})}   # w has 3 elements, and J = 3
    """
    return PerElement(value)


def per_task(value: Any) -> PerTask:
    """Mark what each task has of its own, beside `tasks=T`: theta_0, a state, or entries of phi_loss and phi_opt.

    Args:
        value: a tensor `[T, ...]`, or a dict of such tensors (nested, for a state). A hyperparameter that also counts
            steps is `[T, J, ...]`: `per_task(per_step(…))`.

    >>> import torch, gimli_core as gimli
    >>> phi_opt = {"lr": gimli.per_task(torch.tensor([0.1, 0.2, 0.3]))}   # T = 3 tasks, one learning rate each
    """
    return PerTask(value)


def unmarked(value: Any) -> Any:
    """The value without its marks."""
    while isinstance(value, Mark):
        value = value.value
    return value


def tensor_paths(tree: Any) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """(path, tensor) for every tensor in nested dicts and pairs, such as a phi_opt; `look_up` follows a path.

    Of any shapes.
    """
    return ((bare(path), leaf) for path, leaf in leaves(tree) if isinstance(leaf, Tensor))


def detached(tree: Any) -> Any:
    """The same nested dicts and pairs, marks included, in which no tensor has a gradient any more.

    An `nn.Parameter` that has none already stays what it is: by that it is held constant.
    """
    return mapped(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) and leaf.requires_grad else leaf, tree)


def look_up(tree: Any, path: tuple[Any, ...]) -> Any:
    """What stands at `path` in nested dicts and pairs."""
    for key in path:
        tree = unmarked(tree)[key]
    return unmarked(tree)


def unmarked_entries(values: Any) -> Any:
    """A dict without marks on it or on its entries."""
    plain = unmarked(values)
    return {k: unmarked(v) for k, v in plain.items()} if isinstance(plain, Mapping) else plain


def plain_dicts(value: Any) -> Any:
    """`value` with every `nn.ParameterDict` in it, which is a module and no mapping, as a dict of its parameters."""
    if value is None or (type(value) is dict and LEAVES.issuperset(map(type, value.values()))):
        return value  # so at most calls, which is told at once
    inside = any(isinstance(node, nn.ParameterDict) for node in nodes(value))
    return mapped(lambda leaf: leaf, value) if inside else value
