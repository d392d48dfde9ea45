"""What watches a run."""

from __future__ import annotations

import sys

import pytest
import torch

import gimli_core as gimli


def run(lr, watch, steps=30, memory=None):
    def loss(theta, phi, target):
        return ((theta["w"] - target) ** 2).sum() / 2

    problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=lr))
    batches = [torch.ones(2)] * steps
    theta_0, target = {"w": torch.zeros(2)}, torch.full((2,), 2.0)
    return gimli.meta_gradient(problem, theta_0, batches, target, watch=watch, memory=memory)


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


@pytest.mark.parametrize("installed", [True, False])
def test_progress_is_drawn_with_and_without_rich(installed, capsys, monkeypatch):
    if not installed:
        monkeypatch.setitem(sys.modules, "rich.console", None)  # importing it fails
    run(0.1, gimli.Progress(10, seconds=0.0), 10, gimli.memory.Checkpoint(3))
    out, said = capsys.readouterr()
    assert out == ""
    assert said.rstrip(" ").endswith("advanced 10/10, replayed 6, swept 10/10".ljust(78) + "\n")
    assert "left" in said
    assert said.count("\n") == 1
