"""The meter of living tensors looks at all of them only where a new peak may be; its peak is that of every look."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gimli_core.memory.meters import LiveBytes

ACTS = st.one_of(
    st.tuples(st.just("make"), st.sampled_from((1, 600, 1000))),
    st.tuples(st.just("drop"), st.integers(0, 2)),
    st.tuples(st.just("view"), st.integers(0, 2)),
    st.tuples(st.just("begin"), st.just(0)),
)


class EveryLook(LiveBytes):
    """As the meter, but all is counted after every operation."""

    def operation(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = super().operation(function, args, kwargs)
        self.peak = max(self.peak, self.live())
        return out


def seen(meter: LiveBytes, acts: list[tuple[str, int]]) -> list[tuple[int, ...]]:
    """What the meter notes while tensors are made, dropped and looked at in other shapes."""
    held: list[Tensor] = []
    notes: list[tuple[int, ...]] = []
    with meter:
        for act, number in acts:
            if act == "begin":
                notes.append(tuple(meter.end()))
                meter.begin()
            elif act == "make":
                held.append(torch.zeros(number))
            elif held and act == "view":
                held.append(held[number % len(held)].view(-1))
            elif held:
                del held[number % len(held)]
        notes.append(tuple(meter.end()))
    return notes


@given(st.lists(ACTS, max_size=40))
def test_the_peak_is_that_of_every_look(acts: list[tuple[str, int]]) -> None:
    assert seen(LiveBytes(), acts) == seen(EveryLook(), acts)


def test_it_does_not_look_at_all_of_them_every_time() -> None:
    meter = LiveBytes()
    looks = []
    look = meter.live
    meter.live = lambda: looks.append(None) or look()  # type: ignore[method-assign,func-returns-value]
    with meter:
        torch.zeros(10_000)  # a peak, which nothing below comes near
        for _ in range(100):
            torch.zeros(10)
    assert len(looks) < 20
