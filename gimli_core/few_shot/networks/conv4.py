"""Four convolutions: the network of nearly every few-shot paper since Vinyals et al. 2016."""

from __future__ import annotations

from typing import Any

from torch import nn

from gimli_core.few_shot.networks.parts import batch_norm, convolution, head

__all__ = ["conv4", "strided_conv4", "vgg"]


def conv4(
    channels: int,
    size: int,
    outputs: int | None = None,
    *,
    filters: int = 64,
    statistics: str = "batch",
    slope: float = 0.0,
    signed: bool = False,
) -> nn.Sequential:
    """Four of: convolution 3 × 3, batch norm, ReLU, max-pooling 2 × 2 (while there is more than a pixel).

    The pooling stands before the ReLU: the largest of four, cut off at 0, is the same in either order, and costs less.

    Args:
        channels, size: of the pictures.
        outputs: classes; None for the embedding alone.
        filters: 64, or 32 for miniImageNet in MAML.
        statistics: of batch norm, "batch" or "running".
        slope: of the ReLU below 0.
        signed: leave the last ReLU out, so that features are of both signs, as cosines need them.

    >>> import torch
    >>> from gimli_core.few_shot.networks import conv4
    >>> conv4(1, 28, outputs=5)(torch.zeros(2, 1, 28, 28)).shape, conv4(1, 28)(torch.zeros(2, 1, 28, 28)).shape
    (torch.Size([2, 5]), torch.Size([2, 64]))
    """
    layers: list[nn.Module] = []
    for number in range(4):
        layers += [convolution(channels, filters), batch_norm(filters, statistics)]
        if size > 1:
            layers.append(nn.MaxPool2d(2))
        if number < 3 or not signed:
            layers.append(nn.LeakyReLU(slope) if slope else nn.ReLU())
        channels, size = filters, max(size // 2, 1)
    return nn.Sequential(*layers, *head(filters * size * size, outputs))


def strided_conv4(
    channels: int, size: int, outputs: int | None = None, *, filters: int = 64, statistics: str = "batch"
) -> nn.Sequential:
    """Four convolutions 3 × 3 of stride 2, batch norm, ReLU; then the mean over the picture. MAML's for Omniglot."""
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [convolution(channels, filters, stride=2), batch_norm(filters, statistics), nn.ReLU()]
        channels, size = filters, (size + 1) // 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), *head(filters, outputs))


def vgg(channels: int, size: int, outputs: int | None = None, **named: Any) -> nn.Sequential:
    """MAML++'s variant of VGG: `conv4` with leaky ReLUs."""
    return conv4(channels, size, outputs, slope=0.01, **named)
