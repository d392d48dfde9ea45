"""What a page shows of a run, taken from its moments as they come; nothing is computed a second time but to look at."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gimli_core.derivatives.first_order import hessian
from gimli_core.errors import ArgumentError, closest, explain, listing
from gimli_core.notation import State, Tensors, slots
from gimli_core.optimizers.interface import Optimizer
from gimli_core.optimizers.rules.sgd import SGD
from gimli_core.step_through.page.summaries import describe, gathered, norm, number, numbers, plan, total
from gimli_core.step_through.walk import Moment, Walk

__all__ = ["Recorder", "entry"]

WHOLE_MATRIX = 40  # the largest side of a Hessian or Jacobian that is shown whole
MATRIX_NUMBERS = 150_000  # of a whole page
MOST_LEAVES = 24  # hyperparameters of each kind
LEAF_ENTRIES = 16  # of one hyperparameter that are followed one by one
MOST_STEPS = 20_000


class Recorder:
    """Sees every moment of a walk and keeps `data`, which a page or a figure is drawn from."""

    def __init__(self, walk: Walk, follow: Sequence[str] = ()) -> None:
        inputs = walk.inputs
        self.walk = walk
        self.theta = inputs.values.theta_0
        self.slots = list(slots(inputs.values.state_0))
        J, n = inputs.form.steps, sum(t.numel() for t in self.theta.values())
        if J > MOST_STEPS:
            raise ArgumentError(
                explain(
                    "steps", f"at most {MOST_STEPS} for a page", str(J), "Trace a shorter run, or use step_through."
                )
            )
        self.followed = [entry(text, self.theta) for text in follow] or [
            _largest(k, t) for k, t in list(self.theta.items())[:8]
        ]
        self.shown = gathered(self.theta)
        self.detail = plan(self.shown, J, 9 + 2 * len(self.slots))
        self.rows = n * (1 + len(self.slots)) if n * (1 + len(self.slots)) <= WHOLE_MATRIX else n
        self.matrices = n <= WHOLE_MATRIX and (n * n + self.rows**2) * J <= MATRIX_NUMBERS
        self.accumulators: dict[str, Any] = {}
        self.pending: int | None = None  # the step whose increments the engine is about to add
        self.held: dict[str, dict[int, int]] = {"point": {}, "graph": {}}  # the moment since which a step is kept
        self.data = self._empty()
        self._put("theta", 0, self.theta)
        self._put_state("s", 0, inputs.values.state_0)

    def _empty(self) -> dict[str, Any]:
        inputs, J = self.walk.inputs, self.walk.inputs.form.steps
        leaves = [("A_opt", leaf.label, leaf.value) for leaf in inputs.values.hyper.leaves[:MOST_LEAVES]]
        leaves += [("A_loss", f"phi_loss[{k!r}]", v) for k, v in [*inputs.values.phi_loss.items()][:MOST_LEAVES]]
        return {
            "steps": J,
            "parameters": sum(t.numel() for t in self.theta.values()),
            "dtype": str(next(iter(self.theta.values())).dtype).removeprefix("torch."),
            "optimizer": type(inputs.form.optimizer).__name__,
            "rule": _plain_rule(inputs.form.optimizer),
            "hyper": _hyper_values(inputs.values.hyper.at(0)),
            "schedule": repr(self.walk.schedule),
            "recurrence": inputs.form.recurrence,
            "tensors": [{"name": k, "shape": list(t.shape)} for k, t in self.shown.items()],
            "count": {
                "tensors": len(self.theta),
                "leaves": len(inputs.values.hyper.leaves) + len(inputs.values.phi_loss),
            },
            "slots": self.slots,
            "events": {key: [] for key in ("line", "j", "replay", "us", "bytes", "memory")},
            "held": [],  # [kind, j, first moment, moment after the last]
            "q": {},
            "loss": [],
            "val": {},
            "A": [
                {"kind": kind, "label": label, "shape": list(v.shape), "inc": [None] * J, "after": [None] * J}
                for kind, label, v in leaves
            ],
            "hessian": [None] * J,
            "jacobian": [None] * J,
            "stretch": [None] * J,
            "rows": self.rows,
            "follow": [{"label": _label(k, i, self.theta[k]), "q": {}} for k, i in self.followed],
            "interventions": [],
            "error": None,
        }

    def see(self, moment: Moment) -> None:
        """Keep what this moment shows."""
        self._note(moment)
        if self.pending is not None:
            self._accumulated("after", self.pending)
            self.pending = None
        j, values = moment.j, moment.values
        match moment.line:
            case 5 if not moment.replay:
                losses = self.data["loss"]
                losses += [None] * (j - len(losses))  # of steps that had been taken before
                losses.append(number(values["loss"].item()))
                self._put("G", j, values["G"])
            case 6 if not moment.replay:
                self._put("theta", j + 1, values["theta"])
                self._put_state("s", j + 1, values["s"])
            case 8:
                self.data["val"] = {"loss": number(values["loss"].item())}
                self.accumulators = values
                self._accumulated("start")
            case 9:
                self._put("B", j, values["B"])
                self._put_state("S", j, values["S"])
            case 11:
                self._put("V", j, values["V"])
                self._look_into(j, moment)
            case 12:
                increments = self.walk.inputs.values.hyper.zeros()
                self.walk.inputs.values.hyper.accumulate(increments, j, values["A_opt"])
                self._leaves("inc", "A_opt", increments, j)
            case 13:
                self._leaves("inc", "A_loss", list(values["A_loss"].values()), j)
            case 14:
                for name in ("B", "direct", "curvature"):
                    self._put(name, j, values[name])
                self._put_state("S", j, values["S"])
                self.pending = j
            case 16:
                self._accumulated("final")

    def fail(self, error: Exception) -> None:
        """Keep the error that ended the walk."""
        events = self.data["events"]
        after = (
            f"after line {events['line'][-1]} of step {events['j'][-1]}" if events["line"] else "before the first line"
        )
        notes = "; ".join(getattr(error, "__notes__", ()))
        for kind, known in self.held.items():
            self.data["held"] += [[kind, j, since, len(events["line"])] for j, since in known.items()]
        self.data["error"] = {
            "kind": type(error).__name__,
            "message": f"{error} {f'({notes})' if notes else ''}".strip(),
            "after": after,
        }

    def _note(self, moment: Moment) -> None:
        events = self.data["events"]
        number_of_this = len(events["line"])
        for key, value in (
            ("line", moment.line), ("j", moment.j), ("replay", int(moment.replay)), ("us", round(moment.seconds * 1e6)),
            ("bytes", moment.bytes), ("memory", resident_bytes(next(iter(self.theta.values())))),
        ):  # fmt: skip
            events[key].append(value)
        for (kind, known), now in zip(self.held.items(), self.walk.held, strict=True):
            for j in known.keys() - now:
                self.data["held"].append([kind, j, known.pop(j), number_of_this])
            known.update(dict.fromkeys(now - known.keys(), number_of_this))
        self.data["interventions"] = [str(made) for made in self.walk.interventions]

    def _put(self, name: str, j: int, tensors: Tensors) -> None:
        kept = self.data["q"].setdefault(name, {"norm": {}, "cells": {}})
        parts = gathered(tensors)
        sizes = [norm(t) for t in parts.values()]
        kept["norm"][j] = number(total(sizes))
        detail = self.detail._replace(summarised=frozenset()) if name in ("V_theta", "V_state") else self.detail
        kept["cells"][j] = describe(parts, sizes, j, detail)
        for (k, i), followed in zip(self.followed, self.data["follow"], strict=True):
            followed["q"].setdefault(name, {})[j] = numbers(tensors[k].reshape(-1)[i])[0]

    def _put_state(self, prefix: str, j: int, state: State) -> None:
        for slot in self.slots:
            self._put(f"{prefix}.{slot}", j, state[slot])

    def _accumulated(self, key: str, j: int | None = None) -> None:
        if not self.accumulators:  # line 8 came before anything was recorded
            return
        self._leaves(key, "A_opt", list(self.accumulators["A_opt"]), j)
        self._leaves(key, "A_loss", list(self.accumulators["A_loss"].values()), j)

    def _leaves(self, key: str, kind: str, values: Sequence[Tensor], j: int | None) -> None:
        for leaf, value in zip([leaf for leaf in self.data["A"] if leaf["kind"] == kind], values, strict=False):
            few = value.numel() <= LEAF_ENTRIES
            shown = {"n": number(norm(value)), **({"v": numbers(value)} if few else {})}
            if j is None:
                leaf[key] = shown
            else:
                leaf[key][j] = shown

    def _look_into(self, j: int, moment: Moment) -> None:
        """O_j, the two parts of V_j, and for a small problem the Hessian and the whole Jacobian."""
        given, optimizer = moment.given, self.walk.inputs.form.optimizer
        B, S = given["B"], given["S"]
        no_B, no_S = {k: torch.zeros_like(v) for k, v in B.items()}, optimizer.zero_adjoint(given["s"])

        def pull(B: Tensors, S: State) -> tuple[Tensors, Tensors, State]:
            pulled = optimizer.pullback(given["theta"], given["s"], given["G"], given["phi_opt"], B, S, ())
            return pulled.V, pulled.B, pulled.S

        self._put("O", j, moment.O)
        self._put("V_theta", j, pull(B, no_S)[0])
        if self.slots:
            self._put("V_state", j, pull(no_B, S)[0])
        if not self.matrices or given["graph"] is None:
            return
        H = hessian(given["graph"])
        rows = []
        for out, like in [("theta", no_B), *((slot, no_S[slot]) for slot in self.slots)]:
            for k, t in like.items():
                for i in range(t.numel()):
                    unit = torch.zeros_like(t).reshape(-1)
                    unit[i] = 1
                    one = {**like, k: unit.reshape(t.shape)}
                    V, of_theta, of_s = pull(one, no_S) if out == "theta" else pull(no_B, {**no_S, out: one})
                    parts = [_flat(of_theta) + _flat(V) @ H, *(_flat(of_s[slot]) for slot in self.slots)]
                    rows.append(torch.cat(parts)[: self.rows])
                    if len(rows) == self.rows:
                        break
        jacobian = torch.stack(rows[: self.rows])
        self.data["hessian"][j] = numbers(H)
        self.data["jacobian"][j] = numbers(jacobian)
        if bool(torch.isfinite(jacobian).all()):
            self.data["stretch"][j] = number(float(torch.linalg.matrix_norm(jacobian.double(), 2)))


def entry(text: str, theta: Tensors) -> tuple[str, int]:
    """(tensor name, flat index) of an entry written as `name[3, 2]`, or `name` for a tensor's first entry."""
    name, _, inside = (text, "", "") if text in theta else text.rpartition("[")
    if name not in theta:
        raise ArgumentError(
            explain(f"entry {text!r}", f"a tensor of theta with an index, such as {next(iter(theta))}[0]",
                    f"the name {name or text!r}", f"Use one of {listing(theta)}.{closest(name or text, theta)}")
        )  # fmt: skip
    shape = theta[name].shape
    try:
        index = tuple(int(part) for part in inside.rstrip("]").split(",")) if inside else (0,) * len(shape)
        return name, int(np.ravel_multi_index(index, shape)) if shape else 0
    except ValueError:
        raise ArgumentError(
            explain(f"entry {text!r}", f"an index within the shape {list(shape)}", inside.rstrip("]"), "Count from 0.")
        ) from None


def _label(name: str, index: int, t: Tensor) -> str:
    return f"{name}[{', '.join(map(str, np.unravel_index(index, t.shape)))}]" if t.ndim else name


def resident_bytes(like: Tensor) -> int:
    """Memory in use now: of the device that `like` is on, else of this process; 0 where the system does not tell."""
    if like.device.type == "cuda":
        return int(torch.cuda.memory_allocated(like.device))
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _flat(tensors: Tensors) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors.values()])


def _largest(name: str, t: Tensor) -> tuple[str, int]:
    return name, int(t.abs().argmax()) if t.numel() else 0


def _plain_rule(optimizer: Optimizer) -> str | None:
    """Whether line 6 can be written out: "sgd" or "momentum", for SGD without other switches and terms."""
    if (
        type(optimizer) is not SGD
        or optimizer.nesterov
        or optimizer.maximize
        or optimizer.uses("weight_decay")
        or optimizer.uses("dampening")
    ):
        return None
    return "momentum" if optimizer.slots() else "sgd"


def _hyper_values(hyper: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """Hyperparameters that are one number for every tensor."""
    first = next(iter(hyper.values()))
    return {
        name: number(value.item())
        for name, value in first.items()
        if value.ndim == 0
        and all(name in h and h[name].ndim == 0 and torch.equal(h[name], value) for h in hyper.values())
    }
