"""Losses along the way of a truncated run: the first that counts stands exactly where the sweep ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli


def loss(theta: dict[str, Tensor], phi: Any, batch: Any) -> Tensor:
    return ((theta["w"] ** 2).sum() - 1) ** 2


@pytest.mark.parametrize("rule", [gimli.optimizers.SGD(), gimli.optimizers.Adam()], ids=["SGD", "Adam"])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_weight_where_the_sweep_ends_is_judged_as_it_counts(k: int, rule: gimli.optimizers.Optimizer) -> None:
    weights = [0.0] * (4 - k) + [0.5, 0.2, 0.3, 0.7, 1.0][4 - k :]
    made = {"theta_0": {"w": torch.tensor([0.3, 0.7])}, "train_batches": [None] * 4, "val_batch": None}
    options = {"val_weights": weights, "approximation": gimli.Truncated(k), "phi_opt": {"lr": torch.tensor(0.05)}}
    gimli.verify(gimli.Problem(loss, loss, rule), **made, **options).assert_ok()  # type: ignore[arg-type]
