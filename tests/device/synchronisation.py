"""No step waits for the device: within the loops nothing is read back.

On a GPU `torch.cuda.set_sync_debug_mode("error")` raises where anything does. On a CPU the operations that would are
looked for, while the engine is told that it is not on one: there it looks at every step's loss at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import gimli_core as gimli
from gimli_core.arguments.call import Call
from gimli_core.runs.make_run import Wants, make_run
from gimli_core.runs.run import drain
from tests.device.check import Check, Where

STEPS = 6
READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "item")
OPTIMIZERS = {"SGD": {"momentum": 0.9}, "Adam": {}, "AdamW": {"amsgrad": True}, "RAdam": {}, "LAMB": {}, "Muon": {}}


class Reads(TorchDispatchMode):
    """Counts, while it is on, the operations that bring a number to the processor."""

    def __init__(self) -> None:
        super().__init__()
        self.on, self.seen = False, Counter[str]()

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A generator's state, which the engine compares, lies on the processor whatever the device.
        if self.on and f.overloadpacket.__name__ in READS and args[0].dtype != torch.uint8:
            self.seen[f.overloadpacket.__name__] += 1
        return f(*args, **(kwargs or {}))


class Within:
    """Looks on a run: switches on after the first step of a loop, and off before its last."""

    def __init__(self, switch: Callable[[bool], None]) -> None:
        self.switch = switch

    def __call__(self, event: gimli.Event) -> None:
        if event.line == 6 and event.j in (0, STEPS - 2):
            self.switch(event.j == 0)
        if event.line == 14 and event.j in (STEPS - 1, 1):
            self.switch(event.j == STEPS - 1)


def checks(where: Where) -> Iterator[Check]:
    names = list(OPTIMIZERS)[:2] if where.quick else list(OPTIMIZERS)
    memories = (gimli.memory.RetainGraphs(), gimli.memory.StoreStates(), gimli.memory.Checkpoint(2))
    for name in names:
        for memory in memories[:2] if where.quick else memories:
            optimizer = getattr(gimli.optimizers, name)(**OPTIMIZERS[name])
            for form in ("one vector", "by name"):
                told = waits(where, on(where, optimizer), memory, lines=form == "by name")
                said = told or "nothing waits between the first step and the last"
                yield Check(f"{name}, {memory}, {form}", not told, said)


def on(where: Where, optimizer: gimli.optimizers.Optimizer) -> dict[str, Any]:
    """A small network of two matrices, on the device."""
    torch.manual_seed(0)
    theta_0 = {"w": torch.randn(3, 4), "v": torch.randn(4, 2)}
    batches = [(torch.randn(6, 3), torch.randn(6, 2)) for _ in range(STEPS + 1)]
    theta_0, batches, phi_loss = where.put((theta_0, batches, {"l2": torch.tensor(-2.0)}))
    call = {"problem": gimli.Problem(two_matrices, two_matrices, optimizer), "theta_0": theta_0, "phi_loss": phi_loss}
    return {**call, "train_batches": batches[:-1], "val_batch": batches[-1]}


def two_matrices(theta: dict[str, torch.Tensor], phi: dict[str, torch.Tensor], batch: Any) -> torch.Tensor:
    """Matrices alone: Muon takes nothing else."""
    fit = torch.tanh(batch[0] @ theta["w"]) @ theta["v"] - batch[1]
    return fit.square().mean() + phi["l2"].exp() * theta["w"].square().sum()


@contextmanager
def as_on_a_device() -> Iterator[None]:
    """Within it, a run on the processor puts its looks off as one on a device does."""
    with ExitStack() as stack:
        for module in ("forward_unroll", "runs.losses", "derivatives.over_ranks"):
            stack.enter_context(mock.patch(f"gimli_core.{module}.at_once", return_value=False))
        yield


def run(made: dict[str, Any], memory: Any, watch: Callable[[gimli.Event], None] | None, *, lines: bool) -> None:
    """A run, looked on; with `lines` tensors stay apart by name, else small ones are one vector, as users run it."""
    asked = make_run(Call(**made, memory=memory, compile=False), Wants(lines=lines))
    drain(asked.forward(), watch)
    drain(asked.backward(), watch)


def waits(where: Where, made: dict[str, Any], memory: Any, *, lines: bool) -> str:
    """What waited within the loops; "" if nothing did."""
    run(made, memory, None, lines=lines)  # what is examined once
    with ExitStack() as stack:
        if where.cuda:
            stack.callback(torch.cuda.set_sync_debug_mode, "default")
            watch = Within(lambda on: torch.cuda.set_sync_debug_mode("error" if on else "default"))
            try:
                run(made, memory, watch, lines=lines)
            except RuntimeError as error:
                return str(error).splitlines()[0]
            return ""
        reads = stack.enter_context(Reads())
        stack.enter_context(as_on_a_device())
        run(made, memory, Within(lambda on: setattr(reads, "on", on)), lines=lines)
        return ", ".join(f"{count} × {name}" for name, count in reads.seen.items())
