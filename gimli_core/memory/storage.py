"""Where stored points live: in memory, or in checksummed files of a directory that the user names.

A file holds `gimli1\\n`, the length of a JSON header (8 bytes), the header and the tensors' raw bytes. The
header gives each tensor's path, dtype, shape, order of dimensions in memory and CRC-32, so that reading
runs no code and a damaged file is an error, never a wrong number. A file appears under its name only once it is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Iterator, KeysView, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import ArgumentError, StorageError, explain
from gimli_core.memory.allocator import long_lived
from gimli_core.memory.schedules.actions import Tier
from gimli_core.record import Point
from gimli_core.trees import cloned

try:
    import fcntl
except ImportError:  # not a POSIX system: what a killed process left is then not recognised
    fcntl = None  # type: ignore[assignment]

__all__ = ["Storage", "read_file", "scratch_directory", "write_file"]

MAGIC = b"gimli1\n"
PREFIX = "gimli-scratch-"


class Storage:
    """Stored points by their step, in memory or on disk. `close` forgets all and removes the files."""

    def __init__(self, disk: Path | None = None) -> None:
        self._points: dict[int, Point] = {}
        self._on_disk: dict[int, Point] = {}  # without tensors
        self._directory = None if disk is None else scratch_directory(disk)
        self._finish = weakref.finalize(self, _remove, self._directory)

    def put(self, point: Point, tier: Tier) -> None:
        """Store a point under its step."""
        if tier is Tier.DISK:
            write_file(self._file(point.j), {"theta": point.theta, "state": point.state}, {"j": point.j})
            self._on_disk[point.j] = point._replace(theta={}, state={})
        elif point.j == 0:  # the caller's own tensors
            self._points[0] = point
        else:
            with long_lived():
                self._points[point.j] = point._replace(theta=cloned(point.theta), state=cloned(point.state))

    def get(self, j: int) -> Point:
        """The stored point j."""
        if j in self._points:
            return self._points[j]
        tree, header = read_file(self._file(j))
        if header["j"] != j:
            raise StorageError(
                f"{self._file(j)}: expected the state of step {j}; got that of step {header['j']}. Run again."
            )
        return self._on_disk[j]._replace(theta=tree["theta"], state=tree["state"])

    def drop(self, j: int) -> None:
        """Forget the stored point j."""
        if self._points.pop(j, None) is None:
            del self._on_disk[j]
            self._file(j).unlink(missing_ok=True)

    def __iter__(self) -> Iterator[int]:
        """The steps whose points are stored."""
        return iter(sorted((*self._points, *self._on_disk)))

    def keys(self) -> KeysView[int]:
        """The same, as a set."""
        return dict.fromkeys(self).keys()

    def close(self) -> None:
        """Forget all points, and remove the directory made for them."""
        self._points.clear()
        self._on_disk.clear()
        self._finish()

    def _file(self, j: int) -> Path:
        assert self._directory is not None
        return self._directory / f"step-{j}"


def scratch_directory(parent: Path) -> Path:
    """A new directory in `parent` that lives as long as this process; what killed processes left there is removed."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for old in parent.glob(f"{PREFIX}*"):
            if _abandoned(old):
                shutil.rmtree(old, ignore_errors=True)
        directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        _held[directory] = os.open(directory / "lock", os.O_CREAT | os.O_RDWR)
        if fcntl is not None:
            fcntl.flock(_held[directory], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ArgumentError(
            explain(
                "disk",
                "a directory that can be written to",
                f"{parent}: {error.strerror}",
                "Name another, or free some space.",
            )
        ) from error
    return directory


_held: dict[Path, int] = {}  # the open lock of each scratch directory of this process


def _abandoned(directory: Path) -> bool:
    if fcntl is None or directory in _held:
        return False
    try:
        lock = os.open(directory / "lock", os.O_RDWR)
    except OSError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def _remove(directory: Path | None) -> None:
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)
        lock = _held.pop(directory, None)
        if lock is not None:
            os.close(lock)


def write_file(path: Path, tree: Mapping[str, Any], extra: Mapping[str, Any], *, durable: bool = False) -> None:
    """Write a nested dict of tensors and a dict of plain values, whole or not at all. Raises StorageError."""
    # In the order of memory: kernels sum in that order, and a transposed copy would change the last bits.
    orders = [sorted(range(t.ndim), key=lambda d, t=t: -t.stride(d)) for _, t in _flat(tree)]  # type: ignore[misc]
    tensors = [(n, t.detach().cpu().permute(o).contiguous()) for (n, t), o in zip(_flat(tree), orders, strict=True)]
    entries = [[list(names), str(t.dtype)[6:], list(t.shape), order, str(s.device), zlib.crc32(_bytes(t))]
               for (names, t), (_, s), order in zip(tensors, _flat(tree), orders, strict=True)]  # fmt: skip
    header = json.dumps({"tensors": entries, "extra": dict(extra)}).encode()
    head = MAGIC + len(header).to_bytes(8, "little") + zlib.crc32(header).to_bytes(4, "little") + header
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with open(unfinished, "wb") as file:
            file.write(head)
            for _, t in tensors:
                file.write(_bytes(t))
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise StorageError(
            f"{path}: expected room to write {sum(t.nbytes for _, t in tensors):,} bytes; got: {error.strerror}. "
            "Free some space, name another directory, or ask for fewer snapshots on disk."
        ) from error


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(nested dict of tensors, plain values) as written. Raises StorageError for a missing, cut or changed file."""
    try:
        with open(path, "rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise _damaged(path, "another kind of file")
            length, check = int.from_bytes(file.read(8), "little"), int.from_bytes(file.read(4), "little")
            header = file.read(length) if length <= path.stat().st_size else b""
            if not header or len(header) != length or zlib.crc32(header) != check:
                raise _damaged(path, "a header that was cut or changed")
            described = json.loads(header)
            tree: dict[str, Any] = {}
            for names, dtype, shape, order, device, crc in described["tensors"]:
                t = torch.empty(shape, dtype=getattr(torch, dtype))
                if t.nbytes and (file.readinto(_bytes(t)) != t.nbytes or zlib.crc32(_bytes(t)) != crc):
                    raise _damaged(path, f"other bytes than were written, in {'.'.join(names)}")
                _put(tree, names, t.permute([order.index(d) for d in range(t.ndim)]).to(device))
            return tree, described["extra"]
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path}: expected a file that can be read; got: {error.strerror}. Was it removed during the run?"
        ) from error


def _damaged(path: Path, came: str) -> StorageError:
    return StorageError(
        f"{path}: expected the file as it was written; got {came}. Nothing was computed from it. Remove it, run again."
    )


def _bytes(t: Tensor) -> memoryview:
    flat: Any = t.reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat) if t.numel() else memoryview(b"")


def _flat(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Tensor]]:
    found: list[tuple[tuple[str, ...], Tensor]] = []
    for name, value in tree.items():
        found += [((*above, name), value)] if isinstance(value, Tensor) else _flat(value, (*above, name))
    return found


def _put(tree: dict[str, Any], names: list[str], t: Tensor) -> None:
    for name in names[:-1]:
        tree = tree.setdefault(name, {})
    tree[names[-1]] = t
