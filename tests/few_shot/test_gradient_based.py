"""Gradient-based methods: every meta-gradient against autograd through a loop that is written out here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

from gimli_core.errors import ArgumentError
from gimli_core.few_shot.episodes import Episode, Sinusoids
from gimli_core.few_shot.gradient_based import imaml
from gimli_core.few_shot.gradient_based.adapting import Adapting, by_name
from gimli_core.few_shot.gradient_based.anil import Anil
from gimli_core.few_shot.gradient_based.fomaml import Fomaml
from gimli_core.few_shot.gradient_based.imaml import Imaml
from gimli_core.few_shot.gradient_based.lstm import LstmMetaLearner
from gimli_core.few_shot.gradient_based.maml import Maml
from gimli_core.few_shot.gradient_based.maml_adam import MamlAdam
from gimli_core.few_shot.gradient_based.maml_pp import MamlPlusPlus, multi_step_weights
from gimli_core.few_shot.gradient_based.meta_sgd import MetaSgd
from gimli_core.few_shot.gradient_based.reptile import Reptile
from gimli_core.implicit.implicit_gradient import implicit_gradient
from gimli_core.optimizers import Adam
from tests.few_shot.problems import episode

Weights = dict[str, Tensor]


def learner() -> nn.Module:
    """Smooth, with a batch norm and a head."""
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    return nn.Sequential(nn.Conv2d(1, 3, 3, stride=2, bias=False), norm, nn.SiLU(), nn.Flatten(), nn.Linear(12, 3))


def ell(network: nn.Module, weights: Weights, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(functional_call(network, weights, (x,)), y)


def written_out(
    method: Adapting,
    drawn: Episode,
    lr: Callable[[str, int], Tensor | float],
    adapts: Callable[[str], bool] = lambda k: True,
    weights: Callable[[Weights, int], Weights] = lambda theta, j: theta,
    val_weights: tuple[float, ...] | None = None,
    first_order: bool = False,
) -> Tensor:
    """The mean query loss over the tasks, by autograd through SGD."""
    losses = []
    for t in range(drawn.tasks):
        theta = dict(method.learner.named_parameters())
        along = []
        for j in range(method.steps):
            moving = {k: v for k, v in theta.items() if adapts(k)}
            if first_order:  # G keeps what it takes from phi_loss, and from phi_opt by way of it
                moving = {k: v.detach().requires_grad_() for k, v in moving.items()}
            at = weights({**theta, **moving}, j)
            loss = ell(method.learner, at, drawn.support_x[t], drawn.support_y[t])
            G = dict(zip(moving, torch.autograd.grad(loss, list(moving.values()), create_graph=True), strict=True))
            theta = {k: v - lr(k, j) * G[k] if k in G else v for k, v in theta.items()}
            end = ell(method.learner, weights(theta, j + 1), drawn.query_x[t], drawn.query_y[t])
            along.append(end)
        shares = val_weights or (0.0,) * (method.steps - 1) + (1.0,)
        losses.append(sum(w * loss for w, loss in zip(shares, along, strict=True)))
    return torch.stack([torch.as_tensor(loss) for loss in losses]).mean()


def assert_agrees(method: Adapting, drawn: Episode, expected: Tensor) -> None:
    learned = {k: p for k, p in method.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(expected, list(learned.values()))
    loss = method.loss(drawn)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for (name, p), gradient in zip(learned.items(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-9, atol=1e-12, msg=name)
        assert gradient.abs().max() > 0, name


def test_maml() -> None:
    method, drawn = Maml(learner(), lr=0.3, steps=2), episode()
    assert_agrees(method, drawn, written_out(method, drawn, lambda k, j: 0.3))


def test_fomaml_leaves_out_curvature() -> None:
    method, drawn = Fomaml(learner(), lr=0.3, steps=2), episode()
    assert_agrees(method, drawn, written_out(method, drawn, lambda k, j: 0.3, first_order=True))


def test_meta_sgd_learns_a_rate_of_either_sign_for_each_element() -> None:
    method, drawn = MetaSgd(learner(), lr=0.3, steps=2), episode()
    with torch.no_grad():
        for rate in method.rates.values():
            rate.view(-1)[0] *= -1
    rates = by_name(method.rates)
    assert_agrees(method, drawn, written_out(method, drawn, lambda k, j: rates[k]))


def test_anil_adapts_the_head_alone() -> None:
    method, drawn = Anil(learner(), lr=0.3, steps=2), episode()
    assert_agrees(method, drawn, written_out(method, drawn, lambda k, j: 0.3, adapts=lambda k: k.startswith("4.")))
    assert list(method.adapted(drawn.support_x, drawn.support_y).theta_J) == ["4.weight", "4.bias"]
    with pytest.raises(ArgumentError, match="learner: expected a network that ends in a linear layer"):
        Anil(nn.Flatten())


@pytest.mark.parametrize("per_step_norm", [True, False])
@pytest.mark.parametrize("number", [0, 5, 99])
def test_maml_plus_plus(per_step_norm: bool, number: int) -> None:
    """Per-step rates and norms, multi-step loss, and first order for the first meta-batches."""
    method = MamlPlusPlus(learner(), lr=0.3, steps=3, anneal=10, first_order=2, per_step_norm=per_step_norm)
    with torch.no_grad():
        for p in [*method.log_lr.values(), *method.norm.values()]:
            p.add_(0.1 * torch.randn_like(p))
    drawn = episode()._replace(number=number)
    rates, norm = by_name(method.log_lr), by_name(method.norm)
    assert set(norm) == ({"1.weight", "1.bias"} if per_step_norm else set())
    expected = written_out(
        method,
        drawn,
        lambda k, j: rates[k][j].exp(),
        adapts=lambda k: k not in norm,
        weights=lambda theta, j: {**theta, **{k: v[j] for k, v in norm.items()}},
        val_weights=tuple(multi_step_weights(3, number, 10)),
        first_order=number < 2,
    )
    assert_agrees_but_unused(method, drawn, expected)


def assert_agrees_but_unused(method: MamlPlusPlus, drawn: Episode, expected: Tensor) -> None:
    assert_agrees(method, drawn, expected)
    for p in method.norm.values():  # one row a step, and the queries' own
        assert p.grad is not None
        assert (p.grad.flatten(1).abs().amax(1) > 0).all()


@pytest.mark.parametrize(("steps", "number", "anneal"), [(1, 0, 5), (5, 3, 10), (5, 10, 10), (5, 50, 0)])
def test_multi_step_weights_sum_to_1(steps: int, number: int, anneal: int) -> None:
    weights = multi_step_weights(steps, number, anneal)
    assert len(weights) == steps
    assert sum(weights) == pytest.approx(1, abs=1e-15)
    assert weights[-1] == max(weights)


def test_reptiles_gradient_is_the_way_back_from_where_training_leads() -> None:
    method, drawn = Reptile(learner(), Adam(lr=0.01, betas=(0.0, 0.999)), steps=4, batch=4), episode(shot=2)
    method.loss(drawn).backward()
    x = torch.cat([drawn.support_x, drawn.query_x], 1)
    y = torch.cat([drawn.support_y, drawn.query_y], 1)
    batches = method._batches(x, y, 4, drawn.number)
    ways = []
    for t in range(drawn.tasks):
        network = learner()
        network.load_state_dict(method.learner.state_dict())
        adam = torch.optim.Adam(network.parameters(), lr=0.01, betas=(0.0, 0.999))
        for bx, by in batches:
            adam.zero_grad()
            cross_entropy(network(bx[t]), by[t]).backward()
            adam.step()
        ways.append(
            [a.detach() - b.detach() for a, b in zip(method.learner.parameters(), network.parameters(), strict=True)]
        )
    for p, *way in zip(method.learner.parameters(), *ways, strict=True):
        torch.testing.assert_close(p.grad, torch.stack(way).mean(0), rtol=1e-7, atol=1e-10)
    assert {len(by[0]) for _, by in batches} == {4}
    other = method._batches(x, y, 4, drawn.number + 1)
    assert not torch.equal(batches[0][1], other[0][1]) or not torch.equal(batches[0][0], other[0][0])


def test_imaml_differentiates_the_end_and_not_the_way() -> None:
    """B_0 = mean of (I + H/λ)⁻¹ ∇L at the end, with a dense Hessian, where the inner problem is convex."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 3, bias=False))
    method, drawn, strength = Imaml(network, lr=0.05, steps=20, strength=2.0, rtol=1e-10), episode(), 2.0
    W = network[1].weight
    loss = method.loss(drawn)
    loss.backward()
    assert W.grad is not None
    theta_star = method.adapted(drawn.support_x, drawn.support_y).theta_J["1.weight"]
    expected, losses = [], []
    for t in range(drawn.tasks):

        def ell(w: Tensor, t: int = t) -> Tensor:
            return ell_of(network, w.view(3, 36), drawn.support_x[t], drawn.support_y[t])

        H = torch.autograd.functional.hessian(ell, theta_star[t].flatten())
        end = theta_star[t].clone().requires_grad_()
        losses.append(ell_of(network, end, drawn.query_x[t], drawn.query_y[t]))
        g = torch.autograd.grad(losses[-1], end)[0].flatten()
        expected.append(torch.linalg.solve(torch.eye(len(g)) + H / strength, g))
    torch.testing.assert_close(W.grad.flatten(), torch.stack(expected).mean(0), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def ell_of(network: nn.Module, weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return ell(network, {"1.weight": weight}, x, y)


def test_imaml_takes_the_damping_that_cures_negative_curvature(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def spy(*args: Any, damping: float, **named: Any) -> Any:
        tried.append(damping)
        return implicit_gradient(*args, damping=damping, **named)

    monkeypatch.setattr(imaml, "implicit_gradient", spy)
    method, drawn = Imaml(learner(), lr=0.02, steps=8, strength=0.01), episode()
    method.loss(drawn).backward()
    assert tried[0] == 0 < tried[-1]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_the_lstm_starts_near_sgd_and_by_default_leaves_out_second_derivatives() -> None:
    method, drawn = LstmMetaLearner(learner(), lr=0.2, steps=1), episode()
    near = method.adapted(drawn.support_x, drawn.support_y).theta_J
    sgd = Maml(method.learner, lr=0.2, steps=1).adapted(drawn.support_x, drawn.support_y).theta_J
    for k, v in near.items():
        torch.testing.assert_close(v, sgd[k], rtol=0.05, atol=0.03)
    short, exact = (torch.autograd.grad(loss, method.learner[0].weight)[0] for loss in losses_of(method, drawn))
    assert not torch.allclose(short, exact)


def losses_of(method: LstmMetaLearner, drawn: Episode) -> list[Tensor]:
    """By default, and exact."""
    by_default = method.loss(drawn)
    method.exact = True
    return [by_default, method.loss(drawn)]


def test_the_inner_adam_starts_with_the_outer_ones_moments() -> None:
    method, drawn = MamlAdam(learner(), lr=0.01, steps=2), episode()
    assert method.state_0() is None
    method.outer = torch.optim.Adam(method.parameters(), lr=1e-3)
    assert method.state_0() is None
    method.loss(drawn).backward()
    method.outer.step()
    state = method.state_0()
    assert state is not None
    assert state["step"] == 1
    names = dict(method.learner.named_parameters())
    for k, p in names.items():
        assert torch.equal(state["exp_avg"][k], method.outer.state[p]["exp_avg"])
    theta_J = method.adapted(drawn.support_x[:1], drawn.support_y[:1]).theta_J
    network = learner()
    network.load_state_dict(method.learner.state_dict())
    phi = method.meta_parameters()["phi_opt"]
    groups = [
        {"params": [p], "lr": phi["lr"][k].item(), "betas": (phi["beta1"][k].item(), phi["beta2"][k].item())}
        for k, p in network.named_parameters()
    ]
    adam = torch.optim.Adam(groups)
    for k, p in network.named_parameters():
        held = method.outer.state[names[k]]
        adam.state[p] = {slot: value.clone() for slot, value in held.items()}
    for _ in range(2):
        adam.zero_grad()
        cross_entropy(network(drawn.support_x[0]), drawn.support_y[0]).backward()
        adam.step()
    for k, p in network.named_parameters():
        torch.testing.assert_close(theta_J[k][0], p.detach(), rtol=1e-6, atol=1e-9)
    method.zero_grad()
    method.loss(drawn).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in method.parameters())


def test_sinusoids_are_learned_behind_the_same_face() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
    method, source = Maml(network, lr=0.05, steps=2, objective=mse_loss), Sinusoids(shot=5, queries=5, tasks=10)
    adam = torch.optim.Adam(method.parameters(), lr=1e-2)
    drawn = Sinusoids(shot=5, queries=5, tasks=50, seed=1)(0)
    before = method.loss(drawn).item()
    for number in range(50):
        adam.zero_grad()
        method.loss(source(number)).backward()
        adam.step()
    assert method.loss(drawn).item() < 0.8 * before
    assert method.predict(drawn.support_x, drawn.support_y, drawn.query_x).shape == (50, 5, 1)


@pytest.mark.parametrize("kind", [Maml, Fomaml, Reptile, Imaml, MetaSgd, Anil, MamlPlusPlus, MamlAdam, LstmMetaLearner])
def test_predicting_leaves_the_method_as_it_was(kind: type[Adapting]) -> None:
    method, drawn = kind(learner()), episode()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    scores = method.predict(drawn.support_x, drawn.support_y, drawn.query_x)
    assert scores.shape == (2, 6, 3)
    assert torch.equal(scores, method.predict(drawn.support_x, drawn.support_y, drawn.query_x))
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
