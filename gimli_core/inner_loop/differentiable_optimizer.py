"""A live optimizer, made differentiable: `step(loss)` in place of zero_grad, backward and step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gimli_core.derivatives.evaluate import differentiate
from gimli_core.derivatives.modes import check_no_inference_mode
from gimli_core.errors import ClosedError, closest, listing, unexpected
from gimli_core.inner_loop.checks import (
    check_callback,
    check_device,
    check_loss,
    check_mapping,
    check_switch,
    listed_tensors,
    matching_gradients,
)
from gimli_core.inner_loop.options import Override, value_for_group
from gimli_core.inner_loop.patch import FunctionalModule
from gimli_core.inner_loop.rules import Rules
from gimli_core.inner_loop.update import Forms, TensorState, update

__all__ = ["DifferentiableOptimizer", "GradCallback"]

GradCallback = Callable[[list[Tensor | None]], Sequence[Tensor | None]]


class DifferentiableOptimizer:
    """A live optimizer's groups, options and state, with a `step` that can be differentiated.

    A subclass may write `_update(grouped_grads)` itself, which replaces `self.param_groups[i]["params"][k]` by the
    stepped tensors, with autograd recording it; without one, the registered rule and its pullback do it.

    Args: as in `get_diff_optim`.
    """

    stands_for: type[torch.optim.Optimizer] | None = None  # whose rule it is; None: that of the live optimizer

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
        check_no_inference_mode()
        reference = listed_tensors("reference_params", reference_params)
        check_device(device)
        check_callback(grad_callback)
        check_switch("track_higher_grads", track_higher_grads)
        if fmodel is not None and not isinstance(fmodel, FunctionalModule):
            actual = type(fmodel).__name__
            raise unexpected("fmodel", "what monkeypatch returns", actual, "Pass monkeypatch(model).")
        number = {id(p): i for i, p in enumerate(reference)}
        self._kind = self.stands_for or type(other)
        self._fmodel = fmodel
        self._grad_callback = grad_callback
        self._track = track_higher_grads
        self._closed = False
        self._forms: Forms = {}
        self._rules = Rules()
        self.param_groups: list[dict[str, Any]] = []
        self.state: list[list[TensorState]] = []  # of each group's parameters; empty before the first step
        self._members: list[list[int]] = []  # of each group, as positions among the reference parameters
        for i, group in enumerate(other.param_groups):
            for p in group["params"]:
                if id(p) not in number:
                    raise unexpected(
                        f"optimizer, group {i}",
                        "parameters of the model",
                        f"one of shape {list(p.shape)} that is not among them",
                        "Make the optimizer from the model's own parameters(), after any move or copy of it.",
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
        check_no_inference_mode()
        check_loss(loss)
        check_callback(grad_callback)
        self._apply_override(override)
        theta = self._weights(params)
        callback = grad_callback or self._grad_callback
        G: Sequence[Tensor | None] = self._gradients(loss, theta)
        with torch.set_grad_enabled(self._track):
            if callback is not None:
                G = matching_gradients(callback(list(G)), G, self._name)
            for group, members in zip(self.param_groups, self._members, strict=True):
                group["params"] = [theta[i] for i in members]
            self._update([[G[i] for i in members] for members in self._members])
        for group, members in zip(self.param_groups, self._members, strict=True):
            for i, p in zip(members, group["params"], strict=True):
                theta[i] = p if self._track or p is theta[i] else p.detach().requires_grad_()
            group["params"] = [None] * len(members)
        if not self._track:  # no history for what is in no group, or was not reached
            theta = [p if p.grad_fn is None else p.detach().requires_grad_() for p in theta]
        if self._fmodel is not None:
            self._fmodel.update_params(theta)
        return theta

    def close(self) -> None:
        """Release the state; a later `step` raises ClosedError."""
        self._closed = True
        self.state = []

    def _weights(self, params: Iterable[Tensor] | None) -> list[Tensor]:
        if params is not None:
            weights = listed_tensors("params", params)
            if len(weights) <= max(max(members, default=-1) for members in self._members):
                raise unexpected(
                    "params",
                    "as many tensors as there are reference parameters",
                    f"{len(weights)}",
                    "Keep the order of parameters().",
                )
            return weights
        if self._fmodel is None or self._fmodel.fast_params is None:
            raise unexpected(
                "params",
                "fast weights, since no functional module has them",
                "None",
                "Pass step(loss, params=[...]).",
            )
        self._fmodel._fast_weights.check_untouched()
        return list(self._fmodel.fast_params)

    def _gradients(self, loss: Tensor, theta: list[Tensor]) -> list[Tensor | None]:
        """Line 5; None for a tensor that is frozen or not reached."""
        trained = [i for i, p in enumerate(theta) if p.requires_grad]
        try:
            gradients = differentiate(loss, [theta[i] for i in trained], create_graph=self._track)
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            raise unexpected(
                "loss",
                "a loss whose graph is still there",
                "one that was differentiated before, which freed it",
                "Compute it anew from the latest fast weights, or call backward(retain_graph=True) before.",
            ) from error
        G: list[Tensor | None] = [None] * len(theta)
        for i, g in zip(trained, gradients, strict=True):
            G[i] = g
            if g is not None and (g.layout != torch.strided or not g.is_floating_point()):
                raise unexpected(
                    "loss",
                    "dense real gradients",
                    f"{g.layout} of {g.dtype} for {self._name(i)}",
                    "Construct its layer with sparse=False; split a complex parameter into real ones.",
                )
        if all(g is None for g in G):
            raise unexpected(
                "loss",
                "a loss that depends on the latest fast weights",
                "a loss with no gradient path to any of them",
                "Compute it from fmodel, not from the module that it was made from, with the latest fast weights.",
            )
        return G

    def _update(self, grouped_grads: list[list[Tensor | None]]) -> None:
        """Line 6, with the registered rule; a subclass may put another in its place."""
        for i, (group, grads) in enumerate(zip(self.param_groups, grouped_grads, strict=True)):
            G = {str(k): g for k, g in enumerate(grads) if g is not None}
            theta = {k: group["params"][int(k)] for k in G}
            states = {k: self.state[i][int(k)] for k in G}
            rule = self._rules.of(self._kind, i, group)
            theta, states = update(rule, theta, G, states, self._forms, f"group {i}", self._track)
            for k, p in theta.items():
                group["params"][int(k)], self.state[i][int(k)] = p, states[k]

    def _apply_override(self, override: Override | None) -> None:
        if override is None:
            return
        check_mapping("override", override, "{name: [value]}")
        for name, values in override.items():
            for i, group in enumerate(self.param_groups):
                if name not in group:
                    raise unexpected(
                        "override",
                        f"options of {self._kind.__name__} ({listing(o for o in group if o != 'params')})",
                        repr(name),
                        f"Rename or remove it.{closest(name, group)}",
                    )
                group[name] = value_for_group(name, values, i, len(self.param_groups), group[name])

    def _name(self, i: int) -> str:
        return f"fast weight {self._fmodel._fast_weights.names[i]!r}" if self._fmodel is not None else f"params[{i}]"


def _copied_state(state: Mapping[str, Any], device: torch.device | str | None) -> TensorState:
    return {k: v.detach().clone().to(device) if isinstance(v, Tensor) else v for k, v in state.items()}
