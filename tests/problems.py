"""The problems that tests share, and the one table of the contract: rules x problems x starts x schedules x dtypes.

A new optimizer, switch, problem or memory schedule inherits every test of the contract by adding a row here.
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gimli_core as gimli
from gimli_core.arguments.call import Call
from gimli_core.memory import Budget, Checkpoint, RetainGraphs, Schedule, StoreStates
from gimli_core.optimizers import (
    ASGD,
    LAMB,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Lion,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)
from gimli_core.verification.question import Question


class Rule(NamedTuple):
    """An optimizer with its switches, and a value for every continuous hyperparameter that it uses."""

    name: str
    optimizer: Optimizer
    learned: dict[str, float]
    flat: bool = False  # some derivatives are 0 by the rule's nature


_SGD = {"lr": 0.1, "weight_decay": 0.05}
_NESTEROV = {**_SGD, "momentum": 0.8}
_MOMENTUM = {**_NESTEROV, "dampening": 0.1}
_ADAGRAD = {"lr": 0.2, "lr_decay": 0.1, "weight_decay": 0.05, "initial_accumulator_value": 0.3, "eps": 1e-3}
_ADAFACTOR = {"lr": 0.3, "beta2_decay": -0.8, "eps1": 0.2, "eps2": 1e-3, "d": 1.2, "weight_decay": 0.05}
_NADAM = {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.05, "momentum_decay": 0.3}
_ASGD = {"lr": 0.05, "lambd": 0.1, "alpha": 0.75, "t0": 1.5, "weight_decay": 0.05}
_RPROP = {"lr": 0.02, "etaminus": 0.5, "etaplus": 1.2, "step_size_min": 1e-6, "step_size_max": 0.03}
_RMSPROP = {"lr": 0.05, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.05}
_ADAM = {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.05}

RULES = [
    Rule("sgd", SGD(), _SGD),
    Rule("sgd-maximize", SGD(maximize=True), _SGD),
    Rule("momentum", SGD(), _MOMENTUM),
    Rule("momentum-maximize", SGD(maximize=True), _MOMENTUM),
    Rule("nesterov", SGD(momentum=0.5, nesterov=True), _NESTEROV),
    Rule("nesterov-maximize", SGD(momentum=0.5, nesterov=True, maximize=True), _NESTEROV),
    Rule("adagrad", Adagrad(), _ADAGRAD),
    Rule("adagrad-maximize", Adagrad(maximize=True), _ADAGRAD),
    Rule("adam", Adam(), _ADAM),
    Rule("adam-maximize", Adam(maximize=True), _ADAM),
    Rule("amsgrad", Adam(amsgrad=True), _ADAM),
    Rule("amsgrad-maximize", Adam(amsgrad=True, maximize=True), _ADAM),
    Rule("adamw", AdamW(), _ADAM),
    Rule("adamw-maximize", AdamW(maximize=True), _ADAM),
    Rule("adamw-amsgrad", AdamW(amsgrad=True), _ADAM),
    Rule("adamw-amsgrad-maximize", AdamW(amsgrad=True, maximize=True), _ADAM),
    Rule("adam-eps-root", Adam(), {**_ADAM, "eps_root": 1e-2}),
    Rule("adamw-amsgrad-eps-root-maximize", AdamW(amsgrad=True, maximize=True), {**_ADAM, "eps_root": 1e-2}),
    Rule("nadam-eps-root", NAdam(), {**_NADAM, "eps_root": 1e-2}),
    Rule("lamb-eps-root", LAMB(), {**_ADAM, "eps_root": 1e-2}),
    Rule("nadam", NAdam(), _NADAM),
    Rule("nadam-decoupled-maximize", NAdam(decoupled_weight_decay=True, maximize=True), _NADAM),
    Rule("radam", RAdam(), _ADAM, flat=True),  # eps has no part before the sixth step; a warm start is beyond it
    Rule("radam-decoupled-maximize", RAdam(decoupled_weight_decay=True, maximize=True), _ADAM, flat=True),
    Rule("adamax", Adamax(), _ADAM),
    Rule("adamax-maximize", Adamax(maximize=True), _ADAM),
    Rule("adadelta", Adadelta(), {"lr": 0.8, "rho": 0.9, "eps": 1e-2, "weight_decay": 0.05}),
    Rule("rmsprop", RMSprop(), _RMSPROP),
    Rule("rmsprop-centered-momentum", RMSprop(centered=True), {**_RMSPROP, "momentum": 0.7}),
    Rule("asgd", ASGD(), _ASGD, flat=True),
    Rule("sparse-adam", SparseAdam(), {name: value for name, value in _ADAM.items() if name != "weight_decay"}),
    Rule("lamb", LAMB(), _ADAM),
    Rule("lamb-limited-maximize", LAMB(norm_limit=0.5, bias_correction=False, maximize=True), _ADAM),
    Rule("adafactor", Adafactor(), _ADAFACTOR, flat=True),  # of each pair under a max, one is idle
    Rule("adafactor-maximize", Adafactor(maximize=True), {**_ADAFACTOR, "eps2": 2.0}, flat=True),
    Rule("rprop", Rprop(), _RPROP, flat=True),
    Rule("lion", Lion(), {"lr": 0.02, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.05}, flat=True),
]

DISK = Path(tempfile.gettempdir()) / "gimli-core-tests"

# Slots that hold plain numbers, in float64 whatever theta's dtype.
NUMBERS = ("mu_product", "eta", "mu")

# The first is the one that the others must equal, bit for bit.
SCHEDULES: list[Schedule] = [
    RetainGraphs(),
    StoreStates(),
    Checkpoint(1),
    Checkpoint(2),
    Checkpoint(2, graphs=2),
    Checkpoint(1, gradients=True),
    Checkpoint(2, DISK, disk_snapshots=1, graphs=2, gradients=True),
    Checkpoint(1, DISK),
    Budget("1GB"),
]


@atexit.register
def _remove_disk() -> None:
    with contextlib.suppress(OSError):  # never made, or in use by another run of the tests
        DISK.rmdir()


STARTS = ["cold", "warm"]


def _random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def coupled_cubic(dtype: torch.dtype) -> dict[str, Any]:
    """A dense, varying Hessian; scalar, non-contiguous, expanded and empty tensors; losses along the way."""
    steps = 5
    theta_0 = {
        "scalar": torch.tensor(0.7, dtype=dtype),
        "matrix": _random(3, 2, dtype=dtype).t(),
        "expanded": torch.tensor([0.4], dtype=dtype).expand(3),
        "empty": torch.zeros(0, 2, dtype=dtype),
    }
    mixing = 0.3 * _random(10, 10, dtype=dtype)

    def flat(theta: dict[str, Tensor]) -> Tensor:
        return torch.cat([v.reshape(-1) for v in theta.values()])

    def train_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        x = mixing @ flat(theta)
        return (phi["scale"].exp() * (x - batch) ** 2).mean() + 0.1 * (x**3).sum() + phi["shift"] * x.sum() * batch[0]

    def val_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        return ((flat(theta) - batch) ** 2).sum() + phi["shift"] ** 2 * flat(theta)[0]

    return {
        "losses": (train_loss, val_loss),
        "theta_0": theta_0,
        "train_batches": _random(steps, 10, dtype=dtype),
        "val_batch": _random(10, dtype=dtype),
        "steps": steps,
        "phi_loss": {"scale": 0.3 * _random(10, dtype=dtype), "shift": torch.tensor(0.2, dtype=dtype)},
        "val_weights": [0.1, 0.0, 0.3, -0.2, 0.5, 0.4],
    }


def network_with_dropout(dtype: torch.dtype) -> dict[str, Any]:
    """A small network, a learned penalty for each tensor, random masks; the validation loss sees phi_loss too."""
    steps = 4
    theta_0 = {
        "W": 0.5 * _random(4, 3, dtype=dtype),
        "b": 0.1 * _random(4, dtype=dtype),
        "U": 0.5 * _random(2, 4, dtype=dtype),
    }

    def loss(theta: dict[str, Tensor], x: Tensor, y: Tensor, mask: Tensor | float) -> Tensor:
        hidden = torch.tanh(x @ theta["W"].t() + theta["b"]) * mask
        return torch.nn.functional.cross_entropy(hidden @ theta["U"].t(), y)

    def train_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        mask = (torch.rand(4) < 0.7).to(dtype)
        return loss(theta, *batch, mask) + sum(phi[k].exp() * (v**2).sum() for k, v in theta.items())

    def val_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return loss(theta, *batch, 0.7) + 0.01 * phi["W"]

    labels = torch.randint(0, 2, (steps + 1, 6))
    batches = [(_random(6, 3, dtype=dtype), y) for y in labels]
    return {
        "losses": (train_loss, val_loss),
        "theta_0": theta_0,
        "train_batches": batches[:-1].__getitem__,
        "val_batch": batches[-1],
        "steps": steps,
        "phi_loss": {k: torch.tensor(-2.0 - i, dtype=dtype) for i, k in enumerate(theta_0)},
    }


PROBLEMS: list[Callable[[torch.dtype], dict[str, Any]]] = [coupled_cubic, network_with_dropout]

every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.__name__)
every_schedule = pytest.mark.parametrize("memory", SCHEDULES, ids=str)
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler"
)


def arguments(
    rule: Rule, problem: Callable[[torch.dtype], dict[str, Any]], start: str, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    """The keyword arguments of `gimli.meta_gradient` for one row; the same numbers at each call."""
    torch.manual_seed(1)
    made = problem(dtype)
    train_loss, val_loss = made.pop("losses")
    phi_opt = {name: torch.tensor(value, dtype=torch.float64) for name, value in rule.learned.items()}
    if start == "warm":
        for name in starts(rule):
            phi_opt.pop(name, None)
        made["state_0"] = warm_state(rule, made["theta_0"])
    return {"problem": gimli.Problem(train_loss, val_loss, rule.optimizer), "phi_opt": phi_opt, **made}


def starts(rule: Rule) -> tuple[str, ...]:
    """Hyperparameters that only say where the state starts: a given state leaves them nothing to do."""
    return ("initial_accumulator_value", *(("lr",) if isinstance(rule.optimizer, Rprop) else ()))


def warm_state(rule: Rule, theta_0: dict[str, Tensor]) -> dict[str, Any]:
    """As after three steps: positive numbers in every slot, so that running maxima are kept in some places only."""
    bound = rule.optimizer.bind(rule.learned)
    hyper = {k: {n: torch.tensor(float(v)) for n, v in bound.hyperparameters().items()} for k in theta_0}
    cold = bound.initial_state(theta_0, hyper)
    low = {"square_avg": 0.2}  # above the square of any grad_avg
    return {"step": 3} | {
        slot: {k: low.get(slot, 0.05) + 0.3 * torch.rand(v.shape, dtype=torch.float64).to(v) for k, v in held.items()}
        for slot, held in cold.items()
        if slot != "step"
    }


def question(made: dict[str, Any]) -> Question:
    """The same row, as the oracles take it."""
    return Question(Call(**made))


SLOPE = 1.0  # changed by tests


def tanh_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    """Written in matrix products, for one task or several; it reads SLOPE besides its arguments."""
    x, y = batch
    fit = torch.tanh(x @ theta["w"]) @ theta["v"] * SLOPE + theta["c"] - y
    return fit.square().mean() + phi["l2"].exp() * torch.stack([v.square().sum() for v in theta.values()]).sum()


def tanh_network(optimizer: Optimizer, tasks: int | None = None, steps: int = 4, **more: Any) -> dict[str, Any]:
    """The keyword arguments of a call on `tanh_loss`, with numbers drawn anew."""
    lead = () if tasks is None else (tasks,)
    made = [(torch.randn(*lead, 6, 3), torch.randn(*lead, 6)) for _ in range(steps + 1)]
    return {
        "problem": gimli.Problem(tanh_loss, tanh_loss, optimizer),
        "theta_0": {"w": torch.randn(3, 4), "v": torch.randn(4), "c": torch.tensor(0.3)},
        "train_batches": made[:-1],
        "val_batch": made[-1],
        "phi_loss": {"l2": torch.tensor(-2.0)},
        **({} if tasks is None else {"tasks": tasks}),
        **more,
    }


REPLAYED_STEPS = 9


def replayed(
    memory: Any,
    rule: Optimizer | None = None,
    steps: int = REPLAYED_STEPS,
    val_weights: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """All that replay must restore: dropout, BatchNorm, per-step rates, losses along the way. Everything that a
    meta-gradient from fixed seeds returns, flat."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3))
    x, y = torch.randn(steps + 1, 8, 4), torch.randint(3, (steps + 1, 8))

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        out = torch.func.functional_call(net, theta, (batch[0],))
        return F.cross_entropy(out, batch[1]) + phi["l2"] * sum(v.square().sum() for v in theta.values())

    problem = gimli.Problem(loss, loss, rule or gimli.optimizers.Adam())
    result = gimli.meta_gradient(
        problem,
        {k: v.detach() for k, v in net.named_parameters()},
        lambda j: (x[j], y[j]),
        (x[-1], y[-1]),
        steps=steps,
        phi_opt={"lr": torch.linspace(0.01, 0.02, steps)},
        phi_loss={"l2": torch.tensor(0.01)},
        memory=memory,
        val_weights=val_weights,
        **options,
    )
    flat = {"L": result.val_loss, "lr": result.A_opt["lr"], "l2": result.A_loss["l2"], "losses": result.train_losses}
    flat |= {f"B.{k}": v for k, v in result.B_0.items()} | {f"theta.{k}": v for k, v in result.theta_J.items()}
    flat |= {f"S.{slot}.{k}": v for slot, held in result.S_0.items() for k, v in held.items()}
    return flat | {f"buffer.{k}": v for k, v in result.buffers_J.items()}


def network(steps: int = 4, names: tuple[str, str] = ("w", "b"), **changed: Any) -> dict[str, Any]:
    """A small regression under Adam with a learned weight decay: arguments of every entry of the engine."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 3, generator=generator), torch.randn(8, generator=generator)
    w, b = names

    def loss(theta: dict[str, torch.Tensor], phi: dict[str, torch.Tensor], batch: Any) -> torch.Tensor:
        fitted = torch.tanh(batch[0] @ theta[w] + theta[b])
        return ((fitted - batch[1]) ** 2).mean() + phi["decay"].exp() * (theta[w] ** 2).sum()

    arguments = {
        "problem": gimli.Problem(loss, loss, gimli.optimizers.Adam(lr=0.1)),
        "theta_0": {w: torch.randn(3, generator=generator), b: torch.zeros(())},
        "train_batches": lambda j: (x[j % 4 : j % 4 + 4], y[j % 4 : j % 4 + 4]),
        "val_batch": (x, y),
        "steps": steps,
        "phi_opt": {"lr": 0.1, "beta2": 0.99},
        "phi_loss": {"decay": torch.tensor(-2.0)},
    }
    return {**arguments, **changed}


def failing(at: int) -> dict[str, Any]:
    """`network`, of which step `at` has no batch."""
    arguments = network(steps=10)
    batches = arguments["train_batches"]

    def broken(j: int) -> Any:
        if j == at:
            raise RuntimeError("the <b>disk</b> is full")
        return batches(j)

    return {**arguments, "train_batches": broken, "check": False}


def two_tensors() -> dict[str, Tensor]:
    """Where `wells` starts from."""
    return {"w": torch.linspace(-1.0, 1.0, 6).reshape(3, 2), "b": torch.linspace(0.5, 2.0, 4)}


def wells(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
    """Convex, its minimum at phi["c"]; averages that an optimizer keeps in theta have no part in it."""
    weights = {k: v for k, v in theta.items() if not k.startswith("ema.")}
    return sum((torch.cosh(v - phi["c"]) * (n + 1)).sum() for n, v in enumerate(weights.values()))


def squares(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
    return sum((v**2).sum() for v in theta.values())
