"""Parts that rules have in common, each with its pullback: the direction of descent, weight decay, Adam's moments."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core.notation import Tensors, Thunks
from gimli_core.optimizers.counting import looked_at
from gimli_core.optimizers.interface import Optimizer
from gimli_core.optimizers.rules.singular import sqrt_slope

__all__ = [
    "CorrectedRoot",
    "MomentsPullback",
    "WeightDecay",
    "add_product",
    "add_quotient",
    "as_numbers",
    "corrected_root",
    "moments",
    "moments_pullback",
    "operand",
    "root_of_number",
]


def as_numbers(h: dict[str, Tensor], t: Tensor) -> tuple[dict[str, Any], Any]:
    """(h, t) with Python's floats in the place of tensors that are one number in float64, where nothing looks on.

    What a rule does with numbers alone (1 - beta, beta^t, lr / c1) are a dozen operations a step, each as dear as one
    on a small vector, and a fiftieth of that in Python. The bits are those of torch's own operations (but for the root:
    `root_of_number`). A step that is traced, vectorised over tasks or differentiated keeps its tensors.
    """
    if looked_at():
        return h, t
    float64 = torch.float64  # the condition stands here and not in a function: it is asked seven times, twice a step
    *numbers, of_t = [
        x.item() if x.dtype is float64 and not x.ndim and type(x) is Tensor and x.is_cpu and not x.requires_grad else x
        for x in (*h.values(), t)
    ]
    # beta^t of a tensor and a number is another operation in torch, with other bits, for some small t.
    return dict(zip(h, numbers, strict=True)), of_t if set(map(type, numbers)) <= {float} else t


def add_product(x: Tensor, number: Any, a: Tensor, b: Tensor) -> Tensor:
    """x + (number·a)·b: in one operation, with the bits of two, where the number is one of Python's. Any shape."""
    return torch.addcmul(x, a, b, value=number) if type(number) is float else torch.addcmul(x, a * number, b)


def add_quotient(x: Tensor, number: Any, a: Tensor, b: Tensor) -> Tensor:
    """x + (number·a) / b, likewise. Any shape."""
    return torch.addcdiv(x, a, b, value=number) if type(number) is float else torch.addcdiv(x, a * number, b)


def operand(number: Any, x: Tensor) -> Any:
    """A number of Python's that all steps share as a tensor that is made once: what is done with it and x, of any
    shape, takes half the time, with the same bits.
    """
    return _scalar(number, x.dtype) if type(number) is float and x.dtype in EXACT else number


EXACT = (torch.float32, torch.float64)  # in others torch computes with a number in a wider one


@functools.lru_cache(maxsize=256)
def _scalar(number: float, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # what is made within that mode can be in no graph later
        return torch.tensor(number, dtype=dtype, device="cpu")


def root_of_number(x: Any) -> Any:
    """sqrt(x) of a number as of a scalar tensor: torch's root is not always the nearest number, as Python's is."""
    return _root(x) if isinstance(x, float) else x.sqrt()


@functools.lru_cache(maxsize=4096)  # of the steps of one loop: they are the same in its sweep, and at the next call
def _root(x: float) -> float:
    return torch.tensor(x, dtype=torch.float64, device="cpu").sqrt().item()


class WeightDecay(Optimizer):
    """Mixed into a rule with `maximize`, `weight_decay` and, where that is decoupled, `lr`.

    g     = ±G + weight_decay·theta         coupled
    theta ← theta·(1 - lr·weight_decay)     decoupled
    """

    maximize: bool
    weight_decay: Any

    @property
    def decoupled(self) -> bool:
        """Whether the decay acts on theta itself instead of on g."""
        return False

    def _descent(self, theta: Tensor, G: Tensor, h: Tensors) -> Tensor:
        """g, the gradient after sign and coupled weight decay."""
        g = -G if self.maximize else G
        return g + h["weight_decay"] * theta if self.uses("weight_decay") and not self.decoupled else g

    def _decayed(self, theta: Tensor, h: Tensors) -> Tensor:
        """theta after decoupled weight decay."""
        return theta * (1 - h["lr"] * h["weight_decay"]) if self.uses("weight_decay") and self.decoupled else theta

    def _decay_pullback(self, theta: Tensor, h: Tensors, B: Tensor, g_bar: Tensor, A: Thunks) -> tuple[Tensor, Tensor]:
        """(V, B_j) from the adjoints of the decayed theta and of g; completes A."""
        V = -g_bar if self.maximize else g_bar
        if not self.decoupled:
            A["weight_decay"] = lambda: g_bar * theta
            return V, (B + h["weight_decay"] * g_bar if self.uses("weight_decay") else B)
        A["weight_decay"] = lambda: -h["lr"] * B * theta
        if not self.uses("weight_decay"):
            return V, B
        through_the_update = A["lr"]
        A["lr"] = lambda: through_the_update() - h["weight_decay"] * B * theta
        return V, B * (1 - h["lr"] * h["weight_decay"])


def moments(s: Tensors, g: Tensor, h: Tensors) -> tuple[Tensor, Tensor]:
    """m' = beta1·m + (1 - beta1)·g and v' = beta2·v + (1 - beta2)·g², in torch.optim's order of operations.

    All have the shape of one tensor of theta.
    """
    m = torch.lerp(s["exp_avg"], g, (1 - h["beta1"]).to(g))
    return m, torch.addcmul(s["exp_avg_sq"] * h["beta2"], (1 - h["beta2"]) * g, g)


class CorrectedRoot(NamedTuple):
    """rho = sqrt(v'/c2 + eps_root), and what its pullback needs."""

    rho: Tensor
    slope: Tensor  # ∂rho/∂(v'/c2), 0 at rho = 0
    by_c2: Tensor  # -c2·∂rho/∂c2


def corrected_root(rule: Optimizer, v: Tensor, c2: Tensor, h: Tensors) -> CorrectedRoot:
    """The root in Adam's denominator; a plain eps_root = 0 is left out.

    v has the shape of one tensor of theta, and so has the root; c2 is a scalar.
    """
    if not rule.uses("eps_root"):
        rho = (v / c2).sqrt()
        return CorrectedRoot(rho, sqrt_slope(rho), rho / 2)
    v_hat = v / c2
    rho = (v_hat + h["eps_root"]).sqrt()
    slope = sqrt_slope(rho)
    return CorrectedRoot(rho, slope, v_hat * slope)


class MomentsPullback(NamedTuple):
    """What the adjoints of m' and v' become."""

    g: Tensor
    S: Tensors
    beta1: Tensor
    beta2: Tensor


def moments_pullback(s: Tensors, g: Tensor, h: Tensors, m_bar: Tensor, v_bar: Tensor) -> MomentsPullback:
    """The adjoints of g, m, v, and of beta1 and beta2 by way of the moments.

    They have the shape of one tensor of theta.
    """
    return MomentsPullback(
        g=(1 - h["beta1"]) * m_bar + (2 * (1 - h["beta2"])) * g * v_bar,
        S={"exp_avg": h["beta1"] * m_bar, "exp_avg_sq": h["beta2"] * v_bar},
        beta1=m_bar * (s["exp_avg"] - g),
        beta2=v_bar * (s["exp_avg_sq"] - g * g),
    )
