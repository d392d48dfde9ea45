"""What a loss does besides returning a number: whether it replays and differentiates twice, and what it reaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gimli_core.arguments.inputs import Inputs
from gimli_core.arguments.trial import copied, same, same_data, tensors_of, trial
from gimli_core.derivatives.evaluate import evaluate
from gimli_core.errors import ReplayError, RequirementError, unexpected
from gimli_core.meta_parameters.marks import tensor_paths

__all__ = ["probe_replay", "refuse_edits", "refuse_once_differentiable", "refuse_stray_tensors"]


def probe_replay(inputs: Inputs) -> None:
    """Evaluate the first inner loss twice from the same random numbers and buffers; raise `ReplayError` if it
    differs. Cost 2F.
    """
    with trial(inputs) as tried:
        start = inputs.environment.capture()
        first = _value(tried, "train_loss", tried.values.batch(0))
        inputs.environment.restore(start)  # and no more: that is all that a replay finds as it was
        second = _value(tried, "train_loss", tried.values.batch(0))
    if not same(first, second):
        raise ReplayError(
            "train_loss: expected the same value twice from the same theta, batch and random state, since a step is "
            f"evaluated again here, for the memory schedule or for second_order; got {first.tolist()!r}, then "
            f"{second.tolist()!r}. Draw random numbers from torch's global generator (or numpy's, or Python's), "
            "let no other thread draw from it meanwhile, return the same batch for one j, or use memory=RetainGraphs() "
            "and second_order='reverse_over_reverse'."
        )


def refuse_edits(inputs: Inputs) -> dict[str, Tensor]:
    """Raise if a loss changes theta, phi_loss or its batch in place, so that the next who reads them sees other data.

    It may do so with a batch that is made anew each time it is asked for, and in a way that changes nothing the second
    time (as clamp_ does). Returns each loss, of theta_0 and the first batch: scalars, or [T]. Cost 2F, or 4F.
    """
    return {name: _unless_edited(inputs, name) for name in _losses(inputs)}


def _unless_edited(inputs: Inputs, name: str) -> Tensor:
    """A loss of theta_0 and its first batch, of which two copies are alive at a time: a scalar, or [T]. Raises."""
    before = _first_batch_again(inputs, name)
    with trial(inputs) as tried:
        batch = _first_batch(tried, name)
        value = _value(tried, name, batch)
        _refuse_changed(name, inputs, tried)
        changed = any(t._version for t in tensors_of(batch)) and not same_data(batch, before)
    if not changed or not _shared(inputs, name):
        return value
    once = copied(batch)
    with trial(inputs) as tried:
        if same(value, _value(tried, name, batch)) and same_data(batch, once):
            return value
    expected, actual = "to leave its batch as it is", "one that it changed in place"
    do = "A step may be evaluated again, and would see other data: let it change a copy, batch.clone()."
    raise unexpected(name, expected, actual, do)


def _first_batch_again(inputs: Inputs, name: str) -> Any:
    """The first batch of a loss; raise if it is another one when it is asked for twice."""
    with trial(inputs) as tried:
        one = _first_batch(tried, name)
    with trial(inputs) as tried:
        other = _first_batch(tried, name)
    if len(tensors_of(one)) != len(tensors_of(other)) or not same_data(one, other):
        argument = "val_batch" if name == "val_loss" else "train_batches"
        do = "A step may ask again, and batches are looked at before the run: read what an iterator gives into a list."
        raise unexpected(argument, "a function of j that gives the same batch for the same j", "another one", do)
    return one


def _refuse_changed(name: str, inputs: Inputs, tried: Inputs) -> None:
    """Raise if a loss has changed its copies of what it was called with."""
    for argument in ("theta_0", "frozen", "phi_loss"):
        before, now = getattr(inputs.values, argument), getattr(tried.values, argument)
        changed = [k for k, v in before.items() if not same(v, now[k])]
        if changed:
            expected, actual = "to leave theta and phi_loss as they are", f"{changed[0]!r} changed in place"
            do = "What is differentiated is a step from theta_j as it was: let it change a copy, .clone()."
            raise unexpected(name, expected, actual, do)


def refuse_stray_tensors(inputs: Inputs, values: Mapping[str, Tensor], *, tied: bool) -> None:
    """Raise if a tensor that requires grad has a part in L and is in none of the arguments. Cost 2F.

    Raises as well where a loss is not what it was before (in `values`, scalars or [T]): then trying it has left a
    trace. Looked for in the losses (at the first batch) and in the optimizer's own hyperparameters. Without `tied` a
    batch may require grad, as a loss that differentiates in its coordinates asks for.
    """
    lost = "whose gradient neither meta_gradient(...) nor unroll(...).backward() would give"
    for hyperparameter, value in inputs.form.problem.optimizer.hyperparameters().items():
        if hyperparameter not in inputs.form.wanted and any(t.requires_grad for _, t in tensor_paths(value)):
            raise RequirementError(
                f"optimizer: expected constants for what is not in phi_opt; got {hyperparameter!r}, which "
                f"requires grad, {lost}. Pass it as phi_opt={{{hyperparameter!r}: …}}, or detach it."
            )
    for name in _losses(inputs):
        with trial(inputs) as tried:
            batch = _first_batch(tried, name)
        stray, value = _outer_leaves(inputs, name, batch)
        _refuse_traces(name, values[name], value)
        if stray:  # or made by the loss itself, as the points at which it differentiates: then others the next time
            again, _ = _outer_leaves(inputs, name, batch)
            stray = [t for t in stray if any(t is other for other in again)]
        if not tied:
            stray = [t for t in stray if all(t is not part for part in tensors_of(batch))]
        if stray:
            shapes = ", ".join(str(list(t.shape)) for t in stray[:6])
            raise RequirementError(
                f"{name}: expected to depend on theta, phi_loss and constants; got {len(stray)} more "
                f"tensor(s) that require grad (of shape {shapes}), {lost}. "
                "Detach them, pass them in theta_0 or phi_loss, or go on with check=False, which holds them constant."
            )


def _refuse_traces(name: str, first: Tensor, second: Tensor) -> None:
    """Raise if what a loss keeps has not all been put back. Not for what rounding alone may change."""
    if not torch.allclose(first, second, rtol=torch.finfo(first.dtype).eps ** 0.5, atol=0, equal_nan=True):
        raise ReplayError(
            f"{name}: expected the same value twice from the same theta, batch and random state, since it is tried "
            f"before the run; got {first.tolist()!r}, then {second.tolist()!r}. It keeps something that cannot be put "
            "back, such as an iterator's place, draws from the system's entropy, or another thread draws from the "
            "global generators: keep a list and a number, give each thread a process, or go on with check=False, "
            "which tries nothing."
        )


def _losses(inputs: Inputs) -> list[str]:
    return ["val_loss", "train_loss"] if inputs.form.steps > 0 else ["val_loss"]


def _first_batch(inputs: Inputs, name: str) -> Any:
    """The first batch of a loss."""
    return inputs.values.last_val_batch if name == "val_loss" else inputs.values.batch(0)


def _shared(inputs: Inputs, name: str) -> bool:
    """Whether a batch that is asked for twice lies in the same memory."""
    one, other = _first_batch(inputs, name), _first_batch(inputs, name)
    places = {t.untyped_storage().data_ptr() for t in tensors_of(one) if t.layout == torch.strided}
    return any(t.untyped_storage().data_ptr() in places for t in tensors_of(other) if t.layout == torch.strided)


def _at(inputs: Inputs, name: str, batch: Any) -> tuple[Tensor, list[Tensor]]:
    """A loss at theta_0, with its graph, and the leaves it was called with."""
    with torch.enable_grad():  # as the run: a loss may differentiate inside
        theta = {k: v.detach().requires_grad_() for k, v in inputs.values.theta_0.items()}
        phi_loss = inputs.values.phi_loss if name == "val_loss" else inputs.values.phi_at(0)
        phi = {k: v.detach().requires_grad_() for k, v in phi_loss.items()}
        loss_function = getattr(inputs.form.problem, name)
        theta_of_all, vector = {**inputs.values.frozen, **theta}, name == "val_loss"
        loss, _ = evaluate(loss_function, name, theta_of_all, phi, batch, vector=vector)
    return loss, [*theta.values(), *phi.values()]


def _value(inputs: Inputs, name: str, batch: Any) -> Tensor:
    return _at(inputs, name, batch)[0].detach()


def _outer_leaves(inputs: Inputs, name: str, batch: Any) -> tuple[list[Tensor], Tensor]:
    """The leaves that autograd would reach from a loss, but for theta and phi_loss; and the loss."""
    with trial(inputs) as tried:
        loss, leaves = _at(tried, name, batch)
        arguments = set(map(id, leaves))
        reached = {id(n.variable): n.variable for n in nodes_of(loss) if hasattr(n, "variable")}
        return [leaf for key, leaf in reached.items() if key not in arguments], loss.detach()


# Every function that `once_differentiable` wraps shares this code.
_ONCE = once_differentiable(lambda ctx: None).__code__


def refuse_once_differentiable(inputs: Inputs) -> None:
    """Raise NotImplementedError if train_loss uses a custom function whose backward cannot be differentiated. Cost F.

    Autograd itself may say nothing: what such a backward returns can look like a constant, of derivative 0.
    """
    loss, _ = _at(inputs, "train_loss", inputs.values.batch(0))
    for node in nodes_of(loss):
        function = getattr(type(node), "_forward_cls", None)
        if getattr(getattr(function, "backward", None), "__code__", None) is _ONCE:
            raise NotImplementedError(
                f"the backward of {node.name().removesuffix('Backward')} is marked once_differentiable"
            )


def nodes_of(tensor: Tensor) -> set[Any]:
    """Every node of autograd's graph behind `tensor`. It has any shape."""
    seen: set[Any] = set()
    todo: list[Any] = [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo.extend(following for following, _ in node.next_functions)
    return seen
