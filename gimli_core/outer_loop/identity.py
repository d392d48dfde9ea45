"""What an outer loop is, as plain values: a checkpoint says of which it is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import shortened
from gimli_core.trees import KeyPath, Mark, folded, leaves

__all__ = ["apart", "difference", "identity_of", "plain"]

_BEFORE = 40  # characters of what is alike that are told for orientation


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
    return folded(value, lambda _, leaf: _plain_leaf(leaf), _plain_node)


def _plain_node(path: KeyPath, tree: Any, results: dict[Any, Any]) -> Any:
    if isinstance(tree, Mark):
        return {"kind": type(tree).__qualname__, "value": results[type(tree)]}
    return list(results.values()) if isinstance(tree, (list, tuple)) else {str(k): v for k, v in results.items()}


def _plain_leaf(leaf: Any) -> Any:
    if isinstance(leaf, (int, float, str, bool, type(None))):
        return leaf
    if isinstance(leaf, Tensor):
        return leaf.item() if leaf.ndim == 0 else f"tensor {list(leaf.shape)}"
    fields = dataclasses.fields(leaf) if dataclasses.is_dataclass(leaf) else ()
    return {"kind": type(leaf).__qualname__, **plain({f.name: getattr(leaf, f.name) for f in fields if f.repr})}


def difference(old: Any, new: Any) -> tuple[str, Any, Any]:
    """(where two trees of plain values differ first, what is there in either); ("", None, None) if nowhere.

    >>> difference({"lr": [0.1, 0.2], "steps": 3}, {"lr": [0.1, 0.3], "steps": 3})
    ('lr.1', 0.2, 0.3)
    """
    before, after = dict(leaves(old)), dict(leaves(new))
    for path in dict.fromkeys([*before, *after]):
        if json.dumps(before.get(path)) != json.dumps(after.get(path)):
            return _parted(old, new, path)
    return "", None, None


def apart(old: Any, new: Any) -> tuple[str, str]:
    """Two plain values that differ, in a few words: of texts the lines, of long lines from shortly before they part.

    >>> apart("steps 3\\nrate 0.1\\nseed 0", "steps 4\\nrate 0.1\\nseed 0")
    ("'steps 3'", "'steps 4'")
    """
    texts = [value if isinstance(value, str) else repr(value) for value in (old, new)]
    before, after = ([" ".join(line.split()) for line in text.splitlines()] for text in texts)
    parts: tuple[list[str], list[str]] = ([], [])
    for tag, i, i_end, j, j_end in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag != "equal":
            parts[0].extend(before[i:i_end])
            parts[1].extend(after[j:j_end])
    told = [", ".join(lines) for lines in parts]
    common = next((i for i, (a, b) in enumerate(zip(*told, strict=False)) if a != b), min(map(len, told)))
    start = 1 + told[0].rfind(" ", 0, max(common - _BEFORE, 0))
    shown = [("… " if start else "") + shortened(text[start:], 100) for text in told]
    quoted = isinstance(old, str) and isinstance(new, str)
    return (repr(shown[0]), repr(shown[1])) if quoted else (shown[0], shown[1])


def _parted(old: Any, new: Any, path: KeyPath) -> tuple[str, Any, Any]:
    """(the first place on the way where the two are no longer dicts, or lists of one length, what is there)."""
    for depth, key in enumerate(path):
        if (
            type(old) is not type(new)
            or not isinstance(old, (dict, list))
            or (type(old) is list and len(old) != len(new))
        ):
            return ".".join(map(str, path[:depth])), old, new
        old, new = (part.get(key) if isinstance(part, dict) else part[key] for part in (old, new))
    return ".".join(map(str, path)), old, new
