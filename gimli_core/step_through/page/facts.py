"""What is known of a run before its first line: sizes, the optimizer, its hyperparameters, the meta-parameters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gimli_core.notation import Tensors
from gimli_core.optimizers.interface import Optimizer
from gimli_core.optimizers.rules.adagrad import Adagrad
from gimli_core.optimizers.rules.adam import Adam
from gimli_core.optimizers.rules.sgd import SGD
from gimli_core.step_through.page.summaries import number
from gimli_core.step_through.walk import Walk
from gimli_core.transforms.rule_over_tasks import RuleOverTasks

__all__ = ["facts", "resident_bytes"]

MOST_LEAVES = 24  # hyperparameters of each kind


def facts(walk: Walk, shown: Tensors) -> dict[str, Any]:
    """The part of a page's data that stands before the run; `shown` are the tensors that it tells apart."""
    inputs, J = walk.inputs, walk.inputs.form.steps
    theta, rule = inputs.values.theta_0, inputs.form.optimizer
    if isinstance(rule, RuleOverTasks):
        rule = rule.rule
    leaves = [("A_opt", leaf.label, leaf.value) for leaf in inputs.values.hyper.leaves[:MOST_LEAVES]]
    leaves += [("A_loss", f"phi_loss[{k!r}]", v) for k, v in [*inputs.values.phi_loss.items()][:MOST_LEAVES]]
    return {
        "steps": J,
        "parameters": sum(t.numel() for t in theta.values()),
        "dtype": str(next(iter(theta.values())).dtype).removeprefix("torch."),
        "optimizer": type(rule).__name__,
        "rule": _plain_rule(rule),
        "tasks": inputs.form.tasks,
        "hyper": _hyper_values(inputs.values.hyper.at(0)),
        "schedule": repr(walk.schedule),
        "recurrence": inputs.form.recurrence,
        "tensors": [{"name": k, "shape": list(t.shape)} for k, t in shown.items()],
        "count": {"tensors": len(theta), "leaves": len(inputs.values.hyper.leaves) + len(inputs.values.phi_loss)},
        "A": [
            {"kind": kind, "label": label, "shape": list(v.shape), "inc": [None] * J, "after": [None] * J}
            for kind, label, v in leaves
        ],
    }


def resident_bytes(like: Tensor) -> int:
    """Memory in use now: of the device that `like` is on, else of this process; 0 where the system does not tell."""
    if like.device.type == "cuda":
        return int(torch.cuda.memory_allocated(like.device))
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _plain_rule(optimizer: Optimizer) -> str | None:
    """The rule whose formulas the page writes out: "sgd", "momentum", "adam" or "adagrad", without further switches."""
    if type(optimizer) is SGD:
        extras = optimizer.nesterov or optimizer.maximize or optimizer.uses("dampening")
        name = "momentum" if optimizer.slots() else "sgd"
    elif type(optimizer) is Adam:
        extras, name = optimizer.amsgrad or optimizer.maximize or optimizer.uses("eps_root"), "adam"
    elif type(optimizer) is Adagrad:
        extras, name = optimizer.maximize, "adagrad"
    else:
        return None
    return None if extras or optimizer.uses("weight_decay") else name


def _hyper_values(hyper: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """Hyperparameters that are one number for every tensor."""
    first = next(iter(hyper.values()))
    return {
        name: number(value.item())
        for name, value in first.items()
        if value.ndim == 0
        and all(name in h and h[name].ndim == 0 and torch.equal(h[name], value) for h in hyper.values())
    }
