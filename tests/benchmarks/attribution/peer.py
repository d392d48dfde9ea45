"""bergson, as its own command line calls it: training with checkpoints on disk, then one sweep for each query.

Where it is not installed its method stands in, written plainly in torch (plain.py), and the table says so. Its package
wants torchvision and torchaudio, which it does not use: without them it imports beside a torch that they do not fit.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks.attribution.plain import by_stored_states
from tests.benchmarks.attribution.training import BETAS, DECAY, EPS, LR, N, Training

__all__ = ["name", "scores"]


def name() -> str:
    """Who stands in the table, with the reason where it is a stand-in."""
    why = _missing()
    return "bergson" if why is None else f"its method written plainly (bergson does not import: {why})"


def _missing() -> str | None:
    try:
        with _silent():
            import bergson.magic.trainer  # noqa: F401
    except Exception as error:  # a package that does not fit raises what it likes
        return f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__
    return None


@contextlib.contextmanager
def _silent() -> Any:
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def scores(work: Training, parts: int = 1) -> Callable[[], Tensor]:
    """A function that gives [k, N]; `parts`: micro-batches of a step, for bergson alone."""
    if _missing() is not None:
        if parts > 1:
            raise LookupError("micro-batches are measured of bergson itself")
        return lambda: by_stored_states(work)
    return lambda: _bergson(work, parts)


class _Model(nn.Module):
    """The transformer as bergson calls a model."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_ids: Tensor, labels: Tensor, example_weight: Tensor | None = None, **_: Any) -> Tensor:
        from bergson.utils.math import weighted_causal_lm_ce

        loss: Tensor = weighted_causal_lm_ce(self.net(input_ids), labels, example_weight=example_weight)
        return loss


class _Stream:
    """bergson's DataStream over tensors that are ready."""

    def __init__(self, work: Training) -> None:
        self.work, self.device = work, torch.device("cpu")
        self.weights = nn.Parameter(torch.ones(N, dtype=next(work.net.parameters()).dtype))

    def __len__(self) -> int:
        return self.work.steps

    def __getitem__(self, j: int) -> dict[str, Any]:
        batch = self.work.batch(j)
        text = batch["text"]
        return {"input_ids": text, "labels": text, "example_weight": self.weights[batch["rows"]]}

    @property
    def requires_grad(self) -> bool:
        return self.weights.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.weights.requires_grad = value


def _bergson(work: Training, parts: int) -> Tensor:
    import copy

    import torchopt
    from bergson.magic.trainer import BackwardState, Trainer

    rule = torchopt.adamw(LR, betas=BETAS, eps=EPS, eps_root=work.eps_root, weight_decay=DECAY)
    model, stream, rows = _Model(copy.deepcopy(work.net)), _Stream(work), []
    options: dict[str, Any] = {"inplace": True, "grad_accum_steps": parts}
    with tempfile.TemporaryDirectory() as folder, _silent():
        trainer, state = Trainer.initialize(model, rule)
        stream.requires_grad = False
        state = trainer.train(state, stream, save_dir=folder, save_mode="sqrt", **options)
        end = state.to("cpu").detach_()
        saved = set(os.listdir(folder))
        for q in range(work.queries):
            state.detach_()
            state.copy_(end)
            text = work.asked[q : q + 1]
            with state.activate(model) as theta:
                L = model(text, text)
                B = dict(zip(theta, torch.autograd.grad(L, list(theta.values())), strict=True))
            state.detach_()
            stream.requires_grad, stream.weights.grad = True, None
            S = [torch.zeros_like(x) for x in state.differentiable_tensors()[len(B) :]]
            begun = BackwardState(B, S, torch.zeros_like(stream.weights))
            swept = trainer.backward(folder, stream, begun, state, cleanup=False, save_mode="sqrt", **options)
            rows.append(swept.weight_grads.detach().clone())
            for left in set(os.listdir(folder)) - saved:
                path = os.path.join(folder, left)
                if os.path.isfile(path):
                    os.remove(path)
    return torch.stack(rows)
