"""Read miniImageNet: 100 classes of 600 photographs at 84 × 84, split 64 : 16 : 20 (Ravi & Larochelle 2017)."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import torch

from gimli_core.few_shot.data.folders import read_folders
from gimli_core.few_shot.data.images import PARTS, LabelledImages, data_error
from gimli_core.few_shot.data.pictures import Named, labelled

__all__ = ["read_mini_imagenet"]


def read_mini_imagenet(path: Path, size: int = 84) -> LabelledImages:
    """The published forms: `train.csv`, `val.csv`, `test.csv` (filename, label) beside a folder `images`, or folders.

    Args:
        path: the folder that holds the csv files and `images`, or `train`, `val` and `test` with one folder a class.
        size: height and width in pixels.

    Raises:
        ArgumentError: a csv file or picture that is missing, by name.
    """
    tables = {part: path / f"{part}.csv" for part in PARTS}
    if not any(table.is_file() for table in tables.values()):
        return replace(read_folders(path, size=size, split="ravi"), name="miniImageNet")
    pictures: list[Named] = []
    part_of: dict[str, int] = {}
    for number, (part, table) in enumerate(tables.items()):
        if not table.is_file():
            raise data_error(path, "train.csv, val.csv and test.csv", f"no {part}.csv", "Fetch all three.")
        with table.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        if not rows or not {"filename", "label"} <= rows[0].keys():
            raise data_error(path, "columns filename and label", f"others in {table.name}", "Fetch it anew.")
        for row in rows:
            file = path / "images" / row["filename"]
            if not file.is_file():
                raise data_error(path, f"every picture of {table.name}", f"no images/{row['filename']}", "Fetch it.")
            part_of[row["label"]] = number
            pictures.append((row["label"], row["filename"], file.read_bytes))
    data = labelled(path, "miniImageNet", pictures, size=size, mode="RGB")
    return replace(data, parts=torch.tensor([part_of[name] for name in data.names]), split="ravi")
