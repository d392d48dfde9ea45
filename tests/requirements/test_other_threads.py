"""Another thread that moves the global generator while losses are tried: the error names threads as a cause."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.errors import ReplayError


@pytest.mark.parametrize("memory", [None, gimli.memory.StoreStates()])
@pytest.mark.parametrize("which", ["train", "val"])
def test_the_message_names_other_threads(memory: Any, which: str) -> None:
    def plain(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return theta["w"].square()

    def disturbed(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        def seeds() -> None:
            torch.manual_seed(int.from_bytes(os.urandom(6), "little"))

        other = threading.Thread(target=seeds)
        other.start()
        other.join()
        return theta["w"] * torch.rand(())

    losses = (disturbed, plain) if which == "train" else (plain, disturbed)
    problem = gimli.Problem(*losses, gimli.optimizers.SGD(lr=0.1))
    with pytest.raises(ReplayError, match="thread"):
        gimli.meta_gradient(problem, {"w": torch.tensor(1.0)}, [None, None], None, memory=memory)
