"""Small residual networks: resnet-4, -8 and -12 of GIMLI's Appendix B (after He et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

from gimli_core.few_shot.networks.parts import batch_norm, convolution, head

__all__ = ["Residual", "resnet"]

WIDTHS = (64, 128, 256, 512)  # the paper does not give them: those of the usual ResNets


class Residual(nn.Module):
    """relu(x' + f(x)), f of `layers` convolutions 3 × 3 with batch norm, x' a convolution 1 × 1 of x; then pooled."""

    def __init__(self, channels: int, width: int, layers: int, pooled: bool, statistics: str) -> None:
        super().__init__()
        path: list[nn.Module] = []
        for layer in range(layers):
            path += [convolution(width if layer else channels, width)]
            path += [batch_norm(width, statistics)] + ([nn.ReLU()] if layer < layers - 1 else [])
        self.path = nn.Sequential(*path)
        self.skip = nn.Sequential(convolution(channels, width, 1), batch_norm(width, statistics))
        self.pool = nn.MaxPool2d(2) if pooled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.pool(relu(self.skip(x) + self.path(x)))
        return pooled


def resnet(
    channels: int,
    size: int,
    outputs: int | None = None,
    *,
    layers: int = 1,
    widths: Sequence[int] = WIDTHS,
    statistics: str = "batch",
) -> nn.Sequential:
    """Four residual blocks of `layers` layers each, max-pooling after each, the mean over the picture.

    As in TADAM, no convolution stands before the first block.

    >>> import torch
    >>> from gimli_core.few_shot.networks import resnet
    >>> resnet(3, 32, outputs=5, layers=2, widths=(8, 8, 8, 8))(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 5])
    """
    blocks: list[nn.Module] = []
    for width in widths:
        blocks.append(Residual(channels, width, layers, size > 1, statistics))
        channels, size = width, max(size // 2, 1)
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), *head(channels, outputs))
