"""Runs on one vector of all tensors, made again with the tensors apart where a loss does not use one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gimli_core.arguments.call import Call
from gimli_core.transforms.one_vector import LeftAlone

__all__ = ["apart_if_needed", "keep_apart"]

Made = TypeVar("Made")


def apart_if_needed(call: Call, make: Callable[[], Made]) -> Made:
    """What `make` makes of a call; again, with tensors by name, where a loss does not use one of the one vector."""
    try:
        return make()
    except LeftAlone:
        keep_apart(call)
        return make()


def keep_apart(call: Call) -> None:
    """From now on the tensors of this problem stay apart."""
    call.problem.memo.by_name = True
    call.problem.memo.recalled.clear()
