"""Dense networks: densenet-8 of GIMLI's Appendix B, and DenseNet-BC of its Section 5.1 (Huang et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gimli_core.few_shot.networks.parts import batch_norm, convolution, head

__all__ = ["Dense", "densenet", "densenet_bc"]


class Dense(nn.Module):
    """[x, f(x)], f of batch norm, ReLU, convolution: of 3 × 3, or with a bottleneck of 1 × 1 to 4·growth before it."""

    def __init__(self, channels: int, growth: int, bottleneck: bool, statistics: str) -> None:
        super().__init__()
        path: list[nn.Module] = []
        if bottleneck:
            path += [batch_norm(channels, statistics), nn.ReLU(), convolution(channels, 4 * growth, 1)]
            channels = 4 * growth
        path += [batch_norm(channels, statistics), nn.ReLU(), convolution(channels, growth)]
        self.path = nn.Sequential(*path)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.path(x)], 1)


def densenet(
    channels: int,
    size: int,
    outputs: int | None = None,
    *,
    layers: int = 2,
    blocks: int = 4,
    growth: int = 32,
    statistics: str = "batch",
) -> nn.Sequential:
    """densenet-8: four blocks of two layers, no convolution before the first; halved between blocks.

    >>> import torch
    >>> from gimli_core.few_shot.networks import densenet
    >>> densenet(1, 28, outputs=5, growth=8)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 5])
    """
    path, channels = _blocks(channels, size, [layers] * blocks, growth, False, statistics)
    return nn.Sequential(*path, *_end(channels, outputs, statistics))


def densenet_bc(
    outputs: int, *, depth: int = 100, growth: int = 12, channels: int = 3, size: int = 32, statistics: str = "running"
) -> nn.Sequential:
    """DenseNet-BC: three blocks of (depth - 4)/6 bottleneck layers; 299 tensors at depth 100.

    >>> from gimli_core.few_shot.networks import densenet_bc
    >>> len(list(densenet_bc(10).parameters()))
    299
    """
    first = convolution(channels, 2 * growth)
    path, width = _blocks(2 * growth, size, [(depth - 4) // 6] * 3, growth, True, statistics)
    return nn.Sequential(first, *path, *_end(width, outputs, statistics))


def _blocks(
    channels: int, size: int, blocks: list[int], growth: int, bottleneck: bool, statistics: str
) -> tuple[list[nn.Module], int]:
    path: list[nn.Module] = []
    for number, layers in enumerate(blocks):
        if number:
            path += [batch_norm(channels, statistics), nn.ReLU(), convolution(channels, channels // 2, 1)]
            path += [nn.AvgPool2d(2)] if size > 1 else []
            channels, size = channels // 2, max(size // 2, 1)
        for _ in range(layers):
            path.append(Dense(channels, growth, bottleneck, statistics))
            channels += growth
    return path, channels


def _end(channels: int, outputs: int | None, statistics: str) -> list[nn.Module]:
    return [batch_norm(channels, statistics), nn.ReLU(), nn.AdaptiveAvgPool2d(1), *head(channels, outputs)]
