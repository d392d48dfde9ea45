"""What an outer loop asks of whatever estimates a meta-gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

__all__ = ["Estimator"]


class Estimator(Protocol):
    """Two methods. A few-shot method without an inner loop is one just as `gimli.Unrolled` is.

    Besides, where an estimator has them, an outer loop uses

        draws_last: int          outer steps that are taken on what was drawn once; 1 without it
        state_dict()             what it goes on with besides its parameters: nested dicts, lists, tensors, numbers
        load_state_dict(state)   takes such a state up again; checkpoints carry it

    and what its `repr` says of it: a checkpoint is not taken up by an estimator that says something else.

    >>> import torch, gimli_core as gimli
    >>> class Mean:
    ...     '''Learns the mean of what is drawn.'''
    ...     def __init__(self):
    ...         self.mean = torch.zeros(1, requires_grad=True)
    ...     def parameters(self):
    ...         return {"mean": self.mean}
    ...     def __call__(self, drawn):
    ...         self.val_loss = ((self.mean - drawn) ** 2).sum()
    ...         self.val_loss.backward()
    ...         return self
    ...     def __repr__(self):
    ...         return "Mean()"
    >>> mean = Mean()
    >>> loop = gimli.OuterLoop(mean, [torch.ones(1)], torch.optim.SGD([mean.mean], lr=0.5), steps=1)
    >>> _ = loop.run()
    >>> mean.mean
    tensor([1.], requires_grad=True)
    """

    def parameters(self) -> Mapping[str, Tensor]:
        """phi: what is learned, by name. Leaves of autograd's graph; those that do not require grad are left alone."""

    def __call__(self, drawn: Any) -> Any:
        """Add the gradient of each parameter to its `.grad`; a result whose `val_loss` is the loss that was met.

        `drawn` is what the tasks or batches of the outer loop gave for this outer step.
        """
