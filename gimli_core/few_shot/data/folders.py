"""Read a folder of folders of pictures, one folder a class, with or without train, val and test above them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from gimli_core.few_shot.data.images import PARTS, LabelledImages, data_error
from gimli_core.few_shot.data.pictures import ENDINGS, Named, labelled

__all__ = ["read_folders"]


def read_folders(path: Path, *, size: int, mode: str | None = "RGB", split: str = "own") -> LabelledImages:
    """Pictures `path/class/picture`, or `path/{train,val,test}/class/picture`, which then is the set's own split.

    Args:
        path: the folder.
        size: height and width in pixels to which every picture is brought.
        mode: "L" for grey, "RGB" for colour, None for grey if every pixel is.
        split: what the set's own split is called.

    Raises:
        ArgumentError: no class folder, a picture that cannot be read, a class in two parts.
    """
    above = [part for part in PARTS if (path / part).is_dir()]
    pictures: list[Named] = []
    part_of: dict[str, int] = {}
    for part in above or [""]:
        for folder in sorted(each for each in (path / part).iterdir() if each.is_dir()):
            files = sorted(each for each in folder.iterdir() if each.suffix.lower() in ENDINGS)
            if folder.name in part_of:
                actual = f"{folder.name} in two parts"
                raise data_error(path, "each class in one part of the split", actual, "Rename one of the folders.")
            if not files:
                do = "Each folder is a class: where its pictures lie deeper, name the folder above, or move them up."
                raise data_error(path, "pictures in every class", f"none in {folder.name}", do)
            part_of[folder.name] = PARTS.index(part) if part else 0
            pictures += [(folder.name, str(file), file.read_bytes) for file in files]
    data = labelled(path, path.name, pictures, size=size, mode=mode)
    if not above:
        return data
    return replace(data, parts=torch.tensor([part_of[name] for name in data.names]), split=split)
