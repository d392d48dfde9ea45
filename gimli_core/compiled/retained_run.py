"""All of Algorithm 1 with two compiled calls a step and next to nothing between them.

The step forwards hands on what its sweep needs (split_function.py): 9F a step; memory as `RetainGraphs`, less all that
is cheap to compute again. Who watches is told of every step, but cannot intervene.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gimli_core.arguments.inputs import Inputs
from gimli_core.compiled import pure_steps
from gimli_core.compiled.compiler.compiled_function import ANOTHER_FORM
from gimli_core.compiled.compiler.split_function import Halves, Joined
from gimli_core.compiled.compiler.trees_in_source import builder, taker
from gimli_core.compiled.compiler.trial import Uncompiled
from gimli_core.compiled.pure_steps import Advanced, Swept, rows, soundness
from gimli_core.compiled.shared_sweep import in_rows
from gimli_core.compiled.steps import bound, fixed_of, options_of
from gimli_core.compiled.validation import CompiledValidation
from gimli_core.derivatives.first_order import Gradient
from gimli_core.errors import notice
from gimli_core.notation import Hyper, State, Tensors
from gimli_core.outlines import fits, outline
from gimli_core.record import Ends, Event

__all__ = ["CompiledRetained", "Computed", "refuse_changed", "versions"]

PENDING = 2**16  # numbers that wait before they are added up


class Step(NamedTuple):
    """What is kept of a step: what its sweep needs, or the point of one that ran uncompiled."""

    kept: list[Any]
    point: tuple[Tensors, State] | None
    read: list[tuple[Tensor, int]]  # the batch's tensors and their versions


class Row(NamedTuple):
    """What a run has computed for one outer loss."""

    ends: Ends
    A_opt: list[dict[str, Tensors]]  # increments, of step J-1 first; or their sum alone
    A_loss: Tensors


class Computed(NamedTuple):
    """What a run has computed."""

    train_losses: list[Tensor]
    val_losses: dict[int, Tensor]
    rows: list[Row]


class CompiledRetained:
    """The steps of one problem, compiled for the shapes of `inputs`. Raises Uncompiled, with the reason."""

    def __init__(self, inputs: Inputs) -> None:
        self._fixed = fixed = fixed_of(inputs)
        values, options, batch = inputs.values, options_of(inputs), inputs.values.batch(0)
        self._batch, self._take_batch, self._told = outline(batch), taker(batch), False
        batch = builder(batch)(self._rows_of(batch))
        theta, s = start_in_rows(inputs)
        rest, hyper = (values.phi_loss, values.frozen), values.hyper.at(0)
        self._validate = CompiledValidation(fixed, inputs, theta, **options)
        snapshot = inputs.environment.capture()
        B = rows(self._validate(inputs, values.last_val_batch, theta)[1][0].theta)
        S = rows(inputs.form.optimizer.zero_adjoint(s))
        inputs.environment.restore(snapshot)
        arguments = (theta, s, *rest, hyper, batch, pure_steps.Along(B, S))
        self._early, self._late = taker(arguments[:-2]), taker((B, S))
        function = bound(pure_steps.both, fixed)
        self._step = Halves(function, inputs.environment, arguments, len(self._late((B, S))), **options)
        self.seconds = self._validate.seconds + self._step.seconds
        advanced, swept = self._step.results
        self._advanced, self._swept = builder(advanced), builder(swept)
        self._take_A, self._build_A = taker((swept.A_opt, swept.A_loss)), builder((swept.A_opt, swept.A_loss))

    def look(self, inputs: Inputs) -> None:
        """Can a run be done with what was compiled, or compiled again? Raises Uncompiled."""
        theta, s = start_in_rows(inputs)
        self._validate.look(inputs, theta)
        self._begin(inputs, theta, s)

    @property
    def outer_losses(self) -> int | None:
        """k, or None where val_loss returns one number."""
        return self._validate.outer_losses

    def run(self, inputs: Inputs) -> Generator[Event, None, Computed | None]:
        """The whole run, or None where something in it is not finite: an eager run then names what broke first."""
        form, values, J = inputs.form, inputs.values, inputs.form.steps
        steps, train_losses, sounds = [], [], []
        val_losses: dict[int, Tensor] = {}
        validated: dict[int, list[Gradient]] = {}
        theta, s = start_in_rows(inputs)
        try:
            joined = self._begin(inputs, theta, s)
        except Uncompiled as reason:
            notice(f"not compiled any more: {reason}")
            return None
        for j in range(J + 1):
            if form.weighted[j]:
                L, validated[j] = self._validate(inputs, values.val_batch(j), theta)
                val_losses[j] = L.loss
            if j < J:
                done, step = self._forwards(joined, inputs, j, theta, s)
                steps.append(step)
                train_losses.append(done.loss)
                sounds.append(done.sound)
                theta, s = done.theta, done.s
                yield Event(6, j, {"theta": theta, "s": s})
        if not math.isfinite(soundness((sounds, theta, list(val_losses.values()))).item()):
            return None
        theta_J, s_J = theta, s
        adjoints = [Sweep(theta, rows(form.optimizer.zero_adjoint(s))) for _ in range(self.outer_losses or 1)]
        for j in range(J, -1, -1):
            ran = steps.pop() if j < J else None
            for row, A in enumerate(adjoints):
                if ran is not None:
                    swept = self._backwards(joined, inputs, j, ran, A.B, A.S)
                    A.B, A.S = swept.B, swept.S
                    A.increments.add(self._take_A((swept.A_opt, swept.A_loss)))
                    if not values.hyper.constant:
                        A.of_steps.append(swept.A_opt)
                if (w := values.weights[j]) is not None:
                    A.add_validation(w * form.scale, validated[j][row])
                yield Event(14 if j < J else 9, j, {"B": A.B, "S": A.S}, row=row, rows=len(adjoints))
        computed = []
        for A in adjoints:
            A_opt, A_loss = self._build_A(A.increments.total())
            for k, v in zip(values.phi_loss, A.explicit.total(), strict=True):
                A_loss[k] += v
            computed.append(Row(Ends(theta_J, s_J, A.B, A.S), A.of_steps or [A_opt], A_loss))
        return Computed(train_losses, val_losses, computed)

    def _begin(self, inputs: Inputs, theta: Tensors, s: State) -> Joined:
        """A run begins: is all that the losses read besides their arguments as it was? Raises Uncompiled."""
        self._validate.begin()
        B, S = pytree.tree_map(torch.empty_like, (theta, inputs.form.optimizer.zero_adjoint(s)))
        arguments = _arguments(inputs, 0, theta, s)
        return self._step.look([*self._early(arguments), *self._rows_of(arguments[-1]), *self._late((B, S))])

    def _forwards(self, joined: Joined, inputs: Inputs, j: int, theta: Tensors, s: State) -> tuple[Advanced, Step]:
        """Lines 5 and 6."""
        arguments = _arguments(inputs, j, theta, s)
        batch = arguments[-1]
        if not fits(batch, self._batch):
            if not self._told:
                self._told = True
                notice(f"the step runs uncompiled here: {ANOTHER_FORM}")
            with torch.no_grad():
                return pure_steps.advance(self._fixed, *arguments), Step([], (theta, s), [])
        leaves, kept = joined.first([*self._early(arguments), *self._rows_of(batch)])
        return self._advanced(leaves), Step(kept, None, versions(self._take_batch(batch)))

    def _rows_of(self, batch: Any) -> list[Any]:
        return in_rows(self._take_batch(batch))

    def _backwards(self, joined: Joined, inputs: Inputs, j: int, step: Step, B: Tensors, S: State) -> Swept:
        """Lines 11-14."""
        if step.point is not None:
            with torch.no_grad():
                again = pure_steps.sweep(self._fixed, *_arguments(inputs, j, *step.point), pure_steps.Along(B, S))
                return again._replace(B=rows(again.B), S=rows(again.S))
        refuse_changed(j, step.read)
        swept: Swept = self._swept(joined.second(step.kept, self._late((B, S))))
        return swept


def versions(leaves: Sequence[Any]) -> list[tuple[Tensor, int]]:
    """A batch's tensors, of any shapes, as a step forwards has read them."""
    return [(x, x._version) for x in leaves if isinstance(x, Tensor)]


def refuse_changed(j: int, read: Sequence[tuple[Tensor, int]]) -> None:
    """Raise RuntimeError if what was read, of any shapes, is not what it was any more."""
    if any(x._version != version for x, version in read):
        raise RuntimeError(
            f"the batch of inner step j = {j} has been changed in place before the backward sweep. "
            "Leave batches as they are until then, or pass copies."
        )


class Sweep:
    """B and S of one outer loss, and sums over the steps: of the increments of A, and of L_val's own part of A_loss."""

    def __init__(self, theta: Tensors, S: State) -> None:
        self.B, self.S = pytree.tree_map(torch.zeros_like, theta), S
        self.increments, self.explicit = Sums(), Sums()
        self.of_steps: list[dict[str, Tensors]] = []

    def add_validation(self, w: float, L: Gradient) -> None:
        self.B = rows(pytree.tree_map(lambda v, g: torch.add(v, g, alpha=w), self.B, L.theta))
        self.explicit.add([w * x for x in L.phi_loss.values()])


def _arguments(inputs: Inputs, j: int, theta: Tensors, s: State) -> tuple[Tensors, State, Tensors, Tensors, Hyper, Any]:
    values = inputs.values
    return theta, s, values.phi_loss, values.frozen, values.hyper.at(j), values.batch(j)


def start_in_rows(inputs: Inputs) -> tuple[Tensors, State]:
    """(theta_0, s_0) as every later step returns them: contiguous."""
    return rows(inputs.values.theta_0), rows(inputs.values.state_0)


class Sums:
    """Sums of lists of tensors, in float32 at least; small ones wait, and are added up many at a time."""

    def __init__(self) -> None:
        self._pending: list[Sequence[Tensor]] = []
        self._totals: list[Tensor] = []
        self._numbers = 0

    def add(self, tensors: Sequence[Tensor]) -> None:
        self._pending.append(tensors)
        self._numbers += sum(x.numel() for x in tensors)
        if self._numbers > PENDING:
            self.total()

    def total(self) -> list[Tensor]:
        """The sums so far."""
        for i, terms in enumerate(zip(*self._pending, strict=True)):
            total = torch.stack(terms).sum(0, dtype=torch.promote_types(terms[0].dtype, torch.float32))
            if i < len(self._totals):
                self._totals[i] += total
            else:
                self._totals.append(total)
        self._pending, self._numbers = [], 0
        return self._totals
