"""Implicit gradients against closed forms, dense matrices, other solvers, and unrolling to convergence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.implicit import CG, MINRES, Dense, Neumann, Solver
from gimli_core.optimizers import SGD, Adam, AdamW, NAdam, RMSprop
from tests.compare import distance
from tests.implicit.problems import fit, matrices, network, network_fit, network_loss, ridge, ridge_loss, ridges

KRYLOV = [CG(rtol=1e-12), MINRES(rtol=1e-12)]
EXACT = [*KRYLOV, Dense()]
every_solver = pytest.mark.parametrize("solver", [*EXACT, Neumann(350)], ids=lambda s: type(s).__name__)


@every_solver
def test_ridge_in_closed_form(solver: Solver) -> None:
    made = ridge(rule=SGD(lr=0.4))
    result = gimli.implicit_gradient(**made.arguments, solver=solver)
    assert distance(result.A_loss["log_l2"], made.A) < 1e-10
    assert distance(result.report.v["w"], made.v) < 1e-10
    assert isinstance(result, gimli.MetaGradient)
    assert result.A_opt == {}
    assert result.S_0 == {}
    assert torch.equal(result.B_0["w"], torch.zeros(6))  # where the loop began is forgotten
    assert torch.equal(
        result.val_loss, fit({"w": result.theta_J["w"]}, made.arguments["phi_loss"], made.arguments["val_batch"])
    )


@pytest.mark.parametrize("solver", EXACT, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("second_order", ["reverse_over_reverse", "forward_over_reverse", "reverse_over_forward"])
def test_a_network_by_dense_matrices(solver: Solver, second_order: str) -> None:
    made = network()
    result = gimli.implicit_gradient(**made, solver=solver, second_order=second_order)
    theta, phi, batch = made["theta_star"], made["phi_loss"], made["train_batch"]
    H, _ = matrices(lambda theta: network_loss(theta, phi, batch), theta)
    _, b = matrices(lambda theta: network_fit(theta, phi, made["val_batch"]), theta)
    v = torch.linalg.lu_solve(*torch.linalg.lu_factor(H), b[:, None])[:, 0]
    for k, value in phi.items():

        def gradient(x: Tensor, k: str = k) -> Tensor:
            leaves = {n: p.clone().requires_grad_() for n, p in theta.items()}
            loss = network_loss(leaves, {**phi, k: x}, batch)
            return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, leaves.values(), create_graph=True)])

        mixed = torch.autograd.functional.jacobian(gradient, value)  # [n, …]
        assert distance(result.A_loss[k], -torch.tensordot(v, mixed, 1)) < 1e-9
    values = torch.linalg.eigvalsh(H)
    assert result.report.mu >= values[0] * (1 - 1e-9)
    assert distance(result.report.kappa, values[-1] / values[0]) < (1e-8 if isinstance(solver, Dense) else 1e-3)


@pytest.mark.parametrize(
    ("rule", "steps"),
    [(SGD(lr=0.4), 700), (SGD(lr=0.3, momentum=0.75), 170), (Adam(lr=0.5, betas=(0.8, 0.8), eps=1.0), 420)],
    ids=["SGD", "momentum", "Adam"],
)
def test_unrolling_to_convergence_leads_there(rule: Any, steps: int) -> None:
    made = network(rule)
    star, batch = made.pop("theta_star"), made.pop("train_batch")
    theta_0 = {k: v + 0.05 for k, v in star.items()}
    unrolled = gimli.meta_gradient(
        made["problem"], theta_0, lambda j: batch, made["val_batch"], steps=steps, phi_loss=made["phi_loss"]
    )
    implicit = gimli.implicit_gradient(**made, theta_star=unrolled.theta_J, train_batch=batch, solver=CG(rtol=1e-10))
    for k, A in unrolled.A_loss.items():
        assert distance(implicit.A_loss[k], A) < 1e-7
    assert implicit.report.inner.relative < 1e-7


@pytest.mark.parametrize("solver", EXACT, ids=lambda s: type(s).__name__)
def test_the_centre_of_a_proximal_problem(solver: Solver) -> None:
    """B_0 = lambda (H + lambda I)⁻¹ b and dL/dlambda = -v (w - theta_0), in closed form; and by unrolling."""
    made, lam = ridge(), 0.7
    arguments = dict(made.arguments)
    x, y = arguments["train_batch"]
    H, theta_0 = made.H + lam * torch.eye(6), {"w": torch.linspace(-1, 1, 6)}
    w = torch.linalg.solve(H, x.T @ y / len(y) + lam * theta_0["w"])
    x_val, y_val = arguments["val_batch"]
    v = torch.linalg.solve(H, x_val.T @ (x_val @ w - y_val) / len(y_val))
    problem = gimli.proximal(gimli.Problem(ridge_loss, fit, SGD(lr=0.3)), "lambda")
    arguments |= {"problem": problem, "phi_loss": {**arguments["phi_loss"], "lambda": torch.tensor(lam)}}
    result = gimli.implicit_gradient(**{**arguments, "theta_star": {"w": w}}, theta_0=theta_0, solver=solver)
    assert list(result.A_loss) == ["log_l2", "lambda"]
    assert distance(result.B_0["w"], lam * v) < 1e-10
    assert distance(result.A_loss["lambda"], -v @ (w - theta_0["w"])) < 1e-10
    unrolled = gimli.meta_gradient(
        problem, theta_0, lambda j: (x, y), arguments["val_batch"], steps=150, phi_loss=arguments["phi_loss"]
    )
    assert distance(unrolled.B_0["w"], lam * v) < 1e-9


def test_a_constant_strength_and_no_phi_loss() -> None:
    made = ridge()
    x, y = made.arguments["train_batch"]

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return (batch[0] @ theta["w"] - batch[1]).square().mean() / 2

    H, theta_0 = x.T @ x / len(y) + 2 * torch.eye(6), {"w": torch.ones(6)}
    w = torch.linalg.solve(H, x.T @ y / len(y) + 2 * theta_0["w"])
    x_val, y_val = made.arguments["val_batch"]
    v = torch.linalg.solve(H, x_val.T @ (x_val @ w - y_val) / len(y_val))
    problem = gimli.proximal(gimli.Problem(loss, loss, SGD(lr=0.1)), 2.0)
    result = gimli.implicit_gradient(problem, {"w": w}, (x, y), (x_val, y_val), theta_0=theta_0)
    assert distance(result.B_0["w"], 2 * v) < 1e-5
    assert result.A_loss == {}


# --- a Neumann term is one step of the sweep -------------------------------------------------------------------------

BETAS = (0.8, 0.8)  # a state that is at rest after few steps
RULES = [
    SGD(lr=0.3),
    SGD(lr=0.2, momentum=0.7),
    SGD(lr=0.2, momentum=0.5, dampening=0.3),
    SGD(lr=0.2, momentum=0.6, nesterov=True),
    SGD(lr=0.2, weight_decay=0.1),
    Adam(lr=0.1, betas=BETAS, eps=0.3),
    AdamW(lr=0.1, betas=BETAS, eps=0.3, weight_decay=0.2),
    RMSprop(lr=0.1, alpha=0.8, eps=0.3),
    NAdam(lr=0.1, betas=BETAS, eps=0.3, momentum_decay=0.0),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_k_terms_are_the_last_k_steps_of_a_run_that_has_converged(rule: Any) -> None:
    made = ridge(n=4, spread=0.3, rule=rule)
    arguments = dict(made.arguments)
    star, batch = arguments.pop("theta_star"), arguments.pop("train_batch")
    call = (arguments["problem"], {k: 0.9 * v for k, v in star.items()}, lambda j: batch, arguments["val_batch"])
    options = {"steps": 250, "phi_loss": arguments["phi_loss"]}
    for k in (1, 7):
        run = gimli.meta_gradient(*call, **options, approximation=gimli.Truncated(k))
        terms = gimli.implicit_gradient(
            **arguments,
            train_batch=batch,
            theta_star=run.theta_J,
            state_star=run.state_J,
            solver=Neumann(k),
            inner_tolerance=float("inf"),
        )
        assert distance(terms.A_loss["log_l2"], run.A_loss["log_l2"]) < 1e-9
        assert terms.approximation == f"Neumann: {k} terms"


def test_without_a_state_the_rule_is_at_rest_long_after_the_start() -> None:
    made = ridge(n=4, spread=0.3, rule=SGD(lr=0.2, momentum=0.7, dampening=0.2))
    x = {**made.arguments, "solver": Neumann(300)}
    assert distance(gimli.implicit_gradient(**x).A_loss["log_l2"], made.A) < 1e-10
    adam = ridge(n=4, spread=0.3, rule=Adam(lr=0.1, betas=BETAS, eps=0.3))
    assert (
        distance(gimli.implicit_gradient(**{**adam.arguments, "solver": Neumann(300)}).A_loss["log_l2"], adam.A) < 1e-10
    )


def test_where_a_rule_decays_the_weights_its_own_fixed_point_counts() -> None:
    """Ridge by AdamW's decoupled decay has no closed form here: against unrolling."""
    made = ridge(n=4, spread=0.3, rule=AdamW(lr=0.1, betas=BETAS, eps=0.3, weight_decay=0.2))
    arguments = dict(made.arguments)
    star, batch = arguments.pop("theta_star"), arguments.pop("train_batch")
    run = gimli.meta_gradient(
        arguments["problem"], star, lambda j: batch, arguments["val_batch"], steps=300, phi_loss=arguments["phi_loss"]
    )
    found = gimli.implicit_gradient(
        **arguments, theta_star=run.theta_J, train_batch=batch, solver=Neumann(400), state_star=run.state_J
    )
    assert distance(found.A_loss["log_l2"], run.A_loss["log_l2"]) < 1e-8
    assert distance(found.A_loss["log_l2"], made.A) > 1e-2  # that of the minimum of the loss is another


# --- tasks -----------------------------------------------------------------------------------------------------------


@every_solver
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_tasks_are_each_solved_to_their_own_end(solver: Solver, reduce: str) -> None:
    arguments, alone = ridges(3, spread=0.4)
    arguments |= {"tasks": gimli.Tasks(3, reduce=reduce), "problem": gimli.Problem(ridge_loss, fit, SGD(lr=0.6))}
    result = gimli.implicit_gradient(**arguments, solver=solver)
    total = torch.stack([one.A for one in alone]).sum(0) / (3 if reduce == "mean" else 1)
    assert distance(result.A_loss["log_l2"], total) < 1e-9
    assert result.report.v["w"].shape == (3, 6)
    for t, one in enumerate(alone):
        assert distance(result.report.v["w"][t], one.v) < 1e-9
    assert result.report.steps.shape == result.report.kappa.shape == (3,)


@pytest.mark.parametrize("solver", [CG(rtol=3e-2), MINRES(rtol=3e-2)], ids=lambda s: type(s).__name__)
def test_a_task_that_has_converged_is_not_touched(solver: Solver) -> None:
    """As many steps, and the same solution, as each task takes alone; each counts its own."""
    arguments, alone = ridges(4, spread=0.1)
    result = gimli.implicit_gradient(**arguments, solver=solver)
    for t, one in enumerate(alone):
        single = gimli.implicit_gradient(**one.arguments, solver=solver)
        assert result.report.steps[t] == single.report.steps
        assert distance(result.report.v["w"][t], single.report.v["w"]) < 1e-12
        assert distance(result.report.mu[t], single.report.mu) < 1e-9
    assert len(set(result.report.steps.tolist())) > 1


def test_tasks_of_a_proximal_problem_share_theta_0_or_have_their_own() -> None:
    arguments, alone = ridges(3)
    problem, theta_0 = gimli.proximal(arguments["problem"], 0.5), {"w": torch.ones(6)}
    x, y = arguments["train_batch"]
    stars, vs = [], []
    for t, one in enumerate(alone):
        H = one.H + 0.5 * torch.eye(6)
        w = torch.linalg.solve(H, x[t].T @ y[t] / y.shape[1] + 0.5 * theta_0["w"])
        x_val, y_val = one.arguments["val_batch"]
        stars.append(w)
        vs.append(torch.linalg.solve(H, x_val.T @ (x_val @ w - y_val) / len(y_val)))
    arguments |= {"problem": problem, "theta_star": {"w": torch.stack(stars)}, "solver": CG(rtol=1e-12)}
    shared = gimli.implicit_gradient(**arguments, theta_0=theta_0)
    assert distance(shared.B_0["w"], 0.5 * torch.stack(vs).mean(0)) < 1e-10
    starts = gimli.per_task({"w": theta_0["w"].expand(3, 6).clone()})
    own = gimli.implicit_gradient(**arguments, theta_0=starts)
    assert distance(own.B_0["w"], 0.5 * torch.stack(vs) / 3) < 1e-10
