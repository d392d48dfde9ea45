"""Back to a live `torch.optim` optimizer: rates, weights and state, all of them or nothing. The inverse of from_torch.

`Optimizer.to_torch` calls what is here; nothing here knows a rule's class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import closest, listing, unexpected
from gimli_core.notation import State, slots
from gimli_core.optimizers.torch_names import names_of

__all__ = ["hand_back"]

UNCOUNTED = ("SGD", "Muon")  # of torch.optim: their state says nothing of how many steps there have been
WHERE = "to_torch(optimizer)"


def hand_back(
    rule: Any,
    optimizer: torch.optim.Optimizer,
    named_parameters: Any = None,
    *,
    phi_opt: Mapping[str, Any] | None = None,
    theta: Mapping[str, Tensor] | None = None,
    state: State | None = None,
) -> None:
    """Hand a rule's values, and weights and state, to a live optimizer of its kind: all that is asked for, or nothing.

    Args:
        rule: whose hyperparameters the parameter groups get.
        optimizer: what changes, with its parameters.
        named_parameters: `module.named_parameters()`; not needed if the optimizer was built from it.
        phi_opt: learned values, before the rule's own: one number for all, `[groups]`, `{group: number}` or, where all
            of a group have the same, `{tensor name: number}`.
        theta: `{name: tensor}`, a result's `theta_J`; by default the parameters stay.
        state: a result's `state_J`; by default the optimizer's state stays.

    Raises:
        ArgumentError: an optimizer of another kind, what torch has no place for, a shape that does not fit; before
            anything is changed.
    """
    kind = _kind(optimizer)
    if kind != type(rule).__name__:
        actual, do = f"a torch.optim.{kind}", "Hand it to an optimizer of the rule's own kind."
        raise unexpected(WHERE, f"a torch.optim.{type(rule).__name__}", actual, do)
    names = names_of(optimizer, named_parameters, WHERE)
    changes: list[Callable[[], None]] = []
    learned = {**rule.hyperparameters(), **_split(phi_opt or {})}
    unknown = [name for name in _split(phi_opt or {}) if name not in rule.hyperparameters()]
    if unknown:
        do = f"Rename or remove it.{closest(unknown[0], rule.hyperparameters())}"
        raise unexpected(f"{WHERE}: phi_opt", f"hyperparameters of {kind}", listing(unknown), do)
    for number, group in enumerate(optimizer.param_groups):
        members = [names[id(p)] for p in group["params"]]
        values = {name: _of_group(name, value, number, members) for name, value in learned.items()}
        changes.append(partial(_set, group, values))
    parameters = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
    for k, p in parameters.items():
        if theta is not None:
            new = _fitting(f"{WHERE}: theta[{k!r}]", theta.get(k), p.shape)
            changes.append(partial(_copy, p, new))
        if state is not None and p.requires_grad:
            entries = _entries(optimizer, kind, k, p, state)
            changes.append(partial(optimizer.state.__setitem__, p, entries))
    for change in changes:
        change()


def _kind(optimizer: Any) -> str:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise unexpected(WHERE, "a torch.optim optimizer", type(optimizer).__name__, "Pass the live instance.")
    name = next(kind.__name__ for kind in type(optimizer).__mro__ if f"{kind.__module__}.".startswith("torch.optim."))
    decoupled = any(group.get("decoupled_weight_decay") for group in optimizer.param_groups)
    return "AdamW" if name == "Adam" and decoupled else name


def _split(phi_opt: Mapping[str, Any]) -> dict[str, Any]:
    """phi_opt with the pair "betas" as two."""
    single = dict(phi_opt)
    if "betas" in single:
        single["beta1"], single["beta2"] = single.pop("betas")
    return single


def _of_group(name: str, value: Any, number: int, members: list[str]) -> float:
    """The one number that a group has for a hyperparameter."""
    argument = f"{WHERE}: {name}"
    if isinstance(value, Mapping):  # by group as from_torch calls them, or by tensor
        parts = [value[str(number)]] if str(number) in value else [value[k] for k in members if k in value]
        if len(parts) < (1 if str(number) in value else len(members)):
            raise unexpected(argument, f"a value for group {number}", listing(value), "Add it.")
    elif isinstance(value, Tensor) and value.ndim == 1 and number < len(value):
        parts = [value[number]]
    else:
        parts = [value]
    numbers = {float(part) for part in parts if not isinstance(part, Tensor) or part.numel() == 1}
    if len(numbers) != 1 or any(isinstance(part, Tensor) and part.numel() != 1 for part in parts):
        actual, do = "several", "torch.optim has one a group: build it with a group for each, or reduce them."
        raise unexpected(argument, f"one number for parameter group {number}", actual, do)
    return numbers.pop()


def _set(group: dict[str, Any], values: Mapping[str, float]) -> None:
    """The values under torch's names; a rule's option that torch does not have (eps_root) is left out where it is 0."""
    for name, value in values.items():
        if name in ("beta1", "beta2") and "betas" in group:
            betas = list(group["betas"])
            betas[name == "beta2"] = value
            group["betas"] = tuple(betas)
        elif name in group and isinstance(group[name], Tensor):
            with torch.no_grad():
                group[name].fill_(value)
        elif name in group:
            group[name] = value


def _fitting(argument: str, value: Any, shape: torch.Size) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != shape:
        actual = f"shape {list(value.shape)}" if isinstance(value, Tensor) else "nothing"
        raise unexpected(argument, f"a tensor of shape {list(shape)}", actual, "Take it from a result's theta_J.")
    return value.detach()


def _copy(p: Tensor, new: Tensor) -> None:
    with torch.no_grad():
        p.copy_(new)


def _entries(optimizer: torch.optim.Optimizer, kind: str, k: str, p: Tensor, state: State) -> dict[str, Any]:
    """What torch.optim keeps for one parameter; nothing before its first step."""
    steps = float(state["step"]) - float(state.get("skipped", {}).get(k, 0.0))
    if steps <= 0:
        return {}
    before = optimizer.state.get(p, {})
    entries: dict[str, Any] = {}
    scalar = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32  # as torch.optim makes them
    like = before.get("step")
    if kind == "SparseAdam":
        entries["step"] = int(steps)
    elif kind not in UNCOUNTED:
        entries["step"] = torch.tensor(steps, dtype=scalar, device=like.device if isinstance(like, Tensor) else None)
    for slot, of_slot in slots(state).items():
        if k not in of_slot:
            continue
        value, like = of_slot[k].detach(), before.get(slot)
        plain = value.ndim == 0 and p.ndim > 0
        dtype = like.dtype if isinstance(like, Tensor) else scalar if plain else p.dtype
        entries[slot] = value.to(dtype=dtype, device=p.device).clone()
    return entries
