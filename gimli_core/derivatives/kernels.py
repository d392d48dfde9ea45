"""Kernels that have a second derivative, in place of fast ones that have none."""

from __future__ import annotations

import sys
import threading
from typing import Any

from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch.backends import cuda

__all__ = ["FUSED", "twice_differentiable", "uncompiled"]

# The switches of scaled dot-product attention; on a CPU they are obeyed as well.
FUSED = (
    (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
)


class twice_differentiable:
    """Attention by matrix products and softmax: as `sdpa_kernel(SDPBackend.MATH)`, at a tenth of its time."""

    def __enter__(self) -> None:
        self._on = [enable for enabled, enable in FUSED if enabled()]
        self._math = cuda.math_sdp_enabled()
        for enable in self._on:
            enable(False)
        cuda.enable_math_sdp(True)

    def __exit__(self, *_: object) -> None:
        for enable in self._on:
            enable(True)
        cuda.enable_math_sdp(self._math)


_lock = threading.Lock()
_inside = 0  # of all threads: torch's stance is one for the process
_stance: Any = None  # that was taken before the first of them


class uncompiled:
    """What a loss has compiled by `torch.compile`, a model or a function, runs as it was written: the backward of what
    is compiled has no derivative. Costs nothing where nothing was compiled in this process.

    As `torch.compiler.set_stance("force_eager")`, at a twentieth of its time.
    """

    def __enter__(self) -> None:
        global _inside, _stance
        frames = sys.modules.get("torch._dynamo.eval_frame")
        self._frames: Any = frames if hasattr(frames, "_set_stance") else None  # none too while it is being imported
        if self._frames is None:
            return
        with _lock:
            if _inside == 0:
                _stance = _taken(self._frames, self._frames.DynamoStance("force_eager"))
            _inside += 1

    def __exit__(self, *_: object) -> None:
        global _inside
        if self._frames is None:
            return
        with _lock:
            _inside -= 1
            if _inside == 0:
                _taken(self._frames, _stance)


def _taken(frames: Any, stance: Any) -> Any:
    """The stance before, as of `frames._set_stance`: that imports anew what it asks, which is most of its time."""
    if get_eval_frame_callback() not in (None, False):
        return frames._set_stance(stance)  # within what is being compiled: torch says so
    before, frames._stance = frames._stance, stance
    return before
