"""Arguments of another kind than is meant: an ArgumentError before any work, never a bare exception or a silent yes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core as gimli
from gimli_core import optimizers
from gimli_core.errors import ArgumentError
from gimli_core.memory import Budget, Checkpoint
from gimli_core.optimizers import SGD, Adam, Optimizer

SWITCHES = [
    (kind, f.name)
    for kind in vars(optimizers).values()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and dataclasses.is_dataclass(kind)
    for f in dataclasses.fields(kind)
    if f.type in (bool, "bool") and f.init
]


def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
    return (theta["w"] - batch).square().sum()


def ran(**changed: Any) -> Any:
    calls = []

    def counted(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        calls.append(1)
        return loss(theta, phi, batch)

    arguments: dict[str, Any] = {
        "problem": gimli.Problem(counted, counted, changed.pop("optimizer", SGD(lr=0.1))),
        "theta_0": {"w": torch.ones(2)},
        "train_batches": [torch.zeros(2)] * 3,
        "val_batch": torch.zeros(2),
    }
    try:
        return gimli.meta_gradient(**{**arguments, **changed})
    finally:
        ran.calls = len(calls)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"check": "no"}, r"check: expected True or False; got 'no'"),
        ({"progress": "no"}, r"progress: expected True or False; got 'no'"),
        ({"progress": 1}, r"progress: expected True or False; got 1"),
        ({"watch": 3}, r"watch: expected a function of a gimli.Event"),
        ({"steps": 10**30}, r"steps: expected at most \d+ steps; got 1e\+30"),
        ({"train_batches": list}, r"train_batches: expected .*; got the class list"),
        ({"val_weights": {1: 0, 2: 0, 3: 0}}, r"val_weights: expected a sequence of numbers"),
        ({"optimizer": SGD(lr=0.1, groups={"a": 3})}, r"optimizer groups\['a'\]: expected a list"),
        ({"theta_0": {"w": torch.ones(2).to(torch.float8_e4m3fn)}}, r"theta_0\['w'\]: .*float8_e4m3fn, which has no"),
        ({"theta_0": {"w": {"a": torch.ones(2)}}}, r"theta_0\['w'\]: expected a dense floating-point tensor; got dict"),
        ({"theta_0": [torch.ones(2)]}, r"theta_0: expected a dict"),
        ({"approximation": gimli.FirstOrder}, r"approximation: .*got the class FirstOrder"),
        ({"tasks": "3"}, r"tasks: expected a whole number"),
        (
            {"tasks": 3, "theta_0": gimli.per_task({"w": torch.ones(3, 2), "f": nn.Parameter(torch.ones(2), False)})},
            r"theta_0\['f'\]: expected a tensor with a leading dimension of 3 tasks",
        ),
    ],
)
def test_another_kind_of_argument(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        ran(**changed)
    assert ran.calls == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(("kind", "name"), SWITCHES, ids=lambda part: getattr(part, "__name__", part))
def test_every_switch_of_every_rule_is_true_or_false(kind: Any, name: str) -> None:
    inner = (Adam(),) if any(f.name == "inner" for f in dataclasses.fields(kind)) else ()
    with pytest.raises(ArgumentError, match=rf"\({name}=…\): expected True or False; got 'no'"):
        kind(*inner, **{name: "no"})


def test_the_table_of_switches_is_not_empty() -> None:
    assert (Adam, "amsgrad") in SWITCHES
    assert len(SWITCHES) > 20


def test_switches_and_sizes_of_schedules() -> None:
    with pytest.raises(ArgumentError, match=r"Checkpoint\(gradients=…\): expected True or False"):
        Checkpoint(2, gradients="no")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="Budget: expected a size"):
        Budget("9" * 5000)


@pytest.mark.parametrize("patterns", [["w"], ("w",), {"w"}, {"w": None}.keys()], ids=lambda p: type(p).__name__)
def test_any_collection_of_patterns_is_a_group(patterns: Any) -> None:
    assert ran(optimizer=SGD(lr=0.1, groups={"a": patterns})).B_0["w"].shape == (2,)
