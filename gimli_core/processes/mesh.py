"""`mesh=`, checked: which processes share a call, and what each dimension of them is for.

    "tasks"   each rank runs its share of a meta-batch
    "data"    each rank holds a part of every batch of one inner loop
    "shard"   each rank holds a part of theta, s, B and S
    "data+shard"   both, by the same ranks

A process group is the caller's: none is made here, and nothing is initialised.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from gimli_core.errors import closest, listing, unexpected

if distributed.is_available():
    # It keeps the group that is there when it is first imported, which an optimizer of torch's does within a program:
    # then `destroy_process_group` leaves gloo's threads, and one that frees a tensor late aborts the process at exit.
    with suppress(OSError):  # it makes a directory for temporary files, where there may be no room for one
        import torch.distributed.nn

__all__ = ["USES", "Mesh", "Ranks", "check_device", "check_mesh", "tells"]

USES = ("tasks", "data", "shard")
BOTH = "data+shard"  # the same ranks for both

_START = (
    "Start the program with `torchrun --nproc-per-node N program.py`, and let it begin with "
    'torch.distributed.init_process_group("gloo"), or "nccl" on CUDA.'
)


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes along one dimension of a mesh: those that share one use.

    Attributes:
        use: one of `USES`.
        group: their `torch.distributed` process group.
        rank: which of them this process is, from 0.
        size: W, how many there are.
        devices: the types of device whose tensors their messages may carry.
    """

    use: str
    group: Any
    rank: int
    size: int
    devices: frozenset[str] = frozenset({"cpu"})


@dataclass(frozen=True, eq=False)
class Mesh:
    """The ranks of each use that a call has; None for a use that it has not."""

    tasks: Ranks | None = None
    data: Ranks | None = None
    shard: Ranks | None = None

    def __iter__(self) -> Iterator[Ranks]:
        """Those that there are, in the order of `USES`; the same ones once."""
        shard = None if self.data_in_shards else self.shard
        return (ranks for ranks in (self.tasks, self.data, shard) if ranks is not None)

    @property
    def data_in_shards(self) -> bool:
        """Whether the same ranks share batches and theta."""
        return self.data is not None and self.shard is not None and self.data.group is self.shard.group

    @property
    def first(self) -> bool:
        """Whether this is the process that tells the user what all of them would."""
        return all(ranks.rank == 0 for ranks in self)


def tells(mesh: Any) -> bool:
    """Whether this process shows the user what all of them would: the first of a mesh, or the only one."""
    checked = check_mesh(mesh)
    return checked is None or checked.first


def check_mesh(mesh: Any) -> Mesh | None:
    """`mesh=` as the ranks of each use. Raises ArgumentError."""
    if mesh is None or isinstance(mesh, Mesh):
        return mesh
    expected = f"a DeviceMesh whose dimensions are named {listing((*USES, BOTH))}, or one of these names"
    if isinstance(mesh, str):
        if mesh not in (*USES, BOTH):
            raise unexpected(
                "mesh", expected, repr(mesh), f"A name says what all processes are for.{closest(mesh, USES)}"
            )
        if not (distributed.is_available() and distributed.is_initialized()):
            raise unexpected("mesh", "a process group to take the ranks from", "none", _START)
        group = distributed.group.WORLD
        devices = frozenset(device.type for device in group._device_types)  # type: ignore[union-attr]
        return _mesh([(mesh, group, distributed.get_rank(), distributed.get_world_size())], devices)
    if not _is_device_mesh(mesh):
        raise unexpected("mesh", expected, type(mesh).__name__, 'For example mesh="tasks". ' + _START)
    names = mesh.mesh_dim_names or ()
    unknown = [name for name in names if name not in (*USES, BOTH)]
    if unknown or not names:
        do = 'init_device_mesh("cpu", (2, 2), mesh_dim_names=("tasks", "data")).'
        actual = listing(unknown) if unknown else "a mesh whose dimensions have no names"
        raise unexpected("mesh", expected, actual, do + (closest(unknown[0], USES) if unknown else ""))
    if mesh.get_coordinate() is None:
        actual = f"rank {distributed.get_rank()}, which is outside it"
        raise unexpected("mesh", "a mesh that this process is part of", actual, "Call from the mesh's own ranks alone.")
    if BOTH in names and {"data", "shard"} & set(names):
        do = f"Name the dimensions after two of them, or one {BOTH!r}."
        raise unexpected("mesh", f"no {listing(USES[1:])} beside {BOTH!r}", listing(names), do)
    every = [(name, mesh.get_group(name), mesh.get_local_rank(name), mesh.size(i)) for i, name in enumerate(names)]
    return _mesh(every, frozenset({mesh.device_type}))


def _mesh(dimensions: list[tuple[str, Any, int, int]], devices: frozenset[str]) -> Mesh:
    """The mesh of (name, group, rank, size) of each dimension."""
    uses = {use: (group, rank, size) for name, group, rank, size in dimensions for use in name.split("+")}
    return Mesh(**{use: Ranks(use, *those, devices) for use, those in uses.items()})


def check_device(mesh: Mesh, device: torch.device) -> None:
    """Raise ArgumentError unless the messages of a mesh may carry tensors of this device."""
    for ranks in mesh:
        if device.type not in ranks.devices:
            actual, where = listing(sorted(ranks.devices)), "cuda" if device.type == "cuda" else "cpu"
            backend = "nccl" if where == "cuda" else "gloo"
            do = f'init_process_group("{backend}") and init_device_mesh("{where}", …) make one for theta.'
            raise unexpected("mesh", f"one for tensors on {device.type}, as theta_0 is", f"one for {actual}", do)


def _is_device_mesh(value: Any) -> bool:
    return distributed.is_available() and isinstance(value, torch.distributed.device_mesh.DeviceMesh)
