"""A budget is kept, by the allocator's own count: on the device alone, and with the machine's memory as second tier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import gimli_core as gimli
from gimli_core.memory.meters import LiveBytes
from gimli_core.memory.schedules.sizes import show_size
from tests.compare import identical
from tests.device.check import Check, Where, deterministic
from tests.device.schedules import second_tier

STEPS, WIDTH, BATCH = 20, 256, 64


def arguments(where: Where) -> dict[str, Any]:
    """Three layers under Adam, with a rate a tensor."""
    torch.manual_seed(0)
    width = WIDTH // 4 if where.quick else WIDTH
    sizes = ((width, width), (width, width), (width, 10))
    theta_0 = {f"w{i}": torch.randn(*s, dtype=torch.float32) / s[0] ** 0.5 for i, s in enumerate(sizes)}
    x, y = torch.randn(4, BATCH, width, dtype=torch.float32), torch.randint(10, (4, BATCH))

    def loss(theta: dict[str, torch.Tensor], phi: dict[str, torch.Tensor], batch: Any) -> torch.Tensor:
        hidden = torch.tanh(torch.tanh(batch[0] @ theta["w0"]) @ theta["w1"])
        return torch.nn.functional.cross_entropy(hidden @ theta["w2"], batch[1])

    x, y, theta_0 = where.put((x, y, theta_0))
    return {
        "problem": gimli.Problem(loss, loss, gimli.optimizers.Adam()),
        "theta_0": theta_0,
        "train_batches": lambda j: (x[j % 3], y[j % 3]),
        "val_batch": (x[3], y[3]),
        "steps": STEPS,
        "phi_opt": {"lr": {k: torch.tensor(1e-3) for k in theta_0}},
    }


def peak(where: Where, run: Callable[[], Any]) -> tuple[Any, int]:
    """What a run returns, and the bytes that it adds at its highest: the allocator's count, or of tensors on a CPU."""
    if not where.cuda:
        with LiveBytes() as meter:
            result = run()
        return result, meter.peak
    torch.cuda.synchronize()
    base = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = run()
    torch.cuda.synchronize()
    return result, torch.cuda.max_memory_allocated() - base


def checks(where: Where) -> Iterator[Check]:
    made = {**arguments(where), "compile": False}
    with deterministic():
        expected = gimli.meta_gradient(**made).A_opt["lr"]
        for disk in (None, second_tier()):
            plan = gimli.plan(**made)  # measures, so that the run does not
            least, most = plan.least, plan.least * 8
            for i in range(2 if where.quick else 4):
                size = int(least * 1.05 * (most / least) ** (i / 3))
                budget = gimli.memory.Budget(size, disk)
                result, bytes_ = peak(where, lambda budget=budget: gimli.meta_gradient(**made, memory=budget))
                same = identical(result.A_opt["lr"], expected)
                said = f"{show_size(bytes_)}, {bytes_ / size:.2f} of it" + ("" if same else "; OTHER BITS")
                name = f"{show_size(size)}{'' if disk is None else f' and {disk}'}"
                yield Check(name, same and bytes_ <= size, said)
