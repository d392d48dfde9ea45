"""The entry of phi_loss that weighs examples, and the outer losses that are its queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gimli_core.arguments.batches import check_val_batch
from gimli_core.arguments.inputs import modules_of
from gimli_core.derivatives.beside_loss import value_and_aux
from gimli_core.environment import Environment
from gimli_core.errors import listing, unexpected
from gimli_core.meta_parameters.indexed import Indexed
from gimli_core.meta_parameters.marks import plain_dicts, unmarked
from gimli_core.notation import Tensors
from gimli_core.problem import Problem
from gimli_core.transforms.nested import Places, unnested
from gimli_core.transforms.numbered import called

__all__ = ["by_name", "indexed_entry", "query_losses"]


def by_name(problem: Problem, phi_loss: Any) -> tuple[Problem, Any, Places]:
    """(the problem, phi_loss) with a name for each entry where it came as dicts in dicts; where each stands there."""
    return unnested(problem, plain_dicts(phi_loss))


def indexed_entry(phi_loss: Any, entry: str | None) -> tuple[str, Indexed]:
    """Name and mark of the entry that weighs examples: `entry`, or the only indexed one. Raises ArgumentError."""
    marked = {k: v for k, v in phi_loss.items() if isinstance(v, Indexed)} if isinstance(phi_loss, Mapping) else {}
    do = 'For example phi_loss={"w": gimli.indexed(torch.ones(N))}, where each batch carries its "rows".'
    if entry is None and len(marked) == 1:
        return next(iter(marked.items()))
    if entry is None:
        actual = f"{len(marked)} such: {listing(marked)}"
        raise unexpected("phi_loss", "one entry marked by gimli.indexed, or its name as entry=", actual, do)
    if entry not in marked:
        raise unexpected("entry", f"the name of an indexed entry of phi_loss ({listing(marked)})", repr(entry), do)
    return entry, marked[entry]


def query_losses(problem: Problem, theta: Mapping[str, Tensor], phi_loss: Any, val_batch: Any, steps: int) -> Tensor:
    """L_val at theta_J = `theta` as [k]; one number is one query. Random numbers and buffers stay as they were."""
    phi: Tensors = {k: torch.as_tensor(unmarked(v)) for k, v in phi_loss.items() if not isinstance(v, Indexed)}
    batch = check_val_batch(val_batch, steps)(steps)
    environment = Environment(modules_of(problem), next(iter(theta.values())).device)
    before = environment.capture()
    try:
        with torch.no_grad():
            losses, _ = value_and_aux(called(problem.val_loss, dict(theta), phi, batch, steps), "val_loss")
    finally:
        environment.restore(before)
    if not isinstance(losses, Tensor) or losses.ndim > 1 or losses.numel() == 0:
        actual = f"shape {list(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise unexpected("val_loss", "a vector [k] with a number for each query, or one number", actual, "Stack them.")
    return losses.detach().reshape(-1)
