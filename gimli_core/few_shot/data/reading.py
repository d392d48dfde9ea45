"""One door to every data set: which reader a path needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from gimli_core.errors import listing, unexpected
from gimli_core.few_shot.data.arrays import read_npz
from gimli_core.few_shot.data.digits import digits
from gimli_core.few_shot.data.folders import read_folders
from gimli_core.few_shot.data.images import LabelledImages, data_error
from gimli_core.few_shot.data.mini_imagenet import read_mini_imagenet
from gimli_core.few_shot.data.omniglot import ARCHIVES, read_omniglot

__all__ = ["KINDS", "read"]

KINDS: Mapping[str, Callable[[Path], LabelledImages]] = {
    "npz": read_npz,
    "omniglot": read_omniglot,
    "mini-imagenet": read_mini_imagenet,
    "cifar-fs": lambda path: read_folders(path, size=32),
    "folders": lambda path: read_folders(path, size=28, mode=None),
}


def read(path: str | None, kind: str | None = None) -> LabelledImages:
    """The digits if `path` is None, else what stands there.

    Args:
        path: an .npz file, the folder or archive of a published set, a folder of folders of pictures.
        kind: one of `KINDS`; by default what the path looks like.

    Raises:
        ArgumentError: nothing there, another kind, whatever the reader cannot read.
    """
    if path is None:
        return digits()
    place = Path(path)
    if not place.exists():
        raise data_error(place, "a file or folder", "no such path", "Check it.")
    if kind is None:
        kind = _looks_like(place)
    if kind not in KINDS:
        raise unexpected("kind", listing(KINDS), repr(kind), "Choose one of them.")
    return KINDS[kind](place)


def _looks_like(place: Path) -> str:
    if place.is_file():
        return "npz" if place.suffix == ".npz" else "omniglot"
    if any((place / name).is_file() for name in ARCHIVES):
        return "omniglot"
    return "mini-imagenet" if any(place.glob("*.csv")) else "folders"
