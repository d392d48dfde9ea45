"""Which rule of gimli_core stands for which class of `torch.optim`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from gimli_core.errors import listing, unexpected
from gimli_core.optimizers import Optimizer
from gimli_core.optimizers.torch_optim import REGISTERED, Convert, options_of

__all__ = ["REGISTRY", "Rules", "register_optim", "registered", "rule_of"]

Maker = Callable[..., Optimizer]


def _made(convert: Convert) -> Maker:
    def make(group: Mapping[str, Any]) -> Optimizer:
        rule, options = options_of(*convert(dict(group)))
        return rule(**options)

    return make


# An Optimizer class takes a group's options by name; a function takes the whole group; a subclass of
# DifferentiableOptimizer does all by itself. Looked up by exact class: a subclass may step differently.
REGISTRY: dict[type[torch.optim.Optimizer], Any] = {kind: _made(convert) for kind, convert in REGISTERED.items()}

_OURS = frozenset(REGISTRY.values())


def register_optim(optim_type: type[torch.optim.Optimizer], diff_optim_type: Any) -> None:
    """Say how an optimizer class is differentiated.

    Args:
        optim_type: a subclass of `torch.optim.Optimizer`.
        diff_optim_type: a class of `gimli_core.optimizers`, or your own `Optimizer`, which is constructed with those
            options of a parameter group that it knows by name; or a function from a parameter group's options (a
            dict) to such an optimizer; or a subclass of `inner_loop.optim.DifferentiableOptimizer`.

    Raises:
        ArgumentError: something else.

    >>> import torch, gimli_core as gimli, gimli_core.inner_loop as inner_loop
    >>> class MySGD(torch.optim.SGD):
    ...     pass
    >>> inner_loop.register_optim(MySGD, gimli.optimizers.SGD)
    """
    if not (isinstance(optim_type, type) and issubclass(optim_type, torch.optim.Optimizer)):
        raise unexpected(
            "optim_type", "a subclass of torch.optim.Optimizer", repr(optim_type), "Pass the class itself."
        )
    if not callable(diff_optim_type):
        raise unexpected(
            "diff_optim_type",
            "an Optimizer class, a DifferentiableOptimizer class, or a function from a group's options to an Optimizer",
            type(diff_optim_type).__name__,
            "Pass the class or function itself.",
        )
    REGISTRY[optim_type] = diff_optim_type


def registered(optim_type: type[torch.optim.Optimizer]) -> Any:
    """What was registered for a class. Raises ArgumentError, which says how to register one, for others."""
    try:
        return REGISTRY[optim_type]
    except (KeyError, TypeError):
        names = listing(kind.__name__ for kind in REGISTRY)
        name = getattr(optim_type, "__name__", repr(optim_type))
        raise unexpected(
            "optimizer",
            f"one with a rule ({names})",
            name,
            f"Give it one: register_optim({name}, rule), where rule is a gimli_core.optimizers.Optimizer class, or "
            "a function from a parameter group's options to an Optimizer.",
        ) from None


def rule_of(optim_type: type[torch.optim.Optimizer], group: Mapping[str, Any]) -> Optimizer:
    """The rule for one parameter group, with the group's options; tensors among them stay what they are."""
    maker = registered(optim_type)
    if isinstance(maker, type):
        maker, group = options_of(maker, dict(group))
        rule: Optimizer = maker(**group)
    else:
        rule = maker(group)
    if rule.seen():
        actual = f"{type(rule).__name__}, which sees {listing(rule.seen())}"
        do = "A step() of existing code is handed gradients alone: use it with gimli.unroll or gimli.meta_gradient."
        raise unexpected("optimizer", "a rule of theta, its state, G and its hyperparameters", actual, do)
    return rule


class Rules:
    """The rules of an optimizer's groups, each made anew where an option is another object than at the step before.

    A function that a user has registered is asked at every step, and so is what holds options that may change in place.
    """

    def __init__(self) -> None:
        self._made: dict[int, tuple[list[Any], Optimizer]] = {}

    def of(self, optim_type: type[torch.optim.Optimizer], i: int, group: Mapping[str, Any]) -> Optimizer:
        """`rule_of` group i."""
        options = [optim_type, *(x for name, value in group.items() if name != "params" for x in (name, *_flat(value)))]
        before, rule = self._made.get(i, ([], None))
        if rule is not None and len(options) == len(before) and all(map(operator.is_, options, before)):
            return rule
        rule = rule_of(optim_type, group)
        if REGISTRY[optim_type] in _OURS and all(isinstance(x, _STAYS) for x in options[1:]):
            self._made[i] = options, rule
        return rule


_STAYS = (bool, int, float, str, type(None), torch.Tensor)


def _flat(value: Any) -> tuple[Any, ...]:
    """A pair, such as betas, as its entries."""
    return value if type(value) is tuple else (value,)
