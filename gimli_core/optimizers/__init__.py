"""Optimizers, each a step and its analytic pullback side by side."""

from gimli_core.optimizers.check import check_pullback
from gimli_core.optimizers.derived import DerivedOptimizer
from gimli_core.optimizers.interface import Optimizer, Pulled, hyperparameter
from gimli_core.optimizers.rules.adadelta import Adadelta
from gimli_core.optimizers.rules.adafactor import Adafactor
from gimli_core.optimizers.rules.adagrad import Adagrad
from gimli_core.optimizers.rules.adam import Adam, AdamW
from gimli_core.optimizers.rules.adamax import Adamax
from gimli_core.optimizers.rules.asgd import ASGD
from gimli_core.optimizers.rules.lamb import LAMB
from gimli_core.optimizers.rules.lion import Lion
from gimli_core.optimizers.rules.muon import Muon
from gimli_core.optimizers.rules.nadam import NAdam
from gimli_core.optimizers.rules.radam import RAdam
from gimli_core.optimizers.rules.rmsprop import RMSprop
from gimli_core.optimizers.rules.rprop import Rprop
from gimli_core.optimizers.rules.sgd import SGD
from gimli_core.optimizers.rules.sparse_adam import SparseAdam
from gimli_core.optimizers.tensorwise import ElementwiseOptimizer, TensorwiseOptimizer
from gimli_core.optimizers.torch_optim import FromTorch, from_torch, register
from gimli_core.optimizers.torch_schedulers import schedule
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
