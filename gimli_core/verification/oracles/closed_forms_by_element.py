"""Oracle (c), one vector: problems whose meta-gradient has a formula for every element.

Below, L is the validation loss, g = dL/dtheta_J, and theta_J a function of the meta-parameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gimli_core.optimizers import SGD, Adagrad, Adam, AdamW
from gimli_core.problem import Problem
from gimli_core.trees import mapped

__all__ = [
    "constant_gradient_adagrad",
    "constant_gradient_adamw",
    "distance",
    "quadratic_momentum",
    "quadratic_per_step",
    "quadratic_sgd",
    "zero_gradient_adam",
]

Array = NDArray[np.float64]


# The common ground of the elementwise cases.
W_0, CENTRE, TARGET = np.array([1.0, -2.0, 0.5, 3.0]), np.array([0.3, 0.1, -0.4, 0.8]), np.array([-0.2, 0.5, 0.0, 1.0])
CURVATURE = np.array([0.5, 1.0, 2.0, 3.5])


def bowl(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
    """ell = Σ h (w - c)² / 2, with h = exp(log_h)."""
    return (phi["log_h"].exp() * (theta["w"] - phi["c"]) ** 2).sum() / 2


def slope(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
    """ell = Σ g w: the same gradient everywhere."""
    return (phi["g"] * theta["w"]).sum()


def distance(theta: dict[str, Tensor], phi: dict[str, Tensor], target: Tensor) -> Tensor:
    """L = |w - target|² / 2, so dL/dw = w - target."""
    return ((theta["w"] - target) ** 2).sum() / 2


def quadratic_sgd() -> dict[str, Any]:
    """w_J - c = (1 - lr h)^J (w_0 - c)."""
    J, lr, h, e = 7, 0.3, CURVATURE, W_0 - CENTRE
    r = 1 - lr * h
    g = CENTRE + r**J * e - TARGET
    d_r = g * J * r ** (J - 1) * e
    return _elementwise(
        Problem(bowl, distance, SGD()),
        J,
        g,
        {"lr": lr},
        {"log_h": np.log(h), "c": CENTRE},
        {
            "A_opt": {"lr": (-h * d_r).sum()},
            "A_loss": {"log_h": -lr * h * d_r, "c": g * (1 - r**J)},
            "B_0": {"w": g * r**J},
        },
    )


def quadratic_per_step() -> dict[str, Any]:
    """w_J - c = Π_j (1 - lr_j h) (w_0 - c), with a learning rate for each step."""
    lr, h, e = np.array([0.1, 0.4, 0.05, 0.3, 0.2]), CURVATURE, W_0 - CENTRE
    J, r = len(lr), 1 - np.outer(lr, h)
    R = r.prod(axis=0)
    others = np.stack([np.delete(r, j, axis=0).prod(axis=0) for j in range(J)])
    g = CENTRE + R * e - TARGET
    return _elementwise(
        Problem(bowl, distance, SGD()),
        J,
        g,
        {"lr": lr},
        {"log_h": np.log(h), "c": CENTRE},
        {
            "A_opt": {"lr": -others @ (h * g * e)},
            "A_loss": {"log_h": -(lr @ others) * h * g * e, "c": g * (1 - R)},
            "B_0": {"w": g * R},
        },
    )


def quadratic_momentum() -> dict[str, Any]:
    """(e, b) -> M (e, b) with e = w - c and a warm buffer b_0; M has trace 1 - lr h + mu and determinant mu.

    By Cayley-Hamilton M^J = p_J M - mu p_{J-1}, where p_n = (x^n - y^n) / (x - y) for the eigenvalues x, y, so
    e_J = p_J ((1 - lr h) e_0 - lr mu b_0) - mu p_{J-1} e_0.
    """
    J, lr, mu, h, e = 9, 0.2, 0.7, CURVATURE, W_0 - CENTRE
    b = np.array([0.4, -0.3, 0.2, 0.1])
    trace = 1 - lr * h + mu
    p, p_trace, p_det = _power_sum(J, trace, mu)
    q, q_trace, q_det = _power_sum(J - 1, trace, mu)
    first = (1 - lr * h) * e - lr * mu * b
    by_trace = p_trace * first - mu * q_trace * e
    by_det = p_det * first - mu * q_det * e
    by_e = p * (1 - lr * h) - mu * q
    g = CENTRE + p * first - mu * q * e - TARGET
    d_lr = -h * by_trace - p * (h * e + mu * b)
    d_mu = by_trace + by_det - p * lr * b - q * e
    d_h = -lr * by_trace - p * lr * e
    case = _elementwise(
        Problem(bowl, distance, SGD()),
        J,
        g,
        {"lr": lr, "momentum": mu},
        {"log_h": np.log(h), "c": CENTRE},
        {
            "A_opt": {"lr": g @ d_lr, "momentum": g @ d_mu},
            "A_loss": {"log_h": g * d_h * h, "c": g * (1 - by_e)},
            "B_0": {"w": g * by_e},
        },
    )
    case["state_0"] = {"step": 5, "momentum_buffer": {"w": torch.from_numpy(b)}}
    case["closed_form"]["S_0"] = {"momentum_buffer": {"w": torch.from_numpy(-g * lr * mu * p)}}
    return case


def _power_sum(n: int, trace: Array, det: float) -> tuple[Array, Array, Array]:
    """p_n = (x^n - y^n) / (x - y) for the roots of z² - trace z + det, and its derivatives in trace and det."""
    gap = np.sqrt(trace**2 - 4 * det + 0j)
    x, y = (trace + gap) / 2, (trace - gap) / 2
    p = (x**n - y**n) / gap
    # dx/dtrace = x / gap, dy/dtrace = -y / gap, dx/ddet = -1 / gap, dy/ddet = 1 / gap
    by_trace = n * (x**n + y**n) / gap**2 - p * trace / gap**2
    by_det = -n * (x ** (n - 1) + y ** (n - 1)) / gap**2 + 2 * p / gap**2
    return p.real, by_trace.real, by_det.real


def constant_gradient_adamw() -> dict[str, Any]:
    """m/(1 - beta1^t) = g and v/(1 - beta2^t) = g² at every step, whatever the betas: with u = g / (|g| + eps) and
    r = 1 - lr decay, w_J = r^J (w_0 + u / decay) - u / decay.
    """
    J, lr, eps, decay = 6, 0.1, 0.2, 0.3
    s = np.array([0.5, -1.0, 2.0, -0.1])  # the constant gradient
    d = np.abs(s) + eps
    u, r = s / d, 1 - lr * decay
    g = r**J * (W_0 + u / decay) - u / decay - TARGET
    d_r = g * J * r ** (J - 1) * (W_0 + u / decay)
    d_u = g * (r**J - 1) / decay
    return _elementwise(
        Problem(slope, distance, AdamW()),
        J,
        g,
        {"lr": lr, "betas": (0.8, 0.9), "eps": eps, "weight_decay": decay},
        {"g": s},
        {
            "A_opt": {
                "lr": -decay * d_r.sum(),
                "betas": (0.0, 0.0),
                "eps": -(d_u * s / d**2).sum(),
                "weight_decay": (-lr * d_r + g * (1 - r**J) * u / decay**2).sum(),
            },
            "A_loss": {"g": d_u * eps / d**2},
            "B_0": {"w": g * r**J},
        },
    )


def constant_gradient_adagrad() -> dict[str, Any]:
    """w_J = w_0 - Σ_t rate_t g / (sqrt(x_0 + t g²) + eps), with rate_t = lr / (1 + (t - 1) lr_decay)."""
    J, lr, decay, x, eps = 6, 0.4, 0.3, 0.5, 0.05
    s = np.array([0.5, -1.0, 2.0, -0.1])  # the constant gradient
    t = np.arange(1, J + 1)[:, None]
    slowed = 1 + (t - 1) * decay
    root = np.sqrt(x + t * s**2)
    d = root + eps
    step = s / d / slowed
    d_d = lr * step / d  # of w_J by each denominator
    g = W_0 - lr * step.sum(axis=0) - TARGET
    return _elementwise(
        Problem(slope, distance, Adagrad()),
        J,
        g,
        {"lr": lr, "lr_decay": decay, "initial_accumulator_value": x, "eps": eps},
        {"g": s},
        {
            "A_opt": {
                "lr": -(g * step).sum(),
                "lr_decay": (g * lr * step * (t - 1) / slowed).sum(),
                "initial_accumulator_value": (g * d_d / (2 * root)).sum(),
                "eps": (g * d_d).sum(),
            },
            "A_loss": {"g": (g * (d_d * t * s / root - lr / slowed / d)).sum(axis=0)},
            "B_0": {"w": g},
        },
    )


def zero_gradient_adam() -> dict[str, Any]:
    """One Adam step from w_0 = c, where G = 0 exactly: w_1 = w_0, and dw_1/dG = -lr / eps."""
    lr, eps, h, g = 0.1, 0.5, CURVATURE, CENTRE - TARGET
    O_0 = -lr / eps
    return _elementwise(
        Problem(bowl, distance, Adam()),
        1,
        g,
        {"lr": lr, "betas": (0.9, 0.99), "eps": eps},
        {"log_h": np.log(h), "c": CENTRE},
        {
            "A_opt": {"lr": 0.0, "betas": (0.0, 0.0), "eps": 0.0},
            "A_loss": {"log_h": 0 * g, "c": -g * O_0 * h},
            "B_0": {"w": g * (1 + O_0 * h)},
        },
        w_0=CENTRE,
    )


def _elementwise(
    problem: Problem,
    J: int,
    g: Array,
    phi_opt: dict[str, Any],
    phi_loss: dict[str, Array],
    closed_form: dict[str, Any],
    w_0: Array = W_0,
) -> dict[str, Any]:
    """The arguments of `verify` for a problem on one vector w."""

    def tensors(tree: Any) -> Any:
        return mapped(lambda leaf: torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf, tree)

    return {
        "problem": problem,
        "theta_0": {"w": torch.from_numpy(w_0)},
        "train_batches": lambda j: None,
        "val_batch": torch.from_numpy(TARGET),
        "steps": J,
        "phi_opt": tensors(phi_opt),
        "phi_loss": tensors(phi_loss),
        "closed_form": {"val_loss": g @ g / 2, **tensors(closed_form)},
    }
