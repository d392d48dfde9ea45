"""Every rule of the imperative loop that the tests run, with options that say something of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW

RULES: list[tuple[Any, dict[str, Any], dict[str, float]]] = [
    (SGD, {}, {"lr": 0.1}),
    (SGD, {"maximize": True}, {"lr": 0.1, "weight_decay": 0.05}),
    (SGD, {"nesterov": True}, {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.05}),
    (SGD, {}, {"lr": 0.1, "momentum": 0.8, "dampening": 0.3}),
    (Adam, {}, {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.05}),
    (Adam, {"amsgrad": True}, {"lr": 0.1, "beta1": 0.8, "beta2": 0.6}),
    (Adam, {"decoupled_weight_decay": True}, {"lr": 0.1, "weight_decay": 0.05}),
    (AdamW, {}, {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.05}),
    (Adagrad, {}, {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.05, "initial_accumulator_value": 0.2, "eps": 1e-3}),
]
# Rules whose second derivatives nobody has vouched for.
# RMSprop steps slowly here: near a minimum it jumps about, and torch itself then grows rounding to 1e-7 in 100 steps.
FIRST_ORDER: list[tuple[Any, dict[str, Any], dict[str, float]]] = [
    (torch.optim.RMSprop, {}, {"lr": 0.002, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.05}),
    (torch.optim.RMSprop, {"centered": True}, {"lr": 0.002, "alpha": 0.9, "eps": 1e-2, "momentum": 0.5}),
    (torch.optim.Adamax, {}, {"lr": 0.05, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.05}),
    (torch.optim.NAdam, {}, {"lr": 0.05, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "momentum_decay": 0.1}),
    (torch.optim.NAdam, {"decoupled_weight_decay": True}, {"lr": 0.05, "weight_decay": 0.05}),
    (torch.optim.Adadelta, {}, {"lr": 0.5, "rho": 0.8, "eps": 1e-2, "weight_decay": 0.05}),
    (torch.optim.RAdam, {}, {"lr": 0.05, "beta1": 0.8, "beta2": 0.7, "eps": 1e-3}),
    (torch.optim.ASGD, {}, {"lr": 0.05, "lambd": 0.1, "alpha": 0.5, "weight_decay": 0.05}),
    (torch.optim.Rprop, {}, {"lr": 0.01}),
    (torch.optim.Adafactor, {}, {"lr": 0.05, "d": 1.5, "weight_decay": 0.05}),
]
ALL = RULES + FIRST_ORDER
ALL_IDS = [f"{kind.__name__}-{'-'.join([*fixed, *learned])}" for kind, fixed, learned in ALL]
IDS = [f"{kind.__name__}-{'-'.join([*fixed, *learned])}" for kind, fixed, learned in RULES]


def as_options(learned: dict[str, Tensor]) -> dict[str, Any]:
    """Options by torch's names: the betas as a pair."""
    options: dict[str, Any] = {k: v for k, v in learned.items() if not k.startswith("beta")}
    if "beta1" in learned:
        options["betas"] = (learned["beta1"], learned["beta2"])
    return options


def live(kind: Any, module: nn.Module, fixed: dict[str, Any], learned: dict[str, float]) -> torch.optim.Optimizer:
    options = as_options({k: torch.tensor(v) for k, v in learned.items()})
    numbers = {k: tuple(x.item() for x in v) if isinstance(v, tuple) else v.item() for k, v in options.items()}
    return kind(module.parameters(), **fixed, **numbers)
