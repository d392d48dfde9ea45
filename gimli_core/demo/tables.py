"""A user's own table, read from an `.npz` or CSV file and checked."""

from __future__ import annotations

import csv
import math
import stat
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gimli_core.errors import ArgumentError, first_line, listing, unexpected

__all__ = ["LEAST_ROWS_A_CLASS", "Table", "read"]

LEAST_ROWS = 40
LEAST_ROWS_A_CLASS = 4
MOST_COLUMNS = 10_000  # a network learns from as many in minutes
MOST_NUMBERS = 200_000_000
MOST_BYTES = 2 << 30  # of a file, and of an array in it
MOST_CLASSES = 1000

# Names of the arrays in an .npz file: features, labels, and both again for a ready-made test set.
ARRAY_NAMES = (
    ("X", "y", None, None),
    ("x", "y", None, None),
    ("data", "target", None, None),
    ("features", "labels", None, None),
    ("images", "labels", None, None),
    ("X_train", "y_train", "X_test", "y_test"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)


class Table(NamedTuple):
    """What a file holds: features, labels as they were written, and which rows are a ready-made test set."""

    features: NDArray[Any]
    labels: NDArray[Any]
    is_test: NDArray[np.bool_]


def read(path: str) -> Table:
    """The table in a file.

    Raises:
        ArgumentError: what cannot be read, is not numeric or finite, or is too little to learn from.
    """
    file = Path(path)
    try:
        status = file.stat()
    except (OSError, ValueError) as error:
        actual = (
            "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or str(error)
        )
        raise _error(file, "an .npz or CSV file", actual, "Check the path.") from None
    if not stat.S_ISREG(status.st_mode):
        actual = "a directory" if stat.S_ISDIR(status.st_mode) else "something that is no regular file"
        raise _error(file, "an .npz or CSV file", actual, "Check the path.")
    if status.st_size > MOST_BYTES:
        raise _too_large(file, f"at most {MOST_BYTES:,} bytes", f"{status.st_size:,}")
    try:
        table = _read_npz(file) if zipfile.is_zipfile(file) else _read_csv(file)
    except OSError as error:
        raise _error(file, "a file that can be read", error.strerror or str(error), "Check it.") from None
    return _checked(file, table)


def _read_npz(file: Path) -> Table:
    try:
        with zipfile.ZipFile(file) as archive:
            every = [name.removesuffix(".npy") for name in archive.namelist()]
            names = next((n for n in ARRAY_NAMES if n[0] in every and n[1] in every), None)
            if names is not None:
                wanted = [name for name in names if name in every]
                headers = {name: _header(archive, name) for name in wanted}
    except Exception as error:
        raise _unreadable(file, error) from error
    if names is None:
        pairs = ", ".join(f"{x}/{y}" for x, y, *_ in ARRAY_NAMES)
        raise _error(file, f"arrays named as one of {pairs}", listing(every), "Rename them and save again.")
    for shape, dtype in headers.values():  # before anything is unpacked: a few bytes can stand for any number of zeros
        _check_size(file, shape[0] if shape else 1, math.prod(shape[1:]), math.prod(shape) * dtype.itemsize)
    try:
        with np.load(file, allow_pickle=False) as archive:
            named = {name: archive[name] for name in wanted}
    except Exception as error:
        raise _unreadable(file, error) from error
    x_name, y_name, x_test_name, y_test_name = names
    parts = [_flattened(file, x_name, named[x_name], y_name, named[y_name])]
    if x_test_name is not None and y_test_name is not None and x_test_name in named and y_test_name in named:
        parts.append(_flattened(file, x_test_name, named[x_test_name], y_test_name, named[y_test_name]))
        columns = [x.shape[1] for x, _ in parts]
        if columns[0] != columns[1]:
            actual = f"{columns[1]} in {x_test_name}"
            raise _error(file, f"{columns[0]} columns, as {x_name} has", actual, "Give both the same.")
    features, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Table(features, labels, np.arange(len(labels)) >= len(parts[0][1]))


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an array of the archive, of which only the first bytes are unpacked."""
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
    return shape, dtype


def _unreadable(file: Path, error: Exception) -> ArgumentError:
    """For whatever a reader raises at bytes that came from elsewhere."""
    return _error(file, "plain arrays of numbers or text", first_line(error), "Save it with np.savez.")


def _check_size(file: Path, rows: int, columns: int, size: int = 0) -> None:
    """Refuse what would take too long to learn from, or too much memory to hold."""
    if columns > MOST_COLUMNS:
        raise _too_large(file, f"at most {MOST_COLUMNS:,} columns", f"{columns:,}")
    if rows * columns > MOST_NUMBERS:
        raise _too_large(file, f"at most {MOST_NUMBERS:,} numbers", f"{rows:,} rows of {columns:,}")
    if size > MOST_BYTES:
        raise _too_large(file, f"at most {MOST_BYTES:,} bytes an array", f"{size:,}")


def _too_large(file: Path, expected: str, actual: str) -> ArgumentError:
    return _error(file, expected, actual, "Take a part of it.")


def _flattened(
    file: Path, x_name: str, x: NDArray[Any], y_name: str, y: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    if x.dtype.kind not in "buif":
        raise _error(file, f"numbers in {x_name}", str(x.dtype), "Encode the features as numbers.")
    if x.ndim < 2:
        raise _error(file, f"{x_name} of shape [rows, …]", f"shape {list(x.shape)}", "Give one row an example.")
    if y.shape not in ((len(x),), (len(x), 1)):
        shapes = f"{list(y.shape)} for {x_name} of shape {list(x.shape)}"
        raise _error(file, f"{y_name} with one label a row", shapes, "Give one class a row.")
    return x.reshape(len(x), math.prod(x.shape[1:])), y.reshape(-1)


def _read_csv(file: Path) -> Table:
    try:
        text = file.read_text(encoding="utf-8-sig")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        lines = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise _error(file, "an .npz or CSV file", f"something else ({error})", "Save it as one of these.") from error
    numbered = [(number, row) for number, row in enumerate(lines, 1) if any(row)]
    if not numbered or len(numbered[0][1]) < 2:
        raise _error(file, "columns of features and, last, the label", "one column or none", "Separate by commas.")
    width, first, second = len(numbered[0][1]), numbered[0][1], numbered[min(1, len(numbered) - 1)][1]
    _check_size(file, len(numbered), width)
    header = [f"column {i + 1}" for i in range(width)]
    # A header is a first line with text above a number.
    if any(_number(above) is None and _number(below) is not None for above, below in zip(first, second, strict=False)):
        header = [f"column {name!r}" for name in numbered.pop(0)[1]]
    features = np.empty((len(numbered), width - 1))
    for i, (number, row) in enumerate(numbered):
        if len(row) != width:
            raise _error(file, f"{width} columns in line {number}", f"{len(row)}", "Complete that line.")
        for column, cell in enumerate(row[:-1]):
            value = _number(cell)
            if value is None:
                do = "Encode it as numbers or leave the column out."
                raise _error(file, f"numbers in {header[column]}", f"{cell!r} in line {number}", do)
            features[i, column] = value
    labels = [row[-1] for _, row in numbered]
    if "" in labels:
        raise _error(file, "a label in every line", f"none in line {numbered[labels.index('')][0]}", "Complete it.")
    values = [_number(label) for label in labels]
    numeric = [value for value in values if value is not None]
    return Table(features, np.array(numeric if len(numeric) == len(labels) else labels), np.zeros(len(labels), bool))


def _number(cell: str) -> float | None:
    try:
        return float(cell) if cell else float("nan")  # an empty cell is a missing value
    except ValueError:
        return None


def _checked(file: Path, table: Table) -> Table:
    features, labels, is_test = table
    if len(labels) < LEAST_ROWS:
        raise _error(file, f"at least {LEAST_ROWS} rows", f"{len(labels)}", "Bring more data.")
    broken = np.argwhere(~np.isfinite(features))
    if len(broken):
        row, column = broken[0] + 1
        actual = f"a missing or infinite value in row {row}, column {column} ({len(broken)} in all)"
        raise _error(file, "finite numbers", actual, "Fill such values in, or leave their rows out.")
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.round(labels)):
        actual = "missing values" if np.isnan(labels.astype(float)).any() else "fractions"
        raise _error(file, "labels that are classes", actual, "Give whole numbers or text.")
    if labels.dtype.kind not in "buifUS":
        raise _error(file, "labels that are whole numbers or text", str(labels.dtype), "Convert them.")
    classes, counts = np.unique(labels[~is_test], return_counts=True)
    if not 2 <= len(classes) <= MOST_CLASSES:
        do = "The last column (or y) must hold the class."
        raise _error(file, f"between 2 and {MOST_CLASSES} classes", f"{len(classes)}", do)
    if counts.min() < LEAST_ROWS_A_CLASS:
        actual = f"{counts.min()} of class {str(classes[counts.argmin()])!r}"
        raise _error(file, f"at least {LEAST_ROWS_A_CLASS} rows of each class", actual, "Leave rare classes out.")
    unknown = np.setdiff1d(labels[is_test], classes)
    if len(unknown):
        raise _error(file, "test classes that occur in training", listing(map(str, unknown)), "Leave those rows out.")
    return table


def _error(file: Path, expected: str, actual: str, do: str) -> ArgumentError:
    return unexpected(f"--data {file}", expected, actual, do)
