"""A transform as a reader of transforms/interface.py alone would write it: theta' = -theta, eager and compiled."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch

import gimli_core as gimli
from gimli_core.arguments.inputs import Inputs
from gimli_core.memory import Checkpoint, RetainGraphs, StoreStates
from gimli_core.notation import Hyper, State, Tensors
from gimli_core.optimizers.interface import Pulled
from gimli_core.problem import Problem
from gimli_core.record import Ends
from gimli_core.runs import make_run
from gimli_core.transforms.interface import RuleInAnotherForm, Transform
from gimli_core.trees import tensors
from tests.problems import tanh_network


def negated(theta: Tensors) -> Tensors:
    return {k: -v for k, v in theta.items()}


class NegatedRule(RuleInAnotherForm):
    def initial_state(self, theta: Tensors, hyper: Hyper) -> State:
        return self.rule.initial_state(negated(theta), hyper)

    def step(self, theta: Tensors, state: State, G: Tensors, hyper: Hyper) -> tuple[Tensors, State]:
        theta, state = self.rule.step_used(negated(theta), state, negated(G), hyper)
        return negated(theta), state

    def pullback(
        self, theta: Tensors, state: State, G: Tensors, hyper: Hyper, B: Tensors, S: State, wanted: Collection[str]
    ) -> Pulled:
        pulled = self.rule.pullback_used(negated(theta), state, negated(G), hyper, negated(B), S, wanted)
        return pulled._replace(V=negated(pulled.V), B=negated(pulled.B))


class Negated(Transform):
    def problem(self, problem: Problem) -> Problem:
        def of(loss):
            return lambda theta, phi, batch: loss(negated(theta), phi, batch)

        return problem.memo.forms.setdefault(
            "negated", Problem(of(problem.train_loss), of(problem.val_loss), problem.optimizer, problem.modules)
        )

    def theta(self, theta: Tensors) -> Tensors:
        return negated(theta)

    def names(self, theta: Tensors) -> Tensors:
        return negated(theta)

    def back(self, ends: Ends) -> Ends:
        return ends._replace(theta_J=negated(ends.theta_J), B=negated(ends.B))


class NegatedInTheRun(Negated):
    """The losses go on with theta: what they are handed and what comes of them is put into form in between."""

    def problem(self, problem: Problem) -> Problem:
        return problem

    def gathered(self, theta: Tensors, what: str) -> Tensors:
        return negated(theta)

    def part(self, G: Tensors) -> Tensors:
        return negated(G)


def plain(made: dict[str, Any]) -> list[torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_run, "as_one_vector", lambda inputs: inputs)
        return numbers(gimli.meta_gradient(**made, compile=False))


@pytest.fixture
def in_new_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Inputs]:
    """Every run from here on in that form; the inputs that were put into it."""
    put: list[Inputs] = []

    def through(inputs: Inputs) -> Inputs:
        transform = getattr(request, "param", Negated)()
        rule = NegatedRule(rule=inputs.form.optimizer)
        put.append(inputs.through(transform, rule, theta_0=transform.theta(inputs.values.theta_0)))
        return put[-1]

    monkeypatch.setattr(make_run, "as_one_vector", through)
    return put


def numbers(result: gimli.MetaGradient) -> list[torch.Tensor]:
    return list(tensors([result.theta_J, result.A_opt, result.A_loss, result.B_0, result.S_0, result.val_loss]))


@pytest.mark.parametrize("in_new_form", [Negated, NegatedInTheRun], indirect=True)
@pytest.mark.parametrize("memory", [None, RetainGraphs(), StoreStates(), Checkpoint(2)])
def test_a_new_form_has_the_plain_ones_result(in_new_form: list[Inputs], memory: object) -> None:
    made = tanh_network(gimli.optimizers.Adam(lr=0.1))
    changed = gimli.meta_gradient(**made, memory=memory, compile=False)
    assert in_new_form
    torch.testing.assert_close(numbers(changed), plain(made), rtol=1e-12, atol=1e-14)


@pytest.mark.long
@pytest.mark.parametrize("compile", ["steps", True, "whole"])
def test_a_new_form_compiles_as_it_is(in_new_form: list[Inputs], compile: object) -> None:
    made = tanh_network(gimli.optimizers.Adam(lr=0.1))
    changed = gimli.meta_gradient(**made, compile=compile)
    assert in_new_form
    torch.testing.assert_close(numbers(changed), plain(made), rtol=1e-10, atol=1e-12)
