"""Any nn.Module through functional_call: frozen and tied parameters, buffers, random numbers, attention, recurrence."""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import gimli_core as gimli
from gimli_core.environment import discover
from gimli_core.memory import RetainGraphs
from gimli_core.optimizers import SGD, Adam
from gimli_core.verification.oracles.autograd_through_the_graph import autograd_gradient
from tests.compare import distance, entries
from tests.problems import SCHEDULES, question

Loss = Callable[[dict[str, Tensor], dict[str, Tensor], Any], Tensor]


class Recurrent(nn.Module):
    """The last output of a recurrent layer, read by a linear one."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.core, self.head = kind(3, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x.reshape(len(x), 2, 3))[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(12, 1)
        self.lift = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x.reshape(len(x), 3, 2))
        with sdpa_kernel(SDPBackend.MATH):
            return self.head(self.core(x, x, x, need_weights=False)[0].flatten(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x))).sum(-1, keepdim=True)


class Reassigned(nn.Module):
    """A third-party habit: a buffer that is replaced, not changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 1)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.head(x - self.mean)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 1),
    "layer norm": lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 1)),
    "batch norm": lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)),
    "cumulative batch norm": lambda: nn.Sequential(nn.BatchNorm1d(6, momentum=None), nn.Linear(6, 1)),
    "batch norm, no statistics": lambda: nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 1)),
    "dropout": lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 1)),
    "batch norm and dropout": lambda: nn.Sequential(nn.Dropout(0.2), nn.BatchNorm1d(6), nn.Linear(6, 1)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 2, 3), nn.Softplus(), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(8, 1)
    ),
    "gru": lambda: Recurrent(nn.GRU),
    "lstm": lambda: Recurrent(nn.LSTM),
    "attention": Attention,
    "transformer": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3)),
        nn.TransformerEncoderLayer(3, 1, 4, 0.1, batch_first=True),
        nn.Flatten(),
        nn.Linear(6, 1),
    ),
    "spectral norm": lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3)), nn.Linear(3, 1)),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), nn.Linear(3, 1)),
    "tied": Tied,
    "reassigned buffer": Reassigned,
}


def losses(net: nn.Module, copy: bool = False) -> tuple[Loss, Loss]:
    """Training in train mode, validation in eval mode (on a copy of the buffers, if asked for)."""

    def train_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        net.train()
        with sdpa_kernel(SDPBackend.MATH):
            return (phi["scale"].exp() * (functional_call(net, theta, (batch[0],)) - batch[1]) ** 2).mean()

    def val_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        net.eval()
        copies = buffers(net) if copy else {}
        with sdpa_kernel(SDPBackend.MATH):
            return ((functional_call(net, {**theta, **copies}, (batch[0],)) - batch[1]) ** 2).mean()

    return train_loss, val_loss


def made(net: nn.Module, optimizer: Any = None, steps: int = 3, **more: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(steps + 1, 5, 6, generator=generator) + torch.arange(steps + 1.0)[:, None, None]
    y = torch.randn(steps + 1, 5, 1, generator=generator)
    batches = list(zip(x, y, strict=True))
    return {
        "problem": gimli.Problem(*losses(net), optimizer or SGD(momentum=0.9)),
        "theta_0": dict(net.named_parameters()),
        "train_batches": batches[:-1],
        "val_batch": batches[-1],
        "steps": steps,
        "phi_opt": {"lr": 0.05},
        "phi_loss": {"scale": torch.tensor(0.1)},
        **more,
    }


def buffers(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in net.named_buffers()}


def all_generators() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002


@pytest.mark.parametrize("name", NETWORKS)
def test_engine_equals_autograd(name: str) -> None:
    """Validation in eval mode after steps in train mode, and along the way, against autograd through the plain loop."""
    net = NETWORKS[name]()
    args = made(net, val_weights=[0.3, 0.0, 0.2, 0.5])
    before = buffers(net)
    torch.manual_seed(5)
    # Autograd through a whole loop needs copies: BatchNorm in eval mode saves its statistics, which later steps move
    # without counting a version. The engine is given the module as it is.
    asked = question(
        {**args, "problem": gimli.Problem(args["problem"].train_loss, losses(net, copy=True)[1], SGD(momentum=0.9))}
    )
    oracle = autograd_gradient(asked, asked.environment())
    results = []
    for schedule in SCHEDULES:
        torch.manual_seed(5)
        results.append(gimli.meta_gradient(**args, memory=schedule))
        assert all(torch.equal(before[k], v) for k, v in net.named_buffers())
    for key, found in entries(results[0], oracle.gradient).items():
        # float64; the biases before a normalisation have derivatives that are 0 but for rounding.
        assert distance(found, oracle.gradient[key]) < 1e-10 or float(found.abs().max()) < 1e-15, key
    for other in results[1:]:
        assert torch.equal(results[0].val_losses.nan_to_num(), other.val_losses.nan_to_num())
        assert all(torch.equal(results[0].B_0[k], other.B_0[k]) for k in other.B_0)
        assert all(torch.equal(results[0].buffers_J[k], other.buffers_J[k]) for k in other.buffers_J)
        assert torch.equal(results[0].A_loss["scale"], other.A_loss["scale"])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_as_a_plain_training_loop(name: str, schedule: Any) -> None:
    """theta_J, buffers_J, the losses and the random number generators are those of a torch.optim loop."""
    net = NETWORKS[name]()
    args = made(net, Adam(), phi_opt={"lr": 0.02})
    train_loss, val_loss = losses(net)
    torch.manual_seed(7)
    start = {k: v.detach().clone() for k, v in net.named_parameters()}
    result = gimli.meta_gradient(**args, memory=schedule)
    after_engine = all_generators()
    torch.manual_seed(7)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    seen = []
    for batch in args["train_batches"]:
        optimizer.zero_grad()
        loss = train_loss(dict(net.named_parameters()), args["phi_loss"], batch)
        loss.backward()
        optimizer.step()
        seen.append(loss.detach())
    expected = val_loss(dict(net.named_parameters()), args["phi_loss"], args["val_batch"])
    # Adam divides by sqrt(v): rounding of 1e-16 in a gradient that is 0 but for rounding is all that is left of it.
    trained = dict(net.named_parameters())
    assert all(k in start for k in result.theta_J)
    for k, v in result.theta_J.items():
        torch.testing.assert_close(v, trained[k].detach(), rtol=1e-9, atol=1e-9, msg=k)
    for k, v in net.named_buffers():
        torch.testing.assert_close(result.buffers_J[k], v, rtol=1e-9, atol=1e-9, msg=k)
    torch.testing.assert_close(result.train_losses, torch.stack(seen), rtol=1e-10, atol=0)
    torch.testing.assert_close(result.val_loss, expected.detach(), rtol=1e-9, atol=0)
    assert after_engine == all_generators()


def test_frozen_parameters_are_constants_and_keep_their_place() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))
    net[0].bias.requires_grad_(False)
    args = made(net)
    orders = []

    def spying(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        orders.append(list(theta))
        return losses(net)[0](theta, phi, batch)

    result = gimli.meta_gradient(**{**args, "problem": gimli.Problem(spying, spying, SGD())})
    names = [k for k, _ in net.named_parameters()]
    assert all(order == names for order in orders)
    assert list(result.theta_J) == names
    assert list(result.B_0) == [k for k in names if k != "0.bias"]
    assert torch.equal(result.theta_J["0.bias"], net[0].bias)
    loss = gimli.unroll(**args)
    loss.backward()
    assert net[0].bias.grad is None
    assert net[0].weight.grad is not None


def test_tied_weights_are_one_parameter() -> None:
    net = Tied()
    assert "second.weight" not in dict(net.named_parameters())
    with pytest.raises(gimli.errors.ArgumentError, match=r"theta_0\['second.weight'\]: expected each tensor once"):
        gimli.meta_gradient(**made(net, theta_0=dict(net.named_parameters(remove_duplicate=False))))


def test_two_modules_and_their_buffers() -> None:
    body, head = nn.BatchNorm1d(6), nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 1))
    theta_0 = {f"{name}.{k}": v for name, m in (("body", body), ("head", head)) for k, v in m.named_parameters()}

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        parts = [{k.removeprefix(p): v for k, v in theta.items() if k.startswith(p)} for p in ("body.", "head.")]
        x = functional_call(body, parts[0], (batch[0],))
        return ((functional_call(head, parts[1], (x,)) - batch[1]) ** 2).mean()

    args = {**made(body, phi_loss={}), "problem": gimli.Problem(loss, loss, SGD()), "theta_0": theta_0}
    before = [buffers(body), buffers(head)]
    result = gimli.meta_gradient(**args)
    assert [buffers(body), buffers(head)].__repr__() == before.__repr__()
    assert len(result.buffers_J) == 6
    assert {int(v) for k, v in result.buffers_J.items() if k.endswith("num_batches_tracked")} == {3}


def test_dropout_draws_the_same_mask_on_replay() -> None:
    masks: list[Tensor] = []

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        mask = torch.nn.functional.dropout(torch.ones(20), 0.5)
        noise = random.random() + float(np.random.rand())  # noqa: NPY002
        masks.append(mask * noise)
        return (mask * noise * (theta["w"] - 1) ** 2).sum()

    problem = gimli.Problem(loss, lambda theta, phi, batch: theta["w"].sum(), SGD(lr=0.01))
    seen = {}
    for schedule in SCHEDULES:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        masks.clear()
        gimli.meta_gradient(
            problem, {"w": torch.zeros(20)}, lambda j: None, None, steps=4, memory=schedule, check=False
        )
        distinct = {tuple(mask.tolist()) for mask in masks}
        assert len(distinct) == 4
        seen[str(schedule)] = distinct
    assert len({frozenset(masks) for masks in seen.values()}) == 1


def test_buffers_changed_between_forward_and_backward_do_not_matter() -> None:
    net = NETWORKS["batch norm and dropout"]()
    gradients = []
    for schedule in SCHEDULES:
        for meddle in (False, True):
            torch.manual_seed(1)
            theta_0 = {k: v.detach().clone().requires_grad_() for k, v in net.named_parameters()}
            before = buffers(net)
            loss = gimli.unroll(**made(net, theta_0=theta_0, memory=schedule))
            if meddle:
                net.train()(torch.randn(7, 6))
                net[1].running_var.add_(3.0)
            left = buffers(net), torch.get_rng_state()
            loss.backward()
            assert torch.equal(torch.get_rng_state(), left[1])
            assert all(torch.equal(left[0][k], v) for k, v in net.named_buffers())
            net.load_state_dict({**net.state_dict(), **before})
            gradients.append({k: v.grad for k, v in theta_0.items()})
    assert all(torch.equal(gradients[0][k], other[k]) for other in gradients[1:] for k in other)


def test_a_loss_that_reads_running_statistics_and_moves_them() -> None:
    """BatchNorm in train mode, then in eval mode, in one loss: a retained graph keeps the statistics that it read.

    Plain autograd does not: the kernels move them without counting a version, and the graph reads the last ones.
    """
    net = NETWORKS["batch norm"]()
    copied, used_as_it_is = ([], [])  # type: tuple[list[gimli.MetaGradient], list[gimli.MetaGradient]]

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any, copy: bool = False) -> Tensor:
        first = functional_call(net.train(), theta, (batch[0],)).square().mean()
        copies = buffers(net) if copy else {}
        return first + functional_call(net.eval(), {**theta, **copies}, (2 * batch[0],)).square().mean()

    for train_loss, results in ((loss, used_as_it_is), (functools.partial(loss, copy=True), copied)):
        args = made(net, phi_loss={}, problem=gimli.Problem(train_loss, losses(net)[1], SGD(momentum=0.9)))
        results += [gimli.meta_gradient(**args, memory=schedule) for schedule in SCHEDULES]
    for result in (*used_as_it_is, *copied[1:]):
        assert torch.equal(result.A_opt["lr"], copied[0].A_opt["lr"])
        assert all(torch.equal(g, copied[0].B_0[k]) for k, g in result.B_0.items())


def test_a_batch_changed_in_place_before_the_sweep_is_noticed() -> None:
    net = NETWORKS["batch norm"]()
    args = made(net)
    loss = gimli.unroll(**{**args, "theta_0": {k: v.detach().requires_grad_() for k, v in args["theta_0"].items()}})
    args["train_batches"][1][0].mul_(2.0)
    with pytest.raises(RuntimeError, match="changed in place before the backward sweep"):
        loss.backward()


def test_a_loss_that_fails_leaves_the_buffers_as_found() -> None:
    net = NETWORKS["batch norm"]()
    args = made(net)
    before = buffers(net)
    args["train_batches"][2] = "not a batch"
    with pytest.raises(TypeError) as caught:
        gimli.meta_gradient(**args)
    assert any("inner step j = 2" in note for note in caught.value.__notes__)
    assert all(torch.equal(before[k], v) for k, v in net.named_buffers())


# --- where modules are found -------------------------------------------------------------------------------------

global_net = nn.BatchNorm1d(2)
library = types.ModuleType("library")
library.net = nn.BatchNorm1d(2)  # type: ignore[attr-defined]
nets = {"a": [nn.BatchNorm1d(2)]}


def helper(x: Any) -> Any:
    return global_net(x)


class Task:
    def __init__(self) -> None:
        self.net = nn.BatchNorm1d(2)

    def loss(self, theta: Any, phi: Any, batch: Any) -> Any:
        return self.net(batch)

    __call__ = loss


def closure_beside_a_global(net: nn.Module) -> Any:
    def loss(theta: Any, phi: Any, batch: Any) -> Any:
        return torch.sum(net(batch)) + len(SCHEDULES)

    return loss


def inner_function(net: nn.Module) -> Any:
    def loss(theta: Any, phi: Any, batch: Any) -> Any:
        def deeper(x: Any) -> Any:
            return [net(y) for y in x]

        return deeper(batch)

    return loss


def names_a_global_inside(theta: Any, phi: Any, batch: Any) -> Any:
    return (lambda x: global_net(x))(batch)


def takes(net: nn.Module, theta: Any, phi: Any, batch: Any) -> Any:
    return net(batch)


def hidden_in_a_default(theta: Any, phi: Any, batch: Any, *, net: nn.Module = nets["a"][0]) -> Any:
    return net(batch)


def from_a_python_module(theta: Any, phi: Any, batch: Any) -> Any:
    return library.net(batch)


def from_a_container(theta: Any, phi: Any, batch: Any) -> Any:
    return nets["a"][0](batch)


a_net, task = nn.BatchNorm1d(2), Task()


@pytest.mark.parametrize(
    ("loss", "net"),
    [
        (closure_beside_a_global(a_net), a_net),
        (inner_function(a_net), a_net),
        (names_a_global_inside, global_net),
        (lambda theta, phi, batch: helper(batch), global_net),
        (functools.partial(takes, a_net), a_net),
        (functools.partial(takes, net=a_net), a_net),
        (task.loss, task.net),
        (task, task.net),
        (lambda theta, phi, batch: task.loss(theta, phi, batch), task.net),
        (hidden_in_a_default, nets["a"][0]),
        (from_a_container, nets["a"][0]),
        (from_a_python_module, library.net),
        (functools.wraps(takes)(closure_beside_a_global(a_net)), a_net),
        (a_net, a_net),
    ],
)
def test_modules_are_found(loss: Any, net: nn.Module) -> None:
    assert any(found is net for found in discover([loss]))


def test_modules_can_be_given() -> None:
    net = NETWORKS["batch norm"]()
    hide = {id(net): lambda: net}
    key = id(net)

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        seen = types.SimpleNamespace(get=hide[key]).get()
        return (functional_call(seen, theta, (batch[0],)) ** 2).mean()

    before = buffers(net)
    args = made(net, phi_loss={}, problem=gimli.Problem(loss, loss, SGD(), modules=[net]))
    result = gimli.meta_gradient(**args, memory=RetainGraphs())
    assert int(result.buffers_J["1.num_batches_tracked"]) == 3
    assert all(torch.equal(before[k], v) for k, v in net.named_buffers())
