"""Kernels sum in the order of memory: wherever a step is replayed from a copy, the copy lies as what was copied."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

import gimli_core as gimli
from gimli_core.layout import cloned, dense
from gimli_core.memory import Checkpoint, StoreStates
from gimli_core.memory.files import read_file, write_file
from tests.compare import assert_same
from tests.killing import until_through

SCHEDULES = {
    "states": lambda path: StoreStates(),
    "points": lambda path: Checkpoint(2),
    "gradients": lambda path: Checkpoint(2, gradients=True),
    "disk": lambda path: Checkpoint(2, disk=path),
}
LAYOUTS = {
    "every second column": lambda x: x[:, ::2],
    "every second row": lambda x: x[::2, :45],
    "one column for all": lambda x: x[:40, :1].expand(40, 45),
    "one row for all": lambda x: x[:1, :45].expand(40, 45),
    "transposed": lambda x: x[:45, :40].t(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_the_first_steps_leave_alone(layout, tmp_path):
    """theta_0 itself is in later points: with gaps its copies had other sums, and the loss was blamed for it."""
    torch.manual_seed(0)
    theta_0 = {"w": LAYOUTS[layout](torch.randn(80, 90)), "b": torch.ones(2)}

    def ell(theta, phi, used):
        return (theta["b"] ** 2).sum() + (theta["w"].sin().sum(0).tanh().sum() + theta["w"].sum().sin() if used else 0)

    problem = gimli.Problem(ell, ell, gimli.optimizers.SGD(lr=0.01))
    run = [problem, theta_0, [False, False, False, True, True], True]
    expected = gimli.meta_gradient(*run, compile=False)
    for schedule in SCHEDULES.values():
        assert_same(gimli.meta_gradient(*run, memory=schedule(tmp_path)), expected)


def test_gradients_that_are_slices_of_another(tmp_path):
    """What torch.cat hands back has gaps, what sum() does is expanded; a rule with norms saw other ones in a copy."""
    for seed in range(4):
        torch.manual_seed(seed)
        theta_0, X = {"a": torch.randn(37, 13), "b": torch.randn(37, 29), "c": torch.randn(33)}, torch.randn(42, 7)

        def ell(theta, phi, batch, X=X):
            return (torch.cat([theta["a"], theta["b"]], 1) @ X).tanh().square().mean() + theta["c"].sum().sin()

        rule = gimli.optimizers.ClipNorm(gimli.optimizers.SGD(lr=0.3, momentum=0.9), max_norm=0.1)
        run = [gimli.Problem(ell, ell, rule), theta_0, [None] * 9, None]
        expected = gimli.meta_gradient(*run, compile=False)
        for schedule in SCHEDULES.values():
            assert_same(gimli.meta_gradient(*run, memory=schedule(tmp_path)), expected)


def test_tasks_that_are_stopped_after_each_writing(tmp_path):
    """Weights that the tasks share are expanded over them in point 0, and lay otherwise when they were read again."""
    torch.manual_seed(1)
    net, x = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 1)), torch.randn(4, 3, 6, 3)

    def ell(theta, phi, batch):
        return functional_call(net, theta, (batch,)).square().mean() + (phi["c"] * theta["0.weight"]).square().sum()

    theta_0 = {k: v.detach() for k, v in net.named_parameters()}
    phi_loss = {"c": gimli.per_task(torch.tensor([0.3, 0.2, 0.1]))}
    problem = gimli.Problem(ell, ell, gimli.optimizers.NAdam(lr=0.05))

    def run(**more):
        return gimli.meta_gradient(problem, theta_0, list(x), x[0], phi_loss=phi_loss, tasks=3, **more)

    resumed = until_through(lambda: run(memory=Checkpoint(2), resume=tmp_path / "run"))
    assert_same(resumed, run(compile=False))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_copies_and_files_keep_a_layout(layout, tmp_path):
    x = dense(LAYOUTS[layout](torch.randn(80, 90)))
    tree = {"x": {"expanded": x.expand(3, *x.shape), "as it is": x, "one": x[0, 0], "none": x[:0]}}
    write_file(tmp_path / "file", tree, {})
    for again in (cloned(tree), read_file(tmp_path / "file")[0]):
        for name, of_copy in again["x"].items():
            assert torch.equal(of_copy, tree["x"][name])
            assert of_copy.stride() == tree["x"][name].stride() or not of_copy.numel()
            assert of_copy.data_ptr() != tree["x"][name].data_ptr() or not of_copy.numel()
