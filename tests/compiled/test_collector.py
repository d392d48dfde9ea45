"""While something is compiled, Python's collector looks through young objects alone; afterwards it is as it was."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch

import gimli_core as gimli
from gimli_core.compiled import choice
from gimli_core.compiled.compiler.collector import NEVER, young_alone
from gimli_core.compiled.compiler.trial import Uncompiled
from gimli_core.notation import Tensors

FOUND = (500, 7, 9)


def square(theta: Tensors, phi: Tensors, batch: torch.Tensor) -> torch.Tensor:
    return (theta["w"] * batch).sum() ** 2


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    """Ones that nobody else sets, and nothing frozen; afterwards what was found."""
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    gc.set_threshold(*FOUND)
    gc.unfreeze()
    yield
    gc.set_threshold(*before)
    if frozen:
        gc.freeze()


def test_all_that_is_alive_is_left_alone_within_it_and_looked_through_again_after_it() -> None:
    with young_alone():
        assert gc.get_threshold() == (FOUND[0], NEVER, NEVER)
        with young_alone():
            pass
        assert gc.get_threshold() == (FOUND[0], NEVER, NEVER)
    assert gc.get_threshold() == FOUND


def test_young_garbage_is_collected_within_it() -> None:
    class Ring:
        def __init__(self) -> None:
            self.closed = self

    with young_alone():
        gone = weakref.ref(Ring())
        kept: list[list[int]] = [[] for _ in range(100 * FOUND[0])]
    assert gone() is None
    assert kept


def test_what_stays_is_old_afterwards_and_not_looked_through_at_once() -> None:
    with young_alone():
        kept = [[i] for i in range(100 * FOUND[0])]
    looks = [of["collections"] for of in gc.get_stats()]
    assert any(x is kept[-1] for x in gc.get_objects(generation=2))
    more = [[i] for i in range(3 * FOUND[0])]
    assert [of["collections"] for of in gc.get_stats()][1:] == looks[1:]
    assert more


def test_what_somebody_has_frozen_stays_so() -> None:
    kept = [[1]]
    gc.freeze()
    with young_alone():
        pass
    assert gc.get_freeze_count()
    assert not any(x is kept for x in gc.get_objects())  # which tells what is not frozen


def test_the_last_one_out_puts_back_what_the_first_one_found_also_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), young_alone(), young_alone():
        raise ZeroDivisionError
    assert gc.get_threshold() == FOUND


def test_threads_that_overlap_put_back_what_the_first_of_them_found() -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with young_alone():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with young_alone():
        thread.start()
        assert inside.wait(10)
    assert gc.get_threshold()[2] == NEVER
    leave.set()
    thread.join()
    assert gc.get_threshold() == FOUND


def test_what_somebody_sets_meanwhile_stands() -> None:
    with young_alone():
        gc.set_threshold(600, 6, 6)
    assert gc.get_threshold() == (600, 6, 6)


def test_it_is_so_while_something_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[int] = []

    def compiled(inputs: object) -> object:
        met.append(gc.get_threshold()[2])
        raise Uncompiled("this is a test")

    monkeypatch.setattr(choice, "KINDS", {name: (what, compiled) for name, (what, _) in choice.KINDS.items()})
    problem = gimli.Problem(square, square, gimli.optimizers.SGD(lr=0.1))
    ones = torch.ones(2)
    gimli.meta_gradient(problem, {"w": ones}, ones, ones, steps=1, compile="steps")
    assert met == [NEVER]
    assert gc.get_threshold() == FOUND
