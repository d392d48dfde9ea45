"""What the networks are made of: batch norm of two kinds, heads, and the sizes of feature maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gimli_core.errors import listing, unexpected

__all__ = ["PIXEL_AT", "STATISTICS", "Bfloat16", "batch_norm", "convolution", "head"]

STATISTICS = ("batch", "running")
PIXEL_AT = 8


def batch_norm(channels: int, statistics: str) -> nn.BatchNorm2d:
    """Batch norm with statistics of the batch at hand always, or running ones in the test."""
    if statistics not in STATISTICS:
        raise unexpected("statistics", listing(STATISTICS), repr(statistics), "Choose one of them.")
    return nn.BatchNorm2d(channels, track_running_stats=statistics == "running")


def convolution(channels: int, filters: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that a batch norm follows: without a bias, which that would take away.

    With one, its gradient would be rounding noise, and an inner Adam would make steps of it.
    """
    return nn.Conv2d(channels, filters, size, stride, padding=size // 2, bias=False)


def head(features: int, outputs: int | None) -> list[nn.Module]:
    """A flat embedding, or a linear layer on it."""
    return [nn.Flatten()] + ([nn.Linear(features, outputs)] if outputs else [])


class Bfloat16(nn.Module):
    """A network whose convolutions multiply in bfloat16, for processors and GPUs that have units for it.

    Its parameters, their gradients and what it gives are as they were (`torch.autocast`).

    NOTE [one pixel]: oneDNN leaves most of the weight gradient of a convolution of stride 2 on a map of one pixel as
    the memory was, in bfloat16 (torch 2.13). Four halvings bring images of up to `PIXEL_AT` there: not for those.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            out: Tensor = self.network(x)
        return out.to(x.dtype)
