"""The run that an intervention was made in, once more without it: what stands beside the changed one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import Tensor

from gimli_core.step_through.page.experiments import surroundings
from gimli_core.step_through.page.summaries import norm, number, total
from gimli_core.step_through.walk import Walk

__all__ = ["record_unchanged"]


def record_unchanged(walk: Walk) -> dict[str, Any] | None:
    """L_val, ‖B_j‖ for j = 0 … J and the meta-gradient's parts, by label, of the call of `walk`; nothing for a run
    that fails. Parts that are one number are that number, of others the norm. Generators and buffers stay as they are.

    Cost: one run.
    """
    with surroundings(walk).trial(), suppress(Exception):
        run = Walk(replace(walk.call, resume=None, check=False))
        B: dict[int, float | str] = {}
        A_opt: Sequence[Tensor] = ()
        for moment in run:
            if moment.line == 8:
                A_opt = moment.values["A_opt"]  # the engine adds to these
            elif moment.line in (9, 14):
                B[moment.j] = number(total([norm(t) for t in moment.values["B"].values()]))
        leaves = run.inputs.values.hyper.leaves
        A = {leaf.label: value for leaf, value in zip(leaves, A_opt, strict=True)}
        A |= {f"phi_loss[{k!r}]": t for k, t in run.result.A_loss.items()}
        return {
            "val": number(run.result.val_loss.item()),
            "A": {k: number(t.item() if t.numel() == 1 else norm(t)) for k, t in A.items()},
            "B": [B.get(j) for j in range(run.inputs.form.steps + 1)],
        }
    return None
