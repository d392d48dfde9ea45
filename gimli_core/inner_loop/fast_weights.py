"""The fast weights of one functional module: every set of them, where the latest stands, and which a reader gets.

Work that a model puts off until backward (a hook that reads `module.weight`, say) runs when later weights stand in the
module. It belongs to the forward call that made the node which autograd is at, and has to read that call's weights:

    set j stands from stamp[j] on;   a node numbered n was made under the last set with stamp[j] <= n

where autograd numbers its nodes in the order in which they are made. Nothing of this is looked at outside of a backward
pass.
"""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_right
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.errors import ClosedError, explain, unexpected

__all__ = ["FastWeights", "Home"]

_graph_task = torch._C._current_graph_task_id
_number = torch.autograd._get_sequence_nr  # type: ignore[attr-defined]


class FastWeights:
    """Every set of fast weights of one functional module, and where in it one of them stands."""

    def __init__(self, originals: Mapping[str, Tensor], exchanged: Callable[[Any, dict[int, Any]], Any]) -> None:
        self.names = list(originals)
        self.originals = list(originals.values())
        self.history: list[list[Tensor]] = []
        self.track = True
        self.closed = False
        self.standing: list[Tensor] = []  # the latest set, but while one of an earlier call is put back
        self.put_back = 0  # how many times one is
        # Where a parameter stands: (a module's _parameters, key). What else holds parameters: (a module; the
        # attribute; its value with the originals in it). Weakly, since this object hangs from both.
        self.homes: list[list[tuple[weakref.ref[Home], str]]] = [[] for _ in self.names]
        self.aliases: list[tuple[weakref.ref[nn.Module], str, Any]] = []
        self._exchanged = exchanged
        self._versions: list[int] = []
        self._stamps: list[int] = []  # of each set: the number of the first node that was made under it
        self._threads: set[int] = set()  # in which sets were put here: each numbers its nodes for itself
        self._task = -1  # the backward pass in which the latest was
        self._dropped = False  # whether there were sets that the history does not hold
        self._inside: list[int] = []  # the threads that are in a forward call
        self._lock = threading.Lock()

    def append(self, params: list[Tensor]) -> None:
        """A new set, which becomes the latest."""
        if len(params) != len(self.names):
            raise unexpected(
                "params",
                f"{len(self.names)} tensors, one a parameter",
                f"{len(params)}",
                "Keep the order of parameters().",
            )
        for name, value, original in zip(self.names, params, self.originals, strict=True):
            if not isinstance(value, Tensor) or value.shape != original.shape:
                actual = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise unexpected(
                    f"params, at {name!r}",
                    f"a tensor of shape {list(original.shape)}",
                    actual,
                    "Keep the order of parameters().",
                )
        me = threading.get_ident()
        with self._lock:
            if any(other != me for other in self._inside):
                raise unexpected(
                    "params",
                    "fast weights that stay while a call computes with them",
                    "new ones from one thread while another is inside a call",
                    "Give each thread an fmodel of its own.",
                )
            if not self.track:
                self._dropped = bool(self.history)
                self.history.clear()
                self._stamps.clear()
            self._threads.add(me)
            self._task = _graph_task()
            self._stamps.append(_number())
            self.history.append(params)
            self._install(params)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """While a forward call computes: no other thread may exchange the weights."""
        me = threading.get_ident()
        self._inside.append(me)
        try:
            yield
        finally:
            self._inside.remove(me)

    def close(self) -> None:
        """Keep only the latest values, without their graph."""
        self.closed = True
        self._dropped = len(self.history) > 1 or self._dropped
        latest = [p.detach() for p in self.history[-1]] if self.history else []
        self.history = [latest] if self.history else []
        self._stamps = self._stamps[-1:]
        if latest:
            self._install(latest)

    def check_untouched(self) -> None:
        """Raise unless the fast weights stand in the module as they were put there."""
        for name, value, version, homes in zip(self.names, self.standing, self._versions, self.homes, strict=True):
            if value._version != version:
                raise unexpected(
                    f"fast weight {name!r}",
                    "no change in place, which has no derivative",
                    "one since it was made",
                    "Compute a new tensor, and pass the whole list to fmodel.update_params(...).",
                )
            for place, key in homes:
                home = place()
                if home is not None and dict.get(home, key) is not value:
                    raise unexpected(
                        f"fast weight {name!r}",
                        "the tensor that was put there",
                        "another one, assigned since",
                        "Pass the whole list to fmodel.update_params(...).",
                    )

    @contextmanager
    def restored(self, params: list[Tensor]) -> Iterator[None]:
        """`params` stand in the module, as they did in an earlier call."""
        before = self.standing
        self.put_back += 1
        if before is not params:
            self._install(params)
        try:
            yield
        finally:
            self.put_back -= 1
            if before is not params:
                self._install(before)

    def postponed(self) -> bool:
        """Whether work done now was put off by an earlier call until this backward pass."""
        task = _graph_task()
        return task != -1 and not self.put_back and self._task != task

    def of_this_moment(self) -> list[Tensor]:
        """The set that work done now is about: the latest, but in a backward pass that of the node's own call."""
        if not self.postponed():
            return self.standing
        node = torch._C._current_autograd_node()
        made = node._sequence_nr() if node is not None else self._stamps[-1]
        if made >= self._stamps[-1] or not (self._dropped or len(self.history) > 1):
            return self.standing
        if len(self._threads) > 1:
            raise unexpected(
                "fmodel",
                "fast weights made in one thread, so that work done in backward can find those of its call",
                f"some from {len(self._threads)}",
                "Give each thread an fmodel of its own.",
            )
        if self._dropped:
            why = "after the end of its context" if self.closed else "with track_higher_grads=False"
            raise ClosedError(
                explain(
                    "backward",
                    "the fast weights of a call whose work was put off until now (checkpointing around fmodel, a "
                    "backward hook that reads a weight)",
                    f"none: {why} only the latest are kept",
                    "Differentiate inside the `with` block, before the next step if steps are not tracked.",
                )
            )
        index = bisect_right(self._stamps, made) - 1
        return self.history[index] if index >= 0 else self.standing  # a node from before this module was made

    def read(self, value: Any) -> Any:
        """What a reader of a module's attribute gets where `value` stands."""
        params = self.of_this_moment()
        if params is self.standing:
            return value
        return next((p for p, q in zip(params, self.standing, strict=True) if q is value), value)

    def _install(self, params: list[Tensor]) -> None:
        self.standing = params
        self._versions = [p._version for p in params]
        for homes, value in zip(self.homes, params, strict=True):
            for place, key in homes:
                if (home := place()) is not None:
                    home[key] = value
        swap = {id(p): value for p, value in zip(self.originals, params, strict=True)}
        for part, key, template in self.aliases:
            if (module := part()) is not None:
                vars(module)[key] = self._exchanged(template, swap)


class Home(dict[str, Any]):
    """A module's `_parameters`, which gives whoever reads it in a backward pass the weights of the right call."""

    def __init__(self, attributes: Mapping[str, Any], fast: FastWeights) -> None:
        super().__init__(attributes)
        self._fast = fast

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        return value if _graph_task() == -1 else self._fast.read(value)

    def get(self, key: str, default: Any = None) -> Any:
        """As in a dict."""
        value = super().get(key, default)
        return value if _graph_task() == -1 else self._fast.read(value)

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """As in a dict."""
        return super().values() if _graph_task() == -1 else {k: self[k] for k in self}.values()

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """As in a dict."""
        return super().items() if _graph_task() == -1 else {k: self[k] for k in self}.items()

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        """Plain tensors of the same values, without history; an alias of one becomes an alias of its copy."""
        for value in self.values():
            if value is not None and id(value) not in memo:
                memo[id(value)] = value.detach().clone().requires_grad_(value.requires_grad)
        return {k: None if value is None else memo[id(value)] for k, value in self.items()}
