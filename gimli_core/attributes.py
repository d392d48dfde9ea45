"""What modules keep in plain attributes: counters, a carried hidden state, lists, tensors that are no buffers.

No run looks after these: a step that depends on them cannot be replayed, and the replay check says so. But what is
only tried, before a run, must not move them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["attributes_of"]

# Of torch's own: parameters, buffers, submodules and hooks. Whether a module trains is a plain attribute.
_TORCHS = frozenset(vars(nn.Module())) - {"training"}


def attributes_of(modules: Iterable[nn.Module]) -> Callable[[], None]:
    """A function that puts the plain attributes of modules and their submodules back as they are now.

    Each is put back as the same object with the same contents: tensors, dicts, lists, sets and deques, nested too.

    >>> net = nn.Linear(1, 1)
    >>> net.calls, net.seen = 0, []
    >>> restore = attributes_of([net])
    >>> net.calls += 1; net.seen.append(1); net.new = True
    >>> restore(); net.calls, net.seen, hasattr(net, "new")
    (0, [], False)
    """
    restorers: list[Callable[[], None]] = []
    seen: dict[int, Any] = {}  # holds what was seen, so that no id is used twice
    for module in modules:
        for owner in module.modules():
            if id(owner) not in seen:
                seen[id(owner)] = owner
                before = {k: v for k, v in vars(owner).items() if k not in _TORCHS}
                restorers.append(_attributes(vars(owner), before))
                _visit(list(before.values()), seen, restorers)

    def restore() -> None:
        for put_back in restorers:
            put_back()

    return restore


def _visit(values: Iterable[Any], seen: dict[int, Any], restorers: list[Callable[[], None]]) -> None:
    for value in values:
        # Parameters are moved by optimizers alone, and a copy of a model's would be large.
        if id(value) in seen or isinstance(value, nn.Parameter):
            continue
        put_back = _contents(value)
        if put_back is not None:
            seen[id(value)] = value
            restorers.append(put_back)
        if isinstance(value, dict):
            _visit(list(value.values()), seen, restorers)
        elif isinstance(value, (list, tuple, deque)):
            _visit(list(value), seen, restorers)


def _contents(value: Any) -> Callable[[], None] | None:
    """What gives a thing that can change its contents back; None for any other."""
    if isinstance(value, Tensor):
        kept = value.detach().clone()
        return lambda: _put_values_back(value, kept)
    if isinstance(value, (list, deque)):
        items = list(value)
        return lambda: None if _alike(value, items) else _refill(value, items, value.extend)
    if isinstance(value, dict):
        entries = dict(value)
        return lambda: (
            None
            if _alike(value, entries) and _alike(value.values(), entries.values())
            else _refill(value, entries, value.update)
        )
    if isinstance(value, set):
        members = set(value)
        return lambda: None if value == members else _refill(value, members, value.update)
    return None


def _put_values_back(value: Tensor, kept: Tensor) -> None:
    if value.shape != kept.shape:
        value.data = kept
    elif not torch.equal(value, kept):
        value.data.copy_(kept)  # through .data: a graph that holds it would refuse a counted change


def _attributes(now: dict[str, Any], before: dict[str, Any]) -> Callable[[], None]:
    def restore() -> None:
        for name in [k for k in now if k not in _TORCHS and k not in before]:
            del now[name]
        now.update(before)

    return restore


def _alike(now: Iterable[Any], then: Iterable[Any]) -> bool:
    now, then = list(now), list(then)
    return len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True))


def _refill(value: Any, contents: Any, fill: Callable[[Any], None]) -> None:
    value.clear()
    fill(contents)
