"""A user's evaluation, as numbers that a log can hold. The training's random numbers do not feel it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import unexpected
from gimli_core.evaluation.evaluate import Evaluation
from gimli_core.outer_loop.randomness import EVALUATION, leaving, seed_at

__all__ = ["evaluated", "number_of"]


def evaluated(
    evaluate: Callable[[int], Any], step: int, seed: int | None, device: torch.device
) -> dict[str, float | None]:
    """`{name: number}` after an outer step. Raises ArgumentError where `evaluate` returns something else."""
    with leaving(device):
        if seed is not None:
            seed_at(seed, EVALUATION, step)
        returned = evaluate(step)
    numbers = returned.mean if isinstance(returned, Evaluation) else returned
    numbers = numbers if isinstance(numbers, Mapping) else {"value": numbers}
    try:
        return {str(name): number_of(number) for name, number in numbers.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        expected = "a number or a dict of numbers"
        raise unexpected("evaluate(step)", expected, type(returned).__name__, str(error)) from error


def number_of(value: Any) -> float | None:
    """A number as JSON has it: None where it is not finite."""
    number = float(value.detach() if isinstance(value, Tensor) else value)
    return number if math.isfinite(number) else None
