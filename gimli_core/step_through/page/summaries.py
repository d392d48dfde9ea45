"""Tensors as plain numbers for a page: in full where small, as norms, histograms and top entries where large."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gimli_core.notation import Tensors

__all__ = ["Detail", "describe", "gathered", "norm", "number", "plan", "total"]

MOST_TENSORS = 200  # that a page tells apart
BINS, TOP = 16, 5
MAP_ROWS, MAP_COLUMNS = 12, 24
FULL_NUMBERS = 350_000  # of a whole page; one takes about ten bytes
SUMMARY_BYTES, ALL_SUMMARIES = 800, 4_000_000
NORM_BYTES, ALL_NORMS = 24, 1_500_000


class Detail(NamedTuple):
    """How much of each tensor a page shows, chosen so that the file stays small."""

    full: frozenset[str]  # tensors whose every element is kept
    summarised: frozenset[int]  # steps at which the larger ones are summarised
    norms: bool  # whether the other steps keep a norm a tensor


def gathered(tensors: Tensors) -> Tensors:
    """The tensors that a page tells apart: all of them, or the largest, and all others joined into one vector.

    The choice rests on the sizes alone, so every quantity in the form of theta is gathered alike.
    """
    if len(tensors) <= MOST_TENSORS:
        return tensors
    by_size = sorted(tensors, key=lambda k: -tensors[k].numel())
    largest = set(by_size[: MOST_TENSORS - 1])
    others = [t.detach().reshape(-1) for k, t in tensors.items() if k not in largest]
    name = f"the {len(others)} smaller tensors"
    while name in largest:
        name += "."
    return {**{k: t for k, t in tensors.items() if k in largest}, name: torch.cat(others)}


def plan(theta: Tensors, steps: int, quantities: int) -> Detail:
    """Full values for as many of the smallest tensors as fit, summaries of the rest at as many steps as fit."""
    sizes = {k: v.numel() for k, v in theta.items()}
    largest = 0
    for size in sorted(set(sizes.values())):
        if sum(n for n in sizes.values() if n <= size) * (steps + 1) * quantities > FULL_NUMBERS:
            break
        largest = size
    full = frozenset(k for k, n in sizes.items() if n <= largest)
    big = len(sizes) - len(full)
    every = range(steps + 1)
    allowed = len(every) if big == 0 else max(2, ALL_SUMMARIES // (SUMMARY_BYTES * quantities * big))
    stride = max(1, math.ceil(len(every) / allowed))
    norms = big * len(every) * quantities * NORM_BYTES <= ALL_NORMS
    return Detail(full, frozenset(every[::stride]) | {steps, max(steps - 1, 0)}, norms)


def describe(tensors: Mapping[str, Tensor], sizes: Sequence[float], j: int, detail: Detail) -> list[dict[str, Any]]:
    """One dict a tensor, in order: `n` the norm (of `sizes`), `v` every element, or the parts of a summary."""
    return [_cell(k, t, size, j, detail) for (k, t), size in zip(tensors.items(), sizes, strict=True)]


def _cell(name: str, t: Tensor, size: float, j: int, detail: Detail) -> dict[str, Any]:
    if name in detail.full:
        return {"n": number(size), "v": numbers(t)}
    if j not in detail.summarised:
        return {"n": number(size)} if detail.norms else {}
    flat = t.detach().reshape(-1)
    cell: dict[str, Any] = {"n": number(size)}
    if not math.isfinite(size):
        cell["broken"] = int((~torch.isfinite(flat)).sum())
        return cell
    low, high = torch.aminmax(flat)
    top = torch.topk(flat.abs(), min(TOP, flat.numel())).indices
    cell["lo"], cell["hi"], cell["mean"] = numbers(torch.stack([low, high, flat.mean()]))
    cell["h"] = [int(count) for count in torch.histc(flat.float(), BINS).tolist()] if low < high else [flat.numel()]
    cell["top"] = [list(pair) for pair in zip(top.tolist(), numbers(flat[top]), strict=True)]
    if t.ndim >= 2:
        blocks = _blocks(t)
        peak = blocks.max()
        quantised = (blocks * (255 / peak if peak > 0 else 0.0)).round().to(torch.uint8)
        cell["map"] = [*blocks.shape, base64.b64encode(quantised.cpu().numpy().tobytes()).decode()]
    return cell


def _blocks(t: Tensor) -> Tensor:
    """Root mean squares over a coarse grid of blocks of the matrix."""
    squares = t.detach().float().reshape(1, 1, t.shape[0], -1).square()
    shape = (min(MAP_ROWS, squares.shape[2]), min(MAP_COLUMNS, squares.shape[3]))
    return torch.nn.functional.adaptive_avg_pool2d(squares, shape)[0, 0].sqrt()


def norm(t: Tensor) -> float:
    """The 2-norm, summed in float64."""
    return float(torch.linalg.vector_norm(t.detach(), dtype=torch.float64))


def total(cells: Sequence[float]) -> float:
    """The 2-norm of the whole from those of its parts."""
    return math.hypot(*cells)


def number(x: float) -> float | str:
    """x, or its name where JSON has no number for it."""
    return float(x) if math.isfinite(x) else str(float(x))


def numbers(t: Tensor) -> list[float | str]:
    """Every element, with the shortest digits that give it back in its own dtype."""
    if t.dtype == torch.float64:
        return [number(x) for x in t.detach().reshape(-1).tolist()]
    shortest = np.float32 if t.dtype == torch.float32 else np.float16 if t.dtype == torch.float16 else None
    values = t.detach().reshape(-1).float().cpu().numpy()
    return [number(float(str(x if shortest is None else shortest(x)))) for x in values]
