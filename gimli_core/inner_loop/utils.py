"""Small helpers that existing scripts take from here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.inner_loop.checks import check_device, check_switch
from gimli_core.trees import leaves, mapped, nodes

__all__ = ["flatten", "get_func_params"]


def flatten(x: Any) -> list[Any]:
    """What dicts, lists, tuples and sets within each other hold, in one list, in order.

    >>> import gimli_core.inner_loop as inner_loop
    >>> inner_loop.utils.flatten({"lr": [0.1, 0.2], "betas": [(0.9, 0.99)]})
    [0.1, 0.2, 0.9, 0.99]
    """
    while any(isinstance(node, set) for node in nodes(x)):
        x = mapped(lambda leaf: list(leaf) if isinstance(leaf, set) else leaf, x)
    return [leaf for _, leaf in leaves(x)]


def get_func_params(
    module: nn.Module, device: torch.device | str | None = None, safe_copy: bool = True
) -> list[Tensor]:
    """The module's parameters as tensors without history, which require grad where the parameters do.

    Args:
        module: any module; it is left as it is.
        device: where they go; by default where they are.
        safe_copy: copies. With False they share the parameters' memory, where the device is the same.

    >>> import torch, gimli_core.inner_loop as inner_loop
    >>> [p.shape for p in inner_loop.utils.get_func_params(torch.nn.Linear(3, 2))]
    [torch.Size([2, 3]), torch.Size([2])]
    """
    check_device(device)
    check_switch("safe_copy", safe_copy)
    params = [p.detach().clone() if safe_copy else p.detach() for p in module.parameters()]
    return [
        value.to(device).requires_grad_(p.requires_grad) for value, p in zip(params, module.parameters(), strict=True)
    ]
