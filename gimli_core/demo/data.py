"""Real data for the demo: scikit-learn's handwritten digits, or a user's own table.

Three splits with three uses: the inner loop trains on the training rows, the outer loop
learns from the validation rows, and the test rows are looked at once, for the final table.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gimli_core.demo.tables import LEAST_ROWS_A_CLASS, Table, read

__all__ = ["Labelled", "Splits", "load", "split"]

MOST_ROWS = 10_000


class Labelled(NamedTuple):
    """Rows with labels: `x` is [rows, features], `y` is [rows] with classes 0 … classes-1."""

    x: Tensor
    y: Tensor


class Splits(NamedTuple):
    """The three splits, standardised by the training rows' mean and deviation."""

    name: str
    classes: int
    train: Labelled
    val: Labelled
    test: Labelled
    mean: Tensor  # [features], of the training rows before
    deviation: Tensor  # [features]; 1 where all of them are alike
    rows: dict[str, Tensor]  # of "train", "val", "test": where each row stands in the table, from 0


def load(path: str | None, seed: int = 0) -> Splits:
    """The digits when `path` is None, else the table in an `.npz` or CSV file, split by `seed`.

    An `.npz` file holds features and labels under one of the pairs of names in `ARRAY_NAMES`;
    features of any shape are flattened. In a CSV file the last column is the label and the
    first row may be a header. Labels are whole numbers or text.

    Raises:
        ArgumentError: what cannot be read, is not numeric or finite, or is too little to learn from.
    """
    if path is None:
        return split("handwritten digits (scikit-learn)", _digits(), seed)
    return split(Path(path).name, read(path), seed)


def split(name: str, table: Table, seed: int) -> Splits:
    """Half of each class to train on, a quarter to validate, a quarter to test, drawn at random.

    A ready-made test set is kept, and then a third validates. Of large tables an even share of
    each class is used, `MOST_ROWS` rows in all.
    """
    rng = np.random.default_rng(seed)
    classes, y = np.unique(table.labels, return_inverse=True)
    share = min(1.0, MOST_ROWS / len(y))
    test_marked = bool(table.is_test.any())
    train, val, test = [], [], []
    for c in range(len(classes)):
        members = _drawn(np.flatnonzero((y == c) & ~table.is_test), share, rng)
        if test_marked:
            test.append(_drawn(np.flatnonzero((y == c) & table.is_test), share, rng))
        else:
            test.append(members[len(members) * 3 // 4 :])
            members = members[: len(members) * 3 // 4]
        train.append(members[: len(members) * 2 // 3])
        val.append(members[len(members) * 2 // 3 :])
    rows = {"train": np.concatenate(train), "val": np.concatenate(val), "test": np.concatenate(test)}
    features = table.features[rows["train"]].astype(np.float64)
    mean, deviation = features.mean(0), features.std(0)
    deviation = np.where(deviation > 0, deviation, 1)

    def labelled(part: str) -> Labelled:
        x = (table.features[rows[part]].astype(np.float64) - mean) / deviation
        return Labelled(torch.tensor(x, dtype=torch.get_default_dtype()), torch.tensor(y[rows[part]]))

    used = sum(map(len, rows.values()))
    name = name if used == len(y) else f"{name}, {used} of its {len(y)} rows"
    scale = torch.tensor(mean), torch.tensor(deviation)
    where = {part: torch.from_numpy(numbers) for part, numbers in rows.items()}
    return Splits(name, len(classes), labelled("train"), labelled("val"), labelled("test"), *scale, where)


def _drawn(members: NDArray[np.intp], share: float, rng: np.random.Generator) -> NDArray[np.intp]:
    """That share of `members` in random order, `LEAST_ROWS_A_CLASS` or all of them at least."""
    return rng.permutation(members)[: max(LEAST_ROWS_A_CLASS, round(share * len(members)))]


def _digits() -> Table:
    from sklearn.datasets import load_digits  # only the demo needs scikit-learn

    features, labels = load_digits(return_X_y=True)
    return Table(features, labels, np.zeros(len(labels), dtype=bool))
