"""Ten thousand steps in float32 stay within the error that float64 explains.

Derivation. In float32 each quantity q of a step (G, theta, s, V, B, S, and the running sums of A) is stored with an
error of a few roundings, |δq| <= C·u·|q|, u = 2^-24. To first order the meta-gradient is then off by a sum over all
steps, Σ_j (∂A/∂q_j)·δq_j, and the targets differ at each step, so that the δq_j are as good as independent: the sum
has mean 0 and a variance that follows from them. No derivative of A is needed for it. The same run in float64,
with every q multiplied by 1 + C·u·ξ, ξ uniform in [-1, 1], has the same sum; the loss is a sum over elements, each with
a learning rate of its own, so that one run holds many independent copies and their spread is the standard deviation
σ. A float32 run beyond 4σ has an error that roundings do not explain.

All constants are exact in float32; otherwise both runs would not solve the same problem.
"""

from __future__ import annotations

import pytest
import torch

import gimli_core as gimli

STEPS, COPIES, WEIGHTS = 10_000, 24, 6
C, U = 4, 2.0**-24
RULES = {
    "momentum": (gimli.optimizers.SGD(momentum=0.875), 2.0**-15),
    "adam": (gimli.optimizers.Adam(betas=(0.875, 1 - 2.0**-10), eps=2.0**-20), 2.0**-13),
}


class Rounding:
    """Multiplies what each line of a step returns by 1 + C·u·ξ, and A's running sum; 64 times that in copy 0."""

    def __init__(self):
        self.sum = 0.0
        self.size = torch.full((1 + COPIES, 1), C * U, dtype=torch.float64)
        self.size[0] *= 64
        self.generator = torch.Generator().manual_seed(1)

    def noise(self, t):
        return self.size * (2 * torch.rand(t.shape, generator=self.generator, dtype=t.dtype) - 1)

    def rounded(self, tree):
        if isinstance(tree, dict):
            return {k: self.rounded(v) for k, v in tree.items()}
        return tree * (1 + self.noise(tree)) if isinstance(tree, torch.Tensor) and tree.ndim else tree

    def __call__(self, event):
        for symbol in {5: "G", 6: ("theta", "s"), 9: ("B",), 11: "V", 14: ("B", "S")}.get(event.line, ()):
            event.values[symbol] = self.rounded(event.values[symbol])
        if event.line == 12:
            increment = event.values["A_opt"]["w"]["lr"]
            self.sum = self.sum + increment
            event.values["A_opt"] = {"w": {"lr": increment + self.noise(self.sum) * self.sum}}


def run(rule, dtype, copies, watch):
    optimizer, rate = RULES[rule]
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(997, WEIGHTS, generator=generator).to(dtype) for _ in range(2))
    start = torch.randn(WEIGHTS, generator=generator).to(dtype).expand(copies, WEIGHTS).clone()

    def loss(theta, phi, batch):
        return ((batch[0] * theta["w"] - batch[1]).square() + 1).sqrt().sum()

    return gimli.meta_gradient(
        gimli.Problem(loss, loss, optimizer),
        {"w": start},
        lambda j: (a[j % 996], b[j % 996]),
        (a[996], b[996]),
        steps=STEPS,
        phi_opt={"lr": {"w": torch.full_like(start, rate)}},
        memory=gimli.memory.StoreStates(),
        watch=watch,
        check=False,
    )


def quantities(result):
    return {"A": result.A_opt["lr"]["w"].double(), "B": result.B_0["w"].double(), "theta": result.theta_J["w"].double()}


@pytest.mark.long
@pytest.mark.parametrize("rule", RULES)
def test_ten_thousand_steps_in_float32(rule):
    norms = gimli.AdjointNorms()  # would warn, and so fail, if early steps did not count
    exact = quantities(run(rule, torch.float64, 1, norms))
    assert 1e-3 < norms.norms[0] / norms.norms[STEPS] < 1e3
    single = quantities(run(rule, torch.float32, 1, None))
    rounded = quantities(run(rule, torch.float64, 1 + COPIES, Rounding()))
    for name, value in exact.items():
        worse, *copies = rounded[name]
        sigma = (torch.stack(copies) - value).square().mean(0).sqrt()
        assert (sigma > 0).all()
        assert ((single[name] - value).abs() <= 4 * sigma).all(), name
        assert ((worse - value).abs() > 4 * sigma).any(), name  # a few bits less a step are seen
