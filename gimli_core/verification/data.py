"""A small regression table for the bundled cases."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["regression_table"]


def regression_table(rows: int = 120, columns: int = 10) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(X [rows, columns], y [rows]), both standardised: scikit-learn's diabetes data where it is installed.

    Otherwise a computed table of the same shape, from cosines of incommensurate frequencies.
    Source: Efron et al. 2004, Least Angle Regression (442 patients, 10 measurements).
    """
    try:
        from sklearn.datasets import load_diabetes

        X, y = load_diabetes(return_X_y=True)
    except ModuleNotFoundError:
        i, k = np.mgrid[1 : rows + 1, 1 : columns + 1]
        X = np.cos(i * np.sqrt(k + 1.0)) + 0.3 * np.sin(i * np.sqrt(3.0))
        y = X @ np.cos(np.arange(1.0, columns + 1)) + 0.5 * np.cos(i[:, 0] * np.sqrt(97.0))
    X, y = X[:rows, :columns], y[:rows]
    return (X - X.mean(axis=0)) / X.std(axis=0), (y - y.mean()) / y.std()
