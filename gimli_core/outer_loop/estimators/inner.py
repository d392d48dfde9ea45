"""What estimators share: from phi and what was drawn to a call of the engine, and from its gradients to phi's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gimli_core.arguments.call import Call
from gimli_core.arguments.form import Form
from gimli_core.arguments.surroundings import check_surroundings
from gimli_core.errors import closest, listing, unexpected
from gimli_core.meta_parameters.marks import plain_dicts
from gimli_core.notation import Tensors
from gimli_core.outer_loop.identity import plain
from gimli_core.problem import Problem
from gimli_core.results import MetaGradient, Trajectory
from gimli_core.runs.make_run import make_run
from gimli_core.runs.run import drain
from gimli_core.runs.wants import Wants
from gimli_core.unroll import gradient_at, tied_tensors

__all__ = ["Inner", "InnerLoop", "accumulate", "check_phi", "swept", "walked"]

Inner = Callable[[Mapping[str, Tensor], Any], Mapping[str, Any]]

NAMES = tuple(name for name in inspect.signature(Call).parameters if name not in ("problem", "among"))
WHO = "an outer loop"  # asks for one number
NEEDED = ("theta_0", "train_batches", "val_batch")


class InnerLoop:
    """An inner loop as a function of phi: `inner(phi, drawn)` says with which arguments it is run.

    Args:
        problem: the two losses and the optimizer.
        phi: what is learned, `{name: tensor}`: leaves of autograd's graph.
        inner: `(phi, drawn) -> {"theta_0": …, "train_batches": …, "val_batch": …, "phi_opt": …, …}`, arguments of
            `gimli.unroll` computed from phi as you like: `{"lr": phi["log_lr"].exp()}`.
        fixed: arguments of `gimli.unroll` that are the same in each outer step.

    Raises:
        ArgumentError: what cannot be an inner loop.
    """

    def __init__(self, problem: Problem, phi: Mapping[str, Tensor], inner: Inner, fixed: Mapping[str, Any]) -> None:
        phi = plain_dicts(phi)
        check_phi("phi", phi)
        if not callable(inner):
            expected = "a function (phi, drawn) -> {argument of unroll: value}"
            do = "For example lambda phi, batches: {'theta_0': …, 'train_batches': batches, 'val_batch': …}."
            raise unexpected("inner", expected, type(inner).__name__, do)
        _check_names("an estimator", fixed)
        check_surroundings(Call(problem, {}, [], None, **{k: v for k, v in fixed.items() if k not in NEEDED}))
        self.problem, self.phi, self.inner, self.fixed = problem, phi, inner, dict(fixed)

    def call(self, phi: Mapping[str, Tensor], drawn: Any) -> Call:
        """The call at phi, its tensors tied to phi by autograd. Raises ArgumentError."""
        with torch.enable_grad():
            made = self.inner(phi, drawn)
        if not isinstance(made, Mapping):
            expected = "a dict {argument of unroll: value}"
            raise unexpected("inner(phi, drawn)", expected, type(made).__name__, "Return one.")
        _check_names("inner(phi, drawn)", made)
        twice = sorted(set(made) & set(self.fixed))
        if twice:
            do = "Leave it out in one of the two places."
            raise unexpected("inner(phi, drawn)", "other arguments than are fixed", listing(twice), do)
        arguments = {**self.fixed, **made}
        missing = [name for name in NEEDED if name not in arguments]
        if missing:
            expected = f"a dict with {listing(NEEDED)}"
            do = "gimli.unroll needs all three."
            raise unexpected("inner(phi, drawn)", expected, f"one without {listing(missing)}", do)
        return Call(self.problem, **arguments)

    def finish(self, result: MetaGradient, tied: Iterable[tuple[Tensor, Tensor]], what: str) -> MetaGradient:
        """Carry gradients on from a call's tensors to phi, `(tensor, its gradient)`; add them to `.grad`.

        `what` names the estimator, for the error where nothing leads to phi.
        """
        pairs = [(t, gradient.to(t)) for t, gradient in tied if t.requires_grad]
        leaves = {name: leaf for name, leaf in self.phi.items() if leaf.requires_grad}
        A: tuple[Tensor | None, ...] = ()
        if pairs:
            tensors, gradients = zip(*pairs, strict=True)
            A = torch.autograd.grad(tensors, list(leaves.values()), gradients, allow_unused=True)
        of_leaf = {name: a.detach() for name, a in zip(leaves, A, strict=bool(A)) if a is not None}
        if not of_leaf:
            actual = f"none that depends on {listing(leaves)}"
            do = "Compute them from the phi that inner is handed, not from copies or detached tensors."
            raise unexpected("inner(phi, drawn)", f"arguments that {what} has a gradient for", actual, do)
        accumulate(self.phi, of_leaf)
        return replace(result, A=of_leaf)

    def __repr__(self) -> str:
        fixed = "".join(f", {name}={plain(value)!r}" for name, value in self.fixed.items())
        return f"{plain(self.problem.optimizer)}, {list(self.phi)}{fixed}"


def walked(call: Call) -> tuple[Trajectory, Form]:
    """Lines 2-7 of a call, in the memory of one step: (where it went, the form it was run in)."""
    run = make_run(call, Wants(forward_only=True, one_number=WHO))
    drain(run.forward())
    return run.trajectory(), run.form


def swept(call: Call) -> tuple[MetaGradient, Form, list[tuple[Tensor, Tensor]]]:
    """Lines 2-16 of a call: (the result, the form it was run in, each of the call's tensors with its gradient)."""
    run = make_run(call, Wants(tied=True, one_number=WHO))
    drain(run.forward())
    drain(run.backward())
    result, form = run.result(), run.form
    return result, form, [(t, gradient_at(result, form.scale, path, t)) for path, t in tied_tensors(call, form)]


def check_phi(argument: str, phi: Any) -> None:
    """Raise ArgumentError unless `phi` is a dict of leaves, one of which is to be learned."""
    expected, do = "a dict {name: tensor}", "For a module: dict(module.named_parameters())."
    if isinstance(phi, Mapping) and any(isinstance(v, Mapping) for v in phi.values()):
        actual = f"dicts in it: {listing(k for k, v in phi.items() if isinstance(v, Mapping))}"
        raise unexpected(argument, expected, actual, "Name each tensor here, and nest them in what `inner` returns.")
    if not isinstance(phi, Mapping) or not phi:
        actual = "an empty one" if isinstance(phi, Mapping) else type(phi).__name__
        raise unexpected(argument, expected, actual, do)
    for name, leaf in phi.items():
        if not isinstance(name, str) or not isinstance(leaf, Tensor):
            raise unexpected(f"{argument}[{name!r}]", expected, type(leaf).__name__, do)
        if not leaf.is_leaf:
            do = "Hand over what it was computed from, and compute it in `inner`."
            raise unexpected(f"{argument}[{name!r}]", "a leaf of autograd's graph", "a computed tensor", do)
    if not any(leaf.requires_grad for leaf in phi.values()):
        do = "Call .requires_grad_() on what is to be learned."
        raise unexpected(argument, "at least one tensor that requires grad", "none", do)


def accumulate(phi: Mapping[str, Tensor], A: Tensors) -> None:
    """Add gradients to the `.grad` of their leaves, as `backward()` does."""
    for name, a in A.items():
        leaf = phi[name]
        leaf.grad = a.clone() if leaf.grad is None else leaf.grad + a


def _check_names(argument: str, arguments: Mapping[str, Any]) -> None:
    for name in arguments:
        if name not in NAMES:
            do = f"See gimli.unroll.{closest(name, NAMES)}"
            raise unexpected(argument, "arguments of gimli.unroll", repr(name), do)
