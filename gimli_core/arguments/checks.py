"""Every argument of a meta-gradient, checked by itself: what was expected, what came, where, and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from gimli_core.environment import split_frozen
from gimli_core.errors import ArgumentError, closest, explain, listing
from gimli_core.optimizers.interface import State, Tensors
from gimli_core.transforms.tasks import own, split_marked

__all__ = ["check_batches", "check_phi_loss", "check_state", "check_theta", "check_weights", "finite", "laid_out"]


def check_theta(theta_0: Any) -> tuple[Tensors, Tensors]:
    if not isinstance(theta_0, Mapping) or not theta_0:
        came = "an empty dict" if isinstance(theta_0, Mapping) else type(theta_0).__name__
        raise ArgumentError(
            explain(
                "theta_0",
                "a dict {name: floating-point tensor}",
                came,
                "For a module: dict(module.named_parameters()).",
            )
        )
    seen: dict[int, str] = {}
    for k, v in theta_0.items():
        check_tensor(f"theta_0[{k!r}]", v)
        if not isinstance(k, str):
            raise ArgumentError(explain("theta_0", "names that are strings", f"the key {k!r}", "Rename it."))
        if id(v) in seen:
            raise ArgumentError(
                explain(
                    f"theta_0[{k!r}]",
                    "each tensor once",
                    f"the tensor of {seen[id(v)]!r} again",
                    "For tied weights give one name, as named_parameters() does; functional_call fills in the others.",
                )
            )
        seen[id(v)] = k
    trained, frozen = laid_out(theta_0)
    if not trained:
        raise ArgumentError(
            explain(
                "theta_0",
                "at least one trained entry",
                "only frozen parameters",
                "Call .requires_grad_() on what is trained.",
            )
        )
    first_name, first = next(iter(trained.items()))
    for k, v in trained.items():
        if (v.dtype, v.device) != (first.dtype, first.device):
            raise ArgumentError(
                explain(f"theta_0[{k!r}]", f"{first.dtype} on {first.device}, as theta_0[{first_name!r}] is",
                        f"{v.dtype} on {v.device}", "Bring all entries to one dtype and device.")
            )  # fmt: skip
    return trained, frozen


def laid_out(theta_0: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
    """The trained entries, and what they are laid over: all of theta_0 if some are held constant, else nothing."""
    trained, frozen = split_frozen(theta_0)
    # The losses see the order in which theta_0 was given: some take theta.values() apart by it.
    return trained, {k: v.detach() for k, v in theta_0.items()} if frozen else {}


def check_tensor(argument: str, value: Any) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
        came = f"a {value.dtype} tensor, layout {value.layout}" if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentError(explain(argument, "a dense floating-point tensor", came, "Convert it, or leave it out."))
    if value.is_meta or isinstance(value, UninitializedParameter):
        came = "one on the meta device" if value.is_meta else "a parameter that a lazy module has not made yet"
        do = "Materialize it: run the module once, or .to_empty(device=...) and initialise it."
        raise ArgumentError(explain(argument, "a tensor that holds values", came, do))
    if not finite(value):
        raise ArgumentError(explain(argument, "finite values", "inf or nan", "Find out where it was computed."))


def finite(value: Tensor) -> bool:
    """Whether every entry is finite; by their sum, which is quicker, unless that overflows."""
    return math.isfinite(value.sum().item()) or bool(torch.isfinite(value).all())


def check_phi_loss(phi_loss: Any, theta: Tensor, tasks: int | None) -> tuple[frozenset[str], Tensors]:
    """The names that each task has its own tensor of, and all tensors."""
    whole, phi_loss = split_marked(phi_loss)
    if phi_loss is None:
        return frozenset(), {}
    if not isinstance(phi_loss, Mapping):
        raise ArgumentError(
            explain(
                "phi_loss",
                "a dict {name: tensor}",
                type(phi_loss).__name__,
                "For a module: dict(module.named_parameters()).",
            )
        )
    checked, by_task = {}, set()
    for k, v in phi_loss.items():
        argument = f"phi_loss[{k!r}]"
        alone, v = split_marked(v)
        if alone or whole:
            by_task.add(k)
            own(argument, v, tasks)
        if isinstance(v, (int, float)) and not isinstance(v, bool):
            v = torch.tensor(float(v), dtype=theta.dtype, device=theta.device)
        check_tensor(argument, v)
        if not isinstance(k, str):
            raise ArgumentError(explain("phi_loss", "names that are strings", f"the key {k!r}", "Rename it."))
        half = theta.dtype in (torch.float16, torch.bfloat16) and v.dtype == torch.float32
        if v.ndim > 0 and ((v.dtype != theta.dtype and not half) or v.device != theta.device):
            raise ArgumentError(
                explain(
                    argument,
                    f"{theta.dtype} on {theta.device}, as theta_0 is",
                    f"{v.dtype} on {v.device}",
                    "Convert it with .to(...).",
                )
            )
        checked[k] = v.detach()
    return frozenset(by_task), checked


def check_batches(train_batches: Any, steps: Any) -> tuple[Callable[[int], Any], int]:
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 0):
        raise ArgumentError(
            explain("steps", "a whole number J >= 0", repr(steps), "steps=0 gives the plain gradient of val_loss.")
        )
    if isinstance(train_batches, Iterator) or (
        hasattr(train_batches, "__iter__") and not hasattr(train_batches, "__getitem__")
    ):
        raise ArgumentError(
            explain("train_batches", "a sequence, or a function of j: the sweep may ask for a batch again",
                    f"a {type(train_batches).__name__}, which can be read only in order", "Wrap it in "
                    "list(...), cut to the steps you need.")
        )  # fmt: skip
    scalar = isinstance(train_batches, (Tensor, np.ndarray)) and train_batches.ndim == 0
    if (
        scalar
        or isinstance(train_batches, (Mapping, str))
        or not (hasattr(train_batches, "__len__") or callable(train_batches))
    ):
        raise ArgumentError(
            explain("train_batches", "a sequence of batches, or a function j -> batch", type(train_batches).__name__,
                    "One batch for every step: lambda j: batch.")
        )  # fmt: skip
    steps = None if steps is None else int(steps)
    if not hasattr(train_batches, "__len__"):
        if steps is None:
            raise ArgumentError(
                explain("steps", "a number, since train_batches is a function", "None", "Say how many steps to run.")
            )
        return told(train_batches, steps), steps
    held = len(train_batches)
    if held == 0 and steps is None:
        raise ArgumentError(
            explain("train_batches", "at least one batch", "none", "For no inner step at all say steps=0.")
        )
    J = held if steps is None else steps
    if held < J:
        raise ArgumentError(
            explain(
                "train_batches",
                f"a batch for each of the {J} steps",
                f"{held}",
                "Give more, lower steps, or use a function of j: lambda j: batch uses one batch for every step.",
            )
        )
    return told(lambda j: train_batches[j], J), J


def told(batches: Callable[[int], Any], steps: int) -> Callable[[int], Any]:
    """The same function; where it fails, the error says at which step."""

    def batch(j: int) -> Any:
        try:
            return batches(j)
        except StopIteration as error:
            expected, do = f"a batch for each of the {steps} steps", "A function of j gives the same batch again."
            raise ArgumentError(explain("train_batches", expected, f"StopIteration at j = {j}", do)) from error
        except Exception as error:
            note = f"in train_batches, at inner step j = {j} of {steps}"
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
            raise

    return batch


def check_weights(val_weights: Any, steps: int, first: int) -> tuple[float | None, ...]:
    if val_weights is None:
        return (None,) * steps + (1.0,)
    try:
        weights = [float(w.detach() if isinstance(w, Tensor) else w) for w in val_weights]
    except (TypeError, ValueError):
        weights = []
    if len(weights) not in (steps, steps + 1) or not weights:
        raise ArgumentError(
            explain("val_weights", f"{steps} numbers (for theta_1 … theta_{steps}) or {steps + 1} (from theta_0 on)",
                    f"{len(weights)} from {type(val_weights).__name__}", "w_j weighs L_val(theta_j).")
        )  # fmt: skip
    if not all(abs(w) < float("inf") for w in weights):
        raise ArgumentError(
            explain("val_weights", "finite numbers", repr(weights), "Find out where they were computed.")
        )
    if not any(weights):
        raise ArgumentError(
            explain("val_weights", "at least one weight that is not 0", "zeros only", "The loss would be 0.")
        )
    # A weight of 0 that is learned has a derivative too.
    learned = any(isinstance(w, Tensor) and w.requires_grad for w in (val_weights, *val_weights))
    checked = (None,) * (steps + 1 - len(weights)) + tuple(w if w or learned else None for w in weights)
    early = [j for j in range(first) if checked[j] is not None]
    if early:
        expected = f"no weight before theta_{first}, where the sweep of the last {steps - first} steps ends"
        came = f"one at theta_{early[0]}" + (", which is learned" if learned else "")
        raise ArgumentError(explain("val_weights", expected, came, "Raise truncate, or put 0 there."))
    return checked


def check_state(state_0: Any, like: State, path: str = "state_0") -> State:
    """`state_0`, detached, if it has the structure of `like`."""
    if isinstance(like, Tensor):
        value = torch.as_tensor(state_0, dtype=like.dtype) if isinstance(state_0, (int, float)) else state_0
        if not isinstance(value, Tensor) or value.shape != like.shape:
            came = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentError(
                explain(path, f"a tensor of shape {list(like.shape)}", came, "Take it from a result's state_J.")
            )
        if not bool(torch.isfinite(value).all()):
            raise ArgumentError(explain(path, "finite values", "inf or nan", "Find out where it was computed."))
        if value.ndim > 0 and value.device != like.device:
            raise ArgumentError(
                explain(
                    path,
                    f"a tensor on theta's device {like.device}",
                    f"one on {value.device}",
                    "Move it with .to(...).",
                )
            )
        if path == "state_0['step']" and (value < 0 or value != value.round()):
            raise ArgumentError(
                explain(
                    path,
                    "a whole number of finished steps, 0 or more",
                    f"{value.item():g}",
                    "A result's state_J counts them.",
                )
            )
        return value.detach().to(like.dtype)
    if not isinstance(state_0, Mapping) or set(state_0) != set(like):
        came = listing(state_0) if isinstance(state_0, Mapping) else type(state_0).__name__
        near = "".join(closest(k, like) for k in state_0 if k not in like) if isinstance(state_0, Mapping) else ""
        raise ArgumentError(
            explain(path, f"a dict with the keys {listing(like)}", came, f"A result's state_J has this form.{near}")
        )
    return {k: check_state(state_0[k], like[k], f"{path}[{k!r}]") for k in like}
