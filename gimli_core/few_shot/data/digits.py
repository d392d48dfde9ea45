"""Scikit-learn's handwritten digits as classes: real data that is always at hand."""

from __future__ import annotations

import numpy as np
import torch

from gimli_core.few_shot.data.images import LabelledImages

__all__ = ["digits"]


def digits() -> LabelledImages:
    """1797 digits of 8 × 8 pixels: 0 … 4 to train on, 5 … 9 to test with, none to validate."""
    from sklearn.datasets import load_digits  # of an extra

    x, y = load_digits(return_X_y=True)
    images = torch.from_numpy(np.round(x * (255 / 16)).astype(np.uint8)).reshape(-1, 1, 8, 8)
    parts = torch.tensor([0] * 5 + [2] * 5)
    return LabelledImages("digits", images, torch.from_numpy(y), tuple("0123456789"), parts)
