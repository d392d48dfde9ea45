"""Modules and tensors that other libraries have spread over processes: refused by name, since what they compute with
is this process's share alone, and their own messages go with `backward()`, which nothing here calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from gimli_core.errors import unexpected

__all__ = ["refuse_spread"]

# What to give in their place, by the names of their classes: none of them is imported for it.
INSTEAD = {
    "DistributedDataParallel": 'its .module, and mesh="data": gradients and second-order products are then summed',
    "FullyShardedDataParallel": 'the module before it was wrapped, and mesh="shard"',
    "FSDPModule": 'the module before fully_shard, and mesh="shard"',
    "DataParallel": "its .module; several devices are several processes",
}


def refuse_spread(modules: Iterable[nn.Module], theta_0: Mapping[str, Any]) -> None:
    """Raise ArgumentError for a module that the losses see, or an entry of theta_0, that is spread over processes."""
    for module in modules:
        for kind in type(module).__mro__:
            if kind.__name__ in INSTEAD and kind.__module__.startswith("torch."):
                actual = f"{kind.__name__}, of which a loss sees this process's share alone"
                raise unexpected("problem", "losses with modules as they are", actual, f"Use {INSTEAD[kind.__name__]}.")
    for k, v in theta_0.items():
        if type(v).__name__ == "DTensor":
            expected, do = "a plain tensor", 'Give v.full_tensor(), the same on every rank, and mesh="shard".'
            raise unexpected(f"theta_0[{k!r}]", expected, "a DTensor", do)
