"""The precision that a problem is computed in, and the question in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gimli_core.environment import Environment
from gimli_core.trees import tensors
from gimli_core.verification.oracles.autograd_through_the_graph import loss_value
from gimli_core.verification.question import Key, Question, label

__all__ = ["lowest_dtype", "name_of", "precise", "summed_in"]


class _Dtypes(TorchDispatchMode):
    """The floating dtypes of all that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {t.dtype for t in tensors(out) if t.is_floating_point()}
        return out


def lowest_dtype(asked: Question, environment: Environment) -> torch.dtype:
    """The question's dtype, or that of the losses' computing, as under autocast, where it is a lower one. Cost 3F·J."""
    # Rules compute in theta's dtype, whatever that of a hyperparameter is.
    entries = {key: entry.double() if key[0] == "A_opt" else entry for key, entry in asked.entries().items()}
    with _Dtypes() as dtypes:
        loss_value(asked, entries, environment)
    low = {dtype for dtype in dtypes.seen if dtype in (torch.bfloat16, torch.float16)}
    return max(low, key=lambda dtype: torch.finfo(dtype).eps, default=asked.dtype)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def precise(asked: Question, environment: Environment) -> tuple[Question, list[str]]:
    """The question in float64 if the losses can answer it there, and a note on that."""
    works, coarse = asked.dtype, summed_in(asked)
    if all(dtype == torch.float64 for dtype in (works, *asked.held_in().values())):
        return asked, []
    doubled = asked.in_double()
    try:
        loss_value(doubled, doubled.entries(), environment)
    except RuntimeError:
        name = name_of(works)
        return asked, [f"the oracles work in {name}, as the engine does: the losses hold tensors that refuse float64."]
    notes = [] if works == torch.float64 else [f"the engine works in {name_of(works)}, the oracles in float64."]
    if coarse:
        names = ", ".join(f"{label(key)} in {name_of(dtype)}" for key, dtype in coarse.items())
        do = "give the hyperparameter in theta's dtype for more digits"
        notes.append(f"summed in less than theta's dtype, {names}: {do}.")
    return doubled, notes


def summed_in(asked: Question) -> dict[Key, torch.dtype]:
    """The hyperparameters' derivatives that are summed in a dtype less precise than what the engine works in, and that
    dtype: the hyperparameter's own, or float32 where that is one of two bytes.
    """
    sums = {k: torch.promote_types(dtype, torch.float32) for k, dtype in asked.held_in().items() if k[0] == "A_opt"}
    return {k: dtype for k, dtype in sums.items() if torch.finfo(dtype).eps > torch.finfo(asked.dtype).eps}
