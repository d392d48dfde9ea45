"""Compiled and eager agree to rounding, on ordinary code; where compiling fails, the run is eager and says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core as gimli
from gimli_core.compiled import retained_run as loop
from gimli_core.compiled.compiler.split_function import Halves
from gimli_core.environment import Environment
from gimli_core.errors import ArgumentError, NotFiniteError
from gimli_core.memory import Budget, Checkpoint, RetainGraphs, Schedule, StoreStates
from gimli_core.optimizers import LAMB, SGD, Adam, ClipNorm, Optimizer, RMSprop
from gimli_core.transforms import one_vector as fused
from tests import problems
from tests.compare import agree, said
from tests.problems import tanh_loss, tanh_network

pytestmark = problems.needs_compiler

T, J = 3, 4


@pytest.mark.long
@pytest.mark.parametrize(
    ("optimizer", "phi_opt"),
    [
        (SGD(momentum=0.9, nesterov=True), {"lr": torch.tensor(0.1), "momentum": torch.tensor(0.8)}),
        (Adam(amsgrad=True), {"lr": {k: torch.tensor(0.05) for k in "wvc"}, "betas": (0.8, 0.95)}),
        (ClipNorm(RMSprop(centered=True), max_norm=0.5), {"lr": torch.full((J,), 0.05), "max_norm": 0.5}),
    ],
    ids=["sgd", "adam", "clipped"],
)
def test_steps_agree_with_eager_under_every_schedule(optimizer: Optimizer, phi_opt: dict[str, Any]) -> None:
    made = tanh_network(optimizer, phi_opt=phi_opt, val_weights=[0.2, 0.0, 0.1, 1.0])
    eager = gimli.meta_gradient(**made, compile=False)
    schedules: list[Schedule] = [RetainGraphs(), StoreStates(), Checkpoint(2), Checkpoint(1, graphs=2, gradients=True)]
    first: Any = None
    for schedule in (*schedules, Budget("1GB")):
        compiled = gimli.meta_gradient(**made, memory=schedule, compile=True)
        agree(compiled, eager)
        first = first or compiled
        assert all(torch.equal(compiled.B_0[k], v) for k, v in first.B_0.items()), "schedules differ in the last bits"


RATES = torch.linspace(0.02, 0.1, J, dtype=torch.float64)
LOOPS: dict[str, tuple[Optimizer, dict[str, Any]]] = {
    "adam": (Adam(amsgrad=True), {"phi_opt": {"lr": RATES[2], "betas": (0.8, 0.95)}}),
    "per step": (SGD(momentum=0.9), {"phi_opt": {"lr": gimli.per_step(RATES), "momentum": 0.8}}),
    "not fused": (ClipNorm(RMSprop(), 0.5), {"phi_opt": {"lr": RATES[2]}}),
    "tasks": (SGD(), {"tasks": T, "phi_opt": {"lr": {k: gimli.per_task(RATES[:T]) for k in "wvc"}}}),
    "ablation": (SGD(lr=0.1, momentum=0.9), {"approximation": gimli.ThetaOnly()}),
}


@pytest.mark.long
@pytest.mark.parametrize("case", LOOPS)
def test_the_loop_agrees_with_eager(
    case: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer, more = LOOPS[case]
    made = tanh_network(optimizer, **more, val_weights=[0.2, 0.0, 0.1, 1.0])
    made["train_batches"] = [(x.mT.contiguous().mT, y) for x, y in made["train_batches"]]  # lies in columns
    traced, backend = [], Halves._backend  # torch calls it for a traced graph, whether or not the disk has that
    monkeypatch.setattr(Halves, "_backend", lambda *given: (traced.append(given), backend(*given))[1])
    norms = gimli.AdjointNorms(), gimli.AdjointNorms()
    for _ in range(2):
        found = gimli.meta_gradient(**made, compile="steps", watch=norms[0])
        agree(found, gimli.meta_gradient(**made, compile=False, watch=norms[1]))
        assert norms[0].norms == pytest.approx(norms[1].norms)
        assert list(norms[0].norms) == [4, 3, 2, 1, 0]
    assert said(caplog).count("compiling") == len(traced) == 1
    assert "one step forwards and its sweep" in said(caplog)


@pytest.mark.parametrize("product", [torch.mm, torch.bmm])
def test_products_that_are_transposed_at_once_are_computed_the_other_way_round(product: Any) -> None:
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    from gimli_core.compiled.compiler.graph_passes import Transposes, is_transpose

    def f(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> list[Tensor]:
        both = product(a, b)
        return [product(a, b).mT + d, (product(a, b).mT + c).mT, both + both.mT.mT, (product(a, b) + 2).mT]

    lead = () if product is torch.mm else (2,)
    tensors = [torch.randn(*lead, *size) for size in ((3, 4), (4, 5), (5, 3), (5, 3))]
    graph: Any = make_fx(f, select_decomp_table(), tracing_mode="fake")(*tensors)

    def transposed_products() -> int:
        return sum(is_transpose(node) and "mm" in node.args[0].name for node in graph.graph.nodes)

    assert transposed_products() == 3
    Transposes()(graph.graph)
    graph.recompile()
    assert transposed_products() == 0
    assert sum(map(is_transpose, graph.graph.nodes)) == 4  # two factors, c, and what is not a product alone
    torch.testing.assert_close(graph(*tensors), f(*tensors))


def test_a_product_and_a_sum_of_whole_matrices_are_two_operations() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    from gimli_core.compiled.compiler.graph_passes import SumsApart

    def f(a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
        return [torch.addmm(c, a, b), torch.addmm(c[0], a, b), torch.addmm(c, a, b, beta=2)]

    tensors = [torch.randn(*size) for size in ((3, 4), (4, 5), (3, 5))]
    graph: Any = make_fx(f, tracing_mode="fake")(*tensors)
    SumsApart()(graph.graph)
    graph.recompile()
    assert [node.target.__name__ for node in graph.graph.nodes if "mm" in node.name] == ["mm.default"] + 2 * [
        "addmm.default"
    ]
    torch.testing.assert_close(graph(*tensors), f(*tensors))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own, as its compiler loads
def test_numbers_are_computed_before_the_loops_that_they_enter() -> None:
    """Held against the code that the compiler writes: it is the compiler that has to heed the marks."""
    from torch._inductor.utils import run_and_get_code

    from gimli_core.compiled.compiler.compiled_function import compiler_options

    def corrected(m: Tensor, t: Tensor) -> Tensor:
        return m / (1 - 0.9**t)

    m, t = torch.randn(64), torch.tensor(3.0)
    found, (code, *_) = run_and_get_code(torch.compile(corrected, options=compiler_options({})), m, t)
    torch.testing.assert_close(found, corrected(m, t))
    before, *loops = code.split("for(int64_t")
    assert "std::pow" in before
    assert loops
    assert not any("std::pow" in loop for loop in loops)


def test_what_a_convolution_reads_lies_as_in_eager_mode() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    from gimli_core.compiled.compiler.graph_passes import InMemory

    def f(x: Tensor, w: Tensor) -> Tensor:
        return torch.conv2d(x.exp().permute(1, 0, 2, 3).reshape(2, 3, 4, 4), w.sin()).cos()

    graph: Any = make_fx(f, tracing_mode="fake")(torch.randn(3, 2, 4, 4), torch.randn(5, 3, 2, 2))
    InMemory()(graph.graph)
    marked = [node.name for node in graph.graph.nodes if node.meta.get("inductor_realize_to_strides")]
    assert marked == ["exp", "sin"]


def test_no_mask_is_handed_from_a_step_to_its_sweep() -> None:
    """What was compared is, and it is compared again: a mask is slow to lay down."""

    def both(x: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(x.sin())
        return y.sum(), torch.where(y > 0, B, 0.0)

    x, B = torch.randn(2, 40, dtype=torch.float64)
    halves = Halves(both, Environment([], x.device), (x, B), 1)
    joined = halves.look([x, B])
    (total,), kept = joined.first([x])
    (swept,) = joined.second(kept, [B])
    assert [k.dtype for k in kept] == [torch.float64]
    torch.testing.assert_close((total, swept), both(x, B))


@pytest.mark.long
def test_a_value_for_every_step_is_not_taken_for_one_for_all() -> None:
    """Both are one number at step 0."""
    rates = gimli.per_step(torch.tensor([0.1, 0.5, 0.3]))
    problem = gimli.Problem(square, square, SGD(lr=0.1))
    for lr in (0.1, rates, 0.1):
        made: dict[str, Any] = {"problem": problem, "theta_0": {"w": torch.rand(3), "v": torch.rand(2)}}
        made |= {"train_batches": [torch.rand(3) for _ in range(3)], "val_batch": torch.rand(3), "phi_opt": {"lr": lr}}
        agree(gimli.meta_gradient(**made, compile="whole"), gimli.meta_gradient(**made, compile=False))


@pytest.mark.long
def test_a_value_for_every_task_is_not_taken_for_one_for_every_element() -> None:
    """Both have three entries."""
    problem = gimli.Problem(square, square, SGD(lr=0.1))
    for lr in (torch.rand(3), gimli.per_task(torch.rand(3)), torch.rand(3)):
        made: dict[str, Any] = {"problem": problem, "theta_0": {"w": torch.rand(3)}, "tasks": 3, "phi_opt": {"lr": lr}}
        made |= {"train_batches": [torch.rand(3, 3) for _ in range(2)], "val_batch": torch.rand(3, 3)}
        agree(gimli.meta_gradient(**made, compile="steps"), gimli.meta_gradient(**made, compile=False))


def test_a_gradient_of_zero_under_adam(caplog: pytest.LogCaptureFixture) -> None:
    """NOTE [derivative at zero] in singular.py, whose compiled form is another."""
    made: dict[str, Any] = {"problem": gimli.Problem(square, square, Adam(lr=0.1)), "theta_0": {"w": torch.rand(3)}}
    made |= {"train_batches": 2 * [torch.tensor([1.0, 0.0, 2.0])], "val_batch": torch.ones(3), "phi_opt": {"lr": 0.1}}
    found = gimli.meta_gradient(**made, compile="steps")
    agree(found, gimli.meta_gradient(**made, compile=False))
    assert bool(torch.isfinite(found.B_0["w"]).all())
    assert "not compiled" not in said(caplog)  # as it would be if it gave nan, which the trial finds out


def square(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
    """Its gradient is 0 where the batch is."""
    return torch.stack([((v * batch[: len(v)]) ** 2).sum() for v in theta.values()]).sum()


def test_a_tensor_that_comes_twice_in_the_first_batch_may_come_once_in_the_others() -> None:
    def fit(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        return ((batch[0] * theta["w"] - batch[1]) ** 2).mean()

    x, y = torch.randn(2, 6)
    made: dict[str, Any] = {
        "problem": gimli.Problem(fit, fit, SGD(lr=0.1)),
        "theta_0": {"w": torch.ones(())},
        "train_batches": [(x, x), (x, y), (y, x)],
        "val_batch": (x, y),
    }
    eager = gimli.meta_gradient(**made, compile=False)
    agree(gimli.meta_gradient(**made, compile="steps"), eager)
    agree(gimli.meta_gradient(**made, compile="steps", memory=StoreStates()), eager)


def test_a_network_that_is_not_trained_may_change_between_calls() -> None:
    teacher = nn.Linear(3, 1).requires_grad_(False)

    def distil(theta: dict[str, Tensor], phi: dict[str, Tensor], x: Tensor) -> Tensor:
        return (x @ theta["w"] - teacher(x).squeeze(-1)).square().mean()

    made: dict[str, Any] = {
        "problem": gimli.Problem(distil, distil, SGD(lr=0.1)),
        "theta_0": {"w": torch.ones(3)},
        "train_batches": list(torch.randn(4, 6, 3)),
        "val_batch": torch.randn(6, 3),
    }
    for number in range(3):
        agree(gimli.meta_gradient(**made, compile="steps"), gimli.meta_gradient(**made, compile=False))
        with torch.no_grad():
            teacher.weight.mul_(2)
        if number:
            teacher.weight = nn.Parameter(torch.randn(1, 3), requires_grad=False)


@pytest.mark.long
def test_what_is_handed_on_may_lie_as_the_compiler_likes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By itself the compiler gives convolutions another layout than the traced graph has: the second half must know."""
    monkeypatch.setattr(loop, "options_of", lambda inputs: {})
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16, track_running_stats=False), nn.ReLU(), nn.Conv2d(16, 8, 3)
    )
    net = net.float()

    def fit(theta: dict[str, Tensor], phi: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(net, theta, (x,)).square().mean()

    x = torch.randn(T, 4, 1, 12, 12, dtype=torch.float32)
    made: dict[str, Any] = {
        "problem": gimli.Problem(fit, fit, SGD(lr=0.1)),
        "theta_0": dict(net.named_parameters()),
        "train_batches": [x, x],
        "val_batch": x,
        "tasks": T,
    }
    found, eager = gimli.meta_gradient(**made, compile="steps"), gimli.meta_gradient(**made, compile=False)
    agree(found, eager, rtol=1e-3, atol=1e-6)  # float32: another layout sums in another order
    assert "not compiled" not in said(caplog)


@pytest.mark.long
def test_a_batch_that_is_changed_before_its_sweep_is_found_out() -> None:
    """By the run itself, where it was not when the function was first looked after: it did not do so then."""
    held, at_once = torch.ones(6, 3), [False]

    def batch(j: int) -> tuple[Tensor, Tensor]:
        x = torch.full((6, 3), float(j))
        return held.copy_(x) if at_once[0] else x, torch.ones(6)

    made = tanh_network(SGD(lr=0.1)) | {"train_batches": batch, "steps": 3}
    gimli.meta_gradient(**made, compile="steps", check=False)
    at_once[0] = True
    with pytest.raises(RuntimeError, match="batch of inner step j = 1 has been changed in place"):
        gimli.meta_gradient(**made, compile="steps", check=False)


@pytest.mark.long
@pytest.mark.parametrize("fuse", [True, False])
def test_a_whole_run_of_tasks_agrees_with_eager(monkeypatch: pytest.MonkeyPatch, fuse: bool) -> None:
    if not fuse:
        monkeypatch.setattr(fused, "NUMBERS", 0)
    rates = gimli.per_task(gimli.per_step(0.1 * torch.rand(T, 2)))
    made = tanh_network(Adam(), T, steps=2, phi_opt={"lr": rates, "beta1": torch.tensor(0.8)}, val_weights=[0.5, 1.0])
    agree(gimli.meta_gradient(**made, compile="whole"), gimli.meta_gradient(**made, compile=False))


@pytest.mark.long
def test_a_rule_that_sees_whole_tensors_and_a_warm_start() -> None:
    made = tanh_network(LAMB(), T, phi_opt={"lr": torch.tensor(0.05)})
    warm = gimli.meta_gradient(**made, compile=False).state_J
    made |= {"state_0": gimli.per_task(warm)}
    agree(gimli.meta_gradient(**made, compile="steps"), gimli.meta_gradient(**made, compile=False))


@pytest.mark.long
def test_unroll_compiles_once_and_tells_so(caplog: pytest.LogCaptureFixture) -> None:
    lr = torch.tensor(0.1, requires_grad=True)
    made = tanh_network(SGD(), T, steps=2, phi_opt={"lr": lr})
    gimli.unroll(**made, compile=False).backward()
    eager, lr.grad = lr.grad, None
    for _ in range(2):
        gimli.unroll(**made, compile=True).backward()
        torch.testing.assert_close(lr.grad, eager, rtol=1e-10, atol=0)
        lr.grad = None
    assert said(caplog).count("compiling the whole run") == 1
    assert said(caplog).count("compiled in ") == 1


@pytest.mark.long
def test_what_the_loss_reads_besides_its_arguments_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tanh_network(SGD(lr=0.1))
    for slope in (1.0, 2.0, 1.0):
        monkeypatch.setattr(problems, "SLOPE", slope)
        agree(gimli.meta_gradient(**made, compile="steps"), gimli.meta_gradient(**made, compile=False))


@pytest.mark.long
def test_a_network_that_no_longer_compiles_runs_eagerly_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """In training BatchNorm changes its statistics within the derivative, which the compiler cannot do."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def of_net(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        return torch.func.functional_call(net, theta, (batch,)).square().mean()

    x, theta_0 = torch.randn(8, 3), {k: v.detach() for k, v in net.named_parameters()}
    problem = gimli.Problem(of_net, of_net, SGD(lr=0.1))
    for training in (False, True, False):
        net.train(training)
        found, eager = (
            gimli.meta_gradient(problem, theta_0, [x] * 3, x, memory=StoreStates(), compile=c) for c in (True, False)
        )
        agree(found, eager)
    assert said(caplog).count("not compiled any more: ") == said(caplog).count("compiling") == 1


@pytest.mark.long
def test_random_numbers_are_the_same() -> None:
    def noisy(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        return (nn.functional.dropout(batch, 0.5) @ theta["w"]).square().mean() + theta["c"] ** 2

    x = torch.ones(20, 3)
    made: dict[str, Any] = {
        "problem": gimli.Problem(noisy, noisy, SGD(lr=0.1)),
        "theta_0": {"w": torch.ones(3), "c": torch.ones(())},
        "train_batches": [x] * 4,
        "val_batch": x,
    }
    torch.manual_seed(0)
    eager = gimli.meta_gradient(**made, compile=False)
    for memory in (None, RetainGraphs(), StoreStates(), Checkpoint(1)):
        torch.manual_seed(0)
        agree(gimli.meta_gradient(**made, compile="steps", memory=memory), eager)


def test_a_batch_of_another_shape_runs_uncompiled_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    made = tanh_network(SGD(lr=0.1), steps=5)
    for j in (2, 4):
        made["train_batches"][j] = (torch.randn(7, 3), torch.randn(7))
    agree(gimli.meta_gradient(**made, compile="steps"), gimli.meta_gradient(**made, compile=False))
    assert said(caplog).count("the step runs uncompiled here: its batch has another shape") == 1


def test_rounding_that_a_rule_blows_up_is_not_held_against_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 the trial is judged by float64: a result as close to it as the eager one is sound."""
    from gimli_core.compiled.compiler import trial

    def f(x: Tensor) -> Tensor:
        return torch.stack([x.sum(), (x.sum() - x.flip(0).sum()) * 1e8])  # the second is rounding alone, blown up

    x = torch.rand(1000, dtype=torch.float32)
    environment, eager = Environment([], x.device), f(x)
    assert trial.as_close([eager * 1.0], eager, f, environment, (x,))
    other = torch.stack([x.sum(), eager[1] * -1.5 + 1.0])
    assert trial.distance([other], [eager]) > 1
    assert trial.as_close([other], eager, f, environment, (x,))
    assert not trial.as_close([other * 1e3], eager, f, environment, (x,))
    half = torch.ones(3, dtype=torch.float32)
    assert not trial.as_close([other], eager, lambda x: torch.mv(x.outer(half), half), environment, (x,))


def test_a_unit_that_is_nearly_off_may_be_on_in_what_is_compiled() -> None:
    """To be judged by results of arguments that differ in the last place; global random numbers are left alone."""
    from gimli_core.compiled.compiler import trial

    def f(x: Tensor) -> Tensor:
        return torch.where(x.sum() - 1.0 > 0, x, 2 * x)  # the sum is 1 but for rounding

    x = torch.full((10,), 0.1)
    x[0] += 1.0 - x.sum()
    environment, eager = Environment([], x.device), f(x)
    other = eager * (2 if bool((eager == x).all()) else 0.5)
    before = torch.get_rng_state()
    assert trial.distance([other], [eager]) > 1
    assert trial.as_close([other], eager, f, environment, (x,))
    assert not trial.as_close([10 * other], eager, f, environment, (x,))
    assert torch.equal(before, torch.get_rng_state())


def test_where_compiled_and_eager_differ_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from gimli_core.compiled.compiler import trial

    monkeypatch.setattr(trial, "distance", lambda a, b: 3.48)
    monkeypatch.setattr(trial, "as_close", lambda *of_a_trial: False)
    with pytest.raises(trial.Uncompiled, match=r"differ by 3\.48 times what rounding can explain\. If the same"):
        trial.beside_eager(
            torch.sin,
            Environment([], torch.device("cpu")),
            (torch.ones(3),),
            lambda module, inputs: module,
            lambda compiled, flat, eager: compiled(*flat),
        )


def test_an_operation_that_will_not_compile_runs_eagerly_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    def branches(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        found = tanh_loss(theta, phi, batch)
        return 2 * found if found.item() > 1 else found

    made = tanh_network(SGD(lr=0.1))
    made["problem"] = gimli.Problem(branches, branches, SGD(lr=0.1))
    eager = gimli.meta_gradient(**made, compile=False)
    for _ in range(2):
        found = gimli.meta_gradient(**made, compile=True)
        assert torch.equal(found.B_0["w"], eager.B_0["w"])
    assert said(caplog).count("one step forwards and its sweep not compiled: ") == 1


def test_a_machine_without_a_compiler_runs_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    import torch._inductor.config as inductor
    import torch.compiler.config as compiler

    made = tanh_network(SGD(lr=0.1))
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}), compiler.patch(force_disable_caches=True):
        found, eager = (gimli.meta_gradient(**made, compile=c) for c in ("steps", False))
    assert torch.equal(found.B_0["w"], eager.B_0["w"])
    assert "not compiled: " in said(caplog)


def test_a_small_problem_compiles(caplog: pytest.LogCaptureFixture) -> None:
    """Also after the test before this one: else those that follow would compare eager with eager."""
    gimli.meta_gradient(**tanh_network(SGD(lr=0.1)), compile="steps")
    assert "compiled in " in said(caplog)
    assert "not compiled" not in said(caplog)


@pytest.mark.parametrize("kind", ["steps", pytest.param("whole", marks=pytest.mark.long)])
def test_errors_in_compiled_code_name_the_step_and_the_parameter(kind: str) -> None:
    made = tanh_network(SGD(lr=0.1))
    made["train_batches"][2][0][0] = float("inf")
    with pytest.raises(NotFiniteError, match=r"at inner step j = 2: .*G_2 of 'w'"):
        gimli.meta_gradient(**made, compile=kind)


def test_the_eager_run_after_a_whole_one_that_broke_draws_the_same() -> None:
    def noisy(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        return (nn.functional.dropout(batch, 0.5) @ theta["w"]).square().mean()

    x = torch.ones(20, 3)
    problem = gimli.Problem(noisy, noisy, SGD(lr=0.1))
    gimli.meta_gradient(problem, {"w": torch.ones(3)}, [x, x], x, compile="whole")
    after = []
    for kind in (False, "whole"):
        torch.manual_seed(0)
        with pytest.raises(NotFiniteError):
            gimli.meta_gradient(problem, {"w": torch.ones(3)}, [x, float("inf") * x], x, compile=kind)
        after.append(torch.get_rng_state())
    assert torch.equal(*after)


@pytest.mark.parametrize("asked", ["fast", 1, None])
def test_a_wrong_choice_is_refused(asked: Any) -> None:
    with pytest.raises(ArgumentError, match=r"compile: expected True, False, 'auto', 'steps', 'whole'"):
        gimli.meta_gradient(**tanh_network(SGD(lr=0.1)), compile=asked)
    with pytest.raises(ArgumentError, match=r"compile: expected 'steps' or True beside memory=, resume= or Truncated"):
        gimli.meta_gradient(**tanh_network(SGD(lr=0.1)), compile="whole", memory=StoreStates())
