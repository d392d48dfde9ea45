"""The networks: their layers, their outputs, and the two kinds of batch norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gimli_core.errors import ArgumentError
from gimli_core.few_shot.networks import NETWORKS, conv4, densenet_bc, strided_conv4
from gimli_core.few_shot.networks.parts import PIXEL_AT, Bfloat16

SMALL: dict[str, dict[str, Any]] = {
    "conv4": {"filters": 4},
    "strided-conv4": {"filters": 4},
    "vgg": {"filters": 4},
    "resnet-4": {"widths": (4, 4, 4, 4)},
    "resnet-8": {"widths": (4, 4, 4, 4)},
    "resnet-12": {"widths": (4, 4, 4, 4)},
    "densenet-8": {"growth": 4},
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32)])
def test_outputs_have_their_shapes(name: str, channels: int, size: int) -> None:
    x = torch.rand(4, channels, size, size)
    assert NETWORKS[name](channels, size, outputs=5, **SMALL[name])(x).shape == (4, 5)
    embedded = NETWORKS[name](channels, size, **SMALL[name])(x)
    assert embedded.ndim == 2
    assert embedded.shape[1] >= 4


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("conv4", 4),
        ("strided-conv4", 4),
        ("vgg", 4),
        ("resnet-4", 4),
        ("resnet-8", 8),
        ("resnet-12", 12),
        ("densenet-8", 8),
    ],
)
def test_as_many_convolutions_as_the_name_says(name: str, layers: int) -> None:
    network = NETWORKS[name](1, 28, outputs=5, **SMALL[name])
    sizes = [module.kernel_size for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert sizes.count((3, 3)) == layers


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_statistics_are_those_of_the_batch_in_training_and_test(name: str) -> None:
    x = torch.rand(4, 1, 8, 8)
    network = NETWORKS[name](1, 8, outputs=5, **SMALL[name])
    assert torch.equal(network.train()(x), network.eval()(x))
    assert not torch.allclose(network(x)[:2], network(x[:2]))  # transductive
    running = NETWORKS[name](1, 8, outputs=5, statistics="running", **SMALL[name])
    running.train()(x)
    running.eval()
    torch.testing.assert_close(running(x)[:2], running(x[:2]))


def test_conv4_has_the_papers_size() -> None:
    count = sum(p.numel() for p in conv4(1, 28, 5).parameters())
    assert count == 64 * 9 + 3 * 64 * 64 * 9 + 4 * 2 * 64 + 5 * 64 + 5
    assert conv4(3, 84, filters=32)(torch.zeros(2, 3, 84, 84)).shape == (2, 32 * 5 * 5)


@pytest.mark.long
def test_densenet_bc_runs_at_its_published_depth() -> None:
    network = densenet_bc(10)
    assert len(list(network.parameters())) == 299
    assert sum(p.numel() for p in network.parameters()) == 769_162  # 0.8M in the paper
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_a_small_densenet_bc() -> None:
    assert densenet_bc(3, depth=10, growth=4, size=8)(torch.rand(2, 3, 8, 8)).shape == (2, 3)


def test_other_statistics_are_refused() -> None:
    with pytest.raises(ArgumentError, match="statistics: expected 'batch', 'running'; got 'layer'"):
        conv4(1, 8, statistics="layer")


@pytest.mark.parametrize("make", [conv4, strided_conv4])
def test_bfloat16_changes_results_and_gradients_by_rounding_alone(make: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)  # autocast leaves float64 alone; conftest puts it back
    plain = make(1, PIXEL_AT + 1, filters=16)
    x = torch.randn(20, 1, PIXEL_AT + 1, PIXEL_AT + 1)
    weights, gradients = torch.randn(20, 16), []
    for network in (plain, Bfloat16(plain)):
        out = network(x)
        assert out.dtype == x.dtype
        gradients.append(torch.autograd.grad((weights * out).sum(), list(plain.parameters())))
    for exact, rounded in zip(*gradients, strict=True):  # some ReLUs fall on the other side
        assert (exact - rounded).norm() < 0.2 * exact.norm()
