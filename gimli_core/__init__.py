"""Exact meta-gradients by Algorithm 1 of GIMLI: an explicit unroll, then a hand-written second-order backward sweep."""

from gimli_core import errors, memory, optimizers, verification
from gimli_core.meta_gradient import meta_gradient
from gimli_core.meta_parameters.marks import per_element, per_step, per_task
from gimli_core.problem import Problem
from gimli_core.requirements.examine import check_requirements
from gimli_core.results import MetaGradient
from gimli_core.runs.plan import Plan, plan
from gimli_core.step_through import lessons, step_through
from gimli_core.step_through.page import trace
from gimli_core.unroll import unroll
from gimli_core.verification import verify
from gimli_core.watchers.adjoint_norms import AdjointNorms
from gimli_core.watchers.progress import Progress

__all__ = [
    "AdjointNorms",
    "MetaGradient",
    "Plan",
    "Problem",
    "Progress",
    "check_requirements",
    "errors",
    "lessons",
    "memory",
    "meta_gradient",
    "optimizers",
    "per_element",
    "per_step",
    "per_task",
    "plan",
    "step_through",
    "trace",
    "unroll",
    "verification",
    "verify",
]
