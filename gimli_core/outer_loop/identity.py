"""What an outer loop is, as plain values: a checkpoint says of which it is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["difference", "identity_of", "plain"]


def identity_of(
    estimator: Any, meta_optimizer: torch.optim.Optimizer, scheduler: Any, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What must be the same for a run to be taken up again. Values that are learned are not among it, nor is code."""
    groups = [{k: len(v) if k == "params" else plain(v) for k, v in g.items()} for g in meta_optimizer.param_groups]
    return {
        "estimator": _name(estimator),
        "phi": {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in estimator.parameters().items()},
        "meta_optimizer": {"kind": type(meta_optimizer).__qualname__, "param_groups": groups},
        "scheduler": scheduler and {"kind": type(scheduler).__qualname__, **plain(scheduler.state_dict())},
        **plain(options),
    }


def _name(thing: Any) -> str:
    """What a thing says of itself; its class where it says only where in memory it is."""
    speaks = any("__repr__" in vars(kind) for kind in type(thing).__mro__[:-1])
    return repr(thing) if speaks else type(thing).__qualname__


def plain(value: Any) -> Any:
    """What of a value can be told from another process's, as plain values: no addresses, no functions.

    >>> plain({"lr": 0.1, "foreach": None, "weights": torch.ones(2, 3)})
    {'lr': 0.1, 'foreach': None, 'weights': 'tensor [2, 3]'}
    """
    if isinstance(value, (int, float, str, bool, type(None))):
        return value
    if isinstance(value, Tensor):
        return value.item() if value.ndim == 0 else f"tensor {list(value.shape)}"
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    return {"kind": type(value).__qualname__, **{f.name: plain(getattr(value, f.name)) for f in fields if f.repr}}


def difference(old: Any, new: Any, place: str = "") -> tuple[str, Any, Any]:
    """(where two trees of plain values differ first, what is there in either); ("", None, None) if nowhere."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(str(k), old.get(k), new.get(k)) for k in dict.fromkeys([*old, *new])]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(i), *pair) for i, pair in enumerate(zip(old, new, strict=True))]
    else:
        return (place, old, new) if json.dumps(old) != json.dumps(new) else ("", None, None)
    for key, a, b in pairs:
        different = difference(a, b, f"{place}.{key}" if place else key)
        if different[0]:
            return different
    return "", None, None
