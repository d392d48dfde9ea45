"""Kernels that have a second derivative, in place of fast ones that have none."""

from __future__ import annotations

import sys
import threading
from typing import Any

from torch import _C
from torch._C._dynamo.eval_frame import get_eval_frame_callback

__all__ = ["FUSED", "twice_differentiable", "uncompiled"]

# The switches of scaled dot-product attention; on a CPU they are obeyed as well. `torch.backends.cuda` has them under
# public names, at twice the time, and they are asked and set around every loss.
FUSED = (
    (_C._get_flash_sdp_enabled, _C._set_sdp_use_flash),
    (_C._get_mem_efficient_sdp_enabled, _C._set_sdp_use_mem_efficient),
    (_C._get_cudnn_sdp_enabled, _C._set_sdp_use_cudnn),
)


class twice_differentiable:
    """Attention by matrix products and softmax: as `sdpa_kernel(SDPBackend.MATH)`, at a tenth of its time."""

    def __enter__(self) -> None:
        self._on = [enable for enabled, enable in FUSED if enabled()]
        self._math = _C._get_math_sdp_enabled()
        for enable in self._on:
            enable(False)
        _C._set_sdp_use_math(True)

    def __exit__(self, *_: object) -> None:
        for enable in self._on:
            enable(True)
        _C._set_sdp_use_math(self._math)


_here = threading.local()


class uncompiled:
    """What a loss has compiled by `torch.compile`, a model or a function, runs as it was written: the backward of what
    is compiled has no derivative. Costs nothing where nothing was compiled in this process.

    As `torch.compiler.set_stance("force_eager")`, at a twentieth of its time, and for this thread alone: torch's stance
    is one for the process, and what other threads have compiled would run uncompiled meanwhile, or raise.
    """

    def __enter__(self) -> None:
        frames: Any = sys.modules.get("torch._dynamo.eval_frame")
        if hasattr(frames, "_set_stance"):  # it has not while it is being imported
            if not isinstance(frames._stance, StanceByThread):
                frames._stance = StanceByThread(frames._stance, frames.DynamoStance("force_eager"))
            if get_eval_frame_callback() not in (None, False):
                frames._set_stance(frames._stance)  # within what is being compiled: torch says so
        _here.depth = getattr(_here, "depth", 0) + 1

    def __exit__(self, *_: object) -> None:
        _here.depth -= 1


class StanceByThread:
    """In the place of torch's stance: as one of two, by whether the thread that asks is in `uncompiled`."""

    def __init__(self, usual: Any, uncompiled: Any) -> None:
        self._usual, self._uncompiled = usual, uncompiled

    def __getattr__(self, name: str) -> Any:
        return getattr(self._uncompiled if getattr(_here, "depth", 0) else self._usual, name)
