"""What a section of the device's report is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    right: bool
    said: str


@dataclass(frozen=True)
class Where:
    """On what a section runs, and how thoroughly."""

    device: torch.device
    quick: bool
    data: Path

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def put(self, tree: Any) -> Any:
        """The tensors of nested containers on the device."""
        return pytree.tree_map_only(torch.Tensor, lambda t: t.to(self.device), tree)


@contextmanager
def deterministic() -> Iterator[None]:
    """Kernels that give the same bits at each call: what the schedules' agreement to the bit rests on."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
