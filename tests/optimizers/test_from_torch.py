"""A live torch.optim instance goes on as a rule: same values, same state, untouched; and what has no rule says so."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.optimizers import from_torch
from gimli_core.trees import tensors
from tests.optimizers.cases import CASES, Case

X, Y = (
    torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(8, 3),
    torch.linspace(0, 1, 16, dtype=torch.float64).reshape(8, 2),
)


def model(case: Case) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(3, 4, bias=case.rule != "Muon"), nn.Tanh(), nn.Linear(4, 2, bias=case.rule != "Muon")
    )


def loss_of(module: nn.Module) -> Any:
    def loss(theta: Any, phi: Any, batch: Any) -> torch.Tensor:
        return ((torch.func.functional_call(module, theta, X) - Y) ** 2).mean()

    return loss


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int, sparse: bool) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        ((module(X) - Y) ** 2).mean().backward()
        if sparse:
            for p in module.parameters():
                p.grad = p.grad.to_sparse()
        optimizer.step()


@pytest.mark.parametrize("case", [c for c in CASES if c.torch_class() is not None], ids=lambda c: c.label)
def test_training_goes_on_where_it_was(case: Case) -> None:
    """Three steps by torch, then three by the engine: the same as six by torch."""
    module = model(case)
    optimizer = case.build_torch(module.parameters())
    train(module, optimizer, 3, case.rule == "SparseAdam")
    before = copy.deepcopy([optimizer.state_dict(), module.state_dict()])
    rule, theta_0, state_0 = from_torch(optimizer, module.named_parameters())
    loss = loss_of(module)
    result = gimli.meta_gradient(
        gimli.Problem(loss, loss, rule),
        {k: v.detach() for k, v in theta_0.items()},
        lambda j: None,
        None,
        steps=3,
        state_0=state_0,
    )
    after = [optimizer.state_dict(), module.state_dict()]
    assert all(torch.equal(a, b) for a, b in zip(tensors(before), tensors(after), strict=True))
    train(module, optimizer, 3, case.rule == "SparseAdam")
    for k, p in module.named_parameters():
        assert torch.allclose(result.theta_J[k], p.detach(), rtol=1e-13, atol=1e-15), k


def test_groups_keep_their_own_values() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = [
        {"params": module[0].parameters(), "lr": 0.1, "betas": (0.8, 0.9)},
        {"params": module[1].parameters(), "weight_decay": 0.1},
    ]
    optimizer = torch.optim.Adam(groups, lr=0.01)
    rule, theta_0, state_0 = from_torch(optimizer, module.named_parameters())
    assert state_0 is None
    assert rule.lr == {"0": 0.1, "1": 0.01}
    assert rule.beta1 == {"0": 0.8, "1": 0.9}
    assert rule.eps == 1e-8
    loss = loss_of(module)
    start = {k: v.detach().clone() for k, v in theta_0.items()}
    result = gimli.meta_gradient(
        gimli.Problem(loss, loss, rule), start, lambda j: None, None, steps=4, phi_opt={"lr": {"0": 0.1}}
    )
    train(module, optimizer, 4, sparse=False)
    for k, p in module.named_parameters():
        assert torch.allclose(result.theta_J[k], p.detach(), rtol=1e-13, atol=1e-15), k
    assert result.A_opt["lr"]["0"] != 0


def test_names_may_come_from_the_optimizer() -> None:
    module = nn.Linear(2, 2)
    assert list(from_torch(torch.optim.SGD(module.named_parameters(), lr=0.1)).theta_0) == ["weight", "bias"]


def test_momentum_in_one_group_alone() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = [{"params": module[0].parameters(), "momentum": 0.9}, {"params": module[1].parameters(), "dampening": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    train(module, optimizer, 1, sparse=False)
    state = from_torch(optimizer, module.named_parameters()).state_0
    assert state is not None  # SGD does not count steps where it keeps no buffer: it has none to go on from
    assert set(state["skipped"]) == {"1.weight", "1.bias"}


class Unknown(torch.optim.SGD):
    pass


def mixed() -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [{"params": [nn.Parameter(torch.ones(1))]}, {"params": [nn.Parameter(torch.ones(1))], "maximize": True}], lr=0.1
    )


def homeless() -> Any:
    module = nn.Linear(2, 2)
    return from_torch(torch.optim.SGD([module.weight], lr=0.1), module.named_parameters())


REFUSED = {
    "LBFGS": (
        lambda: from_torch(torch.optim.LBFGS([nn.Parameter(torch.ones(1))])),
        r"LBFGS.*implicit function theorem",
    ),
    "no rule": (
        lambda: from_torch(Unknown([nn.Parameter(torch.ones(1))], lr=0.1)),
        r"Unknown.*DerivedOptimizer.*register",
    ),
    "no names": (lambda: from_torch(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)), "named_parameters"),
    "in no group": (homeless, r"'bias' in none"),
    "no name": (lambda: from_torch(torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.1), {}), r"\[3\]"),
    "mixed switches": (
        lambda: (lambda o: from_torch(o, {str(i): g["params"][0] for i, g in enumerate(o.param_groups)}))(mixed()),
        r"maximize.*same switch.*Partition",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_says_what_to_do(call: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()


def test_a_frozen_parameter_may_be_outside() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert list(from_torch(torch.optim.SGD([module.weight], lr=0.1), module.named_parameters()).theta_0) == ["weight"]


def test_a_sparse_gradient_is_refused() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)

    def loss(theta: Any, phi: Any, batch: Any) -> torch.Tensor:
        return (torch.func.functional_call(embedding, theta, torch.tensor([1, 3])) ** 2).sum()

    theta_0 = {k: v.detach() for k, v in embedding.named_parameters()}
    problem = gimli.Problem(loss, loss, gimli.optimizers.SparseAdam(lr=0.1))
    with pytest.raises(ArgumentError, match=r"'weight'.*sparse=False"):
        gimli.meta_gradient(problem, theta_0, lambda j: None, None, steps=2)


# --- and back ---


OF_EACH = {c.rule: c for c in CASES if c.torch_class() is not None}  # one case of each rule, its last


@pytest.mark.parametrize("case", OF_EACH.values(), ids=OF_EACH)
def test_torch_goes_on_where_the_engine_ended(case: Case) -> None:
    """Two steps by torch, two by the engine, handed back, then two by torch: the same as six by torch."""
    module = model(case)
    optimizer = case.build_torch(module.parameters())
    train(module, optimizer, 2, case.rule == "SparseAdam")
    rule, theta_0, state_0 = from_torch(optimizer, module.named_parameters())
    loss = loss_of(module)
    problem = gimli.Problem(loss, loss, rule)
    result = gimli.adapt(problem, {k: v.detach() for k, v in theta_0.items()}, lambda j: None, steps=2, state_0=state_0)
    other = model(case)
    fresh = case.build_torch(other.parameters())
    rule.to_torch(fresh, other.named_parameters(), theta=result.theta_J, state=result.state_J)
    train(other, fresh, 2, case.rule == "SparseAdam")
    train(module, optimizer, 4, case.rule == "SparseAdam")
    for (k, p), q in zip(module.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(q, p, rtol=1e-12, atol=1e-14), k
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        assert set(fresh.state[q]) >= {n for n, v in optimizer.state[p].items() if v is not None}


def test_learned_rates_go_to_their_groups() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = [{"params": module[0].parameters()}, {"params": module[1].parameters(), "lr": 0.5}]
    optimizer = torch.optim.Adam(groups, lr=0.1)
    rule = from_torch(optimizer, module.named_parameters()).optimizer
    before = copy.deepcopy(module.state_dict())
    for lr, expected in (
        ({"0": 0.3, "1": torch.tensor(0.4)}, [0.3, 0.4]),
        (torch.tensor([0.01, 0.02], dtype=torch.float64), [0.01, 0.02]),
        (torch.tensor(0.7, dtype=torch.float64), [0.7, 0.7]),
        ({"0.weight": 0.1, "0.bias": 0.1, "1.weight": 0.2, "1.bias": 0.2}, [0.1, 0.2]),
    ):
        rule.to_torch(optimizer, module.named_parameters(), phi_opt={"lr": lr, "betas": (0.8, 0.99)})
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected, rel=1e-12)
        assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.99)] * 2
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert not optimizer.state


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"phi_opt": {"momentum": 0.1}}, "phi_opt: expected hyperparameters of Adam"),
        (
            {"phi_opt": {"lr": {"0.weight": 0.1, "0.bias": 0.2}}},
            "lr: expected one number for parameter group 0; got several",
        ),
        ({"phi_opt": {"lr": torch.ones(3, 2)}}, "lr: expected one number for parameter group 0"),
        ({"theta": {"0.weight": torch.ones(2, 2)}}, r"theta\['0.weight'\]: expected a tensor of shape \[4, 3\]"),
        ({"theta": {}}, r"theta\['0.weight'\]: .*got nothing"),
    ],
)
def test_what_does_not_fit_changes_nothing(given: dict[str, Any], message: str) -> None:
    module = nn.Sequential(nn.Linear(3, 4))
    optimizer = torch.optim.Adam(module.named_parameters(), lr=0.1)
    rule = from_torch(optimizer).optimizer
    before = copy.deepcopy([optimizer.state_dict(), module.state_dict()])
    with pytest.raises(ArgumentError, match=message):
        rule.to_torch(optimizer, **{"phi_opt": {"lr": 0.9}, **given})
    after = [optimizer.state_dict(), module.state_dict()]
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert all(torch.equal(a, b) for a, b in zip(tensors(before), tensors(after), strict=True))


def test_another_kind_is_refused() -> None:
    w = nn.Parameter(torch.ones(2))
    with pytest.raises(ArgumentError, match=r"expected a torch.optim.SGD; got a torch.optim.AdamW"):
        gimli.optimizers.SGD().to_torch(torch.optim.Adam([("w", w)], decoupled_weight_decay=True))
    with pytest.raises(ArgumentError, match=r"expected a torch.optim optimizer; got list"):
        gimli.optimizers.SGD().to_torch([w])
