"""Line 16 and the loop around it: draw, estimate the meta-gradient, step, look how far it is, note it, again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gimli_core.errors import NotFiniteError, check_switch, listing, unexpected
from gimli_core.evaluation.evaluate import Evaluation
from gimli_core.outer_loop.checks import (
    check_estimator,
    check_evaluation,
    check_meta_optimizer,
    check_number,
    check_rich,
    check_scheduler,
    check_tasks,
)
from gimli_core.outer_loop.early_stopping import EarlyStopping, Stopping
from gimli_core.outer_loop.estimator import Estimator
from gimli_core.outer_loop.evaluation import evaluated, number_of
from gimli_core.outer_loop.identity import identity_of
from gimli_core.outer_loop.log import Record
from gimli_core.outer_loop.picture import plot
from gimli_core.outer_loop.progress import shown
from gimli_core.outer_loop.randomness import STEP, check_seed, generators, put_back, seed_at
from gimli_core.outer_loop.run_files import RunFiles

__all__ = ["OuterLoop"]


class OuterLoop:
    """Learns an estimator's phi with an optimizer of torch.

        phi <- phi - meta_optimizer(dL/dphi)          line 16, `steps` times

    With `out` the run survives its process: killed at any moment, by whatever, the same command goes on where the last
    checkpoint was, to the same bits. A run that has ended is not run again: what it has learned is put into phi.

    Args:
        estimator: what leaves dL/dphi in `.grad`: `gimli.Unrolled(…)`, or another `gimli.Estimator`.
        tasks: what an outer step works on: a function of the step's number, such as a `gimli.TaskSampler`, or a
            sequence that is gone through again and again.
        meta_optimizer: a `torch.optim.Optimizer` of phi's tensors.
        steps: how many outer steps.
        scheduler: a scheduler of `torch.optim.lr_scheduler`, stepped after each outer step; `ReduceLROnPlateau` with
            the step's loss.
        clip: the largest norm of the whole gradient; a longer one is scaled down to it.
        evaluate: a function of the outer step that returns a number, a dict of numbers, or what `gimli.evaluate`
            returns, of which the means are taken. What it draws leaves the
            random numbers of the training as they are.
        evaluate_every: outer steps between two evaluations; there is one after the last step too. 1 by default.
        early_stopping: a `gimli.EarlyStopping`.
        seed: sets the global random numbers anew at every step, by the step alone. None leaves them alone; a checkpoint
            carries their state.
        out: a directory for the run's files: `checkpoint`, `log.jsonl` and, where TensorBoard is installed,
            `tensorboard/`.
        checkpoint_every: seconds between two checkpoints; 0 for one after every step.
        tensorboard: False to leave TensorBoard's files out.
        progress: show a bar with the time left on standard error. Needs rich.

    Raises:
        ArgumentError: what cannot be an outer loop; when it is run, a directory of another one.
        NotFiniteError: a gradient that is not finite, before phi is touched.
        StorageError: no room, or a file that is not as it was written.

    Cost: a checkpoint writes phi, the state of the optimizer and the best phi so far.
    Source: Grefenstette et al. 2019, Algorithm 1.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, target):
    ...     return ((theta["w"] - target) ** 2).sum() / 2
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD())
    >>> phi = {"log_lr": torch.tensor(-2.0, requires_grad=True)}
    >>> def inner(phi, target):
    ...     rate = phi["log_lr"].exp()
    ...     return {"theta_0": {"w": torch.zeros(2)}, "train_batches": [target] * 3, "val_batch": target,
    ...             "phi_opt": {"lr": rate}}
    >>> estimator = gimli.Unrolled(problem, phi, inner)
    >>> meta_optimizer = torch.optim.Adam(phi.values(), lr=0.1)
    >>> records = gimli.OuterLoop(estimator, [torch.ones(2)], meta_optimizer, steps=20).run()
    >>> records[0]["val_loss"] > 20 * records[-1]["val_loss"]        # a rate of 1 ends at the target
    True
    """

    def __init__(
        self,
        estimator: Estimator,
        tasks: Sequence[Any] | Callable[[int], Any],
        meta_optimizer: torch.optim.Optimizer,
        *,
        steps: int,
        scheduler: Any = None,
        clip: float | None = None,
        evaluate: Callable[[int], float | Mapping[str, float] | Evaluation] | None = None,
        evaluate_every: int | None = None,
        early_stopping: EarlyStopping | None = None,
        seed: int | None = None,
        out: str | Path | None = None,
        checkpoint_every: float = 30.0,
        tensorboard: bool = True,
        progress: bool = False,
    ) -> None:
        self.phi = check_estimator(estimator)
        self._draw = check_tasks(tasks)
        check_meta_optimizer(meta_optimizer, self.phi)
        check_scheduler(scheduler, meta_optimizer)
        check_evaluation(evaluate, evaluate_every, early_stopping)
        check_number("steps", steps, 0)
        check_number("checkpoint_every", checkpoint_every, 0, integral=False)
        if clip is not None:
            check_number("clip", clip, 0, integral=False)
        if seed is not None:
            check_seed(seed)
        check_switch("tensorboard", tensorboard)
        check_switch("progress", progress)
        check_rich(progress)
        self.estimator, self.meta_optimizer, self.scheduler = estimator, meta_optimizer, scheduler
        self.steps, self.clip, self.evaluate, self.evaluate_every = steps, clip, evaluate, evaluate_every or 1
        self.early_stopping, self.seed = early_stopping, seed
        self.tensorboard, self.progress = tensorboard, progress
        self.out, self.checkpoint_every = None if out is None else Path(out), checkpoint_every
        self.step = 0  # outer steps that are done
        self.stopping = Stopping()
        self.history: list[Record] = []  # a record of each outer step
        self._learned = [leaf for leaf in self.phi.values() if leaf.requires_grad]
        self._device = self._learned[0].device
        options = {"seed": seed, "clip": clip, "early_stopping": early_stopping}
        self._identity = identity_of(estimator, meta_optimizer, scheduler, options)

    def run(self) -> list[Record]:
        """Take the outer steps that are left; the records of all, those of a run that is taken up included."""
        for _ in self:
            pass
        return self.history

    def __iter__(self) -> Iterator[Record]:
        """Take the outer steps that are left, one record at a time. A loop that is left writes a checkpoint."""
        with ExitStack() as around:
            files, show = None, None
            if self.out is not None:
                files = RunFiles(self.out, self._identity, self.checkpoint_every, self.tensorboard, self)
                around.enter_context(files)
                self.history = files.records
            if self.progress:
                show = around.enter_context(shown(self.step, self.steps))
            while not self.ended:
                record = self._take_step()
                self.history.append(record) if files is None else files.note(record)
                if show is not None:
                    show(record)
                yield record
        if self.early_stopping is not None and self.stopping.phi is not None:
            self._put(self.stopping.phi)

    def plot(self, path: str | Path) -> None:
        """Draw the history: one panel a quantity, over outer steps. Needs matplotlib."""
        plot(self.history, path)

    @property
    def ended(self) -> bool:
        """Whether no outer step is left."""
        stopped = self.early_stopping is not None and self.stopping.since >= self.early_stopping.patience
        return self.step >= self.steps or stopped

    def state_dict(self) -> dict[str, Any]:
        """All that decides how the loop goes on."""
        return {
            "step": self.step,
            "phi": {name: leaf.detach() for name, leaf in self.phi.items()},
            "meta_optimizer": self.meta_optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "estimator": self.estimator.state_dict() if hasattr(self.estimator, "state_dict") else None,
            "stopping": dict(vars(self.stopping)),
            "generators": generators(self._device),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a loop of the same arguments was."""
        self._put(state["phi"])
        self.meta_optimizer.load_state_dict(state["meta_optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if hasattr(self.estimator, "load_state_dict"):
            self.estimator.load_state_dict(state["estimator"])
        self.step, self.stopping = state["step"], Stopping(**state["stopping"])
        put_back(state["generators"], self._device)

    def _take_step(self) -> Record:
        start = time.perf_counter()
        if self.seed is not None:
            seed_at(self.seed, STEP, self.step)
        drawn = self._draw(self.step // getattr(self.estimator, "draws_last", 1))
        self.meta_optimizer.zero_grad()
        val_loss = number_of(self.estimator(drawn).val_loss)
        norm = self._clipped()
        rates = [number_of(group["lr"]) for group in self.meta_optimizer.param_groups if "lr" in group]
        self.meta_optimizer.step()  # line 16
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(math.inf if val_loss is None else val_loss)
        elif self.scheduler is not None:
            self.scheduler.step()
        self.step += 1
        record: Record = {"step": self.step, "val_loss": val_loss, "gradient_norm": norm, "lr": rates}
        if self.evaluate is not None and (self.step % self.evaluate_every == 0 or self.step == self.steps):
            record["evaluation"] = self._evaluated()
        return {**record, "seconds": round(time.perf_counter() - start, 4)}

    def _clipped(self) -> float:
        """The norm of the whole gradient, which is clipped. Raises before phi is touched."""
        gradients = [leaf.grad for leaf in self._learned if leaf.grad is not None]
        if not gradients:
            expected = "a gradient in .grad of at least one parameter"
            raise unexpected("estimator(drawn)", expected, "none", "See gimli.Estimator.")
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            broken = [name for name, p in self.phi.items() if p.grad is not None and not p.grad.isfinite().all()]
            raise NotFiniteError(
                f"outer step {self.step}: expected a finite gradient; got one that is not, for {listing(broken)}. "
                "phi is as it was before this step. Try fewer inner steps or smaller inner rates; gimli.AdjointNorms() "
                "shows where it grows."
            )
        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self._learned, self.clip, norm)
        return norm.item()

    def _evaluated(self) -> dict[str, float | None]:
        """The evaluation after this step, which early stopping looks at."""
        assert self.evaluate is not None
        evaluation = evaluated(self.evaluate, self.step, self.seed, self._device)
        if self.early_stopping is not None:
            value = self.early_stopping.value(evaluation)
            self.stopping = self.stopping.after(self.early_stopping, value, self.step, self.phi)
        return evaluation

    def _put(self, phi: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in phi.items():
                self.phi[name].copy_(value)
