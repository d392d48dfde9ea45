"""bfloat16: a loss under autocast beside float32 parameters, and parameters in bfloat16 themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import gimli_core as gimli
from tests.device.check import Check, Where
from tests.problems import tanh_loss, tanh_network

# bfloat16 has 8 bits: 2^-9 a rounding, some 100 of them in sums of up to 4 steps; directions agree to the second digit.
LEAST = 0.99


def checks(where: Where) -> Iterator[Check]:
    torch.manual_seed(0)
    plain = tanh_network(gimli.optimizers.SGD(lr=0.1), steps=4)
    exact = flat(gimli.meta_gradient(**cast(where, plain, torch.float64)))

    def under_autocast(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        with torch.autocast(where.device.type, torch.bfloat16):
            return tanh_loss(theta, phi, batch).float()

    problem = gimli.Problem(under_autocast, under_autocast, gimli.optimizers.SGD(lr=0.1))
    for name, made in (
        ("autocast", {**cast(where, plain, torch.float32), "problem": problem}),
        ("theta in bfloat16", cast(where, plain, torch.bfloat16)),
    ):
        found = flat(gimli.meta_gradient(**made))
        cosine = float(torch.nn.functional.cosine_similarity(found, exact, 0))
        right = cosine > LEAST and bool(torch.isfinite(found).all())
        yield Check(name, right, f"cosine {cosine:.4f} with float64, at least {LEAST}")


def flat(result: gimli.MetaGradient) -> Tensor:
    parts = {**result.A_loss, **result.B_0}
    return torch.cat([v.double().reshape(-1) for v in parts.values()])


def cast(where: Where, made: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The arguments on the device, in another precision."""
    tensors = {k: v for k, v in made.items() if k != "problem"}
    moved = pytree.tree_map_only(torch.Tensor, lambda t: t.to(where.device, dtype), tensors)
    return {**made, **moved}
