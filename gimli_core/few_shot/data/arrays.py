"""Read an `.npz` file of images and their classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gimli_core.errors import first_line, listing
from gimli_core.few_shot.data.images import LabelledImages, data_error

__all__ = ["as_bytes", "read_npz"]

LABELS = ("label", "labels", "character", "y", "target")
SPLITS = ("split", "vinyals_split")


def read_npz(path: Path) -> LabelledImages:
    """Images from an array `images` (or `x`, `X`), classes from one of `LABELS`.

    Images are [n, height, width] or [n, height, width, 1 or 3], bytes or numbers from 0 to 1. `names` [classes] names
    the classes, and `split` [classes] says 0 train, 1 val, 2 test, where they are there.

    Raises:
        ArgumentError: what cannot be read, arrays of other names, shapes or kinds.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:
        raise data_error(path, "an .npz of plain arrays", first_line(error), "Save it with np.savez.") from error
    x = next((arrays[name] for name in ("images", "x", "X") if name in arrays), None)
    y = next((arrays[name] for name in LABELS if name in arrays), None)
    if x is None or y is None:
        expected = f"arrays images and one of {listing(LABELS)}"
        raise data_error(path, expected, listing(arrays), "Rename them and save again.")
    if y.shape != x.shape[:1] or not len(y):
        actual = f"{list(y.shape)} for images {list(x.shape)}"
        raise data_error(path, "one label an image", actual, "Give each image its class.")
    classes, labels = np.unique(y, return_inverse=True)
    names = arrays.get("names", classes)
    if len(names) != len(classes):
        actual = f"{len(names)} names for {len(classes)} classes"
        raise data_error(path, "names [classes]", actual, "Leave them out, or name each class.")
    split = next((name for name in SPLITS if name in arrays), None)
    parts = None
    if split is not None:
        if arrays[split].shape != classes.shape or not np.isin(arrays[split], (0, 1, 2)).all():
            actual = f"{split} of shape {list(arrays[split].shape)}"
            raise data_error(path, "a split [classes] of 0, 1 and 2", actual, "One part a class.")
        parts = torch.tensor(arrays[split].astype(np.int64))
    split_name = {"vinyals_split": "vinyals"}.get(split or "", "own")
    images = torch.from_numpy(as_bytes(path, x))
    return LabelledImages(path.stem, images, torch.from_numpy(labels), tuple(map(str, names)), parts, split_name)


def as_bytes(path: Path, x: NDArray[Any]) -> NDArray[np.uint8]:
    """Images as [n, channels, height, width] of bytes. Raises ArgumentError."""
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        expected = "images [n, height, width] or [n, height, width, 1 or 3]"
        raise data_error(path, expected, f"shape {list(x.shape)}", "Put the channels last.")
    if x.dtype != np.uint8:
        if x.dtype.kind != "f" or not np.isfinite(x).all() or x.min() < 0 or x.max() > 1:
            actual = f"{x.dtype}"
            raise data_error(path, "bytes, or numbers from 0 to 1", actual, "Scale them.")
        x = np.round(x * 255).astype(np.uint8)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
