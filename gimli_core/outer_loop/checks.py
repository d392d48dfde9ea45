"""What an outer loop is given, checked before anything is computed."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import listing, unexpected
from gimli_core.outer_loop.early_stopping import EarlyStopping

__all__ = [
    "check_estimator",
    "check_evaluation",
    "check_meta_optimizer",
    "check_number",
    "check_rich",
    "check_scheduler",
    "check_tasks",
]


def check_estimator(estimator: Any) -> Mapping[str, Tensor]:
    """The estimator's phi. Raises ArgumentError."""
    if not callable(estimator) or not callable(getattr(estimator, "parameters", None)):
        expected = "an object with parameters() that can be called with what is drawn"
        do = "For example gimli.Unrolled(…); see gimli.Estimator."
        raise unexpected("estimator", expected, type(estimator).__name__, do)
    phi = estimator.parameters()
    if not isinstance(phi, Mapping) or not all(isinstance(leaf, Tensor) for leaf in phi.values()):
        actual = type(phi).__name__
        do = "For a module: return dict(self.module.named_parameters())."
        raise unexpected("estimator.parameters()", "a dict {name: tensor}", actual, do)
    if not any(leaf.requires_grad for leaf in phi.values()):
        do = "Call .requires_grad_() on what is to be learned."
        raise unexpected("estimator.parameters()", "a tensor that requires grad", "none", do)
    return phi


def check_tasks(tasks: Any) -> Callable[[int], Any]:
    """What is drawn in an outer step, as a function of its number. Raises ArgumentError."""
    if callable(tasks):
        return lambda step: tasks(step)
    if isinstance(tasks, Sequence) and len(tasks):
        return lambda step: tasks[step % len(tasks)]
    actual = "an empty sequence" if isinstance(tasks, Sequence) else type(tasks).__name__
    expected = "a function of the outer step, or a sequence that is not empty"
    do = "What a step draws must be there again after a kill: give list(iterator), or a gimli.TaskSampler."
    raise unexpected("tasks", expected, actual, do)


def check_meta_optimizer(meta_optimizer: Any, phi: Mapping[str, Tensor]) -> None:
    """Raise ArgumentError unless the optimizer steps phi, and nothing else."""
    if not isinstance(meta_optimizer, torch.optim.Optimizer):
        actual = type(meta_optimizer).__name__
        do = "For example torch.optim.Adam(phi.values(), lr=1e-3)."
        raise unexpected("meta_optimizer", "a torch.optim.Optimizer", actual, do)
    closure = inspect.signature(type(meta_optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        actual = f"{type(meta_optimizer).__name__}, which asks for the loss again within a step"
        raise unexpected("meta_optimizer", "one whose step needs no closure", actual, "Take Adam, SGD, …")
    stepped = {id(p) for group in meta_optimizer.param_groups for p in group["params"]}
    missed = [name for name, leaf in phi.items() if leaf.requires_grad and id(leaf) not in stepped]
    if missed:
        do = "Construct it from the estimator's own tensors, or set requires_grad of these to False."
        raise unexpected("meta_optimizer", "every tensor of phi in it", f"one without {listing(missed)}", do)
    more = stepped - {id(leaf) for leaf in phi.values()}
    if more:
        actual = f"one with {len(more)} other tensors, which no step gives a gradient"
        do = "Construct it from estimator.parameters().values()."
        raise unexpected("meta_optimizer", "phi's tensors alone in it", actual, do)


def check_scheduler(scheduler: Any, meta_optimizer: torch.optim.Optimizer) -> None:
    """Raise ArgumentError unless the scheduler is of this optimizer."""
    if scheduler is None:
        return
    if not all(callable(getattr(scheduler, name, None)) for name in ("step", "state_dict", "load_state_dict")):
        do = "For example torch.optim.lr_scheduler.CosineAnnealingLR(meta_optimizer, steps)."
        raise unexpected("scheduler", "a scheduler of torch.optim.lr_scheduler", type(scheduler).__name__, do)
    if getattr(scheduler, "optimizer", None) is not meta_optimizer:
        actual = "one of another optimizer, whose rates it would change instead"
        raise unexpected("scheduler", "a scheduler of meta_optimizer", actual, "Construct it from that one.")


def check_evaluation(evaluate: Any, every: Any, stopping: Any) -> None:
    """Raise ArgumentError unless these three fit together."""
    if evaluate is None and (every is not None or stopping is not None):
        argument = "evaluate_every" if every is not None else "early_stopping"
        do = "Give evaluate=, a function of the outer step that returns a number or a dict of numbers."
        raise unexpected(argument, "None where nothing is evaluated", repr(every or stopping), do)
    if evaluate is not None and not callable(evaluate):
        do = "For example lambda step: {'accuracy': …}."
        raise unexpected("evaluate", "a function of the outer step", type(evaluate).__name__, do)
    if every is not None:
        check_number("evaluate_every", every, 1)
    if stopping is not None and not isinstance(stopping, EarlyStopping):
        do = "For example gimli.EarlyStopping(patience=5)."
        raise unexpected("early_stopping", "a gimli.EarlyStopping", type(stopping).__name__, do)


def check_number(argument: str, value: Any, least: float, *, integral: bool = True) -> None:
    """Raise ArgumentError unless `value` is a number of at least `least`."""
    kind: Any = Integral if integral else Real
    if isinstance(value, bool) or not isinstance(value, kind) or not value >= least:
        expected = f"a {'whole ' if integral else ''}number, at least {least:g}"
        raise unexpected(argument, expected, repr(value), "Choose one.")


def check_rich(progress: bool) -> None:
    """Raise ArgumentError where progress cannot be shown."""
    if progress and importlib.util.find_spec("rich") is None:
        raise unexpected("progress", "False where rich is not installed", "True", "pip install rich.")
