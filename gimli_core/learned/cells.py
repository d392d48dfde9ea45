"""The networks inside of the rules, as plain tensor operations: twice differentiable, vectorised, compiled.

torch's own LSTM cell has no formula for forward mode or vmap.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gimli_core.errors import unexpected
from gimli_core.notation import Tensors

__all__ = ["check_sizes", "linear_start", "lstm", "lstm_start"]


def lstm(net: Tensors, name: str, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """(h', c') of one LSTM layer, for inputs `[..., n]` and states `[..., hidden]`.

    i, f, g, o = W x + U h + b;   c' = σ(f) c + σ(i) tanh(g);   h' = σ(o) tanh(c')
    """
    weight = torch.cat([net[f"{name}.W"], net[f"{name}.U"]], 1)  # one product in place of two
    gates: Tensor = F.linear(torch.cat([x, h], -1), weight, net[f"{name}.b"])
    i, f, g, o = gates.chunk(4, -1)
    new: Tensor = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    shown: Tensor = torch.sigmoid(o) * torch.tanh(new)
    return shown, new


def lstm_start(name: str, inputs: int, hidden: int, generator: torch.Generator) -> Tensors:
    """Weights uniform within 1/√hidden, as `torch.nn.LSTM` starts; the forget gate's bias is 1 more."""
    bound = hidden**-0.5

    def uniform(*shape: int) -> Tensor:
        drawn: Tensor = (2 * torch.rand(*shape, generator=generator) - 1) * bound
        return drawn

    b = uniform(4 * hidden)
    b[hidden : 2 * hidden] += 1.0
    return {f"{name}.W": uniform(4 * hidden, inputs), f"{name}.U": uniform(4 * hidden, hidden), f"{name}.b": b}


def linear_start(name: str, inputs: int, outputs: int, generator: torch.Generator, scale: float = 1.0) -> Tensors:
    """Weights uniform within scale/√inputs and no bias."""
    weight = (2 * torch.rand(outputs, inputs, generator=generator) - 1) * scale * inputs**-0.5
    return {f"{name}.W": weight, f"{name}.b": torch.zeros(outputs)}


def check_sizes(rule: str, **sizes: object) -> None:
    """Raise ArgumentError unless every size is a whole number >= 1."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise unexpected(f"{rule}({name}=…)", "a whole number >= 1", repr(value), "For example 20.")
