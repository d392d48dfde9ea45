"""One penalty a feature for logistic regression, on scikit-learn's sets: half to train on, half to be judged by.

ell = cross entropy + ½ Σ_d exp(φ_d) ‖θ_d‖²,   L = cross entropy on the other half
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.benchmarks.bilevel.problem import Bilevel, Tensors

SETS = ("breast_cancer", "digits", "wine")


def logistic(name: str, seed: int, steps: int = 100) -> Bilevel:
    from sklearn import datasets

    x, y = map(torch.as_tensor, getattr(datasets, f"load_{name}")(return_X_y=True))
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=draw)
    x, y = x[order].double(), y[order].long()
    half = len(x) // 2
    spread = x[:half].std(0)
    x = (x - x[:half].mean(0)) / torch.where(spread > 0, spread, 1)
    features, classes = x.shape[1], int(y.max()) + 1

    def val_loss(theta: Tensors, phi: Tensors, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(batch[0] @ theta["w"] + theta["b"], batch[1])

    def train_loss(theta: Tensors, phi: Tensors, batch: tuple[Tensor, Tensor]) -> Tensor:
        penalty = (phi["log_l2"].exp() * (theta["w"] ** 2).sum(1)).sum() / 2
        # The intercept's penalty is small and fixed: with none the minimum is flat along one direction.
        return val_loss(theta, phi, batch) + penalty + 0.01 * (theta["b"] ** 2).sum() / 2

    return Bilevel(
        f"logistic {name}",
        train_loss,
        val_loss,
        {"log_l2": torch.full((features,), -2.0)},
        lambda phi: {"w": torch.zeros(features, classes), "b": torch.zeros(classes)},
        (x[:half], y[:half]),
        (x[half:], y[half:]),
        steps,
        lr=0.3,
        outer_lr=1.0,
        convex=True,
    ).to(torch.float32)
