"""A call like the last one takes over what depends on the arguments' form alone; every other difference is seen."""

from __future__ import annotations

import pickle
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.optimizers import SGD, Adam, ClipNorm, Optimizer
from gimli_core.runs import make_run as runs
from tests.compare import assert_same

T, J = 3, 4


def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return (torch.tanh(x @ theta["w"]) @ theta["v"] - y).square().mean() + phi["l2"].exp() * theta["w"].square().sum()


def given(seed: int, tasks: int | None = T, **more: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    lead = () if tasks is None else (tasks,)
    made = [
        (torch.randn(*lead, 6, 3, generator=generator), torch.randn(*lead, 6, generator=generator))
        for _ in range(J + 1)
    ]
    theta_0 = {"w": torch.randn(3, 4, generator=generator), "v": torch.randn(4, generator=generator)}
    return {
        "theta_0": theta_0,
        "train_batches": made[:-1],
        "val_batch": made[-1],
        "phi_opt": {"lr": 0.05},
        "phi_loss": {"l2": torch.randn((), generator=generator)},
        **({"tasks": tasks} if tasks else {}),
        **more,
    }


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls that were prepared from the start."""
    calls: list[Any] = []
    plain = runs.prepare
    monkeypatch.setattr(runs, "prepare", lambda call: (calls.append(call), plain(call))[1])
    return calls


@pytest.mark.parametrize("optimizer", [SGD(momentum=0.9), Adam(), ClipNorm(Adam(), max_norm=0.5)])
@pytest.mark.parametrize("tasks", [None, T])
def test_new_values_have_the_bits_of_a_new_problem(
    optimizer: Optimizer, tasks: int | None, prepared: list[Any]
) -> None:
    problem = gimli.Problem(loss, loss, optimizer)
    gimli.meta_gradient(problem, **given(0, tasks))
    prepared.clear()
    found = gimli.meta_gradient(problem, **given(1, tasks))
    assert len(prepared) == isinstance(optimizer, ClipNorm)  # which sees all tensors at once
    assert_same(found, gimli.meta_gradient(gimli.Problem(loss, loss, optimizer), **given(1, tasks)))


ones = partial(torch.ones, dtype=torch.float64)
OTHERS: dict[str, dict[str, Any]] = {
    "a rate that is a tensor": {"phi_opt": {"lr": torch.tensor(0.1)}},
    "another hyperparameter": {"phi_opt": {"weight_decay": 0.1}},
    "none": {"phi_opt": None},
    "fewer steps": {"steps": 2},
    "the sum over tasks": {"tasks": gimli.Tasks(T, "sum")},
    "fewer swept": {"approximation": gimli.Truncated(2)},
    "first order": {"approximation": gimli.FirstOrder()},
    "the ablation": {"approximation": gimli.ThetaOnly()},
    "other weights": {"val_weights": [1.0] * J},
    "other means": {"second_order": "forward_over_reverse"},
    "chunks": {"tasks": gimli.Tasks(T, chunk=2)},
    "a schedule": {"memory": gimli.memory.Checkpoint(2)},
    "fewer batches": {},
    "unchecked": {"check": False},
    "a tensor a task": {"phi_loss": {"l2": gimli.per_task(0 * ones(T))}},
    "a start a task": {"theta_0": gimli.per_task({"w": ones(T, 3, 4), "v": ones(T, 4)})},
    "another order": {"theta_0": {"v": ones(4), "w": ones(3, 4)}},
    "another shape": {"theta_0": {"w": ones(3, 1), "v": ones(1)}},
    "another dtype": {"theta_0": {"w": ones(3, 4).float(), "v": ones(4).float()}},
    "one frozen": {"theta_0": {"w": nn.Parameter(ones(3, 4)), "v": nn.Parameter(ones(4), False)}},
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_form_is_prepared_anew(other: str, prepared: list[Any]) -> None:
    """Once before and once after, so that what is taken over is never another call's."""
    problem = gimli.Problem(loss, loss, Adam())
    changed = {**given(1), **OTHERS[other]}
    if other == "fewer batches":
        changed["train_batches"] = changed["train_batches"][:2]
    if other == "another dtype":
        for name in ("train_batches", "val_batch", "phi_loss"):
            changed[name] = torch.utils._pytree.tree_map(Tensor.float, changed[name])
    expected = gimli.meta_gradient(gimli.Problem(loss, loss, Adam()), **changed)
    first = gimli.meta_gradient(problem, **given(0))
    prepared.clear()
    assert_same(gimli.meta_gradient(problem, **changed), expected)
    assert prepared
    assert_same(gimli.meta_gradient(problem, **given(0)), first)
    assert_same(gimli.meta_gradient(problem, **changed), expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("theta_0", {"w": torch.full((3, 4), torch.nan), "v": torch.ones(4)}, r"theta_0\['w'\]: expected finite"),
        ("phi_loss", {"l2": torch.tensor(torch.inf)}, r"phi_loss\['l2'\]: expected finite"),
        ("train_batches", iter(()), "train_batches: expected a sequence"),
        ("train_batches", lambda j: None, "steps: expected a number"),
        ("problem", None, "problem: expected a gimli.Problem"),
    ],
)
def test_bad_input_is_refused_at_the_second_call_too(name: str, value: Any, message: str, prepared: list[Any]) -> None:
    arguments = {"problem": gimli.Problem(loss, loss, Adam()), **given(0)}
    for _ in range(2):
        gimli.meta_gradient(**arguments)
    assert len(prepared) == 1
    with pytest.raises(ArgumentError, match=message):
        gimli.meta_gradient(**{**arguments, name: value})
    with torch.inference_mode(), pytest.raises(ArgumentError, match="inference_mode"):
        gimli.meta_gradient(**arguments)


def test_one_tensor_under_two_names_is_refused_at_the_second_call_too(prepared: list[Any]) -> None:
    def of_two(theta: dict[str, Tensor], phi: Any, batch: Tensor) -> Tensor:
        return (theta["a"] * batch - theta["b"]).square().sum()

    problem, x = gimli.Problem(of_two, of_two, SGD(lr=0.1)), torch.ones(2)
    gimli.meta_gradient(problem, {"a": torch.ones(2), "b": torch.zeros(2)}, [x], x)
    with pytest.raises(ArgumentError, match="each tensor once"):
        gimli.meta_gradient(problem, {"a": x, "b": x}, [x], x)
    assert len(prepared) == 1


@pytest.mark.parametrize("tasks", [None, T])
def test_the_number_of_batches_is_seen(tasks: int | None) -> None:
    """Where `steps` is left out it is J."""
    problem, arguments = gimli.Problem(loss, loss, Adam()), given(0, tasks)
    for steps in (3, 4, 2):
        fewer = {**arguments, "train_batches": arguments["train_batches"][:steps]}
        found = gimli.meta_gradient(problem, **fewer)
        assert len(found.train_losses) == steps
        assert_same(found, gimli.meta_gradient(gimli.Problem(loss, loss, Adam()), **fewer))


def test_a_tensor_of_the_optimizer_may_change() -> None:
    lr = torch.tensor(0.1, dtype=torch.float32)
    problem, arguments = gimli.Problem(loss, loss, Adam(lr=lr)), given(0, phi_opt=None)
    gimli.meta_gradient(problem, **arguments)
    lr.fill_(0.5)
    assert_same(
        gimli.meta_gradient(problem, **arguments),
        gimli.meta_gradient(gimli.Problem(loss, loss, Adam(lr=lr)), **arguments),
    )
    lr.fill_(torch.nan)
    with pytest.raises(ArgumentError, match="expected finite"):
        gimli.meta_gradient(problem, **arguments)


@pytest.mark.parametrize("tasks", [None, T])
def test_nothing_of_the_caller_is_kept(tasks: int | None, prepared: list[Any]) -> None:
    problem = gimli.Problem(loss, loss, Adam())
    arguments = given(0, tasks)
    told = [weakref.ref(x) for x in torch.utils._pytree.tree_leaves(arguments) if isinstance(x, Tensor)]
    gimli.meta_gradient(problem, **arguments)
    assert prepared
    prepared.clear()
    del arguments
    assert not any(ref() is not None for ref in told)
    pickle.loads(pickle.dumps(problem))
    freed = weakref.ref(problem)
    del problem
    assert freed() is None


def test_a_learned_rate_is_taken_over(prepared: list[Any]) -> None:
    """Its value is a call's own, its derivative exact; and a value out of range is refused at the second call too."""
    problem = gimli.Problem(loss, loss, Adam())
    for seed, rate in enumerate((0.1, 0.2, 0.3)):
        lr, fresh = (torch.tensor(rate, requires_grad=True) for _ in range(2))
        gimli.unroll(problem, **given(seed, phi_opt={"lr": lr})).backward()
        gimli.unroll(gimli.Problem(loss, loss, Adam()), **given(seed, phi_opt={"lr": fresh})).backward()
        assert torch.equal(lr.grad, fresh.grad)
    assert sum(call.problem is problem for call in prepared) == 1
    with pytest.raises(ArgumentError, match=r"phi_opt\['lr'\]: expected finite values"):
        gimli.unroll(problem, **given(0, phi_opt={"lr": torch.tensor(torch.nan, requires_grad=True)}))


@pytest.mark.parametrize("tasks", [None, T])
def test_a_warm_state_is_taken_over(tasks: int | None, prepared: list[Any]) -> None:
    """As an online loop goes on from state_J; its values are a call's own, and looked at as at first."""
    problem, shared = gimli.Problem(loss, loss, Adam()), None if tasks is None else 0
    state = gimli.meta_gradient(gimli.Problem(loss, loss, Adam()), **given(0, tasks)).state_J
    if tasks:
        state = {slot: v if slot == "step" else {k: x[shared] for k, x in v.items()} for slot, v in state.items()}
    prepared.clear()
    for seed in range(3):
        arguments = given(seed, tasks, state_0=state)
        found = gimli.meta_gradient(problem, **arguments)
        expected = gimli.meta_gradient(gimli.Problem(loss, loss, Adam()), **arguments)
        assert_same(found, expected)
        if tasks is None:
            state = found.state_J
    assert sum(call.problem is problem for call in prepared) == 1
    for spoilt, message in (
        ({**state, "exp_avg_sq": {k: v * torch.nan for k, v in state["exp_avg_sq"].items()}}, "expected finite values"),
        ({**state, "step": torch.tensor(-1.0)}, r"state_0\['step'\]: expected a whole number of finished steps"),
        ({k: v for k, v in state.items() if k != "exp_avg"}, "a dict with the keys"),
    ):
        with pytest.raises(ArgumentError, match=message):
            gimli.meta_gradient(problem, **given(0, tasks, state_0=spoilt))


def test_a_warm_state_is_run_as_one_vector_to_the_bits_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    state = gimli.meta_gradient(gimli.Problem(loss, loss, Adam()), **given(0, None)).state_J
    arguments = given(1, None, state_0=state)
    joined = gimli.meta_gradient(gimli.Problem(loss, loss, Adam()), **arguments)
    monkeypatch.setattr("gimli_core.transforms.one_vector.NUMBERS", 0)
    assert_same(joined, gimli.meta_gradient(gimli.Problem(loss, loss, Adam()), **arguments))


def test_weights_in_a_list_are_taken_over_and_others_are_seen(prepared: list[Any]) -> None:
    problem = gimli.Problem(loss, loss, Adam())
    for weights in ([0.1, 0.0, 0.2, 1.0], [0.1, 0.0, 0.2, 1.0], [0.3, 0.0, 0.2, 1.0], [0.1, 0.0, 0.2, 1.0]):
        arguments = given(0, None, val_weights=weights)
        fresh = gimli.Problem(loss, loss, Adam())
        assert_same(gimli.meta_gradient(problem, **arguments), gimli.meta_gradient(fresh, **arguments))
    assert sum(call.problem is problem for call in prepared) == 2


def test_calls_of_two_looks_may_take_turns(prepared: list[Any]) -> None:
    problem = gimli.Problem(loss, loss, Adam())
    for seed in range(3):
        for tasks in (None, T):
            assert_same(
                gimli.meta_gradient(problem, **given(seed, tasks)),
                gimli.meta_gradient(gimli.Problem(loss, loss, Adam()), **given(seed, tasks)),
            )
    assert sum(call.problem is problem for call in prepared) == 2


def test_calls_of_two_lengths_may_take_turns(prepared: list[Any]) -> None:
    """Where `steps` is left out, the number of batches is J."""
    problem = gimli.Problem(loss, loss, Adam())
    for seed in range(3):
        for steps in (2, J):
            arguments = given(seed)
            arguments["train_batches"] = arguments["train_batches"][:steps]
            fresh = gimli.Problem(loss, loss, Adam())
            assert_same(gimli.meta_gradient(problem, **arguments), gimli.meta_gradient(fresh, **arguments))
    assert sum(call.problem is problem for call in prepared) == 2


def test_a_function_of_j_is_asked_by_the_run_alone(prepared: list[Any]) -> None:
    """What it keeps would have to be put back otherwise, at every call."""
    made, asked = given(0), []
    batches = made["train_batches"]
    call = {**made, "train_batches": lambda j: (asked.append(j), batches[j])[1], "steps": J, "compile": False}
    problem = gimli.Problem(loss, loss, Adam())
    gimli.meta_gradient(problem, **call)
    prepared.clear()
    asked.clear()
    gimli.meta_gradient(problem, **call)
    assert asked == list(range(J))
    assert not prepared


@pytest.mark.parametrize("memory", [None, gimli.memory.StoreStates(), gimli.memory.Budget("64MiB")], ids=str)
@pytest.mark.parametrize("compile", [False, "auto"])
def test_other_parts_from_a_function_of_j_are_seen(memory: Any, compile: Any, prepared: list[Any]) -> None:
    """Whole batches, parts, other parts and whole ones again: each as on a new problem, and prepared anew."""
    made, problem = given(0, None), gimli.Problem(loss, loss, Adam())
    for at in ([], [2], [3], []):
        batches = [
            gimli.MicroBatches(list(zip(x.tensor_split(at), y.tensor_split(at), strict=True))) if at else (x, y)
            for x, y in made["train_batches"]
        ]
        call = {**made, "train_batches": batches.__getitem__, "steps": J, "memory": memory, "compile": compile}
        prepared.clear()
        result = gimli.meta_gradient(problem, **call)
        assert len(prepared) == 1
        assert_same(result, gimli.meta_gradient(gimli.Problem(loss, loss, Adam()), **call))


def test_unroll_takes_over_too(prepared: list[Any]) -> None:
    problem = gimli.Problem(loss, loss, Adam())
    for seed in (0, 1):
        arguments = given(seed)
        leaf = arguments["theta_0"]["w"].requires_grad_()
        gimli.unroll(problem, **arguments).backward()
        fresh = given(seed)
        expected = gimli.meta_gradient(gimli.Problem(loss, loss, Adam()), **fresh).B_0["w"]
        assert torch.equal(leaf.grad, expected)
    assert sum(call.problem is problem for call in prepared) == 1


def test_what_a_caller_changes_in_place_is_not_taken_over() -> None:
    problem, phi_opt = gimli.Problem(loss, loss, Adam()), {"lr": 0.1}
    gimli.meta_gradient(problem, **given(0, phi_opt=phi_opt))
    phi_opt["beta2"] = 0.9
    again = given(0, phi_opt={"lr": 0.1})
    assert_same(gimli.meta_gradient(problem, **again), gimli.meta_gradient(gimli.Problem(loss, loss, Adam()), **again))


def test_buffers_of_a_module_that_is_put_in_place_are_restored(prepared: list[Any]) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def of_net(theta: dict[str, Tensor], phi: Any, batch: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(net, theta, (batch,))
        return out.square().mean()

    problem = gimli.Problem(of_net, of_net, SGD(lr=0.1))
    theta_0 = {k: v.detach() for k, v in net.named_parameters()}
    batches = [torch.randn(6, 3) for _ in range(3)]
    gimli.meta_gradient(problem, theta_0, batches, batches[0])
    mean = net[1].running_mean = torch.ones(4)
    result = gimli.meta_gradient(problem, theta_0, batches, batches[0])
    assert len(prepared) == 1
    assert net[1].running_mean is mean
    assert torch.equal(mean, torch.ones(4))
    assert not torch.equal(result.buffers_J["1.running_mean"], mean)
