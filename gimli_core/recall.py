"""The inputs of a call that is like the problem's last one, but for what its tensors hold.

An outer loop calls with the same arguments over and over: only theta_0, phi_loss and the batches are new. Where the
tensors are small, working out everything anew takes a tenth of the time of a compiled run. What is taken over here
depends on the form of the arguments alone; the tensors are looked at as `prepare` looks at them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gimli_core.arguments import check_batches, check_phi_loss, check_theta
from gimli_core.inputs import Inputs, modules_of
from gimli_core.modules import Environment
from gimli_core.optimizers.fused import Fused
from gimli_core.problem import Problem
from gimli_core.tasks import expanded

__all__ = ["form_of", "recalled", "remember"]

TENSORS = ("theta_0", "phi_loss")  # whose values may be others
FREE = ("problem", "train_batches", "val_batch")  # what may be anything
PLAIN = (bool, int, float, str, type(None))

Form = tuple[Any, ...]


def form_of(arguments: Mapping[str, Any], *flags: bool) -> Form | None:
    """What two calls must share, for one to take over from the other; None where values matter or are unknown.

    >>> import torch
    >>> a, b = ({"theta_0": {"w": torch.ones(2)}, "phi_opt": {"lr": lr}, "steps": 3} for lr in (0.1, torch.tensor(0.1)))
    >>> form_of(a) == form_of(a), form_of(a) == form_of({**a, "steps": 4}), form_of(b)
    (True, False, None)
    """
    if torch.is_inference_mode_enabled():
        return None
    form: list[Any] = [*flags]
    for name, value in arguments.items():
        if name not in FREE:
            entry = tensors_of(value) if name in TENSORS and value is not None else plain_of(value)
            if entry is None:
                return None
            form.append((name, entry))
    return tuple(form)


def tensors_of(value: Any) -> Form | None:
    """The outlines of a dict of tensors."""
    if type(value) is not dict or not all(type(v) in (Tensor, nn.Parameter) for v in value.values()):
        return None
    return tuple((k, type(v), v.requires_grad, v.shape, v.dtype, v.device) for k, v in value.items())


def plain_of(value: Any) -> Form | None:
    """A number, a string or a dict of them, with their types: True is not 1 here."""
    if type(value) is dict:
        entries = [(k, plain_of(v)) for k, v in value.items()]
        return None if any(entry is None for _, entry in entries) else (dict, *entries)
    return (type(value), value) if type(value) in PLAIN else None


def remember(form: Form | None, inputs: Inputs, problem: Problem) -> None:
    """Keep the inputs for a call of the same form, if they are small."""
    if form is not None and isinstance(inputs.optimizer, Fused):
        problem.made["form"] = form, inputs


def recalled(form: Form | None, arguments: Mapping[str, Any]) -> Inputs | None:
    """The inputs of a call whose form is the last one's. Raises what `prepare` raises where tensors are at fault."""
    problem = arguments["problem"]
    known: tuple[Form, Inputs] | None = problem.made.get("form") if isinstance(problem, Problem) else None
    if known is None or known[0] != form:
        return None
    inputs = known[1]
    assert isinstance(inputs.optimizer, Fused)
    trained, frozen = check_theta(arguments["theta_0"])
    _, phi_loss = check_phi_loss(arguments["phi_loss"], next(iter(trained.values())), inputs.hyper.tasks)
    batch, _ = check_batches(arguments["train_batches"], inputs.steps)
    theta = inputs.optimizer.gathered(expanded(trained, inputs.tasks.count) if inputs.tasks else trained)
    return replace(
        inputs,
        theta_0=theta,
        frozen=frozen,
        state_0=inputs.optimizer.initial_state(theta, inputs.hyper.at(0)),
        phi_loss=phi_loss,
        batch=batch,
        val_batch=arguments["val_batch"],
        environment=Environment(modules_of(problem), inputs.environment.device),
    )
