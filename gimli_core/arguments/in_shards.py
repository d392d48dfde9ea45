"""A checked call in the form of one rank that holds a part of theta, s, B and S."""

from __future__ import annotations

from dataclasses import replace

from gimli_core.arguments.inputs import Inputs
from gimli_core.processes.mesh import Ranks
from gimli_core.transforms.shards import shards_of

__all__ = ["in_shards"]


def in_shards(inputs: Inputs, ranks: Ranks) -> Inputs:
    """The inputs of this rank."""
    form, values = inputs.form, inputs.values
    shards = shards_of(ranks, form.optimizer, values.theta_0, values.state_0, values.hyper.at(0))
    form = replace(form, optimizer=shards.rule, transforms=(*form.transforms, shards))
    theta_0, state_0 = shards.theta(values.theta_0), shards.rule.part(values.state_0)
    return replace(inputs, form=form, values=replace(values, theta_0=theta_0, state_0=state_0, hyper=values.hyper.through(shards)))
