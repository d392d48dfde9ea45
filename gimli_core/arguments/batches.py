"""train_batches and steps, checked: a function of j that may be asked again, and J."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor

from gimli_core.arguments.fits_in_memory import check_fits
from gimli_core.attributes import filled
from gimli_core.derivatives.micro_batches import MicroBatches
from gimli_core.errors import kind_of, unexpected

__all__ = ["check_batches", "check_val_batch", "code_of", "code_of_val"]

LOSS = 100  # bytes that a step's loss takes at least, as a tensor, with its places in lists


def check_batches(train_batches: Any, steps: Any) -> tuple[Callable[[int], Any], int]:
    """(batch_j as a function of j, J). Raises ArgumentError for a class, too few batches, or a J that is not one."""
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 0):
        raise unexpected("steps", "a whole number J >= 0", repr(steps), "steps=0 gives the plain gradient of val_loss.")
    if steps is not None and int(steps) > sys.maxsize:
        raise unexpected("steps", f"at most {sys.maxsize} steps", f"{int(steps):.3g}", "Lower it.")
    if isinstance(train_batches, type):
        actual = f"the class {train_batches.__name__}"
        do = "Give an instance, or a function j -> batch."
        raise unexpected("train_batches", "a sequence of batches, or a function j -> batch", actual, do)
    if isinstance(train_batches, Iterator) or (
        hasattr(train_batches, "__iter__") and not hasattr(train_batches, "__getitem__")
    ):
        raise unexpected(
            "train_batches",
            "a sequence, or a function of j: the sweep may ask for a batch again",
            f"{kind_of(train_batches)}, which can be read only in order",
            "Wrap it in list(...), cut to the steps you need.",
        )
    scalar = isinstance(train_batches, (Tensor, np.ndarray)) and train_batches.ndim == 0
    if (
        scalar
        or isinstance(train_batches, (Mapping, str))
        or not (hasattr(train_batches, "__len__") or callable(train_batches))
    ):
        raise unexpected(
            "train_batches",
            "a sequence of batches, or a function j -> batch",
            type(train_batches).__name__,
            "One batch for every step: lambda j: batch.",
        )
    steps = None if steps is None else int(steps)
    check_fits("steps", steps or 0, LOSS, "the losses of so many steps")
    if not hasattr(train_batches, "__len__"):
        if steps is None:
            raise unexpected(
                "steps", "a number, since train_batches is a function", "None", "Say how many steps to run."
            )
        return told(train_batches, steps), steps
    length = len(train_batches)
    if length == 0 and steps is None:
        raise unexpected("train_batches", "at least one batch", "none", "For no inner step at all say steps=0.")
    J = length if steps is None else steps
    if length < J:
        raise unexpected(
            "train_batches",
            f"a batch for each of the {J} steps",
            f"{length}",
            "Give more, lower steps, or use a function of j: lambda j: batch uses one batch for every step.",
        )
    return told(lambda j: train_batches[j], J), J


def check_val_batch(val_batch: Any, steps: int) -> Callable[[int], Any]:
    """val_batch as a function of j = 0 … J: one that is given as such, or the same for all.

    A function is one by what it is (def, lambda, a method, functools.partial): another object that can be called may
    well be what val_loss is to get.
    """
    if isinstance(val_batch, MicroBatches):
        actual, do = "MicroBatches", "Sum over its parts in val_loss, or return a number for each: [k]."
        raise unexpected("val_batch", "a batch as val_loss is to get it", actual, do)
    if _is_function(val_batch):
        return told(val_batch, steps, "val_batch")
    return lambda j: val_batch


def code_of(batches: Any, depth: int = 3) -> Any:
    """What is run where a batch is asked for: of a function its code, and that of functions that it closes over; of
    another object its type. None where nothing is run.
    """
    if type(batches) in (list, tuple, range) or isinstance(batches, (Tensor, np.ndarray)):
        return None
    function = getattr(batches, "func", batches)  # of a partial
    function = getattr(function, "__func__", function)
    if (code := getattr(function, "__code__", None)) is None:
        return type(function)
    within = function.__closure__ if depth else None
    return (code, *[code_of(cell.cell_contents, depth - 1) for cell in within or () if filled(cell)])


def code_of_val(val_batch: Any) -> Any:
    """Likewise, of a `val_batch`, which mostly is one."""
    return code_of(val_batch) if _is_function(val_batch) else None


def _is_function(val_batch: Any) -> bool:
    return inspect.isroutine(val_batch) or isinstance(val_batch, functools.partial)


def told(batches: Callable[[int], Any], steps: int, argument: str = "train_batches") -> Callable[[int], Any]:
    """The same function; where it fails, the error says at which step."""

    def batch(j: int) -> Any:
        try:
            return batches(j)
        except StopIteration as error:
            expected, do = f"a batch for each of the {steps} steps", "A function of j gives the same batch again."
            raise unexpected(argument, expected, f"StopIteration at j = {j}", do) from error
        except Exception as error:
            note = f"in {argument}, at inner step j = {j} of {steps}"
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
            raise

    return batch
