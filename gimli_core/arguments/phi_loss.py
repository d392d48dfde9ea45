"""phi_loss, checked: a flat dict of tensors, some of which each task has its own of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from gimli_core.arguments.theta import check_tensor
from gimli_core.errors import unexpected
from gimli_core.meta_parameters.indexed import Indexed
from gimli_core.notation import Tensors
from gimli_core.transforms.tasks import checked_per_task, split_marked

__all__ = ["check_phi_loss", "indexed_entries"]


def check_phi_loss(phi_loss: Any, theta: Tensors, tasks: int | None) -> tuple[frozenset[str], Tensors]:
    """The names that each task has its own tensor of, and all tensors."""
    all_marked, phi_loss = split_marked(phi_loss)
    if phi_loss is None:
        return frozenset(), {}
    if not isinstance(phi_loss, Mapping):
        raise unexpected(
            "phi_loss",
            "a dict {name: tensor}",
            type(phi_loss).__name__,
            "For a module: dict(module.named_parameters()).",
        )
    first = next(iter(theta.values()))
    dtypes = {v.dtype for v in theta.values()}
    if dtypes & {torch.float16, torch.bfloat16}:
        dtypes.add(torch.float32)  # of which accumulators are anyway
    checked, by_task = {}, set()
    for k, v in phi_loss.items():
        if isinstance(v, Indexed):
            continue
        argument = f"phi_loss[{k!r}]"
        alone, v = split_marked(v)
        if alone or all_marked:
            by_task.add(k)
            checked_per_task(argument, v, tasks)
        if isinstance(v, (int, float)) and not isinstance(v, bool):
            v = torch.tensor(float(v), dtype=first.dtype, device=first.device)
        check_tensor(argument, v)
        if not isinstance(k, str):
            raise unexpected("phi_loss", "names that are strings", f"the key {k!r}", "Rename it.")
        if v.ndim > 0 and (v.dtype not in dtypes or v.device != first.device):
            expected = f"{first.dtype} on {first.device}, as theta_0 is"
            raise unexpected(argument, expected, f"{v.dtype} on {v.device}", "Convert it with .to(...).")
        checked[k] = v.detach()
    return frozenset(by_task), checked


def indexed_entries(phi_loss: Any) -> dict[str, Indexed]:
    """The entries that are marked `indexed`, detached. Raises ArgumentError."""
    marked = {k: v for k, v in phi_loss.items() if isinstance(v, Indexed)} if isinstance(phi_loss, Mapping) else {}
    for k, v in marked.items():
        check_tensor(f"phi_loss[{k!r}]", v.value)
    return {k: replace(v, value=v.value.detach()) for k, v in marked.items()}
