"""Losses that take j, that return (loss, aux), and a val_batch that is a function of j."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

import gimli_core as gimli
from gimli_core.errors import ArgumentError
from gimli_core.memory import Checkpoint, StoreStates
from gimli_core.notation import Tensors
from gimli_core.optimizers import SGD, Adam
from tests.compare import agree, assert_same, said

T, J = 3, 4
WEIGHTS = torch.tensor([1.0, 0.5, 2.0, 0.25, 3.0])

compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler"
)


def plain(theta: Tensors, phi: Tensors, batch: Tensor) -> Tensor:
    return torch.cosh(theta["a"] * batch + theta["b"]).mean() * phi["scale"]


def weighed(theta: Tensors, phi: Tensors, batch: Tensor, j: Tensor) -> Tensor:
    weight = WEIGHTS.index_select(0, j.reshape(1)).squeeze(0)  # WEIGHTS[j] asks for the number, which is not compiled
    return weight * plain(theta, phi, batch)


def telling(theta: Tensors, phi: Tensors, batch: Tensor) -> Any:
    x = theta["a"] * batch
    return plain(theta, phi, batch), {"largest": x.max(), "x": x, "right": (x > 0).sum(), "one": 1}


def given(train_loss: Any, val_loss: Any, rule: Any = None) -> dict[str, Any]:
    batches = [torch.randn(T, 5) for _ in range(2 * J + 1)]
    return {
        "problem": gimli.Problem(train_loss, val_loss, rule or SGD(momentum=0.5)),
        "theta_0": {"a": torch.randn(5), "b": torch.tensor(0.3)},
        "train_batches": batches[:J],
        "val_batch": lambda j: batches[J + j],
        "phi_opt": {"lr": 0.1},
        "phi_loss": {"scale": torch.tensor(0.8)},
    }


def of_task(made: dict[str, Any], t: int) -> dict[str, Any]:
    batches, val_batch = [x[t] for x in made["train_batches"]], made["val_batch"]
    return {**made, "train_batches": batches, "val_batch": lambda j: val_batch(j)[t]}


LAST_TWO = [0.0, 0.0, 0.0, 0.5, 2.0]


def test_a_loss_may_take_j_as_if_it_were_part_of_the_batch() -> None:
    made = of_task(given(weighed, weighed), 0)
    found = gimli.meta_gradient(**made, val_weights=LAST_TWO)

    def by_batch(theta: Tensors, phi: Tensors, batch: tuple[Tensor, Tensor]) -> Tensor:
        return batch[1] * plain(theta, phi, batch[0])

    batches = list(zip(made["train_batches"], WEIGHTS, strict=False))
    expected = gimli.meta_gradient(
        gimli.Problem(by_batch, by_batch, SGD(momentum=0.5)),
        made["theta_0"],
        batches,
        lambda j: (made["val_batch"](j), WEIGHTS[j]),
        phi_opt=made["phi_opt"],
        phi_loss=made["phi_loss"],
        val_weights=LAST_TWO,
    )
    agree(found, expected, rtol=1e-13)
    gimli.verify(**made, val_weights=LAST_TWO).assert_ok()


def test_a_batch_may_be_called_j() -> None:
    def of_batch(theta: Tensors, phi: Tensors, j: Tensor) -> Tensor:
        return plain(theta, phi, j)

    made = of_task(given(of_batch, of_batch), 0)
    agree(
        gimli.meta_gradient(**made),
        gimli.meta_gradient(**{**made, "problem": gimli.Problem(plain, plain, SGD(momentum=0.5))}),
    )


def test_a_val_batch_by_step_is_that_of_its_theta() -> None:
    made = of_task(given(plain, plain), 1)
    asked: list[int] = []

    def val_batch(j: int) -> Tensor:
        asked.append(j)
        return made["val_batch"](j)

    found = gimli.meta_gradient(**{**made, "val_batch": val_batch}, val_weights=LAST_TWO, check=False)
    assert set(asked) == {3, 4}
    for j in (3, 4):
        alone = gimli.meta_gradient(
            **{**made, "val_batch": made["val_batch"](j), "train_batches": made["train_batches"][:j]}
        )
        assert torch.equal(found.val_losses[j], alone.val_loss)


@pytest.mark.parametrize("memory", [StoreStates(), Checkpoint(1), Checkpoint(1, gradients=True)], ids=repr)
@pytest.mark.parametrize("loss", [weighed, telling])
def test_every_schedule_has_the_same_bits(loss: Any, memory: Any) -> None:
    made = of_task(given(loss, loss), 2)
    first, other = (gimli.meta_gradient(**made, val_weights=LAST_TWO, memory=m) for m in (None, memory))
    assert_same(other, first)
    torch.testing.assert_close((other.train_aux, other.val_aux), (first.train_aux, first.val_aux), rtol=0, atol=0)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("loss", [weighed, telling])
def test_tasks_are_single_runs(loss: Any, chunk: int | None) -> None:
    made = given(loss, loss)
    together = gimli.meta_gradient(**made, tasks=gimli.Tasks(T, "sum", chunk), val_weights=LAST_TWO)
    alone = [gimli.meta_gradient(**of_task(made, t), val_weights=LAST_TWO) for t in range(T)]
    for name in ("A_opt", "A_loss", "B_0"):
        expected = {k: sum(getattr(one, name)[k] for one in alone) for k in getattr(together, name)}
        torch.testing.assert_close(getattr(together, name), expected, rtol=1e-12, atol=1e-14)
    if loss is telling:
        for name in ("train_aux", "val_aux"):
            for k, found in getattr(together, name).items():
                expected = torch.stack([getattr(one, name)[k] for one in alone], 1)
                torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


def test_aux_comes_back_by_step_detached_and_changes_nothing() -> None:
    made = of_task(given(telling, telling), 0)
    result = gimli.meta_gradient(**made, val_weights=LAST_TWO)
    bare = {**made, "problem": gimli.Problem(plain, plain, SGD(momentum=0.5))}
    without = gimli.meta_gradient(**bare, val_weights=LAST_TWO)
    agree(result, without, rtol=0, atol=0)
    assert (without.train_aux, without.val_aux) == (None, None)
    assert {k: v.shape for k, v in result.train_aux.items()} == {
        "largest": (J,),
        "x": (J, 5),
        "right": (J,),
        "one": (J,),
    }
    assert result.val_aux["x"].shape == (2, 5)
    assert result.train_aux["right"].dtype == torch.int64
    torch.testing.assert_close(result.train_aux["x"][0], made["theta_0"]["a"] * made["train_batches"][0])
    torch.testing.assert_close(result.val_aux["x"][-1], result.theta_J["a"] * made["val_batch"](J))
    assert not any(v.requires_grad for v in result.train_aux.values())
    _, trajectory = gimli.unroll(**made, with_trajectory=True)
    assert torch.equal(trajectory.train_aux["x"], result.train_aux["x"])


def test_a_loss_that_vmap_cannot_do_gives_its_aux_too(caplog: pytest.LogCaptureFixture) -> None:
    def branching(theta: Tensors, phi: Tensors, batch: Tensor) -> Any:
        loss, aux = telling(theta, phi, batch)
        return (loss, aux) if loss > 0 else (-loss, aux)

    made = given(branching, branching)
    result = gimli.meta_gradient(**made, tasks=T)
    assert "one task after the other" in said(caplog)
    alone = gimli.meta_gradient(**of_task(made, 1))
    torch.testing.assert_close(result.train_aux["x"][:, 1], alone.train_aux["x"])


def test_aux_of_another_form_is_refused_at_its_step() -> None:
    def growing(theta: Tensors, phi: Tensors, batch: Tensor, j: Tensor) -> Any:
        return plain(theta, phi, batch), {"seen": batch[: j + 1]}

    def changing(theta: Tensors, phi: Tensors, batch: Tensor, j: Tensor) -> Any:
        return plain(theta, phi, batch), {"seen": j} if j < 2 else {"other": j}

    for loss, came in ((growing, r"float64 \[2\]"), (changing, "other")):
        with pytest.raises(ArgumentError, match=f"the aux of train_loss, at inner step j = .*expected.*got.*{came}"):
            gimli.meta_gradient(**of_task(given(loss, plain), 0))


def test_what_is_no_pair_and_no_tensor_is_refused() -> None:
    for returned, message in (
        (lambda loss: (loss, 1, 2), r"to return loss or \(loss, aux\); got a tuple of 3"),
        (
            lambda loss: (loss, {"name": "x"}),
            "the aux of train_loss: expected tensors and numbers in nested dicts; got a str",
        ),
    ):
        with pytest.raises(ArgumentError, match=message):
            gimli.meta_gradient(**of_task(given(lambda *a, r=returned: r(plain(*a)), plain), 0))


def test_a_journal_and_aux_exclude_each_other(tmp_path: Any) -> None:
    with pytest.raises(ArgumentError, match="losses without aux"):
        gimli.meta_gradient(**of_task(given(telling, plain), 0), resume=tmp_path / "run")


def test_an_object_that_can_be_called_is_a_batch() -> None:
    net = torch.nn.Linear(5, 5, dtype=torch.float64)

    def through(theta: Tensors, phi: Tensors, batch: Any) -> Tensor:
        return plain(theta, phi, batch(torch.ones(5)).detach() if callable(batch) else batch)

    made = {**of_task(given(through, through), 0), "val_batch": net}
    assert torch.isfinite(gimli.meta_gradient(**made).val_loss)


def test_where_a_val_batch_fails_the_step_is_named() -> None:
    made = of_task(given(plain, plain), 0)
    with pytest.raises(ZeroDivisionError) as error:
        gimli.meta_gradient(**{**made, "val_batch": lambda j: 1 // 0})
    assert "in val_batch, at inner step j = 4 of 4" in error.value.__notes__


@compiler
@pytest.mark.long
@pytest.mark.parametrize("kind", ["steps", "whole"])
@pytest.mark.parametrize("tasks", [None, T])
def test_compiled(kind: str, tasks: int | None, caplog: pytest.LogCaptureFixture) -> None:
    made = given(weighed, weighed, Adam(eps=0.1))
    made = made if tasks else of_task(made, 0)
    compiled, eager = (
        gimli.meta_gradient(**made, tasks=tasks, val_weights=LAST_TWO, compile=how) for how in (kind, False)
    )
    assert "compiled in" in said(caplog)
    assert "eager" not in said(caplog)
    agree(compiled, eager)


def test_a_problem_with_aux_is_not_compiled_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    made = of_task(given(telling, plain), 0)
    found, eager = (gimli.meta_gradient(**made, compile=how) for how in (True, False))
    assert "not compiled: 'train_loss' return (loss, aux)" in said(caplog)
    assert_same(found, eager)
