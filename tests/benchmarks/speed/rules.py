"""One step of each optimizer in plain arithmetic, for the engines that have none: torch and JAX arrays alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BETA1, BETA2, EPS, DECAY = 0.9, 0.999, 1e-8, 1e-2  # torch.optim's defaults

Named = dict[str, Any]


def start(rule: str, theta: Named, zeros: Callable[[Any], Any]) -> tuple[Named, ...]:
    """The optimizer's state before the first step: nothing, or the two moments."""
    return () if rule == "sgd" else tuple({k: zeros(v) for k, v in theta.items()} for _ in "mv")


def corrections(j: int) -> tuple[float, float]:
    """1 − beta^(j + 1) of both moments, in double precision: in single, 1 − beta2 is off by 5e-5 of itself."""
    return 1 - BETA1 ** (j + 1), 1 - BETA2 ** (j + 1)


def step(
    rule: str, theta: Named, s: tuple[Named, ...], G: Named, lr: Any, c: tuple[Any, Any], sqrt: Callable[[Any], Any]
) -> tuple[Named, tuple[Named, ...]]:
    """(theta, s) after a step with corrections c; `lr` is one for all or one a name."""
    rate = lr if isinstance(lr, dict) else dict.fromkeys(theta, lr)
    if rule == "sgd":
        return {k: v - rate[k] * G[k] for k, v in theta.items()}, ()
    m = {k: BETA1 * s[0][k] + (1 - BETA1) * g for k, g in G.items()}
    v = {k: BETA2 * s[1][k] + (1 - BETA2) * g * g for k, g in G.items()}
    c1, c2 = c
    new = {}
    for k, x in theta.items():
        kept = x * (1 - DECAY * rate[k]) if rule == "adamw" else x
        new[k] = kept - (rate[k] / c1) * (m[k] / (sqrt(v[k]) / c2**0.5 + EPS))
    return new, (m, v)
