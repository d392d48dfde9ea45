"""Read Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings of each (Lake et al. 2015, MIT licence)."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from gimli_core.few_shot.data.images import LabelledImages, data_error
from gimli_core.few_shot.data.pictures import Named, labelled

__all__ = ["ARCHIVES", "read_omniglot"]

ARCHIVES = ("images_background.zip", "images_evaluation.zip")
SOURCE = "Fetch both from https://github.com/brendenlake/omniglot, folder python."


def read_omniglot(path: Path, size: int = 28) -> LabelledImages:
    """The published zip files, one or both in a folder; drawings as ink 255 on paper 0.

    A class is named alphabet/character, as `images_background/Greek/character01/0001_01.png` says.

    Args:
        path: a folder that holds the archives, or one archive.
        size: height and width in pixels; 105 as published.

    Raises:
        ArgumentError: no archive, or one that is broken.
    """
    archives = [path / name for name in ARCHIVES if (path / name).is_file()] if path.is_dir() else [path]
    if not archives:
        raise data_error(path, f"{ARCHIVES[0]} and {ARCHIVES[1]}", "neither", SOURCE)
    pictures: list[Named] = []
    opened = []
    try:
        for file in archives:
            opened.append(archive := zipfile.ZipFile(file))
            for name in sorted(archive.namelist()):
                parts = name.split("/")
                if name.endswith(".png") and len(parts) >= 3:
                    pictures.append(("/".join(parts[-3:-1]), name, _reader(archive, name)))
        return labelled(path, "omniglot", pictures, size=size, mode="L", invert=True)
    except zipfile.BadZipFile as error:
        raise data_error(path, "a zip file", str(error), SOURCE) from None
    finally:
        for archive in opened:
            archive.close()


def _reader(archive: zipfile.ZipFile, name: str) -> Callable[[], bytes]:
    return lambda: archive.read(name)
