"""A live `torch.optim` instance as a rule of gimli_core, with its groups and its current state."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from glob import escape
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.errors import ArgumentError, listing, unexpected
from gimli_core.notation import State, Tensors, slots
from gimli_core.optimizers.check import constants
from gimli_core.optimizers.interface import Optimizer
from gimli_core.optimizers.rules.adadelta import Adadelta
from gimli_core.optimizers.rules.adafactor import Adafactor
from gimli_core.optimizers.rules.adagrad import Adagrad
from gimli_core.optimizers.rules.adam import Adam, AdamW
from gimli_core.optimizers.rules.adamax import Adamax
from gimli_core.optimizers.rules.asgd import ASGD
from gimli_core.optimizers.rules.muon import Muon
from gimli_core.optimizers.rules.nadam import NAdam
from gimli_core.optimizers.rules.radam import RAdam
from gimli_core.optimizers.rules.rmsprop import RMSprop
from gimli_core.optimizers.rules.rprop import Rprop
from gimli_core.optimizers.rules.sgd import SGD
from gimli_core.optimizers.rules.sparse_adam import SparseAdam
from gimli_core.optimizers.torch_names import names_of

__all__ = ["REGISTERED", "FromTorch", "from_torch", "options_of", "register"]

Options = dict[str, Any]
Rule = Callable[..., Optimizer]
Convert = Callable[[Options], tuple[Rule, Options]]


class FromTorch(NamedTuple):
    """What `from_torch` found."""

    optimizer: Optimizer
    theta_0: Tensors  # the live parameters by name, in the optimizer's order
    state_0: State | None  # a copy of the current state; None before the first step


def _same(rule: Rule) -> Convert:
    """The rule takes the options of its torch namesake."""
    return lambda group: (rule, group)


def _sgd(group: Options) -> tuple[Rule, Options]:
    # torch ignores dampening where there is no momentum. A momentum that is learned may be 0 and is used.
    used = isinstance(group["momentum"], Tensor) or group["momentum"]
    return SGD, {**group, "dampening": group["dampening"] if used else 0.0}


def _adam(group: Options) -> tuple[Rule, Options]:
    return (AdamW if group.get("decoupled_weight_decay") else Adam), group


def _muon(group: Options) -> tuple[Rule, Options]:
    return Muon, {**group, "ns_dtype": torch.bfloat16}  # NOTE [rounded iteration]


# From a parameter group to a rule and what it is made with. By exact class: a subclass may step differently.
REGISTERED: dict[type[torch.optim.Optimizer], Convert] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.Muon: _muon,
    **{
        getattr(torch.optim, rule.__name__): _same(rule)
        for rule in (Adadelta, Adafactor, Adagrad, Adamax, ASGD, NAdam, RAdam, RMSprop, Rprop, SparseAdam)
    },
}


def register(kind: type[torch.optim.Optimizer], rule: Rule) -> None:
    """Let `from_torch` turn instances of exactly `kind` into `rule(**options)`.

    Args:
        kind: a subclass of `torch.optim.Optimizer`.
        rule: an optimizer class of gimli_core, or a function that returns one. It is called with those entries of a
            parameter group that its signature names; its slots are read from the state under their own names.

    >>> import torch, gimli_core as gimli
    >>> class Plain(torch.optim.SGD):
    ...     pass
    >>> gimli.optimizers.register(Plain, gimli.optimizers.SGD)
    >>> gimli.optimizers.from_torch(Plain([("w", torch.nn.Parameter(torch.ones(2)))], lr=0.5)).optimizer.lr
    0.5
    """
    REGISTERED[kind] = _same(rule)


def from_torch(
    optimizer: torch.optim.Optimizer,
    named_parameters: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]] | None = None,
) -> FromTorch:
    """The rule, the parameters by name and the current state of a live `torch.optim` optimizer, which is not touched.

    Args:
        optimizer: any of `torch.optim` but LBFGS, or of a class made known by `register`.
        named_parameters: `module.named_parameters()`; not needed if the optimizer was built from it. A parameter
            that does not require grad may be missing from the optimizer.

    Returns:
        FromTorch: `(optimizer, theta_0, state_0)`. With several parameter groups the rule has the groups "0", "1", …,
        and values that differ between them are given by group. Options of execution alone (foreach, fused,
        capturable, differentiable) are left out.

    Raises:
        ArgumentError: an optimizer without a rule, a parameter without a name or in no group, switches that differ
            between groups, parameters that have made different numbers of steps.

    Cost: a copy of the state.

    >>> import torch, gimli_core as gimli
    >>> model = torch.nn.Linear(2, 1)
    >>> adam = torch.optim.Adam(model.parameters(), lr=0.1)
    >>> optimizer, theta_0, state_0 = gimli.optimizers.from_torch(adam, model.named_parameters())
    >>> type(optimizer).__name__, optimizer.lr, list(theta_0), state_0
    ('Adam', 0.1, ['weight', 'bias'], None)
    """
    convert = _converter(optimizer)
    names = names_of(optimizer, named_parameters)
    members = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    built = [options_of(*convert(group)) for group in optimizer.param_groups]
    rules = {rule for rule, _ in built}
    if len(rules) > 1:
        raise unexpected(
            "from_torch(optimizer)",
            "one rule for all groups",
            f"{listing(str(r) for r in rules)}",
            "Use one optimizer for each, joined by gimli.optimizers.Partition.",
        )
    rule = built[0][0]
    merged = _merged([options for _, options in built], rule)
    if len(members) > 1:
        merged["groups"] = {str(i): [escape(k) for k in group] for i, group in enumerate(members)}
    made = rule(**merged)
    parameters = {
        k: p
        for group, ks in zip(optimizer.param_groups, members, strict=True)
        for k, p in zip(ks, group["params"], strict=True)
    }
    trained = {k: p for k, p in parameters.items() if p.requires_grad}
    return FromTorch(made, parameters, _state(optimizer, rule, built, members, trained))


def _converter(optimizer: torch.optim.Optimizer) -> Convert:
    kind = type(optimizer)
    if kind is torch.optim.LBFGS:
        raise ArgumentError(
            "from_torch(optimizer): LBFGS has no rule: one step evaluates the loss several times, and how often "
            "depends on the values found there (line search, skipped history updates), so it is no differentiable "
            "function of one gradient. Use a first-order rule (gimli.optimizers.SGD, Adam) for the inner loop; where "
            "LBFGS finds a minimum of the inner loss, differentiate that minimum by the implicit function theorem "
            "instead of the path to it."
        )
    if kind not in REGISTERED:
        rules = listing(sorted(k.__name__ for k in REGISTERED), limit=99)
        raise unexpected(
            "from_torch(optimizer)",
            f"an optimizer with a rule ({rules})",
            f"{kind.__module__}.{kind.__qualname__}",
            "Write its step as a gimli.optimizers.DerivedOptimizer, and make it known by "
            f"gimli.optimizers.register({kind.__name__}, YourRule).",
        )
    return REGISTERED[kind]


def options_of(rule: Rule, group: Options) -> tuple[Rule, Options]:
    """The rule, and those entries of a group that its signature names."""
    names = _parameters(rule)
    return rule, {name: value for name, value in group.items() if name in names}


@lru_cache(maxsize=128)
def _parameters(rule: Rule) -> frozenset[str]:
    return frozenset(inspect.signature(rule).parameters)


def _merged(options: list[Options], rule: Rule) -> Options:
    """One set of options: values that differ between groups become `{group: value}`."""
    switches = {name for name, p in inspect.signature(rule).parameters.items() if isinstance(p.default, bool)}
    merged: Options = {}
    for name, first in options[0].items():
        values = [o[name] for o in options]
        if all(_equal(v, first) for v in values):
            merged[name] = first
        elif name in switches or isinstance(first, str) or first is None:
            raise unexpected(
                f"from_torch(optimizer): {name}",
                "the same switch in every group",
                listing(values),
                "Use one optimizer for each, joined by gimli.optimizers.Partition.",
            )
        elif isinstance(first, (tuple, list)):
            merged[name] = tuple({str(i): v[n] for i, v in enumerate(values)} for n in range(len(first)))
        else:
            merged[name] = {str(i): v for i, v in enumerate(values)}
    return merged


def _equal(a: Any, b: Any) -> bool:
    return bool(torch.equal(a, b)) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)


def _state(
    optimizer: torch.optim.Optimizer,
    rule: Rule,
    built: list[tuple[Rule, Options]],
    members: list[list[str]],
    theta: Tensors,
) -> State | None:
    """A copy of the current state in the engine's form; None if no step has been made."""
    torch_state = {k: optimizer.state.get(p, {}) for k, p in theta.items()}
    if not any(v is not None for of_name in torch_state.values() for v in of_name.values()):
        return None
    # SGD and Muon do not count steps: a buffer says that there was one.
    done = {
        k: float(of_name.get("step", any(v is not None for v in of_name.values())))
        for k, of_name in torch_state.items()
    }
    most = max(done.values())  # a parameter without gradient has missed the others' steps
    missed = {k: _count(most - steps) for k, steps in done.items() if steps < most}
    state: State = {"step": _count(most), **({"skipped": missed} if missed else {})}
    for (_, options), ks in zip(built, members, strict=True):
        part = {k: theta[k].detach() for k in ks if k in theta}
        made = rule(**options)
        for slot, of_name in slots(made.initial_state(part, constants(made, part))).items():
            kept = {
                k: v if torch_state[k].get(slot) is None else torch_state[k][slot].detach().to(v.dtype).clone()
                for k, v in of_name.items()
            }
            state.setdefault(slot, {}).update(kept)
    # A slot that only some groups keep (momentum, say) is zeros in the others, whose factor for it is 0.
    for slot in slots(state):
        factored = slot in ("row_var", "col_var", "variance")
        for k, v in theta.items():
            if k not in state[slot] and not factored:
                state[slot][k] = torch.zeros_like(v.detach())
    return state


def _count(steps: float) -> Tensor:
    return torch.tensor(steps, dtype=torch.float64, device="cpu")
