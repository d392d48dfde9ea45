"""Any wrapper around any rule or wrapper, with any names: held against autograd through the same steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

import gimli_core as gimli
from gimli_core.optimizers import (
    EMA,
    SGD,
    Accumulate,
    Adafactor,
    Adagrad,
    Adam,
    ClipNorm,
    ClipValue,
    Lookahead,
    MaskedDecay,
    Optimizer,
    Partition,
)
from gimli_core.verification.oracles.plain_rules import flat_root

D = torch.float64
NAMES = ("w", "step", "skipped", "ema.v", "all", "a.b", "größe", "slow")
RULES = [
    lambda: SGD(lr=0.1),
    lambda: SGD(lr=0.1, momentum=0.9),
    lambda: Adam(lr=0.05, eps=0.1),
    lambda: Adagrad(lr=0.1, initial_accumulator_value=0.1),
    lambda: Adafactor(lr=0.05),
]
WRAPPERS: dict[str, Any] = {
    "Lookahead": lambda inner: Lookahead(inner, slow_rate=0.4, every=2),
    "EMA": lambda inner: EMA(inner, ema_decay=0.7),
    "Accumulate": lambda inner: Accumulate(inner, every=2),
    "MaskedDecay": lambda inner: MaskedDecay(inner, decay=0.1, decoupled=False),
    "ClipNorm": lambda inner: ClipNorm(inner, max_norm=0.7),
    "ClipValue": lambda inner: ClipValue(inner, clip_value=0.4),
}


@st.composite
def compositions(draw: st.DrawFn) -> tuple[Optimizer, dict[str, Tensor], list[tuple[str, ...]], bool]:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=3, unique=True))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    shapes = [draw(st.sampled_from([(2,), (2, 2)])) for _ in names]
    theta = {k: torch.randn(s, generator=generator, dtype=D) for k, s in zip(names, shapes, strict=True)}
    rule = draw(st.sampled_from(RULES))()
    if draw(st.booleans()):
        first, rest = draw(st.sampled_from(RULES))(), draw(st.sampled_from(RULES))()
        first = Accumulate(first, every=2) if draw(st.booleans()) else first
        rule = Partition({"one": (first, names[:1]), "two": (rest, names[1:])})
    inside = ["Accumulate"] if isinstance(rule, Partition) else []
    chosen = [w for w in draw(st.lists(st.sampled_from(list(WRAPPERS)), max_size=3, unique=True)) if w not in inside]
    for wrapper in chosen:
        rule = WRAPPERS[wrapper](rule)
        if wrapper == "EMA":
            theta = rule.extend(theta)
    uses = st.lists(st.sampled_from(names), min_size=1, unique=True).map(tuple)
    steps = draw(st.lists(uses, min_size=2, max_size=4))
    return rule, theta, steps, "EMA" in chosen


def train_loss(theta: Any, phi: Any, used: tuple[str, ...]) -> Tensor:
    return phi["step"] * torch.stack([(theta[k] - 0.2).pow(4).sum() + theta[k].square().sum() for k in used]).sum()


def val_loss(theta: Any, phi: Any, batch: Any) -> Tensor:
    return torch.stack([v.sin().sum() for v in theta.values()]).sum()


class FlatRoots(TorchFunctionMode):
    """sqrt'(0) = 0: an idle step of Accumulate puts moments of 0 under Adam's root, where autograd alone gives NaN."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return flat_root(args[0]) if func in (torch.sqrt, Tensor.sqrt) else func(*args, **(kwargs or {}))


def check(composed: tuple[Optimizer, dict[str, Tensor], list[tuple[str, ...]], bool]) -> None:
    rule, theta_0, steps, _ = composed
    phi_opt = {n: torch.tensor(v, dtype=D) for n, v in rule.hyperparameters().items() if isinstance(v, float) and v > 0}
    phi_opt = {n: v for n, v in phi_opt.items() if n.split(".")[-1] in ("lr", "slow_rate", "ema_decay", "decay")}
    phi_loss = {"step": torch.tensor(0.8, dtype=D)}
    problem = gimli.Problem(train_loss, val_loss, rule)
    arguments = {"phi_opt": phi_opt, "phi_loss": phi_loss, "check": False}
    came = gimli.meta_gradient(problem, theta_0, steps, None, **arguments)
    # the same steps, differentiated by autograd
    leaves = {k: v.clone().requires_grad_() for k, v in theta_0.items()}
    learned = {n: v.clone().requires_grad_() for n, v in phi_opt.items()}
    phi = {"step": phi_loss["step"].clone().requires_grad_()}
    bound = rule.bind(learned)
    hyper = {k: {n: torch.as_tensor(v, dtype=D) for n, v in bound.hyperparameters().items()} for k in theta_0}
    theta: dict[str, Tensor] = dict(leaves)
    state = bound.initial_state(theta, hyper)
    moved = set(bound.moved_by_gradient(theta))
    for used in steps:
        found = torch.autograd.grad(
            train_loss(theta, phi, used), list(theta.values()), create_graph=True, allow_unused=True
        )
        pairs = [(k, g) for k, g in zip(list(theta), found, strict=True) if g is not None or k not in moved]
        G = {k: torch.zeros_like(theta[k]) if g is None else g for k, g in pairs}
        with FlatRoots():
            theta, state = bound.step_used(theta, state, G, hyper)
    inputs = [*leaves.values(), *learned.values(), phi["step"]]
    found = torch.autograd.grad(val_loss(theta, phi, None), inputs, allow_unused=True)
    expected = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]
    ours = [*(came.B_0[k] for k in leaves), *(came.A_opt[n] for n in learned), came.A_loss["step"]]
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(compositions())
def test_any_composition(composed: Any) -> None:
    check(composed)


@pytest.mark.long
@settings(max_examples=1500, deadline=None)
@given(compositions())
def test_many_compositions(composed: Any) -> None:
    check(composed)


def test_frozen_entries_have_frozen_averages() -> None:
    ema = EMA(SGD(lr=0.1), ema_decay=0.5)
    frozen = torch.nn.Parameter(torch.ones(2, dtype=D), requires_grad=False)
    theta_0 = ema.extend({"w": torch.ones(2, dtype=D), "f": frozen})
    problem = gimli.Problem(
        lambda t, p, b: (ema.weights(t)["w"] * ema.weights(t)["f"]).square().sum(),
        lambda t, p, b: (ema.averages(t)["w"] * ema.averages(t)["f"]).sum(),
        ema,
    )
    assert set(gimli.meta_gradient(problem, theta_0, [None], None).B_0) == {"w", "ema.w"}


def test_tasks_take_an_entry_called_step() -> None:
    problem = gimli.Problem(
        lambda t, p, b: t["step"].square().sum(), lambda t, p, b: t["step"].sin().sum(), SGD(lr=0.1, momentum=0.9)
    )
    theta_0 = {"step": torch.ones(2, dtype=D)}
    one = gimli.meta_gradient(problem, theta_0, [None] * 2, None)
    both = gimli.meta_gradient(problem, theta_0, [None] * 2, None, tasks=2)
    torch.testing.assert_close(both.B_0["step"], one.B_0["step"])


@pytest.mark.parametrize("shape", [(2,), (2, 2)])
def test_a_slot_without_entries_goes_through_a_file(shape: tuple[int, ...], tmp_path: Any) -> None:
    problem = gimli.Problem(
        lambda t, p, b: t["w"].square().sum(), lambda t, p, b: t["w"].sin().sum(), Adafactor(lr=0.1)
    )
    theta_0 = {"w": torch.ones(shape, dtype=D)}
    expected = gimli.meta_gradient(problem, theta_0, [None] * 6, None)
    came = gimli.meta_gradient(problem, theta_0, [None] * 6, None, memory=gimli.memory.Checkpoint(2, disk=tmp_path))
    assert torch.equal(came.B_0["w"], expected.B_0["w"])
