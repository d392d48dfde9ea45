"""What a rule tells of itself can be read under torch.compile after a module was given other weights.

Whoever asks a field of a dataclass for its metadata there asks a mapping proxy, which torch.compile refuses as soon as
any dict was changed: every functional_call changes some.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from gimli_core.optimizers import EMA, SGD, Adam, ClipNorm, Lookahead, Partition
from gimli_core.optimizers.wrappers.interface import only

RULES = {
    "a rule": Adam(lr=0.1),
    "a wrapper": ClipNorm(Adam(lr=0.1), max_norm=1.0),
    "wrappers": Lookahead(EMA(ClipNorm(SGD(lr=0.1), max_norm=1.0), ema_decay=0.9)),
    "parts": Partition({"w": (SGD(lr=0.1), ["weight"]), "rest": (Adam(lr=0.1), ["*"])}),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_names_of_hyperparameters(rule):
    net, x = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Dropout(0.0)), torch.ones(3, 2)

    def traced(weight):
        y = functional_call(net, {"0.weight": weight}, (x,))
        return y.sum(), only(("lr", "w.lr", "rest.eps"), rule)

    weight = torch.ones(1, 2)
    expected, names = traced(weight)
    value, of_compiled = torch.compile(traced, backend="eager", fullgraph=True)(weight)
    assert torch.equal(value, expected)
    assert of_compiled == names
    assert names
