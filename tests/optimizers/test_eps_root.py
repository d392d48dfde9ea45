"""eps_root of the Adam family: the formula of optax, nothing at its default, refused below 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.optimizers import LAMB, Adam, AdamW, NAdam, check_pullback

KINDS = {"adam": Adam, "adamw": AdamW, "nadam": NAdam, "lamb": LAMB}


def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
    return torch.cosh(theta["w"] - batch).sum()


def run(rule: Any, **more: Any) -> gimli.MetaGradient:
    return gimli.meta_gradient(
        gimli.Problem(loss, loss, rule), {"w": torch.tensor([0.5, -1.0])}, [0.1] * 3, 0.2, **more
    )


def test_adam_is_the_formula() -> None:
    w, m, v = torch.tensor([0.5, -1.0]), torch.zeros(2), torch.zeros(2)
    for t in (1, 2, 3):
        g = torch.sinh(w - 0.1)
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        w = w - 0.1 * m / (1 - 0.8**t) / (torch.sqrt(v / (1 - 0.95**t) + 0.3) + 1e-3)
    found = run(Adam(lr=0.1, betas=(0.8, 0.95), eps=1e-3, eps_root=0.3)).theta_J["w"]
    torch.testing.assert_close(found, w, rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_learned_at_zero_it_leaves_the_rest_as_it_is(kind: Any) -> None:
    plain, learned = run(kind(eps=1e-3), phi_opt={"lr": 0.1}), run(kind(eps=1e-3), phi_opt={"lr": 0.1, "eps_root": 0.0})
    torch.testing.assert_close(learned.A_opt["lr"], plain.A_opt["lr"], rtol=1e-12, atol=0)
    assert learned.A_opt["eps_root"] != 0
    check_pullback(kind(lr=0.1, eps_root=0.2)).assert_ok()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_below_zero_it_is_refused(kind: Any) -> None:
    with pytest.raises(ArgumentError, match=r"eps_root=….*\[0, inf\)"):
        kind(eps_root=-1e-8)
    with pytest.raises(ArgumentError, match=r"phi_opt\['eps_root'\].*\[0, inf\)"):
        run(kind(), phi_opt={"eps_root": torch.tensor(-1e-8)})
