"""The peers in torch. Each is a function of a workload that gives a function to time, which gives the meta-gradient.

autograd   back-propagation through a plain unroll, losses of all tasks under one vmap
func       torch.func throughout: vmap over tasks of grad through an unroll of grads
higher     as its users write it: per task, innerloop_ctx with second-order steps
torchopt   its functional optimizers, per task
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.benchmarks import mnist_mlp
from tests.benchmarks.speed import rules
from tests.benchmarks.speed.workloads import OBJECTIVES, Batch, Workload

Run = Callable[[], dict[str, Tensor]]


def named(meta: dict[str, Any]) -> dict[str, Any]:
    """{"lr": {"w": …}} as {"lr.w": …}."""
    flat = {}
    for group, value in meta.items():
        flat |= {f"{group}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {group: value}
    return flat


def with_leaves(work: Workload) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The workload's arguments with fresh leaves in place of what is differentiated, and those leaves by name."""
    meta = pytree.tree_map(lambda v: v.detach().clone().requires_grad_(), work.meta)
    return {"theta_0": work.theta_0, "lr": work.lr, "phi_loss": work.phi_loss, **meta}, named(meta)


def gradient_of(loss: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def of_all_tasks(work: Workload, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The sum of a loss over the tasks, if there are any."""
    if not work.tasks:
        return loss
    mapped = torch.vmap(loss, (0, None, 0))
    return lambda theta, phi_loss, batch: mapped(theta, phi_loss, batch).sum()


def autograd(work: Workload) -> Run:
    train_loss, val_loss = of_all_tasks(work, work.train_loss), of_all_tasks(work, work.val_loss)

    def run() -> dict[str, Tensor]:
        given, leaves = with_leaves(work)
        theta = given["theta_0"]
        if work.tasks:
            theta = {k: v.expand(work.tasks, *v.shape) for k, v in theta.items()}
        theta = {k: v if v.requires_grad else v.detach().requires_grad_() for k, v in theta.items()}
        s = rules.start(work.rule, theta, torch.zeros_like)
        for j in range(work.steps):
            loss = train_loss(theta, given["phi_loss"], work.batch(j))
            G = dict(zip(theta, torch.autograd.grad(loss, list(theta.values()), create_graph=True), strict=True))
            theta, s = rules.step(work.rule, theta, s, G, given["lr"], rules.corrections(j), torch.sqrt)
        return gradient_of(val_loss(theta, given["phi_loss"], work.val), leaves)

    return run


def func(work: Workload) -> Run:
    held = {"theta_0": work.theta_0, "lr": work.lr, "phi_loss": work.phi_loss}

    def validation(meta: dict[str, Any], train: Batch, val: Batch) -> Tensor:
        given = {**held, **meta}
        theta = given["theta_0"]
        s = rules.start(work.rule, theta, torch.zeros_like)
        for j in range(work.steps):
            x, y = train
            G = torch.func.grad(work.train_loss)(theta, given["phi_loss"], (x[j % len(x)], y[j % len(y)]))
            theta, s = rules.step(work.rule, theta, s, G, given["lr"], rules.corrections(j), torch.sqrt)
        return work.val_loss(theta, given["phi_loss"], val)

    gradient = torch.func.grad(validation)
    if not work.tasks:
        return lambda: named(gradient(work.meta, work.train, work.val))
    tasks = torch.vmap(gradient, (None, 1, 0))
    return lambda: named(pytree.tree_map(lambda g: g.sum(0), tasks(work.meta, work.train, work.val)))


def per_task(work: Workload, one: Callable[[Callable[[int], Batch], Batch], dict[str, Tensor]]) -> Run:
    """The sum over tasks of what `one` gives for a task's batches."""

    def run() -> dict[str, Tensor]:
        if not work.tasks:
            return one(work.batch, work.val)
        total: dict[str, Tensor] = {}
        for i in range(work.tasks):
            x, y = work.val
            found = one(lambda j, i=i: tuple(b[i] for b in work.batch(j)), (x[i], y[i]))
            total = {k: total[k] + v if total else v for k, v in found.items()}
        return total

    return run


def higher(work: Workload) -> Run:
    import higher as library

    if work.rule == "adamw":
        raise LookupError("higher has no AdamW")
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[work.rule]
    net, names = work.net, [k for k, _ in work.net.named_parameters()]
    by_tensor, adaptive = isinstance(work.lr, dict), work.rule != "sgd"
    groups = [{"params": [p]} for p in net.parameters()] if by_tensor else list(net.parameters())
    optimizer = kind(groups, lr=1e-3 if "lr" in work.wanted else work.lr)
    objective = OBJECTIVES[work.objective]

    def one(batch: Callable[[int], Batch], val: Batch) -> dict[str, Tensor]:
        given, leaves = with_leaves(work)
        if "theta_0" in work.wanted:
            leaves |= named({"theta_0": dict(net.named_parameters())})
        override = None
        if "lr" in work.wanted:
            override = {"lr": list(given["lr"].values()) if by_tensor else [given["lr"]]}
        with library.innerloop_ctx(net, optimizer, copy_initial_weights=False, override=override) as (fast, inner):
            for j in range(work.steps):
                x, y = batch(j)
                loss = objective(fast(x), y)
                if work.phi_loss:
                    loss = loss + mnist_mlp.l2(dict(zip(names, fast.parameters(), strict=True)), given["phi_loss"])
                # Its Adam adds eps before the correction, as torch.optim once did; this eps gives today's formula.
                inner.step(loss, override={"eps": [rules.EPS * rules.corrections(j)[1] ** 0.5]} if adaptive else None)
            return gradient_of(objective(fast(val[0]), val[1]), leaves)

    return per_task(work, one)


def torchopt(work: Workload) -> Run:
    import torchopt as library

    rate = 1.0 if "lr" in work.wanted else work.lr  # one rate a tensor is not in its rules: ours multiplies the update
    optimizer = getattr(library, work.rule)(lr=rate)

    def one(batch: Callable[[int], Batch], val: Batch) -> dict[str, Tensor]:
        given, leaves = with_leaves(work)
        theta = {k: v if v.requires_grad else v.clone().requires_grad_() for k, v in given["theta_0"].items()}
        lr = given["lr"] if isinstance(work.lr, dict) else dict.fromkeys(theta, given["lr"])
        s = optimizer.init(theta)
        for j in range(work.steps):
            loss = work.train_loss(theta, given["phi_loss"], batch(j))
            G = dict(zip(theta, torch.autograd.grad(loss, list(theta.values()), create_graph=True), strict=True))
            updates, s = optimizer.update(G, s, params=theta, inplace=False)
            if "lr" in work.wanted:
                updates = {k: lr[k] * u for k, u in updates.items()}
            theta = library.apply_updates(theta, updates, inplace=False)
        return gradient_of(work.val_loss(theta, given["phi_loss"], val), leaves)

    return per_task(work, one)
