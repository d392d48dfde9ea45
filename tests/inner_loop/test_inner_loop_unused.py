"""A parameter that a step's loss does not reach is left alone, with its state, by every rule: as `torch.optim` does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core.inner_loop as inner_loop
from gimli_core.optimizers.torch_optim import REGISTERED
from tests.inner_loop.rules import ALL, ALL_IDS, live

MATRICES = [(torch.optim.Muon, {}, {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.05})]
RULES: list[tuple[Any, dict[str, Any], dict[str, float]]] = [*ALL, *MATRICES]


@pytest.mark.parametrize("track", [True, False], ids=["tracked", "plain"])
@pytest.mark.parametrize(("kind", "fixed", "values"), RULES, ids=[*ALL_IDS, "Muon"])
def test_what_a_loss_does_not_reach(kind: Any, fixed: dict[str, Any], values: dict[str, float], track: bool) -> None:
    module = nn.ModuleDict({"a": nn.Linear(2, 3, bias=False), "b": nn.Linear(3, 2, bias=False)})
    opt = live(kind, module, fixed, values)
    x = torch.randn(4, 2)

    def loss(m: Any, j: int) -> Tensor:  # b joins in steps 2 and 4, so that its count and its moments lag behind
        return (m["a"](x) if j in (0, 1, 3) else m["b"](m["a"](x).tanh())).square().mean()

    with inner_loop.innerloop_ctx(module, opt, track_higher_grads=track) as (fmodel, diffopt):
        for j in range(5):
            before = fmodel["b"].weight
            diffopt.step(loss(fmodel, j))
            assert torch.equal(fmodel["b"].weight, before) == (j in (0, 1, 3))
        fast = [p.detach() for p in fmodel.parameters()]
    for j in range(5):
        opt.zero_grad()
        loss(module, j).backward()
        opt.step()
    for a, b in zip(fast, module.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-10, atol=1e-10)


def test_every_rule_is_among_them() -> None:
    elsewhere = {torch.optim.SparseAdam} & set(REGISTERED)  # takes sparse gradients only, which are refused here
    assert {kind for kind, _, _ in RULES} == set(REGISTERED) - elsewhere
