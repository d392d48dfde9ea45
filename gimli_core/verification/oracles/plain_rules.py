"""The optimizers as their papers and `torch.optim` write them, for autograd to differentiate.

Independent of `gimli_core.optimizers`: only their options are read. A rule maps
(options, theta, s, G, hyperparameters, t) of one tensor to (theta', s'), with t counted from 1.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from gimli_core import optimizers
from gimli_core.meta_parameters.marks import Marked
from gimli_core.meta_parameters.resolve import expand_betas
from gimli_core.notation import Hyper, State, Tensors, counts, slots
from gimli_core.optimizers import SGD, Adagrad, Adam, AdamW, Optimizer
from gimli_core.optimizers.derived import own_root
from gimli_core.optimizers.interface import with_path
from gimli_core.verification.oracles.plain_torch_rules import STARTS, TORCH_RULES
from gimli_core.verification.question import Entries, Question, rebuild

__all__ = ["RULES", "Root", "flat_root", "initial_state", "plain_step", "values_at"]

Root = Callable[[Tensor], Tensor]
UNMARKED = Marked()
Rule = Callable[[Any, Tensor, Tensors, Tensor, Tensors, int, Root], tuple[Tensor, Tensors]]


def flat_root(x: Tensor) -> Tensor:
    """sqrt(x), with derivative 0 at x = 0, where sqrt itself has none: see NOTE [derivative at zero]."""
    positive = x > 0
    return torch.where(positive, torch.sqrt(torch.where(positive, x, 1.0)), 0.0)


def sgd(opt: SGD, w: Tensor, s: Tensors, G: Tensor, h: Tensors, t: int, root: Root) -> tuple[Tensor, Tensors]:
    g = (-G if opt.maximize else G) + h["weight_decay"] * w
    if not s:
        return w - h["lr"] * g, {}
    b = h["momentum"] * s["momentum_buffer"] + (g if t == 1 else (1 - h["dampening"]) * g)
    return w - h["lr"] * (g + h["momentum"] * b if opt.nesterov else b), {"momentum_buffer": b}


def adagrad(opt: Adagrad, w: Tensor, s: Tensors, G: Tensor, h: Tensors, t: int, root: Root) -> tuple[Tensor, Tensors]:
    g = (-G if opt.maximize else G) + h["weight_decay"] * w
    x = s["sum"] + g**2
    return w - h["lr"] / (1 + (t - 1) * h["lr_decay"]) * g / (root(x) + h["eps"]), {"sum": x}


def adam(opt: Adam, w: Tensor, s: Tensors, G: Tensor, h: Tensors, t: int, root: Root) -> tuple[Tensor, Tensors]:
    g = -G if opt.maximize else G
    if isinstance(opt, AdamW):
        w = w - h["lr"] * h["weight_decay"] * w
    else:
        g = g + h["weight_decay"] * w
    m = h["beta1"] * s["exp_avg"] + (1 - h["beta1"]) * g
    v = h["beta2"] * s["exp_avg_sq"] + (1 - h["beta2"]) * g**2
    new = {"exp_avg": m, "exp_avg_sq": v}
    if opt.amsgrad:
        v = new["max_exp_avg_sq"] = torch.maximum(s["max_exp_avg_sq"], v)
    m_hat, v_hat = m / (1 - h["beta1"] ** t), v / (1 - h["beta2"] ** t)
    return w - h["lr"] * m_hat / (root(v_hat + h["eps_root"]) + h["eps"]), new


def slots_of(opt: Optimizer) -> tuple[str, ...]:
    if isinstance(opt, SGD):
        return ("momentum_buffer",) if opt.uses("momentum") else ()
    if isinstance(opt, Adagrad):
        return ("sum",)
    if isinstance(opt, Adam):
        return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if opt.amsgrad else ()))
    return opt.slots()  # type: ignore[attr-defined, no-any-return]


# By exact type: a subclass may do something else. Without a rule here, autograd differentiates the optimizer's own
# `step`, which checks its pullback but not its step; the report says so.
RULES: dict[type[Optimizer], Rule] = {SGD: sgd, Adagrad: adagrad, Adam: adam, AdamW: adam}
RULES |= {getattr(optimizers, name): rule for name, rule in TORCH_RULES.items()}


def rule_of(optimizer: Optimizer) -> Rule | None:
    """The plain rule, or None where there is none (Muon in bfloat16 is a rounded map: see NOTE [rounded iteration])."""
    return None if getattr(optimizer, "ns_dtype", None) is not None else RULES.get(type(optimizer))


def plain_step(
    question: Question,
    theta: Tensors,
    state: State,
    G: Tensors,
    hyper: Hyper,
    root: Root = torch.sqrt,
    unused: Collection[str] = (),
) -> tuple[Tensors, State]:
    """theta_{j+1}, s_{j+1} from theta_j, s_j, G_j and the hyperparameters of step j.

    As in `torch.optim`, a tensor whose gradient is None, here an `unused` one, is passed over: weight, state and its
    own count of steps stay.
    """
    optimizer = question.optimizer
    rule = rule_of(optimizer)
    if rule is None:
        return optimizer.step_used(theta, state, with_path(optimizer, G, unused), hyper)
    finished = int(state["step"])
    skipped = dict(state.get("skipped", {}))
    new_theta: Tensors = {}
    new_state: State = {"step": finished + 1} | {slot: {} for slot in slots_of(optimizer)}
    for k, w in theta.items():
        s = {slot: state[slot][k] for slot in slots_of(optimizer) if k in state[slot]}
        if k in unused:
            new_theta[k], skipped[k] = w.clone(), int(skipped.get(k, 0)) + 1
        else:
            t = finished - int(skipped.get(k, 0)) + 1
            new_theta[k], s = rule(optimizer, w, s, G[k], hyper[k], t, root)
        for slot, value in s.items():
            new_state[slot][k] = value
    return new_theta, new_state | ({"skipped": skipped} if skipped else {})


def handed(question: Question, hyper: Hyper, j: int, loss: Tensor) -> Hyper:
    """The hyperparameters of step j, with what the rule asks for of the step besides."""
    of_step = {"loss": loss, "j": torch.tensor(float(j), dtype=torch.float64)}
    return {k: {**per, **{name: of_step[name] for name in question.optimizer.seen()}} for k, per in hyper.items()}


def initial_state(question: Question, leaves: Entries, theta: Tensors) -> State:
    """s_0: the warm state, or what the rule starts from: zeros, but for STARTS and Adagrad's accumulator."""
    optimizer = question.optimizer
    if question.call.state_0 is not None:
        moments = slots(question.call.state_0)
        return {**counts(question.call.state_0), **rebuild(moments, ("S_0",), leaves)}
    hyper = values_at(question, leaves, theta, 0)
    if rule_of(optimizer) is None:
        return optimizer.initial_state(theta, hyper)
    state: State = {"step": 0}
    for slot in slots_of(optimizer):
        start = STARTS.get((type(optimizer).__name__, slot), _zeros)
        first = {k: start(v, hyper[k]) for k, v in theta.items()}
        state[slot] = {k: v for k, v in first.items() if v is not None}
    return state


def _zeros(w: Tensor, h: Tensors) -> Tensor:
    return torch.zeros_like(w) + h.get("initial_accumulator_value", 0.0)


def _shape(value: Any) -> tuple[int, ...]:
    """Of what each task has of a value."""
    marked, value = UNMARKED.inside(value)
    return tuple(value.shape)[marked.by_task :] if isinstance(value, Tensor) else ()


def _counts_steps(values: Mapping[str, Any], theta: Tensors, J: int) -> bool:
    """Whether entries of a dict whose shape says so by itself count steps, and none says otherwise."""
    shapes = {k: (_shape(v), tuple(theta[k].shape)) for k, v in values.items() if _shape(v)}
    by_step = {k: shape != p and shape in ((J,), (J, *p)) for k, (shape, p) in shapes.items()}
    by_element = {k: shape == p and shape != (J,) for k, (shape, p) in shapes.items()}
    return any(by_step.values()) and not any(by_element.values())


def values_at(question: Question, leaves: Entries, theta: Tensors, j: int) -> Hyper:
    """The hyperparameters that each tensor uses at step j, read off the shapes alone."""
    optimizer, J = question.call.problem.optimizer, question.steps
    learned = expand_betas(rebuild(question.phi_opt, ("A_opt",), leaves))
    order = list(optimizer.groups or {})
    home = {k: n for k in theta for n in order if any(fnmatchcase(k, p) for p in (optimizer.groups or {})[n])}

    def read(
        value: Any, k: str, served: Collection[str], marked: Marked = UNMARKED, entry: str | None = None
    ) -> Tensor | None:
        marked, value = marked.inside(value)
        of_root = entry is not None
        if of_root and isinstance(value, Mapping):
            return read(value[entry], k, served, marked, "") if entry in value else None
        if isinstance(value, Mapping):
            by_group = bool(order) and set(value) <= set(order)
            key = home[k] if by_group else k
            served = [n for n in theta if home[n] == key] if by_group else [k]
            if key not in value:
                return None
            if not by_group and _counts_steps(value, theta, J):
                marked = marked._replace(by_step=True) if _shape(value[key])[:1] == (J,) else marked
            return read(value[key], k, served, marked)
        value = value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)
        if of_root:
            value = value[j] if marked.by_step else value
            cast: Tensor = value.to(torch.float64 if value.ndim == 0 else theta[k].dtype)
            return cast
        shapes = {tuple(theta[n].shape) for n in served}
        p = shapes.pop() if len(shapes) == 1 else ()  # one value an element, only where all elements are alike
        if marked.by_step or (value.shape != p and value.shape in ((J,), (J, *p), (J, len(order)))):
            value = value[j]
        if value.ndim and value.shape != p:
            value = value[order.index(home[k])]
        used: Tensor = value.to(torch.float64 if value.ndim == 0 else theta[k].dtype)
        return used

    def choose(name: str, k: str) -> Tensor:
        root = own_root(optimizer, name)
        entry = None if root is None else name.removeprefix(root).removeprefix(".")
        field = root or name
        value = read(learned[field], k, theta, entry=entry) if field in learned else None
        value = read(optimizer.hyperparameters()[name], k, theta, entry=entry) if value is None else value
        assert value is not None  # the engine has checked that every tensor has a value
        return value

    return {k: {name: choose(name, k) for name in question.optimizer.continuous()} for k in theta}
