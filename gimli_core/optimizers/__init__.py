"""Optimizers, each a step and its analytic pullback side by side."""

from gimli_core.optimizers.adadelta import Adadelta
from gimli_core.optimizers.adafactor import Adafactor
from gimli_core.optimizers.adagrad import Adagrad
from gimli_core.optimizers.adam import Adam, AdamW
from gimli_core.optimizers.adamax import Adamax
from gimli_core.optimizers.asgd import ASGD
from gimli_core.optimizers.check import check_pullback
from gimli_core.optimizers.derived import DerivedOptimizer
from gimli_core.optimizers.interface import (
    ElementwiseOptimizer,
    Optimizer,
    Pulled,
    TensorwiseOptimizer,
    hyperparameter,
)
from gimli_core.optimizers.lamb import LAMB
from gimli_core.optimizers.lion import Lion
from gimli_core.optimizers.muon import Muon
from gimli_core.optimizers.nadam import NAdam
from gimli_core.optimizers.radam import RAdam
from gimli_core.optimizers.rmsprop import RMSprop
from gimli_core.optimizers.rprop import Rprop
from gimli_core.optimizers.schedules import schedule
from gimli_core.optimizers.sgd import SGD
from gimli_core.optimizers.sparse_adam import SparseAdam
from gimli_core.optimizers.torch_optim import FromTorch, from_torch, register
from gimli_core.optimizers.wrappers import EMA, Accumulate, ClipNorm, ClipValue, Lookahead, MaskedDecay, Partition, sam

__all__ = [
    "ASGD",
    "EMA",
    "LAMB",
    "SGD",
    "Accumulate",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "ClipNorm",
    "ClipValue",
    "DerivedOptimizer",
    "ElementwiseOptimizer",
    "FromTorch",
    "Lion",
    "Lookahead",
    "MaskedDecay",
    "Muon",
    "NAdam",
    "Optimizer",
    "Partition",
    "Pulled",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SparseAdam",
    "TensorwiseOptimizer",
    "check_pullback",
    "from_torch",
    "hyperparameter",
    "register",
    "sam",
    "schedule",
]
