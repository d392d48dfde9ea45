"""theta, s, B and S over ranks, against one process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed

import gimli_core as gimli
from gimli_core.errors import GimliError
from gimli_core.memory import Budget, Checkpoint, RetainGraphs, StoreStates
from gimli_core.memory.meters import OBJECT
from gimli_core.optimizers import LAMB, SGD, Adafactor, Adam, ClipNorm, Lookahead, MaskedDecay, Muon
from gimli_core.processes.collectives import Collective, counting
from gimli_core.processes.mesh import Ranks
from gimli_core.processes.pieces import Pieces
from gimli_core.runs import journal
from gimli_core.transforms.rule_on_shards import by_element
from tests.compare import agree
from tests.problems import PROBLEMS, RULES, STARTS, Rule, arguments, network_with_dropout, tanh_network
from tests.processes.cases import same_bits
from tests.processes.launching import on_ranks, results_on_ranks

RULE = {rule.name: rule for rule in RULES}


def run(made: dict[str, Any], **more: Any) -> gimli.MetaGradient:
    torch.manual_seed(3)
    return gimli.meta_gradient(**made, **more)


def compared(made: dict[str, Any], rtol: float = 1e-12, **more: Any) -> None:
    """Raise unless shards give what one process gives."""
    agree(run(made, mesh="shard", **more), run(made, compile=False, **more), rtol=rtol, atol=rtol / 100)


def schedules_and_rules() -> int:
    rows = [(rule, memory) for rule in ("momentum", "adam", "adagrad") for memory in (RetainGraphs(), Checkpoint(2))]
    for name, memory in rows:
        compared(arguments(RULE[name], network_with_dropout, "cold"), memory=memory)
    return len(rows)


def every_row(names: tuple[str, ...]) -> int:
    """Every rule, problem and start of the contract, by two schedules."""
    rows = [(rule, problem, start) for rule in RULES if rule.name in names for problem in PROBLEMS for start in STARTS]
    for rule, problem, start in rows:
        for memory in (Checkpoint(2), *((StoreStates(), Budget("1GB")) if rule.name == "adam" else ())):
            compared(arguments(rule, problem, start), rtol=1e-11, memory=memory)
    return len(rows)


def test_shards_give_what_one_process_gives(tmp_path: Path) -> None:
    """SGD, Adam and Adagrad, with dropout, by kept graphs and by replays."""
    assert results_on_ranks(2, schedules_and_rules, directory=tmp_path) == [6, 6]


@pytest.mark.long
@pytest.mark.parametrize("part", range(6))
def test_every_rule_in_three_shards(part: int, tmp_path: Path) -> None:
    names = tuple(rule.name for rule in RULES)[part::6]
    count = len(names) * len(PROBLEMS) * len(STARTS)
    assert results_on_ranks(3, every_row, names, directory=tmp_path, timeout=100) == [count] * 3


class Centred(Adam):
    """Adam on G less its mean: an elementwise rule's subclass whose own step looks at whole tensors."""

    def step(self, theta: Any, state: Any, G: Any, hyper: Any) -> Any:
        return super().step(theta, state, {k: g - g.mean() for k, g in G.items()}, hyper)

    def pullback(self, theta: Any, state: Any, G: Any, hyper: Any, B: Any, S: Any, wanted: Any) -> Any:
        pulled = super().pullback(theta, state, {k: g - g.mean() for k, g in G.items()}, hyper, B, S, wanted)
        return pulled._replace(V={k: v - v.mean() for k, v in pulled.V.items()})


def rules_over_whole_tensors() -> list[bool]:
    decayed = MaskedDecay(Adam(lr=0.05), decay=0.1)  # its mask looks at shapes
    rules = (
        LAMB(lr=0.05),
        Adafactor(lr=0.3),
        ClipNorm(Adam(lr=0.05), max_norm=0.1),
        decayed,
        Centred(lr=0.05),
        Lookahead(SGD(lr=0.1), every=2),
    )
    for rule in rules:
        made = arguments(Rule("", rule, {"lr": 0.05}), network_with_dropout, "cold")
        compared(made, memory=Checkpoint(2))
    torch.manual_seed(0)
    call = tanh_network(Muon(lr=0.05), steps=2)
    matrices = {k: v if v.ndim == 2 else v.reshape(-1, 1) for k, v in call["theta_0"].items()}
    compared({**call, "theta_0": matrices})
    return [by_element(rule) for rule in rules]


@pytest.mark.long
def test_a_rule_that_needs_a_norm_or_a_matrix_gathers_for_its_step(tmp_path: Path) -> None:
    for by_itself in results_on_ranks(2, rules_over_whole_tensors, directory=tmp_path):
        assert by_itself == [False, False, False, False, False, True]


def forms_of_arguments() -> int:
    """Values of elements and of steps; several outer losses; tensors that a loss does not use; two dtypes."""
    torch.manual_seed(0)
    theta_0 = {"w": torch.randn(3, 2), "b": torch.randn(5), "idle": torch.randn(2), "late": torch.randn(4)}

    def train_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        fit = theta["w"].sum() * theta["b"].double() - batch
        late = (theta["late"] ** 4).sum() if batch.sum() > 0 else 0.0
        return (fit**2).mean() + phi["c"] * (theta["w"] ** 3).sum() + late

    def val_losses(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Tensor) -> Tensor:
        return torch.stack([(v**2).sum() for v in (theta["w"], theta["b"] * phi["c"], theta["late"])])

    batches = [torch.full((5,), x) for x in (-1.0, 1.0, -0.5)]
    lr = {
        "w": 0.01 + 0.01 * torch.rand(3, 2),
        "b": torch.tensor(0.02),
        "idle": torch.tensor(0.1),
        "late": torch.rand(4),
    }
    made = {"theta_0": theta_0, "train_batches": batches, "val_batch": None, "phi_loss": {"c": torch.tensor(0.3)}}
    rule = SGD(momentum=0.9, weight_decay=0.1)
    many = gimli.Problem(train_loss, val_losses, rule)
    one = gimli.Problem(train_loss, lambda *args: val_losses(*args)[0] + val_losses(*args)[2], Adam(lr=0.1))
    low = {**theta_0, "b": theta_0["b"].float()}
    rows = [
        {**made, "problem": many, "phi_opt": {"lr": lr}},
        {**made, "problem": one, "phi_opt": {"lr": torch.tensor([0.1, 0.2, 0.05])}},
        {**made, "problem": one, "theta_0": low, "val_weights": [0.1, 0.0, 0.2, 1.0]},
        {**made, "problem": one, "approximation": gimli.Truncated(2) & gimli.FirstOrder()},
        {**made, "problem": one, "second_order": "forward_over_reverse"},
    ]
    for row in rows:
        compared(row, memory=Checkpoint(2))
    return len(rows)


@pytest.mark.long
def test_every_form_of_an_argument(tmp_path: Path) -> None:
    assert results_on_ranks(2, forms_of_arguments, directory=tmp_path) == [5, 5]


def refusals() -> list[str]:
    rank = distributed.get_rank()
    torch.manual_seed(0)
    made = tanh_network(SGD(lr=0.1), steps=2)
    other = {**made, "theta_0": {k: v + rank for k, v in made["theta_0"].items()}}
    batches = [made["train_batches"](j) for j in range(2)] if callable(made["train_batches"]) else made["train_batches"]
    drifting = {**made, "train_batches": [batches[0], [t + rank for t in batches[1]]]}
    told = []
    for arguments_, more in (
        (made, {"tasks": 2}),
        (made, {"until": lambda *_: False}),
        (made, {"watch": lambda event: None}),
        (other, {}),
        (drifting, {}),
    ):
        torch.manual_seed(3)
        try:
            gimli.meta_gradient(**arguments_, mesh="shard", **more)
            told.append("no error")
        except GimliError as error:
            told.append(f"{type(error).__name__}: {error}")
    torch.manual_seed(rank)
    try:
        gimli.meta_gradient(**made, mesh="shard")
        told.append("no error")
    except GimliError as error:
        told.append(str(error))
    return told


def test_what_shards_cannot_do_is_refused_on_all_ranks_before_work(tmp_path: Path) -> None:
    first, second = results_on_ranks(2, refusals, directory=tmp_path)
    for told, argument in zip(first, ("tasks", "until", "watch"), strict=False):
        assert told.startswith(f"ArgumentError: {argument}: expected ")
        assert 'beside a mesh of "shard"' in told
    assert first[3].startswith("ArgumentError: theta_0: expected the same on all ranks")
    assert first[4].startswith("ProcessError: train_loss at inner step j = 1: expected the same on all ranks")
    assert first[5].startswith("random numbers: expected the same on all ranks")
    assert [told.split(";")[0] for told in second] == [told.split(";")[0] for told in first]


def messages() -> list[list[Collective]]:
    """Of one run of 4 steps with Adam by each of three schedules, from the first step on."""
    torch.manual_seed(0)
    made = tanh_network(Adam(lr=0.1), steps=4)
    every = []
    for memory in (RetainGraphs(), StoreStates(), Checkpoint(1)):
        with counting() as sent:
            run(made, mesh="shard", memory=memory)
        every.append([one for one in sent if one.operation != "all_gather_object"])
    return every


def test_messages_are_those_that_are_stated(tmp_path: Path) -> None:
    """Forwards theta once a step, and twice at the end, for a look at theta_J and for L_val; backwards V_j once a step,
    and theta again for a step that is run again. Then theta_J, s_J, B_0, S_0, and A_opt (none here)."""
    steps, n = 4, sum(v.numel() for v in tanh_network(Adam(lr=0.1))["theta_0"].values())
    again = (0, 3, 3 + 2 + 1)  # none; each to be swept, but for the last; from theta_0 on, for each of these
    for every in results_on_ranks(2, messages, directory=tmp_path):
        for i, sent in enumerate(every):
            at_the_end = [one.what for one in sent[-4:]]
            assert at_the_end == ["theta_J", "s_J", "B_0", "S_0"]
            within = sent[:-4]
            assert len(within) == steps + 2 + steps + again[i]
            assert {(one.operation, one.use) for one in within} == {("all_gather", "shard")}
            assert {one.nbytes for one in within} == {8 * -(-n // 2)}
            assert [one.what for one in within if "V_j" in one.what] == [
                f"lines 13-14, V_j at inner step j = {j} of {steps}" for j in range(steps)[::-1]
            ]


def whole_calls() -> list[Any]:
    """[verify, its verdict; plan, a state's bytes; unroll, gradients alone and over ranks]."""
    torch.manual_seed(0)
    made = {**tanh_network(Adam(), steps=3), "phi_opt": {"lr": torch.tensor(0.1)}}
    verdict = gimli.verify(**made, mesh="shard")
    plan = gimli.plan(**made, mesh="shard")
    gradients = []
    for mesh in (None, "shard"):
        lr = torch.tensor(0.1, requires_grad=True)
        theta_0 = {k: v.clone().requires_grad_() for k, v in made["theta_0"].items()}
        loss = gimli.unroll(**{**made, "theta_0": theta_0, "phi_opt": {"lr": lr}}, mesh=mesh)
        (3 * loss).backward()
        gradients.append([lr.grad, *(v.grad for v in theta_0.values())])
    return [verdict.ok, plan.costs.point, plan.costs.stored, gradients]


@pytest.mark.long
def test_verify_plan_and_unroll_take_shards(tmp_path: Path) -> None:
    first, second = results_on_ranks(2, whole_calls, directory=tmp_path, timeout=60)
    n = sum(v.numel() for v in tanh_network(Adam())["theta_0"].values())
    for ok, point, stored, (alone, over) in (first, second):
        assert ok
        # The most of all ranks: theta and two slots, of three tensors each, and the count of steps.
        assert point == stored == 8 * (3 * -(-n // 2) + 1) + (3 * 3 + 1) * OBJECT
        torch.testing.assert_close(over, alone, rtol=1e-12, atol=1e-14)


def resumed(directory: str | None, seed: int, rank: int = 0, evaluations: int = 0) -> dict[str, Any]:
    """A call that notes all that it does, with dropout; `rank` is killed at so many evaluations of the inner loss."""
    journal.SECONDS = 0.0
    made, left = arguments(RULE["adam"], network_with_dropout, "cold"), [evaluations]
    loss = made["problem"].train_loss

    def killing(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        left[0] -= 1
        if left[0] == 0 and distributed.get_rank() == rank:
            os._exit(9)
        return loss(theta, phi, batch)

    made["problem"] = gimli.Problem(killing, made["problem"].val_loss, made["problem"].optimizer)
    torch.manual_seed(seed)
    return gimli.meta_gradient(**made, mesh="shard", memory=Checkpoint(2), check=False, resume=directory).state_dict()


@pytest.mark.long
def test_a_run_that_was_killed_goes_on_with_its_pieces(tmp_path: Path) -> None:
    expected = results_on_ranks(2, resumed, None, 0, directory=tmp_path / "alone")
    directory = tmp_path / "run"
    for i, (rank, evaluations) in enumerate([(1, 3), (0, 4)]):
        ended = on_ranks(2, resumed, str(directory), i, rank, evaluations, directory=tmp_path / str(i))
        assert ended[rank].exitcode == 9
        assert "ProcessError" in (ended[1 - rank].error or "")
    for found in results_on_ranks(2, resumed, str(directory), 99, directory=tmp_path / "last"):
        same_bits(found, expected[0])
    assert not directory.exists()


def one_dies() -> str:
    torch.manual_seed(0)
    made = tanh_network(Adam(lr=0.1), steps=4)

    def batch(j: int) -> Any:
        if j == 2 and distributed.get_rank() == 1:
            os._exit(9)
        return made["train_batches"][j]

    torch.manual_seed(3)
    try:
        gimli.meta_gradient(**{**made, "train_batches": batch, "steps": 4}, mesh="shard")
    except GimliError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_a_rank_that_dies_ends_the_others_with_the_step_and_the_line(tmp_path: Path) -> None:
    first, second = on_ranks(2, one_dies, directory=tmp_path)
    assert second.exitcode == 9
    assert first.value.startswith("ProcessError: line 5, theta_j at inner step j = 3 of 4: expected all 2 ranks")
    assert "rank 1 says nothing: it has died, or hangs" in first.value


@given(st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=6), st.integers(1, 5))
@settings(deadline=None, max_examples=50)
def test_pieces_are_all_of_a_tensor_and_none_is_longer_than_a_share(shapes: list[list[int]], W: int) -> None:
    tensors = {str(i): torch.arange(float(torch.Size(s).numel())).reshape(s) for i, s in enumerate(shapes)}
    every = [Pieces.of(Ranks("shard", None, rank, W), tensors) for rank in range(W)]
    cut = [pieces.cut(tensors) for pieces in every]
    for k, v in tensors.items():
        assert torch.equal(torch.cat([pieces[k] for pieces in cut]), v.reshape(-1))
        assert torch.equal(sum(pieces.alone(k, part[k]) for pieces, part in zip(every, cut, strict=True)), v)
    sizes = [sum(len(piece) for piece in pieces.values()) for pieces in cut]
    assert max(sizes) == -(-sum(v.numel() for v in tensors.values()) // W)
