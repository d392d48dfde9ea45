"""What a journal writes besides tensors, as plain values, and back: a schedule, a snapshot, a digest of a problem.

What is read back may say anything; what does not fit raises one of `ILL_FITTING`.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gimli_core.arguments.inputs import Inputs
from gimli_core.environment import Environment, Snapshot
from gimli_core.memory.schedules.actions import Schedule
from gimli_core.memory.schedules.checkpoint import Checkpoint
from gimli_core.memory.schedules.retain_graphs import RetainGraphs
from gimli_core.memory.schedules.store_states import StoreStates
from gimli_core.trees import mapped, nodes

__all__ = ["ILL_FITTING", "describe", "fingerprint", "fits", "plain_snapshot", "schedule_of", "snapshot_of"]

ILL_FITTING = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError)
FIELDS = ("snapshots", "graphs", "gradients", "disk_snapshots")


def describe(schedule: Schedule) -> dict[str, Any]:
    """A schedule as plain values; `schedule_of` builds it again. The directory of its disk is not among them."""
    if not isinstance(schedule, Checkpoint):
        return {"kind": type(schedule).__name__}
    fields = {name: getattr(schedule, name) for name in FIELDS}
    return {"kind": "Checkpoint", **fields, "disk": schedule.disk is not None}


def schedule_of(plain: dict[str, Any], disk: Path) -> Schedule:
    """The schedule that `describe` described, with `disk` where it had one."""
    kinds: dict[str, type[Schedule]] = {"RetainGraphs": RetainGraphs, "StoreStates": StoreStates}
    if plain["kind"] in kinds:
        if set(plain) != {"kind"}:
            raise ValueError("a schedule with other fields than were written")
        return kinds[plain["kind"]]()
    if plain["kind"] != "Checkpoint" or set(plain) != {"kind", "disk", *FIELDS}:
        raise ValueError(f"a schedule of the kind {plain['kind']!r} with the fields {', '.join(plain)}")
    if type(plain["gradients"]) is not bool or type(plain["disk"]) is not bool:
        raise ValueError("a schedule with a switch that is no switch")
    return Checkpoint(**{name: plain[name] for name in FIELDS}, disk=disk if plain["disk"] else None)


def plain_snapshot(snapshot: Snapshot) -> tuple[dict[str, Tensor], list[Any]]:
    """A snapshot as named buffers and plain numbers."""
    torch_state, (name, keys, *rest), python_state, *more = snapshot.generators
    generators = [torch_state.tolist(), [name, keys.tolist(), *rest], python_state, *(state.tolist() for state in more)]
    return {str(i): b for i, b in enumerate(snapshot.buffers)}, generators


def snapshot_of(buffers: dict[str, Tensor], generators: list[Any], environment: Environment) -> Snapshot:
    """The snapshot that `plain_snapshot` described, if `environment` can be put back to it.

    `tensors` are of any shape.
    """
    torch_state, (name, keys, *rest), (version, numbers, gauss), *more = generators
    states = [torch.tensor(state, dtype=torch.uint8) for state in (torch_state, *more)]
    numpy_state, python_state = (name, np.array(keys, dtype=np.uint32), *rest), (version, tuple(numbers), gauss)
    devices = [torch.device("cpu"), *([environment.device] if environment.device.type == "cuda" else [])]
    for device, state in zip(devices, states, strict=True):  # generators of nobody's say whether they fit
        torch.Generator(device).set_state(state)
    np.random.RandomState().set_state(numpy_state)
    random.Random().setstate(python_state)
    if set(buffers) != {str(i) for i in range(len(environment.buffers))}:
        raise ValueError(f"{len(buffers)} buffers for {len(environment.buffers)}")
    return Snapshot(
        (states[0], numpy_state, python_state, *states[1:]), tuple(buffers[str(i)] for i in range(len(buffers)))
    )


def fits(tree: Any, like: Any) -> bool:
    """Whether nested dicts have the same names, and tensors of the same shapes."""
    form, expected = (mapped(lambda t: t.shape, part) for part in (tree, like))
    return bool(form == expected)


def fingerprint(inputs: Inputs, *, of_all: bool = False) -> str:
    """A digest of all values that a run starts from; the losses' code is not among them.

    Args:
        of_all: of those that all ranks of a mesh start from, however many they are: where each has a part of every
            batch, without batches and what is indexed by examples.
    """
    digest = hashlib.sha256()

    def add(thing: Any) -> None:
        for x in nodes(thing):
            if isinstance(x, Tensor):
                dense = x.detach().cpu().contiguous()
                digest.update(f"{dense.dtype}{list(dense.shape)}".encode())
                digest.update(dense.reshape(-1).view(torch.uint8).numpy().tobytes())
            elif isinstance(x, (dict, tuple, list)):
                digest.update(repr(list(map(str, x)) if isinstance(x, dict) else len(x)).encode())
            else:
                digest.update(repr(x).encode() if isinstance(x, (int, float, str, bool, type(None))) else b"?")

    form, values = inputs.form, inputs.values
    in_parts = of_all and form.data is not None
    add(
        [
            values.theta_0,
            values.frozen,
            values.state_0,
            values.phi_loss,
            {k: v.value for k, v in values.indexed.items() if not in_parts},
            values.weights,
            form.steps,
            form.recurrence,
        ]
    )
    add([form.second_order if form.evaluates_again else None, not form.curvature, form.first])
    add([type(form.optimizer).__name__, values.hyper.at(0), None if in_parts else values.last_val_batch])
    of_steps = [values.hyper.at(j) for j in (0, form.steps - 1)] if form.steps else []
    add(of_steps + [values.batch(0)] * (form.steps > 0 and not in_parts))
    if of_all:
        add([form.in_shards, form.tasks])
    return digest.hexdigest()
