"""Every rule with every combination of its options, and the `torch.optim` class that it must equal.

One table for the parity tests, the pullback tests and the printed table (`python -m tests.benchmarks.optimizer_table`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gimli_core import optimizers
from gimli_core.optimizers import Optimizer
from gimli_core.optimizers.check import constants

__all__ = ["CASES", "PUBLISHED", "STEPS", "THETA", "Case", "gradient", "run", "run_torch", "start"]

THETA = {"w": (3, 2), "b": (4,)}  # shapes


class Case(NamedTuple):
    """One rule with one set of options."""

    rule: str  # a name in gimli_core.optimizers
    options: dict[str, Any]

    @property
    def label(self) -> str:
        """The rule, and the options that are not defaults."""
        return f"{self.rule}({', '.join(f'{k}={v}' for k, v in self.options.items())})"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensors to try it on: Muon takes matrices, Adafactor stacks of them too."""
        if self.rule == "Muon":
            return {"w": (4, 3), "x": (2, 5)}
        return {**THETA, **({"stack": (2, 3, 2)} if self.rule == "Adafactor" else {})}

    def build(self, **more: Any) -> Optimizer:
        """The rule of gimli_core."""
        rule: Optimizer = getattr(optimizers, self.rule)(**self.options, **more)
        return rule

    def build_as_torch(self) -> Optimizer:
        """The same, with the rounding of torch.optim where that is an option."""
        return self.build(**({"ns_dtype": torch.bfloat16} if self.rule == "Muon" else {}))

    def torch_class(self) -> type[torch.optim.Optimizer] | None:
        """Its counterpart, or None."""
        return getattr(torch.optim, self.rule, None)

    def build_torch(self, params: Any) -> torch.optim.Optimizer:
        """The counterpart over `params`."""
        found = self.torch_class()
        assert found is not None
        return found(params, **self.options)


# For each rule: values for its continuous options, then each of the others.
_GRID: dict[str, tuple[dict[str, Any], dict[str, tuple[Any, ...]]]] = {
    "SGD": ({"lr": 0.05}, {"momentum": (0.0, 0.9), "dampening": (0.0, 0.3), "nesterov": (False, True)}),
    "Adagrad": ({"lr": 0.1}, {"lr_decay": (0.0, 0.1), "initial_accumulator_value": (0.0, 0.2)}),
    "Adam": ({"lr": 0.05, "betas": (0.8, 0.95)}, {"amsgrad": (False, True)}),
    "AdamW": ({"lr": 0.05, "betas": (0.8, 0.95)}, {"amsgrad": (False, True)}),
    "NAdam": (
        {"lr": 0.05, "betas": (0.8, 0.95)},
        {"momentum_decay": (4e-3, 0.3), "decoupled_weight_decay": (False, True)},
    ),
    "RAdam": ({"lr": 0.05}, {"betas": ((0.8, 0.95), (0.9, 0.5)), "decoupled_weight_decay": (False, True)}),
    "Adamax": ({"lr": 0.05, "betas": (0.8, 0.95)}, {}),
    "Adadelta": ({"lr": 0.5}, {"rho": (0.9, 0.5)}),
    "RMSprop": ({"lr": 0.05, "alpha": 0.9}, {"centered": (False, True), "momentum": (0.0, 0.9)}),
    "ASGD": ({"lr": 0.05, "lambd": 0.01}, {"alpha": (0.75, 0.5), "t0": (1e6, 10.5)}),
    "Rprop": ({"lr": 0.02}, {"etas": ((0.5, 1.2), (0.3, 1.5)), "step_sizes": ((1e-6, 50), (0.01, 0.05))}),
    "Lion": ({"lr": 0.02}, {"betas": ((0.9, 0.99), (0.5, 0.7))}),
    "LAMB": (
        {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3},
        {"norm_limit": (None, 1.0), "bias_correction": (True, False)},
    ),
    "Adafactor": (
        {"lr": 0.3},
        {"eps": ((None, 1e-3), (0.2, 2.0)), "d": (1.0, 2.0), "beta2_decay": (-0.8, -0.3)},
    ),
    "Muon": (
        {"lr": 0.05},
        {
            "momentum": (0.95, 0.5),
            "nesterov": (True, False),
            "ns_steps": (5, 2),
            "adjust_lr_fn": (None, "match_rms_adamw"),
        },
    ),
    "SparseAdam": ({"lr": 0.05, "betas": (0.8, 0.95)}, {}),
}
_NO_DECAY = ("Rprop", "SparseAdam")


def _cases() -> Iterator[Case]:
    for rule, (fixed, others) in _GRID.items():
        axes = dict(others)
        if rule != "Muon":
            axes["maximize"] = (False, True)
        if rule not in _NO_DECAY:
            axes["weight_decay"] = (0.0, 0.1)
        for values in itertools.product(*axes.values()):
            options = {**fixed, **dict(zip(axes, values, strict=True))}
            if rule == "SGD" and _idle(**options):
                continue
            yield Case(rule, options)


def _idle(momentum: float, dampening: float, nesterov: bool, **_: Any) -> bool:
    """Combinations of SGD's options that torch.optim refuses, or ignores."""
    return not momentum if dampening and not nesterov else nesterov and bool(dampening or not momentum)


CASES = tuple(_cases())


STEPS = 100


def start(case: Case) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {k: torch.randn(shape, generator=generator) for k, shape in case.shapes.items()}


def gradient(theta: dict[str, Tensor], j: int) -> dict[str, Tensor]:
    """A noisy quadratic's, whose second column of w is never used."""
    generator = torch.Generator().manual_seed(j)
    G = {k: v - 0.3 + torch.randn(v.shape, generator=generator) / 2 for k, v in theta.items()}
    G["w"][:, 1] = 0
    return G


def run(case: Case, steps: int = STEPS) -> dict[str, Tensor]:
    theta, rule = start(case), case.build_as_torch()
    hyper = constants(rule, theta)
    state = rule.initial_state(theta, hyper)
    for j in range(steps):
        theta, state = rule.step(theta, state, gradient(theta, j), hyper)
    return theta


def run_torch(case: Case, steps: int = STEPS) -> dict[str, Tensor]:
    params = {k: torch.nn.Parameter(v) for k, v in start(case).items()}
    optimizer = case.build_torch(list(params.values()))
    for j in range(steps):
        for k, G in gradient({k: p.detach() for k, p in params.items()}, j).items():
            params[k].grad = G.to_sparse() if case.rule == "SparseAdam" else G
        optimizer.step()
    return {k: p.detach() for k, p in params.items()}


def lion(case: Case) -> dict[str, Tensor]:
    """Algorithm 2 of Chen et al. 2023, written out."""
    o, theta = case.options, start(case)
    momentum = {k: torch.zeros_like(v) for k, v in theta.items()}
    for j in range(STEPS):
        for k, G in gradient(theta, j).items():
            g = -G if o["maximize"] else G
            update = torch.sign(o["betas"][0] * momentum[k] + (1 - o["betas"][0]) * g)
            theta[k] = theta[k] - o["lr"] * (update + o["weight_decay"] * theta[k])
            momentum[k] = o["betas"][1] * momentum[k] + (1 - o["betas"][1]) * g
    return theta


def lamb(case: Case) -> dict[str, Tensor]:
    """Algorithm 2 of You et al. 2020, written out; φ(z) = min(z, norm_limit)."""
    o, theta = case.options, start(case)
    m = {k: torch.zeros_like(v) for k, v in theta.items()}
    v = {k: torch.zeros_like(x) for k, x in theta.items()}
    (b1, b2), limit = o["betas"], o["norm_limit"] or float("inf")
    for j in range(STEPS):
        for k, G in gradient(theta, j).items():
            g = -G if o["maximize"] else G
            m[k], v[k] = b1 * m[k] + (1 - b1) * g, b2 * v[k] + (1 - b2) * g**2
            c1, c2 = (1 - b1 ** (j + 1), 1 - b2 ** (j + 1)) if o["bias_correction"] else (1, 1)
            u = m[k] / c1 / (torch.sqrt(v[k] / c2) + o["eps"]) + o["weight_decay"] * theta[k]
            theta[k] = theta[k] - o["lr"] * min(float(theta[k].norm()), limit) / u.norm() * u
    return theta


PUBLISHED: dict[str, Callable[[Case], dict[str, Tensor]]] = {"Lion": lion, "LAMB": lamb}
