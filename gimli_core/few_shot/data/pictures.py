"""Pictures in files, decoded and brought to one size: what every reader of picture files stands on."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gimli_core.errors import first_line
from gimli_core.few_shot.data.images import LabelledImages, data_error

__all__ = ["ENDINGS", "labelled"]

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
Named = tuple[str, str, Callable[[], bytes]]  # of one picture: its class, its name in messages, its file's bytes


def labelled(
    path: Path, name: str, pictures: Sequence[Named], *, size: int, mode: str | None, invert: bool = False
) -> LabelledImages:
    """Decoded pictures with their classes, sorted by name.

    Args:
        path: what the user gave, for messages.
        name: of the set.
        pictures: of each, its class, its name in messages, and how its bytes are had.
        size: height and width in pixels to which each is brought.
        mode: "L" for grey, "RGB" for colour, None for grey if every pixel is.
        invert: ink on paper as bright on dark.

    Raises:
        ArgumentError: no picture, or the first that cannot be decoded, by name.
    """
    if not pictures:
        do = "Check that it is the published set, or has one folder a class."
        raise data_error(path, f"pictures ({', '.join(ENDINGS)})", "none", do)
    names = sorted({each[0] for each in pictures})
    number = {one: n for n, one in enumerate(names)}
    images = np.stack([_decoded(path, said, read, size, mode or "RGB") for _, said, read in pictures])
    if mode is None and (images == images[..., :1]).all():
        images = images[..., :1]
    images = (255 - images if invert else images).transpose(0, 3, 1, 2)
    labels = torch.tensor([number[each[0]] for each in pictures])
    return LabelledImages(name, torch.from_numpy(np.ascontiguousarray(images)), labels, tuple(names))


def _decoded(path: Path, said: str, read: Callable[[], bytes], size: int, mode: str) -> Any:
    from PIL import Image  # only picture files need pillow

    try:
        with Image.open(io.BytesIO(read())) as picture:
            # Each new pixel is the mean of those that it covers, for drawings and photographs alike.
            array = np.asarray(picture.convert(mode).resize((size, size), Image.Resampling.BOX))
    except Exception as error:
        why = "no picture" if type(error).__name__ == "UnidentifiedImageError" else first_line(error)
        raise data_error(path, "pictures that can be read", f"{said}: {why}", "Mend or remove it.") from None
    return array.reshape(size, size, -1)
