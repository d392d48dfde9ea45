"""What a result can do by itself: move, be saved and read, be drawn, and say what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.notation import Tensors
from gimli_core.optimizers import Adam
from gimli_core.trees import tensors


def loss(theta: Tensors, phi: Tensors, batch: Tensor) -> Any:
    value = ((theta["w"] - batch) ** 2).sum() * phi["scale"]
    return value, {"seen": batch.sum(), "right": (theta["w"] > 0).sum()}


def result(**more: Any) -> gimli.MetaGradient:
    return gimli.meta_gradient(
        gimli.Problem(loss, loss, Adam()),
        {"w": torch.randn(3)},
        list(torch.randn(4, 3)),
        torch.randn(3),
        phi_opt={"betas": (0.8, 0.9), "lr": {"w": 0.1}},
        phi_loss={"scale": torch.tensor(0.7)},
        **more,
    )


def assert_all_equal(one: gimli.MetaGradient, other: gimli.MetaGradient) -> None:
    a, b = one.state_dict(), other.state_dict()
    assert list(a) == list(b)
    assert (a["approximation"], a["recurrence"]) == (b["approximation"], b["recurrence"])
    for x, y in zip(tensors(a), tensors(b), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


def test_to_moves_all_but_counts_and_integers() -> None:
    made = result()
    half = made.to(torch.float32)
    assert type(half) is gimli.MetaGradient
    assert half.theta_J["w"].dtype == half.A_opt["betas"][0].dtype == half.B_0["w"].dtype == torch.float32
    assert half.state_J["exp_avg"]["w"].dtype == torch.float32
    assert half.state_J["step"].dtype == torch.float64
    assert half.train_aux["right"].dtype == torch.int64
    assert isinstance(half.A_opt["betas"], tuple)
    there = made.to("meta")
    assert all(t.is_meta for t in tensors(there.state_dict()))
    assert_all_equal(made.to("cpu"), made)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("tasks", [False, True])
def test_a_saved_result_is_read_with_weights_only(tmp_path: Path, whole: bool, tasks: bool) -> None:
    made = result()
    if tasks:
        made = gimli.meta_gradient(
            gimli.Problem(loss, loss, Adam(lr=0.1)),
            {"w": torch.randn(3)},
            list(torch.randn(4, 2, 3)),
            torch.randn(2, 3),
            tasks=2,
            phi_loss={"scale": torch.tensor(0.7)},
        )
    torch.save(made if whole else made.state_dict(), tmp_path / "result.pt")
    read = torch.load(tmp_path / "result.pt", weights_only=True)
    read = read if whole else gimli.MetaGradient(**read)
    assert type(read) is gimli.MetaGradient
    assert repr(read) == repr(made)
    assert_all_equal(read, made)


def test_its_line_has_numbers() -> None:
    made = result()
    line = repr(made)
    assert f"val_loss={made.val_loss.item():.6g}, steps=4, last train_loss={made.train_losses[-1].item():.6g}" in line
    assert f"A_loss: {{scale: {made.A_loss['scale'].item():.4g}}}" in line
    assert f"|B_0|={made.B_0['w'].norm().item():.4g}" in line
    assert "\n" not in line
    rough = result(approximation=gimli.FirstOrder())
    assert "(not the exact gradient)" in repr(rough)
    ended = gimli.adapt(
        gimli.Problem(loss, loss, Adam(lr=0.1)),
        {"w": torch.randn(3)},
        list(torch.randn(2, 2, 3)),
        tasks=2,
        phi_loss={"scale": torch.tensor(0.7)},
    )
    assert repr(ended).startswith("Trajectory(val_loss=nan, steps=2, tasks=2, last train_loss=")


def test_it_draws_itself(tmp_path: Path) -> None:
    for made in (result(), result(steps=0), result(val_weights=[0.0, 0.5, 0.0, 0.0, 1.0])):
        figure = made.plot(tmp_path / "losses.png")
        assert (tmp_path / "losses.png").stat().st_size > 1000
        assert len(figure.axes[0].lines) == (2 if len(made.train_losses) else 1)
