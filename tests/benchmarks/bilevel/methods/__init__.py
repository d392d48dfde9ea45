"""The methods by name, with the package or module that each needs."""

from __future__ import annotations

from tests.benchmarks.bilevel.methods import fixed_point, higher, normal_cg, ours, soba, torchopt
from tests.benchmarks.bilevel.problem import Method

METHODS: dict[str, tuple[Method, str]] = {
    "ours, unrolled": (ours.unrolled, "torch"),
    "ours, budget": (ours.budgeted, "torch"),
    "ours, implicit": (ours.implicit, "gimli_core.implicit"),
    "torchopt": (torchopt.unrolled, "torchopt"),
    "higher": (higher.unrolled, "higher"),
    "fixed point": (fixed_point.fixed_point, "torch"),
    "normal CG": (normal_cg.normal_cg, "torch"),
    "SOBA": (soba.soba, "torch"),
}
