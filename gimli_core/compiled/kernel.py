"""A pure function of tensors, compiled, and held against itself before it is used."""

from __future__ import annotations

import time
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gimli_core.errors import first_line
from gimli_core.modules import Environment
from gimli_core.notice import notice

__all__ = ["Kernel", "Uncompiled", "form"]

# ||compiled - eager|| / ||eager|| that rounding can explain, by dtype; a compiled function beyond it is not used.
TRUSTED = {torch.float64: 1e-9, torch.float32: 1e-3}


class Uncompiled(Exception):
    """Why a function cannot be compiled, in one line."""


class Kernel:
    """`function(*arguments)`, compiled for the form of one call's arguments.

    Guards of `torch.compile` watch what the function reads besides its arguments, and compile it again where that
    changes. A batch of another form, or one that the compiler cannot do after all, runs the function as it is.

    Args:
        name: in notices.
        function: pure, of nested dicts and lists of tensors.
        environment: what the function may read besides: restored between the trial runs.
        arguments: of a first call.
        varying: the part of the arguments whose form may differ from call to call.
        options: of torch.compile.

    Raises:
        Uncompiled: with the reason.
    """

    def __init__(
        self, name: str, function: Callable[..., Any], environment: Environment, arguments: tuple[Any, ...],
        varying: Any, **options: Any,
    ) -> None:  # fmt: skip
        self.name = name
        self._function = function
        self._form = form(varying)
        self._told = False
        self._given_up = False
        # torch.compile keeps what it compiled on the code object: kernels of other problems must not share it.
        own = types.FunctionType(
            function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__
        )
        self._compiled = torch.compile(own, fullgraph=True, dynamic=False, options={"fallback_random": True, **options})
        found = environment.capture()
        try:
            with torch.no_grad():
                eager = function(*arguments)
                environment.restore(found)
                start = time.perf_counter()
                compiled = self._compiled(*arguments)
                self.seconds = time.perf_counter() - start
        except Exception as error:
            raise Uncompiled(first_line(error)) from error
        finally:
            environment.restore(found)
        worst = distance(compiled, eager)
        if not worst <= 1:
            raise Uncompiled(f"compiled and eager differ by {worst:.3g} times what rounding can explain")

    def __call__(self, varying: Any, *arguments: Any) -> Any:
        with torch.no_grad():
            if self._given_up:
                return self._function(*arguments)
            if form(varying) != self._form:
                self._tell("its batch has another shape, dtype or content than the first")
                return self._function(*arguments)
            try:
                return self._compiled(*arguments)
            except Exception as error:
                if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "torch._functorch")):
                    raise
                self._given_up = True
                self._tell(first_line(error))
                return self._function(*arguments)

    def _tell(self, reason: str) -> None:
        if not self._told:
            self._told = True
            notice(f"{self.name} runs uncompiled here: {reason}")


def form(tree: Any) -> tuple[Any, ...]:
    """The structure of nested dicts, the shapes, dtypes and devices of their tensors, and what else they hold."""
    leaves, structure = pytree.tree_flatten(tree)
    return structure, tuple((x.shape, x.dtype, x.device) if isinstance(x, Tensor) else _constant(x) for x in leaves)


def _constant(value: Any) -> tuple[Any, ...]:
    plain = isinstance(value, (bool, int, float, str, type(None)))
    return type(value), value if plain else id(value)


def distance(a: Any, b: Any) -> float:
    """The largest ||a - b|| / ||b|| over all tensors, in units of what is trusted; inf where only one is finite."""
    tensors = list(zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True))
    sizes = [torch.linalg.vector_norm(y.nan_to_num().double()).item() for _, y in tensors]
    floor = 1e-4 * max(sizes, default=0.0)  # a tensor of rounding residues alone is compared with the others
    worst = 0.0
    for (x, y), size in zip(tensors, sizes, strict=True):
        if x.shape != y.shape or not torch.equal(x.isfinite(), y.isfinite()):
            return float("inf")
        gap = torch.linalg.vector_norm(x.nan_to_num().double() - y.nan_to_num().double()).item()
        worst = max(worst, gap / max(size, floor) / TRUSTED.get(y.dtype, 3e-2) if gap else 0.0)
    return worst
