"""How two results are compared: to the bit, to rounding, or by a distance; and what was logged on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.verification.oracles.autograd_through_the_graph import autograd_gradient, random_rounding
from gimli_core.verification.question import Entries, Key, Question, flatten


def entries(result: gimli.MetaGradient, like: Entries) -> Entries:
    """The parts of a meta-gradient that `like` has."""
    parts = {"A_opt": result.A_opt, "A_loss": result.A_loss, "B_0": result.B_0, "S_0": result.S_0}
    found = {key: value for name, tree in parts.items() for key, value in flatten(tree, (name,)).items()}
    return {key: found[key] for key in like}


def distance(found: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """The largest difference, relative to the largest expected number or `floor`; 0 for two empty tensors."""
    assert found.shape == expected.shape
    difference = (found.double() - expected.double()).abs()
    if difference.numel() == 0 or difference.max() == 0:
        return 0.0
    return float(difference.max() / max(float(expected.abs().max()), floor))


def largest(gradient: Entries, part: str) -> float:
    """The largest number in one part of a meta-gradient."""
    return max((float(g.abs().max()) for key, g in gradient.items() if key[0] == part and g.numel()), default=0.0)


def rounding_bounds(asked: Question, dtype: torch.dtype) -> tuple[Entries, dict[Key, float]]:
    """The gradient in float64, and how far a run in `dtype` may be from it, relative to each part.

    Autograd in float64, with every theta_j, G_j and s_j moved by one unit of `dtype` in the last place at random, shows
    how far one rounding a quantity carries. The engine rounds each up to some 64 times: sums of 10, matrix products, 20
    operations an update, forwards and backwards.
    """

    def oracle(rounding: Any = None) -> Entries:
        torch.manual_seed(2)
        return autograd_gradient(asked, asked.environment(), rounding=rounding).gradient

    exact = oracle()
    moved = [oracle(random_rounding(dtype, seed)) for seed in range(4)]
    unit = torch.finfo(dtype).eps
    return exact, {key: 64 * max(unit, *(distance(m[key], g) for m in moved)) for key, g in exact.items()}


def flat_results(result: gimli.MetaGradient) -> dict[str, Any]:
    """All that a result holds, but for what it says of itself."""
    return {
        name: value
        for name, value in vars(result).items()
        if name not in ("recurrence", "approximation", "task_val_losses", "task_steps", "train_aux", "val_aux")
    }


def identical(a: Any, b: Any) -> bool:
    """To the bit, nan equal to nan."""
    if a is None or b is None:
        return a is b
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
    return a.keys() == b.keys() and all(identical(a[k], b[k]) for k in a)


def agree(a: Any, b: Any, rtol: float = 1e-10, atol: float = 1e-13, check_dtype: bool = False) -> None:
    """All that two results hold, nan equal to nan."""
    for name in ("val_loss", "theta_J", "train_losses", "A_opt", "A_loss", "B_0", "S_0", "state_J", "val_losses"):
        assert type(getattr(a, name)) is type(getattr(b, name)), name  # a plain dict, whoever looks at it
        torch.testing.assert_close(
            getattr(a, name), getattr(b, name), rtol=rtol, atol=atol, equal_nan=True, check_dtype=check_dtype
        )


def assert_same(a: Any, b: Any) -> None:
    """All that two results hold to the bit, and what they say of themselves."""
    assert (a.approximation, a.recurrence) == (b.approximation, b.recurrence)
    agree(a, b, rtol=0, atol=0, check_dtype=True)


def said(caplog: pytest.LogCaptureFixture) -> str:
    """All that was logged."""
    return "\n".join(record.message for record in caplog.records)


def assert_identical(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same names in the same order, and under each the same bits."""
    assert list(found) == list(expected)
    for k, v in found.items():
        assert torch.equal(v, expected[k]), k
