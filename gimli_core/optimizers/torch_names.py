"""The parameters of a live `torch.optim` optimizer, by name."""

from __future__ import annotations

from typing import Any

import torch

from gimli_core.errors import listing, unexpected

__all__ = ["names_of"]


def names_of(
    optimizer: torch.optim.Optimizer, named_parameters: Any, argument: str = "from_torch(optimizer)"
) -> dict[int, str]:
    """{id of a parameter: its name}, every trained parameter in a group and every one in a group with a name."""
    every = [p for group in optimizer.param_groups for p in group["params"]]
    if named_parameters is None:
        if any("param_names" not in group for group in optimizer.param_groups):
            raise unexpected(
                f"{argument[:-1]}, named_parameters)",
                "the parameters' names",
                "neither names nor an optimizer built from them",
                "Pass module.named_parameters().",
            )
        in_groups = [name for group in optimizer.param_groups for name in group["param_names"]]
        return {id(p): name for p, name in zip(every, in_groups, strict=True)}
    named = dict(named_parameters)
    names = {id(p): name for name, p in named.items()}
    inside = {id(p) for p in every}
    homeless = [name for name, p in named.items() if id(p) not in inside and p.requires_grad]
    if homeless:
        raise unexpected(
            f"{argument[:-1]}, named_parameters)",
            "every trained parameter in a parameter group",
            f"{listing(homeless)} in none",
            "Add it to a group, or freeze it with requires_grad_(False).",
        )
    nameless = [list(p.shape) for p in every if id(p) not in names]
    if nameless:
        raise unexpected(
            f"{argument[:-1]}, named_parameters)",
            "a name for every parameter of the optimizer",
            f"none for those of shape {listing(nameless)}",
            "Pass the named_parameters() of the module it was built from.",
        )
    return names
