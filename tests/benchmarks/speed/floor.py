"""The least time that a mode can take: its matrix products and convolutions alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "convolution", "convolution_backward"}


class Form(NamedTuple):
    """What stands for a tensor in a noted call."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Products(TorchDispatchMode):
    """Notes every matrix product and convolution that runs under it: the operation, and its tensors' forms."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, list[Any], Any]] = []

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if f.overloadpacket.__name__ in PRODUCTS:
            leaves, structure = pytree.tree_flatten((args, kwargs or {}))
            self.calls.append((f, [form(v) if isinstance(v, Tensor) else v for v in leaves], structure))
        return f(*args, **(kwargs or {}))


def form(value: Tensor) -> Form:
    return Form(tuple(value.shape), value.stride(), value.dtype, value.device)


def products(run: Callable[[], Any]) -> Callable[[], None]:
    """A function that does exactly the products of `run`, in their order, on tensors allocated beforehand.

    Tensors of one form share their memory: what stays in the caches makes the floor lower, never higher.
    """
    with Products() as noted:
        run()
    held: dict[Form, Tensor] = {}

    def tensor(value: Any) -> Any:
        if not isinstance(value, Form):
            return value
        if value not in held:
            length = 1 + sum((n - 1) * step for n, step in zip(value.size, value.stride, strict=True) if n)
            memory = torch.randn(length, dtype=value.dtype, device=value.device)
            held[value] = memory.as_strided(value.size, value.stride)
        return held[value]

    calls = []
    for f, leaves, structure in noted.calls:
        args, kwargs = pytree.tree_unflatten([tensor(v) for v in leaves], structure)
        calls.append((f, args, kwargs))

    def only_products() -> None:
        for f, args, kwargs in calls:
            f(*args, **kwargs)

    return only_products
