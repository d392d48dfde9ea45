"""Which labels are wrong: a weight a training image, learned so that a clean set is classified well.

    ell = 1/N Σ_i σ(φ_i) · cross entropy_i + ½ λ‖θ‖²,   L = cross entropy on clean images

5000 images of MNIST, of which a share `noise` has another label than its own; 5000 clean ones to be judged by. An inner
step sees a fifth of them, in turn. Images are averaged over 2 × 2 pixels: 196 numbers make the table one of minutes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.benchmarks.bilevel.problem import Bilevel, Tensors
from tests.benchmarks.mnist_mlp import load

COUNT, CLASSES, L2, PARTS = 5000, 10, 0.02, 5
HIDDEN, LR = 16, 1.0


def hyper_cleaning(
    seed: int, data: Path, net: str = "linear", noise: float = 0.5, count: int = COUNT, steps: int = 100
) -> Bilevel:
    torch.manual_seed(seed)
    x, y = load(data / "mnist.npz", 2 * count)
    x = F.avg_pool2d(x.view(-1, 1, 28, 28), 2).flatten(1)
    wrong = torch.rand(count) < noise
    labels = torch.where(wrong, (y[:count] + torch.randint(1, CLASSES, (count,))) % CLASSES, y[:count])
    sizes = (x.shape[1], CLASSES) if net == "linear" else (x.shape[1], HIDDEN, CLASSES)
    theta_0 = {}
    for i in range(len(sizes) - 1):
        scale = 0.0 if net == "linear" else (1 / sizes[i]) ** 0.5
        theta_0[f"w{i}"], theta_0[f"b{i}"] = scale * torch.randn(sizes[i : i + 2]), torch.zeros(sizes[i + 1])

    def output(theta: Tensors, x: Tensor) -> Tensor:
        x = torch.addmm(theta["b0"], x, theta["w0"])
        return x if net == "linear" else torch.addmm(theta["b1"], torch.tanh(x), theta["w1"])

    def train_loss(theta: Tensors, phi: Tensors, batch: tuple[Tensor, Tensor, slice]) -> Tensor:
        losses = F.cross_entropy(output(theta, batch[0]), batch[1], reduction="none")
        penalty = torch.stack([v.square().sum() for v in theta.values()]).sum()
        return (phi["weights"][batch[2]].sigmoid() * losses).mean() + L2 * penalty / 2

    def val_loss(theta: Tensors, phi: Tensors, batch: tuple[Tensor, Tensor, slice]) -> Tensor:
        return F.cross_entropy(output(theta, batch[0]), batch[1])

    def part(data: tuple[Tensor, Tensor, slice], i: int) -> tuple[Tensor, Tensor, slice]:
        rows = slice(i * count // PARTS, (i + 1) * count // PARTS)
        return data[0][rows], data[1][rows], rows

    return Bilevel(
        f"cleaning {net} {noise}",
        train_loss,
        val_loss,
        {"weights": torch.zeros(count)},
        lambda phi: theta_0,
        (x[:count], labels, slice(None)),
        (x[count:], y[count:], slice(None)),
        steps,
        lr=LR,
        outer_lr=1.0,
        convex=net == "linear",
        parts=PARTS,
        part=part,
    ).to(torch.float32)
