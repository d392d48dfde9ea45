"""What was found out for one call is found again by the next that looks alike, whatever stands in its batches."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.memory import Budget
from gimli_core.outlines import ByOutline, fits, outline


class Side(enum.Enum):
    LEFT = 1


class Opaque:
    """Equal to anything, and so told by nothing but itself."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


# Each makes a value anew, and another one of its kind.
MADE: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "bool": (lambda: bool(1), lambda: False),
    "int": (lambda: int("1000"), lambda: 1001),
    "float": (lambda: float("1.5"), lambda: 2.5),
    "nan": (lambda: float("nan"), lambda: 0.0),
    "complex": (lambda: complex("1+2j"), lambda: 1j),
    "str": (lambda: "".join(["a", "b"]), lambda: "ac"),
    "bytes": (lambda: bytes([1, 2]), lambda: bytes([1, 3])),
    "slice": (lambda: slice(int("300"), None), lambda: slice(301, None)),
    "range": (lambda: range(int("300")), lambda: range(301)),
    "enum": (lambda: Side(1), lambda: "Side.LEFT"),
    "numpy number": (lambda: np.float64(1.5), lambda: np.float64(2.5)),
    "numpy array": (lambda: np.arange(3.0), lambda: np.arange(3)),
    "dtype": (lambda: torch.float64, lambda: torch.float32),
    "device": (lambda: torch.device("cpu"), lambda: torch.device("cpu", 0)),
    "size": (lambda: torch.Size([2, 3]), lambda: torch.Size([2, 4])),
    "none": (lambda: None, lambda: 0),
}


@pytest.mark.parametrize("kind", MADE)
def test_a_value_made_anew_looks_the_same(kind: str) -> None:
    one, other = MADE[kind]
    assert fits({"x": torch.ones(2), "of": one()}, outline({"x": torch.zeros(2), "of": one()}))
    assert not fits({"x": torch.ones(2), "of": other()}, outline({"x": torch.zeros(2), "of": one()}))


def test_an_object_is_told_by_itself_alone() -> None:
    one = Opaque()
    assert fits([one], outline([one]))
    assert not fits([Opaque()], outline([one]))
    assert not fits([1], outline([True]))


def test_the_latest_are_remembered_and_no_more() -> None:
    found = ByOutline[int]()
    for n in range(1, 3 * ByOutline.LOOKS):
        found.put(torch.ones(n), n)
    assert len(found) == ByOutline.LOOKS
    assert found.get(torch.zeros(n)) == n
    assert found.get(torch.zeros(1)) is None


@pytest.mark.parametrize("kind", MADE)
def test_a_budget_measures_once_whatever_is_in_a_batch(kind: str) -> None:
    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
        return (theta["w"] * batch["x"]).square().sum()

    problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.1))
    for seed in range(3):
        torch.manual_seed(seed)
        batches = [{"x": torch.rand(2), "of": MADE[kind][0]()} for _ in range(5)]
        gimli.meta_gradient(problem, {"w": torch.rand(2)}, batches[:4], batches[4], memory=Budget("1GiB"))
    assert len(problem.memo.costs) == 1
