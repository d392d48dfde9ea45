"""What a hyperparameter's shape means: one value, or one a group, an element or a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from gimli_core.errors import unexpected
from gimli_core.meta_parameters.marks import Marked
from gimli_core.notation import Tensors

__all__ = ["Layout", "Reading", "count_steps", "of_one_task", "one_of", "read", "read_of_rule"]


class Layout(NamedTuple):
    """What hyperparameters are spread over."""

    theta: Tensors  # of one task
    groups: Mapping[str, tuple[str, ...]]
    steps: int
    tasks: int | None


def of_one_task(layout: Layout, shape: torch.Size, label: str) -> torch.Size:
    """The shape of one task's share of a value marked `per_task`. Raises ArgumentError."""
    if layout.tasks is None or shape[:1] != (layout.tasks,):
        expected = "tasks=T beside it" if layout.tasks is None else f"a leading dimension of {layout.tasks}"
        do = "per_task marks values that count tasks in their first dimension."
        raise unexpected(label, expected, f"shape {list(shape)}, marked per_task", do)
    return shape[1:]


def read_of_rule(layout: Layout, shape: torch.Size, label: str, marked: Marked) -> bool:
    """Whether a rule's own parameter, of any shape, counts steps in front: only where it is marked so."""
    if marked.by_step and (layout.steps == 0 or shape[:1] != (layout.steps,)):
        expected, do = f"a leading dimension of J = {layout.steps} > 0", "per_step marks values that count steps."
        raise unexpected(label, expected, f"shape {list(shape)}, marked per_step", do)
    if marked.by_element:
        expected, do = "no mark per_element", "The rule's own parameters are the same for every tensor."
        raise unexpected(label, expected, "one", do)
    return marked.by_step


class Reading(NamedTuple):
    """One meaning that a shape can have."""

    meaning: str  # in messages
    by_step: bool
    by_group: bool
    one_value: bool = False  # which says nothing of what the shapes beside it mean


def read(
    layout: Layout, shape: torch.Size, label: str, serves: tuple[str, ...], marked: Marked, by_tensor_too: bool
) -> list[Reading]:
    """Every reading that a shape allows, at least one. Raises ArgumentError."""
    elementwise = {tuple(layout.theta[k].shape) for k in serves}
    J, n = layout.steps, len(layout.groups)
    readings: dict[tuple[int, ...], list[Reading]] = {}

    def allow(allowed: tuple[int, ...], meaning: str, by_step: bool, by_group: bool, one_value: bool = False) -> None:
        if (J > 0 or not by_step) and (by_step or not marked.by_step):
            readings.setdefault(allowed, []).append(Reading(meaning, by_step, by_group, one_value))

    if not marked.by_element:
        allow((), "one value", False, False, True)
        allow((J,), "one per step", True, False)
        if by_tensor_too and layout.groups:
            allow((n,), "one per group", False, True)
            allow((J, n), "one per step and group", True, True)
    if len(elementwise) == 1 and (elementwise != {()} or marked.by_element):
        p = next(iter(elementwise))
        allow(p, "one per element", False, False)
        allow((J, *p), "one per step and element", True, False)
    possible = readings.get(tuple(shape), [])
    if not readings and len(elementwise) != 1 and marked.by_element:
        expected = "values per element of one shape of tensor" if elementwise else "one number a tensor"
        actual, do = f"shape {list(shape)}, marked per_element", "For several tensors use a dict keyed by names."
        do = do if elementwise else "It acts on a tensor as a whole: leave out the mark."
        raise unexpected(label, expected, actual, do)
    if not readings:
        raise unexpected(label, "no value per step, as J = 0", str(list(shape)), "Give one value.")
    if not possible:
        fits = ", ".join(f"{list(s)} ({r[0].meaning})" for s, r in readings.items())
        do = f"Here J = {J}; for several tensors use a dict keyed by names."
        raise unexpected(label, f"a shape among {fits}", str(list(shape)), do)
    return possible


def count_steps(readings: Sequence[Sequence[Reading]]) -> bool | None:
    """Whether the entries of one dict count steps, as far as those say that can be read in one way; None: unsaid.

    The values of a dict are of one kind, so an entry that is as long as J by chance means what the others mean.
    """
    said = {only.by_step for only, *others in readings if not others and not only.one_value}
    return said.pop() if len(said) == 1 else None


def one_of(readings: Sequence[Reading], shape: torch.Size, label: str, by_step: bool | None = None) -> Reading:
    """The one reading, of those that count steps or do not where that is known. Raises ArgumentError."""
    left = [r for r in readings if by_step is None or r.by_step == by_step] if len(readings) > 1 else list(readings)
    if len(left) != 1:
        do = (
            "Wrap it in gimli.per_step(...) if its first dimension counts steps, or in gimli.per_element(...) if it "
            "has one value for each element; else give a dict keyed by names."
        )
        actual = f"{list(shape)}: {' or '.join(r.meaning for r in readings)}"
        raise unexpected(label, "a shape with one reading", actual, do)
    return left[0]
