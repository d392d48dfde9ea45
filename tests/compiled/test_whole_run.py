"""A run that is compiled whole takes its form over from the last one, and sees all that is no longer as it was."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import gimli_core as gimli
from gimli_core.compiled.whole_run import CompiledWhole
from gimli_core.errors import ArgumentError, NotFiniteError
from gimli_core.optimizers import SGD, Adam
from tests import problems
from tests.compare import agree, said
from tests.problems import tanh_loss

pytestmark = problems.needs_compiler

T, J = 3, 2


def given(seed: int, tasks: int | None = T) -> dict[str, Any]:
    """The arguments of a call, but for its problem."""
    torch.manual_seed(seed)
    made = problems.tanh_network(Adam(), tasks, steps=J, phi_opt={"lr": 0.05, "beta1": 0.8})
    made["phi_loss"] = {"l2": torch.randn(())}
    del made["problem"]
    return made


@pytest.fixture(scope="module", params=[T, None], ids=["tasks", "alone"])
def problem(request: pytest.FixtureRequest) -> Any:
    """A problem that has been compiled, and how many tasks it has."""
    made, dtype = gimli.Problem(tanh_loss, tanh_loss, Adam()), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # as within every test
    with torch.random.fork_rng():
        gimli.meta_gradient(made, **given(0, request.param), compile="whole")
    torch.set_default_dtype(dtype)
    return made, request.param


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How the compiled runs were called: with what the last one's form had decided, or from the start."""
    taken: list[str] = []
    for way in ("__call__", "as_it_is"):
        plain = getattr(CompiledWhole, way)

        def called(self: Any, values: Any, plain: Any = plain, way: str = way) -> Any:
            found = plain(self, values)
            taken.append(way if found is not None else f"{way}: None")
            return found

        monkeypatch.setattr(CompiledWhole, way, called)
    return taken


def test_new_values(problem: Any, ways: list[str]) -> None:
    made, tasks = problem
    for seed in (0, 1, 2):
        agree(
            gimli.meta_gradient(made, **given(seed, tasks), compile="whole"),
            gimli.meta_gradient(gimli.Problem(tanh_loss, tanh_loss, Adam()), **given(seed, tasks), compile=False),
        )
    assert ways[1:] == ["as_it_is"] * 2


def test_unroll(problem: Any, ways: list[str]) -> None:
    made, tasks = problem
    found = []
    for compile in ("whole", "whole", False):
        arguments = given(1, tasks)
        leaves = arguments["theta_0"]["w"].requires_grad_(), arguments["phi_loss"]["l2"].requires_grad_()
        value, trajectory = gimli.unroll(made, **arguments, compile=compile, with_trajectory=True)
        (2 * value).backward()
        found.append(torch.stack([trajectory.val_loss, leaves[0].grad.sum(), leaves[1].grad]))
    torch.testing.assert_close(found[:2], [found[2]] * 2, rtol=1e-12, atol=0)
    assert ways == ["__call__", "as_it_is"]


def test_columns_and_a_batch_that_comes_at_every_step(problem: Any, ways: list[str]) -> None:
    made, tasks = problem
    gimli.meta_gradient(made, **given(0, tasks), compile="whole")
    arguments = given(1, tasks)
    arguments["theta_0"]["w"] = arguments["theta_0"]["w"].T.contiguous().T
    arguments["train_batches"] = arguments["train_batches"][:1] * J
    found = gimli.meta_gradient(made, **arguments, compile="whole")
    agree(found, gimli.meta_gradient(gimli.Problem(tanh_loss, tanh_loss, Adam()), **arguments, compile=False))
    assert ways[1:] == ["as_it_is"]


def of_nan(theta: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**theta, "w": theta["w"] * torch.nan}


BAD: dict[str, tuple[str, Any, str]] = {
    "nan": ("theta_0", of_nan, r"theta_0\['w'\]: expected finite values"),
    "inf": ("phi_loss", lambda phi: {"l2": phi["l2"] + torch.inf}, r"phi_loss\['l2'\]: expected finite"),
    "sparse": ("theta_0", lambda theta: {**theta, "w": theta["w"].to_sparse()}, "a dense"),
    "a generator": ("train_batches", iter, "train_batches: expected a sequence"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_as_at_first(problem: Any, case: str, ways: list[str]) -> None:
    made, tasks = problem
    arguments = given(1, tasks)
    gimli.meta_gradient(made, **arguments, compile="whole")
    name, spoilt, message = BAD[case]
    with pytest.raises(ArgumentError, match=message):
        gimli.meta_gradient(made, **{**arguments, name: spoilt(arguments[name])}, compile="whole")
    assert ways[1:] == ["as_it_is: None"] * (case in ("nan", "inf"))  # the run itself has seen it


def test_one_tensor_under_two_names_is_refused(ways: list[str]) -> None:
    def of_two(theta: dict[str, Tensor], phi: Any, batch: Tensor) -> Tensor:
        return (theta["a"] * batch - theta["b"]).square().sum()

    made, x = gimli.Problem(of_two, of_two, SGD(lr=0.1)), torch.ones(2)
    for _ in range(2):
        gimli.meta_gradient(made, {"a": torch.ones(2), "b": torch.zeros(2)}, [x], x, compile="whole")
    assert ways == ["__call__", "as_it_is"]
    with pytest.raises(ArgumentError, match="each tensor once"):
        gimli.meta_gradient(made, {"a": x, "b": x}, [x], x, compile="whole")


@pytest.mark.parametrize("compile", ["whole", False])
@pytest.mark.parametrize("error", [StopIteration, KeyError])
def test_a_batch_that_fails_names_its_step(problem: Any, compile: Any, error: type[Exception]) -> None:
    made, tasks = problem
    arguments = given(1, tasks)

    def batch(j: int) -> Any:
        if j == 1:
            raise error("nothing there")
        return arguments["val_batch"]

    arguments |= {"train_batches": batch, "steps": J}
    with pytest.raises((ArgumentError, KeyError)) as caught:
        gimli.meta_gradient(made, **arguments, compile=compile)
    if error is StopIteration:
        assert "expected a batch for each of the 2 steps; got StopIteration at j = 1" in str(caught.value)
    else:
        assert caught.value.__notes__ == ["in train_batches, at inner step j = 1 of 2"]


def test_a_batch_without_tasks_is_refused(problem: Any) -> None:
    made, tasks = problem
    if tasks is None:
        return
    arguments = given(1, tasks)
    arguments["val_batch"] = (torch.ones(2, 6, 3), torch.ones(2, 6))
    with pytest.raises(ArgumentError, match="leading dimension of 3 tasks"):
        gimli.meta_gradient(made, **arguments, compile="whole")


def test_what_breaks_is_named(problem: Any, ways: list[str]) -> None:
    made, tasks = problem
    gimli.meta_gradient(made, **given(0, tasks), compile="whole")
    arguments = given(1, tasks)
    arguments["train_batches"][1][0].flatten()[0] = torch.inf
    with pytest.raises(NotFiniteError, match=r"at inner step j = 1: .*G_1 of 'w'"):
        gimli.meta_gradient(made, **arguments, compile="whole")
    assert ways[1:] == ["as_it_is: None", "__call__: None"]


def test_nothing_of_the_caller_is_kept(problem: Any, ways: list[str]) -> None:
    made, tasks = problem
    for _ in range(2):
        arguments = given(1, tasks)
        told = [weakref.ref(x) for x in torch.utils._pytree.tree_leaves(arguments) if isinstance(x, Tensor)]
        result = gimli.meta_gradient(made, **arguments, compile="whole")
        told.append(weakref.ref(result.B_0["w"]))
        del arguments, result
        assert not any(ref() is not None for ref in told)
    assert ways[-1] == "as_it_is"


def test_every_result_has_memory_of_its_own(problem: Any) -> None:
    made, tasks = problem
    first, second = (gimli.meta_gradient(made, **given(1, tasks), compile="whole") for _ in range(2))
    arguments = given(1, tasks)
    for x in torch.utils._pytree.tree_leaves(vars(gimli.meta_gradient(made, **arguments, compile="whole"))):
        if isinstance(x, Tensor):
            x.fill_(7.0)
    again = given(1, tasks)
    torch.testing.assert_close(arguments["theta_0"], again["theta_0"], rtol=0, atol=0)
    for result in (first, gimli.meta_gradient(made, **again, compile="whole")):
        agree(result, second, rtol=0, atol=0)


class Net(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(3, 1), nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(3) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(self.drop(self.norm(x)))
        return out


@pytest.mark.parametrize("norm", [pytest.param(False, marks=pytest.mark.long), True])
def test_random_numbers_and_buffers(norm: bool, ways: list[str]) -> None:
    """Without either a run leaves its surroundings alone; with one of them it looks after them, as eager ones do."""
    net = Net(norm)

    def of_net(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        return functional_call(net, theta, (batch,)).square().mean()

    made = gimli.Problem(of_net, of_net, SGD(lr=0.1))
    theta_0 = {k: v.detach() for k, v in net.named_parameters()}
    x = torch.randn(8, 3)
    for training in (False, False, True, True, False):
        net.train(training)
        found = []
        for compile in ("whole", False):
            torch.manual_seed(0)
            before = [b.clone() for b in net.buffers()]
            result = gimli.meta_gradient(made, theta_0, [x], x, compile=compile)
            assert all(map(torch.equal, before, net.buffers()))
            found.append((result, torch.get_rng_state()))
        agree(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])
        torch.testing.assert_close(found[0][0].buffers_J, found[1][0].buffers_J)
    none = "as_it_is: None"
    if norm:  # in training it cannot run compiled: its own statistics would change within the derivative
        assert ways == ["__call__", "__call__", *["__call__: None"] * 3]
    else:
        assert ways == ["__call__", "as_it_is", none, "__call__", none, "__call__", none, "__call__"]


@pytest.mark.long
def test_chunks(ways: list[str], caplog: pytest.LogCaptureFixture) -> None:
    made, arguments = gimli.Problem(tanh_loss, tanh_loss, Adam()), given(1, 2 * T)
    for _ in range(2):
        found = gimli.meta_gradient(made, **{**arguments, "tasks": gimli.Tasks(2 * T, chunk=T)}, compile="whole")
        agree(found, gimli.meta_gradient(gimli.Problem(tanh_loss, tanh_loss, Adam()), **arguments, compile=False))
    assert ways == ["__call__", "as_it_is", "as_it_is", "as_it_is"]
    assert said(caplog).count("compiling") == 1


@pytest.mark.long
def test_what_the_loss_reads_besides_its_arguments_is_watched(ways: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made = gimli.Problem(tanh_loss, tanh_loss, Adam())
    for slope in (1.0, 1.0, 2.0, 2.0, 1.0):
        monkeypatch.setattr(problems, "SLOPE", slope)
        agree(
            gimli.meta_gradient(made, **given(1, None), compile="whole"),
            gimli.meta_gradient(gimli.Problem(tanh_loss, tanh_loss, Adam()), **given(1, None), compile=False),
        )
    # Where there is more than one graph, none is known to be the one that was looked at.
    none = "as_it_is: None"
    assert ways == ["__call__", "as_it_is", none, "__call__", none, "__call__", none, "__call__"]
