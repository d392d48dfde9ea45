"""Inner problems with known minima: ridge regression in closed form, and a network that is driven to its minimum."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.optimizers import SGD, Optimizer

Batch = tuple[Tensor, Tensor]


def ridge_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Batch) -> Tensor:
    """(1/2m) ||x w - y||² + (1/2) Σ_i exp(log_l2_i) w_i²."""
    x, y = batch
    return (x @ theta["w"] - y).square().mean() / 2 + (phi["log_l2"].exp() * theta["w"].square()).sum() / 2


def fit(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Batch) -> Tensor:
    """The validation loss: (1/2m) ||x w - y||², and an explicit part in phi."""
    x, y = batch
    return (x @ theta["w"] - y).square().mean() / 2 + 0.01 * phi["log_l2"].sum()


class Ridge(NamedTuple):
    """A ridge regression: its arguments, its minimum and the derivative of L_val there."""

    arguments: dict[str, Any]  # of gimli.implicit_gradient, with theta_star
    A: Tensor  # dL/dlog_l2
    v: Tensor  # H⁻¹ grad L_val
    H: Tensor


def ridge(n: int = 6, seed: int = 0, spread: float = 1.0, rule: Optimizer | None = None) -> Ridge:
    """Closed form: w = H⁻¹ x'y/m, H = x'x/m + diag(exp log_l2), dL/dlog_l2_i = -v_i exp(log_l2_i) w_i + 0.01."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    scale = torch.logspace(0, -spread, n)
    (x, y), (x_val, y_val) = ((drawn(3 * n, n) * scale, drawn(3 * n)) for _ in range(2))
    log_l2 = 0.5 * drawn(n) - 1
    H = x.T @ x / len(y) + torch.diag(log_l2.exp())
    w = torch.linalg.solve(H, x.T @ y / len(y))
    v = torch.linalg.solve(H, x_val.T @ (x_val @ w - y_val) / len(y_val))
    arguments = {
        "problem": gimli.Problem(ridge_loss, fit, rule or SGD(lr=0.1)),
        "theta_star": {"w": w},
        "train_batch": (x, y),
        "val_batch": (x_val, y_val),
        "phi_loss": {"log_l2": log_l2},
    }
    return Ridge(arguments, -v * log_l2.exp() * w + 0.01, v, H)


def ridges(T: int, spread: float = 1.0) -> tuple[dict[str, Any], list[Ridge]]:
    """T of them as tasks that share log_l2: the arguments, and each alone."""
    each = [ridge(seed=t) for t in range(T)]
    log_l2 = each[0].arguments["phi_loss"]["log_l2"]
    alone = []
    for t, one in enumerate(each):
        x, y = one.arguments["train_batch"]
        x = x * spread ** (t / max(T - 1, 1))  # each worse conditioned than the one before, where spread is not 1
        x_val, y_val = one.arguments["val_batch"]
        H = x.T @ x / len(y) + torch.diag(log_l2.exp())
        w = torch.linalg.solve(H, x.T @ y / len(y))
        v = torch.linalg.solve(H, x_val.T @ (x_val @ w - y_val) / len(y_val))
        arguments = {
            **one.arguments,
            "theta_star": {"w": w},
            "train_batch": (x, y),
            "phi_loss": {"log_l2": log_l2},
        }
        alone.append(Ridge(arguments, -v * log_l2.exp() * w + 0.01, v, H))

    def stacked(name: str) -> Batch:
        return tuple(torch.stack(parts) for parts in zip(*(one.arguments[name] for one in alone), strict=True))

    arguments = {
        **each[0].arguments,
        "theta_star": {"w": torch.stack([one.arguments["theta_star"]["w"] for one in alone])},
        "train_batch": stacked("train_batch"),
        "val_batch": stacked("val_batch"),
        "tasks": T,
    }
    return arguments, alone


def network_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Batch) -> Tensor:
    """A small network, with a weight on each example and a decay on each tensor: convex enough near its minimum."""
    x, y = batch
    out = torch.tanh(x @ theta["w"]) @ theta["v"]
    decay = torch.stack([(phi[f"log_{k}"].exp() * theta[k].square()).sum() for k in ("w", "v")]).sum()
    return (phi["weights"].exp() * (out - y).square()).mean() + decay


def network_fit(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Batch) -> Tensor:
    x, y = batch
    return (torch.tanh(x @ theta["w"]) @ theta["v"] - y).square().mean()


def network(rule: Optimizer | None = None) -> dict[str, Any]:
    """Arguments of `gimli.implicit_gradient`, at the minimum that Newton's method finds: mu = 0.07, kappa = 63."""
    torch.manual_seed(4)
    batch, val = [(torch.randn(8, 3), torch.randn(8)) for _ in range(2)]
    phi = {"weights": 0.3 * torch.randn(8), "log_w": torch.tensor(-3.0), "log_v": torch.tensor(-3.0)}
    theta = {"w": 0.5 * torch.randn(3, 2), "v": 0.5 * torch.randn(2)}
    return {
        "problem": gimli.Problem(network_loss, network_fit, rule or SGD(lr=0.1)),
        "theta_star": minimum(lambda theta: network_loss(theta, phi, batch), theta),
        "train_batch": batch,
        "val_batch": val,
        "phi_loss": phi,
    }


def minimum(loss: Any, theta: dict[str, Tensor]) -> dict[str, Tensor]:
    """By torch's L-BFGS and then Newton's method, to rounding."""
    leaves = {k: v.clone().requires_grad_() for k, v in theta.items()}
    optimizer = torch.optim.LBFGS(leaves.values(), max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = loss(leaves)
        value.backward()
        return value

    optimizer.step(closure)
    found = {k: v.detach() for k, v in leaves.items()}
    for _ in range(3):
        H, G = matrices(loss, found)
        step = torch.linalg.solve(H, G).split([v.numel() for v in found.values()])
        found = {k: v - s.reshape(v.shape) for (k, v), s in zip(found.items(), step, strict=True)}
    return found


def matrices(loss: Any, theta: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(Hessian, gradient) of a function of theta, dense, by torch.autograd.functional."""
    sizes = [v.numel() for v in theta.values()]

    def of_vector(vector: Tensor) -> Tensor:
        parts = vector.split(sizes)
        return loss({k: p.reshape(v.shape) for (k, v), p in zip(theta.items(), parts, strict=True)})

    vector = torch.cat([v.reshape(-1) for v in theta.values()])
    H = torch.autograd.functional.hessian(of_vector, vector)
    G = torch.autograd.functional.jacobian(of_vector, vector)
    return H, G
