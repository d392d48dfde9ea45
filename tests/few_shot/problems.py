"""A small made set of images whose classes can be told apart, and episodes of it."""

from __future__ import annotations

import torch

from gimli_core.few_shot.data.images import LabelledImages
from gimli_core.few_shot.episodes import Episode, Episodes, EpisodeSampler

SIZE = 6


def made(classes: int = 12, rows: int = 12, channels: int = 1) -> LabelledImages:
    """Each class is a random picture, each row that picture with noise. Two thirds to train on, the rest to test."""
    generator = torch.Generator().manual_seed(5)
    means = torch.randint(40, 216, (classes, 1, channels, SIZE, SIZE), generator=generator)
    noise = torch.randint(-30, 31, (classes, rows, channels, SIZE, SIZE), generator=generator)
    labels = torch.arange(classes).repeat_interleave(rows)
    parts = torch.tensor([0] * (2 * classes // 3) + [2] * (classes - 2 * classes // 3))
    images = (means + noise).to(torch.uint8).flatten(0, 1)
    return LabelledImages("made", images, labels, tuple(f"class {n}" for n in range(classes)), parts)


def episodes(way: int = 3, shot: int = 1, queries: int = 2, tasks: int = 2, seed: int = 0) -> Episodes:
    data = made()
    sampler = EpisodeSampler(data.labels, way=way, shot=shot, queries=queries, tasks=tasks, seed=seed)
    return Episodes(data.images, sampler)


def episode(way: int = 3, shot: int = 1, queries: int = 2, tasks: int = 2) -> Episode:
    return episodes(way, shot, queries, tasks)(0)
