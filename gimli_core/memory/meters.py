"""Bytes in use while something runs: those of tensors, counted at every operation, or those of the process.

What is compiled makes its tensors without telling anyone; there the process is looked at. So it is for what is no
tensor: the nodes of a graph and Python's objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from gimli_core.derivatives.operations import Operations
from gimli_core.memory.allocator import LOW, in_use, occupied
from gimli_core.trees import tensors

__all__ = ["OBJECT", "BlockBytes", "LiveBytes", "Meter", "Note", "ResidentBytes"]


# Bytes of a tensor besides its numbers, with its place in a dict: 250 to 470 on average in a long run.
OBJECT = 512


class Note(NamedTuple):
    """What a meter saw between two moments, in bytes."""

    before: int = 0
    peak: int = 0
    after: int = 0
    large: int = 0  # of all tensors made that are mapped alone where NOTE [heap holes] keeps them apart


class Meter(AbstractContextManager[Any], Protocol):
    """Looks on while it is entered."""

    def begin(self) -> None:
        """A part begins."""

    def end(self) -> Note:
        """It ends."""


class LiveBytes(Operations):
    """Bytes of the tensors that were made since it was entered and still live, looked at after every operation: their
    numbers, and `OBJECT` for what a tensor is besides.

    What an operation allocates and frees inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[Any, int]] = {}
        self.peak = 0
        self._at_most = 0  # what was last counted, and all that was made since: what lives is no more
        self._large = self._before = 0

    def operation(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = {t.untyped_storage()._cdata for t in strided((args, kwargs))}
        out = function(*args, **kwargs)
        for t in strided(out):
            storage = t.untyped_storage()
            if storage._cdata not in arguments and storage._cdata not in self._made:
                size = storage.nbytes() + OBJECT
                self._made[storage._cdata] = (StorageWeakRef(storage), size)
                self._at_most += size
                self._large += storage.nbytes() if storage.nbytes() >= LOW else 0
        if self._at_most > self.peak:  # else there is no new peak, and no need to look which of all still live
            self.peak = max(self.peak, self.live())
        return out

    def live(self) -> int:
        """Bytes now."""
        self._made = {key: block for key, block in self._made.items() if not block[0].expired()}
        self._at_most = sum(size for _, size in self._made.values())
        return self._at_most

    def begin(self) -> None:
        self._before = self.peak = self.live()
        self._large = 0

    def end(self) -> Note:
        return Note(self._before, self.peak, self.live(), self._large)


def strided(tree: Any) -> Iterator[Tensor]:
    """Every tensor in a tree that has a storage; of a sparse one its indices and values. Of any shapes."""
    for t in tensors(tree):
        if t.layout == torch.sparse_coo:
            yield from (t._indices(), t._values())
        else:
            yield t


class ResidentBytes(AbstractContextManager["ResidentBytes"]):
    """Bytes that the process occupies, each part's above those at its beginning. Linux with glibc."""

    def __init__(self) -> None:
        self._looking = ExitStack()
        self._most: Callable[[], int] = lambda: 0

    def __exit__(self, *failure: object) -> None:
        self._looking.close()

    def begin(self) -> None:
        self._most = self._looking.enter_context(occupied())

    def end(self) -> Note:
        self._looking.close()
        return Note(peak=self._most())


class BlockBytes(AbstractContextManager["BlockBytes"]):
    """Bytes of all blocks that the process has taken, tensors or not, before and after each part."""

    def __init__(self) -> None:
        self._before = 0

    def __exit__(self, *failure: object) -> None:
        pass

    def begin(self) -> None:
        self._before = in_use()

    def end(self) -> Note:
        return Note(before=self._before, after=in_use())
