"""The bundled cases: those with a closed form, and those that show what else the engine does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gimli_core.optimizers import SGD, Adagrad, Adam, AdamW
from gimli_core.problem import Problem
from gimli_core.verification.data import regression_table
from gimli_core.verification.oracles.closed_forms import CLOSED_FORMS, Case

__all__ = ["CASES"]


def _batches(count: int, rows: int = 16, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    X, y = regression_table(rows=rows * count)
    return [(a, b[:, None]) for a, b in zip(*(torch.from_numpy(v).to(dtype).split(rows) for v in (X, y)), strict=True)]


def _network(*layers: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The layers in a row, with weights drawn from their own seed."""
    network = nn.Sequential(*layers).to(dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)
    return network


def _regression(
    network: nn.Module, optimizer: Any, steps: int, dtype: torch.dtype = torch.float64, **more: Any
) -> dict[str, Any]:
    """The network on real data, with a learned L2 penalty for each of its tensors."""

    def val_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        predicted: Tensor = functional_call(network, theta, batch[0])
        return ((predicted - batch[1]) ** 2).mean()

    def train_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        return val_loss(theta, phi, batch) + torch.stack([phi[k].exp() * (v**2).sum() for k, v in theta.items()]).sum()

    *train, validation = _batches(steps + 1, dtype=dtype)
    theta_0 = dict(network.named_parameters())
    return {
        "problem": Problem(train_loss, val_loss, optimizer, modules=[network]),
        "theta_0": theta_0,
        "train_batches": train,
        "val_batch": validation,
        "steps": steps,
        "phi_loss": {k: torch.tensor(-3.0, dtype=dtype) for k in theta_0},
        **more,
    }


def small_network() -> dict[str, Any]:
    network = _network(nn.Linear(10, 4), nn.Tanh(), nn.Linear(4, 1))
    phi_opt = {
        "lr": {k: 0.05 for k, _ in network.named_parameters()},
        "betas": (0.9, 0.99),
        "eps": 1e-2,
        "weight_decay": 0.01,
    }
    return _regression(network, AdamW(amsgrad=True), 4, phi_opt=phi_opt)


def single_precision() -> dict[str, Any]:
    network = _network(nn.Linear(10, 4), nn.Tanh(), nn.Linear(4, 1), dtype=torch.float32)
    return _regression(network, Adam(eps=1e-2), 4, torch.float32, phi_opt={"lr": 0.05})


def per_element_and_step() -> dict[str, Any]:
    network = _network(nn.Linear(10, 2), nn.Tanh(), nn.Linear(2, 1))
    rates = {
        k: torch.linspace(0.05, 0.2, 3 * v.numel(), dtype=torch.float64).reshape(3, *v.shape)
        for k, v in network.named_parameters()
    }
    momentum = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)
    return _regression(network, SGD(nesterov=True, momentum=0.9), 3, phi_opt={"lr": rates, "momentum": momentum})


def along_the_way() -> dict[str, Any]:
    network = _network(nn.Linear(10, 3), nn.Tanh(), nn.Linear(3, 1))
    weights = [0.1, 0.2, 0.0, 0.3, 0.4]
    return _regression(
        network, SGD(momentum=0.9, dampening=0.1), 4, phi_opt={"lr": 0.1, "dampening": 0.1}, val_weights=weights
    )


def warm_adam() -> dict[str, Any]:
    network = _network(nn.Linear(10, 3), nn.Tanh(), nn.Linear(3, 1))
    theta_0 = dict(network.named_parameters())

    def waves(size: float) -> dict[str, Tensor]:
        return {k: size * torch.arange(1.0, p.numel() + 1).double().cos().reshape(p.shape) for k, p in theta_0.items()}

    state = {"step": 7, "exp_avg": waves(0.1), "exp_avg_sq": {k: x**2 for k, x in waves(0.3).items()}}
    return _regression(network, Adam(), 3, phi_opt={"lr": 0.05, "betas": (0.9, 0.99)}, state_0=state)


def dead_unit() -> dict[str, Any]:
    """A ReLU that never fires: its weights have G = 0 exactly, at every step. Autograd gives NaN."""
    network = _network(nn.Linear(10, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        network[0].bias[1] = -50.0  # type: ignore[index]

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        predicted: Tensor = functional_call(network, theta, batch[0])
        return (phi["scale"] * (predicted - batch[1]) ** 2).mean()

    *train, validation = _batches(4)
    return {
        "problem": Problem(loss, loss, Adam(), modules=[network]),
        "theta_0": dict(network.named_parameters()),
        "train_batches": train,
        "val_batch": validation,
        "steps": 3,
        "phi_opt": {"lr": 0.01, "betas": (0.9, 0.99), "eps": 0.1},
        "phi_loss": {"scale": torch.ones((), dtype=torch.float64)},
    }


def unused_embedding() -> dict[str, Any]:
    """Words that no batch holds have G = 0; the accumulator starts at 0."""
    used = [torch.tensor([0, 1, 1, 3]), torch.tensor([3, 0, 0, 1])]
    goal = torch.linspace(-1, 1, 6, dtype=torch.float64)

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], words: Tensor) -> Tensor:
        mean = nn.functional.embedding(words, theta["table"]).mean(dim=0)
        return (phi["stretch"] * (mean[:, None] - goal) ** 2).sum()

    table = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(5, 2).sin()
    return {
        "problem": Problem(loss, loss, Adagrad()),
        "theta_0": {"table": table},
        "train_batches": lambda j: used[j % 2],
        "val_batch": torch.tensor([0, 2, 4]),
        "steps": 3,
        "phi_opt": {"lr": 0.1, "eps": 0.1},
        "phi_loss": {"stretch": torch.ones(6, dtype=torch.float64)},
    }


def noisy_network() -> dict[str, Any]:
    """BatchNorm in training mode and dropout: buffers and random numbers."""
    network = _network(nn.Linear(10, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 1))
    return _regression(network, SGD(), 3, phi_opt={"lr": 0.1})


CASES = {
    **CLOSED_FORMS,
    "network": Case(
        "real-data network, AdamW with amsgrad: lr and L2 for each tensor, betas, eps, decay", small_network
    ),
    "float32": Case("the same in float32, Adam", single_precision),
    "per-element-step": Case(
        "learning rates for each element and step, Nesterov momentum for each step", per_element_and_step
    ),
    "along-the-way": Case("validation losses along the way, dampened momentum", along_the_way),
    "warm-state": Case("Adam from a warm state, differentiated", warm_adam),
    "dead-unit": Case("G = 0 in a dead unit under Adam, where autograd gives NaN", dead_unit),
    "unused-embedding": Case("G = 0 in unused rows of an embedding under Adagrad", unused_embedding),
    "modules": Case("BatchNorm and dropout: buffers and random numbers restored", noisy_network),
}
