"""A small problem with a learned start and a learned rate, for the tests of this room."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import gimli_core as gimli

TARGETS = [torch.tensor([1.0, -0.5], dtype=torch.float64) + 0.1 * j for j in range(8)]


def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], target: Tensor) -> Tensor:
    return torch.cosh(theta["w"] - target).sum()


def noisy(theta: dict[str, Tensor], phi: dict[str, Tensor], target: Tensor) -> Tensor:
    """With random numbers from the global generator."""
    return torch.cosh(theta["w"] - target + 0.1 * torch.randn(2, dtype=torch.float64)).sum()


def problem(optimizer: Any = None, train_loss: Any = loss) -> gimli.Problem:
    return gimli.Problem(train_loss, loss, optimizer or gimli.optimizers.Adam())


def leaves() -> dict[str, Tensor]:
    return {
        "w": torch.tensor([0.2, 0.3], dtype=torch.float64, requires_grad=True),
        "log_lr": torch.tensor(-2.0, dtype=torch.float64, requires_grad=True),
    }


def learned_rate(phi: dict[str, Tensor], targets: Any) -> dict[str, Any]:
    """The arguments of an inner loop from phi["w"], with rate exp(phi["log_lr"])."""
    return {
        "theta_0": {"w": phi["w"]},
        "train_batches": targets,
        "val_batch": targets[-1],
        "phi_opt": {"lr": phi["log_lr"].exp()},
    }


def sampler(seed: int = 0) -> gimli.TaskSampler:
    """Three targets for an outer step."""
    return gimli.TaskSampler(lambda generator: torch.randn(3, 2, generator=generator, dtype=torch.float64), seed=seed)


def evaluation(phi: dict[str, Tensor]) -> Any:
    """An evaluation that draws random numbers, and gets worse after some steps."""

    def evaluate(step: int) -> dict[str, float]:
        noise = torch.rand(7, dtype=torch.float64).sum().item()
        return {"noise": noise, "distance": abs(phi["w"].sum().item() - 0.3)}

    return evaluate


def outer_loop(steps: int = 8, phi: Any = None, **changed: Any) -> gimli.OuterLoop:
    """A loop with all that has a state: Adam, a scheduler, random numbers, early stopping."""
    phi = phi or leaves()
    estimator = changed.pop("estimator", None) or gimli.Unrolled(problem(train_loss=noisy), phi, learned_rate)
    meta_optimizer = torch.optim.Adam(phi.values(), lr=changed.pop("lr", 0.05))
    options = {
        "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(meta_optimizer, 20),
        "clip": 1.0,
        "evaluate": evaluation(phi),
        "evaluate_every": 2,
        "early_stopping": gimli.EarlyStopping(5, "distance"),
        **changed,
    }
    return gimli.OuterLoop(estimator, sampler(), meta_optimizer, steps=steps, **options)


def end_of(loop: gimli.OuterLoop) -> dict[str, Any]:
    """Run to the end: phi, every record without its time, and the random numbers that are left."""
    records = [{k: v for k, v in record.items() if k != "seconds"} for record in loop.run()]
    phi = {name: leaf.detach().clone() for name, leaf in loop.phi.items()}
    return {"phi": phi, "records": records, "generator": torch.get_rng_state(), "lr": loop.scheduler.get_last_lr()}


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """To the bit."""
    tensors = all(torch.equal(found["phi"][name], value) for name, value in expected["phi"].items())
    return (
        tensors and found["records"] == expected["records"] and torch.equal(found["generator"], expected["generator"])
    )
