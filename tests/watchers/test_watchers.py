"""What watches a run."""

from __future__ import annotations

import pytest
import torch

import gimli_core as gimli


def run(lr, watch, steps=30, memory=None, **options):
    def loss(theta, phi, target):
        return ((theta["w"] - target) ** 2).sum() / 2

    problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=lr))
    batches = [torch.ones(2)] * steps
    theta_0, target = {"w": torch.zeros(2)}, torch.full((2,), 2.0)
    return gimli.meta_gradient(problem, theta_0, batches, target, watch=watch, memory=memory, **options)


def test_norms_against_the_closed_form():
    norms = gimli.AdjointNorms()
    run(0.1, norms)
    first = norms.norms[30]
    for j, norm in norms.norms.items():
        assert norm == pytest.approx(first * 0.9 ** (30 - j), rel=1e-12)


@pytest.mark.parametrize(("lr", "what", "j"), [(0.9, "vanishes", 23), (11.0, "explodes", 23)])
def test_a_warning_with_the_step(lr, what, j):
    with pytest.warns(RuntimeWarning, match=rf"{what}: .* at j = {j},"):
        run(lr, gimli.AdjointNorms(ratio=3e6))


def test_progress_counts():
    lines = []
    progress = gimli.Progress(100, show=lines.append, seconds=0.0)
    run(0.1, progress, 100, gimli.memory.Checkpoint(5))
    assert (progress.advanced, progress.replayed, progress.swept) == (100, 217, 100)
    assert any("left" in line for line in lines)


def test_progress_is_drawn_over_itself(capsys):
    run(0.1, gimli.Progress(10, seconds=0.0), 10, gimli.memory.Checkpoint(3))
    out, said = capsys.readouterr()
    assert out == ""
    assert said.rstrip(" ").endswith("advanced 10/10, replayed 6, swept 10/10".ljust(78) + "\n")
    assert "s left of the unroll" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("weights", [None, [1.0] * 10])
def test_time_left_forwards_then_backwards(weights):
    lines = []
    run(0.1, gimli.Progress(10, show=lines.append, seconds=0.0), 10, val_weights=weights)
    forwards = [line for line in lines if "left of the unroll" in line]
    backwards = [line for line in lines if line.endswith("s left")]
    assert all("swept 0/10" in line for line in forwards)
    assert {line.split(",")[0] for line in forwards} == {f"advanced {j}/10" for j in range(1, 10)}
    assert {line.split(",")[2].strip() for line in backwards} == {f"swept {j}/10" for j in range(1, 10)}
    assert lines[-1] == "advanced 10/10, replayed 0, swept 10/10"


def test_progress_true_shows_it(capsys):
    def loss(theta, phi, target):
        return ((theta["w"] - target) ** 2).sum() / 2

    problem, lr = gimli.Problem(loss, loss, gimli.optimizers.SGD()), torch.tensor(0.1, requires_grad=True)
    arguments = problem, {"w": torch.zeros(2)}, [torch.ones(2)] * 3, torch.ones(2)
    expected = gimli.meta_gradient(*arguments, phi_opt={"lr": lr})
    assert capsys.readouterr().err == ""
    found = gimli.meta_gradient(*arguments, phi_opt={"lr": lr}, progress=True)
    assert "swept 3/3" in capsys.readouterr().err
    L = gimli.unroll(*arguments, phi_opt={"lr": lr}, progress=True)
    assert "swept 3/3" not in capsys.readouterr().err
    L.backward()
    assert "swept 3/3" in capsys.readouterr().err
    assert torch.equal(found.A_opt["lr"], expected.A_opt["lr"])
    assert torch.equal(lr.grad, expected.A_opt["lr"])
