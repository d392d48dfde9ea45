"""iMAML's proximal problem: an inner loss that is drawn back to where the inner loop started.

    train_loss(theta, phi_loss, batch) + lambda/2 ||theta - phi||²,   phi = theta_0

The centre phi travels as entries of phi_loss, one for each trained tensor, which a `Call` adds and the result takes
out again: what the gradient of L has with respect to the centre is a part of B_0. Everything between the two, second
derivatives, schedules, tasks and compiled steps, sees a loss with a phi_loss, as any other.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gimli_core.environment import split_frozen
from gimli_core.errors import listing, unexpected
from gimli_core.meta_parameters.marks import PerTask, per_task, unmarked, unmarked_entries
from gimli_core.notation import Loss, Tensors
from gimli_core.problem import Problem
from gimli_core.transforms.numbered import takes_j

__all__ = ["ProximalLoss", "centre_of", "into_start", "proximal", "with_centre", "without_centre"]

CENTRE = "proximal centre: "  # before the name of a tensor of theta, in phi_loss


def proximal(problem: Problem, strength: float | str) -> Problem:
    """The same problem with lambda/2 ||theta - theta_0||² added to its inner loss.

        ell(theta, phi_loss) + lambda/2 Σ_k ||theta[k] - theta_0[k]||²

    Every function of the library takes it as it takes any problem. Its B_0 is the derivative of L by theta_0 in both
    places, as the start of the inner loop and as the centre: at the minimum only the centre counts, and
    `gimli.implicit_gradient` gives that without the path of the inner loop. To first order (`gimli.FirstOrder()`) the
    centre is taken for a constant, and B_0 is what it is without the term.

    Args:
        problem: whose losses and rule are kept.
        strength: lambda >= 0, a number; or the name of the entry of phi_loss that holds it, so that it is learned.

    Returns:
        Problem.

    Raises:
        ArgumentError: a strength that is neither, or a problem that is proximal already; at a call, an entry that
            phi_loss lacks or that is not one number >= 0.

    Cost: one pass over theta a step; A has a term for the centre.
    Source: Rajeswaran et al. 2019, equation 3.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.proximal(gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.5)), strength=1.0)
    >>> theta_0, one = {"w": torch.zeros(1)}, torch.ones(1)
    >>> result = gimli.meta_gradient(problem, theta_0, lambda j: one, one, steps=60)
    >>> result.theta_J["w"], result.B_0["w"]       # (target + theta_0) / 2, and (theta_J - target) / 2
    (tensor([0.5000]), tensor([-0.2500]))
    """
    if not isinstance(problem, Problem):
        do = "Build one from two losses and an optimizer."
        raise unexpected("problem", "a gimli.Problem", type(problem).__name__, do)
    if isinstance(problem.train_loss, ProximalLoss):
        raise unexpected("problem", "one without a proximal term", "one that has it", "Add it once.")
    number = isinstance(strength, (int, float)) and not isinstance(strength, bool)
    if not (isinstance(strength, str) or (number and 0 <= strength < math.inf)):
        do = "A tensor goes into phi_loss, and its name here."
        expected = "a number >= 0, or the name of an entry of phi_loss"
        raise unexpected("strength", expected, repr(strength), do)
    train_loss = ProximalLoss(problem.train_loss, strength)
    return Problem(train_loss, _WithoutCentre(problem.val_loss), problem.optimizer, problem.modules)


class _WithoutCentre:
    """A loss that does not see the centre in phi_loss; it takes the number of the step where the user's does."""

    def __init__(self, loss: Loss) -> None:
        self.loss: Any = loss
        if takes_j(loss):
            self.__signature__ = inspect.signature(loss)

    def __call__(self, theta: Tensors, phi_loss: Tensors, batch: Any, **numbered: Any) -> Any:
        return self.loss(theta, without_centre(phi_loss), batch, **numbered)


class ProximalLoss(_WithoutCentre):
    """An inner loss with its proximal term."""

    def __init__(self, loss: Loss, strength: float | str) -> None:
        super().__init__(loss)
        self.strength = strength

    def __call__(self, theta: Tensors, phi_loss: Tensors, batch: Any, **numbered: Any) -> Any:
        returned = super().__call__(theta, phi_loss, batch, **numbered)
        loss, *aux = returned if isinstance(returned, tuple) else (returned,)
        away = [
            (theta[k] - phi_loss[CENTRE + k]).square().sum()
            for k in theta
            if CENTRE + k in phi_loss  # what is held constant has none
        ]
        if not away:
            do = "Call through gimli, which puts theta_0 there."
            raise unexpected("phi_loss", "the centre of the proximal term", listing(phi_loss), do)
        strength = phi_loss[self.strength] if isinstance(self.strength, str) else self.strength
        loss = loss + strength / 2 * torch.stack(away).sum()
        return (loss, *aux) if aux else loss


def without_centre(phi_loss: Any) -> Any:
    """phi_loss as it was given, before a centre was put into it."""
    if not isinstance(phi_loss, Mapping):
        return phi_loss
    return {k: v for k, v in phi_loss.items() if not (isinstance(k, str) and k.startswith(CENTRE))}


def centre_of(train_loss: Any, theta_0: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of phi_loss that hold the centre of a proximal loss, theta_0; none for another loss."""
    return {CENTRE + k: v for k, v in theta_0.items()} if isinstance(train_loss, ProximalLoss) else {}


def with_centre(train_loss: Any, theta_0: Any, phi_loss: Any) -> Any:
    """phi_loss as it was given, with the centre of a proximal loss in it, unless that is there already.

    Where tasks start from their own theta_0 each has its own centre. Raises ArgumentError for a strength that is
    missing or is not one number >= 0.
    """
    if not isinstance(train_loss, ProximalLoss) or not isinstance(unmarked(theta_0), Mapping):
        return phi_loss
    entries = unmarked(phi_loss) or {}
    if not isinstance(entries, Mapping) or any(isinstance(k, str) and k.startswith(CENTRE) for k in entries):
        return phi_loss
    if isinstance(phi_loss, PerTask):
        entries = {k: per_task(unmarked(v)) for k, v in entries.items()}
    if isinstance(train_loss.strength, str):
        _check_strength(train_loss.strength, entries)
    start = unmarked(theta_0)
    tensors = {k: v for k, v in unmarked_entries(start).items() if isinstance(v, Tensor)}  # others are refused there
    # The tensors themselves: what is done with them may be recorded, to be differentiated again.
    trained = split_frozen(tensors)[0]
    by_task = {k for k in trained if isinstance(theta_0, PerTask) or isinstance(start[k], PerTask)}
    centre = centre_of(train_loss, {k: per_task(tensors[k]) if k in by_task else tensors[k] for k in trained})
    return {**entries, **centre}


def _check_strength(name: str, phi_loss: Mapping[str, Any]) -> None:
    argument = f"phi_loss[{name!r}]"
    if name not in phi_loss:
        do = "It is lambda of the proximal term: give it there, or a number as the strength."
        raise unexpected("phi_loss", f"an entry {name!r}", listing(phi_loss), do)
    value, of_task = unmarked(phi_loss[name]), isinstance(phi_loss[name], PerTask)
    if isinstance(value, Tensor) and value.ndim != int(of_task):
        do = "One number is lambda for all tensors."
        raise unexpected(argument, "one number", f"shape {list(value.shape)}", do)
    if isinstance(value, (int, float, Tensor)) and bool((torch.as_tensor(value) < 0).any()):
        do = "The proximal term would push theta away. Learn log lambda, and give its exp()."
        raise unexpected(argument, "lambda >= 0", f"{torch.as_tensor(value).tolist()}", do)


def into_start(A_loss: Tensors, B_0: Tensors, *, curvature: bool) -> tuple[Tensors, Tensors]:
    """A_loss without the centre's entries, and B_0 with them: theta_0 stands in both places.

    Without curvature, to first order, they are left out: what the pull to the centre takes from the start's share is
    curvature, and one without the other would count theta_0 over and over.
    """
    centre = {k.removeprefix(CENTRE): v for k, v in A_loss.items() if k.startswith(CENTRE)}
    if not centre:
        return A_loss, B_0
    added = {k: v + centre[k].to(v.dtype) if k in centre else v for k, v in B_0.items()}
    return without_centre(A_loss), added if curvature else B_0
