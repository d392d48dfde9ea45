"""The solvers alone: against SciPy's and dense matrices, and what they say of a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import cg, minres
from torch import Tensor

from gimli_core.implicit import CG, MINRES, Dense, Solver
from gimli_core.implicit.ritz import lowest
from gimli_core.implicit.systems import System
from tests.compare import distance

EVERY = [CG(rtol=1e-10), MINRES(rtol=1e-10), Dense()]
every_solver = pytest.mark.parametrize("solver", EVERY, ids=lambda s: type(s).__name__)


def matrix(values: Tensor, seed: int = 0) -> Tensor:
    """Symmetric, with these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator))
    return Q @ torch.diag(values) @ Q.T


def system(H: Tensor, b: Tensor, **more: Any) -> System:
    """Of one matrix, or of one for each row of b."""
    H = H if H.ndim == 3 else H[None]
    return System(lambda v: torch.einsum("tij,tj->ti", H, v), b if b.ndim == 2 else b[None], **more)


@every_solver
@pytest.mark.parametrize("kappa", [1.0, 10.0, 1e4])
def test_a_positive_matrix(solver: Solver, kappa: float) -> None:
    H, b = matrix(torch.logspace(0, -np.log10(kappa), 30)), torch.randn(30)
    asked = system(H, b)
    found = solver.solve(asked)
    assert found.converged.all()
    assert found.residual[0] <= 1e-9
    assert found.bad is None
    assert distance(found.v[0], torch.linalg.solve(H, b)) < 1e-9 * kappa
    assert found.spectrum.lowest[0] >= 1 / kappa * (1 - 1e-6)
    assert found.spectrum.highest[0] <= 1 + 1e-9
    assert distance(found.spectrum.lowest[0], torch.tensor(1 / kappa)) < 1e-2
    assert asked.products >= int(found.steps)


@pytest.mark.parametrize(("solver", "peer"), [(CG, cg), (MINRES, minres)], ids=["CG", "MINRES"])
def test_as_many_steps_as_scipy_and_to_the_same_place(solver: Any, peer: Any) -> None:
    H, b = matrix(torch.logspace(0, -2, 40)), torch.randn(40)
    iterates: list[Any] = []
    peer(H.numpy(), b.numpy(), rtol=1e-14, maxiter=15, callback=lambda x: iterates.append(x.copy()))
    for steps in (1, 2, 9, 15):
        found = solver(rtol=1e-14, steps=steps).solve(system(H, b))
        assert not found.converged.any()
        assert int(found.steps) == steps
        assert distance(found.v[0], torch.from_numpy(iterates[steps - 1])) < 1e-8


def test_minres_never_has_more_residual_and_cg_less_error() -> None:
    H, b = matrix(torch.logspace(0, -3, 40)), torch.randn(40)
    v, residuals, errors = torch.linalg.solve(H, b), [], []
    for steps in range(1, 30, 3):
        of_both = [solver(rtol=1e-14, steps=steps).solve(system(H, b)) for solver in (CG, MINRES)]
        residuals.append([found.residual[0].item() for found in of_both])
        errors.append([((found.v[0] - v) @ H @ (found.v[0] - v)).item() for found in of_both])
    assert all(minres <= cg * (1 + 1e-9) for cg, minres in residuals)
    assert all(cg <= minres * (1 + 1e-9) for cg, minres in errors)


@every_solver
def test_rows_have_systems_of_their_own(solver: Solver) -> None:
    H = torch.stack([matrix(torch.logspace(0, -power, 20), seed=t) for t, power in enumerate((0.0, 1.0, 3.0))])
    b = torch.randn(3, 20)
    b[1] = 0.0  # nothing to solve: no step, and no division by 0
    found = solver.solve(system(H, b))
    assert distance(found.v[0], torch.linalg.solve(H[0], b[0])) < 1e-9
    assert torch.equal(found.v[1], torch.zeros(20))
    assert distance(found.v[2], torch.linalg.solve(H[2], b[2])) < 1e-6
    assert bool(found.converged.all())
    if not isinstance(solver, Dense):
        assert found.steps[:2].tolist() == [1, 0]


@pytest.mark.parametrize("solver", [CG(rtol=1e-8), MINRES(rtol=1e-8)], ids=["CG", "MINRES"])
def test_a_warm_start_saves_steps(solver: Solver) -> None:
    H, b = matrix(torch.logspace(0, -2, 40)), torch.randn(40)
    v = torch.linalg.solve(H, b)
    cold = solver.solve(system(H, b))
    warm = solver.solve(system(H, b, start=(v + 1e-5 * torch.randn(40))[None]))
    assert int(warm.steps) < int(cold.steps) / 2
    assert distance(warm.v[0], v) < 1e-6
    there = solver.solve(system(H, b, start=v[None]))
    assert int(there.steps) <= 1


def test_a_diagonal_preconditioner_saves_steps() -> None:
    scale = torch.logspace(0, 2, 40)
    H = scale[:, None] * matrix(torch.logspace(0, -1, 40)) * scale
    b = torch.randn(40)
    plain = CG(rtol=1e-8, steps=3000).solve(system(H, b))
    diagonal = H.diagonal()
    better = CG(rtol=1e-8).solve(system(H, b, precondition=lambda r: r / diagonal))
    assert int(better.steps) < int(plain.steps) / 3
    assert distance(better.v[0], torch.linalg.solve(H, b)) < 1e-5


@every_solver
@pytest.mark.parametrize("least", [-0.5, -1e-3, 0.0])
def test_what_is_not_positive_is_seen(solver: Solver, least: float) -> None:
    values = torch.cat([torch.tensor([least]), torch.linspace(0.1, 1, 20)])
    H = matrix(values)
    found = solver.solve(system(H, torch.randn(21)))
    assert found.bad is not None
    pair = lowest(system(H, torch.zeros(21)).product, found.bad, 21)
    assert abs(pair.value[0].item() - least) < 1e-8
    assert abs((pair.vector[0] @ H @ pair.vector[0]).item() - least) < 1e-8
    assert pair.residual[0] < 1e-7


def test_minres_goes_through_a_saddle_if_asked() -> None:
    H, b = matrix(torch.cat([torch.tensor([-0.5, -0.2]), torch.linspace(0.1, 1, 20)])), torch.randn(22)
    found = MINRES(rtol=1e-10, indefinite=True).solve(system(H, b))
    assert found.bad is None
    assert distance(found.v[0], torch.linalg.solve(H, b)) < 1e-8
    assert found.spectrum.lowest[0] < -0.49


def test_a_singular_matrix_with_b_in_its_range_is_solved() -> None:
    H = matrix(torch.cat([torch.zeros(3), torch.linspace(0.5, 1, 10)]))
    b = H @ torch.randn(13)
    for solver in (CG(rtol=1e-10), MINRES(rtol=1e-10)):
        found = solver.solve(system(H, b))
        assert found.converged.all()
        assert distance(found.v[0], torch.linalg.pinv(H) @ b) < 1e-8


def test_steps_run_out() -> None:
    H, b = matrix(torch.logspace(0, -4, 60)), torch.randn(60)
    for solver in (CG(rtol=1e-10, steps=5), MINRES(rtol=1e-10, steps=5)):
        found = solver.solve(system(H, b))
        assert not found.converged.any()
        assert int(found.steps) == 5
        assert found.residual[0] > 1e-10


def test_below_what_rounding_allows_the_residual_is_the_true_one() -> None:
    """In float32 the recurrence goes on falling; the residual that is reported does not."""
    H, b = matrix(torch.logspace(0, -5, 60)).float(), torch.randn(60).float()
    found = CG(rtol=1e-12, steps=400).solve(system(H, b))
    true = (b - H @ found.v[0]).norm() / b.norm()
    assert distance(found.residual[0], true) < 0.5
    assert not found.converged.any()


@pytest.mark.parametrize("solver", [CG, MINRES])
def test_the_last_digit_shows_the_error(solver: Any) -> None:
    """The change since the residual was ten times as large estimates what v lacks: nearly always from above."""
    ratios = []
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        power, rtol = 5 * torch.rand((), generator=generator).item(), (1e-1, 1e-2, 1e-4, 1e-6, 1e-8)[seed % 5]
        H, b = matrix(torch.logspace(0, -power, 25), seed), torch.randn(25, generator=generator)
        found = solver(rtol=rtol).solve(system(H, b))
        error = (found.v[0] - torch.linalg.solve(H, b)).norm()
        rounding = torch.finfo(b.dtype).eps * 10**power * found.v[0].norm()
        ratios.append((error / (found.lacking[0].norm() + rounding)).item())
    assert sum(ratio > 1 for ratio in ratios) <= 6
    assert max(ratios) < 50  # where the last step has found a direction that no step before had
    assert 0.02 < sorted(ratios)[50] < 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CG(rtol=0.0), r"CG\(rtol=…\): expected a number in \(0, 1\); got 0\.0"),
        (lambda: CG(rtol=float("nan")), r"CG\(rtol=…\): expected a number in \(0, 1\); got nan"),
        (lambda: CG(steps=0), r"CG\(steps=…\): expected a whole number >= 1; got 0"),
        (lambda: MINRES(rtol=2), r"MINRES\(rtol=…\): expected a number in \(0, 1\); got 2"),
        (lambda: MINRES(steps=1.5), r"MINRES\(steps=…\): expected a whole number >= 1; got 1\.5"),
        (lambda: MINRES(indefinite="yes"), r"MINRES\(indefinite=…\): expected True or False; got 'yes'"),
    ],
)
def test_settings_that_are_none(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
