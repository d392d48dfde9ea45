"""mesh="data": one inner batch over ranks, against one process that has the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import distributed

import gimli_core as gimli
from gimli_core.memory import Checkpoint, RetainGraphs, StoreStates
from gimli_core.processes.collectives import counting
from gimli_core.trees import tensors
from tests.processes.cases import RULES, Inner, call, inner, mean_square, part_of, same_bits, val_loss
from tests.processes.launching import results_on_ranks

J = 4
SCHEDULES = (None, RetainGraphs(), StoreStates(), Checkpoint(2), Checkpoint(1, gradients=True))


def parts(given: Inner, dim: int = 0) -> Inner:
    """What this rank is given."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    batches = [part_of(batch, rank, size, dim) for batch in given.batches]
    return given._replace(batches=batches, val_batch=part_of(given.val_batch, rank, size, dim))


def close(found: Any, expected: Any) -> None:
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14, equal_nan=True)


def rules_and_schedules() -> list[Any]:
    found = []
    for rule, phi_opt in RULES:
        problem = gimli.Problem(mean_square, val_loss, rule)
        for memory in SCHEDULES:
            with counting() as sent:
                result = call(problem, parts(inner(J)), phi_opt, memory=memory, mesh="data")
            found.append((result.state_dict(), sent))
    return found


def kinds() -> dict[str, dict[str, Any]]:
    """One call of each kind that a mesh meets; alone, where there is no group."""
    over = distributed.is_initialized()
    mesh, cut = ("data", parts) if over else (None, lambda given, dim=0: given)
    given, rule, learned = inner(J), RULES[1][0], RULES[1][1]
    problem = gimli.Problem(mean_square, val_loss, rule)
    two = gimli.Problem(mean_square, lambda *a: torch.stack([val_loss(*a), 2 * val_loss(*a)]), rule)
    found = {
        "first order": call(problem, cut(given), learned, approximation=gimli.FirstOrder(), mesh=mesh),
        "truncated": call(problem, cut(given), learned, approximation=gimli.Truncated(2), mesh=mesh),
        "losses on the way": call(problem, cut(given), learned, val_weights=torch.ones(J), mesh=mesh),
        "two outer losses": call(two, cut(given), learned, mesh=mesh),
        "micro-batches": call(problem, cut(given), learned, micro_batches=2, mesh=mesh),
        "tasks": call(problem, cut(inner(J, 2), 1), learned, tasks=2, mesh=mesh),
        "forward over reverse": call(problem, cut(given), learned, second_order="forward_over_reverse", mesh=mesh),
        "until": call(problem, cut(given), learned, until=lambda j, loss, theta, G: j == 3, mesh=mesh),
        "no val batch": call(
            gimli.Problem(mean_square, lambda t, p, b: (t["a"] ** 2).sum(), rule),
            cut(given)._replace(val_batch=None),
            learned,
            mesh=mesh,
        ),
    }
    loss = gimli.unroll(problem, *cut(given)[:3], phi_opt={"lr": torch.tensor(0.05)}, phi_loss=tied(given), mesh=mesh)
    loss.backward()
    tried = {name: result.state_dict() for name, result in found.items()}
    return {**tried, "unroll": {"grad": TIED["log_l2"].grad, "loss": loss.detach()}}


TIED: dict[str, torch.Tensor] = {}


def tied(given: Inner) -> dict[str, torch.Tensor]:
    TIED.update({k: v.clone().requires_grad_() for k, v in given.phi_loss.items()})
    return TIED


def test_every_rule_and_schedule_agrees_with_the_whole_batch_in_one_process(tmp_path: Path) -> None:
    every = results_on_ranks(3, rules_and_schedules, directory=tmp_path)
    for i, (rule, phi_opt) in enumerate(RULES):
        expected = call(gimli.Problem(mean_square, val_loss, rule), inner(J), phi_opt).state_dict()
        first = every[0][i * len(SCHEDULES)][0]
        close(first, expected)
        for rank in every:
            for result, _ in rank[i * len(SCHEDULES) : (i + 1) * len(SCHEDULES)]:
                same_bits(result, first)  # of every rank and schedule


def test_messages_are_exactly_the_ones_stated(tmp_path: Path) -> None:
    for rank in results_on_ranks(2, rules_and_schedules, directory=tmp_path):
        for (_, sent), memory in zip(rank, SCHEDULES * 3, strict=True):
            reduced = [m.what.partition(",")[0] for m in sent if m.operation == "all_reduce"]
            replays = 0 if memory in (None, SCHEDULES[1]) else reduced.count("line 5") - J
            assert reduced.count("line 5") == J + replays
            assert reduced.count("lines 13-14") == J
            assert reduced.count("lines 8-9") == 1


def test_every_kind_of_call_agrees_with_one_process(tmp_path: Path) -> None:
    every = results_on_ranks(2, kinds, directory=tmp_path)
    alone = kinds()
    for found in every:
        for name, expected in alone.items():
            close(found[name], expected)


class Masks:
    """Dropout by torch's global generator. In one process that has the parts of all ranks, each part has a stream of
    its own, as on its rank; the generator of rank r begins at seed r."""

    def __init__(self, size: int) -> None:
        self.states = [torch.Generator().manual_seed(r).get_state() for r in range(size)]

    def __call__(self, theta: Any, phi: Any, batch: Any) -> torch.Tensor:
        losses = []
        for r, (x, y) in enumerate(batch):
            torch.set_rng_state(self.states[r])
            losses.append(len(x) / 7 * mean_square(theta, phi, (x, y), 0.5))
            self.states[r] = torch.get_rng_state()
        return torch.stack(losses).sum()


def with_dropout() -> list[Any]:
    problem = gimli.Problem(lambda t, p, b: mean_square(t, p, b, 0.5), val_loss, RULES[1][0])
    results = []
    for memory in SCHEDULES:
        torch.manual_seed(distributed.get_rank())
        results.append(call(problem, parts(inner(J)), RULES[1][1], memory=memory, mesh="data").state_dict())
    return results


def test_each_rank_has_random_numbers_of_its_own_which_are_replayed(tmp_path: Path) -> None:
    every = results_on_ranks(2, with_dropout, directory=tmp_path)
    given = inner(J)
    batches = [[part_of(batch, r, 2) for r in range(2)] for batch in given.batches]
    problem = gimli.Problem(Masks(2), val_loss, RULES[1][0])
    expected = call(problem, given._replace(batches=batches), RULES[1][1], check=False).state_dict()
    for rank in every:
        for result in rank:
            same_bits(result, every[0][0])
            close(result, expected)


def shares_and_rows() -> dict[str, Any]:
    """What a part counts for, as it is said; and weights by example, which stay with their rank."""
    over = distributed.is_initialized()
    ranks = range(2) if not over else [distributed.get_rank()]
    given, rule, learned = inner(J), RULES[0][0], RULES[0][1]
    labelled = [3.0, 1.0]  # of each part; a loss divides by that

    def masked(theta: Any, phi: Any, batch: Any) -> torch.Tensor:
        total = [((torch.tanh(x @ theta["a"]) @ theta["b"] - y)[:n] ** 2).sum() for n, (x, y) in batch]
        return torch.stack(total).sum() / sum(n for n, _ in batch)

    def share(batch: Any, divides: bool = True) -> Any:
        mine = [(int(labelled[r]), part_of(batch, r, 2)) for r in ranks]
        return gimli.Share(mine, labelled[ranks[0]]) if over else mine

    def weighted(theta: Any, phi: Any, batch: Any) -> torch.Tensor:
        x, y, _ = batch
        return (phi["w"] * (torch.tanh(x @ theta["a"]) @ theta["b"] - y)[:, 0] ** 2).mean()

    rows = torch.arange(7)
    by_rank = [rows[:4], rows[4:]]
    mesh = "data" if over else None
    cut = (lambda batch: (*part_of(batch, ranks[0], 2), rows[: len(by_rank[ranks[0]])])) if over else None
    w = torch.linspace(0.5, 1.5, 7)
    mine = w[by_rank[ranks[0]]] if over else w
    phi_loss = {"w": gimli.indexed(mine, rows=2)}
    indexed = given._replace(
        batches=[cut(b) if cut else (*b, rows) for b in given.batches],
        val_batch=part_of(given.val_batch, ranks[0], 2) if over else given.val_batch,
    )
    problem = gimli.Problem(weighted, lambda t, p, b: val_loss(t, {}, b), rule)
    some = given._replace(batches=[share(b) for b in given.batches], val_batch=share(given.val_batch), phi_loss={})
    result = call(problem, indexed, learned, phi_loss=phi_loss, mesh=mesh)
    return {
        "shares": call(gimli.Problem(masked, masked, rule), some, learned, mesh=mesh).state_dict(),
        "B_0": result.B_0,
        "w": result.A_loss["w"].to_dense(),
    }


def test_parts_count_for_what_they_say_and_rows_of_examples_stay_with_their_rank(tmp_path: Path) -> None:
    every = results_on_ranks(2, shares_and_rows, directory=tmp_path)
    alone = shares_and_rows()
    for found in every:
        close(found["shares"], alone["shares"])
        close(found["B_0"], alone["B_0"])
    close(torch.cat([found["w"] for found in every]), alone["w"])


def verified_and_planned() -> dict[str, Any]:
    rule, learned = RULES[1][0], {"lr": torch.tensor(0.05)}
    problem, given, tasks = gimli.Problem(mean_square, val_loss, rule), parts(inner(3)), inner(3, 3)
    more: dict[str, Any] = {"phi_opt": learned, "phi_loss": given.phi_loss}
    report = gimli.verify(problem, *given[:3], **more, mesh="data", oracles=())
    claim = {"A_opt": {"lr": torch.tensor(1.0)}}
    wrong = gimli.verify(problem, *given[:3], **more, mesh="data", claimed=claim, oracles=())
    of_tasks = gimli.verify(problem, *tasks[:3], **more, tasks=3, mesh="tasks", oracles=())
    planned = gimli.plan(problem, *given[:3], **more, mesh="data")
    gimli.plan(problem, *tasks[:3], **more, tasks=3, mesh="tasks")
    budget = call(problem, given, RULES[1][1], memory=gimli.memory.Budget(planned.least), mesh="data")
    again = call(problem, given, RULES[1][1], memory=gimli.memory.Budget("1GB"), mesh="data")
    told = {"least": planned.least, "rows": str([(row.name, row.replays) for row in planned.rows])}
    verdicts = [report.ok, wrong.ok, of_tasks.ok, wrong.headline]
    return {"verdicts": verdicts, **told, "budget": budget.state_dict(), "again": again.state_dict()}


def test_verify_plan_and_budget_are_of_all_ranks(tmp_path: Path) -> None:
    first, other = results_on_ranks(2, verified_and_planned, directory=tmp_path)
    assert first["verdicts"][:3] == [True, False, True]
    assert first["verdicts"] == other["verdicts"]
    assert (first["least"], first["rows"]) == (other["least"], other["rows"])
    for found in (first, other):
        same_bits(found["budget"], first["again"])
        same_bits(found["again"], first["again"])


def large(steps: int) -> Inner:
    """Of so many numbers that each rank steps its piece of them."""
    wide, g = 33000, torch.Generator().manual_seed(1)
    theta_0 = {"a": torch.randn(3, wide, generator=g), "b": torch.randn(wide, 1, generator=g) / wide}
    theta_0["a"] /= 10
    return inner(steps)._replace(theta_0=theta_0)


SLOW = {"lr": 1e-4, "momentum": 0.5}  # so that rounding is not made more of by the inner loop itself


def in_pieces() -> list[Any]:
    rule = RULES[0][0]
    problem, found = gimli.Problem(mean_square, val_loss, rule), list[Any]()
    for more in (
        {},
        {"memory": Checkpoint(1)},
        {"until": lambda j, loss, theta, G: j == 2},
        {"watch": lambda event: 0},
    ):
        with counting() as sent:
            result = call(problem, parts(large(3)), SLOW, mesh="data", check=False, **more)
        found.append((result.state_dict(), [m for m in sent if m.operation != "all_gather_object"]))
    watched = {"watch": lambda event: None} if distributed.get_rank() == 0 else {}
    found.append((call(problem, parts(large(3)), SLOW, mesh="data", check=False, **watched).state_dict(), []))
    return found


def test_ranks_step_their_piece_of_a_large_theta(tmp_path: Path) -> None:
    """As many bytes as two all_reduces a step, and no rule is repeated; whoever watches tensors sees them whole."""
    expected = call(gimli.Problem(mean_square, val_loss, RULES[0][0]), large(3), SLOW).state_dict()
    n = sum(v.nbytes for v in expected["theta_J"].values())
    for found in results_on_ranks(2, in_pieces, directory=tmp_path):
        for i in (0, 1, 3, 4):
            close(found[i][0], expected)
        same_bits(found[1][0], found[0][0])
        assert found[2][0]["train_losses"].shape == (2,)
        of_steps = [m for m in found[0][1] if "inner step" in m.what]
        assert [m.operation for m in of_steps] == ["all_gather", "all_to_all"] * 6
        assert {m.nbytes - n // 2 for m in of_steps[::2]} == {0}
        assert all(0 < m.nbytes - n < 200 for m in of_steps[1::2])
        assert {m.operation for m in found[3][1] if "inner step" in m.what} == {"all_reduce"}
