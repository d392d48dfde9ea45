"""phi_opt and the optimizer's own values, taken apart into leaves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.errors import closest, listing, unexpected
from gimli_core.meta_parameters.leaf import Leaf, as_tensor, check_values
from gimli_core.meta_parameters.marks import Marked, unmarked
from gimli_core.meta_parameters.readings import Layout, Reading, count_steps, of_one_task, one_of, read, read_of_rule
from gimli_core.notation import Tensors
from gimli_core.optimizers.derived import own_root
from gimli_core.optimizers.interface import Optimizer

__all__ = ["bound", "check_name", "expand_betas", "resolve", "resolve_groups"]


class _Learned:
    """Stands in a bound optimizer for a value that phi_opt gives: no number, and so never left out as a plain 0."""

    def __repr__(self) -> str:
        return "learned"


LEARNED = _Learned()


def expand_betas(phi_opt: Mapping[str, Any]) -> dict[str, Any]:
    """phi_opt with the pair "betas" written as "beta1" and "beta2"."""
    expanded: dict[str, Any] = {}
    for name, value in phi_opt.items():
        if name != "betas":
            expanded[name] = value
            continue
        if not isinstance(value, (tuple, list)) or len(value) != 2 or {"beta1", "beta2"} & set(phi_opt):
            raise unexpected(
                "phi_opt['betas']",
                "a pair (beta1, beta2), without 'beta1' or 'beta2' beside it",
                f"{type(value).__name__} beside {listing(phi_opt)}",
                "Give the pair, or the two by name.",
            )
        expanded["beta1"], expanded["beta2"] = value
    return expanded


def bound(optimizer: Optimizer, phi_opt: Mapping[str, Any]) -> Optimizer:
    """The optimizer, knowing which of its hyperparameters are meta-parameters."""

    def learned(name: str, value: Any) -> Any:
        value = unmarked(value)
        return dict.fromkeys(value, LEARNED) if isinstance(value, Mapping) and own_root(optimizer, name) else LEARNED

    return optimizer.bind({name: learned(name, value) for name, value in expand_betas(phi_opt).items()})


def resolve_groups(optimizer: Optimizer, theta: Tensors) -> dict[str, tuple[str, ...]]:
    """{group: tensor names}; every tensor must be in exactly one group, if there are any."""
    if not optimizer.groups:
        return {}
    if not isinstance(optimizer.groups, Mapping):
        actual = type(optimizer.groups).__name__
        raise unexpected(
            "optimizer groups", "a dict {group: [tensor names]}", actual, "For example {'body': ['conv*']}."
        )
    for group, patterns in optimizer.groups.items():
        if (
            isinstance(patterns, str)
            or not isinstance(patterns, Iterable)
            or not all(isinstance(p, str) for p in patterns)
        ):
            raise unexpected(
                f"optimizer groups[{group!r}]",
                "a list of tensor names or shell patterns",
                repr(patterns),
                "One pattern alone is a list of one: ['conv*'].",
            )
    groups = {
        group: tuple(k for k in theta if any(fnmatchcase(k, p) for p in patterns))
        for group, patterns in optimizer.groups.items()
    }
    for k in theta:
        homes = [group for group, members in groups.items() if k in members]
        if len(homes) != 1:
            raise unexpected(
                f"optimizer groups: {k!r}",
                "to be in exactly one group",
                f"it in {listing(homes)}",
                "Add it to a group's names or patterns, or make the patterns disjoint.",
            )
    return groups


def check_name(name: str, optimizer: Optimizer) -> None:
    """Raise ArgumentError unless `name` is a continuous hyperparameter of the optimizer."""
    rule = type(optimizer)
    names = tuple(dict.fromkeys(own_root(optimizer, one) or one for one in optimizer.continuous()))
    if name in names:
        return
    if isinstance(name, str) and hasattr(optimizer, name) and name in getattr(rule, "__dataclass_fields__", {}):
        raise unexpected(
            f"phi_opt[{name!r}]",
            f"a continuous hyperparameter ({listing(names)})",
            "a switch, which has no derivative",
            f"Give {name}= to {rule.__name__}(...) instead.",
        )
    raise unexpected(
        "phi_opt",
        f"hyperparameters of {rule.__name__} ({listing(names)})",
        repr(name),
        f"Rename or remove it.{closest(name, names)}",
    )


class _Entry(NamedTuple):
    """A value of phi_opt or of the optimizer's own, and every reading that its shape allows."""

    name: str
    value: Tensor
    label: str
    serves: tuple[str, ...]
    marked: Marked
    shape: torch.Size  # of one task
    readings: list[Reading]


def resolve(layout: Layout, rule: Optimizer, name: str, value: Any, label: str) -> list[Leaf]:
    """The leaves of one hyperparameter. Raises ArgumentError."""
    every = tuple(layout.theta)
    marked, value = Marked().inside(value)
    if not isinstance(value, Mapping):
        return [_leaf(layout, rule, _entry(layout, rule, name, value, label, every, marked, by_tensor_too=True))]
    if name in rule.own_parameters():
        return [
            _leaf(
                layout,
                rule,
                _entry(layout, rule, f"{name}.{k}", one, f"{label}[{k!r}]", every, mine, by_tensor_too=True),
            )
            for k, (mine, one) in ((k, marked.inside(one)) for k, one in value.items())
        ]
    by_group = bool(layout.groups) and set(value) <= set(layout.groups)
    names = layout.groups if by_group else layout.theta
    entries = []
    for key, one in value.items():
        if key not in names:
            what = "names of theta" + (" or of parameter groups" if layout.groups else "")
            expected, do = f"a dict keyed by {what} ({listing(names)})", f"Rename it.{closest(key, names)}"
            raise unexpected(label, expected, f"the key {key!r}", do)
        mine, one = marked.inside(one)
        serves = layout.groups[key] if by_group else (key,)
        entries.append(_entry(layout, rule, name, one, f"{label}[{key!r}]", serves, mine, by_tensor_too=False))
    by_step = count_steps([entry.readings for entry in entries])
    return [_leaf(layout, rule, entry, by_step) for entry in entries]


def _entry(
    layout: Layout,
    rule: Optimizer,
    name: str,
    value: Any,
    label: str,
    serves: tuple[str, ...],
    marked: Marked,
    by_tensor_too: bool,
) -> _Entry:
    value = as_tensor(value, label)
    shape = of_one_task(layout, value.shape, label) if marked.by_task else value.shape
    if own_root(rule, name) is not None:
        readings = [Reading("of any shape", read_of_rule(layout, shape, label, marked), False)]
    else:
        readings = read(layout, shape, label, () if name in rule.whole_tensor() else serves, marked, by_tensor_too)
    return _Entry(name, value, label, serves, marked, shape, readings)


def _leaf(layout: Layout, rule: Optimizer, entry: _Entry, by_step: bool | None = None) -> Leaf:
    value, label = entry.value, entry.label
    reading = one_of(entry.readings, entry.shape, label, by_step)
    anywhere = next(iter(layout.theta.values()))
    if value.device != anywhere.device and value.ndim > 0:
        expected = f"a tensor on theta's device {anywhere.device}"
        raise unexpected(label, expected, f"one on {value.device}", "Move it with .to(...).")
    by_element = len(entry.shape) > reading.by_step + reading.by_group
    check_values(rule, entry.name, value, label, anywhere, by_element)
    index = None
    if reading.by_group:
        order = {k: i for i, members in enumerate(layout.groups.values()) for k in members}
        index = tuple(order[k] for k in entry.serves)
    return Leaf(entry.name, label, value, entry.serves, reading.by_step, index, entry.marked.by_task)
