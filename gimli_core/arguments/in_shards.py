"""A checked call as that of one rank that holds a part of theta, s, B and S; and the calls for which there is none."""

from __future__ import annotations

import hashlib

import torch

from gimli_core.arguments.call import Call
from gimli_core.arguments.inputs import Inputs
from gimli_core.errors import unexpected
from gimli_core.optimizers.tensorwise import SMALL
from gimli_core.processes.mesh import Ranks
from gimli_core.transforms.rule_on_shards import by_element
from gimli_core.transforms.shards import shards_of

__all__ = ["check_sharded", "in_shards", "pays_in_shards", "random_numbers"]


def check_sharded(call: Call, *, watched: bool) -> None:
    """Raise ArgumentError for what a run in shards cannot do. `watched`: someone looks at tensors on the way."""
    for argument, there, expected, actual, do in (
        ("tasks", call.tasks is not None, "None", repr(call.tasks), 'Whole tasks over processes are mesh="tasks".'),
        ("until", call.until is not None, "None", repr(call.until), "Say how many steps."),
        (
            "watch",
            watched,
            "nobody who looks at tensors",
            "one",
            "They are in pieces here: watch a run on one process.",
        ),
    ):
        if there:
            raise unexpected(argument, f'{expected} beside a mesh of "shard"', actual, do)


def random_numbers(inputs: Inputs) -> str:
    """A digest of where torch's generators are: ranks that share theta must draw the same."""
    states = [torch.get_rng_state()]
    if inputs.device.type == "cuda":
        states.append(torch.cuda.get_rng_state(inputs.device))
    return hashlib.sha256(b"".join(state.numpy().tobytes() for state in states)).hexdigest()[:16]


def pays_in_shards(inputs: Inputs) -> bool:
    """Whether ranks that share a batch step quicker if each steps its piece of theta, than if each steps all of it.

    As many bytes are sent in twice as many messages, which small tensors would wait for.
    """
    theta = inputs.values.theta_0.values()
    return inputs.form.tasks is None and by_element(inputs.form.optimizer) and sum(v.numel() for v in theta) > SMALL


def in_shards(inputs: Inputs, ranks: Ranks) -> Inputs:
    """The inputs of this rank. All ranks ask for theirs."""
    form, values = inputs.form, inputs.values
    shards = shards_of(ranks, form.optimizer, values.theta_0, values.state_0, values.hyper.at(0))
    theta_0, state_0 = shards.theta(values.theta_0), shards.rule.part(values.state_0)
    return inputs.through(shards, shards.rule, theta_0=theta_0, state_0=state_0, hyper=values.hyper.through(shards))
