"""Kernels that have a second derivative, in place of fast ones that have none."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.backends import cuda

__all__ = ["FUSED", "twice_differentiable", "uncompiled"]

# The switches of scaled dot-product attention; on a CPU they are obeyed as well.
FUSED = (
    (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention by matrix products and softmax: as `sdpa_kernel(SDPBackend.MATH)`, at a tenth of its time."""
    on = [enable for enabled, enable in FUSED if enabled()]
    math = cuda.math_sdp_enabled()
    try:
        for enable in on:
            enable(False)
        cuda.enable_math_sdp(True)
        yield
    finally:
        for enable in on:
            enable(True)
        cuda.enable_math_sdp(math)


_lock = threading.Lock()
_inside = 0  # of all threads: torch's stance is one for the process
_stance = ExitStack()


@contextmanager
def uncompiled() -> Iterator[None]:
    """What a loss has compiled by `torch.compile`, a model or a function, runs as it was written: the backward of what
    is compiled has no derivative. Costs nothing where nothing was compiled in this process.
    """
    global _inside
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with _lock:
        if _inside == 0:
            _stance.enter_context(torch.compiler.set_stance("force_eager"))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _stance.close()
