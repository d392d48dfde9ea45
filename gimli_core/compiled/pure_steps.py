"""One step forwards, one step backwards and the validation loss, each as one pure function of tensors.

They are the engine's lines with nothing between them, by transforms (pure_derivatives.py) instead of recorded graphs,
so that they can be traced whole:

    advance    lines 5 and 6          theta_j, s_j                   ->  ell_j, G_j, theta_{j+1}, s_{j+1}
    sweep      lines 5, 11-14         theta_j, s_j, B_{j+1}, S_{j+1} ->  ell_j, B_j, S_j, increments of A
    both       lines 5 and 6, 11-14   theta_j, s_j, B_{j+1}, S_{j+1} ->  what both of them return
    validate   lines 8 and 9          theta_J                        ->  L_val, B_J, A_loss's first term

`sweep` computes G_j again (12F a step in all, as `StoreStates`); `both` keeps what G_j's derivative needs (9F), once it
is cut in two (halves.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from gimli_core.compiled.pure_derivatives import gradients, pulled_back
from gimli_core.notation import Hyper, Loss, State, Tensors
from gimli_core.optimizers.interface import Optimizer, Pulled
from gimli_core.optimizers.seen import adjoint_of_loss, asked, seeing

__all__ = [
    "Advanced",
    "Along",
    "Fixed",
    "Swept",
    "Validated",
    "added",
    "advance",
    "both",
    "gradient_and_products",
    "linearised",
    "lines_11_and_12",
    "lines_11_to_14",
    "rows",
    "soundness",
    "sweep",
    "validate",
]


class Fixed(NamedTuple):
    """What a compiled function is compiled for, besides the shapes."""

    train_loss: Loss
    val_loss: Loss
    optimizer: Optimizer
    wanted: tuple[str, ...]
    augmented: bool


class Advanced(NamedTuple):
    """What lines 5 and 6 give: the loss a scalar, or [T], G_j and theta_{j+1} with the shapes of theta."""

    loss: Tensor  # one number, or [T]
    G: Tensors
    theta: Tensors  # theta_{j+1}
    s: State
    sound: Tensor  # not finite if the loss or G is not


class Along(NamedTuple):
    """B_{j+1} and S_{j+1}, along which a step is swept: of the shapes of theta and s."""

    B: Tensors
    S: State


class Swept(NamedTuple):
    """What lines 11 to 14 give: B_j and S_j, with the shapes of theta_j and s_j, and what is added to A."""

    loss: Tensor
    B: Tensors
    S: State
    A_opt: dict[str, Tensors]
    A_loss: Tensors


class Validated(NamedTuple):
    """What lines 8 and 9 give: L_val a scalar, [T] or [k], its gradients with the shapes of theta and phi_loss."""

    loss: Tensor
    theta: Tensors  # B_J
    phi_loss: Tensors  # the explicit part of A_loss


def losses(loss: Loss, theta: Tensors, phi_loss: Tensors, frozen: Tensors, batch: Any) -> Any:
    """(the sum over tasks, the loss of each)."""
    each = loss({**frozen, **theta}, phi_loss, batch)  # without aux: choice.py sees to that
    return each.sum(), each


def gradient(fixed: Fixed, theta: Tensors, phi_loss: Tensors, frozen: Tensors, batch: Any) -> tuple[Tensors, Tensor]:
    """(G_j, ell_j). G_j has the shapes of theta, ell_j is a scalar, or [T]."""

    def total(theta: Tensors) -> Any:
        return losses(fixed.train_loss, theta, phi_loss, frozen, batch)

    (G,), each = gradients(total, theta)
    return G, each


def advance(
    fixed: Fixed, theta: Tensors, s: State, phi_loss: Tensors, frozen: Tensors, hyper: Hyper, batch: Any
) -> Advanced:
    """Lines 5 and 6."""
    G, loss = gradient(fixed, theta, phi_loss, frozen, batch)
    new_theta, new_s = fixed.optimizer.step(theta, s, G, seeing(fixed.optimizer, hyper, loss))
    return Advanced(loss, G, new_theta, new_s, soundness((loss, G)))


def rows(tree: Any) -> Any:
    """The tree with every tensor in rows without gaps."""
    return tree_map(torch.Tensor.contiguous, tree)


def soundness(tree: Any) -> Tensor:
    """A number that is finite only if every tensor is; where it is not, a closer look is due: a sum may overflow."""
    wide = [x.sum(dtype=torch.promote_types(x.dtype, torch.float32)) for x in tree_leaves(tree)]
    return torch.stack(wide).sum()


def added(terms: Sequence[Tensor]) -> Tensor:
    """The sum of J increments, in float32 at least, the last step's first. All have one shape, and so has the sum."""
    total = terms[0].to(torch.promote_types(terms[0].dtype, torch.float32))
    for term in terms[1:]:
        total = total + term
    return total


def sweep(
    fixed: Fixed,
    theta: Tensors,
    s: State,
    phi_loss: Tensors,
    frozen: Tensors,
    hyper: Hyper,
    batch: Any,
    along: Along,
) -> Swept:
    """Lines 11-14, from the point alone."""
    G, pull, loss = linearised(fixed, theta, phi_loss, frozen, batch)
    hyper = seeing(fixed.optimizer, hyper, loss)
    B_j, S_j, A_opt, A_loss = lines_11_to_14(fixed, theta, s, hyper, G, loss, pull, along)
    return Swept(loss, B_j, S_j, A_opt, A_loss)


def both(
    fixed: Fixed,
    theta: Tensors,
    s: State,
    phi_loss: Tensors,
    frozen: Tensors,
    hyper: Hyper,
    batch: Any,
    along: Along,
) -> tuple[Advanced, Swept]:
    """Lines 5 and 6, and the same step's lines 11-14. What the next step takes comes in rows without gaps."""
    G, pull, loss = linearised(fixed, theta, phi_loss, frozen, batch)
    hyper = seeing(fixed.optimizer, hyper, loss)
    new_theta, new_s = fixed.optimizer.step(theta, s, G, hyper)
    B_j, S_j, A_opt, A_loss = lines_11_to_14(fixed, theta, s, hyper, G, loss, pull, along)
    new_theta, new_s, B_j, S_j = rows((new_theta, new_s, B_j, S_j))
    return Advanced(loss, G, new_theta, new_s, soundness((loss, G))), Swept(loss, B_j, S_j, A_opt, A_loss)


def validate(
    fixed: Fixed, theta: Tensors, phi_loss: Tensors, frozen: Tensors, batch: Any, along: Tensor | None = None
) -> Validated:
    """Lines 8 and 9; of k outer losses for `along · L_val`. `along` is [k]."""

    def total(theta: Tensors, phi_loss: Tensors) -> Any:
        total, each = losses(fixed.val_loss, theta, phi_loss, frozen, batch)
        return total if along is None else (each * along).sum(), each

    (B, explicit), each = gradients(total, theta, phi_loss)
    return Validated(each, B, explicit)


Pull = Callable[[Tensors, Tensor | None], tuple[Tensors, Tensors]]


def linearised(
    fixed: Fixed, theta: Tensors, phi_loss: Tensors, frozen: Tensors, batch: Any
) -> tuple[Tensors, Pull, Tensor]:
    """G_j, the function (V, g) -> (V Hessian + g grad_theta ell, V mixed + g grad_phi ell), and the loss. G_j has the
    shapes of theta; g and the loss are scalars, or [T].

    g is None but for a rule that sees the loss.
    """

    def G_of(theta: Tensors, phi_loss: Tensors) -> list[Tensor]:
        G, loss = gradient(fixed, theta, phi_loss, frozen, batch)
        return [*G.values(), loss]

    (*of_theta, loss), of_both = pulled_back(G_of, theta, phi_loss)

    def pull(V: Tensors, g: Tensor | None) -> tuple[Tensors, Tensors]:
        curvature, mixed = of_both([*[V[k] for k in theta], *([] if g is None else [g])])
        return curvature, mixed

    return dict(zip(theta, of_theta, strict=True)), pull, loss


def gradient_and_products(
    fixed: Fixed, theta: Tensors, phi_loss: Tensors, frozen: Tensors, batch: Any, V: Tensors, g: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, Tensors, Tensor], tuple[Tensors, Tensors]]:
    """((ell_j, G_j, its soundness), (V Hessian, V mixed)) with the shapes of theta and phi_loss, in rows; with g_j, a
    scalar or [T], of a rule that sees the loss."""
    G, pull, loss = linearised(fixed, theta, phi_loss, frozen, batch)
    curvature, mixed = pull(V, *(g or (None,)))
    return (loss, rows(G), soundness((loss, G))), rows((curvature, mixed))


def lines_11_to_14(
    fixed: Fixed, theta: Tensors, s: State, hyper: Hyper, G: Tensors, loss: Tensor, pull: Pull, along: Along
) -> tuple[Tensors, State, dict[str, Tensors], Tensors]:
    """(B_j, S_j, the increment of A_opt, the increment of A_loss).

    `loss` is a scalar, or [T]; B_j, S_j and the increments have the shapes of theta, s, the hyperparameters and
    phi_loss.
    """
    (V, direct, S_j, A), g = lines_11_and_12(fixed, theta, s, hyper, G, loss, along)
    curvature, mixed = pull(V, g)  # line 13
    B_j = {k: torch.add(v, curvature[k]) for k, v in direct.items()}  # line 14
    return B_j, S_j, A, mixed


def lines_11_and_12(
    fixed: Fixed, theta: Tensors, s: State, hyper: Hyper, G: Tensors, loss: Tensor, along: Along
) -> tuple[Pulled, Tensor | None]:
    """(V_j, line 14 without V_j Hessian, S_j and the increment of A_opt, g_j of a rule that sees the loss).

    V_j and line 14 have the shapes of theta, S_j of s; `loss` and g_j are scalars, or [T].
    """
    rule = fixed.optimizer
    pulled, g = adjoint_of_loss(rule, rule.pullback(theta, s, G, hyper, *along, asked(rule, fixed.wanted)), loss)
    return (pulled if fixed.augmented else pulled._replace(S=rule.zero_adjoint(s))), g
