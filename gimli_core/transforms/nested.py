"""A phi_loss of dicts in dicts: a flat one in between, and the structure that it came in for the losses and the result.

    {"net": {"weight": W}, "scale": s}   ->   {"net.weight": W, "scale": s}   ->   as it came

What runs sees names alone. A name that is there already, "net.weight" beside {"net": {"weight"}}, stays another one.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from gimli_core.errors import unexpected
from gimli_core.meta_parameters.marks import PerTask, per_task, unmarked
from gimli_core.notation import Loss, Tensors
from gimli_core.problem import Problem
from gimli_core.transforms.numbered import takes_j
from gimli_core.transforms.proximal import ProximalLoss, proximal
from gimli_core.trees import KeyPath, bare, folded, path_text

__all__ = ["NestedLoss", "Places", "flat_entries", "nested", "unnested"]

Places = tuple[tuple[str | None, tuple[str, ...]], ...]  # (name in the flat dict, path); no name for an empty dict


def unnested(problem: Any, phi_loss: Any) -> tuple[Any, Any, Places]:
    """(the problem for a flat phi_loss, that, where its entries stand in the one that was given).

    Both are handed back as they are, without places, where nothing is nested. Raises ArgumentError.
    """
    entries = unmarked(phi_loss)
    if not isinstance(entries, Mapping) or not any(isinstance(unmarked(v), Mapping) for v in entries.values()):
        return problem, phi_loss, ()
    leaves = _leaves(phi_loss)
    taken = {path[0] for path, _ in leaves if len(path) == 1}
    flat: dict[str, Any] = {}
    places: list[tuple[str | None, tuple[str, ...]]] = []
    for path, value in leaves:
        name = path[0] if len(path) == 1 else ".".join(path)
        while len(path) > 1 and (name in taken or name in flat):
            name += "'"
        empty = isinstance(value, Mapping)
        places.append((None if empty else name, path))
        flat |= {} if empty else {name: value}
    return _for_flat(problem, tuple(places)), flat, tuple(places)


def _leaves(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
    """(path, tensor or whatever stands there, with its marks) of every entry; dicts alone where they are empty."""

    def node(path: KeyPath, part: Any, results: dict[Any, Any]) -> Any:
        if not isinstance(unmarked(part), Mapping):
            return [(bare(path), part)]  # a list, to be refused, or a marked tensor
        if isinstance(part, PerTask):
            of_dict = results[type(part)]
            return [(p, v if isinstance(v, Mapping) else per_task(unmarked(v))) for p, v in of_dict]
        for key in part if isinstance(part, Mapping) else ():
            if not isinstance(key, str):
                expected, actual = "names that are strings", f"the key {key!r}"
                raise unexpected(path_text(path, "phi_loss"), expected, actual, "Rename it.")
        return [entry for of_key in results.values() for entry in of_key] or [(bare(path), {})]

    every: list[tuple[tuple[str, ...], Any]] = folded(tree, lambda path, leaf: [(bare(path), leaf)], node)
    return every


def nested(flat: Any, places: Places) -> Any:
    """What is flat, in the structure that phi_loss came in; L_val is not handed indexed entries, nor has it theirs."""
    if not places:
        return flat
    tree: dict[str, Any] = {}
    for name, path in places:
        inside = tree
        for key in path[:-1]:
            inside = inside.setdefault(key, {})
        if name is None:
            inside[path[-1]] = {}
        elif name in flat:
            inside[path[-1]] = flat[name]
    return tree


def flat_entries(tree: Any, places: Places) -> Any:
    """The entries of a tree in that structure by their names in the flat dict; what has no place there, by its path."""
    if not places or not isinstance(tree, Mapping):
        return tree
    names = {path: name for name, path in places}
    leaves = ((path, v) for path, v in _leaves(tree) if not isinstance(v, Mapping))
    return {names.get(path) or ".".join(path): v for path, v in leaves}


class NestedLoss:
    """A loss that sees phi_loss in the structure that it came in."""

    def __init__(self, loss: Loss, places: Places) -> None:
        self.loss: Any = loss
        self.places = places
        if takes_j(loss):
            self.__signature__ = inspect.signature(loss)

    def __call__(self, theta: Tensors, phi_loss: Tensors, batch: Any, **numbered: Any) -> Any:
        return self.loss(theta, nested(phi_loss, self.places), batch, **numbered)


def _for_flat(problem: Any, places: Places) -> Any:
    """The problem whose losses take the flat phi_loss; made once, so that what is found out about it is kept."""
    if not isinstance(problem, Problem):
        return problem  # to be refused with the other arguments
    key = ("nested", places)
    if key not in problem.memo.forms:
        train_loss, val_loss = problem.train_loss, problem.val_loss
        if isinstance(train_loss, ProximalLoss):  # whose term is added outside, to the flat names
            plain = Problem(
                NestedLoss(train_loss.loss, places),
                NestedLoss(val_loss.loss, places),  # type: ignore[attr-defined]
                problem.optimizer,
                problem.modules,
            )
            form = proximal(plain, train_loss.strength)
        else:
            form = Problem(
                NestedLoss(train_loss, places), NestedLoss(val_loss, places), problem.optimizer, problem.modules
            )
        form.memo.patience = problem.memo.patience
        problem.memo.forms[key] = form
    return problem.memo.forms[key]
