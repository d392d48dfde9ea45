"""Trying the losses before a run, without a trace: on copies, and with what modules keep put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gimli_core.arguments.call import Call
from gimli_core.arguments.inputs import Inputs
from gimli_core.environment import Environment
from gimli_core.meta_parameters.marks import tensor_paths

__all__ = ["copied", "looking", "same", "same_data", "tensors_of", "trial"]


@contextmanager
def looking(call: Call) -> Iterator[None]:
    """Batches may be asked for in here, before the run, without a trace: a function of j may draw random numbers, or
    keep something, and the run asks for the same batches again.
    """
    batches = [b for b in (call.train_batches, call.val_batch) if not isinstance(b, (list, tuple, range, Tensor))]
    functions = [b for b in batches if callable(b) or hasattr(b, "__getitem__")]
    if not functions:
        yield
        return
    device = next((v.device for _, v in tensor_paths(call.theta_0)), torch.device("cpu"))
    with Environment((), device, functions, call.room).trial():
        yield


@contextmanager
def trial(inputs: Inputs) -> Iterator[Inputs]:
    """The inputs with copies of every tensor that a loss is called with.

    A loss may change its batch in place, write through .data, count its calls in a module or carry a state there:
    the run then starts as if nothing had been tried.
    """
    values = inputs.values
    with inputs.environment.trial():
        yield replace(
            inputs,
            values=replace(
                values,
                theta_0={k: v.clone() for k, v in values.theta_0.items()},
                frozen={k: v.clone() for k, v in values.frozen.items()},
                phi_loss={k: v.clone() for k, v in values.phi_loss.items()},
                batch=lambda j: copied(values.batch(j)),
                val_batch=lambda j: copied(values.val_batch(j)),
            ),
        )


def copied(batch: Any) -> Any:
    """A batch with a copy of every tensor and array in it, each once; one that has none is itself."""
    leaves, _ = pytree.tree_flatten(batch)
    copies = {id(leaf): _copy(leaf) for leaf in leaves if isinstance(leaf, (Tensor, np.ndarray))}
    return pytree.tree_map(lambda leaf: copies.get(id(leaf), leaf), batch) if copies else batch


def _copy(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf.copy()
    copy = leaf.detach().clone()
    return copy.requires_grad_() if leaf.requires_grad else copy


def tensors_of(batch: Any) -> list[Tensor]:
    """Every tensor in a batch. Of any shapes."""
    return [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same; nan is the same as nan. Of any shapes."""
    if a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b):  # in no memory besides
        return True
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def same_data(one: Any, other: Any) -> bool:
    """Whether two batches of one structure hold the same, as far as their tensors are dense."""
    pairs = zip(tensors_of(one), tensors_of(other), strict=True)
    return all(same(a, b) for a, b in pairs if a.layout == torch.strided and not a.is_nested)
