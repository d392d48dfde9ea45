"""The three means of second-order products: one answer, each with its own gaps, which are found and bridged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import gimli_core as gimli
from gimli_core.derivatives.second_order import MEANS
from gimli_core.errors import ArgumentError, ReplayError, RequirementError
from gimli_core.memory import Budget, Checkpoint, RetainGraphs, Schedule, StoreStates
from gimli_core.memory.measure import CACHED
from gimli_core.memory.meters import OBJECT
from gimli_core.optimizers import SGD, Adam
from tests.compare import distance, entries, flat_results, identical, largest
from tests.problems import PROBLEMS, RULES, SCHEDULES, STARTS, Rule, arguments, question

REVERSE, FORWARD, MIXED = MEANS  # over reverse, over reverse, reverse over forward


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.__name__)
@pytest.mark.parametrize("start", STARTS)
def test_the_means_agree(rule: Rule, problem: Any, start: str) -> None:
    """To rounding on the whole table, with the random numbers left where they are."""
    made = arguments(rule, problem, start)
    runs = {}
    for mean in MEANS:
        torch.manual_seed(2)
        runs[mean] = gimli.meta_gradient(**made, second_order=mean), torch.get_rng_state()
    like = question(made).entries()
    expected = entries(runs[REVERSE][0], like)
    floor = {part: 1e-5 * largest(expected, part) for part in ("S_0", "A_opt", "A_loss", "B_0")}
    for mean in (FORWARD, MIXED):
        found = entries(runs[mean][0], like)
        worst = {key: distance(found[key], value, floor[key[0]]) for key, value in expected.items()}
        assert max(worst.values()) < 1e-11, (mean, worst)
        assert torch.equal(runs[mean][1], runs[REVERSE][1])
        assert torch.equal(runs[mean][0].train_losses, runs[REVERSE][0].train_losses)


@pytest.mark.parametrize("rule", RULES[::5], ids=lambda rule: rule.name)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.__name__)
@pytest.mark.parametrize("mean", [FORWARD, MIXED])
def test_schedules_agree_to_the_bit(rule: Rule, problem: Any, mean: str) -> None:
    made = arguments(rule, problem, "cold")
    results = []
    for schedule in (*SCHEDULES, Budget(gimli.plan(**made, second_order=mean).least)):
        torch.manual_seed(2)
        results.append(flat_results(gimli.meta_gradient(**made, memory=schedule, second_order=mean)))
    for other in results[1:]:
        assert all(identical(value, other[name]) for name, value in results[0].items())


def of_module(
    net: nn.Module, batch: Any, loss: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor] | None = None
) -> dict[str, Any]:
    """Two steps of SGD on the module, with a learned scale of its outputs; `after` is the validation loss."""

    def train_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        out = functional_call(net, theta, batch)
        return loss((out[0] if isinstance(out, tuple) else out) * phi["scale"].exp())

    def val_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        out = functional_call(net, theta, batch)
        return (after or loss)(out[0] if isinstance(out, tuple) else out)

    return {
        "problem": gimli.Problem(train_loss, val_loss, SGD(momentum=0.9)),
        "theta_0": {k: v.detach() for k, v in net.named_parameters()},
        "train_batches": lambda j: batch,
        "val_batch": batch,
        "steps": 2,
        "phi_opt": {"lr": 0.1},
        "phi_loss": {"scale": 0.2},
    }


def squares(out: Tensor) -> Tensor:
    return (out - 0.3).square().mean()


def cubes(out: Tensor) -> Tensor:
    return (out + 0.3).pow(3).mean()


def classes(out: Tensor) -> Tensor:
    return F.cross_entropy(out, torch.arange(len(out)) % out.shape[1])


class Attention(nn.Module):
    """Self-attention by torch's fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Warp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.grid = nn.Parameter(torch.randn(1, 1, 5, 5)), nn.Parameter(torch.rand(1, 3, 3, 2) - 0.5)

    def forward(self) -> Tensor:
        return F.grid_sample(self.image, self.grid, align_corners=False)


class Unseen(nn.Module):
    """Weighs its outputs by what no_grad hides from reverse mode, but not from forward mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        with torch.no_grad():
            weight = out.square().sum(1, keepdim=True)
        return out * weight


def perceptron(norm: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), norm or nn.Identity(), nn.Tanh(), nn.Dropout(0.4), nn.Linear(4, 3))


def convolutions(norm: nn.Module) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Softplus(), nn.Flatten(), nn.LazyLinear(2))
    net(torch.zeros(2, 1, 5, 5))
    return net


def table() -> dict[str, tuple[dict[str, Any], dict[str, str]]]:
    """Problems, and for each mean that fails there a part of the reason; the others work."""
    x, images = (torch.randn(6, 3),), (torch.randn(4, 1, 5, 5),)
    no_forward = {FORWARD: "forward AD", MIXED: "forward AD"}
    statistics = {MIXED: f"its product differs from that of {REVERSE}"}
    lstm = nn.LSTM(3, 4, batch_first=True).float()
    single = of_module(lstm, (torch.randn(2, 5, 3, dtype=torch.float32),), squares)
    return {
        "dropout": (of_module(perceptron(), x, squares), {}),
        "softmax": (of_module(perceptron(), x, classes), {}),
        "max_pool": (of_module(convolutions(nn.MaxPool2d(2, 1)), images, classes), {}),
        "gru": (of_module(nn.GRU(3, 4), (torch.randn(5, 2, 3),), squares), {}),
        "batch_norm, training": (of_module(perceptron(nn.BatchNorm1d(4)), x, classes), statistics),
        "batch_norm, eval": (of_module(perceptron(nn.BatchNorm1d(4).eval()), x, classes), {}),
        "layer_norm": (of_module(perceptron(nn.LayerNorm(4)), x, squares), statistics),
        "group_norm": (of_module(convolutions(nn.GroupNorm(2, 4)), images, cubes), {FORWARD: "native_group_norm"}),
        "huber": (of_module(perceptron(), x, lambda out: F.huber_loss(out, out.detach() + 0.1)), {FORWARD: "huber"}),
        "grid_sample": (of_module(Warp(), (), squares), no_forward),
        "lstm of mkldnn": (single, no_forward),
        "no_grad": (of_module(Unseen(), x, squares), {FORWARD: "its product differs", MIXED: "its product differs"}),
    }


@pytest.mark.parametrize("case", table())
@pytest.mark.parametrize("mean", MEANS)
def test_gaps_of_real_operations(case: str, mean: str, caplog: pytest.LogCaptureFixture) -> None:
    """A mean works, or the fallback says in one line which took its place and why; the answer is the same."""
    made, fails = table()[case]
    assert all(isinstance(m, nn.Module) for m in made["problem"].modules or ())
    torch.manual_seed(3)
    expected = gimli.meta_gradient(**made, second_order=REVERSE)
    torch.manual_seed(3)
    found = gimli.meta_gradient(**made, second_order=mean)
    gimli.meta_gradient(**made, second_order=mean)
    if mean in fails:
        (message,) = caplog.messages  # once for two calls
        assert message.startswith(
            f"gimli_core: second_order: {REVERSE} is used for train_loss, since another fails: {mean}: "
        )
        assert fails[mean] in message
        assert "\n" not in message
    else:
        assert caplog.messages == []
    like = question(made).entries()
    tolerance = 1e-10 if made["theta_0"][next(iter(made["theta_0"]))].dtype == torch.float64 else 1e-4
    wanted = entries(expected, like)
    for key, value in entries(found, like).items():
        assert distance(value, wanted[key], 1e-5 * largest(wanted, key[0])) < tolerance, key


def test_auto_takes_reverse_over_reverse_where_it_works() -> None:
    made, _ = table()["softmax"]
    torch.manual_seed(3)
    expected = gimli.meta_gradient(**made, second_order=REVERSE)
    torch.manual_seed(3)
    assert identical(flat_results(gimli.meta_gradient(**made)), flat_results(expected))


class Cube(torch.autograd.Function):
    """x³, whose backward autograd cannot differentiate; with a forward formula."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, arriving: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * arriving

    @staticmethod
    def jvp(ctx: Any, direction: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * direction


class NoFormula(Cube):
    """The same without the forward formula."""

    jvp = torch.autograd.Function.jvp


def cubic(cube: Callable[[Tensor], Tensor], optimizer: Any = None, **more: Any) -> dict[str, Any]:
    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return (phi["c"] * cube(theta["w"] - batch)).sum() + theta["w"].square().sum()

    problem = gimli.Problem(loss, lambda theta, phi, batch: theta["w"].cos().sum(), optimizer or SGD())
    theta_0, batches = {"w": torch.tensor([0.7, -0.4])}, [torch.tensor(0.1), torch.tensor(-0.2)]
    phi = {"phi_opt": {"lr": 0.1}, "phi_loss": {"c": torch.tensor([0.5, 0.8])}}
    return {"problem": problem, "theta_0": theta_0, "train_batches": batches, "val_batch": None, **phi, **more}


@pytest.mark.parametrize("asked", ["auto", REVERSE, FORWARD])
@pytest.mark.parametrize("memory", [RetainGraphs(), StoreStates(), Checkpoint(1)], ids=str)
def test_forward_mode_where_there_is_no_double_backward(
    asked: str, memory: Schedule, caplog: pytest.LogCaptureFixture
) -> None:
    expected = gimli.meta_gradient(**cubic(lambda x: x**3))
    made = cubic(Cube.apply, memory=memory, second_order=asked)
    found = gimli.meta_gradient(**made)
    told = [f"{FORWARD} is used for train_loss", f"{REVERSE}: the backward of Cube is marked once_differentiable"]
    assert all(part in caplog.text for part in told) == (asked != FORWARD)
    for a, b in ((found.A_opt, expected.A_opt), (found.A_loss, expected.A_loss), (found.B_0, expected.B_0)):
        assert all(distance(a[k], b[k]) < 1e-14 for k in b)


def test_a_wrong_mean_is_found_without_another_to_compare_it_with(caplog: pytest.LogCaptureFixture) -> None:
    """Layer norm's forward formula, differentiated in turn, is wrong; and there is no double backward here."""
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    made = of_module(net, (torch.randn(6, 3),), lambda out: Cube.apply(out).mean())
    gimli.meta_gradient(**made, second_order=MIXED)
    (message,) = caplog.messages
    assert f"{FORWARD} is used" in message
    assert f"{MIXED}: its Hessian is not symmetric, by" in message
    assert f"{REVERSE}: the backward of Cube" in message


def test_iiib_is_asked_by_the_means_that_work() -> None:
    made = cubic(Cube.apply)
    made["phi_loss"]["idle"] = torch.tensor(1.0)
    with pytest.raises(RequirementError, match="requirement IIIb fails: phi_loss 'idle'"):
        gimli.meta_gradient(**made)


@pytest.mark.parametrize("mean", ["auto", *MEANS])
def test_none_works(mean: str) -> None:
    """A backward marked once_differentiable, without a forward formula."""
    made = cubic(NoFormula.apply)
    with pytest.raises(RequirementError, match="requirement II fails: train_loss has no second derivative") as caught:
        gimli.meta_gradient(**made, second_order=mean)
    assert all(f"{name}: " in str(caught.value) for name in MEANS)


@pytest.mark.parametrize("mean", ["auto", *MEANS])
def test_attention_by_every_means(mean: str) -> None:
    """The fused kernel has no second derivative by any mean: the one by matrix products takes its place."""
    made = of_module(Attention(), (torch.randn(2, 5, 8),), squares)
    found = gimli.meta_gradient(**made, second_order=mean)
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        expected = gimli.meta_gradient(**made)
    assert distance(found.A_opt["lr"], expected.A_opt["lr"]) < 1e-12


@pytest.mark.parametrize("mean", MEANS)
def test_the_modes_of_the_caller_do_not_matter(mean: str) -> None:
    """Within no_grad, and within the forward of another function, where forward mode is switched off."""
    made = cubic(lambda x: x**3, second_order=mean)
    expected = gimli.meta_gradient(**made).B_0["w"]
    found = []

    class Outer(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            found.append(gimli.meta_gradient(**made).B_0["w"])
            return x.clone()

    with torch.no_grad():
        found.append(gimli.meta_gradient(**made).B_0["w"])
    Outer.apply(torch.ones(1, requires_grad=True))
    assert [torch.equal(g, expected) for g in found] == [True, True]


def test_means_without_a_graph_keep_none() -> None:
    made = cubic(lambda x: x**3)

    def graphs(mean: str) -> list[Any]:
        kept: list[Any] = []
        gimli.meta_gradient(**made, second_order=mean, watch=lambda e: kept.append(e.inputs.get("graph")))
        return [graph for graph in kept if graph is not None]

    assert len(graphs(REVERSE)) == 2
    assert graphs(FORWARD) == graphs(MIXED) == []


def test_memory_for_each_kept_step_is_a_point_and_its_gradient() -> None:
    n, activations = 100, 50_000

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        return (batch @ theta["w"]).tanh().square().mean()

    problem = gimli.Problem(loss, loss, SGD(lr=0.1))
    made = {"theta_0": {"w": torch.randn(n)}, "val_batch": torch.randn(7, n), "steps": 5}
    batch = torch.randn(activations, n)
    records = {
        mean: gimli.plan(problem, train_batches=lambda j: batch, second_order=mean, **made).costs.record
        for mean in MEANS
    }
    numbers = 8 * (2 * n + 2)  # theta_j, G_j, the count of steps, the loss
    assert records[FORWARD] == records[MIXED] == numbers + 4 * OBJECT + CACHED  # and no graph, whose least piece is one
    assert records[REVERSE] > 8 * activations


@pytest.mark.parametrize("mean", [FORWARD, MIXED])
def test_a_loss_that_cannot_be_evaluated_again(mean: str) -> None:
    own = torch.Generator()
    made = cubic(lambda x: x**3 * torch.rand((), generator=own), second_order=mean, check=False)
    with pytest.raises(ReplayError, match=r"train_loss at inner step j = 1: expected .* second_order='reverse_over"):
        gimli.meta_gradient(**made)


@pytest.mark.parametrize("mean", [FORWARD, MIXED])
def test_unroll_verify_and_resume(mean: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cubic(lambda x: x**3, Adam())
    expected = gimli.meta_gradient(**made)
    lr = torch.tensor(0.1, requires_grad=True)
    gimli.unroll(**{**made, "phi_opt": {"lr": lr}}, second_order=mean).backward()
    assert lr.grad is not None
    assert distance(lr.grad, expected.A_opt["lr"]) < 1e-13
    gimli.verify(**made, second_order=mean).assert_ok()

    monkeypatch.setattr("gimli_core.runs.journal.SECONDS", 0.0)
    whole = gimli.meta_gradient(**made, second_order=mean)

    def kill(event: Any) -> None:
        if event.line == 14 and event.j == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gimli.meta_gradient(**made, second_order=mean, resume=tmp_path / "run", watch=kill)
    with pytest.raises(ArgumentError, match="a run of another problem, or with other values"):
        gimli.meta_gradient(**made, resume=tmp_path / "run")
    again = gimli.meta_gradient(**made, second_order=mean, resume=tmp_path / "run")
    assert identical(flat_results(again), flat_results(whole))


def test_step_through_where_no_graph_is_kept() -> None:
    """The page shows a run whose problem has no double backward; it leaves the matrices out."""
    made = cubic(Cube.apply)
    moments = list(gimli.step_through(**made))
    assert {m.line for m in moments} >= {5, 6, 8, 9, 11, 12, 13, 14}


def test_bad_names() -> None:
    with pytest.raises(
        ArgumentError, match=r"second_order: expected 'auto', .*got 'forward_over_revers'.*Did you mean"
    ):
        gimli.meta_gradient(**cubic(lambda x: x**3), second_order="forward_over_revers")


def network_of_tasks(mean: str, **more: Any) -> dict[str, Any]:
    """Two tasks with masks, a shared phi_loss and one of their own."""

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        out = (batch[0] @ theta["W"] + theta["b"]).softmax(-1)
        penalty = phi["log_l2"].exp() * theta["W"].square().sum()
        return (out - batch[1]).square().sum() + penalty + phi["shift"] * out[:, 0].sum()

    batches = [(torch.randn(2, 5, 3), torch.rand(2, 5, 4)) for _ in range(4)]
    return {
        "problem": gimli.Problem(loss, loss, Adam()),
        "theta_0": {"W": torch.randn(3, 4), "b": torch.randn(4)},
        "train_batches": batches[:3],
        "val_batch": batches[3],
        "phi_opt": {"lr": 0.05},
        "phi_loss": {"log_l2": torch.tensor(-2.0), "shift": gimli.per_task(torch.tensor([0.3, -0.1]))},
        "tasks": 2,
        "second_order": mean,
        **more,
    }


@pytest.mark.parametrize("mean", [FORWARD, MIXED])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tasks": gimli.Tasks(2, chunk=1)},
        {"approximation": gimli.Truncated(2)},
        {"approximation": gimli.FirstOrder()},
    ],
    ids=str,
)
def test_tasks(mean: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    made = network_of_tasks("auto", **options)
    expected, found = gimli.meta_gradient(**made), gimli.meta_gradient(**{**made, "second_order": mean})
    for part in ("A_opt", "A_loss", "B_0"):
        for name, value in getattr(expected, part).items():
            assert distance(getattr(found, part)[name], value) < 1e-12, (part, name)
    assert found.approximation == expected.approximation
    assert bool(found.approximation) == ("approximation" in options)
    assert caplog.messages == []


@pytest.mark.parametrize("options", [{"second_order": FORWARD}, {"approximation": gimli.FirstOrder()}], ids=str)
def test_what_is_not_compiled_says_so(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    made = cubic(lambda x: x**3, **options)
    eager = gimli.meta_gradient(**made, compile=False)
    assert identical(flat_results(gimli.meta_gradient(**made, compile=True)), flat_results(eager))
    assert caplog.messages == ["gimli_core: not compiled: what is compiled has all of line 14, by reverse over reverse"]


GAPS = {
    "silu": (lambda w: torch.nn.functional.silu(w).square().sum(), (FORWARD, MIXED)),
    "cdist": (lambda w: torch.cdist(w, w + 1.0).sum(), MEANS),
    "embedding bag": (lambda w: torch.nn.functional.embedding_bag(torch.tensor([[1, 2]]), w).square().sum(), MEANS),
    "connectionist temporal loss": (
        lambda w: torch.nn.functional.ctc_loss(
            w.log_softmax(-1)[:, None], torch.tensor([[1, 2]]), torch.tensor([4]), torch.tensor([2])
        ),
        MEANS,
    ),
}


@pytest.mark.parametrize("memory", [None, StoreStates()], ids=str)
@pytest.mark.parametrize("case", GAPS)
def test_a_gap_that_nothing_has_tried_is_told_in_one_line(case: str, memory: Any) -> None:
    function, without = GAPS[case]

    def loss(theta: dict[str, Tensor], phi: object, batch: object) -> Tensor:
        return function(theta["w"])

    problem = gimli.Problem(loss, lambda theta, phi, batch: theta["w"].square().sum(), gimli.optimizers.SGD(lr=0.1))
    for mean in without:
        with pytest.raises(
            gimli.errors.RequirementError, match=r"^train_loss: expected .* j = 1.*check=True"
        ) as caught:
            gimli.meta_gradient(
                problem, {"w": torch.rand(4, 4)}, [None] * 2, None, second_order=mean, memory=memory, check=False
            )
        assert "\n" not in str(caught.value)
