"""What people put around optimizers, differentiable as well."""

from gimli_core.optimizers.wrappers.accumulate import Accumulate
from gimli_core.optimizers.wrappers.clip_norm import ClipNorm
from gimli_core.optimizers.wrappers.clip_value import ClipValue
from gimli_core.optimizers.wrappers.ema import EMA
from gimli_core.optimizers.wrappers.interface import GradientWrapper, Wrapper
from gimli_core.optimizers.wrappers.lookahead import Lookahead
from gimli_core.optimizers.wrappers.masked_decay import MaskedDecay
from gimli_core.optimizers.wrappers.partition import Partition
from gimli_core.optimizers.wrappers.sam import sam

__all__ = [
    "EMA",
    "Accumulate",
    "ClipNorm",
    "ClipValue",
    "GradientWrapper",
    "Lookahead",
    "MaskedDecay",
    "Partition",
    "Wrapper",
    "sam",
]
