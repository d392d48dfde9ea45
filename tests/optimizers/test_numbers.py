"""A parameter that is one number keeps its dtype under every rule and wrapper, and a user's own step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.optimizers import (
    EMA,
    SGD,
    Accumulate,
    Adam,
    AdamW,
    ClipNorm,
    ClipValue,
    DerivedOptimizer,
    Lookahead,
    MaskedDecay,
    Optimizer,
    Partition,
    hyperparameter,
)
from gimli_core.trees import tensors


@dataclass(frozen=True, eq=False)
class Own(DerivedOptimizer):
    """What a user would write, with no thought of numbers."""

    lr: Any = hyperparameter(0.1)

    def step(self, theta: Any, state: Any, G: Any, hyper: Any) -> Any:
        return {k: v - hyper[k]["lr"] * G[k] for k, v in theta.items()}, {"step": state["step"] + 1}


WRAPPERS: dict[str, Callable[[Optimizer], Optimizer]] = {
    "alone": lambda rule: rule,
    "Lookahead": lambda rule: Lookahead(rule, slow_rate=0.5, every=2),
    "EMA": lambda rule: EMA(rule, ema_decay=0.9),
    "Accumulate": lambda rule: Accumulate(rule, every=2),
    "ClipNorm": lambda rule: ClipNorm(rule, max_norm=0.5),
    "ClipValue": lambda rule: ClipValue(rule, clip_value=0.5),
    "MaskedDecay": lambda rule: MaskedDecay(rule, decay=0.1, mask=lambda name, tensor: True),
    "Partition": lambda rule: Partition({"all": (rule, ["*"])}),
    "Lookahead of EMA": lambda rule: Lookahead(EMA(rule, ema_decay=0.9), slow_rate=0.5, every=2),
}
RULES = {"SGD": SGD(lr=0.1, momentum=0.9), "Adam": Adam(lr=0.1), "AdamW": AdamW(lr=0.1), "own": Own()}


def loss(theta: dict[str, Tensor], phi: Any, batch: Any) -> Tensor:
    return (theta["w"] ** 2).sum() + (theta["s"] - 1) ** 4


def run(rule: Optimizer, dtype: torch.dtype) -> gimli.MetaGradient:
    start = {"s": torch.tensor(0.7, dtype=dtype), "w": torch.ones(2, dtype=dtype)}
    if isinstance(rule, EMA):
        start = rule.extend(start)
    elif isinstance(getattr(rule, "inner", None), EMA):
        start = rule.inner.extend(start)  # type: ignore[attr-defined]
    return gimli.meta_gradient(gimli.Problem(loss, loss, rule), start, [None] * 4, None)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_number_keeps_its_dtype(wrapper: str, rule: str) -> None:
    if wrapper == "MaskedDecay" and rule == "own":
        wrapped: Optimizer = MaskedDecay(RULES[rule], decay=0.1, mask=["s"], decoupled=False)
    else:
        wrapped = WRAPPERS[wrapper](RULES[rule])
    single, double = run(wrapped, torch.float32), run(wrapped, torch.float64)
    for name, value in {**single.theta_J, **single.B_0}.items():
        assert value.dtype == torch.float32, name
    for found, exact in zip(tensors((single.theta_J, single.B_0)), tensors((double.theta_J, double.B_0)), strict=True):
        assert found.shape == exact.shape
        assert torch.allclose(found.double(), exact, rtol=2e-5, atol=2e-6)
    for slot, held in single.state_J.items():
        if isinstance(held, dict) and slot not in ("skipped", "idle"):
            assert all(held[k].dtype in (torch.float32, double.state_J[slot][k].dtype) for k in held), slot


def test_an_accumulate_in_another_is_refused_with_the_one_that_does_the_same() -> None:
    inner = Accumulate(SGD(lr=0.1), every=2)
    for within in (inner, ClipNorm(inner, max_norm=1.0), Partition({"all": (inner, ["*"])})):
        with pytest.raises(ArgumentError, match="every=6"):
            Accumulate(within, every=3)
