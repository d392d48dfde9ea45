"""theta_0, checked: a flat dict of finite floating-point tensors, some of them held constant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gimli_core.arguments.fits_in_memory import check_fits
from gimli_core.derivatives.finite import finite
from gimli_core.environment import split_frozen
from gimli_core.errors import listing, unexpected
from gimli_core.layout import dense
from gimli_core.notation import Tensors
from gimli_core.transforms.tasks import checked_per_task, split_marked
from gimli_core.trees import nbytes

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

__all__ = ["check_made", "check_room", "check_tensor", "check_theta", "laid_out", "theta_by_task"]


def theta_by_task(theta_0: Any, tasks: int | None) -> tuple[frozenset[str], Any]:
    """(the names that each task has its own tensor of, theta_0 without marks). Raises ArgumentError.

    All of theta_0 may be marked `per_task`, or single entries: a head for every task on a body that they share.
    """
    all_marked, entries = split_marked(theta_0)
    if not isinstance(entries, Mapping):
        return frozenset(), entries
    split = {k: split_marked(v) for k, v in entries.items()}
    names = frozenset(k for k, (alone, _) in split.items() if alone or all_marked)
    for k in names:
        checked_per_task(f"theta_0[{k!r}]", split[k][1], tasks)
    return names, {k: v for k, (_, v) in split.items()}


def check_theta(theta_0: Any) -> tuple[Tensors, Tensors]:
    """(the trained entries of theta_0, those that are held constant). Raises ArgumentError."""
    if not isinstance(theta_0, Mapping) or not theta_0:
        actual = "an empty dict" if isinstance(theta_0, Mapping) else type(theta_0).__name__
        raise unexpected(
            "theta_0",
            "a dict {name: floating-point tensor}",
            actual,
            "For a module: dict(module.named_parameters()).",
        )
    seen: dict[int, str] = {}
    for k, v in theta_0.items():
        check_tensor(f"theta_0[{k!r}]", v)
        if not isinstance(k, str):
            raise unexpected("theta_0", "names that are strings", f"the key {k!r}", "Rename it.")
        if id(v) in seen:
            raise unexpected(
                f"theta_0[{k!r}]",
                "each tensor once",
                f"the tensor of {seen[id(v)]!r} again",
                "For tied weights give one name, as named_parameters() does; functional_call fills in the others.",
            )
        seen[id(v)] = k
    trained, frozen = laid_out(theta_0)
    if not trained:
        raise unexpected(
            "theta_0",
            "at least one trained entry",
            "only frozen parameters",
            "Call .requires_grad_() on what is trained.",
        )
    first_name, first = next(iter(trained.items()))
    for k, v in trained.items():
        if v.device != first.device:
            expected = f"a tensor on {first.device}, as theta_0[{first_name!r}] is"
            raise unexpected(f"theta_0[{k!r}]", expected, f"one on {v.device}", "Bring all entries to one device.")
    return trained, frozen


def laid_out(theta_0: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
    """The trained entries, and what they are laid over: all of theta_0 if some are held constant, else nothing.

    Their shapes stay.
    """
    trained, frozen = split_frozen(theta_0)
    trained = {k: dense(v) for k, v in trained.items()}
    # The losses see the order in which theta_0 was given: some take theta.values() apart by it.
    return trained, {k: v.detach() for k, v in theta_0.items()} if frozen else {}


def check_room(theta_0: Any, tasks: int) -> None:
    """Raise ArgumentError where what all tasks end at would not fit into memory; before the entries are checked."""
    entries = theta_0.items() if isinstance(theta_0, Mapping) else ()
    dense = {k: v for k, v in entries if isinstance(v, Tensor) and not is_lazy(v) and v.layout == torch.strided}
    trained, _ = split_frozen(dense)
    if trained:
        check_fits("tasks", tasks, nbytes(trained), "theta_J of all tasks", next(iter(trained.values())).device)


def check_made(argument: str, tensor: Tensor) -> None:
    """Raise ArgumentError unless a tensor of any shape holds values, and can have derivatives."""
    if is_lazy(tensor) or tensor.is_meta:  # a lazy parameter answers nothing else
        actual = "a parameter that a lazy module has not made yet" if is_lazy(tensor) else "one on the meta device"
        do = "Materialize it: run the module once, or .to_empty(device=...) and initialise it."
        raise unexpected(argument, "a tensor that holds values", actual, do)
    if tensor.is_inference():
        actual, do = "one made inside of it, which has no derivatives", "Clone it outside: tensor.clone()."
        raise unexpected(argument, "a tensor made outside of torch.inference_mode", actual, do)


def check_tensor(argument: str, value: Any) -> None:
    """Raise ArgumentError unless `value` is a dense floating-point tensor, of any shape, that holds values."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
        actual = f"a {value.dtype} tensor, layout {value.layout}" if isinstance(value, Tensor) else type(value).__name__
        raise unexpected(argument, "a dense floating-point tensor", actual, "Convert it, or leave it out.")
    if value.dtype not in DTYPES:
        actual = f"one of {value.dtype}, which has no arithmetic"
        raise unexpected(argument, f"a tensor of {listing(DTYPES)}", actual, "Convert it with .float().")
    check_made(argument, value)
    if not finite(value):
        raise unexpected(argument, "finite values", "inf or nan", "Find out where it was computed.")
