"""Labelled images as every reader returns them, and the classes of a named split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gimli_core.errors import ArgumentError, listing, unexpected
from gimli_core.few_shot.data.splits import CIFAR_FS, VINYALS, by_alphabet, by_name

__all__ = ["PARTS", "LabelledImages", "data_error", "parts_of"]

PARTS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with their classes.

    Args:
        name: of the set.
        images: [n, channels, height, width], bytes.
        labels: [n], 0 … classes-1.
        names: of the classes.
        parts: [classes], the file's own split: 0 train, 1 val, 2 test; None if it has none.
        split: what the file's own split is called.
    """

    name: str
    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    parts: Tensor | None = None
    split: str = "own"

    def part(self, parts: Tensor, which: str) -> tuple[Tensor, Tensor]:
        """Images and labels of the classes in one part of a split, numbered anew from 0."""
        classes = torch.nonzero(parts == PARTS.index(which)).flatten()
        if not len(classes):
            actual = f"none of the {len(self.names)} classes"
            do = "Give more classes, so that each part has some, or choose another split."
            raise unexpected("split", f"classes in its part {which!r}", actual, do)
        new = torch.full((len(self.names),), -1)
        new[classes] = torch.arange(len(classes))
        rows = torch.nonzero(new[self.labels] >= 0).flatten()
        return self.images[rows], new[self.labels[rows]]


def parts_of(data: LabelledImages, split: str, seed: int = 0) -> tuple[str, Tensor]:
    """(the split's name, [classes] 0 train, 1 val, 2 test).

    Args:
        data: the images.
        split: "vinyals" (Omniglot, whole alphabets), "cifar-fs" (by the classes' names), "ravi" (miniImageNet, by the
            published csv files or folders), "own" (whatever the file says), or "random" (64 : 16 : 20 of the classes).
        seed: of "random".

    Raises:
        ArgumentError: an unknown name, classes that are not those of the split.
    """
    if split in ("own", data.split) and data.parts is not None:
        return data.split, data.parts
    if split == "vinyals":
        return split, by_alphabet(data.names, VINYALS)
    if split == "cifar-fs":
        return split, by_name(data.names, CIFAR_FS)
    if split == "random":
        parts = torch.zeros(len(data.names), dtype=torch.long)
        order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(seed))
        val, test = round(0.64 * len(parts)), round(0.8 * len(parts))
        parts[order[val:test]], parts[order[test:]] = 1, 2
        return split, parts
    if split in ("own", "ravi"):
        do = "Give the published csv files or the folders train, val and test; or --split random."
        raise unexpected("split", f"data that brings its split {split!r}", "none", do)
    splits = ("vinyals", "cifar-fs", "ravi", "own", "random")
    raise unexpected("split", listing(splits), repr(split), "Choose one of them.")


def data_error(path: Path, expected: str, actual: str, do: str) -> ArgumentError:
    """For what cannot be read, named before training."""
    return unexpected(f"--data {path}", expected, actual, do)
