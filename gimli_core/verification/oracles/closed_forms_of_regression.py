"""Oracle (c), regressions: problems whose meta-gradient has a formula in matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gimli_core.optimizers import SGD
from gimli_core.problem import Problem
from gimli_core.verification.data import regression_table
from gimli_core.verification.oracles.closed_forms_by_element import distance

__all__ = ["implicit_limit", "ridge_regression"]

Array = NDArray[np.float64]


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
