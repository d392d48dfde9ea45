"""Numbers of a rule that no element has: counts of steps, and whether Python may stand in for torch with them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["looked_at", "next_step"]

ONE = torch.ones((), dtype=torch.float64, device="cpu")


def looked_at() -> bool:
    """Whether torch looks at every operation: one that is traced, vectorised over tasks or differentiated by torch.func
    keeps its tensors as they are.
    """
    in_a_mode = torch._C._functorch.peek_interpreter_stack() is not None or torch._C._len_torch_dispatch_stack() > 0
    return in_a_mode or torch.compiler.is_compiling()


def next_step(step: Tensor) -> Tensor:
    """The count of finished steps after one more, a scalar.

    Where nothing looks on, a tensor is added: torch wraps and converts a number every time, which takes as long again
    as the addition of two small vectors, twice a step.
    """
    plain = type(step) is Tensor and step.dtype is torch.float64 and step.is_cpu and not looked_at()
    return step + ONE if plain else step + 1
