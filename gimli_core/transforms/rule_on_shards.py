"""A rule on theta and s in pieces: by itself where it treats every element alone, and else on what is gathered."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from gimli_core.notation import Hyper, State, Tensors, counts, slots
from gimli_core.optimizers.interface import Optimizer, Pulled
from gimli_core.optimizers.tensorwise import by_element_alone
from gimli_core.optimizers.wrappers.accumulate import Accumulate
from gimli_core.optimizers.wrappers.clip_value import ClipValue
from gimli_core.optimizers.wrappers.ema import EMA
from gimli_core.optimizers.wrappers.interface import rules_within
from gimli_core.optimizers.wrappers.lookahead import Lookahead
from gimli_core.optimizers.wrappers.masked_decay import MaskedDecay
from gimli_core.optimizers.wrappers.partition import Partition
from gimli_core.processes.collectives import summed
from gimli_core.processes.pieces import Pieces
from gimli_core.transforms.interface import RuleInAnotherForm

__all__ = ["RuleByGathering", "RuleOnPieces", "RuleOnShards", "by_element", "rule_on_shards"]

BY_ELEMENT = (Accumulate, ClipValue, EMA, Lookahead, MaskedDecay, Partition)  # if all within are


def by_element(optimizer: Optimizer) -> bool:
    """Whether each element of theta steps by itself, so that its tensor need not be there.

    A subclass of a wrapper may do anything, so may a rule with a step of its own, and a mask that is a function is
    handed tensors as they are.
    """
    rules = list(rules_within(optimizer))
    alone = all(type(rule) in BY_ELEMENT or by_element_alone(rule) for rule in rules)
    masked = any(isinstance(rule, MaskedDecay) and callable(rule.mask) for rule in rules)
    return alone and not masked and not optimizer.seen() and not optimizer.own_parameters()


@dataclass(frozen=True, eq=False)
class RuleOnShards(RuleInAnotherForm):
    """`rule` on pieces. Slots like theta are cut as it is; what else a state has, each rank has. Whether a tensor is
    used is known of all of it: G lacks the same tensors on every rank.

    Args:
        rule: any optimizer.
        pieces: how theta is cut.
        cut: of each slot the tensors that are.
    """

    pieces: Pieces = field(kw_only=True)
    cut: Mapping[str, Collection[str]] = field(kw_only=True)

    @abstractmethod
    def hyper(self, hyper: Hyper) -> Hyper:
        """The hyperparameters of a step as this rule takes them."""

    @abstractmethod
    def whole_adjoint(self, S: State) -> State:
        """S of the state as it is whole."""

    @abstractmethod
    def redealt_adjoint(self, every: Sequence[State]) -> State:
        """This rank's S, from those of another number of ranks."""

    def redealt(self, every: Sequence[State]) -> State:
        """This rank's part of a state of which another number of ranks had parts; what is not cut is the first's."""
        first = slots(every[0])
        pieces = {}
        for slot, tensors in first.items():
            cut = [{k: v for k, v in slots(state)[slot].items() if k in self.cut.get(slot, ())} for state in every]
            pieces[slot] = {**tensors, **self.pieces.redealt(cut)}
        return {**counts(every[0]), **pieces}

    def part(self, state: State) -> State:
        """This rank's part of a state."""
        pieces = {
            slot: {k: self.pieces.piece(k, v).clone() if k in self.cut.get(slot, ()) else v for k, v in tensors.items()}
            for slot, tensors in slots(state).items()
        }
        return {**counts(state), **pieces}

    def gathered(self, state: State, what: str, *beside: Tensors) -> tuple[State, list[Tensors]]:
        """(the state of which all ranks have parts, and what is gathered with it)."""
        trees = {
            slot: {k: tensors[k] for k in tensors if k in self.cut.get(slot, ())}
            for slot, tensors in slots(state).items()
        }
        (*gathered,) = self.pieces.all_gathered([*beside, *trees.values()], what)
        slots_of = {
            slot: {**slots(state)[slot], **tree} for slot, tree in zip(trees, gathered[len(beside) :], strict=True)
        }
        return {**counts(state), **slots_of}, gathered[: len(beside)]


class RuleOnPieces(RuleOnShards):
    """A rule that treats every element alone, on this rank's elements: nothing is sent.

    Its increments of A_opt, and the adjoints of slots that are one number a tensor, are this rank's part of a sum.
    """

    def hyper(self, hyper: Hyper) -> Hyper:
        return {k: {n: v if v.ndim == 0 else self.pieces.piece(k, v) for n, v in h.items()} for k, h in hyper.items()}

    def whole_adjoint(self, S: State) -> State:
        S, _ = self.gathered(S, "S_0")
        numbers = {
            f"{slot}/{k}": v for slot, of_slot in S.items() for k, v in of_slot.items() if k not in self.cut[slot]
        }
        total = summed(self.pieces.ranks, numbers, "S_0")
        return {slot: {k: total.get(f"{slot}/{k}", v) for k, v in of_slot.items()} for slot, of_slot in S.items()}

    def redealt_adjoint(self, every: Sequence[State]) -> State:
        redealt = self.redealt(every)
        for slot, of_slot in redealt.items():
            for k in of_slot.keys() - set(self.cut[slot]):
                of_slot[k] = self.pieces.once(torch.stack([S[slot][k] for S in every]).sum(0))
        return redealt

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        return self.rule.initial_state(theta, hyper)

    def initial_state_pullback(self, S_0: State, hyper: Hyper, wanted: Collection[str]) -> dict[str, Tensors]:
        return self._of_tensors(self.rule.initial_state_pullback(S_0, hyper, wanted), hyper)

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        return self.rule.step_used(theta, state, G, hyper)

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        pulled = self.rule.pullback_used(theta, state, G, hyper, B, S, wanted)
        return pulled._replace(A=self._of_tensors(pulled.A, hyper))

    def _of_tensors(self, A: dict[str, Tensors], hyper: Hyper) -> dict[str, Tensors]:
        """Increments of values of elements as those of the tensor, 0 where other ranks have them."""
        return {
            k: {n: v if hyper[k][n].ndim == 0 else self.pieces.alone(k, v) for n, v in increments.items()}
            for k, increments in A.items()
        }


class RuleByGathering(RuleOnShards):
    """Any rule: what a norm or a matrix over tensors needs is gathered for the step, and cut after it.

    Cost: an all_gather of theta, s and G a step, and of B and S too in its pullback; for that long they are there as a
    whole. Increments of A_opt are alike on all ranks: the first has them.
    """

    def hyper(self, hyper: Hyper) -> Hyper:
        return hyper

    def whole_adjoint(self, S: State) -> State:
        return self.gathered(S, "S_0")[0]

    def redealt_adjoint(self, every: Sequence[State]) -> State:
        return self.redealt(every)

    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        return self.part(self.rule.initial_state(self.pieces.gathered(theta, "theta_0"), hyper))

    def initial_state_pullback(self, S_0: State, hyper: Hyper, wanted: Collection[str]) -> dict[str, Tensors]:
        return self._once(self.rule.initial_state_pullback(self.whole_adjoint(S_0), hyper, wanted))

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        s, (theta, G) = self.gathered(state, "theta, s and G for the rule", theta, G)
        theta, s = self.rule.step_used(theta, s, G, hyper)
        return _cloned(self.pieces.cut(theta)), self.part(s)

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        s, (theta, G) = self.gathered(state, "theta, s and G for the pullback", theta, G)
        S, (B,) = self.gathered(S, "B and S for the pullback", B)
        pulled = self.rule.pullback_used(theta, s, G, hyper, B, S, wanted)
        V, B_j = _cloned(self.pieces.cut(pulled.V)), _cloned(self.pieces.cut(pulled.B))
        return Pulled(V, B_j, self.part(pulled.S), self._once(pulled.A))

    def _once(self, A: dict[str, Tensors]) -> dict[str, Tensors]:
        """What is summed over ranks: from the first alone; the adjoint of a loss that the rule sees stays with each."""
        first = self.pieces.ranks.rank == 0
        return {k: {n: v for n, v in increments.items() if first or n == "loss"} for k, increments in A.items()}


def _cloned(tensors: Tensors) -> Tensors:
    """Pieces that do not hold the whole."""
    return {k: v.clone() for k, v in tensors.items()}


def rule_on_shards(optimizer: Optimizer, pieces: Pieces, theta: Tensors, state: State, hyper: Hyper) -> RuleOnShards:
    """An optimizer over pieces of theta, whose state as a whole is like `state`."""
    if not by_element(optimizer):
        like = {
            slot: {k for k, v in tensors.items() if v.ndim and k in theta and v.shape == theta[k].shape}
            for slot, tensors in slots(state).items()
        }
        return RuleByGathering(rule=optimizer, pieces=pieces, cut=like)
    rule = RuleOnPieces(rule=optimizer, pieces=pieces, cut={})
    of_pieces = slots(optimizer.initial_state(pieces.cut(theta), rule.hyper(hyper)))
    like = {slot: {k for k, v in tensors.items() if v.ndim} for slot, tensors in of_pieces.items()}
    return RuleOnPieces(rule=optimizer, pieces=pieces, cut=like)
