"""The first call of a compiled function: held against the function as it is, before it is used."""

from __future__ import annotations

import logging
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree

from gimli_core.compiled.compiler.trees_in_source import builder, taker
from gimli_core.compiled.compiler.unlogged import unlogged
from gimli_core.environment import Environment
from gimli_core.errors import first_line, notice

__all__ = [
    "Uncompiled",
    "as_close",
    "beside_eager",
    "compiling",
    "distance",
    "of_compiler",
    "progress_told",
    "reason_of",
    "tell_progress",
    "tell_traced",
]

# ||compiled - eager|| / ||eager|| that rounding can explain, by dtype; a compiled function beyond it is not used.
TRUSTED = {torch.float64: 1e-6, torch.float32: 2e-2}
# What begins the names of guards on code: torch's pytrees and functional transforms, and this library.
AS_IT_IS = (
    "structure",
    "G['pytree']",
    "G['__import_torch_dot_utils_dot__pytree']",
    "G['__import_torch_dot__functorch_dot_",
    "G['__import_torch_dot_nn_dot_utils_dot_stateless']",
    "G['__import_gimli_core_dot_",
)
NUDGED = 4  # eager results of arguments that differ in the last place
# Seconds that compiling takes once a graph is traced, on two cores and with nothing on the disk: 6 for 105 operations,
# 12 for 635 on single vectors, 14 for 454 of a whole run, 24 for 503 beside convolutions.
START, EACH = 4.0, 0.025

_here = threading.local()


class Uncompiled(Exception):
    """Why a function cannot be compiled, in one line."""


def beside_eager(
    function: Callable[..., Any],
    environment: Environment,
    arguments: tuple[Any, ...],
    backend: Callable[[Any, Any], Callable[..., Any]],
    call: Callable[[Callable[..., Any], Sequence[Any], Any], list[Any]],
) -> tuple[Callable[..., Any], Any, float]:
    """(`function` of flat arguments under `torch.compile`, what `function` returned, seconds of the first `call`).

    `call` gets the compiled function, the leaves of the arguments and what the function returned as it is.
    The environment is left as it was found. Raises Uncompiled, also where the two do not agree.
    """
    snapshot = environment.capture()
    try:
        with torch.no_grad(), warnings.catch_warnings(), unlogged("torch._guards", _is_told):
            warnings.simplefilter("ignore", DeprecationWarning)  # the compiler's own, about its parts
            eager = function(*arguments)
            flat, structure = pytree.tree_leaves(arguments), builder(arguments)
            results_of = taker(eager)

            def of_flat(*flat: Any) -> list[Any]:
                return results_of(function(*structure(flat)))

            # torch.compile keeps what it compiled on the code object: other kernels must not share it.
            copied = types.FunctionType(of_flat.__code__.replace(), globals(), "kernel", None, of_flat.__closure__)
            options: dict[str, Any] = {"guard_filter_fn": may_change}
            compiled = torch.compile(copied, fullgraph=True, dynamic=False, backend=backend, options=options)
            environment.restore(snapshot)
            start = time.perf_counter()
            results = call(compiled, flat, eager)
            seconds = time.perf_counter() - start
    except Exception as error:
        raise reason_of(error) from error
    finally:
        environment.restore(snapshot)
    worst = distance(results, pytree.tree_leaves(eager))
    if not worst <= 1 and not as_close(results, eager, function, environment, arguments):
        raise Uncompiled(
            f"compiled and eager differ by {worst:.3g} times what rounding can explain. If the same compiles in "
            "float64 (theta_0, batches and modules in .double()), the losses magnify rounding: go on as it is, or in "
            "float64. If not, the compiler is at fault: pass compile=False, and report the loss"
        )
    return compiled, eager, seconds


def _is_told(record: logging.LogRecord) -> bool:
    """Whether torch logs, with all that it knows, what is raised and then told in one line."""
    return "while creating guard" in record.getMessage()


def may_change(guards: Sequence[Any]) -> list[bool]:
    """Which of `torch.compile`'s guards are looked at in every call: all but those on code that stays as it is.

    Of 2989 guards on a run of five steps 2169 watch the functions of this library and of torch's own transforms, and
    the structure that the kernel was made with. To look at these took 6 % of its time.
    """
    return [not guard.name.startswith(AS_IT_IS) for guard in guards]


def as_close(
    results: list[Any], eager: Any, function: Callable[..., Any], environment: Environment, arguments: tuple[Any, ...]
) -> bool:
    """Whether compiled results are as close to those in float64 as eager ones are.

    Adam's first step divides a gradient by its own size: where that is rounding alone, no two computations agree. And a
    unit of a network that is nearly off may be on in one and off in the other. So eager results count that come of
    the same arguments, and of some that differ from them in the last place: how far such results are apart is what
    rounding can do here, and a compiled one is but one more of them.
    """

    def exact(x: Any) -> Any:
        return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    generator = torch.Generator().manual_seed(0)

    def nudged(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return x
        places = torch.randint(-1, 2, x.shape, generator=generator).to(x)
        return x * (1 + places * torch.finfo(x.dtype).eps)

    snapshot = environment.capture()

    def of(arguments: Any) -> list[Any]:
        environment.restore(snapshot)
        return pytree.tree_leaves(function(*arguments))

    try:
        with torch.no_grad():
            truth = of(pytree.tree_map(exact, arguments))
            others = [pytree.tree_leaves(eager), *(of(pytree.tree_map(nudged, arguments)) for _ in range(NUDGED))]
    except Exception:  # what the function reads besides is in float32
        return False
    finally:
        environment.restore(snapshot)
    return distance(results, truth) <= 2 * max(distance(other, truth) for other in others)


def distance(a: Any, b: Any) -> float:
    """The largest ||a - b|| / ||b|| over all tensors, in units of what is trusted; inf where only one is finite."""
    tensors = list(zip(a, b, strict=True))
    sizes = [torch.linalg.vector_norm(y.nan_to_num().double()).item() for _, y in tensors]
    floor = 1e-4 * max(sizes, default=0.0)  # a tensor of rounding residues alone is compared with the others
    worst = 0.0
    for (x, y), size in zip(tensors, sizes, strict=True):
        if x.shape != y.shape or not torch.equal(x.isfinite(), y.isfinite()):
            return float("inf")
        gap = torch.linalg.vector_norm(x.nan_to_num().double() - y.nan_to_num().double()).item()
        if gap and not max(size, floor):
            return float("inf")
        worst = max(worst, gap / max(size, floor) / TRUSTED.get(x.dtype, 3e-2) if gap else 0.0)
    return worst


@contextmanager
def progress_told(told: bool) -> Iterator[None]:
    """Within it, in this thread, how far compiling is gets told, or not: of many ranks one tells what all do."""
    before = getattr(_here, "told", True)
    _here.told = told and before
    try:
        yield
    finally:
        _here.told = before


def tell_progress(text: str) -> None:
    """A notice of how far compiling is, where it is told."""
    if getattr(_here, "told", True):
        notice(text)


def tell_traced(name: str, operations: int) -> None:
    """How far compiling is, and what it still takes."""
    seconds = START + EACH * operations
    unless = "unless torch's cache on the disk has it"
    tell_progress(f"{name} is traced, {operations} operations; about {seconds:.0f} s more, {unless}")


@contextmanager
def compiling() -> Iterator[None]:
    """Within it, what the compiler cannot do is Uncompiled; what is raised by the compiled code stays as it is."""
    try:
        yield
    except Exception as error:
        if not of_compiler(error):
            raise
        raise reason_of(error) from error


def of_compiler(error: Exception) -> bool:
    """Whether an exception is the compiler's own, not the compiled code's."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "torch._functorch"))


def reason_of(error: Exception) -> Uncompiled:
    """Why something was not compiled, as an exception; the compiler wraps what is raised within it."""
    inner: Any = getattr(error, "inner_exception", error)
    if isinstance(inner, Uncompiled):
        return inner
    if type(inner).__name__ != "CppCompileError":  # by name: to import it takes seconds
        return Uncompiled(first_line(inner))
    said = [line.strip() for line in inner.output.splitlines() if line.strip()] or [first_line(inner)]
    return Uncompiled(f"the C++ compiler says: {next((line for line in said if 'error' in line.lower()), said[0])}")
