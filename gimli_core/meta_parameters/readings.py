"""What a hyperparameter's shape means: one value, or one a group, an element or a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from gimli_core.errors import ArgumentError, explain
from gimli_core.meta_parameters.marks import Marked
from gimli_core.notation import Tensors

__all__ = ["Layout", "of_one_task", "read", "read_own"]


class Layout(NamedTuple):
    """What hyperparameters are spread over."""

    theta: Tensors  # of one task
    groups: Mapping[str, tuple[str, ...]]
    steps: int
    tasks: int | None


def of_one_task(layout: Layout, shape: torch.Size, label: str) -> torch.Size:
    if layout.tasks is None or shape[:1] != (layout.tasks,):
        expected = "tasks=T beside it" if layout.tasks is None else f"a leading dimension of {layout.tasks}"
        do = "per_task marks values that count tasks in their first dimension."
        raise ArgumentError(explain(label, expected, f"shape {list(shape)}, marked per_task", do))
    return shape[1:]


def read_own(layout: Layout, shape: torch.Size, label: str, marked: Marked) -> bool:
    """Whether a rule's own parameter, of any shape, counts steps in front: only where it is marked so."""
    if marked.by_step and (layout.steps == 0 or shape[:1] != (layout.steps,)):
        expected, do = f"a leading dimension of J = {layout.steps} > 0", "per_step marks values that count steps."
        raise ArgumentError(explain(label, expected, f"shape {list(shape)}, marked per_step", do))
    if marked.by_element:
        expected, do = "no mark per_element", "The rule's own parameters are the same for every tensor."
        raise ArgumentError(explain(label, expected, "one", do))
    return marked.by_step


def read(
    layout: Layout, shape: torch.Size, label: str, serves: tuple[str, ...], marked: Marked, whole: bool
) -> tuple[bool, bool]:
    """(by step, by group): the one reading that a shape allows."""
    elementwise = {tuple(layout.theta[k].shape) for k in serves}
    J, n = layout.steps, len(layout.groups)
    readings: dict[tuple[int, ...], list[tuple[str, bool, bool]]] = {}

    def allow(allowed: tuple[int, ...], meaning: str, by_step: bool, by_group: bool) -> None:
        if (J > 0 or not by_step) and (by_step or not marked.by_step):
            readings.setdefault(allowed, []).append((meaning, by_step, by_group))

    if not marked.by_element:
        allow((), "one value", False, False)
        allow((J,), "one per step", True, False)
        if whole and layout.groups:
            allow((n,), "one per group", False, True)
            allow((J, n), "one per step and group", True, True)
    if len(elementwise) == 1 and (elementwise != {()} or marked.by_element):
        p = next(iter(elementwise))
        allow(p, "one per element", False, False)
        allow((J, *p), "one per step and element", True, False)
    found = readings.get(tuple(shape), [])
    if not readings and len(elementwise) != 1 and marked.by_element:
        expected = "values per element of one shape of tensor" if elementwise else "one number a tensor"
        came, do = f"shape {list(shape)}, marked per_element", "For several tensors use a dict keyed by names."
        do = do if elementwise else "It acts on a tensor as a whole: leave out the mark."
        raise ArgumentError(explain(label, expected, came, do))
    if not readings:
        raise ArgumentError(explain(label, "no value per step, as J = 0", str(list(shape)), "Give one value."))
    if not found:
        fits = ", ".join(f"{list(s)} ({r[0][0]})" for s, r in readings.items())
        raise ArgumentError(
            explain(
                label,
                f"a shape among {fits}",
                str(list(shape)),
                f"Here J = {J}; for several tensors use a dict keyed by names.",
            )
        )
    if len(found) > 1:
        raise ArgumentError(
            explain(label, "a shape with one reading", f"{list(shape)}: {' or '.join(r[0] for r in found)}",
                    "Wrap it in gimli.per_step(...) if its first dimension counts steps, or in "
                    "gimli.per_element(...) if it has one value for each element; else give a dict keyed by names.")
        )  # fmt: skip
    return found[0][1], found[0][2]
