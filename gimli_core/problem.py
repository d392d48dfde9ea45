"""The problem that Algorithm 1 is run on: two losses and an optimizer.

The symbols are those of notation.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from gimli_core.errors import kind_of, unexpected
from gimli_core.notation import Loss
from gimli_core.optimizers.interface import Optimizer
from gimli_core.outlines import ByOutline

__all__ = ["Memo", "Patience", "Problem"]


@dataclass(frozen=True, eq=False)
class Problem:
    """An inner optimisation and the validation loss at its end.

        theta_{j+1}, s_{j+1} = opt(theta_j, s_j, phi_opt, grad ell(theta_j, phi_loss, batch_j))

    Args:
        train_loss: `(theta, phi_loss, batch) -> scalar tensor`, the inner loss ell. `theta` and
            `phi_loss` are flat dicts of tensors; `batch` is whatever `train_batches` holds.
        val_loss: likewise, the validation loss L_val, or a vector `[k]` of several outer losses.
            A loss with a fourth argument called `j` is handed the number of the inner step (of theta_j, for L_val), an
            integer tensor. A loss may return `(scalar, aux)`: aux, tensors and numbers in nested dicts, comes back by
            step (and task), detached, as `result.train_aux` and `result.val_aux`. Such a problem runs eager.
        optimizer: one of `gimli.optimizers`, or your own `Optimizer`.
        modules: the `nn.Module`s whose buffers (BatchNorm statistics, say) the losses use. By
            default they are found in the losses' closures, globals, arguments and attributes.

    Raises:
        ArgumentError: a loss that cannot be called, something that is not an optimizer.

    >>> import torch, gimli_core as gimli
    >>> def loss(theta, phi, batch):
    ...     return ((theta["w"] - batch) ** 2).sum()
    >>> problem = gimli.Problem(loss, loss, gimli.optimizers.SGD(lr=0.25))
    >>> result = gimli.meta_gradient(problem, {"w": torch.zeros(1)}, [torch.ones(1)], torch.ones(1))
    >>> result.B_0["w"]       # theta_1 = (theta_0 + 1) / 2, so dL/dtheta_0 = 2 (theta_1 - 1) / 2
    tensor([-0.5000])
    """

    train_loss: Loss
    val_loss: Loss
    optimizer: Optimizer
    modules: Sequence[nn.Module] | None = None
    memo: Memo = field(init=False, repr=False, default_factory=lambda: Memo())

    def __post_init__(self) -> None:
        for name in ("train_loss", "val_loss"):
            loss = getattr(self, name)
            if not callable(loss):
                raise unexpected(
                    name,
                    "a function (theta, phi_loss, batch) -> scalar tensor",
                    type(loss).__name__,
                    "Pass the function itself.",
                )
        if not isinstance(self.optimizer, Optimizer):
            kind = type(self.optimizer)
            actual, do = (
                f"{kind.__module__}.{kind.__qualname__}",
                "Construct one without parameters: theta_0 goes to meta_gradient.",
            )
            if isinstance(self.optimizer, type):
                actual, do = f"the class {self.optimizer.__name__}", f"Construct it: {self.optimizer.__name__}(...)."
            raise unexpected(
                "optimizer",
                "an optimizer of gimli_core, such as gimli.optimizers.Adam(lr=1e-3)",
                actual,
                do,
            )
        if self.modules is not None:
            actual = type(self.modules).__name__
            if isinstance(self.modules, nn.Module) or not isinstance(self.modules, Sequence):
                raise unexpected("modules", "a list of nn.Modules", actual, "One module alone is a list of one: [net].")
            if not all(isinstance(module, nn.Module) for module in self.modules):
                raise unexpected(
                    "modules",
                    "a list of nn.Modules",
                    f"{kind_of(self.modules)} with something else in it",
                    "Pass the modules themselves.",
                )


@dataclass(eq=False)
class Memo:
    """What has been found out about a problem, or made for it, once: it goes when the problem goes.

    A problem stays what it is; nothing here changes what a call returns, only what it takes.
    """

    forms: dict[Any, Problem] = field(default_factory=dict)  # the problem in other forms, by transform
    numbered: tuple[Problem | None, bool, bool] | None = None  # whose losses find j in their batch, which of them do
    examined: dict[Any, Any] = field(default_factory=dict)  # what the requirements' test found, for names and shapes
    tasks_apart: bool = False  # whether a loss changes buffers or puts work off, so that tasks are run one at a time
    told: set[str] = field(default_factory=set)  # notices that were given
    costs: ByOutline[Any] = field(default_factory=ByOutline)  # measured costs
    outer_losses: ByOutline[tuple[int, ...]] = field(default_factory=ByOutline)  # (k,), or () of a number
    compiled: ByOutline[Any] = field(default_factory=ByOutline)  # compiled functions, or why there is none
    changing: dict[Any, Any] = field(default_factory=dict)  # why batches do not go with what was compiled, by code
    operations: ByOutline[int] = field(default_factory=ByOutline)  # of a step
    patience: Patience = field(default_factory=lambda: Patience())  # the same one for all forms of a problem
    recalled: dict[Any, Any] = field(default_factory=dict)  # what a call of the same look takes over
    by_name: bool = False  # whether tensors must stay apart: a step left one of them alone

    def __reduce__(self) -> tuple[type[Memo], tuple[()]]:
        """A copied problem, or one that was sent to another process, has everything before it."""
        return Memo, ()


@dataclass(eq=False)
class Patience:
    """What `compile="auto"` goes by."""

    eager_seconds: float = 0.0  # processor time that eager runs have taken since something was last compiled for them
    last_seconds: float = 0.0  # that the last half of a run has taken
    attempt: Any = None  # to compile beside the runs
    refused: bool = False  # whether one has failed: none is made again
