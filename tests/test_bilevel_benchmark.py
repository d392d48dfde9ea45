"""The bilevel table: every method's gradient on the problem whose answer is a formula, and the program end to end."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.benchmarks.bilevel import __main__ as program
from tests.benchmarks.bilevel import reference
from tests.benchmarks.bilevel.methods import METHODS, implicit, normal_cg
from tests.benchmarks.bilevel.picture import draw
from tests.benchmarks.bilevel.problem import Bilevel, Method
from tests.benchmarks.bilevel.problems import PROBLEMS
from tests.benchmarks.bilevel.problems.hyper_cleaning import hyper_cleaning
from tests.benchmarks.bilevel.problems.logistic import logistic
from tests.benchmarks.bilevel.problems.quadratics import DECAY, quadratics
from tests.benchmarks.bilevel.race import error, flops, joined, judged, load, of_a_gradient, race
from tests.benchmarks.bilevel.rounds import Rounds
from tests.benchmarks.speed.workloads import DATA

UNROLLED = ("ours, unrolled", "ours, budget", "torchopt", "higher")
needs_mnist = pytest.mark.skipif(not (DATA / "mnist.npz").exists(), reason="mnist.npz is not here")


def small() -> Bilevel:
    return quadratics(0, size=8, steps=30).to(torch.float64)


def method(name: str) -> Method:
    if find_spec(METHODS[name][1]) is None:
        pytest.skip(f"{METHODS[name][1]} is not installed")
    return METHODS[name][0]


@pytest.mark.filterwarnings("ignore")  # of the peers' own imports
@pytest.mark.parametrize("name", UNROLLED)
def test_unrolled_methods_differentiate_the_steps(name: str) -> None:
    problem, run = small(), method(name)
    load(problem, name)
    reached = next(run(problem))
    assert error(reached.gradient, reference.of_steps(problem)) < 1e-13
    assert reached.loss == pytest.approx(judged(problem, replace(reached, loss=None)), rel=1e-13)


def test_long_unrolls_differentiate_the_minimum() -> None:
    """(1 − 0.1)^600 is below rounding: then all references are one."""
    problem = quadratics(0, size=8, steps=600).to(torch.float64)
    exact = problem.closed_form(problem)
    assert error(reference.of_steps(problem), exact) < 1e-13
    assert error(reference.of_minimum(replace(problem, closed_form=None)), exact) < 1e-9


@pytest.mark.long
def test_logistic_regression_is_differentiated_at_its_minimum() -> None:
    """The gradient at the minimum, found by Newton's steps, is that of a long unroll."""
    problem = logistic("wine", 0, steps=1000)
    assert error(reference.of_steps(problem), reference.of_minimum(problem)) < 1e-8


@pytest.mark.parametrize(("name", "allowed"), [("fixed point", 1e-12), ("normal CG", 1e-4), ("ours, implicit", 1e-4)])
def test_methods_at_the_minimum_differentiate_it(name: str, allowed: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With enough iterations: (1 − 0.1)^300 is below 1e-13; conjugate gradients stop at their tolerance of 1e-5."""
    monkeypatch.setattr(implicit, "ITERATIONS", 300)
    problem = quadratics(0, size=8, steps=600).to(torch.float64)
    assert error(next(method(name)(problem)).gradient, problem.closed_form(problem)) < allowed


@pytest.mark.skipif(find_spec("jaxopt") is None, reason="jaxopt is not installed")
@pytest.mark.filterwarnings("ignore")  # JAX's and jaxopt's own
def test_normal_cg_is_jaxopts() -> None:
    """The same iterates as its `solve_normal_cg`, on a system that is far from solved after five of them."""
    import jax
    import jax.numpy as jnp
    from jaxopt.linear_solve import solve_normal_cg

    H, b = small().train[0], torch.randn(8, 1)
    ours = normal_cg.solve(lambda v: {"w": H @ v["w"]}, {"w": b}, iterations=5)["w"]
    with jax.enable_x64(True):
        matrix = jnp.asarray(H.numpy())
        theirs = solve_normal_cg(lambda v: matrix @ v, jnp.asarray(b.numpy()), tol=normal_cg.TOLERANCE, maxiter=5)
        assert float(abs(theirs - ours.numpy()).max()) < 1e-12
    assert float((H @ ours - b).abs().max()) > 1e-3


@pytest.mark.long
def test_soba_comes_to_the_outer_minimum() -> None:
    """θ* = Mφ + A⁻¹c with M = A⁻¹B, so that the outer minimum solves (MᵀM + μ) φ = Mᵀ(t − A⁻¹c)."""
    problem = replace(quadratics(0, size=4, steps=200), outer_lr=0.1).to(torch.float64)
    (A, B, c), t = problem.train, problem.val
    M = torch.linalg.solve(A, B)
    H = M.T @ M + DECAY * torch.eye(4)
    best = torch.linalg.solve(H, M.T @ (t - torch.linalg.solve(A, c)))
    run = METHODS["SOBA"][0](problem)
    start, *_, end = (float(away.T @ H @ away) for away in (next(run).phi["x"] - best for _ in range(40)))
    assert end < 0.05 * start  # twice the outer loss above its least


def test_products_are_counted() -> None:
    """A gradient of ½ wᵀAw has two products of 8 × 8 with a vector and two for the linear part's B: none for phi."""
    problem = small()
    assert of_a_gradient(problem) == 3 * 2 * 8 * 8  # A w, its transpose in the backward pass, B phi
    assert flops(lambda: torch.randn(2, 3) @ torch.randn(3, 4)) == 2 * 2 * 3 * 4


@needs_mnist
@pytest.mark.parametrize("net", ["linear", "mlp"])
def test_cleaning_sees_every_weight_once_in_its_parts(net: str) -> None:
    problem = hyper_cleaning(0, DATA, net=net, noise=0.5, count=50, steps=5)
    rows = [problem.batch(j)[2] for j in range(5)]
    assert [i for part in rows for i in range(part.start, part.stop)] == list(range(50))
    theta, phi = problem.start(problem.phi_0), problem.phi_0
    parts = torch.stack([problem.ell_j(j, theta, phi) for j in range(5)])
    torch.testing.assert_close(parts.mean(), problem.ell(theta, phi), rtol=1e-5, atol=0)
    assert (
        0.3 < float((problem.train[1] != hyper_cleaning(0, DATA, noise=0.0, count=50).train[1]).double().mean()) < 0.7
    )


@pytest.mark.filterwarnings("ignore")  # of the peers' own imports
def test_the_program_writes_a_table_and_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PROBLEMS, "quadratics", lambda seed, data: quadratics(seed, size=8, steps=10))
    path = tmp_path / "run.json"
    monkeypatch.setattr("sys.argv", ["bilevel", "--quick", "--only", "quadratics", "--json", str(path)])
    program.main()
    said, figures = capsys.readouterr().out, json.loads(path.read_text())["figures"]
    for name, (_, package) in METHODS.items():
        if find_spec(package) is None:
            assert f"{name}: {package} is not installed" in said
            continue
        assert f"\n{name}" in said
        assert figures[f"quadratics/{name}/gradients"]["values"][0] > 0
    assert figures["quadratics/ours, unrolled/error, J steps"]["values"][0] < 1e-5


@pytest.mark.long
def test_seeds_and_peaks_have_processes_of_their_own() -> None:
    rounds = Rounds(["ours, unrolled", "SOBA"], outer_steps=2, seeds=2, data=DATA, at_once=2)
    ((problem, scores),) = rounds.scores(["logistic wine"])
    assert problem == "logistic wine"
    for score in scores.values():
        first, second = score.losses
        assert first != second
        assert len(score.seconds) == 2
        assert score.gradients > 0
        assert score.peak is not None
        assert score.peak > 0


def test_a_method_looks_the_same_in_every_problem_of_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib import pyplot

    figures = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    instances = (quadratics(seed, size=8, steps=5) for seed in range(2))
    scores = joined([race(instance, ["ours, unrolled", "SOBA"], outer_steps=3) for instance in instances])
    problems = {"all": scores, "one refused": {"SOBA": scores["SOBA"]}, **dict.fromkeys("abcd", scores)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib's
        draw(problems, tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").stat().st_size > 10_000
    lines = [line for axes in figures[0].axes for line in axes.lines]
    assert len(lines) == 2 * (5 * 2 + 1)
    assert len({(line.get_label(), line.get_color()) for line in lines}) == 2
    monkeypatch.undo()
    pyplot.close(figures[0])
