"""Own optimizers over tasks, in chunks, compiled and under every schedule: the same as one plain run a task."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers import DerivedOptimizer, hyperparameter
from tests.optimizers.rules import PlainAdam
from tests.problems import SCHEDULES

T, J = 3, 3

compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler"
)


@dataclass(frozen=True, eq=False)
class Curved(DerivedOptimizer):
    """theta' = theta - lr·b' / (1 + sinh(G)²) with b' = momentum·b + G: a derivative is taken inside of the step."""

    lr: Any = hyperparameter(0.1)
    momentum: Any = hyperparameter(0.5)

    def slots(self) -> tuple[str, ...]:
        return ("buffer",)

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        slope = torch.func.grad(lambda g: torch.cosh(g).sum())
        buffer = {k: hyper[k]["momentum"] * state["buffer"][k] + g for k, g in G.items()}
        moved = {k: w - hyper[k]["lr"] * buffer[k] / (1 + slope(G[k]) ** 2) for k, w in theta.items()}
        return moved, {"step": state["step"] + 1, "buffer": buffer}


def loss(theta: Tensors, phi: Tensors, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    fit = torch.tanh(x @ theta["w"]) @ theta["v"] + theta["c"] - y
    return fit.square().mean() + phi["l2"].exp() * theta["w"].square().sum()


def given(rule: DerivedOptimizer, phi_opt: dict[str, Any]) -> dict[str, Any]:
    made = [(torch.randn(T, 5, 3), torch.randn(T, 5)) for _ in range(J + 1)]
    return {
        "problem": gimli.Problem(loss, loss, rule),
        "theta_0": {"w": torch.randn(3, 4), "v": torch.randn(4), "c": torch.tensor(0.3)},
        "train_batches": made[:-1],
        "val_batch": made[-1],
        "phi_opt": phi_opt,
        "phi_loss": {"l2": torch.tensor(-2.0)},
    }


def of_one_task(made: dict[str, Any], t: int, **more: Any) -> gimli.MetaGradient:
    batches = [(x[t], y[t]) for x, y in made["train_batches"]]
    return gimli.meta_gradient(
        **{**made, "train_batches": batches, "val_batch": tuple(v[t] for v in made["val_batch"])}, **more
    )


def summed(results: list[gimli.MetaGradient], name: str) -> dict[str, Tensor]:
    return {k: torch.stack([getattr(r, name)[k] for r in results]).sum(0) for k in getattr(results[0], name)}


RULES: dict[str, tuple[DerivedOptimizer, dict[str, Any]]] = {
    "curved": (Curved(), {"lr": 0.1, "momentum": 0.6}),
    "curved, phi_loss alone": (Curved(), {}),
    "adam": (PlainAdam(eps=1e-2), {"lr": dict.fromkeys("wvc", 0.05), "beta2": 0.9}),
}
rules = pytest.mark.parametrize(("rule", "phi_opt"), RULES.values(), ids=RULES)


@rules
@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_tasks_are_the_sum_of_single_runs(rule: DerivedOptimizer, phi_opt: dict[str, Any], chunk: int | None) -> None:
    made = given(rule, phi_opt)
    alone = [of_one_task(made, t) for t in range(T)]
    together = gimli.meta_gradient(**made, tasks=gimli.Tasks(T, "sum", chunk))
    for name in ("A_loss", "B_0", *(("A_opt",) if phi_opt and not isinstance(phi_opt["lr"], dict) else ())):
        torch.testing.assert_close(getattr(together, name), summed(alone, name), rtol=1e-12, atol=1e-14)
    if isinstance(phi_opt.get("lr"), dict):
        rates = {k: sum(r.A_opt["lr"][k] for r in alone) for k in "wvc"}
        torch.testing.assert_close(together.A_opt["lr"], rates, rtol=1e-12, atol=1e-14)


def test_a_value_of_its_own_for_every_task() -> None:
    rates = torch.tensor([0.05, 0.1, 0.2])
    made = given(Curved(), {"lr": gimli.per_task(rates)})
    together = gimli.meta_gradient(**made, tasks=gimli.Tasks(T, "sum"))
    for t in range(T):
        alone = of_one_task({**made, "phi_opt": {"lr": rates[t]}}, t)
        torch.testing.assert_close(together.A_opt["lr"][t], alone.A_opt["lr"], rtol=1e-12, atol=1e-14)


@rules
@pytest.mark.parametrize("tasks", [None, T])
def test_every_schedule_gives_the_same_bits(rule: DerivedOptimizer, phi_opt: dict[str, Any], tasks: int | None) -> None:
    made = given(rule, phi_opt)

    def run(memory: Any) -> gimli.MetaGradient:
        if tasks is None:
            return of_one_task(made, 0, memory=memory)
        return gimli.meta_gradient(**made, tasks=tasks, memory=memory)

    first = run(SCHEDULES[0])
    for schedule in SCHEDULES[1:]:
        for name in ("A_opt", "A_loss", "B_0", "S_0"):
            torch.testing.assert_close(getattr(run(schedule), name), getattr(first, name), rtol=0, atol=0)


@compiler
@pytest.mark.long
@pytest.mark.parametrize("tasks", [None, T])
@pytest.mark.parametrize("kind", ["steps", "whole"])
def test_compiled_agrees_with_eager(tasks: int | None, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    rule, phi_opt = RULES["curved"]
    made = given(rule, phi_opt)

    def run(**more: Any) -> gimli.MetaGradient:
        if tasks is None:
            return of_one_task(made, 0, **more)
        return gimli.meta_gradient(**made, tasks=tasks, **more)

    compiled, eager = run(compile=kind), run(compile=False)
    said = "\n".join(record.message for record in caplog.records)
    assert "compiled in" in said
    assert "eager" not in said
    for name in ("A_opt", "A_loss", "B_0", "theta_J"):
        torch.testing.assert_close(getattr(compiled, name), getattr(eager, name), rtol=1e-10, atol=1e-13)
