"""What is compiled of one rank's share of a problem, of which other ranks have the rest: no collective is among it.

the loss     line 5 and, cut off it, lines 13-14: of this rank's part of the batch, at theta as it is whole
val_loss     lines 8-9, likewise
the rule     line 6 and lines 11-12: of what this rank has of theta; as it is where it gathers for itself
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gimli_core.arguments.inputs import Inputs
from gimli_core.compiled import pure_steps
from gimli_core.compiled.compiler.compiled_function import ANOTHER_FORM, Kernel
from gimli_core.compiled.compiler.split_function import Halves, Joined
from gimli_core.compiled.compiler.trees_in_source import builder, taker
from gimli_core.compiled.pure_steps import Along, Fixed, rows
from gimli_core.compiled.retained_run import refuse_changed, versions
from gimli_core.compiled.shared_sweep import in_rows
from gimli_core.compiled.steps import bound, fixed_of, options_of
from gimli_core.compiled.validation import CompiledValidation
from gimli_core.derivatives.first_order import Gradient
from gimli_core.errors import notice
from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers.interface import Pulled
from gimli_core.optimizers.seen import seeing
from gimli_core.outlines import fits, outline
from gimli_core.record import Adjoint, Point
from gimli_core.transforms.rule_on_shards import RuleByGathering
from gimli_core.transforms.shares import unweighed

__all__ = ["RankKernels", "of_rank"]


def of_rank(inputs: Inputs) -> Inputs:
    """The inputs as this rank's losses meet them: theta_0 whole, and batches without what they count for."""
    values = inputs.values
    batch, val_batch = (lambda j, of=of: unweighed(of(j)) for of in (values.batch, values.val_batch))
    return replace(inputs, values=replace(values, theta_0=inputs.start, batch=batch, val_batch=val_batch))


class LossOfRank:
    """Line 5 of this rank's part, and lines 13-14 from what that hands on. Raises Uncompiled, with the reason."""

    def __init__(self, fixed: Fixed, inputs: Inputs, **options: Any) -> None:
        values, batch = inputs.values, inputs.values.batch(0)
        self._fixed, self._told = fixed, False
        self._batch, self._take_batch = outline(batch), taker(batch)
        theta = rows(values.theta_0)
        early, V = (theta, values.phi_at(0), values.frozen, batch), theta
        g = self._like_g(inputs)
        self._early, self._late = taker(early[:-1]), taker((V, g))
        function = bound(pure_steps.gradient_and_products, fixed)
        trial = builder((*early, V, g))([*self._early(early), *in_rows(self._take_batch(batch)), *self._late((V, g))])
        self._halves = Halves(function, inputs.environment, trial, len(self._late((V, g))), **options)
        self.seconds = self._halves.seconds
        self._of_first, self._of_second = map(builder, self._halves.results)

    def look(self, inputs: Inputs) -> Joined:
        """Does what was compiled still fit? If not, compile again. Raises Uncompiled."""
        values, theta = inputs.values, rows(inputs.values.theta_0)
        g = self._like_g(inputs)
        early = self._early((theta, values.phi_at(0), values.frozen))
        return self._halves.look([*early, *in_rows(self._take_batch(values.batch(0))), *self._late((theta, g))])

    def gradient(self, joined: Joined, inputs: Inputs, j: int, theta: Tensors) -> tuple[Gradient, Tensor]:
        """(G_j and ell_j, what takes V_j and g_j to the products; a number that is finite if they are)."""
        phi_loss, frozen, batch = inputs.values.phi_at(j), inputs.values.frozen, inputs.values.batch(j)
        if not fits(batch, self._batch):
            if not self._told:
                self._told = True
                notice(f"train_loss runs uncompiled here: {ANOTHER_FORM}")
            with torch.no_grad():
                G, of_V, loss = pure_steps.linearised(self._fixed, theta, phi_loss, frozen, batch)
            return Gradient(loss, G, {}, None, pull=of_V), pure_steps.soundness((loss, G))
        leaves, kept = joined.first([*self._early((theta, phi_loss, frozen)), *in_rows(self._take_batch(batch))])
        loss, G, sound = self._of_first(leaves)
        read = versions(self._take_batch(batch))

        def pull(V: Tensors, g: Tensor | None) -> tuple[Tensors, Tensors]:
            refuse_changed(j, read)
            late = self._late((rows(V), () if g is None else (g,)))
            products: tuple[Tensors, Tensors] = self._of_second(joined.second(kept, late))
            return products

        return Gradient(loss, G, {}, None, pull=pull), sound

    def _like_g(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """What comes late beside V_j: g_j, of a rule that sees the loss."""
        return (inputs.form.zero_loss(inputs.values.theta_0),) if "loss" in self._fixed.optimizer.seen() else ()


class RuleOfRank:
    """Line 6 and lines 11-12 of what this rank has of theta. Raises Uncompiled, with the reason."""

    def __init__(self, fixed: Fixed, inputs: Inputs, **options: Any) -> None:
        values, rule = inputs.values, fixed.optimizer
        theta, s, loss = values.theta_0, values.state_0, inputs.form.zero_loss(values.theta_0)
        hyper = seeing(rule, values.hyper.at(0), loss)
        self._step, self._pullback = bound(_line_6, fixed), bound(_lines_11_and_12, fixed)
        self._kernels: list[Kernel] = []
        if isinstance(rule, RuleByGathering):  # it sends
            return
        of_step, along = (theta, s, hyper, theta), Along(theta, rule.zero_adjoint(s))
        for name, function, arguments in (
            ("the rule", self._step, of_step),
            ("the rule's pullback", self._pullback, (*of_step, loss, along)),
        ):
            self._kernels.append(Kernel(name, function, inputs.environment, arguments, (), **options))
        self._step, self._pullback = (partial(kernel, ()) for kernel in self._kernels)

    @property
    def seconds(self) -> float:
        """Of compiling."""
        return sum(kernel.seconds for kernel in self._kernels)

    def begin(self) -> None:
        """A run begins."""
        for kernel in self._kernels:
            kernel.begin()

    def step(self, point: Point, hyper: Hyper, G: Tensors) -> tuple[Tensors, State]:
        """(theta_{j+1}, s_{j+1})."""
        with torch.no_grad():
            stepped: tuple[Tensors, State] = self._step(point.theta, point.state, hyper, G)
        return stepped

    def pullback(self, point: Point, hyper: Hyper, G_j: Gradient, A: Adjoint) -> tuple[Pulled, Tensor | None]:
        """As `pure_steps.lines_11_and_12`."""
        with torch.no_grad():
            pulled, g = self._pullback(point.theta, point.state, hyper, G_j.theta, G_j.loss, Along(A.B, A.S))
        return pulled, next(iter(g), None)


def _line_6(fixed: Fixed, theta: Tensors, s: State, hyper: Hyper, G: Tensors) -> tuple[Tensors, State]:
    return fixed.optimizer.step(theta, s, G, hyper)


def _lines_11_and_12(fixed: Fixed, *arguments: Any) -> tuple[Pulled, list[Tensor]]:
    pulled, g = pure_steps.lines_11_and_12(fixed, *arguments)
    return pulled, [] if g is None else [g]


class RankKernels:
    """What is compiled of one rank's share of a problem. Raises Uncompiled, with the reason."""

    def __init__(self, inputs: Inputs) -> None:
        fixed, options, local = fixed_of(inputs), options_of(inputs), of_rank(inputs)
        self.loss = LossOfRank(fixed, local, **options)
        self.validate = CompiledValidation(fixed, local, rows(local.values.theta_0), **options)
        self.rule = RuleOfRank(fixed, inputs, **options)
        self.seconds = self.loss.seconds + self.validate.seconds + self.rule.seconds

    def look(self, inputs: Inputs) -> Joined:
        """Does what was compiled still fit a rank's inputs, as `of_rank` has them? Raises Uncompiled."""
        local = of_rank(inputs)
        self.validate.look(local, rows(local.values.theta_0))
        return self.loss.look(local)
