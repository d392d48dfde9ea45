"""Nested dicts of tensors in checksummed files.

A file holds `gimli1\\n`, the length of a JSON header (8 bytes), the header's CRC-32 (4 bytes), the header and the
tensors' raw bytes. The header gives the version of the format, the paths of empty dicts, plain values, and each
tensor's path, dtype, shape in memory, order of dimensions there, shape, device and CRC-32. Reading runs no code, takes
no more memory than the file is long, and believes nothing: what is not as it was written is a StorageError, never a
wrong number. A file appears under its name only once it is whole, and a link of that name is replaced, not followed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gimli_core.errors import StorageError
from gimli_core.layout import narrowed, order_in_memory
from gimli_core.trees import KeyPath, folded, leaves

__all__ = ["create", "damaged", "is_ours", "names_of_ours", "read_file", "unfinished", "write_file"]

MAGIC = b"gimli1\n"
VERSION = 3  # of the header
AGAIN = "Run again."
FLAGS = os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
DEVICES = ("cpu", "cuda", "mps", "xpu")
DTYPES = {
    str(dtype)[6:]: dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex128, torch.complex64),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
        *(torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    )
}


def write_file(path: Path, tree: Mapping[str, Any], extra: Mapping[str, Any], *, durable: bool = False) -> None:
    """Write a nested dict of tensors and a dict of plain values, whole or not at all. Raises StorageError."""
    flat, empty = _flat(tree)
    # In the order of memory, and expanded as they are: another layout would change the last bits.
    orders = [order_in_memory(t) for _, t in flat]
    tensors = [narrowed(t).detach().cpu().permute(o).contiguous() for (_, t), o in zip(flat, orders, strict=True)]
    entries = [
        [list(names), str(t.dtype)[6:], list(t.shape), order, list(s.shape), str(s.device), zlib.crc32(_bytes(t))]
        for (names, s), t, order in zip(flat, tensors, orders, strict=True)
    ]
    header = json.dumps({"format": VERSION, "tensors": entries, "empty": empty, "extra": dict(extra)}).encode()
    head = MAGIC + len(header).to_bytes(8, "little") + zlib.crc32(header).to_bytes(4, "little") + header
    try:
        part = unfinished(path)
        try:
            with os.fdopen(create(part), "wb") as file:
                file.write(head)
                for t in tensors:
                    file.write(_bytes(t))
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
    except OSError as error:
        raise StorageError(
            f"{path}: expected room to write {sum(t.nbytes for t in tensors):,} bytes; got: {error.strerror}. "
            "Free some space, name another directory, or ask for fewer snapshots on disk."
        ) from error
    if durable:
        _settle(path.parent)


def read_file(
    path: Path, expected: Mapping[str, Any] | None = None, *, remedy: str = AGAIN
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(nested dict of tensors, plain values) as written, with the `expected` ones among the plain values.

    Raises StorageError for a missing, cut, changed, forged or exchanged file; `remedy` ends its message.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | FLAGS), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or file.read(len(MAGIC)) != MAGIC:
                raise damaged(path, "another kind of file", remedy)
            length, check = int.from_bytes(file.read(8), "little"), int.from_bytes(file.read(4), "little")
            header = file.read(length) if length <= status.st_size else b""
            if not header or len(header) != length or zlib.crc32(header) != check:
                raise damaged(path, "a header that was cut or changed", remedy)
            try:
                tree, extra = _read_body(file, json.loads(header), status.st_size)
                for key, value in (expected or {}).items():
                    if extra[key] != value:
                        raise ValueError(f"{key} {extra[key]!r} where {value!r} was written")
            except (KeyError, TypeError, ValueError, RecursionError, RuntimeError, AttributeError) as error:
                raise damaged(path, str(error) or type(error).__name__, remedy) from error
            return tree, extra
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path}: expected a file that can be read; got: {error.strerror}. Was it removed during the run? {remedy}"
        ) from error


def damaged(path: Path, actual: str, remedy: str = AGAIN) -> StorageError:
    """What to raise for a file that is not as it was written."""
    return StorageError(
        f"{path}: expected the file as it was written; got {actual}. Nothing was computed from it. {remedy}"
    )


def create(path: Path) -> int:
    """A descriptor of a new file that nobody else can read: never of one that is there, nor of what a link names."""
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | FLAGS, 0o600)


def unfinished(path: Path) -> Path:
    """A name that nobody can foretell for a file that will be `path` once it is whole."""
    return path.with_name(f"{path.name}.gimli-{secrets.token_hex(8)}")


def names_of_ours(directory: Path, names: str, *, finished: bool) -> list[Path]:
    """The whole files of a directory that are named like the pattern `names`, or those that were never finished."""
    pattern = re.compile(f"(?:{names})" + ("" if finished else r"\.gimli-[0-9a-f]{16}"), re.ASCII)
    return sorted(path for path in directory.iterdir() if pattern.fullmatch(path.name))


def is_ours(path: Path) -> bool:
    """Whether a file begins as those of `write_file` do."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | FLAGS), "rb") as file:
            return stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _read_body(file: BinaryIO, described: Any, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors and plain values of a header that may say anything."""
    if described["format"] != VERSION:
        raise ValueError(f"the format {described['format']!r} of another version of gimli_core")
    if set(described) != {"format", "tensors", "empty", "extra"} or not isinstance(described["extra"], dict):
        raise ValueError("other fields than were written")
    tree: dict[str, Any] = {}
    for names, dtype, shape, order, expanded, device, crc in described["tensors"]:
        if not all(type(n) is int and 0 <= n < 2**48 for n in shape) or sorted(order) != list(range(len(shape))):
            raise ValueError(f"a shape {shape!r} with dimensions in the order {order!r}")
        if dtype not in DTYPES or torch.device(device).type not in DEVICES:
            raise ValueError(f"a tensor of {dtype!r} on {device!r}")
        if math.prod(shape) * DTYPES[dtype].itemsize > size - file.tell():
            raise ValueError(f"a tensor of shape {shape} in a file of {size} bytes")
        t = torch.empty(shape, dtype=DTYPES[dtype])
        if t.nbytes and file.readinto(_bytes(t)) != t.nbytes:  # type: ignore[attr-defined]
            raise ValueError("a file that was cut")
        if zlib.crc32(_bytes(t)) != crc:
            raise ValueError(f"other bytes than were written, in {'.'.join(names)}")
        t = t.permute([order.index(d) for d in range(t.ndim)]).to(device)
        _put(tree, names, t if expanded == list(t.shape) else t.expand(expanded))
    for names in described["empty"]:
        _put(tree, names, {})
    if file.tell() != size:
        raise ValueError("more bytes than were written")
    return tree, described["extra"]


def _settle(directory: Path) -> None:
    """See to it that names in a directory outlive a failure of power; some systems have no such thing."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _bytes(t: Tensor) -> memoryview:
    # A single number may have any stride, 0 after an expansion, and counts as contiguous all the same.
    flat: Any = t.as_strided((t.numel(),), (1,)).view(torch.uint8).numpy() if t.numel() else b""
    return memoryview(flat)


def _flat(tree: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """(paths and tensors, paths of the empty dicts)."""
    empty: list[Any] = []

    def node(path: KeyPath, _: Any, inside: dict[Any, Any]) -> None:
        if path and not inside:
            empty.append([*path])

    folded(tree, lambda *_: None, node)
    return leaves(tree), empty


def _put(tree: dict[str, Any], names: list[str], value: Any) -> None:
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"a tensor named {names!r}")
    for name in names[:-1]:
        tree = tree.setdefault(name, {})
    if not isinstance(tree, dict) or names[-1] in tree:
        raise ValueError(f"two tensors named {names!r}")
    tree[names[-1]] = value
