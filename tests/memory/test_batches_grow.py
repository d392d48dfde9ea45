"""Under a budget no later batch may be larger than the measured one."""

from __future__ import annotations

import pytest
import torch

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.memory import Budget, Checkpoint


@pytest.mark.parametrize("shape", [(8, 3), (4, 6), (2, 6), (4, 3, 1)])
def test_a_batch_that_grows_in_any_dimension_is_refused_before_its_step(shape):
    rule, ran = problem()
    batches = [torch.ones(4, 3)] * 5 + [torch.ones(shape)] + [torch.ones(4, 3)] * 6
    arguments = (rule, {"w": torch.ones(())}, batches, torch.ones(4, 3))
    gimli.meta_gradient(*arguments, memory=Checkpoint(3), check=False)
    assert shape in ran
    ran.clear()
    with pytest.raises(ArgumentError, match=r"no larger than .*\[\[4, 3\]\].*j = 5"):
        gimli.meta_gradient(*arguments, memory=Budget("1GB"), check=False)
    assert ran
    assert shape not in ran


def test_smaller_batches_have_the_same_bits():
    rule, _ = problem()
    batches = [torch.ones(4 - j % 3, 3) for j in range(12)]
    arguments = (rule, {"w": torch.ones(())}, batches, torch.ones(4, 3))
    found, expected = (gimli.meta_gradient(*arguments, memory=m) for m in (Budget("1GB"), Checkpoint(3)))
    assert torch.equal(found.B_0["w"], expected.B_0["w"])


def problem():
    ran = []

    def train(theta, phi, batch):
        ran.append(tuple(batch.shape))
        return (theta["w"] * batch - 2).square().mean()

    def val(theta, phi, batch):
        return (theta["w"] * batch - 2).square().mean()

    return gimli.Problem(train, val, gimli.optimizers.SGD(lr=0.1)), ran
