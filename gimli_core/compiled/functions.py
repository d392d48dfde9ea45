"""One step forwards, one step backwards and the validation loss, each as one pure function of tensors.

They are the engine's lines with nothing between them, by `torch.func` instead of recorded graphs, so that they can be
traced whole:

    advance    lines 5 and 6          theta_j, s_j                   ->  ell_j, G_j, theta_{j+1}, s_{j+1}
    sweep      lines 5, 11-14         theta_j, s_j, B_{j+1}, S_{j+1} ->  ell_j, B_j, S_j, increments of A
    both       lines 5 and 6, 11-14   theta_j, s_j, B_{j+1}, S_{j+1} ->  what both of them return
    validate   lines 8 and 9          theta_J                        ->  L_val, B_J, A_loss's first term
    whole      lines 4-14             theta_0, s_0                   ->  a result

`sweep` computes G_j again (12F a step in all, as `StoreStates`); `whole` keeps what G_j's derivative needs (9F), and
so does `both`, once it is cut in two (halves.py).
theta, G and B are in the form that the optimizer packs them in (`Optimizer.pack`): a dict, or one vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value, vjp
from torch.utils._pytree import tree_leaves, tree_map

from gimli_core.optimizers.interface import Hyper, Optimizer, State, Tensors
from gimli_core.problem import Loss
from gimli_core.tasks import Tasks, expanded, summed

__all__ = [
    "Advanced",
    "Fixed",
    "Form",
    "Outcome",
    "Swept",
    "Validated",
    "Whole",
    "advance",
    "both",
    "rows",
    "soundness",
    "sweep",
    "validate",
    "whole",
]


Packed = Any  # Tensors, or one vector


class Fixed(NamedTuple):
    """What a compiled function is compiled for, besides the shapes."""

    train_loss: Loss
    val_loss: Loss
    optimizer: Optimizer
    wanted: tuple[str, ...]
    augmented: bool


class Advanced(NamedTuple):
    loss: Tensor  # one number, or [T]
    G: Packed
    theta: Packed  # theta_{j+1}
    s: State
    sound: Tensor  # not finite if the loss or G is not


class Swept(NamedTuple):
    loss: Tensor
    B: Packed
    S: State
    A_opt: dict[str, Tensors]
    A_loss: Tensors


class Validated(NamedTuple):
    loss: Tensor
    theta: Packed  # B_J
    phi_loss: Tensors  # the explicit part of A_loss


class Whole(NamedTuple):
    train_losses: list[Tensor]
    val_losses: dict[int, Tensor]
    theta: Packed  # theta_J
    s: State
    B: Packed
    S: State
    A_opt: list[dict[str, Tensors]]  # increments, of step J-1 first; or their sum alone
    A_loss: Tensors


class Form(NamedTuple):
    """What a whole run is compiled for, besides what is `Fixed`."""

    validates: tuple[bool, ...]  # where L_val has a weight, from theta_0 to theta_J
    tasks: Tasks | None
    warm: bool  # whether s_0 was given


class Outcome(NamedTuple):
    """The fields of a result that are tensors, but for A_opt, which comes as in `Whole`."""

    val_loss: Tensor
    task_val_losses: Tensor
    train_losses: Tensor
    val_losses: Tensor
    theta_J: Tensors
    state_J: State
    B_0: Tensors
    S_0: State
    A_opt: list[dict[str, Tensors]]
    A_loss: Tensors


def losses(loss: Loss, fixed: Fixed, theta: Packed, phi_loss: Tensors, frozen: Tensors, batch: Any) -> Any:
    """(the sum over tasks, the loss of each)."""
    each = loss({**frozen, **fixed.optimizer.unpack(theta)}, phi_loss, batch)
    return each.sum(), each


def gradient(fixed: Fixed, theta: Packed, phi_loss: Tensors, frozen: Tensors, batch: Any) -> tuple[Packed, Tensor]:
    """(G_j, ell_j)."""

    def total(theta: Packed) -> Any:
        return losses(fixed.train_loss, fixed, theta, phi_loss, frozen, batch)

    G, (_, each) = grad_and_value(total, has_aux=True)(theta)
    return G, each


def advance(
    fixed: Fixed, theta: Packed, s: State, phi_loss: Tensors, frozen: Tensors, hyper: Hyper, batch: Any
) -> Advanced:
    """Lines 5 and 6."""
    G, loss = gradient(fixed, theta, phi_loss, frozen, batch)
    new_theta, new_s = fixed.optimizer.step_packed(theta, s, G, hyper)
    return Advanced(loss, G, new_theta, new_s, soundness((loss, G)))


def rows(tree: Any) -> Any:
    """The tree with every tensor in rows without gaps."""
    return tree_map(torch.Tensor.contiguous, tree)


def soundness(tree: Any) -> Tensor:
    """A number that is finite only if every tensor is; where it is not, a closer look is due: a sum may overflow."""
    wide = [x.sum(dtype=torch.promote_types(x.dtype, torch.float32)) for x in tree_leaves(tree)]
    return torch.stack(wide).sum()


def sweep(
    fixed: Fixed, theta: Packed, s: State, phi_loss: Tensors, frozen: Tensors, hyper: Hyper, batch: Any,
    B: Packed, S: State,
) -> Swept:  # fmt: skip
    """Lines 11-14, from the point alone."""
    G, pull, loss = linearised(fixed, theta, phi_loss, frozen, batch)
    B_j, S_j, A_opt, A_loss = lines_11_to_14(fixed, theta, s, hyper, G, pull, B, S)
    return Swept(loss, B_j, S_j, A_opt, A_loss)


def both(
    fixed: Fixed, theta: Packed, s: State, phi_loss: Tensors, frozen: Tensors, hyper: Hyper, batch: Any,
    B: Packed, S: State,
) -> tuple[Advanced, Swept]:  # fmt: skip
    """Lines 5 and 6, and the same step's lines 11-14. What the next step takes comes in rows without gaps."""
    G, pull, loss = linearised(fixed, theta, phi_loss, frozen, batch)
    new_theta, new_s = fixed.optimizer.step_packed(theta, s, G, hyper)
    B_j, S_j, A_opt, A_loss = lines_11_to_14(fixed, theta, s, hyper, G, pull, B, S)
    new_theta, new_s, B_j, S_j = rows((new_theta, new_s, B_j, S_j))
    return Advanced(loss, G, new_theta, new_s, soundness((loss, G))), Swept(loss, B_j, S_j, A_opt, A_loss)


def validate(fixed: Fixed, theta: Packed, phi_loss: Tensors, frozen: Tensors, batch: Any) -> Validated:
    """Lines 8 and 9."""

    def total(theta: Packed, phi_loss: Tensors) -> Any:
        return losses(fixed.val_loss, fixed, theta, phi_loss, frozen, batch)

    (B, explicit), (_, each) = grad_and_value(total, argnums=(0, 1), has_aux=True)(theta, phi_loss)
    return Validated(each, B, explicit)


def whole(
    fixed: Fixed, form: Form, theta_0: Tensors, state_0: State, phi_loss: Tensors, frozen: Tensors,
    hypers: list[Hyper], weights: Tensor, batches: list[Any], val_batch: Any,
) -> tuple[Outcome, Tensor]:  # fmt: skip
    """(lines 4-14, 1 if what came, the losses, theta_J and B_0 are finite and else 0).

    theta_0 as it was given, not packed. `state_0` is empty where the optimizer's own start is meant. `weights` [J + 1]
    are w_0 … w_J, used where `validates`.
    """
    optimizer, tasks, J = fixed.optimizer, form.tasks, len(batches)
    theta = optimizer.pack(theta_0 if tasks is None or tasks.theta else expanded(theta_0, tasks.count))
    s = state_0 or optimizer.initial_state_packed(theta, hypers[0])
    kept, train_losses, validated = [], [], {}
    for j, batch in enumerate(batches):
        if form.validates[j]:
            validated[j] = validate(fixed, theta, phi_loss, frozen, val_batch)
        hyper = hypers[j if len(hypers) > 1 else 0]
        G, pull, loss = linearised(fixed, theta, phi_loss, frozen, batch)
        kept.append((theta, s, hyper, G, pull))
        train_losses.append(loss)
        theta, s = optimizer.step_packed(theta, s, G, hyper)
    theta_J, s_J = theta, s
    if form.validates[J]:
        validated[J] = validate(fixed, theta, phi_loss, frozen, val_batch)
    B: Packed = tree_map(torch.zeros_like, theta)
    A_loss = {k: torch.zeros_like(v, dtype=torch.promote_types(v.dtype, torch.float32)) for k, v in phi_loss.items()}
    S, A_opt = optimizer.zero_adjoint(s), []
    for j in range(J, -1, -1):
        if j < J:
            theta, s, hyper, G, pull = kept[j]
            B, S, A_j, mixed = lines_11_to_14(fixed, theta, s, hyper, G, pull, B, S)
            A_opt.append(A_j)
            A_loss = {k: v + mixed[k] for k, v in A_loss.items()}
        if form.validates[j]:
            w = weights[j] if tasks is None else weights[j] * tasks.scale
            B = tree_map(lambda v, g, w=w: v + w.to(g.dtype) * g, B, validated[j].theta)
            A_loss = {k: v + w.to(v.dtype) * validated[j].phi_loss[k] for k, v in A_loss.items()}
    if len(hypers) == 1 and A_opt:  # no hyperparameter has a value of its own at each step
        A_opt = [{k: {name: added([A_j[k][name] for A_j in A_opt]) for name in A} for k, A in A_opt[0].items()}]
    of_each = torch.stack([weights[j].to(L.loss.dtype) * L.loss for j, L in validated.items()]).sum(0)
    nan = torch.full_like(of_each, float("nan"))
    B_0 = optimizer.unpack(B) if tasks is None or tasks.theta else summed(optimizer.unpack(B))
    S_0 = optimizer.split_state(S)
    outcome = Outcome(
        val_loss=of_each if tasks is None else of_each.sum() * tasks.scale,
        task_val_losses=of_each,
        train_losses=torch.stack(train_losses),
        val_losses=torch.stack([validated[j].loss if j in validated else nan for j in range(J + 1)]),
        theta_J=dict(optimizer.unpack(theta_J).items()),
        state_J=optimizer.split_state(s_J),
        B_0=dict(B_0.items()),
        S_0=S_0 if tasks is None or tasks.state or not form.warm else summed(S_0),
        A_opt=A_opt,
        A_loss=A_loss,
    )
    came = theta_0, frozen, phi_loss
    sound = soundness((came, train_losses, [L.loss for L in validated.values()], theta_J, B))
    return outcome, torch.isfinite(sound).to(torch.float32)


def added(terms: list[Tensor]) -> Tensor:
    """The sum of J increments, in float32 at least, the last step's first."""
    total = terms[0].to(torch.promote_types(terms[0].dtype, torch.float32))
    for term in terms[1:]:
        total = total + term
    return total


Pull = Callable[[Packed], tuple[Packed, Tensors]]


def linearised(
    fixed: Fixed, theta: Packed, phi_loss: Tensors, frozen: Tensors, batch: Any
) -> tuple[Packed, Pull, Tensor]:
    """G_j, the function V -> (V Hessian, V mixed), and the loss."""

    def G_of(theta: Packed, phi_loss: Tensors) -> tuple[Packed, Tensor]:
        return gradient(fixed, theta, phi_loss, frozen, batch)

    linear: tuple[Packed, Pull, Tensor] = vjp(G_of, theta, phi_loss, has_aux=True)  # type: ignore[assignment]
    return linear


def lines_11_to_14(
    fixed: Fixed, theta: Packed, s: State, hyper: Hyper, G: Packed, pull: Pull, B: Packed, S: State
) -> tuple[Packed, State, dict[str, Tensors], Tensors]:
    """(B_j, S_j, the increment of A_opt, the increment of A_loss)."""
    V, direct, S_j, A = fixed.optimizer.pullback_packed(theta, s, G, hyper, B, S, fixed.wanted)  # lines 11 and 12
    curvature, mixed = pull(V)  # line 13
    B_j: Packed = tree_map(torch.add, direct, curvature)  # line 14
    return B_j, (S_j if fixed.augmented else fixed.optimizer.zero_adjoint(s)), A, mixed
