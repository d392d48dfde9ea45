"""Readers of every published form, on small made files, and what they refuse."""

from __future__ import annotations

import dataclasses
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gimli_core.errors import ArgumentError
from gimli_core.few_shot.data.digits import digits
from gimli_core.few_shot.data.images import parts_of
from gimli_core.few_shot.data.reading import read
from gimli_core.few_shot.data.splits import CIFAR_FS, VINYALS
from tests.few_shot.problems import made


def png(value: int, size: int = 10, mode: str = "L") -> bytes:
    file = BytesIO()
    Image.new(mode, (size, size), value if mode == "L" else (value, 0, 255)).save(file, "png")
    return file.getvalue()


def test_the_digits_are_at_hand() -> None:
    data = digits()
    assert data.images.shape == (1797, 1, 8, 8)
    assert data.images.dtype == torch.uint8
    x, y = data.part(parts_of(data, "own")[1], "test")
    assert len(x) == len(y) == (data.labels >= 5).sum()
    assert y.unique().tolist() == [0, 1, 2, 3, 4]
    assert read(None).name == "digits"
    with pytest.raises(ArgumentError, match="split: expected classes in its part 'val'; got none"):
        data.part(parts_of(data, "own")[1], "val")


def test_an_npz_comes_back(tmp_path: Path) -> None:
    data = made(channels=3)
    pictures = data.images.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "made.npz", images=pictures, label=data.labels * 2, names=data.names, split=data.parts)
    back = read(str(tmp_path / "made.npz"))
    assert torch.equal(back.images, data.images)
    assert torch.equal(back.labels, data.labels)
    assert (back.names, back.name) == (data.names, "made")
    assert back.parts is not None
    assert torch.equal(back.parts, data.parts)
    np.savez(tmp_path / "grey.npz", x=pictures[..., 0] / 255, y=data.labels)
    grey = read(str(tmp_path / "grey.npz"))
    assert torch.equal(grey.images, data.images[:, :1])
    assert grey.parts is None


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures": np.zeros((2, 3, 3))}, "expected arrays images and one of 'label'"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "y": np.zeros(3)}, "expected one label an image"),
        ({"images": np.zeros((2, 3), np.uint8), "y": np.zeros(2)}, "expected images .n, height, width."),
        ({"images": np.zeros((2, 3, 3, 2), np.uint8), "y": np.zeros(2)}, "expected images .n, height, width."),
        ({"images": np.full((2, 3, 3), 7.0), "y": np.zeros(2)}, "expected bytes, or numbers from 0 to 1"),
        ({"images": np.zeros((2, 3, 3), np.int64), "y": np.zeros(2)}, "expected bytes, or numbers from 0 to 1"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "y": np.arange(2), "names": ["a"]}, "expected names .classes."),
        ({"images": np.zeros((2, 3, 3), np.uint8), "y": np.arange(2), "split": [0, 5]}, "expected a split .classes."),
        ({"images": np.array([None]), "y": np.zeros(1)}, "expected an .npz of plain arrays"),
    ],
)
def test_another_npz_is_refused(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "bad.npz", allow_pickle=True, **arrays)
    with pytest.raises(ArgumentError, match=f"--data .*bad.npz: {words}"):
        read(str(tmp_path / "bad.npz"))


def test_what_is_no_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ArgumentError, match=r"expected an \.npz of plain arrays"):
        read(str(tmp_path / "bad.npz"))
    with pytest.raises(ArgumentError, match="expected a file or folder; got no such path"):
        read(str(tmp_path / "missing"))
    with pytest.raises(ArgumentError, match="kind: expected 'npz'"):
        read(str(tmp_path), "tfrecord")


def omniglot(folder: Path, alphabets: list[str], archive: str) -> None:
    with zipfile.ZipFile(folder / archive, "w") as file:
        for alphabet in alphabets:
            for character in ("character01", "character02"):
                for drawer in (1, 2):
                    name = f"{archive.removesuffix('.zip')}/{alphabet}/{character}/0001_{drawer:02}.png"
                    file.writestr(name, png(255 - drawer))


def test_omniglot_as_published(tmp_path: Path) -> None:
    omniglot(tmp_path, ["Greek", "Latin"], "images_background.zip")
    omniglot(tmp_path, ["Tibetan"], "images_evaluation.zip")
    data = read(str(tmp_path))
    assert data.images.shape == (12, 1, 28, 28)
    assert data.names[0] == "Greek/character01"
    assert data.images[data.labels == 4].flatten(1).unique().tolist() == [1, 2]  # ink on paper: paper is 0
    assert len(read(str(tmp_path / "images_background.zip")).names) == 4
    with pytest.raises(ArgumentError, match="split: expected every alphabet that it holds out; got no 'Armenian'"):
        parts_of(data, "vinyals")


def test_vinyals_split_is_by_alphabet() -> None:
    held_out = [*VINYALS["val"], *(name for name in VINYALS["test"] if "/" not in name)]
    names = [f"{alphabet}/character{n:02}" for alphabet in [*held_out, "Gurmukhi", "Latin"] for n in range(1, 46)]
    data = dataclasses.replace(made(), names=tuple(names), parts=None)
    name, parts = parts_of(data, "vinyals")
    assert name == "vinyals"
    assert parts.bincount().tolist() == [45 + 41, 45 * 5, 45 * 12 + 4]
    of_gurmukhi = [int(p) for p, n in zip(parts, names, strict=True) if n.startswith("Gurmukhi")]
    assert of_gurmukhi == [0] * 41 + [2] * 4


def test_cifar_fs_is_by_name() -> None:
    names = tuple(sorted(name for part in CIFAR_FS.values() for name in part))
    data = dataclasses.replace(made(), names=names, parts=None)
    assert parts_of(data, "cifar-fs")[1].bincount().tolist() == [64, 16, 20]
    assert [len(set(part)) for part in CIFAR_FS.values()] == [64, 16, 20]
    with pytest.raises(ArgumentError, match="split: expected its 100 classes; got 'dog' besides"):
        parts_of(dataclasses.replace(data, names=(*names[1:], "dog")), "cifar-fs")
    with pytest.raises(ArgumentError, match="split: expected its 100 classes; got no 'apple'"):
        parts_of(dataclasses.replace(data, names=names[1:]), "cifar-fs")


def test_a_random_split_is_by_seed() -> None:
    data = dataclasses.replace(made(classes=25), parts=None)
    name, parts = parts_of(data, "random", seed=1)
    assert (name, parts.bincount().tolist()) == ("random", [16, 4, 5])
    assert torch.equal(parts, parts_of(data, "random", seed=1)[1])
    assert not torch.equal(parts, parts_of(data, "random", seed=2)[1])
    for split in ("own", "ravi"):
        with pytest.raises(ArgumentError, match=f"split: expected data that brings its split '{split}'"):
            parts_of(data, split)
    with pytest.raises(ArgumentError, match=r"split: expected .*; got .vinials."):
        parts_of(data, "vinials")


def test_mini_imagenet_by_csv(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number, part in enumerate(("train", "val", "test")):
        (tmp_path / "images" / f"{part}.png").write_bytes(png(number * 10, mode="RGB"))
        (tmp_path / f"{part}.csv").write_text(f"filename,label\n{part}.png,n0{number}\n")
    data = read(str(tmp_path))
    assert (data.name, data.split, data.images.shape) == ("miniImageNet", "ravi", (3, 3, 84, 84))
    assert parts_of(data, "ravi")[1].tolist() == [0, 1, 2]
    assert data.images[2, 0].unique().tolist() == [20]
    (tmp_path / "images" / "val.png").unlink()
    with pytest.raises(ArgumentError, match=r"expected every picture of val.csv; got no images/val.png"):
        read(str(tmp_path))
    (tmp_path / "val.csv").write_text("name,class\nx,y\n")
    with pytest.raises(ArgumentError, match=r"expected columns filename and label; got others in val.csv"):
        read(str(tmp_path))
    (tmp_path / "test.csv").unlink()
    (tmp_path / "val.csv").write_text("filename,label\ntrain.png,n01\n")
    with pytest.raises(ArgumentError, match=r"got no test.csv"):
        read(str(tmp_path))


def folders(root: Path, *classes: str) -> None:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for row in range(2):
            (root / name / f"{row}.png").write_bytes(png(number * 10 + row, mode="RGB"))


def test_folders_of_folders(tmp_path: Path) -> None:
    folders(tmp_path / "flat", "cat", "dog")
    flat = read(str(tmp_path / "flat"))
    assert (flat.images.shape, flat.names, flat.parts) == ((4, 3, 28, 28), ("cat", "dog"), None)
    folders(tmp_path / "split", "train/ant", "train/bee", "test/cow")
    split = read(str(tmp_path / "split"), "cifar-fs")
    assert (split.images.shape, split.names) == ((6, 3, 32, 32), ("ant", "bee", "cow"))
    assert parts_of(split, "own")[1].tolist() == [0, 0, 2]
    folders(tmp_path / "split", "test/ant")
    with pytest.raises(ArgumentError, match="expected each class in one part of the split; got ant in two parts"):
        read(str(tmp_path / "split"))


def test_grey_pictures_of_ones_own_are_drawings(tmp_path: Path) -> None:
    folders(tmp_path, "cat", "dog")
    for name in ("cat", "dog"):
        (tmp_path / name / "0.png").write_bytes(png(7))
    assert read(str(tmp_path)).images.shape == (4, 3, 28, 28)  # one in colour is enough
    for name in ("cat", "dog"):
        (tmp_path / name / "1.png").unlink()
    assert read(str(tmp_path)).images.shape == (2, 1, 28, 28)
    assert read(str(tmp_path), "cifar-fs").images.shape == (2, 3, 32, 32)


def test_pictures_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    folders(tmp_path, "cat", "dog")
    (tmp_path / "dog" / "1.png").write_bytes(png(3)[:40])
    with pytest.raises(ArgumentError, match=r"expected pictures that can be read; got .*dog/1.png"):
        read(str(tmp_path))
    (tmp_path / "eel").mkdir()
    with pytest.raises(ArgumentError, match="expected pictures in every class; got none in eel"):
        read(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArgumentError, match=r"expected pictures .*; got none"):
        read(str(tmp_path / "empty"))
