"""What two ranks must have been given alike, as digests by argument: values, and the code of the losses."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.arguments.batches import check_batches, check_val_batch
from gimli_core.arguments.call import Call
from gimli_core.arguments.inputs import modules_of
from gimli_core.meta_parameters.indexed import Indexed
from gimli_core.trees import KeyPath, Mark, folded, nodes, rebuilt

__all__ = ["digests"]

VALUES = ("theta_0", "phi_opt", "phi_loss", "state_0", "val_weights")
PLAIN = ("approximation", "second_order", "tasks", "check", "micro_batches", "until", "memory")


def digests(call: Call, *, batches: bool) -> dict[str, str]:
    """A digest for each argument; of the batches that of the first inner loss and the last outer one, if they are to be
    alike. Of indexed entries, whose rows may be a rank's own, none; and none of values where `check=False`.

    Cost: every tensor of the arguments is read once (about 1 s a GB).
    """
    problem, (batch, J) = call.problem, check_batches(call.train_batches, call.steps)
    things = {name: getattr(call, name) for name in (*VALUES, *PLAIN)} | {"steps": J}
    things["resume"] = call.resume is not None
    things |= {name: _code(getattr(problem, name)) for name in ("train_loss", "val_loss")}
    things["optimizer"] = (type(problem.optimizer).__qualname__, problem.optimizer.hyperparameters())
    things["modules"] = [_state(module, call.theta_0) for module in modules_of(problem)]
    if batches:
        things["train_batches"] = batch(0) if J else None
        things["val_batch"] = check_val_batch(call.val_batch, J)(J)
    return {name: _digest(thing, values=call.check) for name, thing in things.items()}


def _state(module: nn.Module, theta_0: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the losses may read of a module: its buffers, and its parameters unless theta takes their place."""
    parameters = dict(module.named_parameters())
    return {**dict(module.named_buffers()), **({} if parameters.keys() & theta_0.keys() else parameters)}


def _code(function: Any) -> Any:
    """What a function does, without what it has closed over."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None and callable(function) and not isinstance(function, type):
        code = getattr(type(function).__call__, "__code__", None)
    return _read(code) if code is not None else type(function).__qualname__


def _read(code: CodeType) -> list[Any]:
    constants = [
        _read(c) if isinstance(c, CodeType) else sorted(map(repr, c)) if isinstance(c, frozenset) else repr(c)
        for c in code.co_consts  # the order of a set is another in every process
    ]
    return [code.co_code.hex(), list(code.co_names), constants]


def _told_node(path: KeyPath, tree: Any, results: dict[Any, Any]) -> Any:
    return "indexed" if isinstance(tree, Indexed) else rebuilt(path, tree, results)


def _digest(thing: Any, *, values: bool) -> str:
    digest = hashlib.sha256()

    def add(thing: Any) -> None:
        for x in nodes(folded(thing, lambda _, leaf: leaf, _told_node)):
            if isinstance(x, Tensor):
                dense = x.detach().cpu()
                digest.update(f"{dense.dtype}{list(dense.shape)}".encode())
                if values and dense.layout == torch.strided:
                    flat: Any = dense.contiguous().reshape(-1).view(torch.uint8).numpy()
                    digest.update(flat)
            elif isinstance(x, Mark):
                digest.update(type(x).__name__.encode())
            elif isinstance(x, (Mapping, tuple, list)):
                digest.update(repr(list(x) if isinstance(x, Mapping) else len(x)).encode())
            elif isinstance(x, (bool, int, float, str, type(None))):
                digest.update(repr(x).encode())
            elif callable(x):
                add(_code(x))
            else:
                digest.update(type(x).__qualname__.encode())
                unlike = {f.name for f in getattr(x, "__dataclass_fields__", {}).values() if not f.compare}
                attributes = getattr(x, "__dict__", {}).items()  # but what two that are equal may have differently
                add({k: v for k, v in attributes if k not in unlike and not isinstance(v, nn.Module)})

    add(thing)
    return digest.hexdigest()[:16]
