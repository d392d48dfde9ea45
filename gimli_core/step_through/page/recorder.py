"""What a page shows of a run, taken from its moments as they come; nothing is computed a second time but to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gimli_core.errors import unexpected
from gimli_core.notation import State, Tensors, slots
from gimli_core.step_through.page.entries import entry, label, largest
from gimli_core.step_through.page.facts import facts, resident_bytes
from gimli_core.step_through.page.look_into import look_into, steepest
from gimli_core.step_through.page.summaries import describe, gathered, norm, number, numbers, plan, total
from gimli_core.step_through.walk import Moment, Walk

__all__ = ["Recorder"]

LARGEST_MATRIX = 40  # the largest side of a Hessian or Jacobian that is shown whole
MATRIX_NUMBERS = 150_000  # of a whole page
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
            raise unexpected(
                "steps", f"at most {MOST_STEPS} for a page", str(J), "Trace a shorter run, or use step_through."
            )
        self.followed = [entry(text, self.theta) for text in follow] or [
            largest(k, t) for k, t in list(self.theta.items())[:8]
        ]
        self.shown = gathered(self.theta)
        self.detail = plan(self.shown, J, 9 + 2 * len(self.slots))
        self.rows = n * (1 + len(self.slots)) if n * (1 + len(self.slots)) <= LARGEST_MATRIX else n
        self.matrices = n <= LARGEST_MATRIX and (n * n + self.rows**2) * J <= MATRIX_NUMBERS
        self.accumulators: dict[str, Any] = {}
        self.pending: int | None = None  # the step whose increments the engine is about to add
        self.since: dict[str, dict[int, int]] = {"point": {}, "graph": {}}  # the moment since which a step is kept
        self.data = self._empty()
        self._put("theta", 0, self.theta)
        self._put_state("s", 0, inputs.values.state_0)

    def _empty(self) -> dict[str, Any]:
        J = self.walk.inputs.form.steps
        return {
            **facts(self.walk, self.shown),
            "slots": self.slots,
            "events": {key: [] for key in ("line", "j", "replay", "us", "bytes", "memory")},
            "held": [],  # [kind, j, first moment, moment after the last]
            "q": {},
            "loss": [],
            "val": {},
            "hessian": [None] * J,
            "jacobian": [None] * J,
            "stretch": [None] * J,
            "steepest": [None] * J,  # [tensor, entry, O there, G there] where |O_j| is largest
            "rows": self.rows,
            "follow": [{"label": label(k, i, self.theta[k]), "q": {}} for k, i in self.followed],
            "interventions": [],
            "unchanged": None,  # the run without them, where there are any
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
                losses.append(number(values["loss"].sum().item() * self.walk.inputs.form.scale))  # of all tasks
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
        for kind, steps in self.since.items():
            self.data["held"] += [[kind, j, since, len(events["line"])] for j, since in steps.items()]
        self.data["error"] = {
            "kind": type(error).__name__,
            "message": f"{error} {f'({notes})' if notes else ''}".strip(),
            "after": after,
        }

    def _note(self, moment: Moment) -> None:
        events = self.data["events"]
        number_of_this = len(events["line"])
        for key, value in (
            ("line", moment.line),
            ("j", moment.j),
            ("replay", int(moment.replay)),
            ("us", round(moment.seconds * 1e6)),
            ("bytes", moment.bytes),
            ("memory", resident_bytes(next(iter(self.theta.values())))),
        ):
            events[key].append(value)
        for (kind, steps), now in zip(self.since.items(), self.walk.in_memory, strict=True):
            for j in steps.keys() - now:
                self.data["held"].append([kind, j, steps.pop(j), number_of_this])
            steps.update(dict.fromkeys(now - steps.keys(), number_of_this))
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
        parts = look_into(moment, self.walk.inputs.form.optimizer, self.slots, self.rows, self.matrices)
        rule = moment.O
        self._put("O", j, rule)
        self.data["steepest"][j] = steepest(gathered(rule), gathered(moment.inputs["G"]))
        self._put("V_theta", j, parts.V_theta)
        if self.slots:
            self._put("V_state", j, parts.V_state)
        if parts.hessian is None or parts.jacobian is None:
            return
        self.data["hessian"][j] = numbers(parts.hessian)
        self.data["jacobian"][j] = numbers(parts.jacobian)
        if bool(torch.isfinite(parts.jacobian).all()):
            self.data["stretch"][j] = number(float(torch.linalg.matrix_norm(parts.jacobian.double(), 2)))
