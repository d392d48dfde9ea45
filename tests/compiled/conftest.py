"""What the tests of what is compiled share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.fx import GraphModule


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[GraphModule]]:
    """All graphs that were to be lowered; they are run as they are."""
    found: list[GraphModule] = []

    def as_it_is(module: GraphModule, inputs: Any, config_patches: Any) -> Callable[..., Any]:
        found.append(module)
        forward: Callable[..., Any] = module.forward
        return forward

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, as its compiler loads
        monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", as_it_is)
    yield found
    torch._dynamo.reset()
