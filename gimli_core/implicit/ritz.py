"""Ritz values: what a Krylov space says of the eigenvalues of H.

With Q an orthonormal basis of span{b, H b, …, H^(k-1) b}, Q' H Q is tridiagonal, and its eigenvalues lie between the
lowest and the highest of H; the outermost converge first. Conjugate gradients and MINRES have its entries at hand, so
that the estimates cost no product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gimli_core.implicit.systems import Spectrum, dot, norm, tiny

__all__ = ["Lowest", "lowest", "outermost"]

MOST = 400  # rows of a tridiagonal matrix whose eigenvalues are looked for: its leading part says enough


def outermost(diagonal: Sequence[Tensor], beside: Sequence[Tensor], steps: Tensor) -> Spectrum:
    """The lowest and the highest Ritz value of each task, nan where it took no step.

    Args:
        diagonal: of the tridiagonal matrix, an entry `[T]` a step.
        beside: the entries beside the diagonal, one less.
        steps: `[T]`, how many rows each task has.
    """
    low, high = (
        torch.full_like(steps, torch.nan, dtype=torch.float64),
        torch.full_like(steps, torch.nan, dtype=torch.float64),
    )
    if diagonal:
        d, e = torch.stack(list(diagonal[:MOST])).double(), torch.zeros(0, len(steps))
        if len(diagonal) > 1:
            e = torch.stack(list(beside[: len(d) - 1])).double()
        for t, k in enumerate(steps.clamp(max=MOST).tolist()):
            if k:
                values = _eigenvalues(d[:k, t].cpu(), e[: k - 1, t].cpu())
                low[t], high[t] = values[0], values[-1]
    return Spectrum(low, high)


def _eigenvalues(diagonal: Tensor, beside: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(torch.diag(diagonal) + torch.diag(beside, 1) + torch.diag(beside, -1))
    return values


class Lowest(NamedTuple):
    """The lowest Ritz pair of each task, and how far an eigenvalue may be from it."""

    value: Tensor  # [T]
    vector: Tensor  # [T, n], of length 1
    residual: Tensor  # [T], ||H u - value u||
    highest: Tensor  # [T], the highest Ritz value


def lowest(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Lowest:
    """The lowest Ritz pair of H in the Krylov space of `start`, `[T, n]`. Cost: `steps` products, as many vectors.

    Source: Lanczos 1950, with every vector made orthogonal to all before it.
    """
    T, n = start.shape
    q, basis, images = start / norm(start).clamp(min=torch.finfo(start.dtype).tiny)[:, None], [], []
    for _ in range(min(steps, n)):
        basis.append(q)
        images.append(product(q))
        w, Q = images[-1], torch.stack(basis, 1)
        for _ in range(2):  # once is not orthogonal to rounding
            w = w - (Q.transpose(1, 2) @ (Q @ w[:, :, None]))[:, :, 0]
        size = norm(w)
        ended = size <= tiny(w) * n * norm(images[-1])  # the Krylov space is whole
        q = torch.where(ended[:, None], torch.zeros_like(w), w / size.clamp(min=torch.finfo(w.dtype).tiny)[:, None])
        if bool(ended.all()):
            break
    Q, HQ = torch.stack(basis, 1), torch.stack(images, 1)
    small = Q @ HQ.transpose(1, 2)
    small = (small + small.transpose(1, 2)) / 2
    empty = norm(Q.reshape(T * len(basis), n)).reshape(T, -1) == 0  # rows of a task whose space was whole earlier
    far = 2 * small.abs().sum((1, 2)) + 1
    values, vectors = torch.linalg.eigh(small + torch.diag_embed(empty * far[:, None]))
    y = vectors[:, :, :1]
    u, Hu = (Q.transpose(1, 2) @ y)[:, :, 0], (HQ.transpose(1, 2) @ y)[:, :, 0]
    counts = (~empty).sum(1)
    highest = values.gather(1, (counts - 1).clamp(min=0)[:, None])[:, 0]
    value = dot(u, Hu)
    return Lowest(value, u, norm(Hu - value[:, None] * u), highest)
