"""What an implicit gradient says of itself: how far off it is, what it was solved with, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core as gimli
from gimli_core.errors import (
    ArgumentError,
    GimliError,
    NegativeCurvatureError,
    NotConvergedError,
    NotFiniteError,
    RequirementError,
)
from gimli_core.implicit import CG, MINRES, Dense, Neumann, Solver
from gimli_core.optimizers import SGD, AdamW
from tests.compare import distance
from tests.implicit.problems import fit, network, ridge, ridge_loss, ridges

KINDS = [CG(rtol=1e-8), MINRES(rtol=1e-8), Neumann(150), Dense()]
every_kind = pytest.mark.parametrize("solver", KINDS, ids=lambda s: type(s).__name__)


def length(tree: dict[str, Tensor]) -> float:
    return math.sqrt(sum(v.square().sum().item() for v in tree.values()))


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: a[k] - b[k] for k in a}


# --- the error bars --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [CG(rtol=1e-1), CG(rtol=1e-2), MINRES(rtol=1e-1), Neumann(5), Neumann(20)], ids=str)
def test_the_error_of_the_solve_is_that_of_the_result(solver: Solver) -> None:
    made = network(SGD(lr=0.2))
    exact = gimli.implicit_gradient(**made, solver=Dense())
    result = gimli.implicit_gradient(**made, solver=solver)
    error, bar = difference(result.A_loss, exact.A_loss), result.report.solve.A_loss
    assert length(error) <= 1.5 * length(bar)
    assert length(bar) <= 100 * length(error)
    assert list(bar) == list(result.A_loss)
    relative = length(error) / length(exact.A_loss)
    assert result.report.solve.relative == pytest.approx(length(bar) / length(result.A_loss), rel=1e-6)
    assert relative > 1e-6  # there was an error to be seen


@every_kind
@pytest.mark.parametrize("away", [1e-2, 1e-4, 1e-7])
def test_the_error_of_the_inner_loop_is_that_of_the_result(solver: Solver, away: float) -> None:
    """Moved from the minimum, the result changes by what the report says, to first order."""
    made = network(SGD(lr=0.4))
    exact = gimli.implicit_gradient(**{**made, "solver": Dense()})
    generator = torch.Generator().manual_seed(0)
    theta = {k: v + away * torch.randn(v.shape, generator=generator) for k, v in made["theta_star"].items()}
    solver = Neumann(400) if isinstance(solver, Neumann) else solver
    result = gimli.implicit_gradient(**{**made, "theta_star": theta}, solver=solver, inner_tolerance=math.inf)
    error, bar = difference(result.A_loss, exact.A_loss), result.report.inner.A_loss
    factor = 10 if isinstance(solver, Neumann) else 1.5  # that one only has the rule's contraction to go by
    assert length(error) / factor <= length(bar) <= factor * length(error)
    assert result.report.inner.relative > result.report.solve.relative
    moved = length(difference(theta, made["theta_star"]))
    assert moved / factor <= result.report.inner_step <= factor * moved
    assert ("run the inner loop longer" in str(result.report)) == (away > 1e-6)


def test_an_inner_loop_that_has_not_converged_is_refused_unless_allowed() -> None:
    made = network()
    theta = {k: v + 0.3 for k, v in made["theta_star"].items()}
    with pytest.raises(NotConvergedError, match=r"theta_star: expected a fixed point .* changes the result by \d+%"):
        gimli.implicit_gradient(**{**made, "theta_star": theta}, damping=1.0)
    result = gimli.implicit_gradient(**{**made, "theta_star": theta}, damping=1.0, inner_tolerance=math.inf)
    assert result.report.inner.relative > 0.1


@pytest.mark.parametrize("solver", KINDS, ids=lambda s: type(s).__name__)
def test_where_both_are_done_both_errors_are_rounding(solver: Solver) -> None:
    made = ridge(rule=SGD(lr=0.4))
    result = gimli.implicit_gradient(**made.arguments, solver=solver)
    assert result.report.solve.relative < 1e-6
    assert result.report.inner.relative < 1e-7
    assert "run the inner loop longer" not in str(result.report)


def test_tasks_have_numbers_of_their_own_and_a_bar_of_all() -> None:
    arguments, alone = ridges(3)
    arguments["theta_star"] = {"w": arguments["theta_star"]["w"] + torch.tensor([[0.0], [1e-5], [1e-3]])}
    report = gimli.implicit_gradient(**arguments, solver=CG(rtol=1e-10)).report
    for name in ("residual", "steps", "mu", "kappa", "inner_gradient", "inner_step"):
        assert getattr(report, name).shape == (3,), name
    assert report.inner_step[0] < 1e-12 < report.inner_step[1] < report.inner_step[2]
    for t, one in enumerate(alone):
        values = torch.linalg.eigvalsh(one.H)
        assert distance(report.kappa[t], values[-1] / values[0]) < 1e-6
        assert distance(report.mu[t], values[0]) < 1e-6


def test_the_report_reads_well() -> None:
    made = ridge()
    result = gimli.implicit_gradient(**made.arguments, damping=0.5)
    lines = str(result.report).splitlines()
    assert lines[0].startswith("error of the result: ")
    assert lines[1].startswith("CG(rtol=None, steps=1000), damping 0.5: ")
    assert "products with the Hessian in all, residual" in lines[1]
    assert lines[2].startswith("theta_star: ||grad ell|| = ")
    assert result.approximation == "damped: H + 0.5 I in place of H"
    assert repr(result).startswith("ImplicitGradient(val_loss=")
    assert "approximation='damped: H + 0.5 I in place of H'" in repr(result)


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [CG(rtol=1e-12), MINRES(rtol=1e-12), Dense()], ids=lambda s: type(s).__name__)
def test_damping_is_added_to_the_hessian(solver: Solver) -> None:
    made = ridge()
    result = gimli.implicit_gradient(**made.arguments, solver=solver, damping=0.3)
    w, phi = made.arguments["theta_star"]["w"], made.arguments["phi_loss"]["log_l2"]
    v = torch.linalg.solve(made.H + 0.3 * torch.eye(6), made.H @ made.v)
    assert distance(result.A_loss["log_l2"], -v * phi.exp() * w + 0.01) < 1e-10


@pytest.mark.parametrize("solver", [CG(), MINRES(), Dense()], ids=lambda s: type(s).__name__)
def test_in_float32_the_defaults_ask_for_no_more_than_it_has(solver: Solver) -> None:
    exact, made = gimli.implicit_gradient(**network(), solver=Dense()), network()
    single = {
        **made,
        "theta_star": {k: v.float() for k, v in made["theta_star"].items()},
        "train_batch": tuple(v.float() for v in made["train_batch"]),
        "val_batch": tuple(v.float() for v in made["val_batch"]),
        "phi_loss": {k: v.float() for k, v in made["phi_loss"].items()},
    }
    result = gimli.implicit_gradient(**single, solver=solver)
    for k, A in result.A_loss.items():
        assert A.dtype == torch.float32
        assert distance(A, exact.A_loss[k]) < 1e-2
    assert length(difference(result.A_loss, exact.A_loss)) < 2 * (
        length(result.report.solve.A_loss) + length(result.report.inner.A_loss)
    )


def test_warm_start_and_preconditioner_save_products_and_change_nothing() -> None:
    made = network()
    plain = gimli.implicit_gradient(**made, solver=CG(rtol=1e-8))
    warm = gimli.implicit_gradient(**made, solver=CG(rtol=1e-8), warm_start=plain.report.v)
    assert warm.report.steps < plain.report.steps / 2
    lu = gimli.implicit_gradient(**made, solver=Dense())
    inverse = {k: torch.ones_like(v) for k, v in made["theta_star"].items()}
    by_dict = gimli.implicit_gradient(**made, solver=CG(rtol=1e-8), preconditioner=inverse)
    by_function = gimli.implicit_gradient(**made, solver=CG(rtol=1e-8), preconditioner=lambda r: r)
    for k, A in lu.A_loss.items():
        for result in (plain, warm, by_dict, by_function):
            assert distance(result.A_loss[k], A) < 1e-6


def test_tensors_that_require_grad_are_taken_as_numbers_and_nothing_is_left_behind() -> None:
    made = ridge()
    arguments = dict(made.arguments)
    leaves = {"log_l2": arguments["phi_loss"]["log_l2"].clone().requires_grad_()}
    star = {"w": arguments["theta_star"]["w"].clone().requires_grad_()}
    before = torch.get_rng_state()
    result = gimli.implicit_gradient(**{**arguments, "phi_loss": leaves, "theta_star": star}, theta_0=star)
    assert torch.equal(before, torch.get_rng_state())
    assert leaves["log_l2"].grad is None
    assert not result.A_loss["log_l2"].requires_grad
    assert distance(result.A_loss["log_l2"], made.A) < 1e-5


def test_what_theta_0_holds_constant_is_held_constant() -> None:
    made = ridge()
    arguments = dict(made.arguments)

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return ridge_loss({"w": theta["w"] * theta["scale"]}, phi, batch)

    def val(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return fit({"w": theta["w"] * theta["scale"]}, phi, batch)

    arguments["problem"] = gimli.Problem(loss, val, SGD(lr=0.1))
    scale = torch.tensor(2.0)
    theta_0 = {"w": torch.zeros(6), "scale": nn.Parameter(scale, requires_grad=False)}
    arguments["theta_star"] = {"w": made.arguments["theta_star"]["w"] / 2, "scale": scale}
    result = gimli.implicit_gradient(**arguments, theta_0=theta_0)
    assert distance(result.A_loss["log_l2"], made.A) < 1e-5
    assert list(result.B_0) == ["w"]
    many, alone = ridges(2)
    many |= {"problem": arguments["problem"]}
    many["theta_star"] = {"w": many["theta_star"]["w"] / 2, "scale": scale}  # as a trajectory of tasks has it
    found = gimli.implicit_gradient(**many, theta_0=theta_0)
    assert distance(found.A_loss["log_l2"], (alone[0].A + alone[1].A) / 2) < 1e-5


def test_dropout_meets_the_same_mask_in_every_product() -> None:
    made = ridge()

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        x, y = batch
        keep = (torch.rand(len(y)) < 0.5).to(x)
        return ((x @ theta["w"] - y).square() * keep).mean() + (phi["log_l2"].exp() * theta["w"].square()).sum() / 2

    arguments = {**made.arguments, "problem": gimli.Problem(loss, fit, SGD(lr=0.1)), "inner_tolerance": math.inf}
    results = []
    for mean in ("reverse_over_reverse", "forward_over_reverse"):
        torch.manual_seed(5)
        results.append(gimli.implicit_gradient(**arguments, solver=Dense(), second_order=mean))
    assert distance(results[0].A_loss["log_l2"], results[1].A_loss["log_l2"]) < 1e-10


# --- refusals --------------------------------------------------------------------------------------------------------


def saddle(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
    return (phi["c"] * theta["a"].square()).sum() / 2 + (batch - theta["b"]).square().sum()


def saddle_problem(c: list[float]) -> dict[str, Any]:
    def val(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return (theta["a"] - 1).square().sum() + theta["b"].sum()

    return {
        "problem": gimli.Problem(saddle, val, SGD(lr=0.1)),
        "theta_star": {"a": torch.zeros(3), "b": torch.ones(2)},
        "train_batch": torch.ones(2),
        "val_batch": None,
        "phi_loss": {"c": torch.tensor(c)},
    }


@pytest.mark.parametrize("solver", [CG(), MINRES(), Dense()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("c", "least"), [([1.0, -0.25, 3.0], -0.25), ([1.0, 0.0, 3.0], 0.0)])
def test_negative_curvature_stops_with_a_direction_and_the_damping_that_cures_it(
    solver: Solver, c: list[float], least: float
) -> None:
    made = saddle_problem(c)
    with pytest.raises(NegativeCurvatureError, match="theta_star: expected a positive definite Hessian") as caught:
        gimli.implicit_gradient(**made, solver=solver)
    error = caught.value
    assert error.curvature == pytest.approx(least, abs=1e-9)
    assert abs(error.direction["a"][1].item()) == pytest.approx(1.0, abs=1e-6)
    assert error.direction["b"].abs().max() < 1e-6
    assert f"damping={error.damping:.2g}" in str(error)
    assert "gimli.meta_gradient" in str(error)
    cured = gimli.implicit_gradient(**made, solver=solver, damping=error.damping)
    assert cured.report.mu > 0


def test_minres_answers_at_a_saddle_if_told_to() -> None:
    made = saddle_problem([1.0, -0.25, 3.0])
    made["theta_star"] = {"a": torch.zeros(3), "b": torch.ones(2)}
    result = gimli.implicit_gradient(**made, solver=MINRES(rtol=1e-10, indefinite=True))
    assert distance(result.report.v["a"], -2 / made["phi_loss"]["c"]) < 1e-9


def test_the_task_is_named() -> None:
    made = saddle_problem([1.0, 0.5, 3.0])
    c = torch.tensor([[1.0, 0.5, 3.0], [1.0, 2.0, 3.0], [1.0, -0.5, 3.0]])
    made |= {
        "theta_star": {"a": torch.zeros(3, 3), "b": torch.ones(3, 2)},
        "train_batch": torch.ones(3, 2),
        "val_batch": torch.zeros(3),
        "phi_loss": {"c": gimli.per_task(c)},
        "tasks": 3,
    }
    with pytest.raises(NegativeCurvatureError, match="theta_star, task 2: ") as caught:
        gimli.implicit_gradient(**made)
    assert caught.value.direction["a"].shape == (3,)
    assert caught.value.curvature == pytest.approx(-0.5)


@pytest.mark.parametrize("solver", [CG(rtol=1e-10, steps=2), MINRES(rtol=1e-10, steps=2)], ids=str)
def test_a_solver_that_stops_short_says_to_unroll(solver: Solver) -> None:
    with pytest.raises(
        NotConvergedError, match=r"expected a residual of at most 1e-10 .* after 2 steps.*meta_gradient"
    ):
        gimli.implicit_gradient(**ridge().arguments, solver=solver)


def test_a_series_that_grows_says_so() -> None:
    with pytest.raises(NotConvergedError, match=r"Neumann\(terms=40\): .* The terms still grow: lower the rule's"):
        gimli.implicit_gradient(**ridge(rule=SGD(lr=5.0)).arguments, solver=Neumann(40))


def test_hyperparameters_of_the_optimizer_are_refused_with_the_reason() -> None:
    with pytest.raises(ArgumentError, match=r"phi_opt: .*hyperparameters is 0; got 'lr'\. Unroll the loop"):
        gimli.implicit_gradient(**ridge().arguments, phi_opt={"lr": torch.tensor(0.1)})  # type: ignore[arg-type]


def test_a_rule_that_moves_where_the_gradient_is_0_is_refused() -> None:
    made = ridge(rule=AdamW(lr=0.1, weight_decay=0.1))
    with pytest.raises(ArgumentError, match=r"optimizer: .* got AdamW, which moves 'w' there.*Neumann"):
        gimli.implicit_gradient(**made.arguments)


def bad_batch(_: Any) -> dict[str, Any]:
    x, y = ridge().arguments["val_batch"]
    return {"val_batch": (x, torch.full_like(y, math.inf))}


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"solver": CG}, ArgumentError, r"solver: expected one of gimli\.implicit: .* got the class CG\. Call it"),
        ({"solver": "cg"}, ArgumentError, r"solver: expected .* got 'cg'"),
        ({"damping": -1.0}, ArgumentError, r"damping: expected a number >= 0; got -1\.0"),
        ({"damping": math.nan}, ArgumentError, r"damping: expected a number >= 0; got nan"),
        ({"damping": 0.1, "solver": Neumann(3)}, ArgumentError, r"damping: expected 0 with Neumann"),
        ({"inner_tolerance": 0}, ArgumentError, r"inner_tolerance: expected a number > 0; got 0"),
        ({"phi_loss": None}, ArgumentError, r"phi_loss: expected something that the fixed point depends on; got none"),
        ({"theta_star": [torch.ones(6)]}, ArgumentError, r"theta_star: expected a dict .* got list"),
        ({"theta_star": {"w": torch.ones(6).int()}}, ArgumentError, r"theta_star\['w'\]: expected a dense floating"),
        ({"theta_0": {"v": torch.ones(6)}}, ArgumentError, r"theta_star: expected the names of theta_0, 'v'; got 'w'"),
        ({"tasks": gimli.Tasks(2, chunk=1)}, ArgumentError, r"tasks: expected no chunk="),
        ({"theta_star": {"w": torch.full((6,), math.nan)}}, ArgumentError, r"theta_star\['w'\]: expected finite v"),
        ({"tasks": 2}, ArgumentError, r"theta_star\['w'\]: expected a tensor with a leading dimension of 2 tasks"),
        ({"warm_start": {"v": torch.ones(6)}}, ArgumentError, r"warm_start: expected a tensor for each of 'w'; got"),
        ({"warm_start": {"w": torch.ones(5)}}, ArgumentError, r"warm_start\['w'\]: expected a tensor of shape \[6\]"),
        ({"warm_start": {"w": torch.ones(6)}, "solver": Dense()}, ArgumentError, r"warm_start: expected None, or CG"),
        ({"preconditioner": {"w": -torch.ones(6)}}, ArgumentError, r"preconditioner\['w'\]: expected finite num"),
        ({"preconditioner": {"w": torch.ones(6)}, "solver": MINRES()}, ArgumentError, r"preconditioner: .*CG as"),
        ({"second_order": "third"}, ArgumentError, r"second_order"),
    ],
)
def test_bad_input(changed: dict[str, Any], kind: type[GimliError], message: str) -> None:
    with pytest.raises(kind, match=message):
        gimli.implicit_gradient(**{**ridge().arguments, **changed})


def test_losses_that_are_not_finite_or_do_not_depend() -> None:
    made = ridge().arguments
    with pytest.raises(NotFiniteError, match="val_loss at theta_star: expected a finite loss and gradient"):
        gimli.implicit_gradient(**{**made, "val_batch": (made["val_batch"][0], torch.full((18,), math.inf))})
    with pytest.raises(RequirementError, match="IIIb fails: phi_loss 'unused'"):
        gimli.implicit_gradient(**{**made, "phi_loss": {**made["phi_loss"], "unused": torch.ones(2)}})

    def rooted(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return ridge_loss(theta, phi, batch) + (theta["w"] - theta["w"].detach()).abs().pow(1.5).sum()

    with pytest.raises(NotFiniteError, match="expected finite second derivatives"):
        gimli.implicit_gradient(**{**made, "problem": gimli.Problem(rooted, fit, SGD(lr=0.1)), "check": False})


def test_a_proximal_problem_needs_its_centre() -> None:
    made = dict(ridge().arguments)
    made["problem"] = gimli.proximal(made["problem"], 1.0)
    with pytest.raises(ArgumentError, match=r"theta_0: expected the centre of the proximal problem; got None"):
        gimli.implicit_gradient(**made)


def test_losses_may_return_more_and_take_j_but_one_number() -> None:
    made = ridge()

    def train_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any, j: Tensor) -> Any:
        return ridge_loss(theta, phi, batch), {"j": j}

    def val_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Any:
        return fit(theta, phi, batch), {"size": theta["w"].norm()}

    result = gimli.implicit_gradient(**{**made.arguments, "problem": gimli.Problem(train_loss, val_loss, SGD(lr=0.1))})
    assert distance(result.A_loss["log_l2"], made.A) < 1e-5
    assert result.val_aux["size"].shape == (1,)
    assert torch.equal(result.train_aux["j"], torch.zeros(1, dtype=torch.long))

    def two(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return torch.stack([fit(theta, phi, batch)] * 2)

    with pytest.raises(
        ArgumentError, match="val_loss: expected to return one number for an implicit gradient; got a vec"
    ):
        gimli.implicit_gradient(**{**made.arguments, "problem": gimli.Problem(ridge_loss, two, SGD(lr=0.1))})
