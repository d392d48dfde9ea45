"""What the networks are made of: batch norm of two kinds, heads, and the sizes of feature maps."""

from __future__ import annotations

from torch import nn

from gimli_core.errors import ArgumentError, explain, listing

__all__ = ["STATISTICS", "batch_norm", "head"]

STATISTICS = ("batch", "running")


def batch_norm(channels: int, statistics: str) -> nn.BatchNorm2d:
    """Batch norm with statistics of the batch at hand always, or running ones in the test."""
    if statistics not in STATISTICS:
        raise ArgumentError(explain("statistics", listing(STATISTICS), repr(statistics), "Choose one of them."))
    return nn.BatchNorm2d(channels, track_running_stats=statistics == "running")


def head(features: int, outputs: int | None) -> list[nn.Module]:
    """A flat embedding, or a linear layer on it."""
    return [nn.Flatten()] + ([nn.Linear(features, outputs)] if outputs else [])
