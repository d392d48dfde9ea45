"""The questions of `optimizer_table`, put to `higher` and `torchopt` (of the `bench` extra)."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.optimizers.cases import Case, start

STEPS = 6
CENTRE = 0.3
TORCHOPT = {
    "SGD": "MetaSGD",
    "Adam": "MetaAdam",
    "AdamW": "MetaAdamW",
    "Adamax": "MetaAdaMax",
    "Adadelta": "MetaAdadelta",
    "Adagrad": "MetaAdaGrad",
    "RMSprop": "MetaRMSProp",
    "RAdam": "MetaRAdam",
}


class Weights(nn.Module):
    """Tensors as a module; its output is a loss."""

    def __init__(self, theta: dict[str, Tensor], case: Case) -> None:
        super().__init__()
        self.sign = -1 if case.options.get("maximize") else 1
        self.held = nn.ParameterDict({k: nn.Parameter(v.clone()) for k, v in theta.items()})

    def forward(self, kind: str, j: int) -> Tensor:
        named = list(self.held.items())
        if kind == "inner":
            return self.sign * sum(((n + 1) * torch.cosh(v - CENTRE)).sum() for n, (_, v) in enumerate(named))
        return sum((torch.sin(v) + v**2).sum() for _, v in named)


class Linear(Weights):
    """A loss whose gradient is a given tensor, for the question of G = 0."""

    def __init__(self, theta: dict[str, Tensor], case: Case, slopes: dict[str, Tensor]) -> None:
        super().__init__(theta, case)
        self.slopes = slopes

    def forward(self, kind: str, j: int) -> Tensor:
        weights = {k: torch.linspace(0.5, 1.5, v.numel()).reshape(v.shape) for k, v in self.held.items()}
        chosen = self.slopes if kind == "inner" else weights
        return sum((v * chosen[k]).sum() for k, v in self.held.items())


Unroll = Callable[[Case, Weights, int], tuple[Tensor, list[Tensor]]]  # the validation loss, and the first parameters


def higher_unroll(case: Case, module: Weights, steps: int) -> tuple[Tensor, list[Tensor]]:
    import higher

    optimizer = case.build_torch(list(module.parameters()))
    with higher.innerloop_ctx(module, optimizer, copy_initial_weights=False) as (fast, diffopt):
        for j in range(steps):
            diffopt.step(fast("inner", j))
        return fast("outer", steps), list(module.parameters())


def torchopt_unroll(case: Case, module: Weights, steps: int) -> tuple[Tensor, list[Tensor]]:
    import torchopt

    made = getattr(torchopt, TORCHOPT[case.rule])
    known = inspect.signature(made).parameters
    unknown = [name for name, value in case.options.items() if name not in known and value]
    if unknown:
        raise LookupError(f"no {', '.join(unknown)}")
    first = list(module.parameters())
    optimizer = made(module, **{name: value for name, value in case.options.items() if name in known})
    for j in range(steps):
        optimizer.step(module("inner", j))
    return module("outer", steps), first


def meta_error(unroll: Unroll, case: Case) -> float:
    """dL/dtheta_0 against central differences of the peer's own forward pass."""
    module = Weights(start(case), case)
    names = list(module.held)
    L, first = unroll(case, module, STEPS)
    found = torch.autograd.grad(L, first, allow_unused=True)
    torch.manual_seed(7)
    direction = {k: torch.randn(v.shape) for k, v in start(case).items()}

    def along(h: float) -> float:
        moved = {k: v + h * direction[k] for k, v in start(case).items()}
        return float(unroll(case, Weights(moved, case), STEPS)[0])

    h = 1e-4
    wide, narrow = ((along(s) - along(-s)) / (2 * s) for s in (h, h / 2))
    slope = (4 * narrow - wide) / 3
    claimed = sum(float((g * direction[k]).sum()) for g, k in zip(found, names, strict=True) if g is not None)
    return abs(claimed - slope) / abs(slope)


def zero_error(unroll: Unroll, case: Case) -> float:
    """d theta_1 / dG at G = 0 and theta = 0, against its slope."""

    def result(scale: Tensor) -> Tensor:
        slopes = {k: scale * torch.linspace(-1.0, 1.0, v.numel()).reshape(v.shape) for k, v in start(case).items()}
        module = Linear({k: torch.zeros_like(v) for k, v in start(case).items()}, case, slopes)
        return unroll(case, module, 1)[0]

    h = 1e-26
    slope = float(result(torch.tensor(h)) - result(torch.tensor(-h))) / (2 * h)
    scale = torch.tensor(0.0, requires_grad=True)
    (found,) = torch.autograd.grad(result(scale), scale, allow_unused=True)
    if found is None:
        return float("inf")
    return abs(float(found) - slope) / abs(slope)


def parity(unroll: Unroll, case: Case) -> float:
    """Largest error of theta after 100 steps of the same loss against torch.optim."""
    module = Weights(start(case), case)
    if unroll is torchopt_unroll:
        unroll(case, module, 100)
        ours = list(module.parameters()) or list(module.held.values())
    else:
        import higher

        optimizer = case.build_torch(list(module.parameters()))
        with higher.innerloop_ctx(module, optimizer, track_higher_grads=False) as (fast, diffopt):
            for j in range(100):
                diffopt.step(fast("inner", j))
            ours = list(fast.fast_params)
    plain = Weights(start(case), case)
    optimizer = case.build_torch(plain.parameters())
    for j in range(100):
        optimizer.zero_grad()
        plain("inner", j).backward()
        optimizer.step()
    pairs = zip(ours, plain.parameters(), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def peer_table(peer: str, cases: list[Case]) -> tuple[list[str], list[list[str]]]:
    """(header, rows); where the peer has no rule or option, the row says so."""
    from tests.benchmarks.optimizer_table import JUMPS, show

    unroll: Unroll = higher_unroll if peer == "higher" else torchopt_unroll
    rows = []
    for case in cases:
        if case.torch_class() is None or (peer == "torchopt" and case.rule not in TORCHOPT):
            rows.append([case.label, *["no rule"] * 3])
            continue
        row = [case.label]
        for question in (parity, meta_error, zero_error):
            if question is zero_error and case.rule in JUMPS:
                row.append("jump")
                continue
            try:
                row.append(show(question(unroll, case)))
            except Exception as error:  # what a user would get
                missing = "not supported" in str(error)
                said = str(error).splitlines()[0][:30] if str(error) else ""
                row.append(
                    "no rule"
                    if missing
                    else said
                    if isinstance(error, LookupError)
                    else f"{type(error).__name__}: {said}"
                )
        rows.append(row)
    return [f"{peer}: optimizer and options", "parity", "dL/dtheta_0", "G = 0"], rows
