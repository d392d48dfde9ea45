"""Oracle (c): problems whose meta-gradient has a formula.

Each case gives the arguments of `gimli.verify`, the exact values among them under `closed_form`. The formulas
are differentiated on paper and evaluated with NumPy in float64; no unroll and no autograd enters. Below, L is
the validation loss, g = dL/dtheta_J, and theta_J a function of the meta-parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gimli_core.optimizers import SGD, Adagrad, Adam, AdamW
from gimli_core.problem import Problem
from gimli_core.verification.data import regression_table

__all__ = ["CLOSED_FORMS", "Case"]

Array = NDArray[np.float64]


class Case(NamedTuple):
    """A bundled problem: `verify(**build())` should agree with every oracle."""

    about: str
    build: Callable[[], dict[str, Any]]


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
        Problem(bowl, distance, SGD()), J, g, {"lr": lr}, {"log_h": np.log(h), "c": CENTRE},
        A_opt={"lr": (-h * d_r).sum()}, A_loss={"log_h": -lr * h * d_r, "c": g * (1 - r**J)}, w=g * r**J,
    )  # fmt: skip


def quadratic_per_step() -> dict[str, Any]:
    """w_J - c = Π_j (1 - lr_j h) (w_0 - c), with a learning rate for each step."""
    lr, h, e = np.array([0.1, 0.4, 0.05, 0.3, 0.2]), CURVATURE, W_0 - CENTRE
    J, r = len(lr), 1 - np.outer(lr, h)
    R = r.prod(axis=0)
    others = np.stack([np.delete(r, j, axis=0).prod(axis=0) for j in range(J)])
    g = CENTRE + R * e - TARGET
    return _elementwise(
        Problem(bowl, distance, SGD()), J, g, {"lr": lr}, {"log_h": np.log(h), "c": CENTRE},
        A_opt={"lr": -others @ (h * g * e)}, A_loss={"log_h": -(lr @ others) * h * g * e, "c": g * (1 - R)}, w=g * R,
    )  # fmt: skip


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
        Problem(bowl, distance, SGD()), J, g, {"lr": lr, "momentum": mu}, {"log_h": np.log(h), "c": CENTRE},
        A_opt={"lr": g @ d_lr, "momentum": g @ d_mu}, A_loss={"log_h": g * d_h * h, "c": g * (1 - by_e)}, w=g * by_e,
    )  # fmt: skip
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


def ridge_regression() -> dict[str, Any]:
    """Gradient descent on |Xw - y|²/2n + alpha |w|²/2, in the eigenbasis of X'X/n with eigenvalues lambda.

    With a = lambda + alpha and k = 1 - lr a:  w_J = (1 - k^J)/a b + k^J w_0, where b = X'y/n.
    """
    J, lr, log_alpha = 20, 0.3, -1.0
    X, y = regression_table()
    (X, X_val), (y, y_val), alpha = np.split(X, [len(X) * 3 // 4]), np.split(y, [len(y) * 3 // 4]), np.exp(log_alpha)
    eigenvalues, Q = np.linalg.eigh(X.T @ X / len(X))
    w_0 = np.linspace(-0.5, 0.5, X.shape[1])
    b, w = Q.T @ (X.T @ y) / len(X), Q.T @ w_0
    a = eigenvalues + alpha
    k = 1 - lr * a
    error = X_val @ Q @ ((1 - k**J) / a * b + k**J * w) - y_val
    g = Q.T @ X_val.T @ error / len(X_val)
    d_k = J * k ** (J - 1) * (w - b / a)
    d_a = -lr * d_k - (1 - k**J) / a**2 * b

    def mean_square(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        return ((batch[0] @ theta["w"] - batch[1]) ** 2).mean() / 2

    def penalised(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        return mean_square(theta, phi, batch) + phi["log_alpha"].exp() * (theta["w"] ** 2).sum() / 2

    batch = torch.from_numpy(X), torch.from_numpy(y)
    return {
        "problem": Problem(penalised, mean_square, SGD()),
        "theta_0": {"w": torch.from_numpy(w_0)},
        "train_batches": lambda j: batch,
        "val_batch": (torch.from_numpy(X_val), torch.from_numpy(y_val)),
        "steps": J,
        "phi_opt": {"lr": lr},
        "phi_loss": {"log_alpha": torch.tensor(log_alpha, dtype=torch.float64)},
        "closed_form": {
            "val_loss": error @ error / 2 / len(error),
            "A_opt": {"lr": -g @ (a * d_k)},
            "A_loss": {"log_alpha": alpha * (g @ d_a)},
            "B_0": {"w": torch.from_numpy(Q @ (k**J * g))},
        },
    }


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
        Problem(slope, distance, AdamW()), J, g,
        {"lr": lr, "betas": (0.8, 0.9), "eps": eps, "weight_decay": decay}, {"g": s},
        A_opt={
            "lr": -decay * d_r.sum(), "betas": (0.0, 0.0), "eps": -(d_u * s / d**2).sum(),
            "weight_decay": (-lr * d_r + g * (1 - r**J) * u / decay**2).sum(),
        },
        A_loss={"g": d_u * eps / d**2}, w=g * r**J,
    )  # fmt: skip


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
        Problem(slope, distance, Adagrad()), J, g,
        {"lr": lr, "lr_decay": decay, "initial_accumulator_value": x, "eps": eps}, {"g": s},
        A_opt={
            "lr": -(g * step).sum(), "lr_decay": (g * lr * step * (t - 1) / slowed).sum(),
            "initial_accumulator_value": (g * d_d / (2 * root)).sum(), "eps": (g * d_d).sum(),
        },
        A_loss={"g": (g * (d_d * t * s / root - lr / slowed / d)).sum(axis=0)}, w=g,
    )  # fmt: skip


def zero_gradient_adam() -> dict[str, Any]:
    """One Adam step from w_0 = c, where G = 0 exactly: w_1 = w_0, and dw_1/dG = -lr / eps."""
    lr, eps, h, g = 0.1, 0.5, CURVATURE, CENTRE - TARGET
    O_0 = -lr / eps
    return _elementwise(
        Problem(bowl, distance, Adam()), 1, g,
        {"lr": lr, "betas": (0.9, 0.99), "eps": eps}, {"log_h": np.log(h), "c": CENTRE},
        A_opt={"lr": 0.0, "betas": (0.0, 0.0), "eps": 0.0}, A_loss={"log_h": 0 * g, "c": -g * O_0 * h},
        w=g * (1 + O_0 * h), w_0=CENTRE,
    )  # fmt: skip


def implicit_limit() -> dict[str, Any]:
    """J -> infinity: penalised logistic regression run to its optimum w*, where the implicit-function theorem gives
    dL/dphi = -g' H^-1 d(grad ell)/dphi. Gradient descent is within 1e-15 of w* long before J.
    """
    J, lr, log_alpha = 36, 1.0, -0.5
    X, y = regression_table(rows=40, columns=3)
    y, alpha = np.sign(y), np.exp(log_alpha)
    importance = 1 + 0.5 * np.cos(np.arange(len(y)))
    w = np.zeros(X.shape[1])
    for _ in range(20):  # Newton
        p = 1 / (1 + np.exp(y * (X @ w)))  # -d softplus(-z)/dz at z = y x'w
        gradient = -X.T @ (importance * p * y) / len(y) + alpha * w
        H = X.T @ (X * (importance * p * (1 - p))[:, None]) / len(y) + alpha * np.eye(len(w))
        w = w - np.linalg.solve(H, gradient)
    target = np.array([0.3, -0.2, 0.1])
    backward = -np.linalg.solve(H, w - target)

    def penalised(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        losses = torch.nn.functional.softplus(-batch[1] * (batch[0] @ theta["w"]))
        return (phi["importance"] * losses).mean() + phi["log_alpha"].exp() * (theta["w"] ** 2).sum() / 2

    batch = torch.from_numpy(X), torch.from_numpy(y)
    return {
        "problem": Problem(penalised, distance, SGD(lr=lr)),
        "theta_0": {"w": torch.zeros(3, dtype=torch.float64)},
        "train_batches": lambda j: batch,
        "val_batch": torch.from_numpy(target),
        "steps": J,
        "phi_loss": {
            "importance": torch.from_numpy(importance),
            "log_alpha": torch.tensor(log_alpha, dtype=torch.float64),
        },
        "closed_form": {
            "val_loss": (w - target) @ (w - target) / 2,
            "A_loss": {
                "log_alpha": alpha * (backward @ w),
                "importance": torch.from_numpy(-(X @ backward) * p * y / len(y)),
            },
        },
    }


def _elementwise(
    problem: Problem, J: int, g: Array, phi_opt: dict[str, Any], phi_loss: dict[str, Array], *,
    A_opt: dict[str, Any], A_loss: dict[str, Array], w: Array, w_0: Array = W_0,
) -> dict[str, Any]:  # fmt: skip
    """The arguments of `verify` for a problem on one vector w."""

    def tensors(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {name: tensors(branch) for name, branch in tree.items()}
        return torch.from_numpy(tree) if isinstance(tree, np.ndarray) else tree

    return {
        "problem": problem,
        "theta_0": {"w": torch.from_numpy(w_0)},
        "train_batches": lambda j: None,
        "val_batch": torch.from_numpy(TARGET),
        "steps": J,
        "phi_opt": tensors(phi_opt),
        "phi_loss": tensors(phi_loss),
        "closed_form": {
            "val_loss": g @ g / 2,
            "A_opt": tensors(A_opt),
            "A_loss": tensors(A_loss),
            "B_0": {"w": torch.from_numpy(w)},
        },
    }


CLOSED_FORMS = {
    "quadratic": Case("quadratic under SGD: lr, curvature, centre, init", quadratic_sgd),
    "quadratic-per-step": Case("the same with a learning rate for each step", quadratic_per_step),
    "quadratic-momentum": Case("quadratic under SGD with momentum, from a warm buffer", quadratic_momentum),
    "ridge": Case("ridge regression by gradient descent, on real data: lr, penalty, init", ridge_regression),
    "constant-adamw": Case("a constant gradient under AdamW: the betas do not matter", constant_gradient_adamw),
    "constant-adagrad": Case(
        "a constant gradient under Adagrad, initial accumulator included", constant_gradient_adagrad
    ),
    "zero-adam": Case("Adam where G = 0 exactly: slope -lr/eps", zero_gradient_adam),
    "implicit": Case("J -> infinity: the implicit-function gradient of penalised logistic regression", implicit_limit),
}
