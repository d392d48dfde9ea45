"""Optimizers of existing code, made differentiable: `step(loss)` in place of zero_grad, backward and step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gimli_core.derivatives import differentiate
from gimli_core.errors import ArgumentError, ClosedError, closest, explain, listing
from gimli_core.inner_loop.hyperparameters import (
    Override,
    apply_trainable_opt_params,
    as_hyper,
    get_trainable_opt_params,
    value_for_group,
)
from gimli_core.inner_loop.patch import FunctionalModule
from gimli_core.inner_loop.rules import register_optim, registered, rule_of
from gimli_core.inner_loop.step import differentiable_step
from gimli_core.optimizers.interface import ElementwiseOptimizer, Optimizer

__all__ = [
    "DifferentiableOptimizer",
    "apply_trainable_opt_params",
    "create_diff_optim",
    "get_diff_optim",
    "get_trainable_opt_params",
    "register_optim",
]

GradCallback = Callable[[list[Tensor | None]], Sequence[Tensor | None]]


class DifferentiableOptimizer:
    """A live optimizer's groups, options and state, with a `step` that can be differentiated.

    A subclass may write `_update(grouped_grads)` itself, which replaces `self.param_groups[i]["params"][k]` by the
    stepped tensors, with autograd recording it; without one, the registered rule and its pullback do it.

    Args: as in `get_diff_optim`.
    """

    def __init__(
        self,
        other: torch.optim.Optimizer,
        reference_params: Iterable[Tensor],
        fmodel: FunctionalModule | None = None,
        device: torch.device | str | None = None,
        override: Override | None = None,
        grad_callback: GradCallback | None = None,
        track_higher_grads: bool = True,
    ) -> None:
        number = {id(p): i for i, p in enumerate(reference_params)}
        self._kind = type(other)
        self._fmodel = fmodel
        self._grad_callback = grad_callback
        self._track = track_higher_grads
        self._closed = False
        self.param_groups: list[dict[str, Any]] = []
        self.state: list[list[dict[str, Any]]] = []  # of each group's parameters; empty before the first step
        self._members: list[list[int]] = []  # of each group, as positions among the reference parameters
        for i, group in enumerate(other.param_groups):
            for p in group["params"]:
                if id(p) not in number:
                    raise ArgumentError(
                        explain(
                            f"optimizer, group {i}",
                            "parameters of the model",
                            f"one of shape {list(p.shape)} that is not among them",
                            "Make the optimizer from the model's own parameters(), after any move or copy of it.",
                        )
                    )
            self._members.append([number[id(p)] for p in group["params"]])
            self.param_groups.append({**group, "params": [None] * len(group["params"])})
            self.state.append([_copied_state(other.state.get(p, {}), device) for p in group["params"]])
        self._apply_override(override)

    def step(
        self,
        loss: Tensor,
        params: Iterable[Tensor] | None = None,
        override: Override | None = None,
        grad_callback: GradCallback | None = None,
    ) -> list[Tensor]:
        """One inner step: G_j of the loss, then the optimizer's update of the fast weights.

            G_j = grad_theta loss;   theta_{j+1}, s_{j+1} = opt(theta_j, s_j, phi_opt, G_j)          lines 5, 6

        A parameter that the loss does not reach is left alone, with its state, as `torch.optim` does for `grad=None`.

        Args:
            loss: a scalar, computed from the latest fast weights.
            params: fast weights; by default those of the functional module.
            override: options from this step on, `{name: [value]}` or `{name: [a value for each group]}`.
            grad_callback: a function from the list of gradients (None where there is none) to the list to be used.

        Returns:
            list: the new fast weights, which the functional module has taken over.

        Raises:
            ArgumentError: a loss that does not depend on the fast weights or whose graph is gone, a sparse gradient,
                fast weights that were edited in place.
            ClosedError: after the end of the context.

        Cost: 3F, and backwards 6F; keeps the loss's graph, theta, state and G until the outer loss is done with.
        """
        if self._closed:
            raise ClosedError(
                "step: expected a call inside its inner loop's context; got one after the end. Indent it into the "
                "`with` block, or use monkeypatch and get_diff_optim, which have no end."
            )
        self._apply_override(override)
        theta = self._weights(params)
        callback = grad_callback or self._grad_callback
        G: Sequence[Tensor | None] = self._gradients(loss, theta)
        with torch.set_grad_enabled(self._track):
            if callback is not None:
                G = self._called_back(callback, G)
            for group, members in zip(self.param_groups, self._members, strict=True):
                group["params"] = [theta[i] for i in members]
            self._update([[G[i] for i in members] for members in self._members])
        for group, members in zip(self.param_groups, self._members, strict=True):
            for i, p in zip(members, group["params"], strict=True):
                theta[i] = p if self._track or p is theta[i] else p.detach().requires_grad_()
            group["params"] = [None] * len(members)
        if self._fmodel is not None:
            self._fmodel.update_params(theta)
        return theta

    def close(self) -> None:
        """Release the state; a later `step` raises ClosedError."""
        self._closed = True
        self.state = []

    def _weights(self, params: Iterable[Tensor] | None) -> list[Tensor]:
        if params is not None:
            return list(params)
        if self._fmodel is None or self._fmodel.fast_params is None:
            raise ArgumentError(
                explain(
                    "params",
                    "fast weights, since no functional module has them",
                    "None",
                    "Pass step(loss, params=[...]).",
                )
            )
        self._fmodel._fast_weights.check_untouched()
        return list(self._fmodel.fast_params)

    def _gradients(self, loss: Tensor, theta: list[Tensor]) -> list[Tensor | None]:
        """Line 5; None for a tensor that is frozen or not reached."""
        trained = [i for i, p in enumerate(theta) if p.requires_grad]
        try:
            found = differentiate(loss, [theta[i] for i in trained], create_graph=self._track)
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            raise ArgumentError(
                explain(
                    "loss",
                    "a loss whose graph is still there",
                    "one that was differentiated before, which freed it",
                    "Compute it anew from the latest fast weights, or call backward(retain_graph=True) before.",
                )
            ) from error
        G: list[Tensor | None] = [None] * len(theta)
        for i, g in zip(trained, found, strict=True):
            G[i] = g
            if g is not None and (g.layout != torch.strided or not g.is_floating_point()):
                raise ArgumentError(
                    explain(
                        "loss",
                        "dense real gradients",
                        f"{g.layout} of {g.dtype} for {self._name(i)}",
                        "Construct its layer with sparse=False; split a complex parameter into real ones.",
                    )
                )
        if all(g is None for g in G):
            raise ArgumentError(
                explain(
                    "loss",
                    "a loss that depends on the latest fast weights",
                    "a loss with no gradient path to any of them",
                    "Compute it from fmodel, not from the module that it was made from, with the latest fast weights.",
                )
            )
        return G

    def _called_back(self, callback: GradCallback, G: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        changed = list(callback(list(G)))
        for i, (g, new) in enumerate(zip(G, changed, strict=False)):
            if new is not None and (g is None or not isinstance(new, Tensor) or new.shape != g.shape):
                came = "None, or another shape or type" if g is not None else "a gradient where there was none"
                raise ArgumentError(
                    explain(
                        f"grad_callback, at {self._name(i)}",
                        "a tensor shaped like the gradient, or None",
                        came,
                        "Return one for one.",
                    )
                )
        if len(changed) != len(G):
            raise ArgumentError(
                explain(
                    "grad_callback",
                    f"a list of {len(G)} gradients back",
                    f"{len(changed)}",
                    "Return one for each, in order.",
                )
            )
        return changed

    def _update(self, grouped_grads: list[list[Tensor | None]]) -> None:
        """Line 6, with the registered rule: one node of the graph for the tensors that have had as many steps."""
        for i, (group, grads) in enumerate(zip(self.param_groups, grouped_grads, strict=True)):
            rule = rule_of(self._kind, group)
            theta = {str(k): p for k, p in enumerate(group["params"]) if grads[k] is not None}
            hyper = as_hyper(rule.hyperparameters(), theta, f"of group {i}")
            alike: dict[tuple[float, torch.device], dict[str, dict[str, Any]]] = {}
            for k, p in theta.items():
                held = self._state(rule, i, int(k), p, hyper[k])
                alike.setdefault((held["step"].item(), p.device), {})[k] = held
            for states in alike.values():
                first = next(iter(states.values()))
                slots = [slot for slot in first if slot != "step"]
                s = {"step": first["step"], **{slot: {k: held[slot] for k, held in states.items()} for slot in slots}}
                step = differentiable_step if self._track else _plain_step
                G = {k: g for k in states if (g := grads[int(k)]) is not None}
                new_theta, s = step(rule, {k: theta[k] for k in states}, s, G, {k: hyper[k] for k in states})
                for k in states:
                    group["params"][int(k)] = new_theta[k]
                    self.state[i][int(k)] = {"step": s["step"], **{slot: s[slot][k] for slot in slots}}

    def _state(self, rule: Optimizer, i: int, k: int, theta: Tensor, hyper: dict[str, Tensor]) -> dict[str, Any]:
        """A parameter's state in the rule's form: what is held, or the rule's initial one before the first step."""
        held = self.state[i][k]
        key = str(k)
        cold = None if isinstance(rule, ElementwiseOptimizer) else rule.initial_state({key: theta}, {key: hyper})
        slots = (
            rule.slots() if isinstance(rule, ElementwiseOptimizer) else [slot for slot in cold or {} if slot != "step"]
        )
        present = [slot for slot in slots if held.get(slot) is not None]
        # torch.optim's SGD counts no steps: a momentum buffer tells that there has been one.
        finished = float(held.get("step", bool(present)))
        if finished == 0 or (slots and not present):
            cold = rule.initial_state({key: theta}, {key: hyper}) if cold is None else cold
            return {"step": cold["step"], **{slot: cold[slot][key] for slot in slots}}
        if len(present) < len(slots):
            raise ArgumentError(
                explain(
                    f"optimizer state of {self._name(self._members[i][k])}",
                    f"the entries {listing(slots)}",
                    listing(present),
                    "Set such options before the first step, or start from an optimizer without state.",
                )
            )
        return {"step": torch.tensor(finished, dtype=torch.float64), **{slot: held[slot] for slot in slots}}

    def _apply_override(self, override: Override | None) -> None:
        for name, values in (override or {}).items():
            for i, group in enumerate(self.param_groups):
                if name not in group:
                    raise ArgumentError(
                        explain(
                            "override",
                            f"options of {self._kind.__name__} ({listing(o for o in group if o != 'params')})",
                            repr(name),
                            f"Rename or remove it.{closest(name, group)}",
                        )
                    )
                group[name] = value_for_group(name, values, i, len(self.param_groups), group[name])

    def _name(self, i: int) -> str:
        return f"fast weight {self._fmodel._fast_weights.names[i]!r}" if self._fmodel is not None else f"params[{i}]"


def get_diff_optim(
    opt: torch.optim.Optimizer,
    reference_params: Iterable[Tensor],
    fmodel: FunctionalModule | None = None,
    device: torch.device | str | None = None,
    override: Override | None = None,
    track_higher_grads: bool = True,
    **kwargs: Any,
) -> DifferentiableOptimizer:
    """The differentiable counterpart of a live optimizer, which is left as it is.

    Args:
        opt: an optimizer of a class that has a rule; its groups, options and state are copied.
        reference_params: the parameters of its model, as `module.parameters()` gives them.
        fmodel: the functional module whose fast weights are stepped; without one, pass `params` to each step.
        device: where the state goes; by default where it is.
        override: options in place of the optimizer's own, `{name: [value]}` for all groups or `{name: [a value for each
            group]}`. A value may be a tensor, and then has a gradient: one number, or anything that broadcasts to
            the parameters.
        track_higher_grads: with False, plain steps whose fast weights have no history.
        grad_callback: as in `DifferentiableOptimizer.step`, for every step.

    Raises:
        ArgumentError: an optimizer without a rule, a parameter that the model does not have, an unknown option.

    >>> import torch, gimli_core.inner_loop as inner_loop
    >>> w, lr = torch.zeros(1, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    >>> opt = torch.optim.SGD([w], lr=0.1)
    >>> diffopt = inner_loop.get_diff_optim(opt, [w], override={"lr": [lr]})
    >>> (w_1,) = diffopt.step(((w - 1) ** 2).sum(), params=[w])     # w_1 = 2 lr
    >>> w_1.backward()
    >>> lr.grad
    tensor(2.)
    """
    if not isinstance(opt, torch.optim.Optimizer):
        raise ArgumentError(
            explain(
                "opt", "an instance of a torch.optim class", type(opt).__name__, "For a class use create_diff_optim."
            )
        )
    made = registered(type(opt))
    kind = made if isinstance(made, type) and issubclass(made, DifferentiableOptimizer) else DifferentiableOptimizer
    return kind(
        opt,
        reference_params,
        fmodel=fmodel,
        device=device,
        override=override,
        track_higher_grads=track_higher_grads,
        **kwargs,
    )


def create_diff_optim(
    opt_type: type[torch.optim.Optimizer],
    opt_kwargs: Mapping[str, Any] | None = None,
    params: Iterable[Any] | None = None,
    fmodel: FunctionalModule | None = None,
    device: torch.device | str | None = None,
    override: Override | None = None,
    track_higher_grads: bool = True,
    **kwargs: Any,
) -> DifferentiableOptimizer:
    """A new differentiable optimizer, from a class and its options.

    Args:
        opt_type: a class of `torch.optim`, or a registered one.
        opt_kwargs: what its constructor is called with.
        params: tensors whose shapes it is made for, or parameter groups with such tensors; `fmodel`'s by default.
        fmodel, device, override, track_higher_grads, grad_callback: as in `get_diff_optim`.

    Raises:
        ArgumentError: neither params nor fmodel, and what `get_diff_optim` raises.
    """
    registered(opt_type)
    if params is None and fmodel is None:
        raise ArgumentError(explain("params", "tensors, or fmodel=… in their place", "neither", "Pass one of the two."))
    given = list(params if params is not None else fmodel.parameters())  # type: ignore[union-attr]
    groups = (
        [{**g, "params": _like(g["params"])} for g in given]
        if given and isinstance(given[0], Mapping)
        else [{"params": _like(given)}]
    )
    opt = opt_type(groups, **(opt_kwargs or {}))
    reference = [p for group in groups for p in group["params"]]
    return get_diff_optim(
        opt, reference, fmodel=fmodel, device=device, override=override, track_higher_grads=track_higher_grads, **kwargs
    )


def _like(params: Any) -> list[Tensor]:
    return [torch.zeros_like(p, requires_grad=True) for p in ([params] if isinstance(params, Tensor) else params)]


def _plain_step(rule: Optimizer, theta: Any, state: Any, G: Any, hyper: Any) -> Any:
    return rule.step(theta, state, G, hyper)


def _copied_state(state: Mapping[str, Any], device: torch.device | str | None) -> dict[str, Any]:
    return {k: v.detach().clone().to(device) if isinstance(v, Tensor) else v for k, v in state.items()}
