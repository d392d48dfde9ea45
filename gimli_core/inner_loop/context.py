"""The context in which an inner loop is written, and at whose end all of it is released."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from gimli_core.errors import listing, unexpected
from gimli_core.inner_loop.optim import DifferentiableOptimizer, get_diff_optim
from gimli_core.inner_loop.options import Override
from gimli_core.inner_loop.patch import FunctionalModule, monkeypatch

__all__ = ["innerloop_ctx"]


@contextmanager
def innerloop_ctx(
    model: nn.Module,
    opt: torch.optim.Optimizer,
    device: torch.device | str | None = None,
    copy_initial_weights: bool = True,
    override: Override | None = None,
    track_higher_grads: bool = True,
) -> Iterator[tuple[FunctionalModule, DifferentiableOptimizer]]:
    """A functional module and a differentiable optimizer, made from a live pair that is left as it is.

    Args:
        model, device, copy_initial_weights: as in `monkeypatch`.
        opt, override: as in `get_diff_optim`; the optimizer may hold some of the model's parameters only.
        track_higher_grads: as in both.

    Yields:
        (fmodel, diffopt): compute an inner loss with `fmodel`, pass it to `diffopt.step`, again and again; then compute
        an outer loss with `fmodel`, and differentiate it.

    Raises:
        ArgumentError: what these two raise; and a parameter that requires grad, is in no group, and is copied: it would
            neither be trained here nor have its gradient arrive anywhere.

    Cost: a step takes 3F forwards and 6F backwards, and keeps the graph of its gradient, as `memory=RetainGraphs()`
    does. At the end of the context the fast weights lose their history; an outer loss still in hand keeps
    what it needs.

    >>> import torch, gimli_core.inner_loop as inner_loop
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> x = torch.ones(1)
    >>> opt = torch.optim.SGD(model.parameters(), lr=0.25)
    >>> with inner_loop.innerloop_ctx(model, opt, copy_initial_weights=False) as (fmodel, diffopt):
    ...     for _ in range(2):
    ...         _ = diffopt.step(((fmodel(x) - 1) ** 2).sum())
    ...     ((fmodel(x) - 1) ** 2).sum().backward()
    >>> model.weight.grad      # 1 - w_2 = (1 - w_0) / 4, so dL/dw_0 = -2 (1 - w_0) / 16
    tensor([[-0.1250]])
    """
    fmodel = monkeypatch(
        model, device, copy_initial_weights=copy_initial_weights, track_higher_grads=track_higher_grads
    )
    diffopt = get_diff_optim(
        opt, model.parameters(), fmodel=fmodel, device=device, override=override, track_higher_grads=track_higher_grads
    )
    if copy_initial_weights and track_higher_grads:
        _check_all_used(model, opt)
    try:
        yield fmodel, diffopt
    finally:
        diffopt.close()
        fmodel._fast_weights.close()


def _check_all_used(model: nn.Module, opt: torch.optim.Optimizer) -> None:
    grouped = {id(p) for group in opt.param_groups for p in group["params"]}
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in grouped]
    if missing:
        raise unexpected(
            "opt",
            "every parameter that requires grad in one of the groups",
            f"none with {listing(missing)}",
            "Add them to a group, freeze them with requires_grad_(False), or pass copy_initial_weights=False to "
            "have their gradients arrive at the model.",
        )
