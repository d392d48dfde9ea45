"""Line 6 for one parameter group: the rule's step, on every tensor that has a gradient, from the state it has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import listing, unexpected
from gimli_core.inner_loop.differentiable_step import differentiable_step
from gimli_core.inner_loop.options import as_hyper
from gimli_core.notation import Tensors
from gimli_core.optimizers.interface import Optimizer

__all__ = ["Forms", "TensorState", "update"]

TensorState = dict[str, Any]  # of one tensor: "step" and its slots, as in a torch.optim optimizer's state
Forms = dict[tuple[Any, ...], dict[str, torch.dtype]]  # a rule's slots for tensors of one shape


def update(
    rule: Optimizer, theta: Tensors, G: Tensors, states: dict[str, TensorState], forms: Forms, group: str, track: bool
) -> tuple[Tensors, dict[str, TensorState]]:
    """The stepped tensors and their states.

    Tensors that have made as many steps, on one device, go together as one node of the graph.

    Args:
        rule: the group's, with its options.
        theta, G: `{name: tensor}`, the tensors that have a gradient, and their gradients.
        states: of each: empty, a copy of torch.optim's, or what this function returned.
        forms: a cache, empty at first.
        group: what the group is called in messages.
        track: whether the step is to be differentiated.
    """
    hyper = as_hyper(rule, theta, f"of {group}")
    alike: dict[tuple[float, torch.device], dict[str, TensorState]] = {}
    for k, p in theta.items():
        of_tensor = _in_form(rule, k, p, states[k], hyper[k], forms, group)
        alike.setdefault((of_tensor["step"].item(), p.device), {})[k] = of_tensor
    new_theta: Tensors = {}
    new_states: dict[str, TensorState] = {}
    for together in alike.values():
        s: dict[str, Any] = {slot: {} for slot in rule.initial_state({}, {})}  # every slot, if only as an empty one
        for k, of_tensor in together.items():
            for slot, value in of_tensor.items():
                if slot != "step":
                    s.setdefault(slot, {})[k] = value
        s["step"] = next(iter(together.values()))["step"]
        arguments = ({k: theta[k] for k in together}, s, {k: G[k] for k in together}, {k: hyper[k] for k in together})
        stepped, s = differentiable_step(rule, *arguments) if track else rule.step(*arguments)
        new_theta |= stepped
        for k, of_tensor in together.items():
            new_states[k] = {slot: s["step"] if slot == "step" else s[slot][k] for slot in of_tensor}
    return new_theta, new_states


def _in_form(
    rule: Optimizer, k: str, theta: Tensor, of_tensor: TensorState, hyper: dict[str, Tensor], forms: Forms, group: str
) -> TensorState:
    """A tensor's state as the rule has it: what is held, or the rule's own s_0 before the first step."""
    options = tuple(rule.slots()) if hasattr(rule, "slots") else ()
    form = forms.get((type(rule), options, theta.shape))
    if form is None:
        form = forms[type(rule), options, theta.shape] = {
            n: v.dtype for n, v in _cold(rule, k, theta, hyper).items() if n != "step"
        }
    present = [slot for slot in form if of_tensor.get(slot) is not None]
    # torch.optim's SGD counts no steps: a momentum buffer tells that there has been one.
    finished = of_tensor.get("step", bool(present))
    if float(finished) == 0 or (form and not present):
        return _cold(rule, k, theta, hyper)
    if len(present) < len(form):
        raise unexpected(
            f"optimizer state in {group}",
            f"the entries {listing(form)}",
            listing(present),
            "Set such options before the first step, or start from an optimizer without state.",
        )
    if not (isinstance(finished, Tensor) and finished.dtype == torch.float64 and finished.is_cpu):
        finished = torch.tensor(float(finished), dtype=torch.float64)
    return {"step": finished} | {n: of_tensor[n].to(dtype) for n, dtype in form.items()}


def _cold(rule: Optimizer, k: str, theta: Tensor, hyper: dict[str, Tensor]) -> TensorState:
    state = rule.initial_state({k: theta}, {k: hyper})
    return {
        slot: value if slot == "step" else value[k] for slot, value in state.items() if slot == "step" or k in value
    }
