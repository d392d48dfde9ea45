"""The problems by name; each is a function of a seed and the folder of the data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.benchmarks.bilevel.problem import Bilevel
from tests.benchmarks.bilevel.problems.hyper_cleaning import hyper_cleaning
from tests.benchmarks.bilevel.problems.logistic import SETS, logistic
from tests.benchmarks.bilevel.problems.omniglot import omniglot
from tests.benchmarks.bilevel.problems.quadratics import quadratics

NOISES = (0.5, 0.7, 0.9)
NETS = ("linear", "mlp")

PROBLEMS: dict[str, Callable[[int, Path], Bilevel]] = {
    "quadratics": lambda seed, data: quadratics(seed),
    **{f"logistic {name}": partial(lambda seed, data, name: logistic(name, seed), name=name) for name in SETS},
    **{f"cleaning {net} {noise}": partial(hyper_cleaning, net=net, noise=noise) for net in NETS for noise in NOISES},
    "omniglot": omniglot,
}
