"""Adam and AdamW, as in `torch.optim.Adam` and `torch.optim.AdamW`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gimli_core.errors import unexpected
from gimli_core.notation import Tensors, Thunks
from gimli_core.optimizers.interface import hyperparameter
from gimli_core.optimizers.rules.parts import add_product, add_quotient, as_numbers, operand, root_of_number
from gimli_core.optimizers.rules.singular import inverse_root
from gimli_core.optimizers.tensorwise import ElementwiseOptimizer

__all__ = ["Adam", "AdamW"]


class _Moments(NamedTuple):
    g: Tensor  # the gradient after sign and coupled weight decay
    m: Tensor  # m', the first moment
    v: Tensor  # v', the second moment
    x: Tensor  # v', or its running maximum under amsgrad
    c1: Any  # bias corrections 1 - beta^t, numbers
    c2: Any


@dataclass(frozen=True, eq=False, init=False)
class Adam(ElementwiseOptimizer):
    """Adam (Kingma and Ba 2015), with amsgrad and coupled weight decay.

        g  = ±G + weight_decay·theta                    (minus when maximize)
        m' = beta1·m + (1 - beta1)·g
        v' = beta2·v + (1 - beta2)·g²
        x  = max(x, v') if amsgrad else v'
        theta' = theta - lr / (1 - beta1^t) · m' / (sqrt(x / (1 - beta2^t) + eps_root) + eps)

    Args:
        lr, eps, weight_decay, eps_root: numbers, or any form that a meta-parameter takes. eps_root is 0 in
            `torch.optim`; a positive one, as in optax and torchopt, bounds the slope of the root.
        betas: the pair (beta1, beta2), likewise. As meta-parameters they are named
            `"beta1"` and `"beta2"`, or `"betas"` for a pair of both.
        amsgrad, maximize: switches, not differentiable.

    Raises:
        ArgumentError: a number out of range.

    Cost: state 2|theta|, 3|theta| under amsgrad. Where max ties with v' its derivative goes
    half to each, as in torch.
    Source: `torch.optim.Adam`; proofs in appendix_proofs/adam.py and appendix_proofs/amsgrad.py,
    NOTE [derivative at zero].

    >>> import torch, gimli_core as gimli
    >>> adam = gimli.optimizers.Adam(lr=0.5, eps=0.25)
    >>> adam.jacobians({"w": torch.zeros(1)})["theta"]["G"]["w"]   # -lr / eps at G = 0
    tensor([-2.])
    """

    lr: Any = hyperparameter(1e-3)
    beta1: Any = hyperparameter(0.9, below=1.0)
    beta2: Any = hyperparameter(0.999, below=1.0)
    eps: Any = hyperparameter(1e-8)
    weight_decay: Any = hyperparameter(0.0)
    eps_root: Any = hyperparameter(0.0)
    amsgrad: bool = False
    maximize: bool = False

    decoupled: ClassVar[bool] = False  # the weight decay of AdamW
    default_weight_decay: ClassVar[float] = 0.0

    def __init__(
        self,
        lr: Any = 1e-3,
        betas: Any = (0.9, 0.999),
        eps: Any = 1e-8,
        weight_decay: Any = None,
        amsgrad: bool = False,
        *,
        eps_root: Any = 0.0,
        maximize: bool = False,
        groups: Any = None,
    ) -> None:
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise unexpected(
                f"{type(self).__name__}(betas=…)", "a pair (beta1, beta2)", repr(betas), "Give two numbers."
            )
        values = {
            "lr": lr,
            "beta1": betas[0],
            "beta2": betas[1],
            "eps": eps,
            "weight_decay": self.default_weight_decay if weight_decay is None else weight_decay,
            "eps_root": eps_root,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "groups": groups,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def slots(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq") + (("max_exp_avg_sq",) if self.amsgrad else ())

    def _moments(self, theta: Tensor, s: Tensors, G: Tensor, h: dict[str, Any], t: Any) -> _Moments:
        """`h` and `t` as `as_numbers` gives them."""
        g = -G if self.maximize else G
        if self.uses("weight_decay") and not self.decoupled:
            g = g + h["weight_decay"] * theta
        # torch.optim's own order of operations, so that forward results agree to the last bits. In-place
        # operations below act on fresh tensors only: a buffer saved is memory that need not be touched.
        rest = 1 - h["beta1"]
        m = torch.lerp(s["exp_avg"], g, rest.to(g) if isinstance(rest, Tensor) else rest)
        v = add_product(s["exp_avg_sq"] * operand(h["beta2"], g), 1 - h["beta2"], g, g)
        x = torch.maximum(s["max_exp_avg_sq"], v) if self.amsgrad else v
        return _Moments(g, m, v, x, 1 - h["beta1"] ** t, 1 - h["beta2"] ** t)

    def _step(self, theta: Tensor, s: Tensors, G: Tensor, h: dict[str, Tensor], t: Tensor) -> tuple[Tensor, Tensors]:
        h, t = as_numbers(h, t)
        _, m, v, x, c1, c2 = self._moments(theta, s, G, h, t)
        if self.uses("weight_decay") and self.decoupled:
            theta = theta * (1 - h["lr"] * h["weight_decay"])
        new = {"exp_avg": m, "exp_avg_sq": v}
        if self.amsgrad:
            new["max_exp_avg_sq"] = x
        # The root is left whole: verification may differentiate a step.
        if self.uses("eps_root"):
            d = (x / c2 + h["eps_root"]).sqrt() + h["eps"]
        else:
            d = (x.sqrt() / root_of_number(c2)).add_(operand(h["eps"], x))
        return add_quotient(theta, -(h["lr"] / c1), m, d), new

    def _pullback(
        self, theta: Tensor, s: Tensors, G: Tensor, h: dict[str, Tensor], t: Tensor, B: Tensor, S: Tensors
    ) -> tuple[Tensor, Tensor, Tensors, Thunks]:
        h, t = as_numbers(h, t)
        g, m, v, x, c1, c2 = self._moments(theta, s, G, h, t)
        by_root = self.uses("eps_root")
        root = (x / c2 + h["eps_root"]).sqrt() if by_root else x.sqrt()
        # Numbers go into one, as Kingma and Ba propose (end of section 2): with k = sqrt(c2), and 1 under eps_root,
        # theta' = theta - rate·m'/d, d = root + eps·k and rate = lr·k/c1.
        k = 1.0 if by_root else root_of_number(c2)
        lr, beta1, beta2, decay = h["lr"], h["beta1"], h["beta2"], h["weight_decay"]
        decays, rate, d = self.uses("weight_decay"), lr * k / c1, root + h["eps"] * k
        q = B / d
        u = q * m  # B times the normalised update m'/d
        m_bar = add_quotient(S["exp_avg"], -rate, B, d)
        w = u / d  # d_bar = rate·w
        inverse = inverse_root(root)
        half = rate / (2 * c2) if by_root else rate / 2  # x_bar = half·w/root
        S_j: Tensors = {}
        if self.amsgrad:
            x_bar = add_product(S["max_exp_avg_sq"], half, w, inverse)
            kept = (1 + torch.sign(s["max_exp_avg_sq"] - v)) / 2
            S_j["max_exp_avg_sq"] = x_bar * kept
            v_bar = S["exp_avg_sq"] + x_bar * (1 - kept)
        else:
            v_bar = add_product(S["exp_avg_sq"], half, w, inverse)
        g_bar = add_product(m_bar * operand(1 - beta1, g), 2 * (1 - beta2), g, v_bar)
        S_j["exp_avg"], S_j["exp_avg_sq"] = m_bar * operand(beta1, g), v_bar * operand(beta2, g)
        A: Thunks = {
            "lr": lambda: u * (-k / c1) - B * theta * decay if decays and self.decoupled else u * (-k / c1),
            "beta1": lambda: m_bar * (s["exp_avg"] - g) - u * (rate / c1 * t * beta1 ** (t - 1)),
            "beta2": lambda: (
                v_bar * (s["exp_avg_sq"] - g * g)
                + (w * inverse * x if by_root else w * root) * (half * t * beta2 ** (t - 1) / c2)
            ),
            "eps": lambda: w * (rate * k),
            "weight_decay": lambda: B * theta * -lr if self.decoupled else g_bar * theta,
        }
        if by_root:
            A["eps_root"] = lambda: w * inverse * (rate / 2)
        V = -g_bar if self.maximize else g_bar
        B_j = B
        if decays:
            B_j = B * (1 - lr * decay) if self.decoupled else B + decay * g_bar
        return V, B_j, S_j, A


@dataclass(frozen=True, eq=False, init=False)
class AdamW(Adam):
    """AdamW (Loshchilov and Hutter 2019): Adam with decoupled weight decay.

        theta' = theta·(1 - lr·weight_decay) - lr / (1 - beta1^t) · m' / (sqrt(x / (1 - beta2^t) + eps_root) + eps)

    with g = ±G, and m', v', x as in `Adam`; `weight_decay` is 1e-2 by default.

    Arguments, errors and cost as in `Adam`.
    Source: `torch.optim.AdamW`; proof in appendix_proofs/adamw.py, NOTE [derivative at zero].

    >>> import torch, gimli_core as gimli
    >>> adamw = gimli.optimizers.AdamW(lr=0.5, weight_decay=0.5)
    >>> adamw.jacobians({"w": torch.ones(1)})["theta"]["theta"]["w"]   # 1 - lr·weight_decay
    tensor([0.7500])
    """

    decoupled: ClassVar[bool] = True
    default_weight_decay: ClassVar[float] = 1e-2
