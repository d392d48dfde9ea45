"""`gimli.verify` judges the very run that was asked for: of tasks, in chunks, resumed, on one vector, compiled."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core as gimli
from gimli_core import backward_sweep
from gimli_core.compiled import pure_steps, whole_run
from gimli_core.errors import ArgumentError
from gimli_core.memory import Checkpoint, RetainGraphs, StoreStates
from gimli_core.meta_parameters.hyperparameters import Hyperparameters
from gimli_core.optimizers import SGD, Adagrad, Adam
from gimli_core.runs import chunks, scheduled_run
from gimli_core.runs.journal import Journal
from gimli_core.transforms.one_vector import OneVector
from gimli_core.verification import Verdict, verify
from tests.compare import agree
from tests.problems import needs_compiler, network

T, J = 3, 3


def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    fit = torch.tanh(x @ theta["w"]) @ theta["v"] - y
    return fit.square().mean() * phi["m"] + phi["l2"].exp() * (theta["w"].square().sum() + theta["v"].square().sum())


def of_tasks(own: str = "", optimizer: Any = None, **more: Any) -> dict[str, Any]:
    """A call of T tasks that have the arguments named in `own` each for itself."""

    mine = own.split()
    lead = (T,) if "theta_0" in mine else ()
    theta_0 = {"w": 0.5 * torch.randn(*lead, 2, 3), "v": 0.5 * torch.randn(*lead, 3)}
    rate = gimli.per_task(torch.tensor([0.05, 0.1, 0.2])) if "phi_opt" in mine else 0.1
    factor = gimli.per_task(torch.tensor([1.2, 0.8, 1.0])) if "phi_loss" in mine else torch.tensor(1.2)
    made = [(torch.randn(T, 4, 2), torch.randn(T, 4)) for _ in range(J + 1)]
    return {
        "problem": gimli.Problem(loss, loss, optimizer or SGD(momentum=0.9)),
        "theta_0": gimli.per_task(theta_0) if "theta_0" in mine else theta_0,
        "train_batches": made[:-1],
        "val_batch": made[-1],
        "phi_opt": {"lr": rate},
        "phi_loss": {"m": factor, "l2": torch.tensor(-2.0)},
        "tasks": T,
        **more,
    }


OWN = [" ".join(names) for names in product(("", "theta_0"), ("", "phi_opt"), ("", "phi_loss"))]
RUNS: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum": {"tasks": gimli.Tasks(T, reduce="sum")},
    "chunks": {"tasks": gimli.Tasks(T, chunk=2)},
    "stored states, losses along the way": {"memory": StoreStates(), "val_weights": [0.1, 0.0, 0.3, 0.4]},
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("own", OWN, ids=lambda own: own.strip() or "shared")
def test_tasks_whatever_they_share(own: str, run: dict[str, Any]) -> None:
    oracles = ("autograd", "finite_differences", "dense_chain") if run == {} else ("dense_chain",)
    report = verify(**of_tasks(own, **run), oracles=oracles)
    report.assert_ok()
    assert {c.family for c in report.checks} == {"autograd", *(name.replace("_", " ") for name in oracles)}


@pytest.mark.parametrize("own", [False, True], ids=["shared", "per task"])
def test_tasks_from_a_warm_state(own: bool) -> None:
    lead = (T,) if own else ()
    slots = {"exp_avg": 0.1, "exp_avg_sq": 0.3}
    state = {
        "step": 2,
        **{
            k: {n: c * (1 + torch.rand(*lead, *shape)) for n, shape in (("w", (2, 3)), ("v", (3,)))}
            for k, c in slots.items()
        },
    }
    more = {"phi_opt": {"lr": {"w": gimli.per_task(torch.rand(T, J) / 5), "v": 0.1}, "betas": (0.8, 0.9)}}
    made = of_tasks(optimizer=Adam(), state_0=gimli.per_task(state) if own else state, **more)
    report = verify(**made)
    report.assert_ok()
    assert {c.name for c in report.checks if c.key[0] == "S_0"} == {f'S_0["{k}"]["{n}"]' for k in slots for n in "wv"}


def test_tasks_with_a_part_of_theta_held_constant() -> None:
    for own in ("", "theta_0"):
        made = of_tasks(own, optimizer=Adagrad())
        theta = made["theta_0"].value if own else made["theta_0"]
        theta["v"] = nn.Parameter(theta["v"], requires_grad=False)
        report = verify(**made)
        report.assert_ok()
        assert {c.key for c in report.checks if c.key[0] == "B_0"} == {("B_0", "w")}


def test_tasks_in_single_precision() -> None:
    def single(tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return tree.float()
        if isinstance(tree, dict):
            return {k: single(v) for k, v in tree.items()}
        return type(tree)(map(single, tree)) if isinstance(tree, (list, tuple)) else tree

    made = of_tasks("phi_opt")
    report = verify(
        **{k: single(v) if k in ("theta_0", "train_batches", "val_batch", "phi_loss") else v for k, v in made.items()},
        oracles=(),
    )
    report.assert_ok()
    assert any("oracles in float64" in note for note in report.notes)


@pytest.mark.parametrize("approximation", [gimli.FirstOrder(), gimli.Truncated(2)], ids=["first order", "truncated"])
@pytest.mark.parametrize("tasks", [None, T], ids=["one loop", "tasks"])
def test_an_approximation_is_judged_as_what_it_says(tasks: int | None, approximation: Any) -> None:
    made = of_tasks("phi_loss") if tasks else network()
    verify(**made, approximation=approximation).assert_ok()
    exact = gimli.meta_gradient(**made)
    claim = {"A_opt": {"lr": exact.A_opt["lr"]}}
    assert not verify(**made, approximation=approximation, claimed=claim).of("claimed").ok


def test_a_claim_about_tasks() -> None:
    made = of_tasks("theta_0")
    result = gimli.meta_gradient(**made)
    right = {"A_opt": result.A_opt, "B_0": result.B_0}
    verify(**made, claimed=right, closed_form={"val_loss": result.val_loss}, oracles=()).assert_ok()
    wrong = {"B_0": {"w": T * result.B_0["w"]}}  # of the sum, where the mean was asked for
    report = verify(**made, claimed=wrong, oracles=())
    assert report.of("engine").ok
    assert not report.of("claimed").ok


def test_random_numbers_under_tasks_are_refused() -> None:
    def noisy(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return loss(theta, phi, batch) + torch.rand(()) * theta["v"].sum()

    with pytest.raises(ArgumentError, match=r"tasks: expected losses that are functions of their arguments"):
        verify(**of_tasks(problem=gimli.Problem(noisy, loss, SGD(lr=0.1))))


# --- faults, planted where only one kind of run would show them ---


def test_a_wrong_factor_under_tasks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = backward_sweep.second_order_products

    def wrong(inputs: Any, point: Any, *rest: Any, **more: Any) -> Any:
        found = right(inputs, point, *rest, **more)
        factor = 1.001 if point.j == 1 else 1.0
        return found._replace(curvature={k: v * factor for k, v in found.curvature.items()})

    monkeypatch.setattr(backward_sweep, "second_order_products", wrong)
    for tasks in (T, gimli.Tasks(T, chunk=2)):
        finding = verify(**of_tasks("phi_loss", tasks=tasks), oracles=()).finding
        assert finding is not None
        assert (finding.line, finding.step) == (14, 1)
        assert finding.quantity.startswith("B_1 of")


@pytest.mark.parametrize("oracle", ["finite_differences", "dense_chain"])
def test_every_oracle_catches_a_mean_taken_for_a_sum(oracle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Hyperparameters.accumulate

    def wrong(self: Any, A_opt: Any, j: int, increments: Any) -> None:
        right(self, A_opt, j, {k: {n: v / T for n, v in by.items()} for k, by in increments.items()})

    monkeypatch.setattr(Hyperparameters, "accumulate", wrong)
    report = verify(**of_tasks(), oracles=(oracle,))
    checks = [c for c in report.checks if c.family == oracle.replace("_", " ")]
    assert [c.name for c in checks if c.verdict is Verdict.DISAGREES] == ['A_opt["lr"]']
    assert report.finding is not None
    assert report.finding.quantity == 'A_opt["lr"]: every increment agrees, but not their sum'


ELSEWHERE = "an eager run, line by line, has it right; what differs is how this one was run"


def test_a_fault_in_joining_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    right = chunks.joined
    monkeypatch.setattr(chunks, "joined", lambda results, call: right(results[:1] * len(results), call))
    verify(**of_tasks(), oracles=()).assert_ok()
    finding = verify(**of_tasks(tasks=gimli.Tasks(T, chunk=1)), oracles=()).finding
    assert finding is not None
    assert finding.quantity.endswith(ELSEWHERE)


@pytest.mark.parametrize("tasks", [None, T], ids=["one loop", "tasks"])
def test_a_fault_on_one_vector(tasks: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default run is on one vector of all small tensors, which the search line by line is not."""
    right = OneVector.by_tensor

    def wrong(self: OneVector, A: Any) -> Any:
        return {k: {name: 1.001 * v for name, v in by.items()} for k, by in right(self, A).items()}

    made = of_tasks() if tasks else network()
    verify(**made, oracles=()).assert_ok()
    monkeypatch.setattr(OneVector, "by_tensor", wrong)
    report = verify(**made, oracles=())
    assert not report.ok
    assert report.finding is not None
    assert report.finding.quantity == f'A_opt["lr"]: {ELSEWHERE}'


@pytest.mark.long
@needs_compiler
@pytest.mark.parametrize(("compile", "tasks"), [("steps", None), ("whole", T)], ids=["steps", "whole, of tasks"])
def test_a_fault_in_a_compiled_step(compile: str, tasks: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = pure_steps.lines_11_to_14

    def wrong(*arguments: Any) -> Any:
        B, S, A_opt, mixed = right(*arguments)
        return {k: 1.001 * v for k, v in B.items()}, S, A_opt, mixed

    def made() -> dict[str, Any]:  # a problem of its own: what is compiled is kept with it
        torch.manual_seed(1)
        return of_tasks() if tasks else network()

    verify(**made(), compile=compile, oracles=()).assert_ok()
    for module in (pure_steps, whole_run):
        monkeypatch.setattr(module, "lines_11_to_14", wrong)
    assert verify(**made(), compile=False, oracles=()).ok
    report = verify(**made(), compile=compile, oracles=())
    assert not report.ok
    assert report.finding is not None
    assert report.finding.quantity.endswith(ELSEWHERE)


# --- the run that is judged is the one that was asked for ---


class Killed(Exception):
    pass


@pytest.mark.parametrize("tasks", [None, T], ids=["one loop", "tasks"])
def test_a_resumed_run(tasks: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = of_tasks("phi_opt") if tasks else network()
    batches = made["train_batches"]
    call = {**made, "train_batches": batches.__getitem__ if tasks else batches, "steps": J, "resume": tmp_path / "run"}
    actions: list[bool] = []

    def due(self: Journal) -> bool:
        """After every action, until the run is killed within its sweep."""
        if len(actions) == J + 2:
            raise Killed
        actions.append(True)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "due", due)
        with pytest.raises(Killed):
            gimli.meta_gradient(**call)
    assert any((tmp_path / "run").iterdir())
    reached: list[Any] = []
    resume = scheduled_run.resume
    monkeypatch.setattr(scheduled_run, "resume", lambda run, journal: reached.append(run) or resume(run, journal))
    verify(**call, oracles=()).assert_ok()
    assert len(reached) == 1


@pytest.mark.parametrize("memory", [None, RetainGraphs(), StoreStates(), Checkpoint(1)], ids=str)
@pytest.mark.parametrize("own", ["", "theta_0 phi_opt phi_loss"], ids=["shared", "per task"])
def test_a_walk_of_tasks_ends_where_the_run_does(own: str, memory: Any) -> None:
    made = of_tasks(own, memory=memory)
    walk = gimli.step_through(**made)
    lines = [moment.line for moment in walk]
    assert lines[-1] == 16
    assert lines.count(14) == J
    agree(walk.result, gimli.meta_gradient(**made), rtol=1e-13)
