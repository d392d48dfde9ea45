"""The modes around a forward pass, for work that is done again in the backward pass.

`loss.backward()` is usually called after the block that the forward pass was written in. What is evaluated again then
must meet the modes of that block: autocast, the choice of attention kernels, deterministic algorithms.
`torch.utils.checkpoint` keeps autocast for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch.backends import cuda

from gimli_core.derivatives.kernels import FUSED

__all__ = ["modes_now"]

# (what it is now, how it is set), of modes that are numbers and switches of torch
_SWITCHES: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    *FUSED,
    (cuda.math_sdp_enabled, cuda.enable_math_sdp),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
)


_Autocast = tuple[str, bool, torch.dtype, bool]


def modes_now(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """The modes as they are; calling what is returned gives a context in which they are so again."""
    kinds = dict.fromkeys(("cpu", device.type))
    autocast = [_autocast(kind) for kind in kinds if torch.amp.is_autocast_available(kind)]
    then = [get() for get, _ in _SWITCHES]

    def again() -> AbstractContextManager[None]:
        now = [get() for get, _ in _SWITCHES]
        others = [then_of for then_of in autocast if then_of != _autocast(then_of[0])]
        return nullcontext() if now == then and not others else _changed(then, now, others)

    return again


@contextmanager
def _changed(then: list[Any], now: list[Any], autocast: list[_Autocast]) -> Iterator[None]:
    try:
        _put(then, now)
        with ExitStack() as stack:
            for kind, on, dtype, cache in autocast:
                stack.enter_context(torch.autocast(kind, dtype, on, cache))
            yield
    finally:
        _put(now, then)


def _autocast(kind: str) -> _Autocast:
    """How autocast is set for a kind of device."""
    return kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind), torch.is_autocast_cache_enabled()


def _put(values: list[Any], instead_of: list[Any]) -> None:
    for (_, set_to), value, old in zip(_SWITCHES, values, instead_of, strict=True):
        if value != old:
            set_to(value)
