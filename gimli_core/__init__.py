"""Exact meta-gradients by Algorithm 1 of GIMLI: an explicit unroll, then a hand-written second-order backward sweep."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from gimli_core import errors, memory, optimizers
from gimli_core.arguments.approximation import Approximation, FirstOrder, ThetaOnly, Truncated
from gimli_core.arguments.until import Until
from gimli_core.derivatives.micro_batches import MicroBatches
from gimli_core.evaluation.adapt import adapt
from gimli_core.evaluation.evaluate import Evaluation, evaluate
from gimli_core.meta_gradient import meta_gradient
from gimli_core.meta_parameters.indexed import indexed
from gimli_core.meta_parameters.marks import per_element, per_step, per_task
from gimli_core.optimizers.pullback_report import PullbackReport
from gimli_core.problem import Problem
from gimli_core.record import Event
from gimli_core.requirements.examine import Requirements, check_requirements
from gimli_core.results import MetaGradient, Trajectory
from gimli_core.runs.plan import Plan, plan
from gimli_core.step_through import step_through
from gimli_core.transforms.proximal import proximal
from gimli_core.transforms.shares import Share
from gimli_core.transforms.tasks import Tasks
from gimli_core.unroll import unroll
from gimli_core.watchers.adjoint_norms import AdjointNorms
from gimli_core.watchers.progress import Progress

if _TYPE_CHECKING:
    from gimli_core import attribution, implicit, learned, verification
    from gimli_core.attribution.metasmoothness import metasmoothness
    from gimli_core.implicit.implicit_gradient import implicit_gradient
    from gimli_core.outer_loop.early_stopping import EarlyStopping
    from gimli_core.outer_loop.estimator import Estimator
    from gimli_core.outer_loop.estimators.es import ES
    from gimli_core.outer_loop.estimators.implicit import Implicit
    from gimli_core.outer_loop.estimators.pes import PES
    from gimli_core.outer_loop.estimators.reptile import Reptile
    from gimli_core.outer_loop.estimators.unrolled import Unrolled
    from gimli_core.outer_loop.estimators.windows import Windows
    from gimli_core.outer_loop.outer_loop import OuterLoop
    from gimli_core.outer_loop.task_sampler import TaskSampler
    from gimli_core.step_through import lessons
    from gimli_core.step_through.page.trace import trace
    from gimli_core.verification import verify
    from gimli_core.verification.comparison import Comparison, compare

__version__ = "0.1.0"

__all__ = [
    "ES",
    "PES",
    "AdjointNorms",
    "Approximation",
    "Comparison",
    "EarlyStopping",
    "Estimator",
    "Evaluation",
    "Event",
    "FirstOrder",
    "Implicit",
    "MetaGradient",
    "MicroBatches",
    "OuterLoop",
    "Plan",
    "Problem",
    "Progress",
    "PullbackReport",
    "Reptile",
    "Requirements",
    "Share",
    "TaskSampler",
    "Tasks",
    "ThetaOnly",
    "Trajectory",
    "Truncated",
    "Unrolled",
    "Until",
    "Windows",
    "__version__",
    "adapt",
    "attribution",
    "check_requirements",
    "compare",
    "errors",
    "evaluate",
    "implicit",
    "implicit_gradient",
    "indexed",
    "learned",
    "lessons",
    "memory",
    "meta_gradient",
    "metasmoothness",
    "optimizers",
    "per_element",
    "per_step",
    "per_task",
    "plan",
    "proximal",
    "step_through",
    "trace",
    "unroll",
    "verification",
    "verify",
]

# What stands on the engine is imported when it is first asked for: `import gimli_core` costs little beside torch.
_LATE = {
    "attribution": "attribution",
    "implicit": "implicit",
    "learned": "learned",
    "lessons": "lessons",
    "verification": "verification",
    "metasmoothness": "attribution.metasmoothness",
    "implicit_gradient": "implicit.implicit_gradient",
    "EarlyStopping": "outer_loop.early_stopping",
    "Estimator": "outer_loop.estimator",
    "ES": "outer_loop.estimators.es",
    "Implicit": "outer_loop.estimators.implicit",
    "PES": "outer_loop.estimators.pes",
    "Reptile": "outer_loop.estimators.reptile",
    "Unrolled": "outer_loop.estimators.unrolled",
    "Windows": "outer_loop.estimators.windows",
    "OuterLoop": "outer_loop.outer_loop",
    "TaskSampler": "outer_loop.task_sampler",
    "trace": "step_through.page.trace",
    "verify": "verification",
    "Comparison": "verification.comparison",
    "compare": "verification.comparison",
}


def __getattr__(name: str) -> _Any:
    """A name of `_LATE`, from its room, which keeps it from then on."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _import_module(f"{__name__}.{_LATE[name]}")
    globals()[name] = made = module if name == _LATE[name] else getattr(module, name)
    return made


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
