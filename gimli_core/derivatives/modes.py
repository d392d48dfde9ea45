"""The modes of torch in which no derivative can be had."""

from __future__ import annotations

import torch

from gimli_core.errors import unexpected

__all__ = ["check_no_inference_mode"]


def check_no_inference_mode() -> None:
    """Raise ArgumentError under `torch.inference_mode`, whose tensors autograd never learns of."""
    if torch.is_inference_mode_enabled():
        do = "Its tensors have no derivatives: use torch.no_grad() instead."
        raise unexpected("torch.inference_mode", "it to be off", "it on", do)
