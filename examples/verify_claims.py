"""Judge meta-gradients that came from elsewhere: `higher`, `torchopt` and `bergson` on a small network, real data.

    pip install 'gimli_core[verify,bench]' scikit-learn
    python examples/verify_claims.py

Six findings, each measured here:
1. `higher` 0.2.1 adds Adam's eps before the bias correction of the second moment, as PyTorch once did. Its trajectory
   is not that of today's `torch.optim.Adam`, so its meta-gradients are others too (here by 6 to 40 %).
2. Where eps is too small to matter the trajectories agree, and so do the gradients to 1e-12, but for beta2: a
   `math.sqrt` detaches it from the bias correction, and -7.26 comes where -0.0088 is right. Nothing else shows it.
3. `torchopt` 0.7.3 computes the bias corrections in torch's default dtype: in a float64 problem under the usual
   float32 default its gradients are off by 4e-7. After `torch.set_default_dtype(torch.float64)` they are right.
4. With one dead unit it gives NaN for every parameter, since G = 0 there and `eps_root` is 0 by default.
5. `bergson` 2.5.1 detaches Muon's weight decay, so its gradient lacks what the decay does to theta (here 4 % after 4
   steps at a rate of 0.02 and a decay of 0.5).
6. Its AdamW is torchopt's: at `eps_root` = 0, as torch.optim trains, one dead unit gives NaN for every parameter again.
   Its default is 1e-17, which is another training.

Where `bergson` is not installed, its updates stand in, restated below; the headings say so. (It is no extra of ours: it
brings transformers and more with it. `pip install bergson`, then `pip uninstall torchvision torchaudio` where these do
not fit the installed torch; it does not use them.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.func import functional_call

import gimli_core as gimli

LR, BETA1, BETA2, STEPS = 0.05, 0.9, 0.99, 4


def network(*, dead_unit: bool = False, biases: bool = True) -> nn.Module:
    """10-4-1; with `dead_unit`, one ReLU never fires."""
    torch.manual_seed(0)
    first, last = nn.Linear(10, 4, bias=biases), nn.Linear(4, 1, bias=biases)
    net = nn.Sequential(first, nn.ReLU() if dead_unit else nn.Tanh(), last).double()
    if dead_unit:
        with torch.no_grad():
            net[0].bias[1] = -50.0
    return net


def batches() -> list[tuple[Tensor, Tensor]]:
    """One batch of 16 patients a step, and one for validation."""
    X, y = (torch.from_numpy(v) for v in load_diabetes(return_X_y=True))
    X, y = (X - X.mean(0)) / X.std(0), ((y - y.mean()) / y.std())[:, None]
    return list(zip(X[: 16 * (STEPS + 1)].split(16), y[: 16 * (STEPS + 1)].split(16), strict=True))


def question(net: nn.Module, eps: float, phi_opt: dict[str, Any] | None = None) -> dict[str, Any]:
    """The same meta-gradient in the words of `gimli.verify`."""

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        return ((functional_call(net, theta, batch[0]) - batch[1]) ** 2).mean()

    adam = gimli.optimizers.Adam(lr=LR, betas=(BETA1, BETA2), eps=eps)
    *train, validation = batches()
    return {
        "problem": gimli.Problem(loss, loss, adam),
        "theta_0": dict(net.named_parameters()),
        "train_batches": train,
        "val_batch": validation,
        "phi_opt": phi_opt or {},
    }


def claim_of_higher(net: nn.Module, eps: float) -> dict[str, Any]:
    """dL/dlr, dL/dbeta1, dL/dbeta2 and dL/dtheta_0 by `higher`."""
    import higher

    *train, (X, y) = batches()
    lr, beta1, beta2 = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (LR, BETA1, BETA2))
    adam = torch.optim.Adam(net.parameters(), lr=LR, betas=(BETA1, BETA2), eps=eps)
    override = {"lr": [lr], "betas": [(beta1, beta2)]}
    with higher.innerloop_ctx(net, adam, copy_initial_weights=False, override=override) as (inner, inner_adam):
        for x, target in train:
            inner_adam.step(((inner(x) - target) ** 2).mean())
        L = ((inner(X) - y) ** 2).mean()
        d_lr, d_beta1, d_beta2, *d_theta = torch.autograd.grad(L, [lr, beta1, beta2, *net.parameters()])
    names = [name for name, _ in net.named_parameters()]
    return {"A_opt": {"lr": d_lr, "beta1": d_beta1, "beta2": d_beta2}, "B_0": dict(zip(names, d_theta, strict=True))}


def claim_of_torchopt(net: nn.Module, eps: float) -> dict[str, Any]:
    """dL/dtheta_0 by `torchopt`."""
    import torchopt

    *train, (X, y) = batches()
    theta_0 = dict(net.named_parameters())
    names, theta = list(theta_0), tuple(theta_0.values())
    adam = torchopt.adam(LR, (BETA1, BETA2), eps, moment_requires_grad=True)
    state = adam.init(theta)
    for x, target in train:
        loss = ((functional_call(net, dict(zip(names, theta, strict=True)), x) - target) ** 2).mean()
        updates, state = adam.update(torch.autograd.grad(loss, theta, create_graph=True), state, inplace=False)
        theta = torchopt.apply_updates(theta, updates, inplace=False)
    L = ((functional_call(net, dict(zip(names, theta, strict=True)), X) - y) ** 2).mean()
    return {"B_0": dict(zip(names, torch.autograd.grad(L, list(theta_0.values())), strict=True))}


LR_OF_BERGSON, DECAY, MOMENTUM = 0.02, 0.5, 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
Rule = Callable[[list[Tensor], list[Tensor]], list[Tensor]]  # (theta, G) -> theta', with a state of its own


def with_rule(asked: dict[str, Any], rule: gimli.optimizers.Optimizer) -> dict[str, Any]:
    """The same question of another rule."""
    problem = asked["problem"]
    return {**asked, "problem": gimli.Problem(problem.train_loss, problem.val_loss, rule)}


def question_of_muon(net: nn.Module) -> dict[str, Any]:
    """Of matrices alone."""
    muon = gimli.optimizers.Muon(LR_OF_BERGSON, DECAY, MOMENTUM, adjust_lr_fn="match_rms_adamw")
    return with_rule(question(net, 1e-8), muon)


def question_of_adamw(net: nn.Module) -> dict[str, Any]:
    adamw = gimli.optimizers.AdamW(LR_OF_BERGSON, (BETA1, BETA2), 1e-8, DECAY)
    return with_rule(question(net, 1e-8), adamw)


def bergson_is_here() -> bool:
    try:
        import bergson.magic.optim  # noqa: F401
    except Exception:  # a package that does not fit the installed torch raises what it likes
        return False
    return True


def rules_of_bergson() -> dict[str, Rule]:
    """Muon and AdamW as its trainer makes them, or restated."""
    if not bergson_is_here():
        return {"bergson's Muon, restated": muon(), "bergson's AdamW, restated": adamw()}
    import torchopt
    from bergson.magic import optim

    made = {
        "bergson's Muon": optim.muon(LR_OF_BERGSON, MOMENTUM, weight_decay=DECAY),
        "bergson's AdamW": torchopt.adamw(LR_OF_BERGSON, (BETA1, BETA2), 1e-8, weight_decay=DECAY, eps_root=0.0),
    }
    return {name: of_transformation(transformation) for name, transformation in made.items()}


def of_transformation(transformation: Any) -> Rule:
    state = None

    def step(theta: list[Tensor], G: list[Tensor]) -> list[Tensor]:
        nonlocal state
        import torchopt

        state = transformation.init(theta) if state is None else state
        updates, state = transformation.update(G, state, params=theta, inplace=False)
        moved: list[Tensor] = torchopt.apply_updates(theta, updates, inplace=False)
        return moved

    return step


def muon() -> Rule:
    """`bergson` 2.5.1's for matrices, as it computes: `theta.detach()` and all."""
    buffers: list[Tensor] = []

    def orthogonalised(U: Tensor) -> Tensor:
        a, b, c = NEWTON_SCHULZ
        X = U.T if U.shape[0] > U.shape[1] else U
        X = X / X.norm().clamp(min=1e-7)
        for _ in range(5):
            A = X @ X.T
            X = a * X + (b * A + c * A @ A) @ X
        return X.T if U.shape[0] > U.shape[1] else X

    def step(theta: list[Tensor], G: list[Tensor]) -> list[Tensor]:
        buffers[:] = [MOMENTUM * b + g for b, g in zip(buffers, G, strict=True)] if buffers else G
        along = [orthogonalised(g + MOMENTUM * b) * 0.2 * max(g.shape) ** 0.5 for b, g in zip(buffers, G, strict=True)]
        return [x - LR_OF_BERGSON * (u + DECAY * x.detach()) for x, u in zip(theta, along, strict=True)]

    return step


def adamw() -> Rule:
    """torchopt's at eps_root = 0, by autograd."""
    moments: list[tuple[Tensor, Tensor]] = []
    count = 0

    def step(theta: list[Tensor], G: list[Tensor]) -> list[Tensor]:
        nonlocal count
        count += 1
        before = moments or [(torch.zeros_like(g), torch.zeros_like(g)) for g in G]
        moments[:] = [
            (BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g) for (m, v), g in zip(before, G, strict=True)
        ]
        along = [(m / (1 - BETA1**count)) / ((v / (1 - BETA2**count)).sqrt() + 1e-8) for m, v in moments]
        return [x - LR_OF_BERGSON * (u + DECAY * x) for x, u in zip(theta, along, strict=True)]

    return step


def claim_of_bergson(net: nn.Module, step: Rule) -> dict[str, Any]:
    """dL/dtheta_0 by autograd through its rule, which is what its traced steps come to."""
    *train, (X, y) = batches()
    names, start = zip(*net.named_parameters(), strict=True)
    theta = list(start)
    for x, target in train:
        loss = ((functional_call(net, dict(zip(names, theta, strict=True)), x) - target) ** 2).mean()
        theta = step(theta, list(torch.autograd.grad(loss, theta, create_graph=True)))
    L = ((functional_call(net, dict(zip(names, theta, strict=True)), X) - y) ** 2).mean()
    return {"B_0": dict(zip(names, torch.autograd.grad(L, start), strict=True))}


def main() -> None:
    learned = {"lr": LR, "beta1": BETA1, "beta2": BETA2}
    for title, eps in (("higher, eps = 1e-3", 1e-3), ("higher, eps = 1e-15, too small to matter", 1e-15)):
        net = network()
        show(title, gimli.verify(**question(net, eps, learned), claimed=claim_of_higher(net, eps)))
    for title, dead in (("torchopt", False), ("torchopt, one dead unit", True)):
        net = network(dead_unit=dead)
        show(title, gimli.verify(**question(net, 1e-3), claimed=claim_of_torchopt(net, 1e-3)))
    questions = (question_of_muon, network(biases=False)), (question_of_adamw, network(dead_unit=True))
    for (name, rule), (ask, net) in zip(rules_of_bergson().items(), questions, strict=True):
        show(name, gimli.verify(**ask(net), claimed=claim_of_bergson(net, rule)))


def show(title: str, report: Any) -> None:
    print(f"\n{title}")
    for check in report.checks:
        if check.subject == "claimed" and check.oracle == "engine":
            line = f"{check.value:12.6g}, the engine {check.expected:12.6g}, relative error {check.error:.0e}"
            print(f"  {check.name:16} {line}: {check.verdict.value}")
    print(f"  the engine itself: {report.of('engine').headline}")


if __name__ == "__main__":
    main()
