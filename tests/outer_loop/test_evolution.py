"""PES and ES against the exact gradient: mean and variance, each within a bound that the number of draws gives."""

from __future__ import annotations

import math

import pytest
import torch

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from tests.outer_loop.problems import TARGETS, end_of, learned_rate, leaves, noisy, outer_loop, problem, same

SIGMA, LENGTH, STEPS = 0.01, 2, 6


def exact_at(end, tasks=None):
    """dL/dphi of L at step `end`, by Algorithm 1."""
    estimator = gimli.Unrolled(problem(), leaves(), learned_rate, steps=end)
    return estimator(TARGETS).A


def estimates(kind, pairs, repeats, seed=0, **options):
    """[repeats, windows] estimates of each tensor at one phi, of independent inner loops."""
    estimator = kind(
        problem(), leaves(), learned_rate, sigma=SIGMA, pairs=pairs, length=LENGTH, steps=STEPS, seed=seed, **options
    )
    windows = estimator.draws_last
    drawn = [[estimator(TARGETS).A for _ in range(windows)] for _ in range(repeats)]
    return {name: torch.stack([torch.stack([a[name] for a in row]) for row in drawn]) for name in leaves()}


def t_values(samples, exact):
    """(mean - exact) / its standard error, of each number."""
    error = samples.std(0) / math.sqrt(len(samples))
    return (samples.mean(0) - exact) / error


def test_pes_is_without_bias_in_every_window_and_truncated_es_has_that_of_windows():
    """20 inner loops of 50 pairs. The bias of smoothing, O(sigma^2) = 1e-4 of the gradient, is far below the standard
    error of some percent; of 20 normal numbers the mean lies within 4.5 standard errors with a chance of 0.9998."""
    pes, es = estimates(gimli.PES, 50, 20), estimates(gimli.ES, 50, 20)
    windows = gimli.Windows(problem(), leaves(), learned_rate, length=LENGTH, steps=STEPS)
    for window in range(STEPS // LENGTH):
        exact, truncated = exact_at((window + 1) * LENGTH), windows(TARGETS).A
        for name, gradient in exact.items():
            assert (t_values(pes[name][:, window], gradient).abs() < 4.5).all(), (name, window)
            left = truncated.get(name, torch.zeros_like(gradient))
            assert (t_values(es[name][:, window], left).abs() < 4.5).all(), (name, window)
        if window:
            assert (t_values(es["w"][:, window], exact["w"]).abs() > 4.5).all()  # the start is forgotten


def test_es_of_whole_inner_loops_is_without_bias():
    estimator = gimli.ES(problem(), leaves(), learned_rate, sigma=SIGMA, pairs=50, steps=STEPS)
    drawn = [estimator(TARGETS).A for _ in range(20)]
    for name, gradient in exact_at(STEPS).items():
        assert (t_values(torch.stack([a[name] for a in drawn]), gradient).abs() < 4.5).all()


SLOPE = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def pulled(theta, phi, batch):
    return (theta["w"] * phi["f"]).sum()


def height(theta, phi, batch):
    return (theta["w"] * SLOPE).sum()


def linear(phi, drawn):
    """theta_J = -lr J f, so that L is linear in f, of slope g = -lr J SLOPE."""
    zeros = torch.zeros(3, dtype=torch.float64)
    return {"theta_0": {"w": zeros}, "train_batches": lambda j: zeros, "val_batch": zeros, "phi_loss": {"f": phi["f"]}}


@pytest.mark.parametrize(
    ("pairs", "samples", "bound"), [(10, 120, 0.6), pytest.param(1, 4000, 0.25, marks=pytest.mark.long)]
)
def test_the_variance_is_that_of_the_closed_form(pairs, samples, bound):
    """With L linear, of slope g for each window, and X = Σ e_v over the w windows so far,

        A_k = X_k (g · X) / sigma^2,    E A_k = w g_k,    Var A_k = w^2 (|g|^2 + g_k^2) / N      (Isserlis)

    n samples tell a variance to sqrt((2 + 12 / N) / n), so to 16 % and to 6 %; the bounds are four times as wide.
    """
    lr = 0.1
    rule = gimli.optimizers.SGD(lr=lr)
    phi = {"f": torch.zeros(3, dtype=torch.float64, requires_grad=True)}
    estimator = gimli.PES(
        gimli.Problem(pulled, height, rule), phi, linear, sigma=0.3, pairs=pairs, length=LENGTH, steps=3 * LENGTH
    )
    drawn = torch.stack([torch.stack([estimator(None).A["f"] for _ in range(3)]) for _ in range(samples)])
    g = -lr * LENGTH * SLOPE
    for w in (1, 2, 3):
        mean, variance = drawn[:, w - 1].mean(0), drawn[:, w - 1].var(0)
        expected = w**2 * (g @ g + g**2) / pairs
        torch.testing.assert_close(variance, expected, rtol=bound, atol=0)
        assert ((mean - w * g).abs() < 4.5 * (expected / samples).sqrt()).all()


@pytest.mark.parametrize("chunk", [None, 3])
def test_one_run_of_all_is_each_run_alone(chunk):
    """The estimate by hand: 2N inner loops, one after the other, with tasks, frozen entries and a rate by step."""
    pairs, T = 2, 2

    def inner(phi, targets):
        stacked = [torch.stack([target, -target]) for target in targets]
        rate = gimli.per_step(phi["log_lr"].exp() * torch.linspace(1.0, 0.5, 3, dtype=torch.float64))
        frozen = torch.nn.Parameter(torch.ones(1, dtype=torch.float64), requires_grad=False)
        return {
            "theta_0": {"c": frozen, "w": phi["w"]},
            "train_batches": stacked,
            "val_batch": stacked[-1],
            "phi_opt": {"lr": rate, "beta1": 0.8, "beta2": gimli.per_task(torch.tensor([0.9, 0.99]))},
        }

    estimator = gimli.ES(
        problem(), leaves(), inner, sigma={"w": 0.1, "log_lr": 0.2}, pairs=pairs, steps=3, tasks=T, chunk=chunk, seed=4
    )
    e = estimator._perturbations()
    found = estimator(TARGETS)
    phi = leaves()
    L = {
        (sign, i): gimli.unroll(
            problem(),
            **inner({name: leaf.detach() + sign * e[name][i] for name, leaf in phi.items()}, TARGETS),
            steps=3,
            tasks=T,
        )
        for sign in (1, -1)
        for i in range(pairs)
    }
    for name, sigma in {"w": 0.1, "log_lr": 0.2}.items():
        expected = sum((L[1, i] - L[-1, i]) * e[name][i] for i in range(pairs)) / (2 * pairs * sigma**2)
        torch.testing.assert_close(found.A[name], expected, rtol=1e-10, atol=1e-12)
        assert torch.equal(estimator.parameters()[name].grad, found.A[name])
    torch.testing.assert_close(found.val_loss, torch.stack(list(L.values())).mean(), rtol=1e-12, atol=0)
    assert "ES(pairs=2)" in found.approximation


def test_batches_may_depend_on_phi():
    """Which an unroll refuses, since its gradient would be missing; here it is not."""

    def inner(phi, drawn):
        return {
            "theta_0": {"w": torch.zeros(2, dtype=torch.float64)},
            "train_batches": [phi["target"]] * 2,
            "val_batch": TARGETS[0],
        }

    phi = {"target": torch.zeros(2, dtype=torch.float64, requires_grad=True)}
    estimator = gimli.ES(problem(gimli.optimizers.SGD(lr=0.4)), phi, inner, sigma=1e-4, pairs=400, steps=2)
    A = estimator(None).A["target"]
    assert (A * torch.tensor([-1.0, 1.0])).min() > 0.1  # towards the validation's target


def test_noise_depends_on_the_seed_and_the_window_alone():
    first = estimates(gimli.PES, 2, 1)
    torch.rand(10)
    again, other = estimates(gimli.PES, 2, 1), estimates(gimli.PES, 2, 1, seed=1)
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_pes_in_an_outer_loop_goes_on_from_a_checkpoint(tmp_path):
    def loop(**options):
        torch.manual_seed(7)
        phi = leaves()
        estimator = gimli.PES(problem(train_loss=noisy), phi, learned_rate, sigma=0.1, pairs=2, length=1, steps=3)
        return outer_loop(phi=phi, estimator=estimator, tensorboard=False, **options)

    expected = end_of(loop())
    loop(steps=4, out=tmp_path).run()
    assert same(end_of(loop(out=tmp_path)), expected)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"sigma": 0.0}, "sigma: expected a number above 0"),
        ({"sigma": {"w": 0.1}}, "sigma: expected a number, or one for each"),
        ({"pairs": 0}, "pairs"),
        ({"length": 4}, "steps: expected a number of steps that windows"),
        ({"seed": -1}, "seed"),
        ({"chunk": 0}, "chunk"),
        ({"wrong": 1}, "arguments of gimli.unroll"),
    ],
)
@pytest.mark.parametrize("kind", [gimli.PES, gimli.ES])
def test_arguments(kind, changed, match):
    arguments = {"sigma": 0.1, "length": 2, "steps": 6, **changed}
    with pytest.raises(ArgumentError, match=match):
        kind(problem(), leaves(), learned_rate, **arguments)
