"""The checkers, checked: a fault is planted in the engine's source, and must be caught and found where it is."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core import backward_sweep, forward_unroll
from gimli_core.errors import VerificationError
from gimli_core.memory import RetainGraphs, StoreStates
from gimli_core.meta_parameters.hyperparameters import Hyperparameters
from gimli_core.optimizers import SGD, Adagrad, Adam
from gimli_core.runs.adjoints import Adjoints
from gimli_core.runs.eager_steps import EagerSteps
from gimli_core.verification import Verdict, verify

STEPS = 5


def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], x: Tensor) -> Tensor:
    return ((torch.tanh(theta["U"] @ x) * theta["w"]).sum(0) - x.sum(0)).square().mean() + phi["log_l2"].exp() * theta[
        "w"
    ].square().sum()


def arguments(optimizer: gimli.optimizers.Optimizer) -> dict[str, Any]:
    learned = {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "eps": 0.1} if isinstance(optimizer, Adam) else {"lr": 0.1}
    return {
        "problem": gimli.Problem(loss, loss, optimizer),
        "theta_0": {"w": torch.randn(3, 1), "U": torch.randn(3, 2)},
        "train_batches": torch.randn(STEPS, 2, 4),
        "val_batch": torch.randn(2, 4),
        "steps": STEPS,
        "phi_opt": learned,
        "phi_loss": {"log_l2": torch.tensor(-1.0)},
    }


class Fault(NamedTuple):
    """In the source of `function`, `right` becomes `wrong`; `line`, `step` and `quantity` must be found first."""

    about: str
    optimizer: gimli.optimizers.Optimizer
    owner: Any
    function: str
    right: str
    wrong: str
    line: int
    step: int | None
    quantity: str


ADAM, MOMENTUM = Adam(), SGD(momentum=0.9)

# The steps are counted from j = 0, and t = j + 1.
FAULTS = [
    Fault("2.001 for 2", ADAM, Adam, "_pullback", "2 * (1 - beta2)", "2.001 * (1 - beta2)", 11, 4, "V_4 of w"),
    Fault(
        "2.001 for 2 at one step",
        ADAM,
        Adam,
        "_pullback",
        "2 * (1 - beta2)",
        "(2.001 if t == 3 else 2.0) * (1 - beta2)",
        11,
        2,
        "V_2 of w",
    ),
    Fault(
        "2.001 for 2, Adagrad", Adagrad(), Adagrad, "_pullback", "2 * g * x_bar", "2.001 * g * x_bar", 11, 4, "V_4 of w"
    ),
    Fault(
        "the state adjoint dropped",
        MOMENTUM,
        SGD,
        "_pullback",
        'h["momentum"] * b_bar}',
        "0 * b_bar}",
        14,
        4,
        "S_4[momentum_buffer] of w: the S pullback at step 4",
    ),
    Fault(
        "the state adjoint dropped at one step",
        MOMENTUM,
        SGD,
        "_pullback",
        'h["momentum"] * b_bar}',
        'h["momentum"] * b_bar * (t != 3)}',
        14,
        2,
        "S_2[momentum_buffer] of w: the S pullback at step 2",
    ),
    Fault(
        "a state adjoint not received",
        ADAM,
        Adam,
        "_pullback",
        'm_bar = add_quotient(S["exp_avg"], ',
        'm_bar = add_quotient(0 * S["exp_avg"], ',
        11,
        3,
        "V_3 of w",
    ),
    Fault(
        "the adjoint of one moment dropped",
        ADAM,
        Adam,
        "_pullback",
        "v_bar * operand(beta2, g)",
        "v_bar * 0",
        14,
        4,
        "S_4[exp_avg_sq] of w: the S pullback at step 4",
    ),
    Fault(
        "two steps swapped forwards",
        ADAM,
        forward_unroll,
        "inner_gradient",
        "inputs.inner_loss(j)",
        "inputs.inner_loss({1: 2, 2: 1}.get(j, j))",
        5,
        1,
        "G_1 of w",
    ),
    Fault(
        "two steps swapped in the sweep",
        MOMENTUM,
        RetainGraphs,
        "actions",
        "reversed(range(steps))",
        "(4, 3, 1, 2, 0)",
        11,
        1,
        "V_1 of w",
    ),
    Fault(
        "increments lost on their way into the sum",
        SGD(lr=0.1),
        Hyperparameters,
        "accumulate",
        "A_opt[number]",
        "-A_opt[number]",
        16,
        None,
        'A_opt["lr"]: every increment agrees, but not their sum',
    ),
    Fault(
        "a stale bias correction",
        ADAM,
        Adam,
        "_moments",
        '1 - h["beta1"] ** t',
        '1 - h["beta1"] ** (t - 1 + (t == 1))',
        6,
        1,
        "theta_2 of w",
    ),
    Fault(
        "a stale bias correction in the pullback",
        ADAM,
        Adam,
        "_pullback",
        "t * beta1 ** (t - 1)",
        "t * beta1 ** t",
        12,
        4,
        "A_opt increment of beta1 at step 4, for w",
    ),
    Fault(
        "a moment updated late",
        ADAM,
        Adam,
        "_step",
        '"exp_avg": m',
        '"exp_avg": s["exp_avg"]',
        6,
        0,
        "s_1[exp_avg] of w",
    ),
    Fault(
        "the curvature left out",
        MOMENTUM,
        backward_sweep,
        "step",
        "torch.add(direct, curvature[k])",
        "direct",
        14,
        4,
        "B_4 of w: the B pullback at step 4",
    ),
    Fault(
        "the mixed derivative doubled",
        MOMENTUM,
        backward_sweep,
        "step",
        '{"A_loss": mixed}',
        '{"A_loss": [v.mul_(2) for v in mixed.values()] and mixed}',
        13,
        4,
        "A_loss increment of log_l2 at step 4",
    ),
    Fault(
        "the explicit part forgotten",
        MOMENTUM,
        Adjoints,
        "add_validation",
        "in L.phi_loss.items()",
        "in {}.items()",
        8,
        5,
        "A_loss, explicit part of log_l2",
    ),
]


def plant(patch: pytest.MonkeyPatch, fault: Fault) -> None:
    function = getattr(fault.owner, fault.function)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(fault.right) >= 1, "the engine has changed: plant this fault anew"
    made = dict(function.__globals__)
    exec(
        compile("from __future__ import annotations\n" + source.replace(fault.right, fault.wrong), "planted", "exec"),
        made,
    )
    patch.setattr(fault.owner, fault.function, made[fault.function])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.about)
def test_fault_is_caught_and_localised(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    made = arguments(fault.optimizer)
    assert verify(**made, oracles=()).ok  # nothing is wrong without it
    plant(monkeypatch, fault)
    report = verify(**made, oracles=())
    assert not report.ok
    assert report.finding is not None
    assert (report.finding.line, report.finding.step, report.finding.quantity) == (
        fault.line,
        fault.step,
        fault.quantity,
    )
    with pytest.raises(VerificationError) as raised:
        report.assert_ok()
    assert f"first wrong: {fault.quantity} (line {fault.line}" in str(raised.value).splitlines()[0]


@pytest.mark.parametrize("about", ["2.001 for 2 at one step", "the state adjoint dropped at one step"])
def test_losses_along_the_way_do_not_mislead(about: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line 14 gives B_j without the gradient of L_val(theta_j), line 9 with it. Neither is taken for the other."""
    fault = next(fault for fault in FAULTS if fault.about == about)
    made = {**arguments(fault.optimizer), "val_weights": [0.1, 0.2, 0.0, 0.3, 0.4]}
    plant(monkeypatch, fault)
    finding = verify(**made, oracles=()).finding
    assert finding is not None
    assert (finding.line, finding.step, finding.quantity) == (fault.line, fault.step, fault.quantity)


def test_a_wrong_loss_along_the_way_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = "L.theta[k], alpha=w)", "L.theta[k], alpha=w * (1 + (j == 2)))"
    plant(monkeypatch, Fault("", MOMENTUM, Adjoints, "add_validation", right, wrong, 9, 2, "B_2 of w"))
    finding = verify(**arguments(MOMENTUM), val_weights=[0.1, 0.2, 0.1, 0.3, 0.4], oracles=()).finding
    assert finding is not None
    assert (finding.line, finding.step, finding.quantity) == (9, 2, "B_2 of w")


@pytest.mark.parametrize("oracle", ["finite_differences", "dense_chain"])
def test_every_oracle_catches_alone(oracle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = arguments(ADAM)
    plant(monkeypatch, FAULTS[0])
    checks = [c for c in verify(**made, oracles=(oracle,)).checks if c.family == oracle.replace("_", " ")]
    assert any(c.verdict is Verdict.DISAGREES for c in checks)


def test_a_faulty_replay_is_told_from_the_first_run(monkeypatch: pytest.MonkeyPatch) -> None:
    made = arguments(MOMENTUM)
    right, wrong = '"G": G_j.theta', '"G": {k: v.mul_(1.01) for k, v in G_j.theta.items()}'
    fault = Fault("", MOMENTUM, EagerSteps, "sweep", right, wrong, 5, 3, "G_3 of w when step 3 is replayed")
    plant(monkeypatch, fault)
    assert verify(**made, oracles=()).ok  # with retained graphs nothing is replayed
    finding = verify(**made, oracles=(), memory=StoreStates()).finding
    assert finding is not None
    assert (finding.line, finding.step, finding.quantity) == (5, 3, fault.quantity)
