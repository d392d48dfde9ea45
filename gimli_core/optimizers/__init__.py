"""Optimizers, each a step and its analytic pullback side by side."""

from gimli_core.optimizers.adagrad import Adagrad
from gimli_core.optimizers.adam import Adam, AdamW
from gimli_core.optimizers.interface import ElementwiseOptimizer, Optimizer, Pulled
from gimli_core.optimizers.sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "ElementwiseOptimizer", "Optimizer", "Pulled"]
