"""mesh="tasks": the same bits for any number of ranks, on every rank, and as the engine alone has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn import functional as F

import gimli_core as gimli
from gimli_core.memory import Checkpoint, RetainGraphs, StoreStates
from gimli_core.optimizers import SGD, Adagrad, Adam
from gimli_core.processes.collectives import counting
from gimli_core.trees import tensors
from tests.processes.launching import results_on_ranks

T, J = 5, 4
RULES = [(SGD(momentum=0.5), {"lr": 0.1, "momentum": 0.5}), (Adam(), {"lr": 0.05}), (Adagrad(), {"lr": 0.2})]


def net(theta: Any, x: torch.Tensor, dropout: float) -> torch.Tensor:
    return F.dropout(torch.tanh(x @ theta["a"]), dropout) @ theta["b"]


def arguments(dropout: float = 0.0) -> tuple[Any, ...]:
    """(losses, theta_0, batches, val_batch, phi_loss) of T tasks."""
    g = torch.Generator().manual_seed(0)

    def loss(theta: Any, phi: Any, batch: Any) -> torch.Tensor:
        x, y = batch
        decay = phi["log_l2"].exp() * sum((v**2).sum() for v in theta.values())
        return ((net(theta, x, dropout) - y) ** 2).mean() + decay

    def val_loss(theta: Any, phi: Any, batch: Any) -> torch.Tensor:
        return ((net(theta, batch[0], 0.0) - batch[1]) ** 2).mean()

    theta_0 = {"a": torch.randn(3, 4, generator=g), "b": torch.randn(4, 1, generator=g)}
    data = [(torch.randn(T, 6, 3, generator=g), torch.randn(T, 6, 1, generator=g)) for _ in range(J + 1)]
    return loss, val_loss, theta_0, data[:J], data[J], {"log_l2": torch.tensor(-3.0)}


def every_case(mesh: str | None, chunk: int | None = None) -> list[gimli.MetaGradient]:
    """Every rule with and without dropout, and one of them under every schedule."""
    results = []
    for dropout in (0.0, 0.5):
        loss, val_loss, theta_0, batches, val_batch, phi_loss = arguments(dropout)
        for rule, phi_opt in RULES:
            problem = gimli.Problem(loss, val_loss, rule)
            for memory in (None, RetainGraphs(), StoreStates(), Checkpoint(2)) if isinstance(rule, Adam) else (None,):
                torch.manual_seed(7)
                results.append(
                    gimli.meta_gradient(
                        problem,
                        theta_0,
                        batches,
                        val_batch,
                        phi_opt={k: torch.tensor(v) for k, v in phi_opt.items()},
                        phi_loss=phi_loss,
                        tasks=gimli.Tasks(T, chunk=chunk),
                        memory=memory,
                        mesh=mesh,
                    )
                )
    return results


def cases_and_messages(chunk: int | None) -> tuple[Any, ...]:
    with counting() as sent:
        results = every_case("tasks", chunk)
    distributed.barrier()
    return [result.state_dict() for result in results], [message.operation for message in sent]


def same_bits(found: Any, expected: Any) -> None:
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_any_number_of_ranks_gives_the_same_bits_on_every_rank(tmp_path: Path) -> None:
    first = None
    for size in (1, 2, 3):
        for results, messages in results_on_ranks(size, cases_and_messages, None, directory=tmp_path / str(size)):
            assert messages == [*["all_gather_object"] * 3, "all_gather"] * len(results)
            first = first or results
            same_bits(results, first)


def test_without_dropout_it_is_what_one_process_computes(tmp_path: Path) -> None:
    (ranks, _), *_ = results_on_ranks(2, cases_and_messages, 2, directory=tmp_path)
    alone = [result.state_dict() for result in every_case(None, 2)]
    half = len(alone) // 2
    same_bits(ranks[:half], alone[:half])
