"""Claims of implicit gradients: a peer's conjugate gradients with a scaled curvature product are found out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.implicit import CG
from gimli_core.verification import verify
from tests.compare import distance

N = 6


def quadratic(theta: dict[str, Tensor], phi: dict[str, Tensor], H: Tensor) -> Tensor:
    """w' H w / 2 - c·w, whose minimum is H⁻¹ c."""
    w = theta["w"]
    return w @ H @ w / 2 - phi["c"] @ w


def to_target(theta: dict[str, Tensor], phi: dict[str, Tensor], target: Tensor) -> Tensor:
    return (theta["w"] - target).square().sum() / 2


def question() -> dict[str, Any]:
    """Gradient descent on a 6 x 6 system of kappa = 4, to rounding."""
    generator = torch.Generator().manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(N, N, generator=generator))
    H = Q @ torch.diag(torch.linspace(0.5, 2.0, N)) @ Q.T
    c, target = torch.randn(N, generator=generator), torch.randn(N, generator=generator)
    return {
        "problem": gimli.Problem(quadratic, to_target, gimli.optimizers.SGD(lr=0.8)),
        "theta_0": {"w": torch.linalg.solve(H, c) + 0.1},
        "train_batches": lambda j: (H + H.T) / 2,
        "val_batch": target,
        "steps": 70,
        "phi_loss": {"c": c},
    }


def conjugate_gradients(H: Tensor, b: Tensor, scale: float) -> Tensor:
    """As betty has them: <p, Hp> is scaled by its `cg_alpha`, but the residual is updated with the unscaled product."""
    x, r = torch.zeros_like(b), b.clone()
    p = r.clone()
    for _ in range(N):
        Hp = H @ p
        alpha = (r @ r) / (scale * (p @ Hp))
        x, after = x + alpha * p, r - alpha * Hp
        p = after + (after @ after) / (r @ r) * p
        r = after
    return scale * x


def claim(made: dict[str, Any], scale: float) -> dict[str, Any]:
    """dL/dc = v = H⁻¹ grad L_val at the minimum, with v by the peer."""
    H = made["train_batches"](0)
    b = torch.linalg.solve(H, made["phi_loss"]["c"]) - made["val_batch"]
    return {"A_loss": {"c": conjugate_gradients(H, b, scale)}}


def test_without_a_scale_the_peer_is_right() -> None:
    made = question()
    report = verify(**made, claimed=claim(made, 1.0), oracles=(), tolerance=1e-9)
    report.assert_ok()
    assert report.of("claimed").entries == 1


@pytest.mark.parametrize("scale", [0.5, 0.1])
def test_a_scaled_product_of_the_peer_is_found(scale: float) -> None:
    made = question()
    report = verify(**made, claimed=claim(made, scale), oracles=(), tolerance=1e-9)
    assert not report.ok
    assert report.of("engine").ok
    assert {(c.subject, c.name) for c in report.disagreements} == {("claimed", 'A_loss["c"]')}
    assert all(c.error > 1 for c in report.disagreements)


def test_ours_passes_as_a_claim() -> None:
    made = question()
    H = made["train_batches"](0)
    star = {"w": torch.linalg.solve(H, made["phi_loss"]["c"])}
    result = gimli.implicit_gradient(
        made["problem"], star, H, made["val_batch"], phi_loss=made["phi_loss"], solver=CG(rtol=1e-12)
    )
    verify(**made, claimed={"A_loss": result.A_loss}, tolerance=1e-9, oracles=()).assert_ok()
    assert distance(result.A_loss["c"], claim(made, 1.0)["A_loss"]["c"]) < 1e-11
