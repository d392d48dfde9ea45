"""Oracle (b): finite differences with their own error estimate.

L is evaluated by the plain unroll, forwards only, so nothing of any derivative rule enters. A small entry is
differentiated along each coordinate, a large one along a few fixed random directions d, where the oracle's
value is the number dL/dx · d. `scipy.differentiate.derivative` (central differences of order 8 on shrinking
steps) gives each its value and error estimate; rounding of L sets a floor under the estimate. Buffers of modules
are held where the unmoved loop has them: a derivative takes them for constants.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gimli_core.environment import Environment, Snapshot
from gimli_core.verification.oracles.autograd_through_the_graph import loss_value
from gimli_core.verification.question import Entries, Key, Question

__all__ = ["Slopes", "finite_differences"]

COORDINATES = 4  # an entry with at most so many elements is differentiated along each
DIRECTIONS = 3  # a larger one along so many random directions
ORDER = 8


class Slopes(NamedTuple):
    """dL/dx · d for a few directions d, and the uncertainty of each."""

    directions: Tensor  # [n, elements of x]
    values: Tensor  # [n]
    uncertainty: Tensor  # [n]

    def of(self, gradient: Tensor) -> Tensor:
        """The same numbers from a gradient."""
        return self.directions @ gradient.to(self.directions).reshape(-1)


class _Line(NamedTuple):
    """One direction through one entry, and how far and to which side L may be evaluated along it."""

    key: Key
    direction: Tensor
    step: float
    side: int


def finite_differences(question: Question, environment: Environment) -> dict[Key, Slopes]:
    """Slopes of L for every meta-parameter. Cost: about 12 unrolls (3F·J) a direction."""
    try:
        from scipy.differentiate import derivative
    except ModuleNotFoundError as error:
        error.add_note("Finite differences need it: pip install 'gimli_core[verify]', or leave them out of oracles=….")
        raise
    leaves = question.entries()
    eps = torch.finfo(question.dtype).eps
    lines = [line for number, key in enumerate(leaves) for line in _lines(question, leaves, key, number, eps)]
    if not lines:
        return {}
    buffers: list[Snapshot] = []
    size = abs(loss_value(question, leaves, environment, buffers))

    def L(h: float, i: int) -> float:
        line = lines[int(i)]
        x = leaves[line.key]
        return loss_value(question, {**leaves, line.key: x + h * line.direction.to(x)}, environment, buffers)

    with np.errstate(all="ignore"):  # numpy would report the floating-point flags that torch's kernels leave raised
        estimate = derivative(
            np.vectorize(L, otypes=[float]),
            np.zeros(len(lines)),
            args=(np.arange(len(lines)),),
            order=ORDER,
            initial_step=np.array([line.step for line in lines]),
            step_direction=np.array([line.side for line in lines]),
            tolerances={"rtol": 1e-10},
        )
    # The smallest distance from x in the stencil of the last iteration; each L there is off by about eps |L|.
    smallest = np.array([line.step for line in lines]) / 2.0 ** (estimate.nit - 1 + ORDER // 2 - 1)
    uncertainty = np.maximum(estimate.error, 4 * eps * size / smallest)
    slopes = {}
    for key in leaves:
        mine = [i for i, line in enumerate(lines) if line.key == key]
        if mine:
            slopes[key] = Slopes(
                torch.stack([lines[i].direction.reshape(-1) for i in mine]),
                torch.from_numpy(estimate.df[mine]),
                torch.from_numpy(uncertainty[mine]),
            )
    return slopes


def _lines(question: Question, leaves: Entries, key: Key, number: int, eps: float) -> list[_Line]:
    x = leaves[key].detach().to("cpu", torch.float64)
    if x.numel() == 0:
        return []
    if x.numel() <= COORDINATES:
        directions = list(torch.eye(x.numel(), dtype=torch.float64).reshape(-1, *x.shape))
    else:
        generator = np.random.default_rng(number)
        directions = [torch.from_numpy(generator.uniform(-1, 1, tuple(x.shape))) for _ in range(DIRECTIONS)]
    low, below = _range(question, key)
    scale = x.abs().max().item() or 1.0
    lines = []
    for d in directions:
        if key[0] == "S_0" and bool((x != 0).any()):
            d = d * x.abs() / scale  # second moments must not change sign
        if not bool(d.any()):
            continue
        room_down, room_up = x - low, below - x
        side = 0
        if bool((room_down <= 0).any()):  # at the edge of the range: look inwards only
            d, side = d.abs(), 1
            room_down = torch.full_like(x, float("inf"))
        room = torch.minimum(room_down, room_up) / d.abs()
        best = scale * eps ** (1 / (ORDER + 1))  # balances truncation against rounding
        lines.append(_Line(key, d, min(best, room.min().item() / 2), side))
    return lines


def _range(question: Question, key: Key) -> tuple[float, float]:
    """Where a hyperparameter may lie."""
    fields = type(question.call.problem.optimizer).__dataclass_fields__
    name = f"beta{key[2] + 1}" if key[:2] == ("A_opt", "betas") else key[1]
    if key[0] != "A_opt" or name not in fields:
        return float("-inf"), float("inf")
    bounds = fields[name].metadata
    return bounds.get("low", float("-inf")), bounds.get("below", float("inf"))
