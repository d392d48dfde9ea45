"""Muon, as in `torch.optim.Muon`: momentum, orthogonalised by a Newton-Schulz iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.errors import unexpected
from gimli_core.notation import Tensors, Thunks
from gimli_core.optimizers.interface import hyperparameter
from gimli_core.optimizers.rules.parts import WeightDecay
from gimli_core.optimizers.tensorwise import TensorwiseOptimizer

__all__ = ["Muon"]

ADJUSTMENTS = ("original", "match_rms_adamw")


@dataclass(frozen=True, eq=False, init=False)
class Muon(WeightDecay, TensorwiseOptimizer):
    """Muon (Jordan et al. 2024) for matrices, with decoupled weight decay.

        b'     = momentum·b + (1 - momentum)·G
        U      = momentum·b' + (1 - momentum)·G  if nesterov  else  b'
        X_0    = U / max(|U|, eps),   X_{i+1} = a·X_i + (b·A + c·A²) X_i,   A = X_i X_iᵀ      ns_steps times
        theta' = theta·(1 - lr·weight_decay) - lr·adjustment·X

    A tall U is transposed first. The pullback runs the iteration backwards: with Y the adjoint of X_{i+1},

        M_bar = Y X_iᵀ,   A_bar = b·M_bar + c·(M_bar Aᵀ + Aᵀ M_bar),   X_bar = a·Y + Mᵀ Y + (A_bar + A_barᵀ) X_i.

    NOTE [rounded iteration]
    torch.optim runs the iteration in bfloat16, whose rounding is a step function: it has no useful derivative, and
    finite differences of it are noise. By default the iteration here runs in theta's own dtype, and every derivative is
    exact. `ns_dtype=torch.bfloat16` gives torch.optim's numbers to the bit, and derivatives of the unrounded polynomial
    at the rounded iterates, as autograd would define them. Those agree with the unrounded rule's to about 1 % where U
    is well conditioned, and not at all where it is nearly of low rank. `from_torch` sets it, so that training goes on
    as it was.

    Args:
        lr, weight_decay, momentum: numbers, or any form that a meta-parameter takes.
        ns_coefficients: (a, b, c), as meta-parameters "ns_a", "ns_b", "ns_c". These and eps are one value a tensor.
        nesterov, ns_steps, adjust_lr_fn ("original": sqrt(max(1, rows/columns)), "match_rms_adamw":
            0.2·sqrt(max(rows, columns))), ns_dtype, maximize: not differentiable. (torch.optim has no maximize.)

    Raises:
        ArgumentError: a number out of range, an unknown adjustment, a tensor that is no matrix.

    Cost: state |theta|; the pullback keeps ns_steps iterates of one tensor and takes about 3 times the step's matmuls.
    Source: `torch.optim.Muon`; proof in appendix_proofs/muon.py.

    >>> import torch, gimli_core as gimli
    >>> muon = gimli.optimizers.Muon(lr=1.0, weight_decay=0.0)
    >>> theta, G = {"w": torch.zeros(2, 2)}, {"w": torch.diag(torch.tensor([3.0, 4.0]))}
    >>> hyper = {"w": {n: torch.tensor(v) for n, v in muon.hyperparameters().items()}}
    >>> muon.step(theta, muon.initial_state(theta, hyper), G, hyper)[0]["w"].diagonal()   # singular values near 1
    tensor([-0.7229, -1.1192])
    """

    lr: Any = hyperparameter(1e-3)
    weight_decay: Any = hyperparameter(0.1)
    momentum: Any = hyperparameter(0.95)
    ns_a: Any = hyperparameter(3.4445, low=float("-inf"))
    ns_b: Any = hyperparameter(-4.7750, low=float("-inf"))
    ns_c: Any = hyperparameter(2.0315, low=float("-inf"))
    eps: Any = hyperparameter(1e-7)
    nesterov: bool = True
    ns_steps: int = 5
    adjust_lr_fn: str | None = None
    ns_dtype: torch.dtype | None = None
    maximize: bool = False

    def __init__(
        self,
        lr: Any = 1e-3,
        weight_decay: Any = 0.1,
        momentum: Any = 0.95,
        nesterov: bool = True,
        ns_coefficients: Any = (3.4445, -4.7750, 2.0315),
        eps: Any = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        ns_dtype: torch.dtype | None = None,
        maximize: bool = False,
        groups: Any = None,
    ) -> None:
        self._assign(locals(), ns_coefficients=("ns_a", "ns_b", "ns_c"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adjust_lr_fn not in (None, *ADJUSTMENTS):
            raise unexpected(
                "Muon(adjust_lr_fn=…)", f"one of {ADJUSTMENTS}", repr(self.adjust_lr_fn), "None is 'original'."
            )

    def whole_tensor(self) -> tuple[str, ...]:
        return ("ns_a", "ns_b", "ns_c", "eps")

    @property
    def decoupled(self) -> bool:
        return True

    def slots(self) -> tuple[str, ...]:
        return ("momentum_buffer",)

    def _initial(self, slot: str, theta: Tensor, h: Tensors) -> Tensor:
        if theta.ndim != 2:
            raise unexpected(
                "Muon",
                "matrices only",
                f"a tensor of shape {list(theta.shape)}",
                "Give the others to another rule: gimli.optimizers.Partition.",
            )
        return torch.zeros_like(theta)

    def _parts(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors) -> tuple[Tensor, Tensor, _Orthogonalised, float]:
        """(G or -G, b', the orthogonalised update, the adjustment of lr)."""
        g = self._descent(theta, G, h)
        momentum = h["momentum"].to(g)
        b = torch.lerp(s["momentum_buffer"], g, 1 - momentum)
        rows, columns = theta.shape
        matched = 0.2 * math.sqrt(max(rows, columns))
        adjustment = matched if self.adjust_lr_fn == "match_rms_adamw" else math.sqrt(max(1, rows / columns))
        return g, b, self._orthogonalise(torch.lerp(g, b, momentum) if self.nesterov else b, h), adjustment

    def _orthogonalise(self, U: Tensor, h: Tensors) -> _Orthogonalised:
        tall = U.shape[0] > U.shape[1]
        X = U if self.ns_dtype is None else U.to(self.ns_dtype)
        X = X.mT if tall else X
        norm = torch.linalg.vector_norm(X)
        X = X / torch.maximum(norm, h["eps"].to(norm))
        iterates = [X]
        for _ in range(self.ns_steps):
            A = X @ X.mT
            if self.ns_dtype is None:
                X = h["ns_a"] * X + (h["ns_b"] * A + h["ns_c"] * (A @ A)) @ X
            else:  # torch.optim's own calls, for the same rounding
                a, b, c = (h[name].item() for name in ("ns_a", "ns_b", "ns_c"))
                X = torch.addmm(X, torch.addmm(A, A, A, beta=b, alpha=c), X, beta=a)
            iterates.append(X)
        return _Orthogonalised(iterates[-1].mT if tall else iterates[-1], norm, iterates, tall)

    def _step(self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor) -> tuple[Tensor, Tensors]:
        _, b, o, adjustment = self._parts(theta, s, G, h)
        return self._decayed(theta, h) - h["lr"] * adjustment * o.result.to(theta), {"momentum_buffer": b}

    def _pullback(
        self, theta: Tensor, s: Tensors, G: Tensor, h: Tensors, t: Tensor, B: Tensor, S: Tensors
    ) -> tuple[Tensor, Tensor, Tensors, Thunks]:
        g, b, o, adjustment = self._parts(theta, s, G, h)
        momentum = h["momentum"]
        U_bar, scalars = self._orthogonalise_pullback(o, h, -h["lr"] * adjustment * B)
        b_bar = S["momentum_buffer"] + (momentum * U_bar if self.nesterov else U_bar)
        g_bar = (1 - momentum) * b_bar
        if self.nesterov:
            g_bar = g_bar + (1 - momentum) * U_bar
        A: Thunks = {
            "lr": lambda: -adjustment * B * o.result.to(B),
            "momentum": lambda: b_bar * (s["momentum_buffer"] - g) + (U_bar * (b - g) if self.nesterov else 0),
            **{name: value.clone for name, value in scalars.items()},
        }
        V, B_j = self._decay_pullback(theta, h, B, g_bar, A)
        return V, B_j, {"momentum_buffer": momentum * b_bar}, A

    def _orthogonalise_pullback(self, o: _Orthogonalised, h: Tensors, bar: Tensor) -> tuple[Tensor, Tensors]:
        """(the adjoint of U, those of a, b, c and eps), the iteration run backwards."""
        Y = bar.mT if o.tall else bar
        a, b, c = (h[name] for name in ("ns_a", "ns_b", "ns_c"))
        a_bar = b_bar = c_bar = torch.zeros((), dtype=Y.dtype, device=Y.device)
        for iterate in reversed(o.iterates[:-1]):
            X = iterate.to(Y)
            A = X @ X.mT
            A2 = A @ A
            M_bar = Y @ X.mT
            a_bar, b_bar, c_bar = a_bar + (Y * X).sum(), b_bar + (M_bar * A).sum(), c_bar + (M_bar * A2).sum()
            A_bar = b * M_bar + c * (M_bar @ A + A @ M_bar)  # A is symmetric
            Y = a * Y + (b * A + c * A2) @ Y + (A_bar + A_bar.mT) @ X
        X, norm = o.iterates[0].to(Y), o.norm.to(Y)
        along = (Y * X).sum()
        size = torch.maximum(norm, h["eps"].to(norm))
        long = (1 + torch.sign(norm - h["eps"])) / 2  # the norm divides, and not eps
        # X = U / size; where the norm divides, |U| = size.
        U_bar = (Y - long * along * X) / size
        return U_bar.mT if o.tall else U_bar, {
            "ns_a": a_bar,
            "ns_b": b_bar,
            "ns_c": c_bar,
            "eps": -(1 - long) * along / size,
        }


class _Orthogonalised(NamedTuple):
    result: Tensor
    norm: Tensor
    iterates: list[Tensor]  # X_0 … X_n, wide
    tall: bool  # U was transposed
