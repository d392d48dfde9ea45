"""Scores against retraining; the influence baseline at a minimum; metasmoothness of known functions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

import gimli_core as gimli
from gimli_core import attribution
from gimli_core.attribution.scores import Scores
from gimli_core.errors import ArgumentError
from gimli_core.optimizers import SGD, Adam
from tests.compare import distance

Call = dict[str, Any]
N, J, K = 12, 6, 3


def weighted(theta: Any, phi: Any, batch: Any) -> Tensor:
    return (phi["w"] * (torch.tanh(batch["x"] @ theta["a"]) - batch["y"]).square()).mean()


def queries(theta: Any, phi: Any, batch: Any) -> Tensor:
    return (torch.tanh(batch[0] @ theta["a"]) - batch[1]).square()


def call(optimizer: Any = None, loss: Any = queries) -> Call:
    torch.manual_seed(3)
    x, y = torch.randn(N, 4), torch.randn(N)
    rows = [torch.randperm(N)[:6] for _ in range(J)]
    return {
        "problem": gimli.Problem(weighted, loss, optimizer or Adam(lr=0.05)),
        "theta_0": {"a": torch.randn(4) / 2},
        "train_batches": [{"x": x[r], "y": y[r], "rows": r} for r in rows],
        "val_batch": (torch.randn(K, 4), torch.randn(K)),
        "phi_loss": {"w": gimli.indexed(1 + torch.rand(N))},
    }


def test_weights_within_dicts() -> None:
    flat = call()
    within = gimli.Problem(lambda theta, phi, batch: weighted(theta, phi["of"], batch), queries, Adam(lr=0.05))
    nested = {**flat, "problem": within, "phi_loss": {"of": flat["phi_loss"]}}
    for more in ({}, {"entry": "of.w"}):
        assert torch.equal(attribution.scores(**nested, **more).values, attribution.scores(**flat).values)
    of_flat, of_nested = (attribution.leave_out(**made, subsets=3, share=0.25) for made in (flat, nested))
    assert torch.equal(of_flat.lds(attribution.scores(**flat)), of_nested.lds(attribution.scores(**nested)))
    of_flat, of_nested = ({k: v for k, v in made.items() if k != "val_batch"} for made in (flat, nested))
    assert gimli.metasmoothness(**of_nested, seed=1).value == gimli.metasmoothness(**of_flat, seed=1).value


def test_influence_of_weights_within_dicts() -> None:
    """Both halves of the loss see phi_loss as it came, with an entry beside the weights and one that is a module's."""
    made, scale = call(), torch.nn.ParameterDict({"y": torch.tensor(1.3)})

    def outputs(theta: Any, batch: Any) -> Tensor:
        return torch.tanh(batch["x"] @ theta["a"])

    def flat_loss(f: Tensor, phi: Any, batch: Any) -> Tensor:
        return (phi["w"] * (f - phi["y"] * batch["y"]).square()).mean()

    def nested_loss(f: Tensor, phi: Any, batch: Any) -> Tensor:
        return flat_loss(f, {"w": phi["of"]["w"], "y": phi["of"]["scale"]["y"]}, batch)

    flat_phi = {**made["phi_loss"], "y": scale["y"].detach()}
    nested_phi = {"of": {**made["phi_loss"], "scale": scale}, "none": {}}
    found = []
    for loss, phi in ((flat_loss, flat_phi), (nested_loss, nested_phi)):
        problem = gimli.Problem(lambda theta, p, b, loss=loss: loss(outputs(theta, b), p, b), queries, Adam(lr=0.05))
        for halves in ({}, {"outputs": outputs, "output_loss": loss}):
            args = problem, made["theta_0"], made["train_batches"], made["val_batch"]
            found.append(attribution.influence_scores(*args, phi_loss=phi, **halves).values)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


def test_scores_are_the_slope_of_retraining() -> None:
    made, h = call(), 1e-5
    found = attribution.scores(**made)
    assert found.values.shape == (K, N)
    w = made["phi_loss"]["w"].value
    for i in (0, 7):

        def losses(step: float, i: int = i) -> Tensor:
            moved = w.clone()
            moved[i] += step
            problem, phi = made["problem"], {"w": gimli.indexed(moved)}
            ended = gimli.adapt(problem, made["theta_0"], made["train_batches"], phi_loss=phi)
            return queries(ended.theta_J, {}, made["val_batch"])

        assert torch.allclose(found.values[:, i], (losses(h) - losses(-h)) / (2 * h), rtol=1e-5, atol=1e-8)
    assert torch.equal(found.val_loss, losses(0.0))


@pytest.mark.parametrize("at_once", [1, 2, 3, 9])
def test_queries_at_once_change_nothing(at_once: int) -> None:
    done: list[tuple[int, int]] = []
    found = attribution.scores(**call(), at_once=at_once, told=lambda *counts: done.append(counts))
    assert torch.equal(found.values, attribution.scores(**call()).values)
    assert done[-1] == (K, K)
    assert len(done) == -(-K // at_once)


def test_micro_batches_and_tokens() -> None:
    """Weights [N, 2], one for each of two terms of an example's loss: their scores sum to the example's."""

    def of_terms(theta: Any, phi: Any, batch: Any) -> Tensor:
        residual = (torch.tanh(batch["x"] @ theta["a"]) - batch["y"]).square()
        return (phi["w"] * torch.stack([0.25 * residual, 0.75 * residual], 1)).sum(1).mean()

    made = call()
    w = made["phi_loss"]["w"].value
    problem = gimli.Problem(of_terms, queries, made["problem"].optimizer)
    by_term = {**made, "problem": problem, "phi_loss": {"w": gimli.indexed(w[:, None].expand(N, 2).clone())}}
    expected = attribution.scores(**made)
    found = attribution.scores(**by_term, micro_batches=2)
    assert found.values.shape == (K, N, 2)
    assert distance(found.values.sum(2), expected.values) < 1e-12
    trial = attribution.leave_out(**made, subsets=5, seed=1)
    assert distance(attribution.leave_out(**by_term, subsets=5, seed=1).changes, trial.changes) < 1e-12
    assert (
        distance(trial.predicted(expected), attribution.leave_out(**by_term, subsets=5, seed=1).predicted(found))
        < 1e-12
    )


def test_one_outer_loss_is_one_query() -> None:
    found = attribution.scores(**call(loss=lambda theta, phi, batch: queries(theta, phi, batch).sum()))
    assert found.values.shape == (1, N)
    assert distance(found.values[0], attribution.scores(**call()).values.sum(0)) < 1e-12


def test_a_killed_run_goes_on_by_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, expected = tmp_path / "scores.npz", attribution.scores(**call())

    def stop(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attribution.scores(**call(), at_once=1, resume=file, told=stop)
    assert len(Scores.load(file).values) == 2
    runs = []
    scores_module: Any = sys.modules["gimli_core.attribution.scores"]
    run = scores_module.meta_gradient
    monkeypatch.setattr(scores_module, "meta_gradient", lambda *a, **k: (runs.append(None), run(*a, **k))[1])
    found = attribution.scores(**call(), at_once=1, resume=file)
    assert len(runs) == 1
    assert torch.equal(found.values, expected.values)
    loaded = Scores.load(file)
    assert torch.equal(loaded.values, expected.values)
    assert torch.equal(loaded.val_loss, expected.val_loss)
    other = {**call(), "theta_0": {"a": torch.zeros(4)}}
    with pytest.raises(ArgumentError, match="scores of another"):
        attribution.scores(**other, resume=file)


def test_files_that_are_no_scores(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no")
    np.savez(tmp_path / "shapes.npz", scores=np.ones(3), val_loss=np.ones(2), digest="")
    for name in ("text.npz", "shapes.npz", "absent.npz"):
        with pytest.raises(ArgumentError, match="scores"):
            Scores.load(tmp_path / name)
    with pytest.raises(ArgumentError, match="resume"):
        attribution.scores(**call(), resume=tmp_path / "no" / "such.npz")


def test_leaving_out_is_predicted() -> None:
    made = call(SGD(lr=0.02))  # so short a way that theta_J is nearly linear in the weights
    trial = attribution.leave_out(**made, subsets=25, share=0.17)
    assert (trial.left_out.sum(1) == 2).all()
    found = attribution.scores(**made)
    rho = trial.lds(found)
    assert rho.shape == (K,)
    assert (rho > 0.9).all()
    for q in range(K):
        of_scipy = spearmanr(trial.predicted(found)[:, q].numpy(), trial.changes[:, q].numpy()).statistic
        assert rho[q].item() == pytest.approx(of_scipy, abs=1e-14)
    low, high = trial.interval(found)
    assert low <= float(rho.mean()) <= high
    opposite = Scores(-found.values, found.val_loss)
    assert torch.allclose(trial.lds(opposite), -rho)
    constant = Scores(torch.zeros_like(found.values), found.val_loss)
    assert trial.lds(constant).isnan().all()


def test_a_change_is_what_retraining_gives() -> None:
    made = call()
    trial = attribution.leave_out(**made, subsets=2, share=0.1, seed=5)
    w = made["phi_loss"]["w"].value

    def losses(weights: Tensor) -> Tensor:
        phi = {"w": gimli.indexed(weights)}
        ended = gimli.adapt(made["problem"], made["theta_0"], made["train_batches"], phi_loss=phi)
        return queries(ended.theta_J, {}, made["val_batch"])

    assert torch.equal(trial.changes[1], losses(w * ~trial.left_out[1]) - losses(w))


def test_influence_at_a_minimum_is_the_long_run_s_derivative() -> None:
    """Convex, trained to its end: the limit of the meta-gradient as J grows."""
    torch.manual_seed(0)
    x, y, w = torch.randn(N, 3), torch.randn(N), 1 + torch.rand(N)

    def ridge(theta: Any, phi: Any, batch: Any) -> Tensor:
        return (phi["w"] * (batch["x"] @ theta["a"] - batch["y"]).square()).mean() + 0.1 * theta["a"].square().sum()

    def val(theta: Any, phi: Any, batch: Any) -> Tensor:
        return (batch[0] @ theta["a"] - batch[1]).square()

    problem, batch = gimli.Problem(ridge, val, SGD(lr=0.15)), {"x": x, "y": y, "rows": torch.arange(N)}
    val_batch, phi = (torch.randn(2, 3), torch.randn(2)), {"w": gimli.indexed(w)}
    theta_0 = {"a": torch.zeros(3)}
    exact = attribution.scores(problem, theta_0, lambda j: batch, val_batch, phi_loss=phi, steps=200, compile=False)
    theta_J = gimli.adapt(problem, theta_0, lambda j: batch, steps=200, phi_loss=phi).theta_J
    found = attribution.influence_scores(problem, theta_J, [batch], val_batch, phi_loss=phi, damping=1e-13)
    assert distance(found.values, exact.values) < 1e-9
    both = attribution.influence_scores(problem, theta_J, [batch], val_batch, phi_loss=phi, damping=[1e-13, 1.0])
    assert torch.equal(both[1e-13].values, found.values)
    assert distance(both[1.0].values, found.values) > 0.1


def test_gauss_newton_is_the_hessian_but_for_the_curvature_of_the_outputs() -> None:
    """Of linear outputs it is the Hessian; of others J' (grad² of output_loss) J, here written out."""
    made = call()
    x, y, w = torch.randn(N, 4), torch.randn(N), 1 + torch.rand(N)
    batch, phi = {"x": x, "y": y, "rows": torch.arange(N)}, {"w": gimli.indexed(w)}
    rest = {"phi_loss": phi, "damping": 0.1}

    def output_loss(f: Tensor, phi: Any, batch: Any) -> Tensor:
        return (phi["w"] * (f - batch["y"]).square()).mean()

    def linear(theta: Any, batch: Any) -> Tensor:
        return batch["x"] @ theta["a"]

    def bent(theta: Any, batch: Any) -> Tensor:
        return torch.tanh(linear(theta, batch))

    at = {"a": torch.randn(4)}
    convex = gimli.Problem(lambda t, p, b: output_loss(linear(t, b), p, b), queries, SGD())
    found = [
        attribution.influence_scores(convex, at, [batch], made["val_batch"], **rest, **halves).values
        for halves in ({}, {"outputs": linear, "output_loss": output_loss})
    ]
    assert distance(*found) < 1e-12

    halves = {"outputs": bent, "output_loss": output_loss}
    problem = made["problem"]
    values = attribution.influence_scores(problem, at, [batch], made["val_batch"], **rest, **halves).values
    f = torch.tanh(x @ at["a"])
    J = (1 - f.square())[:, None] * x
    C = J.T @ (2 * w[:, None] * J) / N
    of_each = 2 * (f - y)[:, None] * J / N  # d grad R / dw_i
    q = torch.tanh(made["val_batch"][0] @ at["a"])
    dL = (2 * (q - made["val_batch"][1]) * (1 - q.square()))[:, None] * made["val_batch"][0]
    expected = -dL @ torch.linalg.solve(C + 0.1 * torch.eye(4), of_each.T)
    assert distance(values, expected) < 1e-12
    with pytest.raises(ArgumentError, match="the value of train_loss"):
        attribution.influence_scores(convex, at, [batch], made["val_batch"], **rest, **halves)
    with pytest.raises(ArgumentError, match="both or none"):
        attribution.influence_scores(problem, at, [batch], made["val_batch"], **rest, outputs=bent)


def test_metasmoothness_of_known_functions() -> None:
    """One SGD step of lr 1 from 0 puts theta at -f(phi), entry by entry."""

    def training(f: Any) -> gimli.Problem:
        def loss(theta: Any, phi: Any, batch: Any) -> Tensor:
            return (theta["a"] * f(phi["z"])).sum()

        return gimli.Problem(loss, loss, SGD(lr=1.0))

    def measure(f: Any, z: Tensor, **more: Any) -> gimli.attribution.Metasmoothness:
        phi = {"z": z}
        v = {"z": torch.ones_like(z)}
        return gimli.metasmoothness(training(f), {"a": torch.zeros_like(z)}, [None], phi_loss=phi, direction=v, **more)

    assert measure(torch.exp, torch.zeros(3)).value == pytest.approx(1.0)
    # |z - 1/8|, h = 1/10: from z = 0 back by 0.1, then on by 0.05, 0.05 in all; from z = 5 on by 0.2.
    found = measure(lambda z: (z - 0.125).abs(), torch.tensor([0.0, 5.0]), h=0.1)
    assert found.value == pytest.approx((-0.05 + 0.2) / 0.25)
    weighted_more = measure(lambda z: (z - 0.125).abs() * torch.tensor([3.0, 1.0]), torch.tensor([0.0, 5.0]), h=0.1)
    assert weighted_more.value == pytest.approx((-0.15 + 0.2) / 0.35)
    with pytest.raises(ArgumentError, match="theta_J moves"):
        measure(torch.zeros_like, torch.zeros(2))


def test_metasmoothness_of_indexed_weights() -> None:
    made = call(SGD(lr=0.1))
    del made["val_batch"]
    assert gimli.metasmoothness(**made, h=1e-3).value > 0.99
    assert gimli.metasmoothness(**made, h=1e-3) == gimli.metasmoothness(**made, h=1e-3)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"phi_loss": {"w": torch.ones(N)}}, "marked by gimli.indexed"),
        ({"entry": "v"}, "entry: expected"),
        ({"at_once": 0}, "at_once"),
    ],
)
def test_bad_calls(change: Call, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        attribution.scores(**{**call(), **change})


@pytest.mark.parametrize(("change", "match"), [({"subsets": 1}, "subsets"), ({"share": 0.01}, "share")])
def test_bad_trials(change: Call, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        attribution.leave_out(**call(), **change)


def test_bad_baselines() -> None:
    made = call()
    lost = {"a": torch.full((4,), float("nan"))}
    with pytest.raises(ArgumentError, match="finite second derivatives"):
        attribution.influence_scores(
            made["problem"], lost, made["train_batches"], made["val_batch"], phi_loss=made["phi_loss"]
        )
    batches = [{"x": torch.ones(1, 4), "y": torch.ones(1), "rows": torch.zeros(1, dtype=torch.long)}]
    rest = {"val_batch": made["val_batch"], "phi_loss": made["phi_loss"]}
    with pytest.raises(ArgumentError, match="damping"):
        attribution.influence_scores(made["problem"], made["theta_0"], batches, **rest, damping=0.0)
    with pytest.raises(ArgumentError, match="at most 5000"):
        attribution.influence_scores(made["problem"], {"a": torch.ones(5001)}, batches, **rest)
    parts = gimli.MicroBatches(batches * 2)
    with pytest.raises(ArgumentError, match=r"batches\[0\]"):
        attribution.influence_scores(made["problem"], made["theta_0"], [parts], **rest)
    trial = attribution.leave_out(**made, subsets=2)
    with pytest.raises(ArgumentError, match="scores: expected"):
        trial.lds(Scores(torch.ones(K, N + 1), torch.ones(K)))
    for more, match in (({"h": 0.0}, "h: expected"), ({"direction": {"z": torch.ones(2)}}, "direction")):
        with pytest.raises(ArgumentError, match=match):
            gimli.metasmoothness(
                made["problem"], made["theta_0"], made["train_batches"], phi_loss=made["phi_loss"], **more
            )
