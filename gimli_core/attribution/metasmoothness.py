"""Is the meta-gradient useful? Three trainings tell whether theta_J answers to phi_loss steadily or by jumps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gimli_core.attribution.weights import by_name
from gimli_core.errors import unexpected
from gimli_core.evaluation.adapt import adapt
from gimli_core.meta_parameters.marks import Mark, unmarked
from gimli_core.problem import Problem

__all__ = ["Metasmoothness", "metasmoothness"]


@dataclass(frozen=True)
class Metasmoothness:
    """How far the second stretch of a straight line in phi_loss moves theta_J as the first one did."""

    value: float  # in [-1, 1]; 1 where each entry of theta_J goes on in its direction
    of_each: dict[str, float]  # the same for each tensor of theta alone; nan where it did not move
    h: float

    def __repr__(self) -> str:
        return f"Metasmoothness({self.value:.3g} at h={self.h:g})"


def metasmoothness(
    problem: Problem,
    theta_0: Mapping[str, Tensor],
    train_batches: Sequence[Any] | Callable[[int], Any],
    *,
    phi_loss: Mapping[str, Any],
    direction: Mapping[str, Tensor] | None = None,
    h: float = 0.1,
    seed: int = 0,
    **options: Any,
) -> Metasmoothness:
    """The empirical metasmoothness of training along a direction v of phi_loss: no derivative is taken.

        D_0 = theta_J(phi + h v) - theta_J(phi),     D_1 = theta_J(phi + 2 h v) - theta_J(phi + h v)
        d   = |D_0 + D_1|                            how far an entry moves in all
        S   = Σ_e d_e sign(D_0,e) sign(D_1,e) / Σ_e d_e                    over all entries e of theta

    Near 1, the derivative goes on holding over a stretch h, and what it predicts will come about. Near 0, theta_J moves
    by jumps, and an exact derivative tells little of any change of that size.

    Args:
        phi_loss: as in `meta_gradient`, with or without indexed entries.
        direction: v by the names of phi_loss; entries that are not named stay. By default random signs for all.
        h: the step along v, in units of phi_loss: about the size of the changes that the gradient is to predict.
        seed: of the random signs.
        theta_0, train_batches and `options`: as in `adapt`.

    Returns:
        Metasmoothness: `.value`, and `.of_each` tensor of theta.

    Raises:
        ArgumentError: h that is not above 0; a direction of other names or shapes; one that theta_J does not answer to.

    Cost: three trainings, 3F a step each.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, batch):
    ...     return (theta["a"] - phi["target"]).square().sum()
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.1))
    >>> gimli.metasmoothness(problem, {"a": torch.zeros(2)}, [None] * 5, phi_loss={"target": torch.ones(2)})
    Metasmoothness(1 at h=0.1)

    Source: Engstrom et al. 2025, Optimizing ML Training with Metagradient Descent, definition 2 (equation 6).
    """
    if isinstance(h, bool) or not isinstance(h, (int, float)) or not 0 < h < float("inf"):
        raise unexpected("h", "a number above 0", repr(h), "Take the size of a change that you would make.")
    problem, phi_loss, _ = by_name(problem, phi_loss)
    values = {k: torch.as_tensor(unmarked(v)).detach() for k, v in phi_loss.items()}
    v = _signs(values, seed) if direction is None else _checked(direction, values)

    def theta_J(distance: float) -> dict[str, Tensor]:
        phi = {**phi_loss, **{k: _with_value(phi_loss[k], values[k] + distance * v[k]) for k in v}}
        return adapt(problem, theta_0, train_batches, phi_loss=phi, **options).theta_J

    first, middle, last = (theta_J(n * h) for n in range(3))
    D_0 = {k: (middle[k] - first[k]).double() for k in first}
    D_1 = {k: (last[k] - middle[k]).double() for k in first}
    d = {k: (last[k] - first[k]).double().abs() for k in first}
    agreed = {k: float((d[k] * D_0[k].sign() * D_1[k].sign()).sum()) for k in d}
    moved = {k: float(d[k].sum()) for k in d}
    if sum(moved.values()) == 0:
        do = "Name entries of phi_loss that train_loss uses, or raise h."
        raise unexpected("direction", "one along which theta_J moves", "the same theta_J", do)
    of_each = {k: agreed[k] / moved[k] if moved[k] > 0 else float("nan") for k in d}
    return Metasmoothness(sum(agreed.values()) / sum(moved.values()), of_each, float(h))


def _with_value(entry: Any, value: Tensor) -> Any:
    return replace(entry, value=value) if isinstance(entry, Mark) else value


def _signs(values: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        k: (2 * torch.randint(2, x.shape, generator=generator) - 1).to(x)
        for k, x in values.items()
        if x.is_floating_point()
    }


def _checked(direction: Mapping[str, Tensor], values: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, v in direction.items():
        if name not in values or not isinstance(v, Tensor) or v.shape != values[name].shape:
            expected = f"tensors shaped as phi_loss: { ({k: list(x.shape) for k, x in values.items()}) }"
            actual = f"{name!r} of shape {list(v.shape)}" if isinstance(v, Tensor) else f"{name!r}: {type(v).__name__}"
            raise unexpected("direction", expected, actual, "Give v by the names of phi_loss.")
    return dict(direction)
